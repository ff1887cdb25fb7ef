"""CPU kernels. The only module that imports numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

NEAR = 1e-3  # a triangle with a corner nearer to the camera than this (in CAD units) is not drawn


@njit(cache=True, fastmath=False)
def _rasterize(uv, depth, faces, face_of, z_of, bary_of):
    height, width = face_of.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = depth[a], depth[b], depth[c]
        if min(za, zb, zc) < NEAR:
            continue
        ax, ay, bx, by, cx, cy = uv[a, 0], uv[a, 1], uv[b, 0], uv[b, 1], uv[c, 0], uv[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-12:
            continue
        left, right = min(ax, bx, cx), max(ax, bx, cx)
        top, bottom = min(ay, by, cy), max(ay, by, cy)
        if right < 0 or bottom < 0 or left > width or top > height:
            continue
        for row in range(int(max(0.0, np.ceil(top - 0.5))), int(min(height - 1.0, np.floor(bottom - 0.5))) + 1):
            y = row + 0.5
            for col in range(int(max(0.0, np.ceil(left - 0.5))), int(min(width - 1.0, np.floor(right - 0.5))) + 1):
                x = col + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1.0 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                inverse = wa / za + wb / zb + wc / zc
                z = 1.0 / inverse
                if z < z_of[row, col]:
                    z_of[row, col] = z
                    face_of[row, col] = f
                    bary_of[row, col, 0] = wa / za * z
                    bary_of[row, col, 1] = wb / zb * z
                    bary_of[row, col, 2] = wc / zc * z


def rasterize(
    uv: NDArray, depth: NDArray, faces: NDArray, height: int, width: int
) -> tuple[NDArray[np.int32], NDArray, NDArray]:
    """Which triangle each pixel sees, hard visibility, no culling.

    uv [V, 2]: projected vertices as (x right, y down), pixel (row, col) is sampled at (col + 0.5, row + 0.5).
    depth [V]: distance along the viewing axis, positive in front. faces [F, 3].
    Returns the face per pixel int32 [H, W] (-1: none), its depth [H, W] (inf: none) and the perspective-correct
    barycentric coordinates of the point seen [H, W, 3], all zero where there is none.
    """
    face_of = np.full((height, width), -1, np.int32)
    z_of = np.full((height, width), np.inf)
    bary_of = np.zeros((height, width, 3))
    _rasterize(
        np.ascontiguousarray(uv, np.float64),
        np.ascontiguousarray(depth, np.float64),
        np.ascontiguousarray(faces, np.int32),
        face_of,
        z_of,
        bary_of,
    )
    return face_of, z_of, bary_of
