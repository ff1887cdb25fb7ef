"""The loss landscape of one image: its loss in the poses around a given one, along one number of
the pose at a time.
"""

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
# Least reach to either side of the prediction, in radians: a full turn and more, and 60 degrees.
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
    """Loss along one angle, the others and the distance staying those of the prediction. Radians.

    angles [N], losses [N]; at and loss: the prediction; truth: the annotated angle, in the turn
    nearest to `at`.
    """

    name: str
    angles: NDArray
    losses: NDArray
    at: float
    loss: float
    truth: float


def near_turn(angle: float, reference: float) -> float:
    """The angle plus the multiple of 2 pi that brings it within pi of the reference."""
    return reference + math.remainder(angle - reference, 2 * math.pi)


def losses_of(scene: Scene, target: Target, poses: Sequence[Pose]) -> NDArray[np.float64]:
    """Loss [N] of one image (a target of B = 1, on the CPU) in each of N poses."""
    cameras = [camera_of_pose(pose) for pose in poses]
    centre = torch.as_tensor(np.stack([centre for centre, _ in cameras]))
    object_from_cv_cam = torch.as_tensor(np.stack([rotation for _, rotation in cameras]))
    renderer = NumbaRenderer()
    table = renderer.table(scene, centre, object_from_cv_cam)
    return renderer.compare_table(table, target)[0].numpy()


def loss_scans(
    scene: Scene, target: Target, pose: Pose, truth: Sequence[float], points: int = SCAN_POINTS
) -> list[Scan]:
    """Loss along azimuth, elevation and theta around a pose, at least `SCAN_REACH` to either side.

    target: of one image (B = 1), on the CPU. truth [3]: the annotated angles in radians; every scan
    reaches past them.
    """
    scans = []
    for name, annotated in zip(ANGLE_NAMES, truth, strict=True):
        at = getattr(pose, name)
        # The annotation lies in the turn around the prediction, and in the scan.
        annotated = near_turn(annotated, at)
        reach = max(SCAN_REACH[name], abs(annotated - at) + 0.1)
        # An odd number, so that the prediction is one of them.
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
    """Offsets [N] (radians, CAD units) and losses [N] along every entry of `SET_SCANS`, through a
    pose.

    target: of one image (B = 1), on the CPU. The loss is nan where the elevation would pass a pole,
    and where the distance would not be positive.
    """
    scans = {}
    for name, (reach, points) in SET_SCANS.items():
        offsets = np.linspace(-reach, reach, points)
        values = getattr(pose, name) + offsets
        # Where there is a pose: in front of the object, and up to the poles.
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
    """The pose with each of the values [N] in place of one of its numbers."""
    return [replace(pose, **{name: float(value)}) for value in values]
