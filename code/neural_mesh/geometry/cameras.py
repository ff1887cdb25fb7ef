"""Poses, the two camera frames, PyTorch3D's convention, and the angle between two rotations.

Frames. `object`: CAD axes, z up, the object's front towards -y. `pascal_cam`, the camera of
PASCAL3D+: x right, y up, z towards the viewer, so that the depth is -z. `cv_cam`, the camera of
computer vision: x right, y down, z forward. `pt3d`: PyTorch3D's world axes, (x, z, -y) of the
object's, and its camera, x left, y up, z forward, row vectors. `a_from_b` is a rotation that takes
points of frame b to frame a: `a_from_b @ point_b`.

Angles are radians. azimuth 0 sees the front, pi/2 the side at +x; elevation > 0 sees the top;
theta > 0 turns the picture counter-clockwise. Leading dimensions of all arguments broadcast.
Everything is NumPy, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neural_mesh.settings import FEATURE_STRIDE, FOCAL_PX, PAPER_FOV

# Axes of PyTorch3D's world (x, z, -y) from the object's.
PT3D_FROM_OBJECT = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
CV_CAM_FROM_PASCAL_CAM = np.diag([1.0, -1.0, -1.0])
# PASCAL3D+'s camera (right, up, backward) to PyTorch3D's (left, up, forward), and back.
PT3D_CAM_FROM_PASCAL_CAM = np.diag([-1.0, 1.0, -1.0])
ON_AXIS = 1e-4  # share of the distance by which an optical axis may miss the origin
MIN_DISTANCE = 0.1  # the reference puts a camera of distance exactly 0 here


# ---- poses ----

# A number, or an array [...] of them for several poses; the owner of a pose knows which.
Numbers: TypeAlias = Any


@dataclass(frozen=True)
class Pose:
    """The pose of one object, or of several along the leading dimensions [...] of the fields.

    azimuth, elevation, theta: radians. distance: of the camera from the object's origin, in CAD
    units. principal_xy [..., 2]: where the optical axis meets the picture, (x right, y down), in
    the unit that the owner states (pixels or cells of a feature map); None where the owner's camera
    already has it.
    """

    azimuth: Numbers
    elevation: Numbers
    theta: Numbers
    distance: Numbers
    principal_xy: Numbers = None

    def __len__(self) -> int:
        return len(self.azimuth)

    def __getitem__(self, index: int | slice | NDArray) -> Pose:
        """The poses at `index` of the first dimension; a single pose has plain floats."""
        principal_xy = None if self.principal_xy is None else self.principal_xy[index]
        return Pose(
            _chosen(self.azimuth, index),
            _chosen(self.elevation, index),
            _chosen(self.theta, index),
            _chosen(self.distance, index),
            principal_xy,
        )

    @classmethod
    def joined(cls, poses: Sequence[Pose]) -> Pose:
        """The poses of several batches in one. Either all have a principal point or none has."""
        principal_xy = None
        if poses[0].principal_xy is not None:
            principal_xy = np.concatenate([pose.principal_xy for pose in poses])
        return cls(
            np.concatenate([pose.azimuth for pose in poses]),
            np.concatenate([pose.elevation for pose in poses]),
            np.concatenate([pose.theta for pose in poses]),
            np.concatenate([pose.distance for pose in poses]),
            principal_xy,
        )

    @property
    def angles(self) -> NDArray[np.float64]:
        """Azimuth, elevation and theta [..., 3] in radians."""
        return np.stack([self.azimuth, self.elevation, self.theta], axis=-1)

    @property
    def centre(self) -> NDArray[np.float64]:
        """Camera centre in the object frame [..., 3]."""
        return camera_centre(self.azimuth, self.elevation, self.distance)

    @property
    def pascal_cam_from_object(self) -> NDArray[np.float64]:
        """Rotation [..., 3, 3] to the frame of PASCAL3D+ (x right, y up, z towards the viewer)."""
        return pascal_cam_from_object(self.azimuth, self.elevation, self.theta)

    @property
    def cv_cam_from_object(self) -> NDArray[np.float64]:
        """Rotation [..., 3, 3] to the frame of computer vision (x right, y down, z forward)."""
        return cv_from_pascal_cam(self.pascal_cam_from_object)


def _chosen(values: NDArray, index: int | slice | NDArray) -> float | NDArray:
    chosen = values[index]
    return chosen if np.ndim(chosen) else float(chosen)


def in_degrees(angles: ArrayLike) -> NDArray[np.float64]:
    """Convert azimuth, elevation and theta [..., 3] from radians to degrees.

    The azimuth comes out in [0, 360), the other two in [-180, 180).
    """
    degrees = np.rad2deg(np.asarray(angles, np.float64))
    return np.mod(degrees + [0, 180, 180], 360) - [0, 180, 180]


# ---- cameras of feature maps ----


@dataclass(frozen=True)
class MapCamera:
    """A pinhole camera measured in cells of a feature map.

    focal: focal length in cells. principal_xy: where the optical axis meets the map.
    map_hw: size of the map (H, W).
    """

    focal: float
    principal_xy: tuple[float, float]
    map_hw: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Cells of the map, P."""
        return self.map_hw[0] * self.map_hw[1]


