"""The table: when the published numbers stand beside it, and what a reader is told."""

from __future__ import annotations

import numpy as np

from neural_mesh.categories import CATEGORIES
from neural_mesh.published import FULL_TEST_IMAGES, PUBLISHED_MEANS
from neural_mesh.report import tables as report

CONFIG = {
    "solve": {"solver": "paper"},
    "mesh_d": "single",
    "backbone": "resnetext",
    "recipe": "paper",
    "image_scale": 1.0,
    "renderer": "numba",
}


def rows(level: str = "", missing: int = 0) -> list[report.Row]:
    total, names = FULL_TEST_IMAGES[level], list(CATEGORIES)
    sizes = [total // 12] * 11 + [total - 11 * (total // 12)]
    return [
        report.Row(c, ["x"] * n, np.full(n, 0.1), 0, missing, CONFIG)
        for c, n in zip(names, sizes, strict=True)
    ]


def test_only_the_full_test_set_is_compared_with_the_published_table():
    assert report.is_full_test_set(rows(), "") and report.is_full_test_set(
        rows("FGL3_BGL3"), "FGL3_BGL3"
    )
    assert not report.is_full_test_set(rows()[:-1], "") and not report.is_full_test_set(
        rows(), "FGL1_BGL1"
    )


def test_published_rows_fit_the_table():
    lines = report.table_rows(rows())
    for mesh_d in ("single", "multi"):
        for level in PUBLISHED_MEANS[mesh_d]:
            published = report.published_rows(mesh_d, level)
            assert published and all(len(line) == len(lines[0]) for line in published)
    assert report.published_rows("single", "")[0][-2] == "85.5"
    assert report.published_rows("single", "")[3][-2] == "85.0"
    assert report.published_rows("multi", "FGL1_BGL1")[1][-2] == "49.9"


def test_notes_say_what_is_missing():
    notes = " ".join(report.notes_of(rows(missing=2)[:2], ["boat"], ""))
    assert (
        "PARTIAL: no poses of boat" in notes
        and "PARTIAL: 4 test images without a pose" in notes
        and "Not the full test set" in notes
    )
