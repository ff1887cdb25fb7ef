"""Changes of training images at random: mirroring, colours, pasted patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as image_functional

from neural_mesh.settings import FEATURE_STRIDE
from neural_mesh.storage.records import Annotation

AUGMENTATIONS = ("flip", "shift", "color", "occlude")
COLOUR_FACTORS = (0.6, 1.4)
MOST_PATCHES = 3  # of `occlude`
PATCH_SIDE = (0.15, 0.5)  # share of the visible vertices' extent, per axis
# Of `shift`: a shift at most, as a share of the image's width and height; factors of the scale; a
# turn at most, in radians.
MOST_SHIFT = (0.04, 0.06)
SCALE_FACTORS = (0.85, 1.15)
MOST_TURN = 0.07


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


def shift(
    image: Tensor, positions_rc: Tensor, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Shift, scale and turn an image [3, H, W] a little, and the points [N, 2] (row, col) on it.

    What comes in from outside repeats the border. Returns the image, the points, and which of them
    are still on it.
    """
    height, width = image.shape[1:]
    shift_x, shift_y = random.uniform(-1, 1, 2) * MOST_SHIFT * (width, height)
    scale = np.exp(random.uniform(*np.log(SCALE_FACTORS)))
    turn = random.uniform(-MOST_TURN, MOST_TURN)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    # New = middle + shift + scaled rotation of (old - middle), in (x, y).
    forward = np.array([[cos, -sin], [sin, cos]], np.float32)
    middle = np.array([width / 2, height / 2], np.float32)
    shift_xy = np.array([shift_x, shift_y], np.float32)
    xy = (positions_rc.numpy()[:, ::-1] - middle) @ forward.T + middle + shift_xy
    moved = torch.from_numpy(np.ascontiguousarray(xy[:, ::-1]))
    on_image = (moved >= 0).all(1) & (moved[:, 0] < height) & (moved[:, 1] < width)
    # The image is looked up at the old place of each new pixel, in torch's units of -1 to 1.
    back = np.linalg.inv(forward)
    offset = -back @ shift_xy / middle
    grid_matrix = back * middle[None] / middle[:, None]
    theta = np.concatenate([grid_matrix, offset[:, None]], 1).astype(np.float32)
    grid = functional.affine_grid(torch.from_numpy(theta)[None], [1, 3, height, width], False)
    sampled = functional.grid_sample(
        image[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0].round_().to(torch.uint8), moved, on_image


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
