"""An occluded twin of the test images of any set in PASCAL3D+'s raw layout, or of any set that PrepareData.sh made."""

from __future__ import annotations

import argparse
import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neural_mesh.compare.kernels_numba import rasterise
from neural_mesh.data.occluded_pascal3d import (
    is_written,
    write_image,
    write_occluded,
    write_occluded_lists,
)
from neural_mesh.data.occlusion import Occluded, level_bounds, occlude
from neural_mesh.data.pascal3d import UnusableRecord, read_record
from neural_mesh.data.splits import read_split, record_rules
from neural_mesh.geometry.cameras import Pose, points_in_pascal_cam, project
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine import arguments, console
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.settings import OCC_LEVELS
from neural_mesh.storage.files import holds, lock, write_text
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.records import Annotation, load_annotation, save_annotation

CUTOUTS_PER_IMAGE = 3


@dataclass(frozen=True)
class Job:
    """A category at one level. prepared: the set to occlude and the one to write, where it is not the raw one."""

    raw: RawPascal3D
    occluded: RawOccluded
    category: str
    level: str
    seed: int
    meshes: tuple[Mesh, ...]
    occluders: tuple[Path, ...]
    rules: str
    prepared: tuple[PreparedSet, PreparedSet] | None = None

    def occluded_image(self, name: str, image: NDArray, mask: NDArray) -> Occluded | None:
        """Occlude an image [H, W, 3] whose object is mask [H, W]; the same job and name give the same picture.

        None where the level cannot be reached; ValueError for an occluder that is no picture.
        """
        random = np.random.default_rng(
            [self.seed, zlib.crc32(f"{self.category}{self.level}/{name}".encode())]
        )
        chosen = random.choice(len(self.occluders), CUTOUTS_PER_IMAGE) if self.occluders else []
        cutouts = [read_cutout(self.occluders[i]) for i in chosen]
        try:
            return occlude(image, mask > 0, self.level, random, cutouts)
        except ValueError:
            return None


def silhouette(
    pose: Pose,
    focal_px: float,
    mesh: Mesh,
    size_hw: tuple[int, int],
    scale: float = 1.0,
    offset_xy: ArrayLike = 0.0,
) -> NDArray[np.uint8]:
    """Object mask [H, W] (255 or 0): the CAD model at a pose, in a picture enlarged by `scale` and then moved."""
    pixels = project(mesh.vertices, pose, focal_px)
    depth = -points_in_pascal_cam(mesh.vertices, pose)[:, 2]
    face_of, _, _ = rasterise(pixels * scale + offset_xy, depth, mesh.faces, *size_hw)
    return np.where(face_of >= 0, 255, 0).astype(np.uint8)


def read_cutout(path: Path) -> NDArray[np.uint8]:
    """An occluder [h, w, 4]: RGBA as it is, anything else opaque; ValueError, naming it, when it is broken."""
    try:
        return read_picture(path, "RGBA")
    except ValueError as error:
        raise ValueError(
            f"an occluder cannot be used: {error}; take it out of its folder"
        ) from error


def check_cutout(path: str) -> None:
    """ValueError when a file is no occluder."""
    read_cutout(Path(path))


def occlude_image(job: Job, name: str) -> str:
    """Write one occluded image; returns `new`, `kept` or why it could not be made."""
    if is_written(job.occluded, job.category, job.level, name):
        return "kept"
    source = job.raw.image(job.category, name)
    try:
        record = read_record(job.raw.annotation(job.category, name), job.category, job.rules)
        image = read_picture(source, "RGB")
    except UnusableRecord as error:
        return error.reason
    except (FileNotFoundError, ValueError):
        return "no readable image or annotation"
    if not 1 <= record.cad_index <= len(job.meshes):
        return "no such CAD model"
    mesh = job.meshes[record.cad_index - 1]
    mask = silhouette(record.pose, record.focal_px, mesh, record.image_hw)
    result = job.occluded_image(name, image, mask)
    if result is None:
        return "level not reached"
    source_name = source.relative_to(job.raw.root.parent).as_posix()
    write_occluded(
        job.occluded, job.category, job.level, name, result, mask, record.bbox_xyxy, source_name
    )
    return "new"


def occlude_prepared(job: Job, name: str) -> str:
    """Occlude the crop of one prepared image; returns `new`, `kept` or why it could not be made."""
    clean, target = job.prepared
    subset = job.category + job.level
    if target.image(subset, name).is_file() and target.annotation(subset, name).is_file():
        return "kept"
    annotation = load_annotation(clean.annotation(job.category, name))
    if not 1 <= annotation.cad_index <= len(job.meshes):
        return "no such CAD model"
    try:
        image = read_picture(clean.image(job.category, name), "RGB")
    except (FileNotFoundError, ValueError):
        return "no readable image or annotation"
    mesh, placed = (
        job.meshes[annotation.cad_index - 1],
        (annotation.crop_scale, annotation.crop_offset[::-1]),
    )
    mask = silhouette(annotation.pose, annotation.focal_px, mesh, annotation.crop_hw, *placed)
    result = job.occluded_image(name, image, mask)
    if result is None:
        return "level not reached"
    covered = mask_in_original(result.occluder_mask, annotation)
    write_image(target.image(subset, name), result.image)
    rows, cols = (
        np.floor(annotation.cropped_kp_list).astype(int).clip(0, np.array(annotation.crop_hw) - 1).T
    )
    hidden = (annotation.visible == 1) & result.occluder_mask[rows, cols]
    save_annotation(
        target.annotation(subset, name),
        replace(
            annotation,
            occ_mask=covered,
            visible=np.where(hidden, 0, annotation.visible),
            cropped_kp_list=np.where(hidden[:, None], 0.0, annotation.cropped_kp_list),
        ),
    )
    return "new"


