"""Comparison of two runs on the same images: their errors, and the images that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.pictures import canvas
from neural_mesh.pictures.colours import BLUE, VERMILLION, fractions
from neural_mesh.pictures.contact_sheet import Strip
from neural_mesh.pictures.figures import Panel
from neural_mesh.pictures.pose_files import pose_over_image
from neural_mesh.pictures.solved import SolvedSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERROR_TICKS = (0.5, 1, 2, 5, 10, 30, 90, 180)  # degrees


def comparison_figure(
    title: str, errors: NDArray, others: NDArray, names: tuple[str, str]
) -> Figure:
    """Plot the errors of two runs on the same images against each other, on logarithmic axes.

    Below the diagonal the first run is better. errors, others [B]: errors in radians of the first
    and of the second run. names: names of the two runs.
    """
    sheet = canvas.new_sheet(5.6, 5.5)
    sheet.figure.text(0.02, 0.98, title, fontsize=11.5, fontweight="bold", va="top", wrap=True)
    axes = sheet.figure.add_axes((0.125, 0.11, 0.85, 0.78))
    # Errors below half a degree are drawn on the edge, since a logarithmic axis has no zero.
    y = np.clip(np.rad2deg(errors), 0.5, 180)
    x = np.clip(np.rad2deg(others), 0.5, 180)
    # Each side of the diagonal has its colour and its marker.
    first_better = y < x
    sides = ((first_better, BLUE, names[0], "o"), (~first_better, VERMILLION, names[1], "^"))
    for chosen, colour, name, marker in sides:
        look: dict[str, Any] = dict(s=16, color=fractions(colour), alpha=0.7, lw=0, marker=marker)
        label = f"better in {name} ({chosen.sum():,})"
        axes.scatter(x[chosen], y[chosen], label=label, **look)
    axes.plot((0.5, 180), (0.5, 180), color="0.4", lw=1)
    _scale_axes(axes, names)
    frame: dict[str, Any] = dict(frameon=True, framealpha=0.9, edgecolor="none")
    axes.legend(fontsize=9, loc="upper left", **frame)
    return sheet.figure


def _scale_axes(axes: Axes, names: tuple[str, str]) -> None:
    """Make both axes logarithmic, in degrees, with lines at the thresholds of the metrics."""
    axes.xaxis.set_label_text(f"error in {names[1]} (deg)", fontsize=10)
    axes.yaxis.set_label_text(f"error in {names[0]} (deg)", fontsize=10)
    axes.set_xscale("log")
    axes.set_yscale("log")
    canvas.only_ticks_at(axes.xaxis, ERROR_TICKS)
    canvas.only_ticks_at(axes.yaxis, ERROR_TICKS)
    for threshold in (10, 30):
        axes.axvline(threshold, color="0.8", lw=0.9, ls="--", zorder=0)
        axes.axhline(threshold, color="0.8", lw=0.9, ls="--", zorder=0)
    axes.set_xlim(0.45, 200)
    axes.set_ylim(0.45, 200)
    axes.tick_params(labelsize=9)
    canvas.hide_frame(axes)


# ---- two runs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparedRuns:
    """Two runs on those images of a category that both have solved.

    first, second: indices of these images among the poses of `run` and of `other`, in the same
    order.
    """

    run: SolvedSet
    other: SolvedSet
    first: list[int]
    second: list[int]

    @classmethod
    def of(cls, run: SolvedSet, other: SolvedSet) -> ComparedRuns:
        """Pair the images of two runs by their names."""
        place = {name: k for k, name in enumerate(other.poses.names.tolist())}
        names = run.poses.names.tolist()
        first = [k for k, name in enumerate(names) if name in place]
        return cls(run, other, first, [place[names[k]] for k in first])

    @property
    def names(self) -> list[str]:
        """The names of the images."""
        return self.run.poses.names[self.first].tolist()

    @property
    def errors(self) -> NDArray:
        """The errors [B] of the first run, in radians."""
        return self.run.errors[self.first]

    @property
    def other_errors(self) -> NDArray:
        """The errors [B] of the other run, in radians."""
        return self.other.errors[self.second]

    def most_changed(self, number: int) -> list[int]:
        """Choose the images that changed most, up to half of `number` in either direction.

        Returns their indices among the paired images, the most improved one first.
        """
        # A negative change is an improvement.
        change = self.errors - self.other_errors
        run_finite = np.isin(self.first, self.run.finite)
        other_finite = np.isin(self.second, self.other.finite)
        drawable = run_finite & other_finite
        order = [k for k in np.argsort(change, kind="stable").tolist() if drawable[k]]
        half = max(1, number // 2)
        better = [k for k in order if change[k] < 0]
        worse = [k for k in order if change[k] > 0]
        return better[:half] + worse[-half:]

    def strip(self, k: int, names: tuple[str, str]) -> Strip:
        """Draw paired image k in the poses of both runs. names: names of the two runs."""
        crop, overlay = pose_over_image(self.run, self.first[k])
        _, other_overlay = pose_over_image(self.other, self.second[k])
        now = np.rad2deg(self.errors[k])
        before = np.rad2deg(self.other_errors[k])
        word = "better" if now < before else "worse"
        change = f"{word} by {abs(now - before):.1f}°"
        caption = f"{self.run.poses.category}  {self.names[k]}    {change}"
        details = f"{names[1]}: error {before:.1f}°    {names[0]}: error {now:.1f}°"
        panels = [Panel("input", crop), Panel(names[1], other_overlay), Panel(names[0], overlay)]
        return Strip(caption, details, panels)


def run_names(first: Path, second: Path) -> tuple[str, str]:
    """Name two folders of results so that the names differ."""
    first = first.resolve()
    second = second.resolve()
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"


def comparison_lines(pairs: Sequence[ComparedRuns]) -> list[list[object]]:
    """Tabulate every image with both errors in degrees, the most improved one first."""
    changes = []
    for pair in pairs:
        category = pair.run.poses.category
        errors_deg = zip(np.rad2deg(pair.errors), np.rad2deg(pair.other_errors), strict=True)
        for name, (now, before) in zip(pair.names, errors_deg, strict=True):
            changes.append((now - before, category, name, now, before))
    # Sorting puts the improvements first, since they are the lowest changes.
    lines: list[list[object]] = [["category", "name", "error_deg", "other_error_deg", "change_deg"]]
    for change, category, name, now, before in sorted(changes):
        lines.append([category, name, f"{now:.3f}", f"{before:.3f}", f"{change:.3f}"])
    return lines
