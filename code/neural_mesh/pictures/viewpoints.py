"""The viewpoints of objects: figures of how annotated and predicted poses are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from neural_mesh.pictures import canvas
from neural_mesh.pictures.colours import BLUE, GREEN, Colour, fractions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes

AZIMUTH_BINS = 32
TILT_BINS = 30
HEADING_STYLE: dict[str, Any] = dict(fontsize=10, pad=9)


class _Poses(NamedTuple):
    """Annotated or predicted poses, and how they are drawn.

    angles [B, 3]: azimuth, elevation and theta in radians. histogram: style of the bars.
    """

    name: str
    angles: NDArray
    colour: Colour
    histogram: dict[str, Any]

    @property
    def azimuth_counts(self) -> NDArray:
        """The number of poses in each bin of the azimuth."""
        edges = np.linspace(0, 2 * math.pi, AZIMUTH_BINS + 1)
        return np.histogram(np.mod(self.angles[:, 0], 2 * math.pi), edges)[0]

    def degrees(self, column: int) -> NDArray[np.float64]:
        """Convert elevation (column 1) or theta (2) [B] to degrees in [-180, 180)."""
        return (np.rad2deg(self.angles[:, column]) + 180) % 360 - 180


def viewpoint_figure(title: str, truth: NDArray, predicted: NDArray) -> Figure:
    """Plot how annotated and predicted poses are distributed.

    truth, predicted [B, 3]: azimuth, elevation and theta in radians. Azimuths are bars on a circle,
    seen from above with the front below; a bar's area grows with its count (reference,
    cal_vp_distribution: 32 bins, radius the square root of the count). Elevation and theta are
    histograms.
    """
    sheet = canvas.new_sheet(12.2, 4.1)
    sheet.figure.text(0.015, 0.97, title, fontsize=12.5, fontweight="bold", va="top")
    filled: dict[str, Any] = dict(histtype="stepfilled", alpha=0.45)
    outlined: dict[str, Any] = dict(histtype="step", lw=1.8)
    kinds = (
        _Poses("annotated", truth, fractions(GREEN), filled),
        _Poses("predicted", predicted, fractions(BLUE), outlined),
    )
    # Azimuths, on two circles of one scale.
    most = max(1, *(kind.azimuth_counts.max() for kind in kinds))
    for k, kind in enumerate(kinds):
        place = (0.035 + 0.245 * k, 0.08, 0.2, 0.66)
        axes = sheet.figure.add_axes(place, projection="polar")
        _plot_azimuths(cast("PolarAxes", axes), kind, math.sqrt(most))
    # The other angles, each in one histogram for both kinds of poses.
    for k, name in enumerate(("elevation", "theta")):
        axes = sheet.figure.add_axes((0.56 + 0.23 * k, 0.17, 0.19, 0.57))
        _plot_tilts(axes, kinds, name, column=1 + k)
        axes.set_ylabel("images" if k == 0 else "", fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    style: dict[str, Any] = dict(frameon=False, fontsize=9.5, loc="upper right", ncols=2)
    sheet.figure.legend(handles, labels, **style)
    return sheet.figure


def _plot_azimuths(axes: PolarAxes, kind: _Poses, top: float) -> None:
    """Plot bars on a circle by the square roots of their counts, which are at most `top`."""
    axes.set_theta_zero_location("S")
    start = np.linspace(0, 2 * math.pi, AZIMUTH_BINS + 1)[:-1]
    # With this radius the area of a bar is proportional to its count.
    radius = np.sqrt(kind.azimuth_counts)
    bars: dict[str, Any] = dict(align="edge", edgecolor="white", lw=0.5, alpha=0.85)
    axes.bar(start, radius, width=2 * math.pi / AZIMUTH_BINS, color=kind.colour, **bars)
    axes.set_ylim(0, top)
    # Two rings, at a quarter and at the whole of the highest count.
    rings = np.array([0.25, 1.0]) * top**2
    ring_labels = [f"{ring:.0f}" for ring in rings]
    axes.set_yticks(np.sqrt(rings), ring_labels, fontsize=8.5, color="0.1")
    axes.set_rlabel_position(157)
    # Eight directions around the object.
    directions = np.arange(0, 360, 45)
    axes.set_xticks(np.deg2rad(directions), [f"{angle}°" for angle in directions], fontsize=8.5)
    axes.tick_params(pad=0)
    axes.grid(color="0.85", lw=0.7)
    axes.set_title(f"azimuth, {kind.name} (images)", **HEADING_STYLE)


def _plot_tilts(axes: Axes, kinds: Sequence[_Poses], name: str, column: int) -> None:
    """Plot overlaid histograms of elevation or theta; outliers are counted in the last bins."""
    # The bins reach as far out as 99 % of the poses, rounded up to tens of degrees.
    degrees = [kind.degrees(column) for kind in kinds]
    extent = np.percentile(np.abs(np.concatenate(degrees)), 99)
    reach = np.clip(np.ceil(extent / 10) * 10, 20, 180)
    edges = np.linspace(-reach, reach, TILT_BINS + 1)
    for kind, values in zip(kinds, degrees, strict=True):
        inside = np.clip(values, -reach, reach)
        axes.hist(inside, edges, color=kind.colour, label=kind.name, **kind.histogram)
    axes.set_xlabel(f"{name} (deg)", fontsize=10)
    axes.set_title(name, **HEADING_STYLE)
    canvas.few_ticks(axes.yaxis, 5, whole_numbers=True)
    axes.tick_params(labelsize=9)
    canvas.hide_frame(axes)