def mask_in_original(mask: NDArray[np.bool_], annotation: Annotation) -> NDArray[np.bool_]:
    """A mask of the crop [H, W] in the original image [height, width]; nothing is covered outside the crop."""
    inside, at = [], []
    for axis, length in enumerate((annotation.height, annotation.width)):
        cells = np.floor(
            (np.arange(length) + 0.5) * annotation.crop_scale + annotation.crop_offset[axis]
        ).astype(int)
        inside.append((cells >= 0) & (cells < mask.shape[axis]))
        at.append(cells.clip(0, mask.shape[axis] - 1))
    return mask[np.ix_(*at)] & np.logical_and.outer(*inside)


def check_source(job: Job) -> None:
    """Write how the pictures of a level are made; ValueError when those that are there were made otherwise."""
    digest = (
        hashlib.sha256(b"".join(path.read_bytes() for path in job.occluders)).hexdigest()
        if job.occluders
        else "procedural"
    )
    made = {"level": job.level, "seed": job.seed, "occluders": digest}
    subset = job.category + job.level
    if job.prepared is None:
        path, pictures = (
            job.occluded.source(job.category, job.level),
            job.occluded.names(job.category, job.level),
        )
    else:
        clean, target = job.prepared
        path, pictures = (
            target.source(subset),
            sorted((target.root / "images" / subset).glob("*.JPEG")),
        )
        made = clean.made_from(job.category) | {"occluded": made}
    text = console.as_json(made)
    if path.is_file() and not holds(path, text):
        raise ValueError(
            f"{path} says that {subset} was made with another seed or other occluders; delete it, or choose another --out"
        )
    if path.is_file() or not pictures:  # pictures of unknown origin stay so
        write_text(path, text)


def write_prepared_lists(job: Job) -> None:
    """The lists of the clean set without the images that have no occluded twin."""
    clean, target = job.prepared
    subset = job.category + job.level
    made = {path.stem for path in (target.root / "annotations" / subset).glob("*.npz")}
    for file_name, names in clean.listed(job.category).items():
        write_text(
            target.lists(subset) / file_name,
            "".join(f"{name}.JPEG\n" for name in names if name in made),
        )


def main() -> None:
    """Occlude the test images of all categories to all levels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--raw", type=Path, required=True, help="PASCAL3D+_release1.1, or a set in its layout"
    )
    parser.add_argument(
        "--prepared",
        type=Path,
        help="occlude the crops of this prepared set; --raw then gives the CAD models",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the occluded set (PATH_OCCLUDED_PASCAL3DP; --prepared: PATH_CACHE_TESTING_SET_OCC)",
    )
    parser.add_argument(
        "--levels", type=arguments.words, default=OCC_LEVELS, help="any of FGL1_BGL1 .. FGL3_BGL3"
    )
    parser.add_argument(
        "--occluders",
        type=Path,
        help="folder of cut-out pictures (PNG with alpha); without it they are procedural",
    )
    parser.add_argument(
        "--record-rules",
        choices=("auto", "strict", "reference"),
        default="auto",
        help="as in prepare_images.py",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures")
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")
    arguments.add_categories(parser)
    args = parser.parse_args()
    raw, occluded = (
        RawPascal3D(console.require_folder(args.raw, "PASCAL3D+", "set --raw")),
        RawOccluded(args.out),
    )
    for level in args.levels:
        level_bounds(level)
    folder = (
        console.require_folder(args.occluders, "occluders", "set --occluders")
        if args.occluders
        else None
    )
    occluders = (
        tuple(
            sorted(
                p
                for p in folder.iterdir()
                if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
            )
        )
        if folder
        else ()
    )
    sets = None
    if args.prepared is not None:
        sets = (
            PreparedSet(
                console.require_folder(args.prepared, "prepared set", "run PrepareData.sh first")
            ),
            PreparedSet(args.out),
        )
    counts: Counter = Counter()
    with (
        lock(args.out, "make-occluded", "occluded images"),
        WorkerPool(worker_count(args.workers)) as pool,
    ):
        if occluders:  # before any picture is made with the others
            in_pool(pool, check_cutout, [str(path) for path in occluders], "occluders")
        for category in args.categories:
            meshes = tuple(read_off(path) for path in raw.cads(category))
            if args.prepared is None:
                split = read_split(raw, category, "val")
                work, names, rules = (
                    occlude_image,
                    split.names,
                    record_rules(args.record_rules, split),
                )
            else:
                work, names, rules = (
                    occlude_prepared,
                    sorted(PreparedSet(args.prepared).image_names("single", category)),
                    "",
                )
            for level in args.levels:
                job = Job(raw, occluded, category, level, args.seed, meshes, occluders, rules, sets)
                check_source(job)
                counts.update(in_pool(pool, partial(work, job), names, f"{category}{level}"))
                if sets is not None:
                    write_prepared_lists(job)
            if sets is None:
                write_occluded_lists(occluded, category, args.levels)
    done = counts.pop("new", 0) + counts.pop("kept", 0)
    skipped = "".join(f"; {n} not made: {reason}" for reason, n in sorted(counts.items()))
    print(
        f"{console.count(done, 'occluded image')} of {console.count(len(args.categories), 'category')} in {args.out}{skipped}"
    )


if __name__ == "__main__":
    console.run_main(main)
