"""A small PASCAL3D+ and OccludedPASCAL3D of procedural cars and chairs, in the authentic raw
layout.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from neural_mesh.data.occluded_pascal3d import write_occluded_lists
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine import console
from neural_mesh.sample.models import MODELS, models
from neural_mesh.sample.planned_pictures import (
    OCCLUDED_FOLDER,
    RAW_FOLDER,
    PlannedPicture,
    draw_picture,
)
from neural_mesh.settings import OCC_LEVELS
from neural_mesh.storage.files import read_json, write_bytes, write_text
from neural_mesh.storage.layout import RawOccluded, RawPascal3D
from neural_mesh.storage.mesh_files import write_off

GENERATOR = 1  # raise it when the same seed gives other pictures than before
MANIFEST = "sample.json"  # the options that a set was made with
# Test pictures have indices from here on, so as not to depend on the number of training pictures.
FIRST_VAL_INDEX = 500_000
SMALLEST_WIDTH = 64


@dataclass(frozen=True)
class SampleOptions:
    """The options that decide the bytes of a set.

    train_images, val_images: number of pictures of each category. image_width: about the longer
    side of a picture in pixels.
    """

    categories: tuple[str, ...] = tuple(MODELS)
    train_images: int = 100
    val_images: int = 20
    seed: int = 0
    image_width: int = 500
    generator: int = GENERATOR

    def check(self) -> None:
        """Raise ValueError if no set can be made with these options."""
        if self.image_width < SMALLEST_WIDTH:
            raise ValueError(
                f"--image-width {self.image_width} is too small to show anything; "
                f"give {SMALLEST_WIDTH} or more"
            )
        # `models` refuses a category that it does not know.
        for category in self.categories:
            models(category)
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"--categories needs different names of {', '.join(MODELS)}")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} is negative")


def make_sample_data(
    out: Path, options: SampleOptions, workers: int = 1, overwrite: bool = False
) -> str:
    """Make the set below `out`, skipping finished pictures; prints and returns a line of counts.

    overwrite: discard the set that `out` holds. Raises ValueError when `out` holds another set, or
    a category is unknown or named twice.
    """
    options.check()
    claim_folder(out, options, overwrite)
    # CAD models and lists come first, the pictures after them.
    pictures = all_pictures(out, options)
    cad_models = 0
    for category in options.categories:
        cad_models += write_category(out, category, pictures)
    counts: Counter[str] = Counter()
    failures = []
    drawn = _draw_all(pictures, workers)
    for outcome, not_made in console.progress(drawn, "sample images", len(pictures)):
        counts[outcome] += 1
        failures += not_made
    # Lists of occluded pictures come last, since they name the pictures that exist.
    occluded = 0
    for category in options.categories:
        folder = RawOccluded(out / OCCLUDED_FOLDER)
        occluded += write_occluded_lists(folder, category, OCC_LEVELS)
    for failure in failures:
        print(f"not made: {failure}")
    line = (
        f"{console.count(len(pictures), 'image')}, {console.count(occluded, 'occluded image')}, "
        f"{console.count(cad_models, 'CAD model')} -> {out}"
    )
    if counts["kept"]:
        line += f" ({counts['kept']} were there already)"
    print(line)
    return line


# ---- the files of a set --------------------------------------------------------------------------


def all_pictures(out: Path, options: SampleOptions) -> list[PlannedPicture]:
    """List every picture of the set, in order."""
    splits = (("train", 0, options.train_images), ("val", FIRST_VAL_INDEX, options.val_images))
    pictures = []
    for category in options.categories:
        for split, first, number in splits:
            for index in range(first, first + number):
                picture = PlannedPicture(
                    out, category, split, index, options.seed, options.image_width
                )
                pictures.append(picture)
    return pictures


def _draw_all(pictures: list[PlannedPicture], workers: int) -> Iterator[tuple[str, list[str]]]:
    """Call `draw_picture` for every picture, in order, in one or several processes."""
    if workers == 1:
        yield from map(draw_picture, pictures)
        return
    # Every picture has a random generator of its own, so the number of processes does not show.
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(draw_picture, pictures, chunksize=4)


def write_category(out: Path, category: str, pictures: list[PlannedPicture]) -> int:
    """Write the CAD models and the lists of a category. Returns the number of models."""
    raw = RawPascal3D(out / RAW_FOLDER)
    cad_models = models(category)
    for number, model in enumerate(cad_models, start=1):
        path = raw.cad_folder(category) / f"{number:02d}.off"
        if not path.is_file():
            write_off(path, Mesh(model.vertices, model.faces))
    _write_names(raw.image_set(category, "subtype"), [model.subtype for model in cad_models])
    for split in ("train", "val"):
        of_split = [p for p in pictures if p.category == category and p.split == split]
        _write_names(raw.image_set(category, split), [picture.name for picture in of_split])
        # The reference reads pickled lists of names, one for each CAD model.
        by_model = []
        for cad_index in range(1, len(cad_models) + 1):
            by_model.append([p.name for p in of_split if p.cad_index == cad_index])
        _write_pickle(raw.subset_pickle(category, split), by_model)
    return len(cad_models)


def _write_names(path: Path, names: list[str]) -> None:
    write_text(path, "".join(f"{name}\n" for name in names))


def _write_pickle(path: Path, lists: list[list[str]]) -> None:
    # A fixed protocol gives the same bytes in every version of Python.
    content = pickle.dumps(lists, protocol=2)
    if not (path.is_file() and path.read_bytes() == content):
        write_bytes(path, content)


def claim_folder(out: Path, options: SampleOptions, overwrite: bool) -> None:
    """Make sure that `out` holds no other set, and write the options into it.

    Raises ValueError when it holds a set made with other options, or files that this program has
    not made.
    """
    manifest = out / MANIFEST
    # JSON turns tuples into lists, so that the options compare equal to those of the file.
    asked = json.loads(json.dumps(asdict(options)))
    folders = [out / RAW_FOLDER, out / OCCLUDED_FOLDER]
    if manifest.is_file():
        noted = _read_manifest(manifest)
        if overwrite:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        elif noted != asked:
            raise ValueError(
                f"{out} holds a sample set made with {_differences(noted, asked)}; "
                "choose another --out, or pass --overwrite True"
            )
    elif any(folder.exists() for folder in folders):
        # They may be the real PASCAL3D+, which must be neither mixed nor overwritten.
        raise ValueError(
            f"{out} holds data that were not made by make_sample_data.py ({MANIFEST} is missing); "
            "choose another --out"
        )
    write_text(manifest, console.as_json(asked))


def _read_manifest(path: Path) -> dict:
    try:
        return read_json(path)
    except ValueError:
        # What cannot be read counts as the options of another set.
        return {}


def _differences(noted: dict, asked: dict) -> str:
    """Write `seed 0 instead of 1` for every option that differs."""
    differences = []
    for name, value in asked.items():
        if noted.get(name) != value:
            differences.append(f"{name} {_in_words(noted.get(name))} instead of {_in_words(value)}")
    return ", ".join(differences)


def _in_words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
