"""KITTI's 3D object data -> test sets of cars in the layout of PrepareData.sh, one per degree of occlusion."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.categories import category_settings
from neural_mesh.data.kitti import (
    OCCLUSION_NAMES,
    KittiObject,
    project_point,
    read_labels,
    read_projection,
    viewpoint,
)
from neural_mesh.geometry.boxes import crop_geometry, crop_image
from neural_mesh.geometry.cameras import Pose
from neural_mesh.machine import console
from neural_mesh.machine.resources import crops_size, require_disk
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.settings import NORMALISED_DISTANCE
from neural_mesh.storage.files import holds, lock, remove_parts, write_text
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.pictures import read_picture, write_jpeg
from neural_mesh.storage.records import Annotation, save_annotation

FOLDS = 4  # lists of a quarter of the objects each (reference)
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Job:
    """Which objects are wanted, and how they are cropped."""

    training: Path  # KITTI's folder with label_2, image_2, calib
    out: Path
    kind: str
    category: str
    minimum_side: float
    maximum_truncation: float
    reference_distance: float
    geometry: str

    def folder(self, what: str) -> Path:
        """label_2 or, as the reference has it, label."""
        plain = self.training / what
        return plain if plain.is_dir() else self.training / f"{what}_2"

    def label(self, frame: str) -> Path:
        return self.folder("label") / f"{frame}.txt"

    def prepared(self, occlusion: int) -> PreparedSet:
        return PreparedSet(self.out / OCCLUSION_NAMES[occlusion])

    def refusal(self, found: KittiObject) -> str:
        """Why an object of the wanted class is left out; empty when it is not."""
        x0, y0, x1, y1 = found.bbox_xyxy
        if not 0 <= found.occlusion < len(OCCLUSION_NAMES):
            return "occlusion unknown"
        if found.truncation >= self.maximum_truncation:
            return "truncated"
        return "" if min(x1 - x0, y1 - y0) > self.minimum_side else "too small"


def prepare_frame(job: Job, frame: str) -> list[tuple[int, str, str]]:
    """Crop the wanted objects of a frame. Returns (occlusion, name, empty or why it was left out) of all of the class."""
    results = []
    wanted = [
        (i, found)
        for i, found in enumerate(read_labels(job.label(frame)))
        if found.kind == job.kind
    ]
    image = projection = None
    for i, found in wanted:
        name, refusal = f"{frame}_{i}", job.refusal(found)
        results.append((found.occlusion, name, refusal))
        if refusal:
            continue
        prepared = job.prepared(found.occlusion)
        target, annotation = (
            prepared.image(job.category, name),
            prepared.annotation(job.category, name),
        )
        if target.is_file() and annotation.is_file():
            continue
        if image is None:
            image = read_picture(job.folder("image") / f"{frame}.png", "RGB")
            projection = read_projection(job.training / "calib" / f"{frame}.txt")
        try:
            crop_object(job, name, found, image, projection, target, annotation)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"object {i} of frame {frame} cannot be cropped: {error}") from error
    return results


def crop_object(
    job: Job,
    name: str,
    found: KittiObject,
    image: NDArray,
    projection: NDArray,
    target: Path,
    annotation: Path,
) -> None:
    """Write the crop around the projected centre of an object, and its annotation."""
    principal = project_point(found.centre, projection)
    at = (
        found.distance * NORMALISED_DISTANCE / job.reference_distance
    )  # the distance that PASCAL3D+'s crops have this scale at
    geometry = crop_geometry(
        job.geometry,
        image.shape[:2],
        category_settings(job.category).crop_hw,
        found.bbox_xyxy,
        principal,
        at,
    )
    azimuth, elevation = viewpoint(found)
    write_jpeg(target, crop_image(image, geometry), JPEG_QUALITY)
    save_annotation(
        annotation,
        Annotation(
            name=name,
            box=np.float32(geometry.box),
            box_ori=np.float32(geometry.box_ori),
            box_obj=np.float32(geometry.box_obj),
            cropped_kp_list=np.zeros((0, 2)),
            visible=np.zeros(0, np.int64),
            pose=Pose(azimuth, elevation, 0.0, found.distance, principal),
            focal=-1.0,
            viewport=-1.0,  # not PASCAL3D+'s camera (reference)
            height=image.shape[0],
            width=image.shape[1],
            cad_index=1,
            bbox=found.bbox_xyxy,
            geometry=geometry.geometry,
            crop_scale=geometry.scale,
            crop_offset=geometry.offset_rc,
        ),
    )


def write_lists(job: Job, occlusion: int, names: list[str]) -> None:
    """Lists of one test set: all images, four folds, and those that inference reads."""
    prepared = job.prepared(occlusion)
    stem = f"{job.category}_{OCCLUSION_NAMES[occlusion]}"
    lists = {"mesh01": names, stem: names} | {
        f"{stem}_folder{i}": names[i::FOLDS] for i in range(FOLDS)
    }
    for list_name, group in lists.items():
        write_text(
            prepared.lists(job.category) / f"{list_name}.txt",
            "".join(f"{name}.JPEG\n" for name in group),
        )
    write_text(
        prepared.mesh_list("single", job.category, 1), "".join(f"{name}.JPEG\n" for name in names)
    )


def check_source(job: Job) -> None:
    """Write what the sets are made from; ValueError when crops that are there were made otherwise."""
    keys = ("kind", "minimum_side", "maximum_truncation", "reference_distance", "geometry")
    text = console.as_json({"split": "KITTI3D"} | {key: getattr(job, key) for key in keys})
    paths = [job.prepared(i).source(job.category) for i in range(len(OCCLUSION_NAMES))]
    for i, path in enumerate(paths):
        there = any(job.prepared(i).image(job.category, "x").parent.glob("*.JPEG"))
        if there and not holds(path, text):
            raise ValueError(
                f"{job.prepared(i).root} was prepared with other options; choose another --out, or delete it"
            )
    for path in paths:
        write_text(path, text)


def prepare(job: Job, frames: list[str], workers: int) -> list[tuple[int, str, str]]:
    """Crop the wanted objects of all frames; returns what prepare_frame does, of all of them."""
    check_source(job)
    for i in range(len(OCCLUSION_NAMES)):
        prepared = job.prepared(i)
        for path in (prepared.image, prepared.annotation):
            remove_parts(path(job.category, "x").parent)
        remove_parts(prepared.lists(job.category))
        remove_parts(prepared.vertex_lists("single", job.category))
    crops = sum(
        found.kind == job.kind and not job.refusal(found)
        for frame in frames
        for found in read_labels(job.label(frame))
    )
    made = sum(
        len(list(job.prepared(i).annotation(job.category, "x").parent.glob("*.npz")))
        for i in range(len(OCCLUSION_NAMES))
    )
    room = crops_size(max(0, crops - made), category_settings(job.category).crop_hw, JPEG_QUALITY)
    require_disk(job.out, room, "the crops of KITTI", "make space, or choose another --out")
    with WorkerPool(workers) as pool:
        return [
            row
            for rows in in_pool(pool, partial(prepare_frame, job), frames, "KITTI3D")
            for row in rows
        ]


def main() -> None:
    """Prepare the three test sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--kitti",
        type=Path,
        required=True,
        help="KITTI's folder training, with label_2, image_2 and calib",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the prepared sets, one folder per degree of occlusion",
    )
    parser.add_argument("--kind", default="Car", help="class of KITTI")
    parser.add_argument(
        "--category",
        default="car",
        help="category of the networks that it is tested with; it has the crop's size",
    )
    parser.add_argument(
        "--minimum-side",
        type=float,
        default=100.0,
        help="of the box, in pixels; both sides must be longer",
    )
    parser.add_argument(
        "--maximum-truncation",
        type=float,
        default=0.2,
        help="share outside the image; it must be smaller",
    )
    parser.add_argument(
        "--reference-distance",
        type=float,
        default=6.4,
        help="metres at which a crop keeps the image's scale",
    )
    parser.add_argument(
        "--geometry", choices=("paper", "exact"), default="paper", help="as in PrepareData.sh"
    )
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")
    args = parser.parse_args()
    if args.reference_distance <= 0:
        raise ValueError(f"--reference-distance is {args.reference_distance}, it must be above 0")
    training = console.require_folder(
        args.kitti, "KITTI", "set --kitti to the folder training of its 3D object data"
    )
    job = Job(
        training,
        args.out,
        args.kind,
        args.category,
        args.minimum_side,
        args.maximum_truncation,
        args.reference_distance,
        args.geometry,
    )
    for what in ("label", "image"):
        console.require_folder(job.folder(what), f"KITTI's {what}s", "unpack them there")
    frames = sorted(path.stem for path in job.folder("label").glob("*.txt"))
    with lock(args.out, f"prepare-kitti-{args.category}", "KITTI's test sets"):
        results = prepare(job, frames, worker_count(args.workers))
        kept = {
            i: [name for occlusion, name, refusal in results if occlusion == i and not refusal]
            for i in range(len(OCCLUSION_NAMES))
        }
        if not any(kept.values()):
            raise ValueError(f"no {args.kind} of {job.folder('label')} could be used")
        for occlusion, names in kept.items():
            write_lists(job, occlusion, names)
    counts = ", ".join(f"{len(names):,} {OCCLUSION_NAMES[i]}" for i, names in kept.items())
    skipped = "".join(
        f"; {n} skipped: {reason}"
        for reason, n in sorted(Counter(r for _, _, r in results if r).items())
    )
    print(f"KITTI3D: {counts} of {console.count(len(frames), 'frame')} in {args.out}{skipped}")


if __name__ == "__main__":
    console.run_main(main)
