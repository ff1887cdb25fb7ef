"""Poses that the search finds: candidates in crops, and what they agree on in a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry import cameras
from neural_mesh.geometry.cameras import Pose
from neural_mesh.settings import FOCAL_PX


@dataclass(frozen=True)
class PhotographPose:
    """The pose of one object in a photograph; its camera fits the photograph's pixels.

    pose: its distance goes with focal_px, in pixels of the photograph, where its principal point
    lies, too: the optical axis, and with it the object's origin. score: 1 - loss, how well the mesh
    explains the features. mesh: 1-based. evidence: numbers named by `evidence.EVIDENCE`, which tell
    right from wrong poses; confidence: the probability that they give that the rotation is off by
    less than pi / 6, None without a calibration.
    """

    pose: Pose
    focal_px: float
    score: float
    mesh: int
    evidence: tuple[float, ...]
    confidence: float | None = None

    @property
    def pascal3d_distance(self) -> float:
        """The distance that makes the object as large with PASCAL3D+'s focal length of 3000."""
        return self.pose.distance * FOCAL_PX / self.focal_px

    @property
    def angles_deg(self) -> tuple[float, float, float]:
        """Azimuth in [0, 360), elevation and theta in [-180, 180), degrees."""
        return tuple(cameras.in_degrees(self.pose.angles).tolist())

    @property
    def camera_matrix(self) -> NDArray[np.float64]:
        """P [3, 4]: P @ (x, y, z, 1) of a CAD point is (u w, v w, w), (u, v) its pixel."""
        # Pixels from rays, rays from points: K R [I | -C].
        x, y = self.pose.principal_xy
        intrinsic = np.array([[self.focal_px, 0, x], [0, self.focal_px, y], [0, 0, 1]])
        relative = np.column_stack([np.eye(3), -self.pose.centre])
        return intrinsic @ self.pose.cv_cam_from_object @ relative


@dataclass(frozen=True)
class Candidates:
    """What the solver finds in K crops, one pose in each.

    pose: [K], principal points in crop pixels. loss: [K] of the pose. mesh: [K], 1-based.
    view_losses: [K, N] of every view of the start grid, where it fits best. views: [N, 3, 3],
    rotations pascal_cam_from_object of these views.
    """

    pose: Pose
    loss: NDArray[np.float64]
    mesh: NDArray[np.int64]
    view_losses: NDArray[np.float64]
    views: NDArray[np.float64]

    def __getitem__(self, index: slice | NDArray) -> Candidates:
        return Candidates(
            self.pose[index],
            self.loss[index],
            self.mesh[index],
            self.view_losses[index],
            self.views,
        )

    @classmethod
    def joined(cls, batches: Sequence[Candidates]) -> Candidates:
        """The crops of all batches, in order. They come from the same views."""
        return cls(
            Pose.joined([batch.pose for batch in batches]),
            np.concatenate([batch.loss for batch in batches]),
            np.concatenate([batch.mesh for batch in batches]),
            np.concatenate([batch.view_losses for batch in batches]),
            batches[0].views,
        )

    @classmethod
    def best_of(cls, meshes: Sequence[Candidates]) -> Candidates:
        """In each crop, the candidate of the mesh that explains it best.

        meshes: candidates in the same crops.
        """
        # Joined, the candidates of a mesh follow those of the one before.
        crops = len(meshes[0].loss)
        best = np.argmin([candidates.loss for candidates in meshes], 0)
        return cls.joined(meshes)[best * crops + np.arange(crops)]
