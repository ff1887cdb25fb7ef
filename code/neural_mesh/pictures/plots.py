"""Figures: pictures, loss landscapes and charts arranged for print. The only module that imports matplotlib, inside
functions and without its global state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.pictures.drawing import BLUE, GREEN, LABEL_COLOURS, LABEL_NAMES, VERMILLION, Scan
from neural_mesh.storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 140
CAPTION = 0.36  # inches above a row of a contact sheet
SCAN_STYLES = {
    "azimuth": (BLUE, "-", 1.8),
    "elevation": (VERMILLION, (0, (5, 1.6)), 1.6),
    "theta": (GREEN, (0, (1.4, 1.2)), 1.8),
}
OCCLUDER_TITLE = "occluder map"
LANDSCAPE_TITLE = "loss, by degrees from the prediction"


class Panel(NamedTuple):
    """An image [H, W, 3] with a small title."""

    title: str
    image: NDArray[np.uint8]


def result_figure(
    heading: str,
    details: str,
    remark: str,
    panels: Sequence[Panel],
    scans: Sequence[Scan],
    loss_at_truth: float,
) -> Figure:
    """The figure of one image: panels in a row, scans of the loss below, legends; heading and details on top left, a
    remark on top right (texts of up to two lines).

    loss_at_truth: loss in the annotated angles at the predicted distance, drawn as a level in every scan.
    """
    from matplotlib.figure import Figure

    shape_hw = panels[0].image.shape
    height = min(4.6 * shape_hw[0] / shape_hw[1], 4.2)  # of a panel, in inches
    slot = max(height * shape_hw[1] / shape_hw[0], 3.4)
    width, total = 3 * slot + 1.1, height + 3.6
    figure = Figure((width, total), dpi=DPI)
    figure.text(0.3 / width, 1 - 0.16 / total, heading, fontsize=14, fontweight="bold", va="top")
    figure.text(0.3 / width, 1 - 0.46 / total, details, fontsize=10.5, va="top", color="0.25")
    figure.text(
        1 - 0.25 / width, 1 - 0.46 / total, remark, fontsize=9.5, va="top", ha="right", color="0.45"
    )
    sides = dict(left=0.75 / width, right=1 - 0.25 / width)
    top = figure.add_gridspec(
        1, 3, **sides, top=1 - 1.1 / total, bottom=1 - (1.1 + height) / total, wspace=0.06
    )
    for i, panel in enumerate(panels):
        _show(figure.add_subplot(top[i]), panel)
    below = figure.add_gridspec(1, 3, **sides, top=1.85 / total, bottom=0.62 / total, wspace=0.06)
    first = None
    for i, scan in enumerate(scans):
        first = _plot_scan(figure.add_subplot(below[i], sharey=first), scan, loss_at_truth)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.45 / width, 2.0 / total),
        ncols=4,
        frameon=False,
        fontsize=9.5,
        borderaxespad=0,
        columnspacing=1.4,
    )
    figure.legend(
        handles=label_patches(),
        loc="lower right",
        bbox_to_anchor=(1 - 0.2 / width, 2.0 / total),
        ncols=3,
        frameon=False,
        fontsize=9.5,
        borderaxespad=0,
        columnspacing=1.4,
    )
    return figure


class Row(NamedTuple):
    """A line of a contact sheet: a caption, details in small print, the panels of one image, its figure's file, and the
    scans of its loss, which become one more panel."""

    caption: str
    details: str
    panels: Sequence[Panel]
    file_name: str = ""
    scans: Sequence[Scan] = ()


def contact_sheet(rows: Sequence[Row], title: str, slot: float = 2.9) -> Figure:
    """One line of panels per image under its caption; more than six images go into two, more than 24 into three blocks.

    The titles of the first image's panels head the columns. slot: width of a panel in inches.
    """
    from matplotlib.figure import Figure

    stacks = _stack_rows(rows, 1 if len(rows) <= 6 else 2 if len(rows) <= 24 else 3, slot)
    block_width = _slots(rows[0]) * slot + 0.3
    width = len(stacks) * block_width + 0.2
    with_labels = any(panel.title == OCCLUDER_TITLE for panel in rows[0].panels)
    legend = 0.4 if with_labels or rows[0].scans else 0.1  # inches below the rows
    total = (
        max(sum(_height(row, slot) + CAPTION for row in stack) for stack in stacks) + 0.7 + legend
    )
    figure = Figure((width, total), dpi=DPI)
    figure.text(0.25 / width, 1 - 0.16 / total, title, fontsize=13, fontweight="bold", va="top")
    if with_labels:
        figure.legend(
            handles=label_patches(),
            loc="lower left",
            bbox_to_anchor=(0.25 / width, 0.12 / total),
            ncols=3,
            frameon=False,
            fontsize=9.5,
            borderaxespad=0,
            borderpad=0,
        )
    if rows[0].scans:
        figure.legend(
            handles=landscape_handles(),
            loc="lower right",
            bbox_to_anchor=(1 - 0.25 / width, 0.12 / total),
            ncols=5,
            frameon=False,
            fontsize=9.5,
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.3,
        )
    for block, stack in enumerate(stacks):
        left, top = 0.25 + block * block_width, total - 0.72
        for k, row in enumerate(stack):
            _show_row(figure, row, (left, top), slot, with_titles=k == 0)
            top -= _height(row, slot) + CAPTION
    return figure


def _stack_rows(rows: Sequence[Row], blocks: int, slot: float) -> list[list[Row]]:
    """Rows in order, divided into blocks of about the same height."""
    heights = np.array([_height(row, slot) + CAPTION for row in rows])
    middles = np.cumsum(heights) - heights / 2
    block_of = (middles / heights.sum() * blocks).astype(int)
    return [[rows[k] for k in np.flatnonzero(block_of == b)] for b in sorted(set(block_of))]


def _show_row(
    figure: Figure, row: Row, left_top: tuple[float, float], slot: float, with_titles: bool
) -> None:
    """Put a row into a figure, its top left corner and the width of its slots in inches."""
    (width, total), (left, top), height = figure.get_size_inches(), left_top, _height(row, slot)
    right, gap = left + _slots(row) * slot - 0.06, 0.06
    figure.text(left / width, (top - 0.22) / total, row.caption, fontsize=9.5, fontweight="bold")
    figure.text(
        right / width, (top - 0.22) / total, row.details, fontsize=8.5, color="0.3", ha="right"
    )
    for i, panel in enumerate(row.panels):
        x = left + i * slot
        axes = figure.add_axes(
            (x / width, (top - 0.27 - height) / total, (slot - gap) / width, height / total)
        )
        _show(axes, Panel("", panel.image))
        if with_titles:
            middle = (x + (slot - gap) / 2) / width
            figure.text(
                middle, (top + 0.03) / total, panel.title, fontsize=10, ha="center", color="0.3"
            )
    if row.scans:
        x, below = left + len(row.panels) * slot + 0.4, 0.2  # inches for the tick labels
        axes = figure.add_axes(
            (
                x / width,
                (top - 0.27 - height + below) / total,
                (slot - 0.46) / width,
                (height - below) / total,
            )
        )
        plot_landscape(axes, row.scans, fontsize=7)
        if with_titles:
            figure.text(
                (x + (slot - 0.46) / 2) / width,
                (top + 0.03) / total,
                LANDSCAPE_TITLE,
                fontsize=10,
                ha="center",
                color="0.3",
            )


def _slots(row: Row) -> int:
    return len(row.panels) + bool(row.scans)


def plot_landscape(axes: Axes, scans: Sequence[Scan], fontsize: float = 9) -> None:
    """The loss along all three angles in one set of axes, by degrees from the prediction; the annotation is marked on
    each curve."""
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    axes.axvline(0.0, color="0.55", lw=1.0, zorder=0)
    for scan in scans:
        colour, dashes, line_width = SCAN_STYLES[scan.name]
        colour = np.array(colour) / 255
        offsets = scan.angles - scan.at
        axes.plot(np.rad2deg(offsets), scan.losses, color=colour, ls=dashes, lw=line_width)
        truth = scan.truth - scan.at
        axes.plot(
            np.rad2deg(truth),
            np.interp(truth, offsets, scan.losses),
            "D",
            color="white",
            mec=colour,
            mew=1.5,
            ms=5,
            zorder=3,
        )
    axes.plot(0.0, scans[0].loss, "o", color="0.1", ms=5, zorder=4)
    axes.set_xlim(-180, 180)
    axes.xaxis.set_major_locator(MultipleLocator(90))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=fontsize, length=2.5, pad=2)
    axes.spines[["top", "right"]].set_visible(False)


def landscape_handles() -> list:
    """Legend entries of `plot_landscape`."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=np.array(c) / 255, ls=dashes, lw=w, label=name)
        for name, (c, dashes, w) in SCAN_STYLES.items()
    ]
    prediction = Line2D([], [], color="0.1", marker="o", ls="", ms=5, label="prediction")
    truth = Line2D(
        [], [], color="white", mec="0.2", mew=1.5, marker="D", ls="", ms=5, label="annotation"
    )
    return [*lines, prediction, truth]


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all, with the same bytes for the same content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def label_patches() -> list:
    """Legend entries of an occluder map."""
    from matplotlib.patches import Patch

    looks = (("0.2", ""), ("0.2", ""), ("0.75", "////"))
    return [
        Patch(facecolor=colour / 255, edgecolor=edge, hatch=hatch, label=name)
        for name, colour, (edge, hatch) in zip(LABEL_NAMES, LABEL_COLOURS, looks, strict=True)
    ]


