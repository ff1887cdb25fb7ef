"""How sure a pose is: from what the solver saw to the probability that the rotation is right.

A logistic map is fitted to poses whose truth is known, and its calibration is checked on others: of the poses with a
confidence of 0.8, 80 in 100 should be right. Right means a rotation error below pi / 6, the paper's coarser threshold.
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
STEPS = 50  # of Newton's method, which needs about 8
BINS = 10  # of the calibration error


@dataclass(frozen=True)
class Calibration:
    """A fitted map from evidence to confidence, and how good it is on images that it was not fitted to.

    names: of the numbers of the evidence. mean, deviation: to standardise them. weights: of the standardised evidence,
    the constant last. of: everything that the evidence depends on, as JSON values. images: poses that it was fitted to
    and checked on, of which the share `right` was right. brier, calibration_error: cross-validated, see `brier_score`
    and `calibration_error`. data: the prepared set, and whether the network was trained on what was used.
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
        return _sigmoid(standard @ np.asarray(self.weights[:-1]) + self.weights[-1])


def _sigmoid(x: NDArray) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.tanh(x / 2)


def fit_weights(standard: NDArray, right: NDArray) -> NDArray[np.float64]:
    """Weights [K + 1] of a logistic regression on standardised evidence [B, K] by Newton's method, the constant last."""
    x = np.column_stack([standard, np.ones(len(standard))])
    penalty = np.diag(
        [PENALTY] * (x.shape[1] - 1) + [1e-3]
    )  # a constant without one diverges where all poses are right
    weights = np.zeros(x.shape[1])
    for _ in range(STEPS):
        share = _sigmoid(x @ weights)
        gradient = x.T @ (share - right) + penalty @ weights
        step = np.linalg.solve((x * (share * (1 - share))[:, None]).T @ x + penalty, gradient)
        weights -= step / max(
            1.0, float(np.abs(step).max()) / 2
        )  # a bounded step never overshoots for good
        if np.abs(step).max() < 1e-9:
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
    """Fit a calibration to evidence [B, K] of poses that are right [B] or not; its quality by cross-validation.

    Raises ValueError when there are fewer than 20 poses, or all are right or all are wrong.
    """
    evidence, right = np.asarray(evidence, np.float64), np.asarray(right, bool)
    if len(right) < 20:
        raise ValueError(
            f"{len(right)} poses are too few to calibrate a confidence, at least 20 are needed"
        )
    if right.all() or not right.any():
        raise ValueError(
            f"all of {len(right)} poses are {'right' if right.all() else 'wrong'}, so nothing can be learned about the others"
        )
    mean, deviation = evidence.mean(0), np.maximum(evidence.std(0), 1e-9)
    standard = (evidence - mean) / deviation
    fold = np.random.default_rng(seed).permutation(len(right)) % folds
    held_out = np.empty(len(right))
    for k in range(folds):
        weights = fit_weights(standard[fold != k], right[fold != k])
        held_out[fold == k] = _sigmoid(standard[fold == k] @ weights[:-1] + weights[-1])
    columns = (
        tuple(np.round(v, 9).tolist()) for v in (mean, deviation, fit_weights(standard, right))
    )
    return Calibration(
        tuple(names),
        *columns,
        len(right),
        float(right.mean()),
        brier_score(held_out, right),
        calibration_error(held_out, right),
        of,
        data,
    )


def brier_score(confidence: ArrayLike, right: ArrayLike) -> float:
    """Mean squared difference between confidence [B] and right [B] (0 or 1): 0 is perfect, a coin gives 0.25."""
    return float(np.mean((np.asarray(confidence, np.float64) - np.asarray(right, np.float64)) ** 2))


def reliability(
    confidence: ArrayLike, right: ArrayLike, bins: int = BINS
) -> list[tuple[float, float, int]]:
    """(mean confidence, share that is right, poses) of each of `bins` equal ranges of the confidence that holds a pose."""
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    of = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        (float(confidence[of == b].mean()), float(right[of == b].mean()), int((of == b).sum()))
        for b in range(bins)
        if (of == b).any()
    ]


def calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: mean distance between confidence and share that is right over the bins, by poses."""
    table = reliability(confidence, right, bins)
    return sum(n * abs(said - was) for said, was, n in table) / sum(n for _, _, n in table)


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON, whole or not at all."""
    write_text(path, json.dumps(asdict(calibration), indent=2, sort_keys=True) + "\n")


def load_calibration(path: Path) -> Calibration:
    """Read a calibration; ValueError, naming the file, when it is none."""
    try:
        content = read_json(path)
        values = {field.name: content[field.name] for field in fields(Calibration)}
        numbers = {
            key: tuple(float(number) for number in values[key])
            for key in ("mean", "deviation", "weights")
        }
        found = Calibration(**values | numbers | {"names": tuple(values["names"])})
        if (
            not len(found.names)
            == len(found.mean)
            == len(found.deviation)
            == len(found.weights) - 1
        ):
            raise ValueError("its numbers do not belong together")
        return found
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a calibration of confidences ({error}); make it again with --calibrate"
        ) from None
