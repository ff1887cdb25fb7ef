"""A table does not mix what was prepared differently."""

from __future__ import annotations

import numpy as np

from neural_mesh.geometry.cameras import Pose
from neural_mesh.storage.layout import Experiment, PreparedSet
from neural_mesh.storage.results import PoseSet, save_poses

LEVEL = "FGL1_BGL1"
SETTINGS = {
    "solve": {"solver": "paper"},
    "mesh_d": "single",
    "backbone": "b",
    "recipe": "r",
    "image_scale": 1.0,
    "renderer": "numba",
}


def write_poses(experiment: Experiment, tested: PreparedSet, category: str) -> None:
    """Poses of every image of a set, all zero."""
    subset = category + LEVEL
    names = np.array(sorted(tested.image_names("single", subset)))
    zeros, ones = np.zeros(len(names)), np.ones(len(names), int)
    pose = Pose(zeros, zeros, zeros, zeros)
    settings = SETTINGS | {"category": category, "data": tested.fingerprint(subset)}
    poses = PoseSet(category, LEVEL, names, pose, zeros, ones, ones, settings)
    save_poses(experiment.poses(category, LEVEL), poses)


def test_a_table_refuses_categories_that_were_prepared_differently(sample_raw, code, tmp_path):
    """Here: occluded by two runs of make_occluded.py with different seeds into one set."""
    raw, occluded = sample_raw / "PASCAL3D+_release1.1", tmp_path / "raw occluded"
    clean, tested = PreparedSet(tmp_path / "clean"), PreparedSet(tmp_path / "tested")
    both = ("--categories", "car chair")
    for category, seed in (("car", 0), ("chair", 1)):
        options = ("--levels", LEVEL, "--seed", seed, "--workers", 1, "--categories", category)
        code("make_occluded", "--raw", raw, "--out", occluded, *options)
    prepare = ("prepare_images", "--raw", raw, "--split", "val", "--workers", 1, *both)
    code(*prepare, "--out", clean.root)
    code(*prepare, "--out", tested.root, "--occluded", occluded, "--level", LEVEL)
    experiment = Experiment(tmp_path / "exp", "single")
    for category in ("car", "chair"):
        write_poses(experiment, tested, category)

    score = ("report_accuracy", "--exp", experiment.root, "--clean", clean.root)
    score += ("--prepared", tested.root, "--level", LEVEL)
    for category in ("car", "chair"):
        assert "table of" in code(*score, "--categories", category).stdout
    done = code(*score, *both, check=False)
    sentence = (
        "error: the images of car and chair were prepared with different occluded.seed "
        "(see SOURCE.json of each), which a table does not"
    )
    assert done.returncode == 1
    assert done.stderr.startswith(sentence), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr

    tested.source(f"chair{LEVEL}").write_text("[")
    done = code(*score, "--categories", "chair", check=False)
    assert done.returncode == 1
    assert "poses of other data" in done.stderr, done.stderr
