"""Changes of training images at random: mirroring, colours, pasted patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as image_functional

from neural_mesh.settings import FEATURE_STRIDE
from neural_mesh.storage.records import Annotation

AUGMENTATIONS = ("flip", "color", "occlude")
COLOUR_FACTORS = (0.6, 1.4)
MOST_PATCHES = 3  # of `occlude`
PATCH_SIDE = (0.15, 0.5)  # share of the visible vertices' extent, per axis


def mirror(annotation: Annotation) -> Annotation:
    """The annotation of the mirrored image of an object that is symmetric about x = 0."""
    width = annotation.width
    pose = annotation.pose
    principal_x, principal_y = pose.principal_xy
    x0, y0, x1, y1 = annotation.bbox
    low, high = annotation.box_ori[2:4]
    box_ori = annotation.box_ori.copy()
    box_ori[2:4] = width - high, width - low
    return replace(
        annotation,
        pose=replace(
            pose,
            azimuth=-pose.azimuth,
            theta=-pose.theta,
            principal_xy=np.array([width - principal_x, principal_y]),
        ),
        bbox=np.array([width - x1, y0, width - x0, y1]),
        box_ori=box_ori,
        # The mirrored crop is the crop of the mirrored image up to the reference's truncations.
        geometry="exact",
    )


def change_colour(image: Tensor, random: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation by factors 0.6 .. 1.4 of a uint8 image [3, H, W]."""
    image = image_functional.adjust_brightness(image, random.uniform(*COLOUR_FACTORS))
    image = image_functional.adjust_contrast(image, random.uniform(*COLOUR_FACTORS))
    return image_functional.adjust_saturation(image, random.uniform(*COLOUR_FACTORS))


def paste_patches(
    image: Tensor, donor: Tensor, around_rc: NDArray, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cover parts of an image [3, H, W] with elliptic patches of another one.

    around_rc [N, 2]: points (row, col) to cover, one of which is the centre of each patch. Returns
    the image and which pixels are covered [H, W].
    """
    height, width = image.shape[1:]
    rows = torch.arange(height)[:, None]
    cols = torch.arange(width)[None]
    extent = np.maximum(around_rc.max(0) - around_rc.min(0), FEATURE_STRIDE)
    covered = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(int(random.integers(MOST_PATCHES + 1))):
        centre_row, centre_col = around_rc[random.integers(len(around_rc))]
        radii = extent * random.uniform(*PATCH_SIDE, 2) / 2
        row_radius, col_radius = np.maximum(radii, FEATURE_STRIDE / 2)
        down = (rows - centre_row) / row_radius
        across = (cols - centre_col) / col_radius
        covered |= down**2 + across**2 <= 1
    shift = (int(random.integers(height)), int(random.integers(width)))
    moved = donor.roll(shift, (1, 2))
    return torch.where(covered, moved, image), covered
