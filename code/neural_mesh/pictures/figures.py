"""The figure of one solved image: its pictures in a row, and the loss around its pose below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.pictures import canvas
from neural_mesh.pictures.colours import BLUE, GREEN, fractions
from neural_mesh.pictures.landscape import Scan
from neural_mesh.pictures.occluder_map import LABEL_COLOURS, LABEL_NAMES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OCCLUDER_TITLE = "occluder map"


class Panel(NamedTuple):
    """An image [H, W, 3] under a small title."""

    title: str
    image: NDArray[np.uint8]


def show_panel(axes: Axes, panel: Panel) -> None:
    """Fill axes with a panel's image, and write its title above."""
    axes.imshow(panel.image)
    axes.set_title(panel.title, fontsize=10.5, pad=4)
    axes.set_axis_off()


def label_keys() -> list[Artist]:
    """Make the legend keys of an occluder map."""
    # The pale background needs a pale border, and occluded cells are hatched as in the map.
    border = dict(zip(LABEL_NAMES, ("0.2", "0.2", "0.75"), strict=True))
    keys = []
    for name, colour in zip(LABEL_NAMES, LABEL_COLOURS, strict=True):
        hatch = "////" if name == "occluded" else ""
        face = fractions(colour)
        key = canvas.patch_key(name, facecolor=face, edgecolor=border[name], hatch=hatch)
        keys.append(key)
    return keys


@dataclass(frozen=True)
class ResultTexts:
    """The texts above the panels, of up to two lines each.

    heading, details: at the top left. remark: at the top right.
    """

    heading: str
    details: str
    remark: str


def result_figure(
    texts: ResultTexts, panels: Sequence[Panel], scans: Sequence[Scan], loss_at_truth: float
) -> Figure:
    """Draw three panels in a row, the scans of the loss below them, and legends in between.

    loss_at_truth: loss in the annotated rotation at the predicted distance, which every scan shows
    as a level.
    """
    # Sizes are in inches; `height` is that of a panel.
    image_height, image_width = panels[0].image.shape[:2]
    height = min(4.6 * image_height / image_width, 4.2)
    slot = max(height * image_width / image_height, 3.4)
    sheet = canvas.new_sheet(3 * slot + 1.1, height + 3.6)
    sheet.heading(texts.heading, 0.3, 0.16, fontsize=14, fontweight="bold")
    sheet.heading(texts.details, 0.3, 0.46, fontsize=10.5, color="0.25")
    remark_style: dict[str, Any] = dict(fontsize=9.5, va="top", ha="right", color="0.45")
    right = 1 - 0.25 / sheet.width
    sheet.figure.text(right, 1 - 0.46 / sheet.height, texts.remark, **remark_style)

    # Panels above.
    columns = dict(left=0.75 / sheet.width, right=right, wspace=0.06)
    upper = dict(top=1 - 1.1 / sheet.height, bottom=1 - (1.1 + height) / sheet.height)
    grid = sheet.figure.add_gridspec(1, 3, **columns, **upper)
    for i, panel in enumerate(panels):
        show_panel(sheet.figure.add_subplot(grid[i]), panel)

    # Scans below, which share the scale of the loss, and legends in between.
    lower = dict(top=1.85 / sheet.height, bottom=0.62 / sheet.height)
    grid = sheet.figure.add_gridspec(1, 3, **columns, **lower)
    scan_axes: list[Axes] = []
    for i, scan in enumerate(scans):
        shared = scan_axes[-1] if scan_axes else None
        axes = sheet.figure.add_subplot(grid[i], sharey=shared)
        _plot_scan(axes, scan, loss_at_truth, leftmost=i == 0)
        scan_axes.append(axes)
    style: dict[str, Any] = dict(fontsize=9.5, columnspacing=1.4)
    keys, _ = scan_axes[-1].get_legend_handles_labels()
    sheet.left_legend(keys, 0.45, 2.0, **style)
    sheet.right_legend(label_keys(), 0.2, 2.0, **style)
    return sheet.figure


def _plot_scan(axes: Axes, scan: Scan, loss_at_truth: float, leftmost: bool) -> None:
    """Plot the loss along one angle, with the prediction and the annotation marked."""
    # The prediction is blue, the annotation green.
    blue = fractions(BLUE)
    green = fractions(GREEN)
    at = np.rad2deg(scan.at)
    axes.plot(np.rad2deg(scan.angles), scan.losses, color="0.25", lw=1.6)
    axes.axvline(at, color=blue, lw=1.4)
    axes.plot(at, scan.loss, "o", color=blue, ms=6, label="prediction")
    axes.axvline(np.rad2deg(scan.truth), color=green, lw=1.6, ls="--", label="annotation")
    axes.axhline(loss_at_truth, color=green, lw=1.1, ls=":", label="loss in the annotated rotation")

    # Losses are written beside the leftmost scan alone; the azimuth may pass a full turn.
    axes.set_xlabel(f"{scan.name} (deg)", fontsize=10)
    axes.set_xlim(*np.rad2deg(scan.angles[[0, -1]]))
    canvas.ticks_every(axes.xaxis, 60 if np.ptp(scan.angles) > math.pi else 20)
    if scan.name == "azimuth":
        canvas.ticks_within_a_turn(axes.xaxis)
    canvas.few_ticks(axes.yaxis, 4)
    axes.tick_params(labelsize=9, labelleft=leftmost)
    if leftmost:
        axes.set_ylabel("loss", fontsize=10)
    canvas.hide_frame(axes)
