"""The content of the report page for one occlusion level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.pose_error import image_weighted_mean
from neural_mesh.published import PUBLISHED_MEANS
from neural_mesh.report.scores import CategoryScore, LevelScore, check_same_settings
from neural_mesh.report.tables import is_full_test_set, notes_of, published_lines, table_lines

SETTINGS_SHOWN = ("mesh_d", "backbone", "image_scale", "recipe", "renderer")


@dataclass(frozen=True)
class LevelReport:
    """One occlusion level on the page.

    table: header and lines. notes: those that begin with PARTIAL or MIXED are put on top of the
    page. categories, within_pi6, within_pi18: names, and accuracies in %, one per category. errors,
    azimuths [B]: degrees, one per image. mean: image-weighted accuracies (pi/6, pi/18). published:
    those of the paper, if the test set is the full one.
    """

    level: str
    table: list[list[str]]
    notes: list[str]
    categories: list[str]
    within_pi6: list[float]
    within_pi18: list[float]
    errors: NDArray
    azimuths: NDArray
    mean: tuple[float, float]
    published: tuple[float, float] | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.level or "unoccluded"

    @property
    def alarms(self) -> list[str]:
        """The notes that are put on top of the page."""
        return [note for note in self.notes if note.startswith(("PARTIAL", "MIXED"))]


def report_of(score: LevelScore) -> LevelReport:
    """Collect the content of the page for a level."""
    scores = score.categories
    accuracies = score.accuracies
    notes = notes_of(score)
    # The page shows mixed settings, which a table refuses, with an alarm.
    try:
        check_same_settings(scores)
    except ValueError as error:
        notes.insert(0, f"MIXED: {error}")
    # Published numbers are shown if they are about the same images.
    lines = table_lines(scores)
    published = None
    if is_full_test_set(score):
        lines += published_lines(score.mesh_d, score.level, score.azimuths)
        # The chart of levels does not show the protocol of azimuths.
        if not score.azimuths.pattern:
            published = PUBLISHED_MEANS[score.mesh_d].get(score.level)
    errors = np.concatenate([category.errors for category in scores])
    azimuths = np.concatenate([category.truth[:, 0] for category in scores])
    return LevelReport(
        level=score.level,
        table=lines,
        notes=notes,
        categories=[category.category for category in scores],
        within_pi6=[accuracy.within_pi6 for accuracy in accuracies],
        within_pi18=[accuracy.within_pi18 for accuracy in accuracies],
        errors=np.rad2deg(errors),
        azimuths=np.rad2deg(azimuths),
        mean=(
            image_weighted_mean(accuracies, "pi/6"),
            image_weighted_mean(accuracies, "pi/18"),
        ),
        published=published,
        settings=settings_of(scores),
    )


def settings_of(scores: Sequence[CategoryScore]) -> dict[str, str]:
    """Collect the settings of the first category, and the checkpoint of every category."""
    # If other categories have different settings, a note says MIXED.
    config = scores[0].config
    settings = {key: config[key] for key in SETTINGS_SHOWN if key in config}
    settings |= {f"solver: {key}": value for key, value in config["solve"].items()}
    for score in scores:
        settings[f"checkpoint of {score.category}"] = score.config["checkpoint"]
    return {key: str(value) for key, value in settings.items()}
