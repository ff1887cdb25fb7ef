"""Curves of loss landscapes: one image in one set of axes, and a whole set in a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.pictures import canvas
from neural_mesh.pictures.colours import BLUE, GREEN, VERMILLION, Colour, fractions
from neural_mesh.pictures.landscape import Scan

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANDSCAPE_TITLE = "loss, by degrees from the prediction"
# The colour, dashes and width of each curve.
SCAN_STYLES = {
    "azimuth": (BLUE, "-", 1.8),
    "elevation": (VERMILLION, (0, (5, 1.6)), 1.6),
    "theta": (GREEN, (0, (1.4, 1.2)), 1.8),
}
DISTANCE_COLOUR = (60, 60, 60)
PERCENTILES = (10, 50, 90)


def scan_colour(name: str) -> Colour:
    """Look up the colour of the curve along an angle or the distance."""
    colour = SCAN_STYLES[name][0] if name in SCAN_STYLES else DISTANCE_COLOUR
    return fractions(colour)


def plot_landscape(axes: Axes, scans: Sequence[Scan], fontsize: float = 9) -> None:
    """Plot the loss along all three angles in one set of axes, by degrees from the prediction.

    The annotation is marked on each curve.
    """
    axes.axvline(0.0, color="0.55", lw=1.0, zorder=0)
    for scan in scans:
        colour = scan_colour(scan.name)
        _, dashes, line_width = SCAN_STYLES[scan.name]
        offsets = scan.angles - scan.at
        axes.plot(np.rad2deg(offsets), scan.losses, color=colour, ls=dashes, lw=line_width)
        # A white diamond marks the annotation.
        truth = scan.truth - scan.at
        loss_at_truth = np.interp(truth, offsets, scan.losses)
        diamond: dict[str, Any] = dict(color="white", mec=colour, mew=1.5, ms=5, zorder=3)
        axes.plot(np.rad2deg(truth), loss_at_truth, "D", **diamond)
    axes.plot(0.0, scans[0].loss, "o", color="0.1", ms=5, zorder=4)
    axes.set_xlim(-180, 180)
    canvas.ticks_every(axes.xaxis, 90)
    canvas.few_ticks(axes.yaxis, 3)
    axes.tick_params(labelsize=fontsize, length=2.5, pad=2)
    canvas.hide_frame(axes)


def curve_keys() -> list[Artist]:
    """Make the legend keys of the curves of `plot_landscape`."""
    return [
        canvas.line_key(name, color=scan_colour(name), ls=dashes, lw=width)
        for name, (_, dashes, width) in SCAN_STYLES.items()
    ]


def prediction_key() -> Artist:
    """Make the legend key of the dot of `plot_landscape`."""
    return canvas.line_key("prediction", color="0.1", marker="o", ls="", ms=5)


def annotation_key() -> Artist:
    """Make the legend key of the diamonds of `plot_landscape`."""
    look: dict[str, Any] = dict(color="white", mec="0.2", mew=1.5, marker="D", ls="", ms=5)
    return canvas.line_key("annotation", **look)


def set_landscape(title: str, scans: dict[str, tuple[NDArray, NDArray]], around: str) -> Figure:
    """Plot mean and spread of the loss over a set, one panel per entry of `landscape.SET_SCANS`.

    scans: name -> offsets [N] (radians, or CAD units for the distance) and losses [B, N], which may
    be nan. around: the word for the pose that offsets are measured from.
    """
    figure = canvas.new_figure(3.1 * len(scans) + 0.6, 3.7)
    figure.text(0.012, 0.965, title, fontsize=12.5, fontweight="bold", va="top")
    margins = dict(left=0.055, right=0.985, top=0.87, bottom=0.26, wspace=0.17)
    grid = figure.add_gridspec(1, len(scans), **margins)
    # The panels share the scale of the loss.
    panels: list[Axes] = []
    for k, (name, (offsets, losses)) in enumerate(scans.items()):
        axes = figure.add_subplot(grid[k], sharey=panels[0] if panels else None)
        panels.append(axes)
        unit = "CAD units" if name == "distance" else "degrees"
        x = offsets if name == "distance" else np.rad2deg(offsets)
        _plot_spread(axes, x, losses, scan_colour(name))
        axes.set_xlabel(f"{name}, {unit} from the {around}", fontsize=9.5)
        axes.tick_params(labelsize=9, labelleft=k == 0)
    panels[0].set_ylabel("loss", fontsize=10)
    # The legend is grey, since each panel has a colour of its own.
    keys = [
        canvas.line_key("mean over the images", color="0.25", lw=2),
        canvas.line_key("median", color="0.25", ls=":", lw=1.2),
        canvas.patch_key("10th to 90th percentile", facecolor="0.25", alpha=0.18),
    ]
    style: dict[str, Any] = dict(ncols=3, frameon=False, fontsize=9)
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=(0.04, 0.015), **style)
    return figure


def _plot_spread(axes: Axes, x: NDArray, losses: NDArray, colour: Colour) -> None:
    """Plot mean, median and percentiles of losses [B, N] at x [N]."""
    # Points at which no image has a loss are left out.
    finite = np.isfinite(losses).any(0)
    x_finite = x[finite]
    low, middle, high = np.nanpercentile(losses[:, finite], PERCENTILES, axis=0)
    axes.fill_between(x_finite, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(x_finite, np.nanmean(losses[:, finite], 0), color=colour, lw=2)
    axes.plot(x_finite, middle, color=colour, lw=1.2, ls=":")
    axes.axvline(0, color="0.4", lw=0.9)
    axes.set_xlim(x[0], x[-1])
    axes.set_xticks(np.linspace(x[0], x[-1], 5))
    canvas.hide_frame(axes)


def landscape_lines(scans: dict[str, tuple[NDArray, NDArray]]) -> list[list[Any]]:
    """Tabulate `scans` as in `set_landscape`.

    A line has the offset (degrees, or CAD units), and mean, deviation and percentiles of the loss
    over the images.
    """
    header = ["scan", "offset", "images", "mean", "deviation", "p10", "median", "p90"]
    lines: list[list[Any]] = [header]
    for name, (offsets, losses) in scans.items():
        if name != "distance":
            offsets = np.rad2deg(offsets)
        for k, offset in enumerate(offsets):
            finite = losses[np.isfinite(losses[:, k]), k]
            if not len(finite):
                continue
            numbers = [finite.mean(), finite.std(), *np.percentile(finite, PERCENTILES)]
            texts = [f"{number:.6f}" for number in numbers]
            lines.append([name, f"{offset:.3f}", len(finite), *texts])
    return lines