def _height(row: Row, slot: float) -> float:
    """Height in inches of the panels of a row in slots of a width; tall images get less than the whole width."""
    height, width = row.panels[0].image.shape[:2]
    return min((slot - 0.06) * height / width, 0.9 * slot)


def _show(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.image)
    axes.set_title(panel.title, fontsize=10.5, pad=4)
    axes.set_axis_off()


def _plot_scan(axes: Axes, scan: Scan, loss_at_truth: float) -> Axes:
    """A curve with the prediction and the annotation marked; azimuth ticks are written modulo 360 degrees."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    blue, green = (np.array(c) / 255 for c in (BLUE, GREEN))
    axes.plot(np.rad2deg(scan.angles), scan.losses, color="0.25", lw=1.6)
    axes.axvline(np.rad2deg(scan.at), color=blue, lw=1.4)
    axes.plot(np.rad2deg(scan.at), scan.loss, "o", color=blue, ms=6, label="prediction")
    axes.axvline(np.rad2deg(scan.truth), color=green, lw=1.6, ls="--", label="annotation")
    axes.axhline(loss_at_truth, color=green, lw=1.1, ls=":", label="loss in the annotated rotation")
    axes.set_xlabel(f"{scan.name} (deg)", fontsize=10)
    axes.set_xlim(*np.rad2deg(scan.angles[[0, -1]]))
    axes.xaxis.set_major_locator(MultipleLocator(60 if np.ptp(scan.angles) > math.pi else 20))
    if scan.name == "azimuth":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda degrees, _: f"{degrees % 360:.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=9, labelleft=axes.get_subplotspec().is_first_col())
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("loss", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


# ---- films ----


class Moment(NamedTuple):
    """One picture of a film: what stands above it, the overlay and the occluder map [H, W, 3], how far each of the
    three angles is from the final one [3] in radians, and the loss."""

    caption: str
    overlay: NDArray[np.uint8]
    occluders: NDArray[np.uint8]
    offsets: Sequence[float]
    loss: float


def film_frames(
    heading: str,
    image: NDArray[np.uint8],
    scans: Sequence[Scan],
    moments: Sequence[Moment],
    dpi: int = 80,
) -> Iterator[NDArray[np.uint8]]:
    """Pictures [h, w, 3] of the optimisation of one image: input, mesh, occluder map, and the loss landscape around the
    final pose, on which three points show where the three angles are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = image.shape[1] >= image.shape[0]  # two rows of two; tall images stand in one row of four
    slot = 4.6 if wide else 2.5
    height = slot * image.shape[0] / image.shape[1]
    lower = max(height, 1.9)
    width, total = (
        2 * slot + 0.6 if wide else 4 * slot + 1.5,
        height + (lower + 0.3 if wide else 0) + 1.6,
    )
    figure = Figure((width, total), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.2 / width, 1 - 0.12 / total, heading, fontsize=12, fontweight="bold", va="top")
    caption = figure.text(0.2 / width, 1 - 0.36 / total, "", fontsize=10.5, va="top", color="0.25")
    places = [(0.2, lower + 0.95), (0.3 + slot, lower + 0.95), (0.2, 0.65 + lower - height)]
    if not wide:
        places = [(0.2 + k * (slot + 0.1), 0.65) for k in range(3)]
    first = moments[0]
    shown = []
    for title, picture, (x, y) in zip(
        ("input", "pose", OCCLUDER_TITLE), (image, first.overlay, first.occluders), places
    ):
        axes = figure.add_axes((x / width, y / total, slot / width, height / total))
        shown.append(axes.imshow(picture))
        axes.set_title(title, fontsize=10, pad=3)
        axes.set_axis_off()
    left = 0.75 + (slot if wide else 3 * (slot + 0.1))
    axes = figure.add_axes(
        (left / width, 0.8 / total, (width - left - 0.2) / width, (lower - 0.15) / total)
    )
    plot_landscape(axes, scans)
    axes.set_title(LANDSCAPE_TITLE, fontsize=10, pad=3)
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, max(m.loss for m in moments) + 0.02))
    points = [
        axes.plot(
            [],
            [],
            "o",
            color=np.array(SCAN_STYLES[scan.name][0]) / 255,
            mec="black",
            ms=8,
            zorder=6,
        )[0]
        for scan in scans
    ]
    figure.legend(
        handles=label_patches(),
        loc="lower left",
        bbox_to_anchor=(0.2 / width, 0.12 / total),
        ncols=3,
        frameon=False,
        fontsize=9,
        borderaxespad=0,
        borderpad=0,
    )
    keys = [*landscape_handles()[:3], landscape_handles()[4]]
    figure.legend(
        handles=keys,
        loc="lower right",
        bbox_to_anchor=(1 - 0.1 / width, 0.12 / total),
        ncols=4,
        frameon=False,
        fontsize=9,
        borderaxespad=0,
        borderpad=0,
        columnspacing=1.0,
    )
    for moment in moments:
        caption.set_text(moment.caption)
        shown[1].set_data(moment.overlay)
        shown[2].set_data(moment.occluders)
        for point, offset in zip(points, moment.offsets):
            point.set_data([np.rad2deg(offset)], [moment.loss])
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