def paper_camera(map_hw: tuple[int, int]) -> MapCamera:
    """The reference's camera.

    It sees 12 degrees across a square as wide as the map's longer side; the map is cut out of the
    middle of that square.
    """
    height, width = map_hw
    focal = max(height, width) / 2 / math.tan(PAPER_FOV / 2)
    return MapCamera(focal, (width / 2, height / 2), (height, width))


def consistent_camera(map_hw: tuple[int, int], image_scale: float = 1.0) -> MapCamera:
    """The camera that crops were made with, at an image scale.

    Its focal length is 3000 pixels of an unscaled crop, and the object is at distance 5.
    """
    height, width = map_hw
    focal = FOCAL_PX / FEATURE_STRIDE * image_scale
    return MapCamera(focal, (width / 2, height / 2), (height, width))


# ---- from angles to frames and back ----


def _stack(rows: list[list[ArrayLike]]) -> NDArray:
    """Stack rows [[a, b], [c, d]] of broadcastable arrays into matrices [..., 2, 2]."""
    flat = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for row in rows for x in row))
    return np.stack(flat, axis=-1).reshape(*flat[0].shape, len(rows), len(rows[0]))


def rotation_z(angle: ArrayLike) -> NDArray:
    """Right-handed rotation about z [..., 3, 3]."""
    c = np.cos(angle)
    s = np.sin(angle)
    return _stack([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def rotation_x(angle: ArrayLike) -> NDArray:
    """Right-handed rotation about x [..., 3, 3]."""
    c = np.cos(angle)
    s = np.sin(angle)
    return _stack([[1, 0, 0], [0, c, -s], [0, s, c]])


def pascal_cam_from_object(azimuth: ArrayLike, elevation: ArrayLike, theta: ArrayLike) -> NDArray:
    """The rotation [..., 3, 3] that the pose error is measured on (PASCAL3D+).

    It is Rz(theta) Rx(elevation - pi/2) Rz(-azimuth).
    """
    upright = rotation_x(np.asarray(elevation) - np.pi / 2) @ rotation_z(-np.asarray(azimuth))
    return rotation_z(theta) @ upright


def cv_from_pascal_cam(pascal_cam_from_any: ArrayLike) -> NDArray[np.float64]:
    """Turn a rotation [..., 3, 3] to `pascal_cam` into one to `cv_cam`: y and z change their sign.

    The function is its own inverse: it also turns a rotation to `cv_cam` into one to `pascal_cam`.
    """
    return CV_CAM_FROM_PASCAL_CAM @ np.asarray(pascal_cam_from_any)


def angles_of_rotation(pascal_cam_from_object: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Angles of rotations [..., 3, 3]: the inverse of the function `pascal_cam_from_object`.

    Returns azimuth in [0, 2 pi), elevation and theta, each [...].
    """
    rotation = np.asarray(pascal_cam_from_object, np.float64)
    # The third row is the direction from the object to the camera.
    azimuth, elevation, _ = spherical_from_centre(rotation[..., 2, :])
    theta = np.arctan2(-rotation[..., 0, 2], rotation[..., 1, 2])
    return azimuth, elevation, theta


def camera_centre(azimuth: ArrayLike, elevation: ArrayLike, distance: ArrayLike) -> NDArray:
    """Camera centre in the object frame [..., 3] (PASCAL3D+)."""
    distance = np.where(np.asarray(distance) == 0, MIN_DISTANCE, distance)
    x = distance * np.cos(elevation) * np.sin(azimuth)
    y = -distance * np.cos(elevation) * np.cos(azimuth)
    z = distance * np.sin(elevation)
    return _stack([[x, y, z]])[..., 0, :]


def spherical_from_centre(centre_object: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Angles and distance of centres [..., 3]: the inverse of `camera_centre`, in all quadrants.

    Returns azimuth in [0, 2 pi), elevation and distance, each [...].
    """
    x, y, z = np.moveaxis(np.asarray(centre_object, dtype=np.float64), -1, 0)
    distance = np.sqrt(x * x + y * y + z * z)
    azimuth = np.mod(np.arctan2(x, -y), 2 * np.pi)
    elevation = np.arctan2(z, np.hypot(x, y))
    return azimuth, elevation, distance


# ---- from points to pixels, and matrices in other conventions ----


def points_in_pascal_cam(points_object: NDArray, pose: Pose) -> NDArray:
    """Move points [N, 3] from the object frame to `pascal_cam` [..., N, 3]; their depth is -z."""
    relative = np.asarray(points_object, dtype=np.float64) - pose.centre[..., None, :]
    return relative @ np.swapaxes(pose.pascal_cam_from_object, -1, -2)


def project(points_object: NDArray, pose: Pose, focal_px: ArrayLike = FOCAL_PX) -> NDArray:
    """Project points [N, 3] as PASCAL3D+ does, to pixels [..., N, 2] as (x right, y down).

    focal_px: viewport times focal length, in the unit of the pose's principal point. A point behind
    the camera gets the mirrored pixel that the formula gives.
    """
    points_cam = points_in_pascal_cam(points_object, pose)
    focal = np.asarray(focal_px, dtype=np.float64)[..., None, None]
    plane_xy = focal * points_cam[..., :2] / -points_cam[..., 2:]
    principal_xy = np.asarray(pose.principal_xy, dtype=np.float64)[..., None, :]
    return principal_xy + plane_xy * [1.0, -1.0]  # y up becomes y down


def extrinsic_matrix(pose: Pose) -> NDArray:
    """The reference's transformation matrix [..., 4, 4]: [R | -R C] over the row 0 0 0 1.

    R turns the object frame to `pascal_cam` without theta, and C is the camera's centre.
    """
    rotation = pascal_cam_from_object(pose.azimuth, pose.elevation, 0.0)
    translation = -(rotation @ pose.centre[..., None])
    top = np.concatenate([rotation, translation], axis=-1)
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*top.shape[:-2], 1, 4))
    return np.concatenate([top, bottom], axis=-2)


def pt3d_extrinsics(pose: Pose) -> tuple[NDArray, NDArray]:
    """PyTorch3D's R [..., 3, 3] and T [..., 3]: X_cam = X_pt3d @ R + T for row vectors."""
    pt3d_cam_from_object = PT3D_CAM_FROM_PASCAL_CAM @ pose.pascal_cam_from_object
    rotation = np.swapaxes(pt3d_cam_from_object @ PT3D_FROM_OBJECT.T, -1, -2)
    centre_pt3d = pose.centre @ PT3D_FROM_OBJECT.T
    translation = -(centre_pt3d[..., None, :] @ rotation)[..., 0, :]
    return rotation, translation


def pose_from_pt3d(rotation: ArrayLike, translation: ArrayLike) -> Pose:
    """The pose of PyTorch3D's R [..., 3, 3] and T [..., 3]: the inverse of `pt3d_extrinsics`.

    The pose has no principal point. Raises ValueError where the optical axis misses the object's
    origin, which it never does in PASCAL3D+.
    """
    translation = np.asarray(translation, np.float64)
    distance = translation[..., 2]
    off_axis = np.abs(translation[..., :2]).max() > ON_AXIS * np.abs(distance).max()
    if off_axis or (distance <= 0).any():
        raise ValueError(
            f"T is {translation.tolist()}, expected (0, 0, distance): "
            "a camera that looks at the origin"
        )
    pt3d_cam_from_pt3d = np.swapaxes(np.asarray(rotation, np.float64), -1, -2)
    pt3d_cam_from_object = pt3d_cam_from_pt3d @ PT3D_FROM_OBJECT
    # The flip between the two cameras is its own inverse.
    azimuth, elevation, theta = angles_of_rotation(PT3D_CAM_FROM_PASCAL_CAM @ pt3d_cam_from_object)
    return Pose(azimuth, elevation, theta, distance)


# ---- between rotations ----


def geodesic_distance(rotation_a: ArrayLike, rotation_b: ArrayLike) -> NDArray:
    """Angle in [0, pi] between rotations [..., 3, 3]; NaN where an entry is not finite.

    It is the paper's ||logm(A^T B)||_F / sqrt(2), accurate at both ends. The reference's matrix
    logarithm turns complex near pi and then counts an upside-down pose as correct; atan2 of the
    sine and the cosine of the angle does not.
    """
    a_from_any = np.swapaxes(np.asarray(rotation_a, np.float64), -1, -2)
    relative = a_from_any @ np.asarray(rotation_b, np.float64)
    # The antisymmetric part holds the sine of the angle, the trace its cosine.
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


def mean_rotation(rotation: ArrayLike, weight: ArrayLike) -> NDArray[np.float64]:
    """The rotation [3, 3] nearest to the weighted sum of rotations [K, 3, 3] (chordal mean)."""
    u, _, vt = np.linalg.svd(np.tensordot(weight, rotation, 1))
    # The determinant keeps the result a rotation where the nearest orthogonal matrix mirrors.
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
