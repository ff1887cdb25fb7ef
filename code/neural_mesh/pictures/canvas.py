"""All use of matplotlib that needs its classes: figures measured in inches, legends, ticks, files.

Figures are made without pyplot, whose state is global. matplotlib is imported inside the functions,
so that stages that draw nothing do not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

DPI = 140


@dataclass(frozen=True)
class Sheet:
    """A figure whose contents are placed in inches, from its left and from its top or bottom."""

    figure: Figure
    width: float
    height: float

    def heading(self, text: str, left: float, below_top: float, **style: Any) -> Text:
        """Write a text whose top left corner is `left` and `below_top` inches from the sheet's."""
        x = left / self.width
        y = 1 - below_top / self.height
        return self.figure.text(x, y, text, va="top", **style)

    def note(self, text: str, left: float, bottom: float, **style: Any) -> Text:
        """Write a text whose base line is `bottom` inches above the lower edge."""
        return self.figure.text(left / self.width, bottom / self.height, text, **style)

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Add axes by their lower left corner and their size in inches."""
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def left_legend(self, keys: Sequence[Artist], left: float, bottom: float, **style: Any) -> None:
        """Add a legend of one line by its lower left corner in inches."""
        corner = (left / self.width, bottom / self.height)
        self._legend(keys, loc="lower left", bbox_to_anchor=corner, **style)

    def right_legend(
        self, keys: Sequence[Artist], from_right: float, bottom: float, **style: Any
    ) -> None:
        """Add a legend of one line whose right end is `from_right` inches from the right edge."""
        corner = (1 - from_right / self.width, bottom / self.height)
        self._legend(keys, loc="lower right", bbox_to_anchor=corner, **style)

    def _legend(self, keys: Sequence[Artist], **style: Any) -> None:
        plain: dict[str, Any] = dict(frameon=False, borderaxespad=0)
        self.figure.legend(handles=keys, ncols=len(keys), **plain | style)


def new_figure(width: float, height: float, dpi: int = DPI) -> Figure:
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=dpi)


def new_sheet(width: float, height: float, dpi: int = DPI) -> Sheet:
    """An empty sheet of a size in inches."""
    return Sheet(new_figure(width, height, dpi), width, height)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all, with the same bytes for the same content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # matplotlib would write its version into the file.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def picture_of(figure: Figure) -> NDArray[np.uint8]:
    """Render the figure in its current state as a picture [h, w, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # One canvas serves all frames of a film.
    agg_canvas = figure.canvas
    if not isinstance(agg_canvas, FigureCanvasAgg):
        agg_canvas = FigureCanvasAgg(figure)
    agg_canvas.draw()
    return np.asarray(agg_canvas.buffer_rgba())[..., :3].copy()


# ---- keys of legends -----------------------------------------------------------------------------


def line_key(label: str, **style: Any) -> Artist:
    """Make the legend key of a curve, or of a marker where the style has one."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def patch_key(label: str, **style: Any) -> Artist:
    """Make the legend key of an area."""
    from matplotlib.patches import Patch

    return Patch(label=label, **style)


# ---- ticks ---------------------------------------------------------------------------------------


def few_ticks(axis: Axis, most: int, whole_numbers: bool = False) -> None:
    """Put ticks at round numbers, with at most `most` intervals between them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=whole_numbers))


def ticks_every(axis: Axis, step: float) -> None:
    """Put ticks at the multiples of a step."""
    from matplotlib.ticker import MultipleLocator

    axis.set_major_locator(MultipleLocator(step))


def ticks_within_a_turn(axis: Axis) -> None:
    """Label the ticks of an axis in degrees modulo 360."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda degrees, _: f"{degrees % 360:.0f}"))


def only_ticks_at(axis: Axis, values: Sequence[float]) -> None:
    """Put ticks at these values alone, each written as briefly as possible."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FixedFormatter([f"{value:g}" for value in values]))
    axis.set_minor_locator(NullLocator())


def hide_frame(axes: Axes) -> None:
    """Hide the upper and the right border of the axes."""
    axes.spines[["top", "right"]].set_visible(False)
