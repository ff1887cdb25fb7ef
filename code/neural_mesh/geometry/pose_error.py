"""Pose errors, the accuracies that tables report, and two baselines that need no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neural_mesh.geometry.cameras import geodesic_distance, pascal_cam_from_object

# Errors in radians below which a pose counts as correct.
THRESHOLDS = {"pi/6": math.pi / 6, "pi/18": math.pi / 18}


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of some images.

    within_pi6, within_pi18: shares below the thresholds in %. median_deg: median error in degrees.
    images: number of images. not_finite: number of predictions among them that are not finite; they
    count as errors of pi (the reference's as pi/2).
    """

    within_pi6: float
    within_pi18: float
    median_deg: float
    images: int
    not_finite: int = 0

    def value(self, metric: str) -> float:
        """The number of a table row: pi/6, pi/18 or median."""
        values = {"pi/6": self.within_pi6, "pi/18": self.within_pi18, "median": self.median_deg}
        return values[metric]


def pose_errors(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Angles in [0, pi] between poses [B, 3] (azimuth, elevation, theta), all in radians.

    The error is pi where a prediction is not finite.
    """
    predicted = np.asarray(predicted, np.float64)
    truth = np.asarray(truth, np.float64)
    finite = np.isfinite(predicted).all(-1)
    safe = np.where(finite[..., None], predicted, 0.0)
    errors = geodesic_distance(pascal_cam_from_object(*safe.T), pascal_cam_from_object(*truth.T))
    return np.where(finite, errors, math.pi)


def accuracy(errors: ArrayLike, not_finite: int = 0) -> Accuracy:
    """Accuracy of errors [B] in radians; a correct one is strictly below the threshold.

    Raises ValueError when there are no errors.
    """
    errors = np.asarray(errors, np.float64)
    if not errors.size:
        raise ValueError("no errors to compute an accuracy from")
    return Accuracy(
        within_pi6=100.0 * float((errors < THRESHOLDS["pi/6"]).mean()),
        within_pi18=100.0 * float((errors < THRESHOLDS["pi/18"]).mean()),
        median_deg=float(np.rad2deg(np.median(errors))),
        images=int(errors.size),
        not_finite=not_finite,
    )


# ---- several categories ----


def image_weighted_mean(accuracies: Sequence[Accuracy], metric: str) -> float:
    """Mean over categories weighted by their images: the published `Mean`, also of medians."""
    values = [accuracy.value(metric) for accuracy in accuracies]
    return float(np.average(values, weights=[accuracy.images for accuracy in accuracies]))


def category_mean(accuracies: Sequence[Accuracy], metric: str) -> float:
    """Plain mean over categories."""
    return float(np.mean([accuracy.value(metric) for accuracy in accuracies]))


# ---- baselines that need no network ----


def constant_pose_baseline(train: NDArray, test: NDArray) -> Accuracy:
    """Accuracy on test poses [B, 3] of predicting the same training pose for all of them.

    The pose is the one among the training poses [A, 3] that has the most of them within pi/6.
    """
    rotations = pascal_cam_from_object(*train.T)
    near = THRESHOLDS["pi/6"]
    neighbours = [(geodesic_distance(r, rotations) < near).sum() for r in rotations]
    constant = train[int(np.argmax(neighbours))]
    return accuracy(pose_errors(np.broadcast_to(constant, test.shape), test))


def random_pose_baseline(train: NDArray, test: NDArray) -> Accuracy:
    """Expected accuracy on test poses [B, 3] of poses drawn from training poses [A, 3].

    It is computed over all pairs, without drawing.
    """
    rotations = pascal_cam_from_object(*train.T)
    true_rotations = pascal_cam_from_object(*test.T)
    pairs = np.concatenate([geodesic_distance(r, rotations) for r in true_rotations])
    drawn = accuracy(pairs)
    return replace(drawn, images=len(test))
