"""An occluded twin, in OccludedPASCAL3D's layout, of the test images of any set in PASCAL3D+'s raw layout."""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo import cli
from nemo.cameras import points_in_camera, project
from nemo.files import lock, read_picture
from nemo.kernels_numba import rasterize
from nemo.layout import RawOccluded, RawPascal3D
from nemo.meshes import Mesh, read_off
from nemo.occlusion import is_written, level_bounds, occlude, write_occluded, write_occluded_lists
from nemo.pascal3d import Record, UnusableRecord, read_record, read_split, record_rules
from nemo.settings import OCC_LEVELS

CUTOUTS_PER_IMAGE = 3


@dataclass(frozen=True)
class Job:
    """A category at one level."""

    raw: RawPascal3D
    occluded: RawOccluded
    category: str
    level: str
    seed: int
    meshes: tuple[Mesh, ...]
    occluders: tuple[Path, ...]
    rules: str


def silhouette(record: Record, mesh: Mesh) -> NDArray[np.uint8]:
    """Object mask [H, W] (255 or 0): the CAD model at the annotated pose."""
    pose = record.azimuth, record.elevation, record.theta, record.distance
    pixels = project(mesh.vertices, *pose, record.principal_xy, record.focal * record.viewport)
    depth = -points_in_camera(mesh.vertices, *pose)[:, 2]
    face_of, _, _ = rasterize(pixels, depth, mesh.faces, *record.image_hw)
    return np.where(face_of >= 0, 255, 0).astype(np.uint8)


def read_cutout(path: Path) -> NDArray[np.uint8]:
    """An occluder [h, w, 4]: RGBA as it is, anything else opaque."""
    return read_picture(path, "RGBA")


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
    mask = silhouette(record, job.meshes[record.cad_index - 1])
    random = np.random.default_rng([job.seed, zlib.crc32(f"{job.category}{job.level}/{name}".encode())])
    chosen = random.choice(len(job.occluders), CUTOUTS_PER_IMAGE) if job.occluders else []
    try:
        result = occlude(image, mask > 0, job.level, random, [read_cutout(job.occluders[i]) for i in chosen])
    except ValueError:
        return "level not reached"
    source_name = source.relative_to(job.raw.root.parent).as_posix()
    write_occluded(job.occluded, job.category, job.level, name, result, mask, record.bbox_xyxy, source_name)
    return "new"


def main() -> None:
    """Occlude the test images of all categories to all levels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1, or a set in its layout")
    parser.add_argument("--out", type=Path, required=True, help="folder of the occluded set (PATH_OCCLUDED_PASCAL3DP)")
    parser.add_argument("--levels", type=cli.words, default=OCC_LEVELS, help="any of FGL1_BGL1 .. FGL3_BGL3")
    parser.add_argument("--occluders", type=Path, help="folder of cut-out pictures (PNG with alpha); without it they are procedural")
    parser.add_argument("--record-rules", choices=("auto", "strict", "reference"), default="auto", help="as in prepare_images.py")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures")
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")
    cli.add_categories(parser)
    args = parser.parse_args()
    raw, occluded = RawPascal3D(cli.require_folder(args.raw, "PASCAL3D+", "set --raw")), RawOccluded(args.out)
    for level in args.levels:
        level_bounds(level)
    folder = cli.require_folder(args.occluders, "occluders", "set --occluders") if args.occluders else None
    occluders = tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))) if folder else ()
    counts: Counter = Counter()
    with lock(args.out, "make-occluded", "occluded images"), cli.worker_pool(cli.worker_count(args.workers)) as pool:
        for category in args.categories:
            meshes = tuple(read_off(path) for path in raw.cads(category))
            split = read_split(raw, category, "val")
            names, rules = split.names, record_rules(args.record_rules, split)
            for level in args.levels:
                job = Job(raw, occluded, category, level, args.seed, meshes, occluders, rules)
                counts.update(cli.in_pool(pool, partial(occlude_image, job), names, f"{category}{level}"))
            write_occluded_lists(occluded, category, args.levels)
    done = counts.pop("new", 0) + counts.pop("kept", 0)
    skipped = "".join(f"; {n} not made: {reason}" for reason, n in sorted(counts.items()))
    print(f"{cli.count(done, 'occluded image')} of {cli.count(len(args.categories), 'category')} in {args.out}{skipped}")


if __name__ == "__main__":
    cli.run_main(main)
