"""A small PASCAL3D+ and OccludedPASCAL3D of procedural cars and chairs, in the authentic raw layout."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.io import savemat

from neural_mesh.categories import category_settings
from neural_mesh.data.occluded_pascal3d import (
    is_written,
    write_image,
    write_occluded,
    write_occluded_lists,
)
from neural_mesh.data.occlusion import occlude
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine import arguments, console
from neural_mesh.machine.workers import worker_count
from neural_mesh.sample import models as sample_models
from neural_mesh.sample.drawing import (
    FOCAL,
    FOREGROUND,
    VIEWPORT,
    VISIBLE,
    Sample,
    draw_cutout,
    draw_sample,
)
from neural_mesh.settings import OCC_LEVELS
from neural_mesh.storage.files import atomic_path, read_json, write_text
from neural_mesh.storage.layout import RawOccluded, RawPascal3D
from neural_mesh.storage.mesh_files import write_off

GENERATOR = 1  # raise it when the same seed gives other pictures than before
MANIFEST = "sample.json"  # the options that a set was made with
RAW_FOLDER, OCCLUDED_FOLDER = "PASCAL3D+_release1.1", "OccludedPASCAL3D"
FIRST_VAL_INDEX = (
    500_000  # so that the test pictures do not depend on the number of training pictures
)
MAT_HEADER = b"MATLAB 5.0 MAT-file, SamplePASCAL3D+ (procedural)".ljust(
    116
)  # SciPy's has the date in it


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a set."""

    categories: tuple[str, ...]
    train_images: int  # per category
    val_images: int  # per category
    seed: int
    image_width: int  # longer side in pixels, or nearly
    generator: int = GENERATOR


@dataclass(frozen=True)
class Job:
    """One picture."""

    out: Path
    category: str
    split: str
    index: int
    seed: int
    image_width: int

    @property
    def raw(self) -> RawPascal3D:
        return RawPascal3D(self.out / RAW_FOLDER)

    @property
    def occluded(self) -> RawOccluded:
        return RawOccluded(self.out / OCCLUDED_FOLDER)

    @property
    def name(self) -> str:
        """A name like ImageNet's whose first number no ImageNet class has."""
        number = 1 + list(sample_models.MODELS).index(self.category)
        return f"n{number:08d}_{self.index:06d}"

    @property
    def cad_index(self) -> int:
        """1-based; the models take turns."""
        return 1 + self.index % len(sample_models.MODELS[self.category])

    @property
    def levels(self) -> tuple[str, ...]:
        return OCC_LEVELS if self.split == "val" else ()

    def generator(self, *purpose: int) -> np.random.Generator:
        """Randomness of this picture alone, whichever process draws it."""
        return np.random.default_rng(
            [self.seed, zlib.crc32(self.category.encode()), self.index, *purpose]
        )


# ---- writing --------------------------------------------------------------------------------------------------------


def record_of(sample: Sample, category: str, name: str) -> dict:
    """The `record` struct of a PASCAL3D+ annotation, nested as MATLAB's, with angles in degrees."""
    height, width, channels = sample.image.shape
    view, (x0, y0, x1, y1) = sample.viewpoint, sample.bbox_xyxy
    unknown, nothing = {"database": "", "annotation": "", "image": ""}, np.zeros((0, 0))
    anchors = {}
    for keypoint in category_settings(category).keypoints:
        status, location = sample.keypoints[keypoint]
        anchors[keypoint] = {
            "location": np.array([location]) if status == VISIBLE else nothing,
            "status": status,
        }
    viewpoint = {
        "azimuth_coarse": float(round(view.azimuth_deg / 45) * 45 % 360),
        "elevation_coarse": float(round(view.elevation_deg / 30) * 30),
        "azimuth": view.azimuth_deg,
        "elevation": view.elevation_deg,
        "distance": view.distance,
        "focal": FOCAL,
        "px": view.px,
        "py": view.py,
        "theta": view.theta_deg,
        "error": 0.0,
        "interval_azimuth": 0.0,
        "interval_elevation": 0.0,
        "num_anchor": float(sum(s == VISIBLE for s, _ in sample.keypoints.values())),
        "viewport": VIEWPORT,
    }
    thing = {
        "class": category,
        "view": "",
        "truncated": int(sample.truncated),
        "occluded": 0,
        "difficult": 0,
        "label": category,
        "orglabel": category,
        "bbox": np.array([x0, y0, x1, y1]),
        "bndbox": {"xmin": x0, "ymin": y0, "xmax": x1, "ymax": y1},
        "polygon": nothing,
        "mask": nothing,
        "hasparts": 0,
        "part": nothing,
        "point": nothing,
        "hasactions": 0,
        "actions": nothing,
        "anchors": anchors,
        "viewpoint": viewpoint,
        "cad_index": sample.cad_index,
        "subtype": sample.subtype,
        "sublabel": sample.cad_index,
        "subindex": sample.cad_index,
    }
    return {
        "folder": "SamplePASCAL3D+",
        "filename": f"{name}.JPEG",
        "source": unknown,
        "database": "SamplePASCAL3D+ (procedural)",
        "imgsize": np.array([width, height, channels], dtype=np.float64),
        "size": {"width": width, "height": height, "depth": channels},
        "segmented": 0,
        "imgname": f"{name}.JPEG",
        "objects": thing,
    }


