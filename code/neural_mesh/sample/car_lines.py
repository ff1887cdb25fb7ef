"""The lines of a car's body at any place along it, in CAD units."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.sample.car_shapes import HALF_LENGTH, CarShape, Knots

# Steps of the table of lines; each is half a millimetre of a metre-long car.
TABLE_STEPS = 1880


class BodyLines(NamedTuple):
    """The body at stations y, in arrays of the shape of y.

    width, roof: half widths of the body and of its roof. bottom, belt, top: heights.
    """

    width: NDArray
    bottom: NDArray
    belt: NDArray
    top: NDArray
    roof: NDArray


def smooth_line(knots: Knots, y: NDArray) -> NDArray:
    """Evaluate the line through (y, z) knots, its corners rounded.

    The rounding is the mean over seven shifted copies of the line.
    """
    ys, zs = np.asarray(knots).T
    shifted = []
    for shift in np.linspace(-0.012, 0.012, 7):
        shifted.append(np.interp(y + shift, ys, zs))
    return np.mean(shifted, axis=0)


def body_lines(shape: CarShape, y: NDArray) -> BodyLines:
    """Compute the lines of the body at stations y."""
    # The body narrows and rises towards both ends, over the last 0.15 units.
    beyond = np.abs(y) - (HALF_LENGTH - 0.15)
    end = np.clip(beyond / 0.15, 0, 1)
    width = shape.half_width * (1 - 0.13 * end**2.6)
    bottom = shape.clearance + 0.022 * end**3
    belt = smooth_line(shape.belt, y)
    top = np.maximum(smooth_line(shape.top, y), belt + 0.003)
    # The roof is narrower the higher it lies above the belt.
    inwards = shape.tumblehome * np.clip((top - belt) / 0.085, 0, 1)
    return BodyLines(width, bottom, belt, top, roof=width * (0.93 - inwards))


def body_lines_at(shape: CarShape, y: NDArray) -> BodyLines:
    """Look up `body_lines` at points y [N], float32, in a fine table."""
    table_y, lines = _line_table(shape)
    step = table_y[1] - table_y[0]
    steps = (y - np.float32(table_y[0])) * np.float32(1 / step)
    # Half a step is added to round to the nearest entry.
    index = np.clip(steps + np.float32(0.5), 0, len(table_y) - 1).astype(np.int64)
    return BodyLines(*(line[index] for line in lines))


@cache
def _line_table(shape: CarShape) -> tuple[NDArray, BodyLines]:
    """Tabulate the lines from end to end; returns the stations and the lines there."""
    y = np.linspace(-HALF_LENGTH - 0.02, HALF_LENGTH + 0.02, TABLE_STEPS + 1)
    return y, BodyLines(*(line.astype(np.float32) for line in body_lines(shape, y)))
