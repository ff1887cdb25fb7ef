"""Triangle meshes, and the cuboid that stands for an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neural_mesh.published import PUBLISHED_CUBOIDS
from neural_mesh.settings import CuboidConfig

SAME_VERTEX = 1e-7  # CAD units between vertices that count as the same
SAME_CUBOID = 1e-6  # share of the longest side by which a cuboid may differ from its grid
COVERED = 0.99  # share of the CAD vertices inside the cuboid, per axis (reference)
# The sides of a cuboid as axes (fixed, along rows, along columns), in the order of its vertices.
SIDES = ((2, 1, 0), (1, 2, 0), (0, 2, 1))


@dataclass(frozen=True)
class Mesh:
    """Vertices [V, 3] in the object frame (CAD units) and triangles [F, 3] of vertex indices."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]


def same_meshes(meshes: Sequence[Mesh], others: Sequence[Mesh]) -> bool:
    """Whether two lists hold the same meshes.

    Their faces are equal, and their vertices within SAME_VERTEX on each axis.
    """
    return len(meshes) == len(others) and all(map(_same_mesh, meshes, others))


def _same_mesh(mesh: Mesh, other: Mesh) -> bool:
    return (
        mesh.vertices.shape == other.vertices.shape
        and np.allclose(mesh.vertices, other.vertices, rtol=0, atol=SAME_VERTEX)
        and np.array_equal(mesh.faces, other.faces)
    )


# ---- cuboids ----


@dataclass(frozen=True)
class CuboidGrid:
    """An axis-aligned box and the sample positions on its three axes.

    low, high: corners [3]. samples: per axis, both ends included.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    samples: tuple[int, int, int]


def covering_interval(coordinates: NDArray, covered: float = COVERED) -> tuple[float, float]:
    """The shortest interval that holds the share `covered` of coordinates [N].

    The first of several that are equally short.
    """
    ordered = np.sort(coordinates)
    k = int(covered * len(ordered))
    widths = ordered[k:] - ordered[: len(ordered) - k]
    first = int(np.argmin(widths))
    return float(ordered[first]), float(ordered[first + k])


def cuboid_grid(
    points: NDArray,
    number_vertices: int = CuboidConfig.number_vertices,
    minimum_thickness: float = CuboidConfig.minimum_thickness,
) -> CuboidGrid:
    """The box around points [N, 3] and its sampling (reference, `CreateCuboidMesh`).

    minimum_thickness: share of the longest side that every side gets at least. 0 is the reference,
    whose flat axes get a single sample, so that two opposite sides coincide and the other four lose
    their triangles.
    """
    # The reference reads its .off files in single precision, which decides ties.
    points = np.asarray(points, dtype=np.float32)
    intervals = [covering_interval(points[:, axis]) for axis in range(3)]
    low, high = np.array(intervals, dtype=np.float64).T
    if minimum_thickness:
        middle = (low + high) / 2
        side = high - low
        side = np.maximum(side, minimum_thickness * side.max())
        low = middle - side / 2
        high = middle + side / 2

    # The edge of square cells, as many as vertices are aimed at.
    w, h, d = high - low
    edge = np.sqrt(2 * (w * h + h * d + w * d) / number_vertices)
    if not edge > 0:
        raise ValueError(
            "the points lie on a line or in one point, no cuboid can be put around them"
        )
    return CuboidGrid(low, high, tuple(int(side / edge + 1) for side in (w, h, d)))


def cuboid_mesh(grid: CuboidGrid) -> Mesh:
    """Six separate grids of vertices, one for each side (reference, not welded).

    In the order z min, z max, y min, y max, x min, x max. Vertex `row * columns + column` of a
    side; rows and columns run along (y, x), (z, x), (z, y). Each cell is cut along the same
    diagonal, (r, c), (r, c+1), (r+1, c) and (r+1, c+1), (r, c+1), (r+1, c), so windings differ.
    """
    ticks = [np.linspace(grid.low[a], grid.high[a], grid.samples[a]) for a in range(3)]
    vertices, faces = [], []
    count = 0
    for fixed, rows, columns in SIDES:
        for end in (grid.low[fixed], ticks[fixed][-1]):
            side = np.empty((len(ticks[rows]), len(ticks[columns]), 3))
            side[..., fixed] = end
            side[..., rows] = ticks[rows][:, None]
            side[..., columns] = ticks[columns][None, :]
            index = count + np.arange(side[..., 0].size).reshape(side.shape[:2])
            vertices.append(side.reshape(-1, 3))
            faces.append(_triangles_of_cells(index))
            count += index.size
    return Mesh(np.concatenate(vertices), np.concatenate(faces).astype(np.int32))


def _triangles_of_cells(index: NDArray) -> NDArray:
    """Two triangles [2 (R - 1) (C - 1), 3] for each cell between vertices `index` [R, C]."""
    first = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, :-1]], axis=-1)
    second = np.stack([index[1:, 1:], index[:-1, 1:], index[1:, :-1]], axis=-1)
    return np.stack([first, second], axis=-2).reshape(-1, 3)


def find_cuboid(mesh: Mesh) -> CuboidGrid | None:
    """The grid that `cuboid_mesh` makes this mesh from, to a millionth of its size, or None."""
    if len(mesh.vertices) < 24 or len(mesh.faces) < 12:
        return None
    low = mesh.vertices.min(0)
    high = mesh.vertices.max(0)
    tolerance = SAME_CUBOID * float((high - low).max())
    samples = tuple(_count_ticks(mesh.vertices[:, a] - low[a], tolerance) for a in range(3))
    a, b, c = samples
    if min(samples) < 2 or 2 * (a * b + b * c + c * a) != len(mesh.vertices):
        return None
    grid = CuboidGrid(low, high, samples)
    ideal = cuboid_mesh(grid)
    if not np.array_equal(ideal.faces, mesh.faces):
        return None
    offset = np.abs(ideal.vertices - mesh.vertices).max()
    return grid if offset <= tolerance else None


def _count_ticks(coordinates: NDArray, tolerance: float) -> int:
    """How many different values [N] there are."""
    return len(np.unique(np.round(coordinates / tolerance / 4)))


def published_cuboid(category: str) -> Mesh | None:
    """The authors' own single cuboid of a category (car: V = 1,024); None where they have none."""
    if category not in PUBLISHED_CUBOIDS:
        return None
    return cuboid_mesh(cuboid_grid(np.array(PUBLISHED_CUBOIDS[category])))