def write_record(path: Path, record: dict) -> None:
    """Write an annotation; the same record gives the same bytes."""
    buffer = io.BytesIO()
    savemat(buffer, {"record": record}, oned_as="row")
    with atomic_path(path) as temporary:
        temporary.write_bytes(MAT_HEADER + buffer.getvalue()[len(MAT_HEADER) :])


def is_finished(job: Job) -> bool:
    """Whether every file of a picture is there."""
    paths = [job.raw.image(job.category, job.name), job.raw.annotation(job.category, job.name)]
    return all(path.is_file() for path in paths) and all(
        is_written(job.occluded, job.category, level, job.name) for level in job.levels
    )


def make_picture(job: Job) -> tuple[str, list[str]]:
    """Draw one picture and its occluded twins, and write them. Returns (`new` or `kept`, what could not be made)."""
    if is_finished(job):
        return "kept", []
    sample = draw_sample(job.category, job.cad_index, job.image_width, job.generator())
    missing = []
    if job.levels:
        cutouts = _cutouts(job)
    for number, level in enumerate(job.levels):
        try:
            result = occlude(
                sample.image, sample.mask > FOREGROUND, level, job.generator(2, number), cutouts
            )
        except ValueError as error:
            missing.append(f"{job.name}: {error}")
            continue
        source = job.raw.image(job.category, job.name).relative_to(job.out).as_posix()
        write_occluded(
            job.occluded,
            job.category,
            level,
            job.name,
            result,
            sample.mask,
            sample.bbox_xyxy,
            source,
        )
    write_image(job.raw.image(job.category, job.name), sample.image)
    write_record(
        job.raw.annotation(job.category, job.name), record_of(sample, job.category, job.name)
    )
    return "new", missing


def _cutouts(job: Job) -> list[np.ndarray]:
    """Two objects of other categories to occlude with (of the same one, when there is no other)."""
    generator = job.generator(1)
    others = [c for c in sorted(sample_models.MODELS) if c != job.category] or [job.category]
    chosen = [others[int(generator.integers(len(others)))] for _ in range(2)]
    return [
        draw_cutout(c, 1 + int(generator.integers(len(sample_models.MODELS[c]))), generator)
        for c in chosen
    ]


def write_category(out: Path, category: str, jobs: list[Job]) -> int:
    """Write the CAD models and the lists of a category. Returns the number of models."""
    raw, models = RawPascal3D(out / RAW_FOLDER), sample_models.models(category)
    for number, model in enumerate(models, start=1):
        path = raw.cad_folder(category) / f"{number:02d}.off"
        if not path.is_file():
            write_off(path, Mesh(model.vertices, model.faces))
    write_text(raw.image_set(category, "subtype"), "".join(f"{m.subtype}\n" for m in models))
    for split in ("train", "val"):
        names = [(j.cad_index, j.name) for j in jobs if j.category == category and j.split == split]
        write_text(raw.image_set(category, split), "".join(f"{name}\n" for _, name in names))
        lists = [
            [name for cad, name in names if cad == number] for number in range(1, len(models) + 1)
        ]
        _write_pickle(raw.subset_pickle(category, split), lists)
    return len(models)


def _write_pickle(path: Path, lists: list[list[str]]) -> None:
    data = pickle.dumps(lists, protocol=2)
    if not (path.is_file() and path.read_bytes() == data):
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)


