"""A page of the report with two levels and twelve pictures, without any files."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from neural_mesh.report.cards import Card
from neural_mesh.report.level_report import LevelReport
from neural_mesh.report.page import page
from neural_mesh.report.timings import Timing


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 20), (90, 120, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def a_level(level: str, **changes) -> LevelReport:
    errors = np.random.default_rng(0).exponential(12, 60) % 180
    table = [
        ["Metric", "car", "chair", "Mean", "CatMean"],
        ["Pi/6  ", "90.0", "80.0", "85.0", "85.0"],
        ["Pi/6 paper", "", "", "75.8", ""],
    ]
    made = LevelReport(
        level,
        table,
        ["A note."],
        ["car", "chair"],
        [90.0, 80.0],
        [60.0, 50.0],
        errors,
        errors * 2,
        (85.0, 55.0),
        settings={"solver: solver": "paper"},
    )
    return replace(made, **changes)


def a_card(category: str, level: str, error: float, place: str, name: str = "n1") -> Card:
    return Card(category, level, name, error, place, 1, 30, "1°, 2°, 3°", "1°, 2°, 4°", jpeg())


def a_page(**changes) -> str:
    levels = [a_level(""), a_level("FGL1_BGL1", notes=["PARTIAL: no poses of boat."])]
    cards = [
        a_card(c, level, error + 0.5 * (c == "car"), place)
        for c in ("car", "chair")
        for level in ("", "FGL1_BGL1")
        for place, error in (("best", 1.0), ("median", 8.0), ("worst", 90.0))
    ]
    timings = [
        Timing("solve_poses", "car", 75.0, 143, "images", False),
        Timing("draw_results", "clean", 3.25, 6, "pictures", True),
    ]
    content = {
        "title": "NeMo",
        "levels": levels,
        "cards": cards,
        "timings": timings,
        "left_out": [],
        "mark": "abc",
    }
    return page(**content | changes)
