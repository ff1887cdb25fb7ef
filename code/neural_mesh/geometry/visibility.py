"""Which vertices of a mesh a camera sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.boxes import CropPlacement
from neural_mesh.geometry.cameras import Pose, project
from neural_mesh.geometry.meshes import Mesh

ON_SIDE = 1e-6  # share of the longest side within which a vertex lies on a side of the box
BLOCK = 256  # vertices that the ray test handles at a time
# The ray test widens triangles and shortens rays at their vertex by this share, so that a vertex is
# not hidden by its own triangles and no ray slips between two triangles.
SLACK = 1e-6


# ---- what the object itself hides ----


def visible_vertices(mesh: Mesh, centre_object: NDArray) -> NDArray[np.bool_]:
    """Whether the object itself leaves each vertex visible from a camera at centre_object [3]: [V].

    The test is exact. On a cuboid a vertex is seen when a side that contains its position faces the
    camera (copies on an edge belong to all its sides); on another mesh when no triangle cuts the
    segment between vertex and camera.
    """
    on_side = sides_of_vertices(mesh)
    if on_side is not None:
        return (on_side & sides_facing(mesh, np.asarray(centre_object))).any(1)
    return ~_segments_blocked(mesh, np.asarray(centre_object, dtype=np.float64))


def sides_of_vertices(mesh: Mesh) -> NDArray[np.bool_] | None:
    """Which sides of its bounding box each vertex lies on [V, 6]; None if it is not a cuboid.

    Sides are in the order x min, x max, y min, y max, z min, z max.
    """
    low = mesh.vertices.min(0)
    high = mesh.vertices.max(0)
    near = ON_SIDE * (high - low).max()
    on_low = abs(mesh.vertices - low) <= near
    on_high = abs(mesh.vertices - high) <= near
    on_side = np.stack([on_low, on_high], axis=-1).reshape(-1, 6)
    # In a cuboid every triangle lies in a side, with all three corners.
    first, second, third = mesh.faces.T
    face_on_a_side = (on_side[first] & on_side[second] & on_side[third]).any(1)
    is_cuboid = on_side.any(1).all() and face_on_a_side.all()
    return on_side if is_cuboid else None


def sides_facing(mesh: Mesh, centre_object: NDArray) -> NDArray[np.bool_]:
    """Which sides [..., 6] of the bounding box face cameras at centre_object [..., 3].

    Sides are in the order of `sides_of_vertices`.
    """
    low = mesh.vertices.min(0)
    high = mesh.vertices.max(0)
    beyond = np.stack([centre_object < low, centre_object > high], axis=-1)
    return beyond.reshape(*beyond.shape[:-2], 6)


def _segments_blocked(mesh: Mesh, centre: NDArray) -> NDArray[np.bool_]:
    """Whether a triangle lies between the camera and each vertex [V] (Moeller and Trumbore)."""
    # Points of a segment are centre + t * direction, points of a triangle corner + u e1 + v e2.
    # Both are equal where the segment meets the triangle's plane.
    corner = mesh.vertices[mesh.faces[:, 0]]
    edge1 = mesh.vertices[mesh.faces[:, 1]] - corner
    edge2 = mesh.vertices[mesh.faces[:, 2]] - corner
    from_camera = centre - corner
    q = np.cross(from_camera, edge1)  # [F, 3]
    along = (edge2 * q).sum(-1)
    blocked = np.zeros(len(mesh.vertices), bool)
    for first in range(0, len(mesh.vertices), BLOCK):
        direction = mesh.vertices[first : first + BLOCK] - centre  # [b, 3]
        p = np.cross(direction[:, None], edge2[None])  # [b, F, 3]
        determinant = np.einsum("bfc,fc->bf", p, edge1)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = np.einsum("bfc,fc->bf", p, from_camera) / determinant
            v = direction @ q.T / determinant
            t = along / determinant
        inside = (u >= -SLACK) & (v >= -SLACK) & (u + v <= 1 + SLACK)
        between = (t > 0) & (t < 1 - SLACK)
        blocked[first : first + BLOCK] = (inside & between).any(1)
    return blocked


# ---- what the picture shows of the object ----


def uncovered_vertices(
    mesh: Mesh, pose: Pose, focal_px: float, occ_mask: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """Which vertices [V] no occluder covers.

    occ_mask [h, w]: True where an occluder covers the original image; None for no occluder.
    Vertices outside the image count as uncovered.
    """
    uncovered = np.ones(len(mesh.vertices), bool)
    if occ_mask is not None:
        cells = np.floor(_pixels_rc(mesh, pose, focal_px))
        inside = ((cells >= 0) & (cells < occ_mask.shape)).all(1)
        rows, cols = cells[inside].astype(int).T
        uncovered[inside] = ~occ_mask[rows, cols]
    return uncovered


def _pixels_rc(mesh: Mesh, pose: Pose, focal_px: float) -> NDArray[np.float64]:
    """Where the vertices fall in the original image, (row, col) [V, 2]."""
    return project(mesh.vertices, pose, focal_px)[:, ::-1]


def vertices_in_crop(
    mesh: Mesh, pose: Pose, focal_px: float, crop: CropPlacement, box_ori: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Positions of the vertices in the crop (row, col) [V, 2], and which of them are seen [V].

    Positions are clamped into the crop.

    pose: its principal point is in pixels of the original image. box_ori: the annotated box as
    stored, see `boxes`. A vertex is seen when the object itself does not hide it and it falls into
    that box. GEOMETRY=paper truncates the projection to whole pixels and maps it from box to box,
    as the reference does.
    """
    pixels_rc = _pixels_rc(mesh, pose, focal_px)
    if crop.geometry == "paper":
        pixels_rc = np.trunc(pixels_rc)
    low = box_ori[[0, 2]]
    high = box_ori[[1, 3]]
    seen = visible_vertices(mesh, pose.centre)
    seen &= ((pixels_rc >= low) & (pixels_rc < high)).all(1)

    crop_rc = crop.map_points(pixels_rc)
    last = np.array(crop.crop_hw) - 1
    if crop.geometry == "exact":
        seen &= ((crop_rc >= 0) & (crop_rc < last + 1)).all(1)
    return np.clip(crop_rc, 0, last), seen


def facing_weights(mesh: Mesh, centre_object: NDArray) -> NDArray[np.float64]:
    """|cosine| of the angle between each vertex's outward direction and its line of sight [V].

    The reference calls them `kp_weights` and fits spheres through a vertex's neighbours, which is
    degenerate on a plane; here the direction is the mean over the triangles around the vertex. The
    weights are stored for other readers of the files; training does not use them, nor does the
    reference's.
    """
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # Windings differ, so outward is the direction that points away from the middle.
    from_middle = corners.mean(1) - mesh.vertices.mean(0)
    outward = normal * np.sign((normal * from_middle).sum(-1, keepdims=True))

    # Sum over the triangles around each vertex; longer normals weigh the larger triangles more.
    vertex = mesh.faces.T.ravel()
    count = len(mesh.vertices)
    sums = [np.bincount(vertex, np.tile(outward[:, axis], 3), count) for axis in range(3)]
    direction = np.stack(sums, axis=-1)

    sight = np.asarray(centre_object) - mesh.vertices
    lengths = np.linalg.norm(direction, axis=-1) * np.linalg.norm(sight, axis=-1)
    return abs((direction * sight).sum(-1)) / np.maximum(lengths, 1e-12)
