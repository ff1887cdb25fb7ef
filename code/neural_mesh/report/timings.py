"""How long the stages took, as they noted it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neural_mesh.storage.layout import Experiment
from neural_mesh.storage.timings import load_seconds

STAGES = ("train", "extract_features", "solve_poses", "draw_results")  # in the order of the work


class Timing(NamedTuple):
    """How long a stage took for a part of the work."""

    stage: str
    subset: str
    seconds: float
    items: int
    unit: str
    resumed: bool


def timing_files(experiment: Experiment) -> list[Path]:
    """What the stages noted of their time, in the order of the work."""
    paths: list[Path] = []
    for stage in STAGES:
        folder = experiment.timing(stage, "x").parent
        paths += sorted(folder.glob(f"{stage}_*.json"))
    return [path for path in paths if load_seconds(path)]


def timings_of(paths: Sequence[Path]) -> list[Timing]:
    """The noted times. `draw_results_clean` is stage draw_results of clean."""
    timings = []
    for path in paths:
        # Names of stages contain underscores, too.
        stage = next(stage for stage in STAGES if path.stem.startswith(f"{stage}_"))
        subset = path.stem.removeprefix(f"{stage}_")
        noted = load_seconds(path)
        timings.append(
            Timing(stage, subset, noted["seconds"], noted["items"], noted["unit"], noted["resumed"])
        )
    return timings


def duration(seconds: float) -> str:
    """`8.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
