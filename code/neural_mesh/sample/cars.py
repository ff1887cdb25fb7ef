"""The procedural cars, built of a body through cross-sections, wheels and mirrors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neural_mesh.sample.car_lines import body_lines, smooth_line
from neural_mesh.sample.car_paint import END_TAG, paint_body, paint_wheel
from neural_mesh.sample.car_shapes import HALF_LENGTH, CarShape
from neural_mesh.sample.parts import BLACK, PAINT, TYRE, Builder, Model, Point, left_and_right
from neural_mesh.sample.shapes import Triangles, grid_triangles, lathe, tube

# Tags of the corners of half a cross-section: the sides have tags below 2, the windows from 2 to 3,
# the roof those above.
SECTION_TAGS = np.array(
    (0, 0.2, 0.4, 0.6, 0.9, 1.3, 1.6, 1.9, 2, 2.33, 2.66, 3, 3.2, 3.4, 3.45, 3.6, 3.8, 4)
)
# Along x from the outside of a tyre to its hub, and the share of the radius.
WHEEL_PROFILE = (
    (-0.036, 0),
    (-0.036, 0.85),
    (-0.030, 1),
    (-0.008, 1),
    (-0.001, 0.93),
    (0.0, 0.78),
    (-0.001, 0.7),
    (-0.007, 0.66),
    (-0.009, 0.3),
    (-0.004, 0.16),
    (-0.004, 0),
)
ROOF_RACK = [(0.118, -0.04, 0.322), (0.118, 0.0, 0.345), (0.116, 0.30, 0.345), (0.114, 0.34, 0.322)]


def car(shape: CarShape) -> Model:
    """Build a car of the given shape."""
    # Body, wheels and mirrors, and a roof rack for an SUV.
    build = Builder()
    for surface, tag in _body(shape):
        build.add(surface, PAINT, tag)
    front_axle, rear_axle, radius = shape.wheels
    profile = [(x, share * radius) for x, share in WHEEL_PROFILE]
    for axle in (front_axle, rear_axle):
        wheel = lathe((shape.half_width + 0.003, axle, radius), profile)
        build.add(wheel, TYRE, mirror=True)
    build.add(_mirror(shape), PAINT, mirror=True)
    if shape.subtype == "SUV":
        build.add(tube(ROOF_RACK, 0.004), BLACK, mirror=True)

    def paint(points: NDArray, tag: NDArray, material: NDArray) -> NDArray:
        material = material.copy()
        body = tag >= 0
        wheel = material == TYRE
        material[body] = paint_body(shape, points[:, body], tag[body])
        material[wheel] = paint_wheel(shape, points[:, wheel])
        return material

    return build.model(shape.subtype, _keypoints(shape), paint)


def _body(shape: CarShape) -> list[tuple[Triangles, NDArray]]:
    """Build the shell and its two end caps, with the section tag of each vertex."""
    y = _stations(shape)
    half = _half_sections(shape, y)
    # From the middle of the bottom over the roof and back again.
    around = np.concatenate([half * [-1, 1, 1], half[:, -2::-1]], axis=1)
    tags = np.concatenate([SECTION_TAGS, SECTION_TAGS[-2::-1]])
    shell = grid_triangles(around), np.tile(tags, len(y))
    return [shell, _end_cap(half[0], -1.0), _end_cap(half[-1], 1.0)]


def _end_cap(half: NDArray, outward: float) -> tuple[Triangles, NDArray]:
    """Build a bulging cap over half a section [K, 3] and its mirror image. outward: sign of y."""
    across = np.linspace(-1, 1, 13)
    one = np.ones(len(across))
    cap = np.repeat(half[:, None], len(across), 1) * np.stack([across, one, one], -1)
    rise = np.sin(np.pi * np.linspace(0, 1, len(half)))[:, None] ** 0.5
    cap[..., 1] += outward * 0.014 * (1 - across**2) * rise
    return grid_triangles(cap), np.full(cap[..., 0].size, END_TAG)


def _stations(shape: CarShape) -> NDArray:
    """Choose the stations y at which the body is cut.

    They are 14 mm apart or less: the ends of the glass are stations, and steps have several.
    """
    evenly = np.linspace(-HALF_LENGTH, HALF_LENGTH, 66)
    # Ends of glass and bumpers, and the walls of a load bed.
    extra = [*shape.windscreen, *shape.rear_window, -0.446, -0.44, 0.44, 0.446]
    if shape.bed is not None:
        for end in shape.bed[:2]:
            extra += [end - 0.0005, end + 0.0005]
    steep = np.linspace(shape.rear_window[0] - 0.012, shape.rear_window[1] + 0.012, 7)
    return np.unique(np.round(np.concatenate([evenly, extra, steep]), 5))


def _half_sections(shape: CarShape, y: NDArray) -> NDArray:
    """Build half a cross-section at each station [S, K, 3], from the middle of the bottom to the
    middle of the roof.
    """
    # Heights of the parts of the side, and how far the windows lean inwards.
    width, bottom, belt, top, roof = body_lines(shape, y)
    side = belt - bottom
    glass = top - belt
    deck = top - _bed_depth(shape, y)
    zero = np.zeros_like(y)
    shoulder = 0.945 * width
    inwards = roof - shoulder
    corners = [
        (zero, bottom),
        (0.5 * width, bottom),
        (0.86 * width, bottom),
        (0.95 * width, bottom + 0.06 * side),
        (0.985 * width, bottom + 0.2 * side),
        (width, bottom + 0.5 * side),
        (0.995 * width, bottom + 0.78 * side),
        (0.975 * width, belt - 0.005),
        (shoulder, belt),  # tag 2: the windows begin
        (shoulder + inwards / 3, belt + 0.32 * glass),
        (shoulder + inwards / 1.5, belt + 0.64 * glass),
        (roof, top - 0.1 * glass),  # tag 3: the roof begins
        (roof - 0.010, top - 0.03 * glass),
        (roof - 0.018, top),
        (roof - 0.020, deck),
        (0.6 * roof, deck + 0.002),
        (0.3 * roof, deck + 0.004),
        (zero, deck + 0.005),
    ]
    return np.stack([np.stack([x, y, z], -1) for x, z in corners], 1)


def _bed_depth(shape: CarShape, y: NDArray) -> NDArray:
    """Compute how far the load bed lies below the body's upper edge at stations y."""
    if shape.bed is None:
        return np.zeros_like(y)
    first, last, depth = shape.bed
    return np.where((y > first) & (y < last), depth, 0.0)