# ---- figures of a whole set ----


def set_landscape(title: str, scans: dict[str, tuple[NDArray, NDArray]], around: str) -> Figure:
    """Mean and spread of the loss over a set, one panel per entry of `drawing.SET_SCANS`.

    scans: name -> offsets [N] (radians, or CAD units for the distance) and losses [B, N], nan where there is none.
    around: what the offsets are measured from.
    """
    from matplotlib.figure import Figure

    figure = Figure((3.1 * len(scans) + 0.6, 3.7), dpi=DPI)
    grid = figure.add_gridspec(
        1, len(scans), left=0.055, right=0.985, top=0.87, bottom=0.26, wspace=0.17
    )
    figure.text(0.012, 0.965, title, fontsize=12.5, fontweight="bold", va="top")
    first = None
    for k, (name, (offsets, losses)) in enumerate(scans.items()):
        axes = figure.add_subplot(grid[k], sharey=first)
        first = first or axes
        x = offsets if name == "distance" else np.rad2deg(offsets)
        colour = np.array(SCAN_STYLES.get(name, ((60, 60, 60),))[0]) / 255
        known = np.isfinite(losses).any(0)
        low, middle, high = np.nanpercentile(losses[:, known], (10, 50, 90), axis=0)
        axes.fill_between(
            x[known], low, high, color=colour, alpha=0.18, lw=0, label="80 % of the images"
        )
        axes.plot(x[known], np.nanmean(losses[:, known], 0), color=colour, lw=2, label="mean")
        axes.plot(x[known], middle, color=colour, lw=1.2, ls=":", label="median")
        axes.axvline(0, color="0.4", lw=0.9)
        axes.set_xlabel(
            f"{name}, {'CAD units' if name == 'distance' else 'degrees'} from the {around}",
            fontsize=9.5,
        )
        axes.set_xlim(x[0], x[-1])
        axes.set_xticks(np.linspace(x[0], x[-1], 5))
        axes.tick_params(labelsize=9, labelleft=k == 0)
        axes.spines[["top", "right"]].set_visible(False)
    first.set_ylabel("loss", fontsize=10)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys = [
        Line2D([], [], color="0.25", lw=2, label="mean over the images"),
        Line2D([], [], color="0.25", ls=":", lw=1.2, label="median"),
        Patch(facecolor="0.25", alpha=0.18, label="10th to 90th percentile"),
    ]
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0.04, 0.015),
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    return figure


