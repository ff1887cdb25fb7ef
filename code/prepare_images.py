"""Raw PASCAL3D+ (or its occluded twin) -> crops, annotations and lists of one set."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.categories import category_settings
from neural_mesh.data.pascal3d import Record, UnusableRecord, read_record
from neural_mesh.data.splits import Split, read_split, record_rules
from neural_mesh.geometry.boxes import CropGeometry, crop_geometry, crop_image
from neural_mesh.machine import arguments, console
from neural_mesh.machine.resources import crops_size, require_disk
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.storage.files import holds, lock, read_json, remove_parts, write_text
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D
from neural_mesh.storage.npz_files import load_npz, load_numbers
from neural_mesh.storage.pictures import read_picture, write_jpeg
from neural_mesh.storage.records import Annotation, save_annotation

BYTES_PER_MASK = 250_000  # of an occluder mask, which is stored in the size of its image
JPEG_QUALITY = {"paper": 75, "exact": 95}  # 75 is what the official checkpoints were trained on


@dataclass(frozen=True)
class Job:
    """One set of one category at one occlusion level (empty: none)."""

    raw: RawPascal3D
    prepared: PreparedSet
    category: str
    geometry: str
    cads: int  # how many CAD models the category has
    level: str = ""
    occluded: RawOccluded | None = None
    rules: str = "strict"  # for records, see neural_mesh.data.pascal3d.read_record

    @property
    def subset(self) -> str:
        return self.category + self.level

    def source_image(self, name: str) -> Path:
        if self.occluded is not None:
            return self.occluded.image(self.category, self.level, name)
        return self.raw.image(self.category, name)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: `new`, `kept`, or why it was skipped."""

    name: str
    what: str
    cad_index: int = 0
    objects: int = 1

    @property
    def usable(self) -> bool:
        return self.what in ("new", "kept")


def prepare_image(job: Job, name: str) -> Outcome:
    """Crop one image and write its annotation."""
    image_path, annotation_path = (
        job.prepared.image(job.subset, name),
        job.prepared.annotation(job.subset, name),
    )
    if image_path.is_file() and annotation_path.is_file():
        with suppress(ValueError):  # one that something else has broken is made again
            stored = load_numbers(annotation_path, ["cad_index"], ["objects"])
            return Outcome(name, "kept", int(stored["cad_index"]), int(stored.get("objects", 1)))
    annotation_path.unlink(
        missing_ok=True
    )  # of another crop; so that a kill below leaves nothing that looks finished
    try:
        crop, annotation = cropped(job, name)
    except UnusableRecord as error:
        return Outcome(name, error.reason)
    write_jpeg(image_path, crop, JPEG_QUALITY[job.geometry])
    save_annotation(annotation_path, annotation)
    return Outcome(name, "new", annotation.cad_index, annotation.objects or 1)


def cropped(job: Job, name: str) -> tuple[NDArray[np.uint8], Annotation]:
    """The crop of one image and its annotation; UnusableRecord with the reason when there is none to be had."""
    source = job.source_image(name)
    if not source.is_file():
        raise UnusableRecord("no such image", str(source))
    try:
        record = read_record(job.raw.annotation(job.category, name), job.category, job.rules)
    except FileNotFoundError as error:
        raise UnusableRecord("no annotation", str(error)) from None
    if not 1 <= record.cad_index <= job.cads:
        raise UnusableRecord(
            "no such CAD model", f"{name} has cad_index {record.cad_index} of {job.cads}"
        )
    try:
        image = read_picture(source)
    except ValueError as error:
        raise UnusableRecord("unreadable image", f"{source} ({error})") from error
    if image.shape[:2] != record.image_hw:
        raise UnusableRecord(
            "image and annotation differ in size",
            f"{source} is {image.shape[:2]}, not {record.image_hw}",
        )
    mask = _occluder_mask(job, name, record)
    try:
        geometry = crop_geometry(
            job.geometry,
            record.image_hw,
            category_settings(job.category).crop_hw,
            record.bbox_xyxy,
            record.pose.principal_xy,
            record.pose.distance,
        )
        return crop_image(image, geometry), annotation_of(record, geometry, mask)
    except (ValueError, Image.DecompressionBombError, OverflowError) as error:
        raise UnusableRecord("no crop at that distance", f"{name}: {error}") from error


