"""Viewpoints as in photographs, and the projection of PASCAL3D+.

The projection is written here a second time, from PASCAL3D+'s formulas. It shares no code with
`geometry.cameras` or the solver, so that recovering the poses of these pictures tests the method's
conventions instead of repeating them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from neural_mesh.geometry.cameras import Pose

# Constants of PASCAL3D+, whose product is the focal length in pixels.
FOCAL = 1.0
VIEWPORT = 3000.0
THETA_DEVIATION_DEG = 5.0
LARGEST_THETA_DEG = 15.0
# The range of the share of the picture's width or height that the object takes, and of the share of
# the object that a truncated picture cuts off.
FILL = (0.45, 0.92)
OUTSIDE = (0.05, 0.2)


@dataclass(frozen=True)
class Spread:
    """A normal distribution in degrees, clipped to the range from `least` to `most`."""

    mean: float
    deviation: float
    least: float
    most: float


@dataclass(frozen=True)
class Habit:
    """Statistics of how a category is photographed.

    image_shapes: height over width of the pictures. indoors: share of pictures taken indoors.
    """

    image_shapes: tuple[float, ...] = (0.75, 0.75, 1.0, 1.33)
    elevation_deg: Spread = Spread(12.0, 10.0, -5.0, 60.0)
    indoors: float = 0.5


HABITS = {
    "car": Habit((0.75, 0.75, 0.667, 0.6), Spread(9.0, 8.0, -5.0, 35.0), 0.12),
    "chair": Habit((0.75, 1.0, 1.33, 1.33), Spread(19.0, 14.0, -3.0, 60.0), 0.85),
}


def habit_of(category: str) -> Habit:
    """Look up how a category is photographed; unknown categories have the default."""
    return HABITS.get(category, Habit())


@dataclass(frozen=True)
class Viewpoint:
    """A camera as in PASCAL3D+'s files, in degrees, CAD units and pixels."""

    azimuth_deg: float
    elevation_deg: float
    theta_deg: float
    distance: float
    px: float = 0.0
    py: float = 0.0

    @property
    def pose(self) -> Pose:
        """The viewpoint as a pose, with its principal point in pixels."""
        angles_deg = (self.azimuth_deg, self.elevation_deg, self.theta_deg)
        azimuth, elevation, theta = np.radians(angles_deg).tolist()
        return Pose(azimuth, elevation, theta, self.distance, (self.px, self.py))


def camera_axes(view: Viewpoint) -> NDArray[np.float64]:
    """Compute the axes of a camera without theta, as rows [3, 3] in the object frame.

    They are right, up and backward, which is towards the camera.
    """
    azimuth, elevation = np.radians([view.azimuth_deg, view.elevation_deg])
    level = np.cos(elevation)
    backward = np.array([level * np.sin(azimuth), -level * np.cos(azimuth), np.sin(elevation)])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    return np.stack([right, np.cross(backward, right), backward])


def dot(rows: NDArray, vectors: NDArray) -> NDArray:
    """Multiply rows [..., 3] with vectors [3, N] to [..., N].

    Unlike BLAS, this gives the same bits with any number of threads.
    """
    first, second, third = (rows[..., axis, None] * vectors[axis] for axis in range(3))
    return first + second + third


def project(points: NDArray, view: Viewpoint) -> tuple[NDArray, NDArray]:
    """Project points [N, 3] of the object frame as PASCAL3D+ does.

    Returns pixels [N, 2] as (x right, y down), and depths [N] in CAD units.
    """
    right, up, backward = dot(camera_axes(view), np.asarray(points, float).T)
    depth = view.distance - backward
    plane_x = VIEWPORT * FOCAL * right / depth
    plane_y = VIEWPORT * FOCAL * up / depth
    theta = np.radians(view.theta_deg)
    turned_x = np.cos(theta) * plane_x - np.sin(theta) * plane_y
    turned_y = np.sin(theta) * plane_x + np.cos(theta) * plane_y
    return np.stack([view.px + turned_x, view.py - turned_y], -1), depth


def random_viewpoint(
    generator: Generator,
    vertices: NDArray,
    habit: Habit,
    size_hw: tuple[int, int],
    truncate: bool = False,
) -> Viewpoint:
    """Choose a pose as in photographs: any azimuth, mostly upright, 45 to 92 % of the picture.

    vertices [V, 3]: the model. truncate: whether the picture cuts off a part of the object.
    """
    height, width = size_hw
    # Angles.
    azimuth = float(generator.uniform(0, 360))
    tilt = habit.elevation_deg
    elevation = np.clip(generator.normal(tilt.mean, tilt.deviation), tilt.least, tilt.most)
    theta = generator.normal(0, THETA_DEVIATION_DEG)
    theta = np.clip(theta, -LARGEST_THETA_DEG, LARGEST_THETA_DEG)
    angles = (azimuth, float(elevation), float(theta))
    # Distance, scaled from the size of the object at distance 5.
    unit, _ = project(vertices, Viewpoint(*angles, 5.0))
    fill = generator.uniform(*FILL)
    too_wide = np.ptp(unit[:, 0]) / (fill * width)
    too_high = np.ptp(unit[:, 1]) / (fill * height)
    distance = float(np.clip(5.0 * max(too_wide, too_high), 1500 / width, 7500 / width))
    # Place in the picture.
    pixels, _ = project(vertices, Viewpoint(*angles, distance))
    low = pixels.min(0)
    size = pixels.max(0) - low
    free = np.maximum(np.array([width, height]) - size, 0.0)
    corner = generator.uniform(0.1, 0.9, 2) * free
    if truncate:
        axis = int(generator.integers(2))
        outside = generator.uniform(*OUTSIDE)
        if generator.random() < 0.5:
            corner[axis] = -outside * size[axis]
        else:
            corner[axis] = size_hw[1 - axis] - (1 - outside) * size[axis]
    px, py = corner - low
    return Viewpoint(*angles, distance, float(px), float(py))
