"""From poses to the numbers of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neural_mesh.geometry.cameras import geodesic_distance, pascal_cam_from_object

THRESHOLDS = {"pi/6": math.pi / 6, "pi/18": math.pi / 18}
LABELS = {"pi/6": "Pi/6  ", "pi/18": "Pi/18 ", "median": "MedErr"}  # as the reference prints them


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of some images: shares within pi/6 and pi/18 in %, median error in degrees, and how many images."""

    within_pi6: float
    within_pi18: float
    median_deg: float
    images: int
    not_finite: int = (
        0  # predictions that are no pose; they count as wrong by pi (the reference gives them pi/2)
    )

    def value(self, metric: str) -> float:
        """The number of a table row: pi/6, pi/18 or median."""
        return {"pi/6": self.within_pi6, "pi/18": self.within_pi18, "median": self.median_deg}[
            metric
        ]


def pose_errors(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Angles in [0, pi] between poses [B, 3] (azimuth, elevation, theta), in radians; pi where one is not finite."""
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    finite = np.isfinite(predicted).all(-1)
    safe = np.where(finite[..., None], predicted, 0.0)
    errors = geodesic_distance(pascal_cam_from_object(*safe.T), pascal_cam_from_object(*truth.T))
    return np.where(finite, errors, math.pi)


def accuracy(errors: ArrayLike, not_finite: int = 0) -> Accuracy:
    """Accuracy of errors [B] in radians (strictly below the thresholds). ValueError when there are none."""
    errors = np.asarray(errors, np.float64)
    if not errors.size:
        raise ValueError("no errors to compute an accuracy from")
    return Accuracy(
        100.0 * float((errors < THRESHOLDS["pi/6"]).mean()),
        100.0 * float((errors < THRESHOLDS["pi/18"]).mean()),
        float(np.rad2deg(np.median(errors))),
        int(errors.size),
        not_finite,
    )


def image_weighted_mean(accuracies: Sequence[Accuracy], metric: str) -> float:
    """Mean over categories weighted by their images, the published `Mean` (of the medians, too)."""
    return float(
        np.average([a.value(metric) for a in accuracies], weights=[a.images for a in accuracies])
    )


def category_mean(accuracies: Sequence[Accuracy], metric: str) -> float:
    """Plain mean over categories."""
    return float(np.mean([a.value(metric) for a in accuracies]))


def constant_pose_baseline(train: NDArray, test: NDArray) -> Accuracy:
    """Accuracy on test poses [B, 3] of the one training pose [A, 3] that is within pi/6 of most training poses."""
    rotations = pascal_cam_from_object(*train.T)
    hits = [
        (geodesic_distance(rotation, rotations) < THRESHOLDS["pi/6"]).sum()
        for rotation in rotations
    ]
    return accuracy(pose_errors(np.broadcast_to(train[int(np.argmax(hits))], test.shape), test))


def random_pose_baseline(train: NDArray, test: NDArray) -> Accuracy:
    """Expected accuracy on test poses [B, 3] of poses drawn from the training poses [A, 3]: all pairs, no drawing."""
    rotations = pascal_cam_from_object(*train.T)
    pairs = np.concatenate(
        [geodesic_distance(r, rotations) for r in pascal_cam_from_object(*test.T)]
    )
    drawn = accuracy(pairs)
    return Accuracy(drawn.within_pi6, drawn.within_pi18, drawn.median_deg, len(test))
