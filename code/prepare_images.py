"""Raw PASCAL3D+ (or its occluded twin) -> crops, annotations and lists of one set."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nemo import cli
from nemo.boxes import CropGeometry, crop_geometry, crop_image
from nemo.files import atomic_path, write_text
from nemo.layout import PreparedSet, RawOccluded, RawPascal3D
from nemo.pascal3d import Record, Split, UnusableRecord, read_record, read_split
from nemo.records import Annotation, load_npz, save_annotation
from nemo.settings import category as category_settings

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

    @property
    def subset(self) -> str:
        return self.category + self.level

    def source_image(self, name: str) -> Path:
        if self.occluded is not None:
            return self.occluded.image(self.category, self.level, name)
        return self.raw.image(self.category, name)


def prepare_image(job: Job, name: str) -> tuple[str, str, int]:
    """Crop one image and write its annotation. Returns (name, outcome, cad_index): `new`, `kept`, or why it was skipped."""
    image_path, annotation_path = job.prepared.image(job.subset, name), job.prepared.annotation(job.subset, name)
    if image_path.is_file() and annotation_path.is_file():
        return name, "kept", int(load_npz(annotation_path, ["cad_index"], only=("cad_index",))["cad_index"])
    annotation_path.unlink(missing_ok=True)  # of another crop; so that a kill below leaves nothing that looks finished
    source = job.source_image(name)
    if not source.is_file():
        return name, "no such image", 0
    try:
        record = read_record(job.raw.annotation(job.category, name), job.category)
        image = read_image(source)
        if image.shape[:2] != record.image_hw:
            raise UnusableRecord("image and annotation differ in size", f"{source} is {image.shape[:2]}, not {record.image_hw}")
        if not 1 <= record.cad_index <= job.cads:
            raise UnusableRecord("no such CAD model", f"{name} has cad_index {record.cad_index} of {job.cads}")
        mask = _occluder_mask(job, name, record)
        geometry = crop_geometry(
            job.geometry, record.image_hw, category_settings(job.category).crop_hw,
            record.bbox_xyxy, record.principal_xy, record.distance,
        )  # fmt: skip
        with atomic_path(image_path) as temporary:
            Image.fromarray(crop_image(image, geometry)).save(temporary, "JPEG", quality=JPEG_QUALITY[job.geometry])
        save_annotation(annotation_path, annotation_of(record, geometry, mask))
    except UnusableRecord as error:
        return name, error.reason, 0
    except FileNotFoundError:
        return name, "no annotation", 0
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        return name, f"unreadable ({type(error).__name__})", 0
    return name, "new", record.cad_index


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode to [h, w, 3], or [h, w] when it is grey; CMYK, palette and alpha become RGB."""
    with Image.open(path) as image:
        return np.array(image if image.mode in ("RGB", "L") else image.convert("RGB"))


def _occluder_mask(job: Job, name: str, record: Record) -> NDArray[np.bool_] | None:
    if job.occluded is None:
        return None
    path = job.occluded.annotation(job.category, job.level, name)
    mask = load_npz(path, ["occluder_mask"], only=("occluder_mask",))["occluder_mask"].astype(bool)
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
        azimuth=record.azimuth,
        elevation=record.elevation,
        theta=record.theta,
        distance=record.distance,
        focal=record.focal,
        viewport=record.viewport,
        principal=record.principal_xy,
        height=height,
        width=width,
        cad_index=record.cad_index,
        bbox=record.bbox_xyxy,
        geometry=geometry.geometry,
        crop_scale=geometry.scale,
        crop_offset=geometry.offset_rc,
        occ_mask=occ_mask,
    )


def prepare_category(job: Job, split_name: str, pool: ProcessPoolExecutor) -> Counter:
    """Prepare one subset and its lists; returns how many images had which outcome."""
    split = read_split(job.raw, job.category, split_name)
    names = split.names
    if job.occluded is not None:  # O has fewer images; those it has decide
        present = set(job.occluded.names(job.category, job.level))
        names = [name for name in names if name in present]
    _check_source(job, split)
    results = list(
        cli.progress(
            pool.map(partial(prepare_image, job), names, chunksize=4), f"{job.subset} {split_name}", total=len(names)
        )
    )
    usable = {name: cad for name, outcome, cad in results if outcome in ("new", "kept")}
    _write_lists(job, split, usable)
    skipped = sorted(f"{name}: {outcome}" for name, outcome, _ in results if name not in usable)
    write_text(job.prepared.skipped(job.subset), "".join(line + "\n" for line in skipped))
    return Counter(outcome for _, outcome, _ in results)


def _check_source(job: Job, split: Split) -> None:
    """Write where the subset comes from; refuse to mix it with one that was prepared otherwise."""
    digest = hashlib.sha256("\n".join(sorted(split.names)).encode()).hexdigest()
    text = cli.as_json({"split": split.source, "geometry": job.geometry, "images": len(split.names), "names_sha256": digest})
    path = job.prepared.source(job.subset)
    if path.is_file() and path.read_text() != text:
        raise ValueError(
            f"{path.parent} was prepared from other images or with another GEOMETRY; "
            "set OVERWRITE=true to prepare it again, or prepare into another folder"
        )
    write_text(path, text)


def _write_lists(job: Job, split: Split, usable: dict[str, int]) -> None:
    folder = job.prepared.lists(job.subset)
    meshes = range(1, job.cads + 1)
    lists = {subtype: [n for n in names if n in usable] for subtype, names in split.subtypes.items()}
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
    parser.add_argument("--level", default="", help="occlusion level such as FGL1_BGL1")
    parser.add_argument("--geometry", choices=("paper", "exact"), default="paper")
    parser.add_argument("--overwrite", type=cli.boolean, default=False, help="delete what is there of these categories first")
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")
    cli.add_categories(parser)
    args = parser.parse_args()
    if bool(args.level) != (args.occluded is not None):
        raise ValueError("--level and --occluded go together")
    raw = RawPascal3D(cli.require_folder(args.raw, "PASCAL3D+", "set PATH_PASCAL3DP"))
    occluded = RawOccluded(cli.require_folder(args.occluded, "OccludedPASCAL3D", "set PATH_OCCLUDED_PASCAL3DP")) if args.occluded else None
    total: Counter = Counter()
    with ProcessPoolExecutor(cli.worker_count(args.workers)) as pool:
        for category in args.categories:
            if args.overwrite:
                PreparedSet(args.out).remove(category + args.level)
            job = Job(raw, PreparedSet(args.out), category, args.geometry, len(raw.cads(category)), args.level, occluded)
            total += prepare_category(job, args.split, pool)
    done = total.pop("new", 0) + total.pop("kept", 0)
    skipped = "; ".join(f"{n} skipped: {reason}" for reason, n in sorted(total.items()))
    where = f", listed in {args.out}/lists/<category>/SKIPPED.txt" if total else ""
    print(f"{args.split}{' ' + args.level if args.level else ''}: {cli.count(done, 'image')} of "
          f"{cli.count(len(args.categories), 'category')} in {args.out}{'; ' + skipped if skipped else ''}{where}")  # fmt: skip
    if not done:
        raise ValueError("no image could be prepared")


if __name__ == "__main__":
    cli.run_main(main)
