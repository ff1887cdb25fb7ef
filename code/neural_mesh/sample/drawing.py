"""Pictures of the procedural models, with exact annotations, in the style of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from neural_mesh.sample.backgrounds import background
from neural_mesh.sample.looks import random_looks
from neural_mesh.sample.models import models
from neural_mesh.sample.parts import Model
from neural_mesh.sample.shading import SUPERSAMPLING, draw_object, ground_shadow
from neural_mesh.sample.viewpoints import Viewpoint, habit_of, project, random_viewpoint

# Status of a key point (PASCAL3D+).
VISIBLE = 1
SELF_OCCLUDED = 2
TRUNCATED = 4
# Share of the pictures that cut a part of the object off.
SHARE_TRUNCATED = 0.05
# A key point at most this far behind the visible surface counts as visible, in CAD units.
SURFACE_TOLERANCE = 0.022
# Pixels whose mask is above this show the object (OccludedPASCAL3D).
FOREGROUND = 10
# Side in pixels of the picture that a cut-out is taken from.
CUTOUT_SIDE = 320


class KeyPoint(NamedTuple):
    """A projected key point. status: VISIBLE, SELF_OCCLUDED or TRUNCATED. xy: its pixel."""

    status: int
    xy: tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """A picture [H, W, 3] and its annotation.

    mask [H, W]: share of each pixel that the object fills, times 255. cad_index: counts from 1.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    viewpoint: Viewpoint
    cad_index: int
    subtype: str
    truncated: bool
    keypoints: dict[str, KeyPoint]

    @property
    def bbox_xyxy(self) -> tuple[float, float, float, float]:
        """The tight box of the silhouette in pixels; its right and lower edges are exclusive."""
        rows, columns = _rows_and_columns(self.mask > FOREGROUND)
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def draw_sample(category: str, cad_index: int, image_width: int, generator: Generator) -> Sample:
    """Draw CAD model `cad_index` (from 1) of a category at a random pose in a random place.

    image_width: longer side of the picture in pixels.
    """
    # Pose, light and the object alone. The order of all draws decides the pictures of a seed.
    model = models(category)[cad_index - 1]
    habit = habit_of(category)
    size_hw = _picture_size(float(generator.choice(habit.image_shapes)), image_width)
    truncate = bool(generator.random() < SHARE_TRUNCATED)
    view = random_viewpoint(generator, model.vertices, habit, size_hw, truncate)
    looks = random_looks(generator, view)
    rgb, coverage, depths = draw_object(model, view, looks, size_hw)

    # The ground begins behind the object, higher in the picture when the camera looks down more.
    rows, _ = _rows_and_columns(coverage)
    looking_down = np.clip(view.elevation_deg / 30, 0, 1)
    rise = generator.uniform(0.25, 0.9) + looking_down * generator.uniform(0.2, 0.8)
    horizon = rows[-1] - (rows[-1] - rows[0]) * rise
    indoors = generator.random() < habit.indoors
    place = background(generator, size_hw, horizon, indoors)
    place *= np.clip(1 - ground_shadow(model, view, looks, size_hw), 0.15, 1)[..., None]
    image = 255 * _tone(rgb, coverage) + place * (1 - coverage[..., None])
    return Sample(
        image=_photograph(image, generator),
        mask=np.rint(255 * coverage).astype(np.uint8),
        viewpoint=view,
        cad_index=cad_index,
        subtype=model.subtype,
        truncated=truncate,
        keypoints=find_keypoints(model, view, depths, size_hw),
    )


def draw_cutout(category: str, cad_index: int, generator: Generator) -> NDArray[np.uint8]:
    """Draw a model at a random pose as RGBA uint8 [h, w, 4], cut out tightly, to occlude others."""
    model = models(category)[cad_index - 1]
    size_hw = (CUTOUT_SIDE, CUTOUT_SIDE)
    view = random_viewpoint(generator, model.vertices, habit_of(category), size_hw)
    rgb, coverage, _ = draw_object(model, view, random_looks(generator, view), size_hw)
    colour = _tone(rgb, coverage) / np.maximum(coverage, 1e-6)[..., None]
    rgba = np.concatenate([colour, coverage[..., None]], -1)
    rows, columns = _rows_and_columns(coverage)
    tight = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.rint(255 * tight).astype(np.uint8)


def _picture_size(ratio: float, image_width: int) -> tuple[int, int]:
    """Compute (height, width) of a picture. ratio: height over width. image_width: longer side."""
    if ratio > 1:
        return image_width, round(image_width / ratio)
    return round(image_width * ratio), image_width


def _rows_and_columns(mask: NDArray) -> tuple[NDArray, NDArray]:
    """Find the rows and the columns of a mask [H, W] that are not empty."""
    return np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))


def _tone(rgb: NDArray, coverage: NDArray) -> NDArray[np.float32]:
    """Convert linear light to display values, for colours multiplied by their coverage."""
    result = np.zeros_like(rgb)
    some = coverage > 0
    weight = coverage[some][:, None]
    result[some] = np.clip(rgb[some] / weight, 0, 1) ** np.float32(0.62) * weight
    return result


def _photograph(image: NDArray, generator: Generator) -> NDArray[np.uint8]:
    """Apply exposure, contrast, colour cast and noise of a camera to an image [H, W, 3]."""
    contrast = generator.uniform(0.85, 1.15)
    exposure = generator.uniform(0.85, 1.15)
    cast = generator.normal(1, 0.03, 3).astype(np.float32)
    noise = generator.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    noise = noise * np.float32(generator.uniform(1, 5))
    exposed = (image * exposure - 110) * contrast * cast + 110
    return np.clip(exposed + noise, 0, 255).astype(np.uint8)


def find_keypoints(
    model: Model, view: Viewpoint, depths: NDArray, size_hw: tuple[int, int]
) -> dict[str, KeyPoint]:
    """Find status and pixel of each key point.

    depths: depths of the samples of the picture, see `DrawnObject`.
    """
    height, width = size_hw
    pixels, depth = project(np.stack(list(model.keypoints.values())), view)
    keypoints = {}
    for name, (x, y), z in zip(model.keypoints, pixels, depth, strict=True):
        if not (0 <= x < width and 0 <= y < height):
            status = TRUNCATED
        elif z < _surface_depth(depths, x, y) + SURFACE_TOLERANCE:
            status = VISIBLE
        else:
            status = SELF_OCCLUDED
        keypoints[name] = KeyPoint(status, (float(x), float(y)))
    return keypoints


def _surface_depth(depths: NDArray, x: float, y: float) -> float:
    """Compute the median depth of the object around a pixel, which is infinite off the object."""
    row = int(y * SUPERSAMPLING)
    column = int(x * SUPERSAMPLING)
    around = depths[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
    around = around[np.isfinite(around)]
    return np.median(around) if len(around) else np.inf
