"""Edges between neighbouring pixels that differ in label, depth or surface direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WHOLE = slice(None)
_LOW = slice(None, -1)
_HIGH = slice(1, None)
# Pairs of indices (pixels, their neighbours), to the right and below.
NEIGHBOURS = (((_WHOLE, _LOW), (_WHOLE, _HIGH)), ((_LOW, _WHOLE), (_HIGH, _WHOLE)))


def label_edges(label: NDArray) -> NDArray[np.bool_]:
    """Mark the pixels [H, W] whose right or lower neighbour has another label."""
    edge = np.zeros(label.shape, bool)
    for near, far in NEIGHBOURS:
        edge[near] |= label[near] != label[far]
    return edge


def depth_edges(depth: NDArray, jump: float) -> NDArray[np.bool_]:
    """Mark the pixels [H, W] on both sides of a leap in depth by more than `jump`."""
    edge = np.zeros(depth.shape, bool)
    for near, far in NEIGHBOURS:
        leap = abs(depth[near] - depth[far]) > jump
        edge[near] |= leap
        edge[far] |= leap
    return edge


def creases(face: NDArray, normals: NDArray, cosine: float) -> NDArray[np.bool_]:
    """Mark the pixels [H, W] at which the surface folds.

    face [H, W]: the face that each pixel sees; off the mesh any face may stand in. normals [F, 3]:
    unit normals. cosine: of the largest angle between neighbouring normals that is not a fold.
    """
    edge = np.zeros(face.shape, bool)
    for near, far in NEIGHBOURS:
        edge[near] |= (normals[face[near]] * normals[face[far]]).sum(-1) < cosine
    return edge


def thicken(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Widen lines of one pixel in a mask [H, W] to about `pixels`, on both sides by turns."""
    mask = mask.copy()
    for step in range(pixels - 1):
        before = mask.copy()
        for near, far in NEIGHBOURS:
            if step % 2:
                mask[far] |= before[near]
            else:
                mask[near] |= before[far]
    return mask