def viewpoint_figure(title: str, truth: NDArray, predicted: NDArray, bins: int = 32) -> Figure:
    """How annotated and predicted poses [B, 3] (azimuth, elevation, theta, radians) are distributed.

    The azimuth on a circle, front below as the camera sees it from above, bars with areas that grow with the counts
    (reference, cal_vp_distribution: 32 bins, radius the square root of the count); elevation and theta as histograms.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((12.2, 4.1), dpi=DPI)
    figure.text(0.015, 0.97, title, fontsize=12.5, fontweight="bold", va="top")
    kinds = (
        ("annotated", truth, np.array(GREEN) / 255),
        ("predicted", predicted, np.array(BLUE) / 255),
    )
    edges = np.linspace(0, 2 * math.pi, bins + 1)
    counts = [np.histogram(np.mod(angles[:, 0], 2 * math.pi), edges)[0] for _, angles, _ in kinds]
    top = math.sqrt(max(1, *(c.max() for c in counts)))
    for k, ((name, _, colour), count) in enumerate(zip(kinds, counts)):
        axes = figure.add_axes((0.035 + 0.245 * k, 0.08, 0.2, 0.66), projection="polar")
        axes.set_theta_zero_location("S")
        axes.bar(
            edges[:-1],
            np.sqrt(count),
            width=2 * math.pi / bins,
            align="edge",
            color=colour,
            alpha=0.85,
            edgecolor="white",
            lw=0.5,
        )
        axes.set_ylim(0, top)
        rings = np.array([0.25, 1.0]) * top**2
        axes.set_yticks(
            np.sqrt(rings), [f"{ring:.0f}" for ring in rings], fontsize=8.5, color="0.1"
        )
        axes.set_rlabel_position(157)
        axes.set_xticks(
            np.deg2rad(np.arange(0, 360, 45)), [f"{a}°" for a in range(0, 360, 45)], fontsize=8.5
        )
        axes.tick_params(pad=0)
        axes.grid(color="0.85", lw=0.7)
        axes.set_title(f"azimuth, {name} (images)", fontsize=10, pad=9)
    for k, name in ((1, "elevation"), (2, "theta")):
        axes = figure.add_axes((0.56 + 0.23 * (k - 1), 0.17, 0.19, 0.57))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        degrees = [(np.rad2deg(angles[:, k]) + 180) % 360 - 180 for _, angles, _ in kinds]
        reach = np.clip(
            np.ceil(np.percentile(np.abs(np.concatenate(degrees)), 99) / 10) * 10, 20, 180
        )
        steps = np.linspace(-reach, reach, 31)
        for (label, _, colour), values in zip(kinds, degrees):
            look = (
                dict(histtype="stepfilled", alpha=0.45)
                if label == "annotated"
                else dict(histtype="step", lw=1.8)
            )
            axes.hist(np.clip(values, -reach, reach), steps, color=colour, label=label, **look)
        axes.set_xlabel(f"{name} (deg)", fontsize=10)
        axes.set_title(name, fontsize=10, pad=9)
        axes.set_ylabel("images" if k == 1 else "", fontsize=10)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, fontsize=9.5, loc="upper right", ncols=2
    )
    return figure


def comparison_figure(
    title: str, errors: NDArray, others: NDArray, names: tuple[str, str]
) -> Figure:
    """Errors [B] of two runs against each other, in radians, on logarithmic axes; below the diagonal the first is better."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    figure = Figure((5.6, 5.5), dpi=DPI)
    figure.text(0.02, 0.98, title, fontsize=11.5, fontweight="bold", va="top", wrap=True)
    axes = figure.add_axes((0.125, 0.11, 0.85, 0.78))
    x, y = (np.clip(np.rad2deg(e), 0.5, 180) for e in (others, errors))
    colour = np.where(y < x, 0, 1)
    for k, (rgb, label, marker) in enumerate(
        ((BLUE, f"better in {names[0]}", "o"), (VERMILLION, f"better in {names[1]}", "^"))
    ):
        label = f"{label} ({(colour == k).sum():,})"
        axes.scatter(
            x[colour == k],
            y[colour == k],
            s=16,
            color=np.array(rgb) / 255,
            alpha=0.7,
            lw=0,
            marker=marker,
            label=label,
        )
    axes.plot((0.5, 180), (0.5, 180), color="0.4", lw=1)
    ticks = (0.5, 1, 2, 5, 10, 30, 90, 180)
    for axis, name in ((axes.xaxis, names[1]), (axes.yaxis, names[0])):
        axis.set_label_text(f"error in {name} (deg)", fontsize=10)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
        axis.set_minor_locator(NullLocator())
    for threshold in (10, 30):
        axes.axvline(threshold, color="0.8", lw=0.9, ls="--", zorder=0)
        axes.axhline(threshold, color="0.8", lw=0.9, ls="--", zorder=0)
    axes.set_xlim(0.45, 200)
    axes.set_ylim(0.45, 200)
    axes.tick_params(labelsize=9)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
