"""A contact sheet, which shows one row of small pictures for each of many images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neural_mesh.pictures import canvas
from neural_mesh.pictures.canvas import Sheet
from neural_mesh.pictures.figures import OCCLUDER_TITLE, Panel, label_keys, show_panel
from neural_mesh.pictures.landscape import Scan
from neural_mesh.pictures.loss_curves import (
    LANDSCAPE_TITLE,
    annotation_key,
    curve_keys,
    plot_landscape,
    prediction_key,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Lengths in inches: the height of a strip's caption; how far below the top of a strip the base line
# of its caption and the upper edge of its panels lie; and the gap between panels.
CAPTION = 0.36
CAPTION_BASE = 0.22
PANEL_TOP = 0.27
GAP = 0.06
# The largest numbers of images that fill one block of strips, and two.
MOST_IN_ONE_BLOCK = 6
MOST_IN_TWO_BLOCKS = 24


class Strip(NamedTuple):
    """A row of a contact sheet, which shows one image.

    details: text in small print beside the caption. file_name: file of the image's own figure, if
    it has one. scans: scans of the loss, which are drawn as one more panel.
    """

    caption: str
    details: str
    panels: Sequence[Panel]
    file_name: str = ""
    scans: Sequence[Scan] = ()

    @property
    def slots(self) -> int:
        """The number of pictures side by side."""
        return len(self.panels) + bool(self.scans)

    def panel_height(self, slot: float) -> float:
        """The height of the panels in inches, in slots of a given width in inches.

        Tall images do not fill the width of their slots.
        """
        height, width = self.panels[0].image.shape[:2]
        return min((slot - GAP) * height / width, 0.9 * slot)

    def height(self, slot: float) -> float:
        """The height of the strip in inches, its caption included."""
        return self.panel_height(slot) + CAPTION


def contact_sheet(strips: Sequence[Strip], title: str, slot: float = 2.9) -> Figure:
    """Draw one row of panels per image under its caption.

    More than six images are laid out in two blocks side by side, more than 24 in three. The titles
    of the first image's panels head the columns. slot: width of a panel in inches.
    """
    # The first strip decides which legends are drawn, and how wide a block is.
    first = strips[0]
    with_labels = any(panel.title == OCCLUDER_TITLE for panel in first.panels)
    legend = 0.4 if with_labels or first.scans else 0.1  # inches below the strips
    blocks = _in_blocks(strips, slot)
    block_width = first.slots * slot + 0.3
    heights = [_height_of(block, slot) for block in blocks]
    sheet = canvas.new_sheet(len(blocks) * block_width + 0.2, max(heights) + 0.7 + legend)

    # Title and legends.
    sheet.heading(title, 0.25, 0.16, fontsize=13, fontweight="bold")
    style: dict[str, Any] = dict(fontsize=9.5, borderpad=0)
    if with_labels:
        sheet.left_legend(label_keys(), 0.25, 0.12, **style)
    if first.scans:
        keys = [*curve_keys(), prediction_key(), annotation_key()]
        sheet.right_legend(keys, 0.25, 0.12, **style, columnspacing=1.3)

    # Blocks, each from the top down.
    for number, block in enumerate(blocks):
        left = 0.25 + number * block_width
        top = sheet.height - 0.72
        for k, strip in enumerate(block):
            _show_strip(sheet, strip, (left, top), slot)
            if k == 0:
                _show_titles(sheet, strip, (left, top), slot)
            top -= strip.height(slot)
    return sheet.figure


def _height_of(strips: Sequence[Strip], slot: float) -> float:
    """The height of stacked strips in inches."""
    return sum(strip.height(slot) for strip in strips)


def _in_blocks(strips: Sequence[Strip], slot: float) -> list[list[Strip]]:
    """Divide the strips, in order, into blocks of about the same height."""
    number = 3
    if len(strips) <= MOST_IN_ONE_BLOCK:
        number = 1
    elif len(strips) <= MOST_IN_TWO_BLOCKS:
        number = 2
    # A strip goes into the block in which its middle falls.
    heights = np.array([strip.height(slot) for strip in strips])
    middles = np.cumsum(heights) - heights / 2
    block_of_strip = (middles / heights.sum() * number).astype(int).tolist()
    blocks: dict[int, list[Strip]] = {}
    for block, strip in zip(block_of_strip, strips, strict=True):
        blocks.setdefault(block, []).append(strip)
    return list(blocks.values())


def _show_strip(sheet: Sheet, strip: Strip, left_top: tuple[float, float], slot: float) -> None:
    """Put a strip into a sheet. left_top: its corner in inches. slot: width of a slot in inches."""
    left, top = left_top
    height = strip.panel_height(slot)
    bottom = top - PANEL_TOP - height
    right = left + strip.slots * slot - GAP
    sheet.note(strip.caption, left, top - CAPTION_BASE, fontsize=9.5, fontweight="bold")
    details_style = dict(fontsize=8.5, color="0.3", ha="right")
    sheet.note(strip.details, right, top - CAPTION_BASE, **details_style)
    for i, panel in enumerate(strip.panels):
        axes = sheet.axes(left + i * slot, bottom, slot - GAP, height)
        show_panel(axes, Panel("", panel.image))
    if strip.scans:
        x, width = _landscape_place(strip, left, slot)
        tick_labels = 0.2  # inches below the axes
        axes = sheet.axes(x, bottom + tick_labels, width, height - tick_labels)
        plot_landscape(axes, strip.scans, fontsize=7)


def _show_titles(sheet: Sheet, strip: Strip, left_top: tuple[float, float], slot: float) -> None:
    """Write the titles of a strip's panels above it."""
    left, top = left_top
    style: dict[str, Any] = dict(fontsize=10, ha="center", color="0.3")
    for i, panel in enumerate(strip.panels):
        middle = left + i * slot + (slot - GAP) / 2
        sheet.note(panel.title, middle, top + 0.03, **style)
    if strip.scans:
        x, width = _landscape_place(strip, left, slot)
        sheet.note(LANDSCAPE_TITLE, x + width / 2, top + 0.03, **style)


def _landscape_place(strip: Strip, left: float, slot: float) -> tuple[float, float]:
    """Left edge and width of the axes of the loss, in inches, to the right of a strip's panels.

    left: where the strip begins. The axes are narrower than a slot, since their labels need room.
    """
    return left + len(strip.panels) * slot + 0.4, slot - 0.46
