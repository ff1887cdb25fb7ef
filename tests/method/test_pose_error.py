"""Ground truth submitted as prediction scores 100; NaN is wrong; means are the published ones."""

from __future__ import annotations

import numpy as np
import pytest

from neural_mesh.geometry.pose_error import (
    accuracy,
    category_mean,
    constant_pose_baseline,
    image_weighted_mean,
    pose_errors,
    random_pose_baseline,
)


def poses(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform([0, -1, -0.5], [6.28, 1.2, 0.5], (n, 3))


def test_ground_truth_scores_100_100_0():
    result = accuracy(pose_errors(poses(50), poses(50)))
    assert (result.within_pi6, result.within_pi18) == (100.0, 100.0)
    assert result.median_deg == pytest.approx(0, abs=1e-6)


def test_an_azimuth_off_by_ten_degrees_is_an_error_of_ten_degrees_on_the_ground():
    truth = np.array([[1.0, 0.0, 0.0]])
    assert np.rad2deg(pose_errors(truth + [np.deg2rad(10), 0, 0], truth))[0] == pytest.approx(10)


def test_poses_that_are_not_finite_count_as_wrong():
    predicted = poses(4)
    predicted[1, 0] = np.nan
    predicted[2, 2] = np.inf
    errors = pose_errors(predicted, poses(4))
    assert errors[1] == errors[2] == np.pi
    assert accuracy(errors).within_pi6 == 50.0


def test_thresholds_are_strict():
    assert accuracy([np.pi / 6]).within_pi6 == 0.0
    assert accuracy([np.pi / 6 - 1e-9]).within_pi6 == 100.0


def test_means():
    one = accuracy([0.0])
    three = accuracy([np.pi] * 3)
    assert image_weighted_mean([one, three], "pi/6") == 25.0
    assert category_mean([one, three], "pi/6") == 50.0


def test_baselines_on_a_training_set_of_one_direction():
    ahead, aside = [0.0, 0.0, 0.0], [2.0, 0.0, 0.0]
    train = np.array([ahead, ahead, ahead, aside])
    test = np.array([ahead, aside])
    assert constant_pose_baseline(train, test).within_pi6 == 50.0
    assert random_pose_baseline(train, test).within_pi6 == pytest.approx(100 * (0.75 + 0.25) / 2)


def test_no_errors_is_an_error():
    with pytest.raises(ValueError, match="no errors"):
        accuracy([])