def _occluder_mask(job: Job, name: str, record: Record) -> NDArray[np.bool_] | None:
    if job.occluded is None:
        return None
    path = job.occluded.annotation(job.category, job.level, name)
    try:
        mask = load_npz(path, ["occluder_mask"], only=("occluder_mask",))["occluder_mask"].astype(
            bool
        )
    except (FileNotFoundError, ValueError) as error:
        raise UnusableRecord("no readable occluder mask", str(error)) from error
    if mask.shape != record.image_hw:
        raise UnusableRecord("occluder mask of another size", f"{path} has {mask.shape}")
    return mask


def annotation_of(record: Record, geometry: CropGeometry, occ_mask: NDArray | None) -> Annotation:
    """The annotation of a crop; key points hidden by the occluder count as not visible."""
    visible = record.keypoint_status.copy()
    seen = visible == 1
    if occ_mask is not None:
        cells = record.keypoints_xy.astype(int)
        inside = ((cells >= 0) & (cells < occ_mask.shape[::-1])).all(1)
        covered = inside.copy()
        covered[inside] = occ_mask[cells[inside, 1], cells[inside, 0]]
        visible[seen & covered] = 0
        seen &= ~covered
    points = np.where(seen[:, None], geometry.map_points(record.keypoints_xy[:, ::-1]), 0.0)
    height, width = record.image_hw
    return Annotation(
        name=record.name,
        box=geometry.box.astype(np.float32),
        box_ori=geometry.box_ori.astype(np.float32),
        box_obj=geometry.box_obj.astype(np.float32),
        cropped_kp_list=points,
        visible=visible,
        pose=record.pose,
        focal=record.focal,
        viewport=record.viewport,
        height=height,
        width=width,
        cad_index=record.cad_index,
        bbox=record.bbox_xyxy,
        geometry=geometry.geometry,
        crop_scale=geometry.scale,
        crop_offset=geometry.offset_rc,
        occ_mask=occ_mask,
        objects=record.objects if record.objects > 1 else None,
    )


def prepare_category(job: Job, split: Split, pool: ProcessPoolExecutor) -> list[Outcome]:
    """Prepare one subset and its lists; returns what became of each image."""
    names = split.names
    if job.occluded is not None:  # O has fewer images; those it has decide
        present = set(job.occluded.names(job.category, job.level))
        names = [name for name in names if name in present]
    _check_source(job, split)
    room = disk_for_crops(
        job, sum(not job.prepared.annotation(job.subset, name).is_file() for name in names)
    )
    require_disk(
        job.prepared.root,
        room,
        f"the crops of {job.subset}",
        "make space, or set DATAROOT to another disk",
    )
    outcomes = in_pool(pool, partial(prepare_image, job), names, job.subset)
    _write_lists(
        job, split, {outcome.name: outcome.cad_index for outcome in outcomes if outcome.usable}
    )
    skipped = sorted(
        f"{outcome.name}: {outcome.what}" for outcome in outcomes if not outcome.usable
    )
    write_text(job.prepared.skipped(job.subset), "".join(line + "\n" for line in skipped))
    return outcomes


def disk_for_crops(job: Job, images: int) -> int:
    """Bytes that crops, annotations and, if any, occluder masks of so many images take."""
    masks = 0 if job.occluded is None else images * BYTES_PER_MASK
    return (
        crops_size(images, category_settings(job.category).crop_hw, JPEG_QUALITY[job.geometry])
        + masks
    )


def _check_source(job: Job, split: Split) -> None:
    """Write where the subset comes from; refuse to mix it with one that was prepared otherwise."""
    digest = hashlib.sha256("\n".join(sorted(split.names)).encode()).hexdigest()
    source = {
        "split": split.source,
        "geometry": job.geometry,
        "records": job.rules,
        "images": len(split.names),
        "names_sha256": digest,
    }
    text = console.as_json(source | _occluders(job))
    path = job.prepared.source(job.subset)
    if path.is_file() and not holds(path, text):
        raise ValueError(
            f"{path.parent} was prepared from other images or occluders, or with another GEOMETRY or RECORD_RULES; "
            "set OVERWRITE=true to prepare it again, or prepare into another folder"
        )
    write_text(path, text)


