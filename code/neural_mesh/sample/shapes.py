"""The solids of which the sample's models are built, as triangles: boxes, bars, lathed solids."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Triangles = tuple[NDArray, NDArray]  # vertices [V, 3] and faces [F, 3]
Triple = tuple[float, float, float]


def grid_faces(rows: int, columns: int) -> NDArray:
    """Divide the cells of a grid of rows x columns vertices into triangles [F, 3]."""
    index = np.arange(rows * columns).reshape(rows, columns)
    upper_left = index[:-1, :-1]
    upper_right = index[:-1, 1:]
    lower_left = index[1:, :-1]
    lower_right = index[1:, 1:]
    first = np.stack([upper_left, upper_right, lower_left], -1)
    second = np.stack([lower_right, lower_left, upper_right], -1)
    return np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)])


def grid_triangles(points: NDArray) -> Triangles:
    """Make a surface through a grid of points [rows, columns, 3]."""
    return points.reshape(-1, 3), grid_faces(*points.shape[:2])


def box(centre: Triple, half: Triple, radius: float = 0.006, step: float = 0.025) -> Triangles:
    """Make a box with rounded edges, whose triangles have edges of at most about `step`.

    half: half the length of each side. radius: of the rounding.
    """
    half_size = np.asarray(half, float)
    radius = min(radius, *half)
    points, faces = _box_grids(half_size, radius, step)
    # Edges are rounded by moving all points to within `radius` of a smaller box.
    inner = np.clip(points, radius - half_size, half_size - radius)
    outward = points - inner
    length = np.linalg.norm(outward, axis=1, keepdims=True)
    points = inner + radius * outward / np.maximum(length, 1e-12)
    return points + np.asarray(centre, float), faces


def _box_grids(half: NDArray, radius: float, step: float) -> Triangles:
    """Make the six sides of a sharp-edged box as grids, two for each axis."""
    vertices = []
    faces = []
    count = 0
    for axis in range(3):
        u = (axis + 1) % 3
        v = (axis + 2) % 3
        u_ticks = _edge_ticks(half[u], radius, step)
        v_ticks = _edge_ticks(half[v], radius, step)
        for sign in (-1.0, 1.0):
            side = np.empty((len(u_ticks), len(v_ticks), 3))
            side[..., axis] = sign * half[axis]
            side[..., u] = u_ticks[:, None]
            side[..., v] = v_ticks[None]
            faces.append(grid_faces(*side.shape[:2]) + count)
            vertices.append(side.reshape(-1, 3))
            count += len(vertices[-1])
    return np.concatenate(vertices), np.concatenate(faces)


def _edge_ticks(half: float, radius: float, step: float) -> NDArray:
    """Choose positions along an edge from -half to half, denser where it is rounded."""
    number = max(2, int(np.ceil(2 * (half - radius) / step)) + 1)
    flat = np.linspace(radius - half, half - radius, number)
    return np.concatenate([[-half, -half + 0.4 * radius], flat, [half - 0.4 * radius, half]])


def tube(path: ArrayLike, radius: ArrayLike, sides: int = 10, step: float = 0.025) -> Triangles:
    """Make a round bar along a polyline [K, 3]; `radius` is one number or one per corner."""
    corners = np.asarray(path, float)
    radii = np.broadcast_to(np.asarray(radius, float), len(corners))
    # Points along the bar, the corners among them.
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    at = np.concatenate([[0], np.cumsum(lengths)])
    evenly = np.linspace(0, at[-1], int(at[-1] / step) + 2)
    places = np.unique(np.concatenate([at, evenly]))
    points = np.stack([np.interp(places, at, corners[:, axis]) for axis in range(3)], -1)
    # Two directions across the bar at each point.
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    helper = np.eye(3)[np.argmin(np.abs(along).max(0))]
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    # Rings around the bar, and a point at either end.
    angle = np.linspace(0, 2 * np.pi, sides + 1)[None, :, None]
    ring = np.cos(angle) * first[:, None] + np.sin(angle) * second[:, None]
    vertices = points[:, None] + np.interp(places, at, radii)[:, None, None] * ring
    start = np.repeat(points[:1, None], sides + 1, 1)
    end = np.repeat(points[-1:, None], sides + 1, 1)
    return grid_triangles(np.concatenate([start, vertices, end]))


def lathe(centre: Triple, profile: list[tuple[float, float]], sides: int = 28) -> Triangles:
    """Make a solid of revolution about an axis parallel to x.

    profile: (x, radius) of the rings from one end to the other.
    """
    x, radius = np.asarray(profile, float).T
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    y = radius[:, None] * np.cos(angle)
    z = radius[:, None] * np.sin(angle)
    around = np.stack([np.repeat(x[:, None], sides + 1, 1), y, z], -1)
    return grid_triangles(around + np.asarray(centre, float))


def vertex_normals(vertices: NDArray, faces: NDArray) -> NDArray:
    """Compute unit normals [V, 3] as area-weighted means over the faces around each position.

    Vertices at equal positions share a normal.
    """
    # Normals of faces, whose lengths are twice the areas.
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)
    # Sums of them over all corners at the same position.
    _, same = np.unique(np.round(vertices, 7), axis=0, return_inverse=True)
    same = same.ravel()
    total = np.zeros((same.max() + 1, 3))
    for corner in range(3):
        np.add.at(total, same[faces[:, corner]], normal)
    total = total[same]
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-15)
