"""The loss landscape of one image: its loss along one number of a pose at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from neural_mesh.compare.scene import Scene, Target
from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.geometry.cameras import Pose
from neural_mesh.pictures.captions import ANGLE_NAMES
from neural_mesh.pictures.mesh_overlay import camera_of_pose

SCAN_POINTS = 121
# The least reach to either side of the prediction, in radians: over half a turn, or 60 degrees.
SCAN_REACH = {"azimuth": 1.1 * math.pi, "elevation": math.pi / 3, "theta": math.pi / 3}
# Half widths (radians, CAD units) and numbers of points of the scans over a set, as the reference's
# PlotLossLandscape has them.
SET_SCANS = {
    "azimuth": (math.pi, 121),
    "elevation": (math.pi / 2, 61),
    "theta": (math.pi / 2, 61),
    "distance": (2.0, 41),
}


@dataclass(frozen=True)
class Scan:
    """The loss along one angle, while the other angles and the distance stay as predicted.

    angles, losses [N]: the points of the curve. at, loss: the predicted angle and its loss. truth:
    the annotated angle, in the turn nearest to `at`. All angles are in radians.
    """

    name: str
    angles: NDArray
    losses: NDArray
    at: float
    loss: float
    truth: float


def near_turn(angle: float, reference: float) -> float:
    """Add the multiple of 2 pi to an angle that brings it within pi of the reference."""
    return reference + math.remainder(angle - reference, 2 * math.pi)


def losses_of(scene: Scene, target: Target, poses: Sequence[Pose]) -> NDArray[np.float64]:
    """Compute the loss [N] of one image (a target of B = 1, on the CPU) in each of N poses."""
    cameras = [camera_of_pose(pose) for pose in poses]
    centre = torch.as_tensor(np.stack([centre for centre, _ in cameras]))
    object_from_cv_cam = torch.as_tensor(np.stack([rotation for _, rotation in cameras]))
    renderer = NumbaRenderer()
    table = renderer.table(scene, centre, object_from_cv_cam)
    return renderer.compare_table(table, target)[0].numpy()


def loss_scans(
    scene: Scene,
    target: Target,
    pose: Pose,
    truth: Sequence[float] | NDArray,
    points: int = SCAN_POINTS,
) -> list[Scan]:
    """Scan the loss along azimuth, elevation and theta around a pose.

    target: scores of one image (B = 1), on the CPU. truth [3]: the annotated angles in radians.
    points: number of points of a curve. Every scan reaches at least `SCAN_REACH` to either side,
    and past the annotation.
    """
    scans = []
    for name, annotated in zip(ANGLE_NAMES, truth, strict=True):
        at = getattr(pose, name)
        # The annotation is moved into the turn around the prediction, and the scan reaches past it.
        annotated = near_turn(annotated, at)
        reach = max(SCAN_REACH[name], abs(annotated - at) + 0.1)
        # With an odd number of points the prediction is one of them.
        angles = at + np.linspace(-reach, reach, points | 1)
        # Beyond a pole the object would be seen from the other side.
        if name == "elevation":
            angles = angles[abs(angles) <= max(math.pi / 2, abs(at))]
        losses = losses_of(scene, target, _moved(pose, name, angles))
        loss = float(losses[abs(angles - at).argmin()])
        scans.append(Scan(name, angles, losses, at, loss, annotated))
    return scans


def scans_around(
    scene: Scene, target: Target, pose: Pose
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Scan the loss along every entry of `SET_SCANS`, through a pose.

    target: scores of one image (B = 1), on the CPU. Returns offsets [N] from the pose (radians, or
    CAD units for the distance) and losses [N] by the entry's name. The loss is nan where the
    elevation would pass a pole, and where the distance would not be positive.
    """
    scans = {}
    for name, (reach, points) in SET_SCANS.items():
        offsets = np.linspace(-reach, reach, points)
        values = getattr(pose, name) + offsets
        # Poses lie in front of the object, and between the poles.
        valid = np.ones(points, bool)
        if name == "distance":
            valid = values > 0
        elif name == "elevation":
            valid = abs(values) <= math.pi / 2
        losses = np.full(points, np.nan)
        losses[valid] = losses_of(scene, target, _moved(pose, name, values[valid]))
        scans[name] = (offsets, losses)
    return scans


def _moved(pose: Pose, name: str, values: NDArray) -> list[Pose]:
    """Copy the pose once for each of the values [N], which replaces the number `name`."""
    return [replace(pose, **{name: float(value)}) for value in values]
