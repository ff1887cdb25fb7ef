"""The table: when the published numbers stand beside it, and what a reader is told."""

from __future__ import annotations

import numpy as np

from neural_mesh.categories import CATEGORIES
from neural_mesh.geometry.cameras import Pose
from neural_mesh.published import FULL_TEST_IMAGES, PUBLISHED_MEANS
from neural_mesh.report.scores import CategoryScore, LevelScore
from neural_mesh.report.tables import is_full_test_set, notes_of, published_lines, table_lines
from neural_mesh.settings import ALL_AZIMUTHS
from neural_mesh.storage.results import PoseSet

CONFIG = {
    "solve": {"solver": "paper"},
    "mesh_d": "single",
    "backbone": "resnetext",
    "recipe": "paper",
    "image_scale": 1.0,
    "renderer": "numba",
}


def category_score(category: str, images: int, missing: tuple[str, ...] = ()) -> CategoryScore:
    zeros = np.zeros(images)
    ones = np.ones(images, int)
    pose = Pose(zeros, zeros, zeros, zeros + 5)
    poses = PoseSet(category, "", np.full(images, "x"), pose, zeros, ones, ones, CONFIG)
    return CategoryScore(category, poses, np.zeros((images, 3)), np.full(images, 0.1), missing)


def full_score(images_of: str = "", level: str = "") -> LevelScore:
    """All categories at a level, with as many images as another level's full test set."""
    total = FULL_TEST_IMAGES[images_of]
    sizes = [total // 12] * 11 + [total - 11 * (total // 12)]
    scores = [category_score(name, size) for name, size in zip(CATEGORIES, sizes, strict=True)]
    return LevelScore(level, "single", ALL_AZIMUTHS, scores, [])


def test_only_the_full_test_set_is_compared_with_the_published_table():
    assert is_full_test_set(full_score())
    assert is_full_test_set(full_score("FGL3_BGL3", "FGL3_BGL3"))
    eleven = LevelScore("", "single", ALL_AZIMUTHS, full_score().categories[:-1], [])
    assert not is_full_test_set(eleven)
    assert not is_full_test_set(full_score("", "FGL1_BGL1"))


def test_published_lines_fit_the_table():
    lines = table_lines(full_score().categories)
    for mesh_d in ("single", "multi"):
        for level in PUBLISHED_MEANS[mesh_d]:
            published = published_lines(mesh_d, level)
            assert published
            assert all(len(line) == len(lines[0]) for line in published)
    assert published_lines("single", "")[0][-2] == "85.5"
    assert published_lines("single", "")[3][-2] == "85.0"
    assert published_lines("multi", "FGL1_BGL1")[1][-2] == "49.9"


def test_notes_say_what_is_missing():
    scores = [category_score(name, 5, missing=("a", "b")) for name in ("aeroplane", "bicycle")]
    notes = " ".join(notes_of(LevelScore("", "single", ALL_AZIMUTHS, scores, ["boat"])))
    assert "PARTIAL: no poses of boat" in notes
    assert "PARTIAL: 4 test images without a pose" in notes
    assert "(listed in missing.csv: aeroplane a, aeroplane b, bicycle a, bicycle b)." in notes
    assert "Not the full test set" in notes