# ---- the stage ------------------------------------------------------------------------------------------------------


def claim_folder(out: Path, options: Options, overwrite: bool) -> None:
    """Make sure that `out` is empty of other sets, and note the options in it.

    Raises ValueError when it holds a set made with other options, or files that this program has not made.
    """
    manifest, wanted = out / MANIFEST, json.loads(json.dumps(asdict(options)))
    folders = [out / RAW_FOLDER, out / OCCLUDED_FOLDER]
    if manifest.is_file():
        found = _read_manifest(manifest)
        if overwrite:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        elif found != wanted:
            differ = ", ".join(
                f"{k} {_show(found.get(k))} instead of {_show(v)}"
                for k, v in wanted.items()
                if found.get(k) != v
            )
            raise ValueError(
                f"{out} holds a sample set made with {differ}; choose another --out, or pass --overwrite True"
            )
    elif any(folder.exists() for folder in folders):
        raise ValueError(
            f"{out} holds data that were not made by make_sample_data.py ({MANIFEST} is missing); choose another --out"
        )
    write_text(manifest, console.as_json(wanted))


def _read_manifest(path: Path) -> dict:
    try:
        return read_json(path)
    except ValueError:
        return {}


def _show(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def all_jobs(out: Path, options: Options) -> list[Job]:
    """Every picture of the set, in order."""
    return [
        Job(out, category, split, first + i, options.seed, options.image_width)
        for category in options.categories
        for split, first, number in (
            ("train", 0, options.train_images),
            ("val", FIRST_VAL_INDEX, options.val_images),
        )
        for i in range(number)
    ]


def outcomes(jobs: list[Job], workers: int) -> Iterator[tuple[str, list[str]]]:
    """`make_picture` of every job, in order, in one or several processes."""
    if workers == 1:
        yield from map(make_picture, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(make_picture, jobs, chunksize=4)


def make_sample_data(out: Path, options: Options, workers: int = 1, overwrite: bool = False) -> str:
    """Make the set below `out`, skipping what is finished. Returns a line of counts.

    Raises ValueError when `out` holds another set, or a category is unknown or named twice.
    """
    for category in options.categories:
        sample_models.models(category)
    if not options.categories or len(set(options.categories)) < len(options.categories):
        raise ValueError(f"--categories needs different names of {', '.join(sample_models.MODELS)}")
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed} is negative")
    claim_folder(out, options, overwrite)
    jobs, counts, missing = all_jobs(out, options), Counter(), []
    n_models = sum(write_category(out, category, jobs) for category in options.categories)
    for outcome, not_made in console.progress(outcomes(jobs, workers), "sample images", len(jobs)):
        counts[outcome] += 1
        missing += not_made
    n_occluded = sum(
        write_occluded_lists(RawOccluded(out / OCCLUDED_FOLDER), c, OCC_LEVELS)
        for c in options.categories
    )
    counts_of = ((len(jobs), "image"), (n_occluded, "occluded image"), (n_models, "CAD model"))
    line = ", ".join(console.count(n, noun) for n, noun in counts_of) + f" -> {out}"
    line += f" ({counts['kept']} were there already)" if counts["kept"] else ""
    return "\n".join([*(f"not made: {m}" for m in missing), line])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=f"folder to put {RAW_FOLDER} and {OCCLUDED_FOLDER} in",
    )
    parser.add_argument(
        "--categories",
        type=arguments.words,
        default=tuple(sample_models.MODELS),
        help="names, separated by spaces",
    )
    parser.add_argument(
        "--train-images", type=arguments.positive, default=100, help="training pictures per category"
    )
    parser.add_argument(
        "--val-images", type=arguments.positive, default=20, help="test pictures per category"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    parser.add_argument(
        "--image-width", type=arguments.positive, default=500, help="longer side of a picture in pixels"
    )
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")
    parser.add_argument(
        "--overwrite",
        type=arguments.boolean,
        default=False,
        help="throw away the sample set that --out holds",
    )
    args = parser.parse_args()
    if args.image_width < 64:
        raise ValueError(
            f"--image-width {args.image_width} is too small to show anything; give 64 or more"
        )
    options = Options(
        args.categories, args.train_images, args.val_images, args.seed, args.image_width
    )
    print(make_sample_data(args.out, options, worker_count(args.workers), args.overwrite))


if __name__ == "__main__":
    console.run_main(main)
