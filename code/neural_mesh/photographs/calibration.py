"""How sure a pose is: from what the solver saw to the probability that the rotation is right.

A logistic map is fitted to poses whose truth is known, and its calibration is checked on others: of
the poses with a confidence of 0.8, 80 in 100 should be right. Right means a rotation error below
pi / 6, the paper's coarser threshold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neural_mesh.storage.files import read_json, write_text

PENALTY = 1.0  # of squared weights of the standardised evidence, as that many images would weigh
CONSTANT_PENALTY = 1e-3  # without one the constant diverges where all poses are right
STEPS = 50  # of Newton's method, which needs about 8
LONGEST_STEP = 2.0  # a bounded step never overshoots for good
CONVERGED = 1e-9
BINS = 10  # of the calibration error
FEWEST_POSES = 20


@dataclass(frozen=True)
class Calibration:
    """A fitted map from evidence to confidence, and how good it is on images not fitted to.

    names: of the numbers of the evidence. mean, deviation: to standardise them. weights: of the
    standardised evidence, the constant last. images: poses that it was fitted to and checked on, of
    which the share `right` was right. brier, calibration_error: cross-validated, see `brier_score`
    and `calibration_error`. of: everything that the evidence depends on, as JSON values. data: the
    prepared set, and whether the network was trained on its images.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weights: tuple[float, ...]
    images: int
    right: float
    brier: float
    calibration_error: float
    of: dict
    data: dict

    def confidence(self, evidence: ArrayLike) -> NDArray[np.float64]:
        """Probability [...] that a pose is right, from its evidence [..., K]."""
        standard = (np.asarray(evidence, np.float64) - self.mean) / self.deviation
        return _logistic(standard, np.asarray(self.weights))


def _logistic(standard: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Probabilities [...] from standardised evidence [..., K] and weights [K + 1]."""
    return _sigmoid(standard @ weights[:-1] + weights[-1])


def _sigmoid(x: NDArray) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.tanh(x / 2)


def fit_weights(standard: NDArray, right: NDArray) -> NDArray[np.float64]:
    """Logistic regression by Newton's method on standardised evidence [B, K].

    Returns weights [K + 1], the constant last.
    """
    x = np.column_stack([standard, np.ones(len(standard))])
    penalty = np.diag([PENALTY] * (x.shape[1] - 1) + [CONSTANT_PENALTY])
    weights = np.zeros(x.shape[1])
    # The penalised likelihood has one maximum, which Newton's steps approach from anywhere.
    for _ in range(STEPS):
        share = _sigmoid(x @ weights)
        gradient = x.T @ (share - right) + penalty @ weights
        curvature = (x * (share * (1 - share))[:, None]).T @ x + penalty
        step = np.linalg.solve(curvature, gradient)
        longest = float(np.abs(step).max())
        weights -= step / max(1.0, longest / LONGEST_STEP)
        if longest < CONVERGED:
            break
    return weights


def calibrate(
    evidence: ArrayLike,
    right: ArrayLike,
    names: Sequence[str],
    of: dict,
    data: dict,
    seed: int = 0,
    folds: int = 5,
) -> Calibration:
    """Fit a calibration to evidence [B, K] of poses that are right [B] or not.

    Its quality comes from cross-validation. names, of, data: see `Calibration`.
    Raises ValueError when there are fewer than 20 poses, or all are right or all are wrong.
    """
    evidence = np.asarray(evidence, np.float64)
    right = np.asarray(right, bool)
    _check_poses(right)
    # Standardised, all evidence is penalised alike.
    mean = evidence.mean(0)
    # Evidence that never varies must not lead to a division by 0.
    deviation = np.maximum(evidence.std(0), 1e-9)
    standard = (evidence - mean) / deviation
    # Every pose gets a confidence from the other folds.
    fold = np.random.default_rng(seed).permutation(len(right)) % folds
    held_out = np.empty(len(right))
    for k in range(folds):
        weights = fit_weights(standard[fold != k], right[fold != k])
        held_out[fold == k] = _logistic(standard[fold == k], weights)
    # The map that is used is fitted to all poses; only its quality comes from the folds.
    return Calibration(
        names=tuple(names),
        mean=_rounded(mean),
        deviation=_rounded(deviation),
        weights=_rounded(fit_weights(standard, right)),
        images=len(right),
        right=float(right.mean()),
        brier=brier_score(held_out, right),
        calibration_error=calibration_error(held_out, right),
        of=of,
        data=data,
    )


def _check_poses(right: NDArray[np.bool_]) -> None:
    count = len(right)
    if count < FEWEST_POSES:
        raise ValueError(
            f"{count} poses are too few to calibrate a confidence, "
            f"at least {FEWEST_POSES} are needed"
        )
    if right.all() or not right.any():
        alike = "right" if right.all() else "wrong"
        raise ValueError(
            f"all of {count} poses are {alike}, so nothing can be learned about the others"
        )


def _rounded(values: NDArray) -> tuple[float, ...]:
    return tuple(np.round(values, 9).tolist())


def brier_score(confidence: ArrayLike, right: ArrayLike) -> float:
    """Mean squared difference between confidence [B] and right [B] (0 or 1).

    0 is perfect, a coin gives 0.25.
    """
    difference = np.asarray(confidence, np.float64) - np.asarray(right, np.float64)
    return float(np.mean(difference**2))


def reliability(
    confidence: ArrayLike, right: ArrayLike, bins: int = BINS
) -> list[tuple[float, float, int]]:
    """(mean confidence, share that is right, poses) of each range of the confidence with poses.

    bins: number of equal ranges.
    """
    confidence = np.asarray(confidence, np.float64)
    right = np.asarray(right, np.float64)
    # A confidence of exactly 1 belongs to the last range.
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for number in range(bins):
        inside = bin_of == number
        if inside.any():
            means = (float(confidence[inside].mean()), float(right[inside].mean()))
            rows.append((*means, int(inside.sum())))
    return rows


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: mean distance between confidence and share that is right.

    Over the bins, weighted by their poses.
    """
    rows = reliability(confidence, right, bins)
    distances = sum(poses * abs(expected - share) for expected, share, poses in rows)
    return distances / sum(poses for _, _, poses in rows)


def calibration_path(checkpoint: Path) -> Path:
    """Where the calibration of a checkpoint lies: beside it."""
    return Path(checkpoint).with_suffix(".confidence.json")


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON, whole or not at all."""
    write_text(path, json.dumps(asdict(calibration), indent=2, sort_keys=True) + "\n")


def load_calibration(path: Path) -> Calibration:
    """Read a calibration; ValueError, naming the file, when it is none."""
    try:
        return _calibration_of(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a calibration of confidences ({error}); make it again with --calibrate"
        ) from None


def _calibration_of(content: dict) -> Calibration:
    values = {field.name: content[field.name] for field in fields(Calibration)}
    for name in ("mean", "deviation", "weights"):
        values[name] = tuple(float(number) for number in values[name])
    values["names"] = tuple(values["names"])
    # A weight for each number of the evidence, and one for the constant.
    evidence = len(values["names"])
    lengths = (len(values["mean"]), len(values["deviation"]), len(values["weights"]) - 1)
    if lengths != (evidence, evidence, evidence):
        raise ValueError("its numbers do not belong together")
    return Calibration(**values)