def _mirror(shape: CarShape) -> Triangles:
    """Build the outside mirror at +x."""
    width = shape.half_width
    y = shape.side_glass[0] + 0.022
    belt = float(smooth_line(shape.belt, np.array([y]))[0])
    path = [
        (width - 0.010, y, belt + 0.010),
        (width + 0.002, y, belt + 0.012),
        (width + 0.020, y + 0.003, belt + 0.013),
    ]
    return tube(path, [0.004, 0.010, 0.011], sides=7, step=0.1)


def _keypoints(shape: CarShape) -> dict[str, Point]:
    """Place PASCAL3D+'s key points of cars."""
    front_axle, rear_axle, radius = shape.wheels
    width = shape.half_width
    end_width = 0.80 * width
    ends_of_roof = np.array([shape.windscreen[1], shape.rear_window[0]])
    lines = body_lines(shape, ends_of_roof)
    front_top, rear_top = lines.top.tolist()
    front_roof, rear_roof = lines.roof.tolist()
    trunk = float(smooth_line(shape.top, np.array([0.43]))[0])
    light = sum(shape.headlight) / 2
    return left_and_right(
        {
            "{}_front_wheel": (width, front_axle, radius),
            "{}_back_wheel": (width, rear_axle, radius),
            "upper_{}_windshield": (front_roof - 0.010, shape.windscreen[1], front_top),
            "upper_{}_rearwindow": (rear_roof - 0.010, shape.rear_window[0], rear_top),
            "{}_front_light": (end_width, -HALF_LENGTH + 0.004, light),
            "{}_back_trunk": (end_width, 0.435, trunk - 0.004),
        }
    )
