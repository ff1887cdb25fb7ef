"""One picture of a sample set: its name, its random numbers, and its files."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.data.occluded_pascal3d import is_written, write_image, write_occluded
from neural_mesh.data.occlusion import occlude
from neural_mesh.sample.annotations import write_record
from neural_mesh.sample.drawing import FOREGROUND, Sample, draw_cutout, draw_sample
from neural_mesh.sample.models import MODELS
from neural_mesh.settings import OCC_LEVELS
from neural_mesh.storage.layout import RawOccluded, RawPascal3D

RAW_FOLDER = "PASCAL3D+_release1.1"
OCCLUDED_FOLDER = "OccludedPASCAL3D"
CUTOUTS = 2  # objects that occlude a picture


@dataclass(frozen=True)
class PlannedPicture:
    """One picture that is to be drawn. split: train or val; those of val are also occluded."""

    out: Path
    category: str
    split: str
    index: int
    seed: int
    image_width: int

    @property
    def raw(self) -> RawPascal3D:
        """The raw set that gets the picture."""
        return RawPascal3D(self.out / RAW_FOLDER)

    @property
    def occluded(self) -> RawOccluded:
        """The raw set that gets the occluded twins."""
        return RawOccluded(self.out / OCCLUDED_FOLDER)

    @property
    def name(self) -> str:
        """A name like ImageNet's whose first number no ImageNet class has."""
        number = 1 + list(MODELS).index(self.category)
        return f"n{number:08d}_{self.index:06d}"

    @property
    def cad_index(self) -> int:
        """The index of the CAD model, from 1; the models take turns."""
        return 1 + self.index % len(MODELS[self.category])

    @property
    def levels(self) -> tuple[str, ...]:
        """The occlusion levels of the twins."""
        return OCC_LEVELS if self.split == "val" else ()

    @property
    def is_finished(self) -> bool:
        """Whether every file exists."""
        image = self.raw.image(self.category, self.name)
        annotation = self.raw.annotation(self.category, self.name)
        if not (image.is_file() and annotation.is_file()):
            return False
        return all(
            is_written(self.occluded, self.category, level, self.name) for level in self.levels
        )

    def generator(self, *purpose: int) -> np.random.Generator:
        """Make the random generator of this picture, the same in any process that draws it."""
        category = zlib.crc32(self.category.encode())
        return np.random.default_rng([self.seed, category, self.index, *purpose])

    def cutouts(self) -> list[NDArray[np.uint8]]:
        """Draw the objects that occlude this picture, of other categories if there are any."""
        generator = self.generator(1)
        # With an occluder of the same category it would be unclear which object is meant.
        others = [category for category in sorted(MODELS) if category != self.category]
        others = others or [self.category]
        chosen = [others[int(generator.integers(len(others)))] for _ in range(CUTOUTS)]
        cutouts = []
        for category in chosen:
            cad_index = 1 + int(generator.integers(len(MODELS[category])))
            cutouts.append(draw_cutout(category, cad_index, generator))
        return cutouts


def draw_picture(picture: PlannedPicture) -> tuple[str, list[str]]:
    """Draw and write one picture and its occluded twins.

    Returns `new` or `kept`, and a sentence for each file that could not be made.
    """
    if picture.is_finished:
        return "kept", []
    category = picture.category
    name = picture.name
    sample = draw_sample(category, picture.cad_index, picture.image_width, picture.generator())
    # The annotation comes last, since its presence marks the picture as finished.
    failures = _draw_occluded(picture, sample)
    write_image(picture.raw.image(category, name), sample.image)
    write_record(picture.raw.annotation(category, name), sample, category, name)
    return "new", failures


def _draw_occluded(picture: PlannedPicture, sample: Sample) -> list[str]:
    """Draw and write the occluded twins of a picture; returns a sentence for each failure."""
    if not picture.levels:
        return []
    failures = []
    cutouts = picture.cutouts()
    clean = picture.raw.image(picture.category, picture.name)
    source = clean.relative_to(picture.out).as_posix()
    foreground = sample.mask > FOREGROUND
    for number, level in enumerate(picture.levels):
        generator = picture.generator(2, number)
        try:
            result = occlude(sample.image, foreground, level, generator, cutouts)
        except ValueError as error:
            failures.append(f"{picture.name}: {error}")
            continue
        write_occluded(
            picture.occluded,
            picture.category,
            level,
            picture.name,
            result,
            sample.mask,
            sample.bbox_xyxy,
            source,
        )
    return failures
