"""Viewpoints as in photographs, and the projection of PASCAL3D+.

The projection is written here a second time, from PASCAL3D+'s formulas, and shares no code with
`geometry.cameras` or a solver: what the method recovers from these pictures is then no echo of its
own conventions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from neural_mesh.geometry.cameras import Pose

# PASCAL3D+'s; the focal length in pixels is their product.
FOCAL = 1.0
VIEWPORT = 3000.0
THETA_DEVIATION_DEG = 5.0
LARGEST_THETA_DEG = 15.0
FILL = (0.45, 0.92)  # share of the picture's width or height that the object takes
OUTSIDE = (0.05, 0.2)  # share of the object that a truncated picture cuts off


@dataclass(frozen=True)
class Spread:
    """A normal distribution that is cut off on either side, in degrees."""

    mean: float
    deviation: float
    least: float
    most: float


@dataclass(frozen=True)
class Habit:
    """How a category is photographed.

    image_shapes: height over width of the pictures. elevation_deg: from how high. indoors: share
    taken indoors.
    """

    image_shapes: tuple[float, ...] = (0.75, 0.75, 1.0, 1.33)
    elevation_deg: Spread = Spread(12.0, 10.0, -5.0, 60.0)
    indoors: float = 0.5


HABITS = {
    "car": Habit((0.75, 0.75, 0.667, 0.6), Spread(9.0, 8.0, -5.0, 35.0), 0.12),
    "chair": Habit((0.75, 1.0, 1.33, 1.33), Spread(19.0, 14.0, -3.0, 60.0), 0.85),
}


def habit_of(category: str) -> Habit:
    """How a category is photographed, also one of which nothing is known."""
    return HABITS.get(category, Habit())


@dataclass(frozen=True)
class Viewpoint:
    """PASCAL3D+'s camera as its files have it: degrees, CAD units and pixels; focal length 1 and
    viewport 3000.
    """

    azimuth_deg: float
    elevation_deg: float
    theta_deg: float
    distance: float
    px: float = 0.0
    py: float = 0.0

    @property
    def pose(self) -> Pose:
        """The same as a pose, its principal point in pixels."""
        angles = np.radians([self.azimuth_deg, self.elevation_deg, self.theta_deg])
        return Pose(*angles.tolist(), self.distance, (self.px, self.py))


def camera_axes(view: Viewpoint) -> NDArray[np.float64]:
    """Right, up and backward (towards the camera) of a viewpoint without theta, as rows [3, 3] in
    the object frame.
    """
    azimuth, elevation = np.radians([view.azimuth_deg, view.elevation_deg])
    level = np.cos(elevation)
    backward = np.array([level * np.sin(azimuth), -level * np.cos(azimuth), np.sin(elevation)])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    return np.stack([right, np.cross(backward, right), backward])


def dot(rows: NDArray, vectors: NDArray) -> NDArray:
    """rows [..., 3] times vectors [3, N] -> [..., N]; unlike BLAS, the same bits with any number of
    threads.
    """
    return sum(rows[..., i, None] * vectors[i] for i in range(3))


def project(points: NDArray, view: Viewpoint) -> tuple[NDArray, NDArray]:
    """Points [N, 3] of the object frame -> pixels [N, 2] as (x right, y down) and depths [N]
    (PASCAL3D+).
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
    """A pose as in photographs: any azimuth, mostly upright, the object filling 45 to 92 % of the
    picture.

    vertices [V, 3]: of the model. truncate: cut a part of the object off.
    """
    height, width = size_hw
    # Angles.
    azimuth = float(generator.uniform(0, 360))
    tilt = habit.elevation_deg
    elevation = np.clip(generator.normal(tilt.mean, tilt.deviation), tilt.least, tilt.most)
    theta = generator.normal(0, THETA_DEVIATION_DEG)
    theta = np.clip(theta, -LARGEST_THETA_DEG, LARGEST_THETA_DEG)
    angles = (azimuth, float(elevation), float(theta))
    # Distance, from the size at distance 5.
    unit, _ = project(vertices, Viewpoint(*angles, 5.0))
    fill = generator.uniform(*FILL)
    too_wide = np.ptp(unit[:, 0]) / (fill * width)
    too_high = np.ptp(unit[:, 1]) / (fill * height)
    distance = float(np.clip(5.0 * max(too_wide, too_high), 1500 / width, 7500 / width))
    # Place.
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
