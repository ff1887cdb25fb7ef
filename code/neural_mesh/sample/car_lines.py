"""The lines of a car's body at any place along it, in CAD units."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.sample.car_shapes import HALF_LENGTH, CarShape, Knots

TABLE_STEPS = 1880  # of half a millimetre of a metre-long car


class BodyLines(NamedTuple):
    """The body at stations y, each shaped like y: half widths and heights."""

    width: NDArray
    bottom: NDArray
    belt: NDArray
    top: NDArray
    roof: NDArray  # half width


def smooth_line(knots: Knots, y: NDArray) -> NDArray:
    """The line through (y, z) knots, its corners rounded over about 8 mm of a metre-long car."""
    ys, zs = np.asarray(knots).T
    spread = np.linspace(-0.012, 0.012, 7)
    return np.mean([np.interp(y + s, ys, zs) for s in spread], axis=0)


def body_lines(shape: CarShape, y: NDArray) -> BodyLines:
    """The body at stations y."""
    # The body narrows and rises towards both ends, over the last 15 cm.
    end = np.clip((np.abs(y) - (HALF_LENGTH - 0.15)) / 0.15, 0, 1)
    width = shape.half_width * (1 - 0.13 * end**2.6)
    bottom = shape.clearance + 0.022 * end**3
    belt = smooth_line(shape.belt, y)
    top = np.maximum(smooth_line(shape.top, y), belt + 0.003)
    # The roof is narrower the higher it lies above the belt.
    inwards = shape.tumblehome * np.clip((top - belt) / 0.085, 0, 1)
    return BodyLines(width, bottom, belt, top, roof=width * (0.93 - inwards))


def body_lines_at(shape: CarShape, y: NDArray) -> BodyLines:
    """`body_lines` at points y [N], float32, from a table of half a millimetre."""
    table_y, lines = _line_table(shape)
    steps = (y - np.float32(table_y[0])) * np.float32(1 / (table_y[1] - table_y[0]))
    index = np.clip(steps + np.float32(0.5), 0, len(table_y) - 1).astype(np.int64)
    return BodyLines(*(line[index] for line in lines))


@cache
def _line_table(shape: CarShape) -> tuple[NDArray, BodyLines]:
    """Stations from end to end, and the lines there."""
    y = np.linspace(-HALF_LENGTH - 0.02, HALF_LENGTH + 0.02, TABLE_STEPS + 1)
    return y, BodyLines(*(line.astype(np.float32) for line in body_lines(shape, y)))
