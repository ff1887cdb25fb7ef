"""The PASCAL3D+ camera, the PyTorch3D convention, and the distance between two rotations.

Frames. `object`: CAD axes, z up, the object's front towards -y. `cam`: x right, y up, looking along -z (PASCAL3D+).
`pt3d`: PyTorch3D's world axes, (x, z, -y) of the object's, and its camera, x left, y up, z forward, row vectors.
Angles are radians. azimuth 0 sees the front, pi/2 the side at +x; elevation > 0 sees the top; theta > 0 turns the
picture counter-clockwise. Leading dimensions of all arguments broadcast. Everything is NumPy, in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PT3D_FROM_OBJECT = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
MIN_DISTANCE = 0.1  # the reference puts a camera of distance exactly 0 here


def _stack(rows: list[list[ArrayLike]]) -> NDArray:
    """[[a, b], [c, d]] of broadcastable arrays -> [..., 2, 2]."""
    flat = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for row in rows for x in row))
    return np.stack(flat, axis=-1).reshape(*flat[0].shape, len(rows), len(rows[0]))


def rotation_z(angle: ArrayLike) -> NDArray:
    """Right-handed rotation about z [..., 3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    return _stack([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def rotation_x(angle: ArrayLike) -> NDArray:
    """Right-handed rotation about x [..., 3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    return _stack([[1, 0, 0], [0, c, -s], [0, s, c]])


def camera_centre(azimuth: ArrayLike, elevation: ArrayLike, distance: ArrayLike) -> NDArray:
    """Camera centre in the object frame [..., 3] (PASCAL3D+)."""
    distance = np.where(np.asarray(distance) == 0, MIN_DISTANCE, distance)
    return _stack(
        [
            [
                distance * np.cos(elevation) * np.sin(azimuth),
                -distance * np.cos(elevation) * np.cos(azimuth),
                distance * np.sin(elevation),
            ]
        ]
    )[..., 0, :]


def cam_from_object_rotation(azimuth: ArrayLike, elevation: ArrayLike, theta: ArrayLike) -> NDArray:
    """Rotation that the pose error is measured on [..., 3, 3]: Rz(theta) Rx(elevation - pi/2) Rz(-azimuth)."""
    upright = rotation_x(np.asarray(elevation) - np.pi / 2) @ rotation_z(-np.asarray(azimuth))
    return rotation_z(theta) @ upright


def angles_of_rotation(rotation: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Azimuth in [0, 2 pi), elevation and theta [...] of rotations [..., 3, 3] as `cam_from_object_rotation` makes them."""
    rotation = np.asarray(rotation, np.float64)
    azimuth, elevation, _ = spherical_from_centre(
        rotation[..., 2, :]
    )  # where the camera is, seen from the object
    return azimuth, elevation, np.arctan2(-rotation[..., 0, 2], rotation[..., 1, 2])


def mean_rotation(rotation: ArrayLike, weight: ArrayLike) -> NDArray[np.float64]:
    """The rotation [3, 3] nearest to the weighted sum of rotations [K, 3, 3] (the chordal mean)."""
    u, _, vt = np.linalg.svd(np.tensordot(weight, rotation, 1))
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt


def extrinsic_matrix(azimuth: ArrayLike, elevation: ArrayLike, distance: ArrayLike) -> NDArray:
    """[R | -R C] with a last row of 0 0 0 1 [..., 4, 4], without theta (the reference's transformation matrix)."""
    rotation = cam_from_object_rotation(azimuth, elevation, 0.0)
    translation = -(rotation @ camera_centre(azimuth, elevation, distance)[..., None])
    top = np.concatenate([rotation, translation], axis=-1)
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*top.shape[:-2], 1, 4))
    return np.concatenate([top, bottom], axis=-2)


def points_in_camera(
    points_object: NDArray,
    azimuth: ArrayLike,
    elevation: ArrayLike,
    theta: ArrayLike,
    distance: ArrayLike,
) -> NDArray:
    """Points [N, 3] of the object frame in the camera frame [..., N, 3] (x right, y up, depth = -z)."""
    rotation = cam_from_object_rotation(azimuth, elevation, theta)
    relative = (
        np.asarray(points_object, dtype=np.float64)
        - camera_centre(azimuth, elevation, distance)[..., None, :]
    )
    return relative @ np.swapaxes(rotation, -1, -2)


def project(
    points_object: NDArray,
    azimuth: ArrayLike,
    elevation: ArrayLike,
    theta: ArrayLike,
    distance: ArrayLike,
    principal_xy: ArrayLike,
    focal_px: ArrayLike = 3000.0,
) -> NDArray:
    """PASCAL3D+ projection of points [N, 3] to pixels [..., N, 2] as (x right, y down).

    focal_px is viewport times focal length. A point behind the camera gets the mirrored pixel that the formula gives.
    """
    cam = points_in_camera(points_object, azimuth, elevation, theta, distance)
    plane_xy = (
        np.asarray(focal_px, dtype=np.float64)[..., None, None] * cam[..., :2] / -cam[..., 2:]
    )
    return np.asarray(principal_xy, dtype=np.float64)[..., None, :] + plane_xy * [1.0, -1.0]


def pt3d_extrinsics(
    azimuth: ArrayLike, elevation: ArrayLike, theta: ArrayLike, distance: ArrayLike
) -> tuple[NDArray, NDArray]:
    """PyTorch3D's R [..., 3, 3] and T [..., 3] of a pose: X_cam = X_pt3d @ R + T for row vectors."""
    flip = np.diag(
        [-1.0, 1.0, -1.0]
    )  # PASCAL3D+ camera (right, up, backward) -> PyTorch3D camera (left, up, forward)
    pt3d_cam_from_world = (
        flip @ cam_from_object_rotation(azimuth, elevation, theta) @ PT3D_FROM_OBJECT.T
    )
    rotation = np.swapaxes(pt3d_cam_from_world, -1, -2)
    centre = camera_centre(azimuth, elevation, distance) @ PT3D_FROM_OBJECT.T
    return rotation, -(centre[..., None, :] @ rotation)[..., 0, :]


def spherical_from_centre(centre_object: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Camera centre in the object frame [..., 3] -> (azimuth in [0, 2 pi), elevation, distance), right in all quadrants."""
    x, y, z = np.moveaxis(np.asarray(centre_object, dtype=np.float64), -1, 0)
    distance = np.sqrt(x * x + y * y + z * z)
    azimuth = np.mod(np.arctan2(x, -y), 2 * np.pi)
    elevation = np.arctan2(z, np.hypot(x, y))
    return azimuth, elevation, distance


def in_degrees(angles: ArrayLike) -> NDArray[np.float64]:
    """Azimuth, elevation and theta [..., 3] in radians -> degrees, azimuth in [0, 360), the others in [-180, 180)."""
    degrees = np.rad2deg(np.asarray(angles, np.float64))
    return np.mod(degrees + [0, 180, 180], 360) - [0, 180, 180]


def geodesic_distance(rotation_a: ArrayLike, rotation_b: ArrayLike) -> NDArray:
    """Angle in [0, pi] between rotations [..., 3, 3], accurate at both ends; NaN where an entry is not finite.

    The paper's ||logm(A^T B)||_F / sqrt(2). The reference's matrix logarithm turns complex near pi and then counts an
    upside-down pose as correct; atan2 of the sine and the cosine of the angle does not.
    """
    relative = np.swapaxes(np.asarray(rotation_a, np.float64), -1, -2) @ np.asarray(
        rotation_b, np.float64
    )
    skew = np.stack(
        [
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ],
        axis=-1,
    )
    twice_sine = np.sqrt((skew**2).sum(-1))
    twice_cosine = np.trace(relative, axis1=-2, axis2=-1) - 1.0
    return np.arctan2(twice_sine, twice_cosine)
