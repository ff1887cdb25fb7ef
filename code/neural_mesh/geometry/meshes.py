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
COVERED = 0.99  # share of the CAD vertices that a cuboid covers along each axis (reference)
# The sides of a cuboid as axes (fixed, along rows, along columns), in the order of its vertices.
SIDES = ((2, 1, 0), (1, 2, 0), (0, 2, 1))


@dataclass(frozen=True)
class Mesh:
    """Vertices [V, 3] in the object frame (CAD units) and triangles [F, 3] of vertex indices."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]


def same_meshes(meshes: Sequence[Mesh], others: Sequence[Mesh]) -> bool:
    """Whether two lists hold the same meshes.

    Meshes are the same when their faces are equal and their vertices are within SAME_VERTEX of each
    other on each axis.
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
    """An axis-aligned box with equally spaced samples along its three axes.

    low, high: corners [3]. samples: number of samples along each axis, both ends included.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    samples: tuple[int, int, int]


def covering_interval(coordinates: NDArray, covered: float = COVERED) -> tuple[float, float]:
    """The shortest interval that holds the share `covered` of coordinates [N].

    Of several that are equally short, the first.
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

    minimum_thickness: length that every side gets at least, as a share of the longest. With 0, as
    in the reference, a flat axis gets a single sample, so that two opposite sides coincide and the
    other four lose their triangles. Raises ValueError for points on a line.
    """
    # The reference reads its .off files in single precision, which decides ties.
    points = np.asarray(points, dtype=np.float32)
    intervals = [covering_interval(points[:, axis]) for axis in range(3)]
    low, high = np.array(intervals, dtype=np.float64).T
    # Thicken flat axes around their middle.
    if minimum_thickness:
        middle = (low + high) / 2
        side = high - low
        side = np.maximum(side, minimum_thickness * side.max())
        low = middle - side / 2
        high = middle + side / 2

    # Cells are about square, and there are about as many of them as vertices are aimed at.
    w, h, d = high - low
    edge = np.sqrt(2 * (w * h + h * d + w * d) / number_vertices)
    if not edge > 0:
        raise ValueError(
            "the points lie on a line or in one point, no cuboid can be put around them"
        )
    return CuboidGrid(low, high, tuple(int(side / edge + 1) for side in (w, h, d)))


def cuboid_mesh(grid: CuboidGrid) -> Mesh:
    """Six separate grids of vertices, one for each side (reference); edges are not welded.

    Sides come in the order z min, z max, y min, y max, x min, x max. Their rows and columns run
    along (y, x), (z, x) and (z, y), and vertex `row * columns + column` of a side stands at (row,
    column). Each cell is cut along the same diagonal into the triangles (r, c), (r, c+1), (r+1, c)
    and (r+1, c+1), (r, c+1), (r+1, c), so windings differ.
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
    """The grid from which `cuboid_mesh` makes this mesh, up to SAME_CUBOID, or None."""
    # The smallest cuboid has 2 x 2 vertices and 2 triangles on each of 6 sides.
    if len(mesh.vertices) < 24 or len(mesh.faces) < 12:
        return None
    low = mesh.vertices.min(0)
    high = mesh.vertices.max(0)
    tolerance = SAME_CUBOID * float((high - low).max())
    samples = tuple(_count_ticks(mesh.vertices[:, a] - low[a], tolerance) for a in range(3))
    a, b, c = samples
    if min(samples) < 2 or 2 * (a * b + b * c + c * a) != len(mesh.vertices):
        return None
    # Compare with the cuboid of that grid, triangle by triangle and vertex by vertex.
    grid = CuboidGrid(low, high, samples)
    ideal = cuboid_mesh(grid)
    if not np.array_equal(ideal.faces, mesh.faces):
        return None
    offset = np.abs(ideal.vertices - mesh.vertices).max()
    return grid if offset <= tolerance else None


def _count_ticks(coordinates: NDArray, tolerance: float) -> int:
    """Count the values among coordinates [N] that differ by more than about the tolerance."""
    return len(np.unique(np.round(coordinates / tolerance / 4)))


def published_cuboid(category: str) -> Mesh | None:
    """The authors' own single cuboid of a category (car: V = 1,024); None where they have none."""
    if category not in PUBLISHED_CUBOIDS:
        return None
    return cuboid_mesh(cuboid_grid(np.array(PUBLISHED_CUBOIDS[category])))
