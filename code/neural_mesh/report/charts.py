"""The charts of the page as inline SVG. Angles are in degrees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neural_mesh.report.level_report import LevelReport
from neural_mesh.report.svg import WIDTH, Area, circle, legend, line, polyline, rect, svg, text

# Colours of the accuracies within pi/6 and pi/18, which also differ in lightness; LIGHT is too pale
# for a line.
DARK = "#00507d"
LIGHT = "#8cc6ec"
LINE_LIGHT = "#4a9fd0"
# Widths of bins, in degrees.
HISTOGRAM_BIN = 5
AZIMUTH_BIN = 30
# Distance between the bars of successive categories.
BAR_STEP = 40


def accuracy_chart(report: LevelReport) -> str:
    """Draw the share of images within pi/6 and pi/18 as horizontal bars, per category."""
    left = 92
    right = WIDTH - 34
    height = 54 + BAR_STEP * len(report.categories)
    scale = (right - left) / 100
    body = legend(left, 16, ((DARK, "within pi/6"), (LIGHT, "within pi/18")))
    # Grid.
    for percent in (0, 25, 50, 75, 100):
        x = left + scale * percent
        body += line(x, 26, x, height - 22)
        body += text(x, height - 7, f"{percent} %", "middle", "small")
    # Two bars for each category.
    shares = zip(report.categories, report.within_pi6, report.within_pi18, strict=True)
    for k, (name, within_pi6, within_pi18) in enumerate(shares):
        y = 30 + BAR_STEP * k
        body += text(left - 7, y + 20, name, "end")
        for row, (value, colour) in enumerate(((within_pi6, DARK), (within_pi18, LIGHT))):
            tip = f"{name}: {value:.1f} %"
            body += rect(left, y + 1 + 16 * row, scale * value, 14, colour, tip)
            end = left + scale * value
            body += text(end + 4, y + 12.5 + 16 * row, f"{value:.1f}", "start", "small")
    return svg(height, "accuracy by category", body)


def histogram_chart(errors: NDArray) -> str:
    """Draw the share of the images by error [B], with both thresholds marked."""
    # An error of exactly 180 degrees belongs to the last bin.
    edges = np.arange(0, 180 + HISTOGRAM_BIN, HISTOGRAM_BIN)
    shares = 100.0 * np.histogram(np.minimum(errors, 179.999), edges)[0] / len(errors)
    ceiling = nice_ceiling(shares.max())
    area = Area(left=42, right=WIDTH - 12, top=34, bottom=232)
    across = (area.right - area.left) / 180
    up = (area.bottom - area.top) / ceiling
    body = ""
    # Grid.
    for share in np.linspace(0, ceiling, 5):
        body += _level_line(area, area.bottom - up * share, f"{share:g} %")
    # A bar for each bin.
    for k, share in enumerate(shares):
        count = round(share * len(errors) / 100)
        tip = f"{edges[k]} to {edges[k + 1]} degrees: {count:,} images"
        x = area.left + across * edges[k] + 0.5
        y = area.bottom - up * share
        body += rect(x, y, across * HISTOGRAM_BIN - 1, up * share, DARK, tip)
    # The thresholds of the two accuracies.
    for threshold, name in ((10, "pi/18"), (30, "pi/6")):
        x = area.left + across * threshold
        body += line(x, area.top - 14, x, area.bottom, "mark")
        body += text(x + 3, area.top - 6, name, "start", "small")
    # Labels of the axis.
    for degrees in range(0, 181, 30):
        x = area.left + across * degrees
        body += text(x, area.bottom + 16, str(degrees), "middle", "small")
    body += text(area.middle, 268, "error (degrees)", "middle")
    return svg(274, "histogram of the errors", body)


def nice_ceiling(value: float) -> float:
    """Choose the smallest of 4, 8, 12, 20, 40, 60, 80, 100 that is not below the value."""
    return next((limit for limit in (4, 8, 12, 20, 40, 60, 80) if limit >= value), 100)


def azimuth_chart(errors: NDArray, azimuths: NDArray) -> str:
    """Draw the median and the middle half of the errors [B] by annotated azimuth [B].

    The bins of `AZIMUTH_BIN` degrees are centred on 0, 30, ..., with the number of images below.
    """
    bins = 360 // AZIMUTH_BIN
    # Half a bin is added since the first one is centred on 0.
    bin_of_image = np.floor(np.mod(azimuths + AZIMUTH_BIN / 2, 360) / AZIMUTH_BIN).astype(int)
    bin_of_image %= bins
    area = Area(left=42, right=WIDTH - 8, top=26, bottom=218)
    step = (area.right - area.left) / bins

    def height(error: float) -> float:
        """Place an error on a square-root scale, on which small and large errors are readable."""
        return area.bottom - (area.bottom - area.top) * float(np.sqrt(error / 180))

    body = ""
    # Grid.
    for error in (0, 2, 10, 30, 60, 120, 180):
        body += _level_line(area, height(error), f"{error}°")
    body += legend(area.left, 14, ((LIGHT, "25 to 75 %"), (DARK, "median")))
    # A box for each bin that holds images.
    for k in range(bins):
        x = area.left + step * k
        errors_here = errors[bin_of_image == k]
        count = len(errors_here)
        body += text(x + step / 2, area.bottom + 15, f"{k * AZIMUTH_BIN}", "middle", "small")
        body += text(x + step / 2, area.bottom + 30, f"{count}", "middle", "small faint")
        if count:
            low, middle, high = np.percentile(errors_here, (25, 50, 75))
            tip = f"azimuth {k * AZIMUTH_BIN}: median {middle:.1f}, {count:,} images"
            # A box without height would be invisible.
            box_height = max(height(low) - height(high), 1.5)
            body += rect(x + step * 0.2, height(high), step * 0.6, box_height, LIGHT, tip)
            body += rect(x + step * 0.1, height(middle) - 1.5, step * 0.8, 3, DARK, tip)
    caption = "azimuth (degrees; 0 is the front), number of images"
    body += text(area.middle, 268, caption, "middle")
    return svg(274, "error against azimuth", body)


def level_chart(levels: Sequence[LevelReport]) -> str:
    """Draw the image-weighted accuracy at each level as lines.

    The paper's accuracy is drawn beside it at levels with the full test set.
    """
    area = Area(left=46, right=WIDTH - 24, top=34, bottom=226)
    xs = np.linspace(area.left + 30, area.right - 30, len(levels))
    up = (area.bottom - area.top) / 100
    body = ""
    # Grid.
    for percent in (0, 25, 50, 75, 100):
        body += _level_line(area, area.bottom - up * percent, f"{percent} %")
    for x, report in zip(xs, levels, strict=True):
        body += text(x, area.bottom + 17, report.title, "middle", "small")
    # A line with dots for ours, a dashed one for the paper's.
    for k, colour in ((0, DARK), (1, LINE_LIGHT)):
        points = []
        published = []
        for x, report in zip(xs, levels, strict=True):
            points.append((x, area.bottom - up * report.mean[k]))
            if report.published:
                published.append((x, area.bottom - up * report.published[k]))
        body += polyline(points, colour)
        for (x, y), report in zip(points, levels, strict=True):
            body += circle(x, y, colour)
            body += text(x, y - 9, f"{report.mean[k]:.1f}", "middle", "value")
        body += polyline(published, colour, dashed=True)
    body += legend(area.left, 15, ((DARK, "within pi/6"), (LINE_LIGHT, "within pi/18")))
    if any(report.published for report in levels):
        body += text(area.left + 245, 15, "dashed: the paper")
    return svg(252, "accuracy against occlusion level", body)


def _level_line(area: Area, y: float, label: str) -> str:
    """Draw a line across the area at a height, with a label on its left."""
    return line(area.left, y, area.right, y) + text(area.left - 5, y + 4, label, "end", "small")
