"""The material of each point of a car's surface.

On the body that is paint, glass, lights, gaps and plates, on the wheels tyres and rims.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neural_mesh.sample.car_lines import BodyLines, body_lines_at
from neural_mesh.sample.car_shapes import HALF_LENGTH, CarShape
from neural_mesh.sample.parts import (
    BLACK,
    CHROME,
    GAP,
    GLASS,
    HEADLIGHT,
    PAINT,
    PLATE,
    RIM,
    TAILLIGHT,
    TYRE,
)

# The tag of a point says where along a cross-section it lies, from the bottom to the roof.
SILL_TAG = 0.55
DOOR_TAG = 0.7
HANDLE_TAG = 1
WINDOW_TAG = 2
ROOF_TAG = 3
END_TAG = 5.0  # of the two ends of the body

Coordinates = tuple[NDArray, NDArray, NDArray]  # |x|, y and z [N]


def paint_body(shape: CarShape, points: NDArray, tag: NDArray) -> NDArray:
    """Choose the material [N] of points [3, N] of the body by their positions and tags [N].

    Glass, lights, grille, plates, gaps and sills cover the paint; later materials cover earlier
    ones.
    """
    x = np.abs(points[0])
    y = points[1]
    z = points[2]
    lines = body_lines_at(shape, y)
    material = np.full(len(y), PAINT)
    _paint_sides(shape, (x, y, z), tag, lines, material)
    _paint_top(shape, (x, y, z), tag, lines, material)
    _paint_front(shape, (x, y, z), material)
    _paint_back(shape, (x, y, z), material)
    # Sills and wheel arches.
    below = tag < WINDOW_TAG
    material[below & (z < lines.bottom + shape.trim)] = BLACK
    material[tag < SILL_TAG] = BLACK
    front_axle, rear_axle, radius = shape.wheels
    for axle in (front_axle, rear_axle):
        square = (y - axle) ** 2 + (z - radius) ** 2
        material[below & (square < (1.17 * radius) ** 2)] = BLACK
    return material


def _paint_sides(
    shape: CarShape, points: Coordinates, tag: NDArray, lines: BodyLines, material: NDArray
) -> None:
    """Paint door gaps, handles and the windows of the sides in place."""
    _, y, z = points
    # Gaps between the doors, and a handle behind each.
    sides = tag < ROOF_TAG
    to_gap = _nearest(y, shape.doors)
    material[sides & (tag > DOOR_TAG) & (to_gap < 0.0016)] = GAP
    to_handle = _nearest(y, [door - 0.028 for door in shape.doors[1:]])
    at_height = np.abs(z - lines.belt + 0.020) < 0.0035
    material[sides & (tag > HANDLE_TAG) & (to_handle < 0.013) & at_height] = CHROME
    # One window from end to end, divided by pillars.
    first, last = shape.side_glass
    window = sides & (tag > WINDOW_TAG) & (y > first) & (y < last)
    window &= (z > lines.belt + 0.006) & (z < lines.top - 0.014)
    material[window] = GLASS
    pillar = _nearest(y, shape.pillars) < 0.005
    material[window & pillar] = BLACK


def _paint_top(
    shape: CarShape, points: Coordinates, tag: NDArray, lines: BodyLines, material: NDArray
) -> None:
    """Paint windscreen, rear window, and the load bed or the gaps of the bonnet in place."""
    x, y, _ = points
    above = (tag >= ROOF_TAG) & (tag < END_TAG - 0.5)
    # Panes in black frames.
    for first, last in (shape.windscreen, shape.rear_window):
        edge = above & (y > first - 0.003) & (y < last + 0.003) & (x < lines.roof - 0.008)
        material[edge] = BLACK
        pane = (y > first + 0.001) & (y < last - 0.001) & (x < lines.roof - 0.013)
        material[edge & pane] = GLASS
    if shape.bed is not None:
        first, last, _ = shape.bed
        along = (y > first - 0.001) & (y < last + 0.001)
        material[above & along & (x < lines.roof - 0.015)] = BLACK
    else:
        hood = above & (y < shape.windscreen[0] - 0.012) & (y > -0.42)
        material[hood & (np.abs(x - 0.72 * lines.width) < 0.0016)] = GAP


def _paint_front(shape: CarShape, points: Coordinates, material: NDArray) -> None:
    """Paint grille, intake, lights and plate in place."""
    x, y, z = points
    front = y < -HALF_LENGTH + 0.05
    share = x / shape.half_width
    # Bars of chrome in the grille, an intake below it.
    low, high = shape.grille
    grille = front & (share < 0.46) & (z > low) & (z < high)
    material[grille] = BLACK
    material[grille & (np.mod(z - low, 0.012) < 0.004)] = CHROME
    intake = front & (share < 0.62) & (z < low - 0.012) & (z > shape.clearance + 0.008)
    material[intake] = BLACK
    low, high = shape.headlight
    material[front & (share > 0.52) & (z > low) & (z < high)] = HEADLIGHT
    _paint_plate(front & (y < -HALF_LENGTH + 0.01), x, z - shape.plate[0], material)


def _paint_back(shape: CarShape, points: Coordinates, material: NDArray) -> None:
    """Paint lights, lid, bumper and plate in place."""
    x, y, z = points
    back = y > HALF_LENGTH - 0.035
    low, high, start = shape.taillight
    material[back & (x / shape.half_width > start) & (z > low) & (z < high)] = TAILLIGHT
    material[back & (np.abs(z - low + 0.012) < 0.0018)] = GAP
    material[back & (z < shape.clearance + 0.040)] = BLACK
    _paint_plate(back & (y > HALF_LENGTH - 0.01), x, z - shape.plate[1], material)


def _paint_plate(end: NDArray, x: NDArray, above: NDArray, material: NDArray) -> None:
    """Paint a plate and its frame in place.

    end [N]: which points lie at the end of the car. above [N]: height over the plate's middle.
    """
    material[end & (x < 0.052) & (np.abs(above) < 0.013)] = BLACK
    material[end & (x < 0.048) & (np.abs(above) < 0.0105)] = PLATE


def _nearest(y: NDArray, places: list[float] | tuple[float, ...]) -> NDArray:
    """Compute the distance [N] of each y to the nearest place."""
    distance = np.abs(y - np.float32(places[0]))
    for place in places[1:]:
        np.minimum(distance, np.abs(y - np.float32(place)), out=distance)
    return distance


def paint_wheel(shape: CarShape, points: NDArray) -> NDArray:
    """Choose the material [N] of points [3, N] of a wheel: tyre, rim with five spokes, or hub."""
    # Positions relative to the axle.
    front_axle, rear_axle, radius = shape.wheels
    at_front = points[1] < (front_axle + rear_axle) / 2
    axle = np.where(at_front, np.float32(front_axle), np.float32(rear_axle))
    dy = points[1] - axle
    dz = points[2] - np.float32(radius)
    r = np.hypot(dy, dz) / radius
    material = np.full(len(r), TYRE)
    material[r < 0.70] = RIM
    # Gaps between the spokes, and the hub.
    spoke = np.cos(5 * np.arctan2(dz, dy) + 0.8)
    material[(r < 0.61) & (r > 0.2) & (spoke < 0.25 - 0.4 * r)] = BLACK
    material[r < 0.09] = BLACK
    return material
