"""Lines between neighbouring pixels that differ: of labels, of depths, of surfaces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WHOLE = slice(None)
_LOW = slice(None, -1)
_HIGH = slice(1, None)
# Index pairs (pixels, their neighbours) to the right and below.
NEIGHBOURS = (((_WHOLE, _LOW), (_WHOLE, _HIGH)), ((_LOW, _WHOLE), (_HIGH, _WHOLE)))


def label_edges(label: NDArray) -> NDArray[np.bool_]:
    """Whether the pixel to the right or below has another label [H, W]."""
    edge = np.zeros(label.shape, bool)
    for near, far in NEIGHBOURS:
        edge[near] |= label[near] != label[far]
    return edge


def depth_edges(depth: NDArray, jump: float) -> NDArray[np.bool_]:
    """Pixels on either side of a leap in depth [H, W] by more than `jump`."""
    edge = np.zeros(depth.shape, bool)
    for near, far in NEIGHBOURS:
        leap = abs(depth[near] - depth[far]) > jump
        edge[near] |= leap
        edge[far] |= leap
    return edge


def creases(face: NDArray, normals: NDArray, cosine: float) -> NDArray[np.bool_]:
    """Pixels [H, W] before a fold: the normals [F, 3] of two neighbours' faces [H, W] have a
    smaller cosine.
    """
    edge = np.zeros(face.shape, bool)
    for near, far in NEIGHBOURS:
        edge[near] |= (normals[face[near]] * normals[face[far]]).sum(-1) < cosine
    return edge


def thicken(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Lines of one pixel [H, W] -> lines of about `pixels` pixels, grown to both sides by turns."""
    mask = mask.copy()
    for step in range(pixels - 1):
        before = mask.copy()
        for near, far in NEIGHBOURS:
            if step % 2:
                mask[far] |= before[near]
            else:
                mask[near] |= before[far]
    return mask