def _occluders(job: Job) -> dict:
    """How the occluded pictures were made, where make_occluded.py made them."""
    if job.occluded is None or not (path := job.occluded.source(job.category, job.level)).is_file():
        return {}
    try:
        return {"occluded": read_json(path)}
    except ValueError as error:
        raise ValueError(f"{error}; it is not what make_occluded.py writes there") from None


def _write_lists(job: Job, split: Split, usable: dict[str, int]) -> None:
    folder = job.prepared.lists(job.subset)
    meshes = range(1, job.cads + 1)
    lists = {
        subtype: [n for n in names if n in usable] for subtype, names in split.subtypes.items()
    }
    lists |= {f"mesh{i:02d}": sorted(n for n, cad in usable.items() if cad == i) for i in meshes}
    for stem, names in lists.items():
        write_text(folder / f"{stem}.txt", "".join(f"{name}.JPEG\n" for name in names))


def main() -> None:
    """Prepare the training set, the test set, or an occluded test set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared set")
    parser.add_argument("--split", choices=("train", "val"), required=True)
    parser.add_argument("--occluded", type=Path, help="OccludedPASCAL3D; with --level")
    parser.add_argument(
        "--level", type=arguments.level, default="", help="occlusion level such as FGL1_BGL1"
    )
    parser.add_argument("--geometry", choices=("paper", "exact"), default="paper")
    parser.add_argument(
        "--parts",
        type=arguments.words,
        default=("imagenet",),
        help="of PASCAL3D+: imagenet, pascal or both",
    )
    parser.add_argument(
        "--record-rules",
        choices=("auto", "strict", "reference"),
        default="auto",
        help="see pascal3d.read_record",
    )
    parser.add_argument(
        "--overwrite",
        type=arguments.boolean,
        default=False,
        help="delete what is there of these categories first",
    )
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")
    arguments.add_categories(parser)
    args = parser.parse_args()
    if bool(args.level) != (args.occluded is not None):
        raise ValueError("--level and --occluded go together")
    if not args.parts or set(args.parts) - {"imagenet", "pascal"}:
        raise ValueError(f"--parts is '{' '.join(args.parts)}', it can be imagenet, pascal or both")
    raw = RawPascal3D(console.require_folder(args.raw, "PASCAL3D+", "set PATH_PASCAL3DP"), args.parts)
    occluded = (
        RawOccluded(
            console.require_folder(args.occluded, "OccludedPASCAL3D", "set PATH_OCCLUDED_PASCAL3DP")
        )
        if args.occluded
        else None
    )
    outcomes: list[Outcome] = []
    with WorkerPool(worker_count(args.workers)) as pool:
        for category in args.categories:
            split = read_split(raw, category, args.split)
            rules = record_rules(args.record_rules, split)
            cads = len(raw.cads(category))
            job = Job(
                raw,
                PreparedSet(args.out),
                category,
                args.geometry,
                cads,
                args.level,
                occluded,
                rules,
            )
            with lock(args.out, f"prepare-{job.subset}", f"the crops of {job.subset}"):
                if args.overwrite:
                    job.prepared.remove(job.subset)
                for path in (job.prepared.image, job.prepared.annotation):
                    remove_parts(path(job.subset, "x").parent)
                remove_parts(job.prepared.lists(job.subset))
                outcomes += prepare_category(job, split, pool)
    print(closing_line(args, outcomes))
    if not any(outcome.usable for outcome in outcomes):
        raise ValueError("no image could be prepared")


def closing_line(args: argparse.Namespace, outcomes: list[Outcome]) -> str:
    """Counts of one run: images used, those with several objects, and those skipped by reason."""
    used = [outcome for outcome in outcomes if outcome.usable]
    reasons = sorted(Counter(outcome.what for outcome in outcomes if not outcome.usable).items())
    several = sum(outcome.objects > 1 for outcome in used)
    subset = f"{args.split} {args.level}".strip()
    line = f"{subset}: {console.count(len(used), 'image')} of {console.count(len(args.categories), 'category')} in {args.out}"
    if several:
        line += f"; {several} with several objects, of which one is used"
    for reason, number in reasons:
        line += f"; {number} skipped: {reason}"
    return line + (f", listed in {args.out}/lists/<category>/SKIPPED.txt" if reasons else "")


if __name__ == "__main__":
    console.run_main(main)
