"""The times that the stages have recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neural_mesh.storage.layout import Experiment
from neural_mesh.storage.timings import load_seconds

STAGES = ("train", "extract_features", "solve_poses", "draw_results")  # in the order of the work


class Timing(NamedTuple):
    """The time of a stage for one part of the work. subset: category and level, or share."""

    stage: str
    subset: str
    seconds: float
    items: int
    unit: str
    resumed: bool


def timing_files(experiment: Experiment) -> list[Path]:
    """List the files in which the stages recorded their times, in the order of the work."""
    paths: list[Path] = []
    for stage in STAGES:
        folder = experiment.timing(stage, "x").parent
        paths += sorted(folder.glob(f"{stage}_*.json"))
    return [path for path in paths if load_seconds(path)]


def timings_of(paths: Sequence[Path]) -> list[Timing]:
    """Read recorded times. The file `draw_results_clean` is about stage draw_results of clean."""
    timings = []
    for path in paths:
        # Names of stages also contain underscores.
        stage = next(stage for stage in STAGES if path.stem.startswith(f"{stage}_"))
        subset = path.stem.removeprefix(f"{stage}_")
        noted = load_seconds(path)
        timings.append(
            Timing(stage, subset, noted["seconds"], noted["items"], noted["unit"], noted["resumed"])
        )
    return timings


def duration(seconds: float) -> str:
    """Write seconds as `8.3 s`, `4 min 05 s` or `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
