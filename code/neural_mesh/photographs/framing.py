"""Where a crop lies in a photograph, so that an object gets the size that the network knows.

A box is (x0, y0, x1, y1) in pixels of the upright photograph, x right and y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from neural_mesh.geometry import boxes, cameras
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.settings import FOCAL_PX, NORMALISED_DISTANCE
from neural_mesh.storage.pictures import Photograph

SMALLEST_BOX = 2  # pixels
LARGEST_BOX = 4  # sides of the picture; the pose of an object far larger than it cannot be told
ASPECT_TOLERANCE = 0.25  # log of width / height by which an outline may differ from the box
MOST_TOLERANCES = 8.0  # beyond, all outlines count alike
# From all sides, level or a little from above, as photographs mostly show objects.
USUAL_AZIMUTHS = np.arange(24) * (np.pi / 12)
USUAL_ELEVATIONS = np.radians([0.0, 10.0, 20.0])


def check_numbers(box_xyxy: ArrayLike) -> NDArray[np.float64]:
    """The four numbers of a box, wherever it lies; ValueError when they are others."""
    box = np.asarray(box_xyxy, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        given = np.asarray(box_xyxy).tolist()
        raise ValueError(f"a box is four numbers x0 y0 x1 y1, found {given}")
    return box


def check_box(box_xyxy: ArrayLike, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """A box (x0, y0, x1, y1) that shows a part of a picture; ValueError when it is none."""
    box = check_numbers(box_xyxy)
    text = " ".join(f"{value:g}" for value in box)
    picture = f"the picture of {size_hw[1]} x {size_hw[0]} pixels"
    # From what is no box at all to what shows too little of an object.
    sides = box[2:] - box[:2]
    if (sides <= 0).any():
        raise ValueError(
            f"box {text} is empty: x0 y0 is its upper left, x1 y1 its lower right corner"
        )
    inside = np.minimum(box[2:], size_hw[::-1]) - np.maximum(box[:2], 0)
    if (inside <= 0).any():
        raise ValueError(f"box {text} lies outside {picture}")
    if min(sides) < SMALLEST_BOX:
        raise ValueError(f"box {text} is less than {SMALLEST_BOX} pixels wide or high")
    if max(sides) > LARGEST_BOX * max(size_hw):
        raise ValueError(f"box {text} is more than {LARGEST_BOX} times as large as {picture}")
    return box


@dataclass(frozen=True)
class Framing:
    """A crop: its pixels per pixel of the photograph, and the photograph's (x, y) in its middle."""

    scale: float
    centre_xy: tuple[float, float]

    def zoomed(self, zoom: float) -> Framing:
        """The same middle, with everything `zoom` times as large."""
        return Framing(self.scale * zoom, self.centre_xy)

    def to_photograph(self, crop_xy: ArrayLike, crop_hw: tuple[int, int]) -> NDArray[np.float64]:
        """Crop pixels (x, y) [..., 2] -> photograph pixels (x, y)."""
        middle = np.array(crop_hw[::-1]) / 2
        return (np.asarray(crop_xy, np.float64) - middle) / self.scale + self.centre_xy


def cut_crop(
    photograph: Photograph, framing: Framing, crop_hw: tuple[int, int], image_scale: float
) -> NDArray[np.uint8]:
    """The crop [H, W, 3] of a photograph as a network of this image scale sees it.

    It is black outside the picture.
    """
    height, width = photograph.pixels.shape[:2]
    # The crops of training are scaled by the object's distance, so the distance here is the one
    # that gives the framing's scale, in a picture that may have been reduced.
    placement = boxes.place_crop(
        "exact",
        (height, width),
        crop_hw,
        (0, 0, width, height),
        np.array(framing.centre_xy) / photograph.reduction,
        NORMALISED_DISTANCE * (framing.scale * photograph.reduction),
    )
    crop = Image.fromarray(boxes.crop_image(photograph.pixels, placement))
    if image_scale != 1:
        crop = crop.reduce(round(1 / image_scale))
    return np.asarray(crop)


@dataclass(frozen=True)
class Outlines:
    """How large a mesh looks at distance 5 in N views.

    sizes: width and height [N, 2] of its outline, middles: of the outline against the principal
    point (x right, y down) [N, 2], both in crop pixels.
    """

    sizes: NDArray[np.float64]
    middles: NDArray[np.float64]


def outlines_of(mesh: Mesh, azimuth: ArrayLike, elevation: ArrayLike, theta: ArrayLike) -> Outlines:
    """Outlines of a mesh from N views, radians [N]."""
    angles = np.broadcast_arrays(*map(np.atleast_1d, (azimuth, elevation, theta)))
    views = len(angles[0])
    pose = Pose(*angles, np.full(views, NORMALISED_DISTANCE), np.zeros((views, 2)))
    points = cameras.project(mesh.vertices, pose, FOCAL_PX)
    low = points.min(1)
    high = points.max(1)
    return Outlines(high - low, (low + high) / 2)


def usual_outlines(mesh: Mesh) -> Outlines:
    """Outlines in `USUAL_AZIMUTHS` at `USUAL_ELEVATIONS`."""
    azimuth, elevation = np.meshgrid(USUAL_AZIMUTHS, USUAL_ELEVATIONS, indexing="ij")
    return outlines_of(mesh, azimuth.ravel(), elevation.ravel(), 0.0)


def frame_box(outlines: Outlines, box_xyxy: ArrayLike, fill: float, drop: float = 0.0) -> Framing:
    """The crop in which the object in a box has about the size it was trained on.

    The mean over the outlines, those of the box's proportions first. fill: side of a box by that of
    the mesh's outline; drop: how far its middle lies below the outline's, in heights of the
    outline.
    """
    box = np.asarray(box_xyxy, np.float64)
    side = box[2:] - box[:2]
    # Outlines of other proportions than the box's come from other views.
    mismatch = np.log(outlines.sizes[:, 0] / outlines.sizes[:, 1]) - math.log(side[0] / side[1])
    tolerances = np.minimum(np.abs(mismatch) / ASPECT_TOLERANCE, MOST_TOLERANCES)
    weight = np.exp(-0.5 * tolerances**2)
    weight /= weight.sum()
    # Geometric mean of how much larger outlines are than the box, over width and height.
    log_ratio = np.log(outlines.sizes).sum(1) - np.log(side).sum()
    scale = fill * math.exp(weight @ log_ratio / 2)
    # The box's middle falls on the outline's, lowered by the drop.
    middle = outlines.middles + outlines.sizes * [0.0, drop]
    centre = (box[:2] + box[2:]) / 2 - weight @ middle / scale
    return Framing(scale, (float(centre[0]), float(centre[1])))


def reference_framing(size_hw: tuple[int, int], width: float, shift: float) -> Framing:
    """The crop of the reference's unlabelled photographs.

    The picture is `width` pixels wide, the crop's middle `shift` pixels below its own.
    """
    scale = width / size_hw[1]
    return Framing(scale, (size_hw[1] / 2, size_hw[0] / 2 + shift / scale))
