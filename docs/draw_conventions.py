"""Draw docs/conventions.png: what docs/conventions.md says, by the functions that it names.

python docs/draw_conventions.py
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.patches import Arc, FancyArrowPatch, Rectangle

from neural_mesh.geometry.cameras import Pose, points_in_pascal_cam, project
from neural_mesh.sample.models import models

RED, GREEN, BLUE = "#c1440e", "#2e7d4f", "#1f5fa8"
INK, GREY = "#222222", "#8a8a8a"
BODY = np.array([0.80, 0.83, 0.87])
FAR = 1000.0  # CAD units, for views without perspective
SIDE_VIEW = Pose(math.pi / 2, 0.0, 0.0, FAR, (0.0, 0.0))


def flat(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Points [N, 3] of the object frame on the paper [N, 2]: x right, y up, in CAD units."""
    xy = project(points, pose, pose.distance)
    return xy * [1.0, -1.0]


def draw_car(axes: plt.Axes, pose: Pose, scale: float = 1.0, middle: tuple = (0.0, 0.0)) -> None:
    """The sample's first car, far faces first, lit from the camera's upper left."""
    car = models("car")[0]
    on_paper = flat(car.vertices, pose) * scale + middle
    in_cam = points_in_pascal_cam(car.vertices, pose)
    corners = in_cam[car.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    light = np.array([-0.4, 0.6, 0.7])
    brightness = 0.55 + 0.45 * np.abs(normals @ light / np.linalg.norm(light))
    order = np.argsort(corners[:, :, 2].mean(1))
    colours = np.clip(BODY * brightness[order, None], 0, 1)
    faces = PolyCollection(
        on_paper[car.faces[order]], facecolors=colours, edgecolors="face", lw=0.2
    )
    axes.add_collection(faces)


def arrow(axes: plt.Axes, start: tuple, end: tuple, colour: str, width: float = 1.8) -> None:
    style = dict(arrowstyle="-|>", mutation_scale=12, lw=width, color=colour, shrinkA=0, shrinkB=0)
    axes.add_patch(FancyArrowPatch(start, end, zorder=5, **style))


def label(axes: plt.Axes, at: tuple, text: str, colour: str = INK, **options: object) -> None:
    style = dict(ha="center", va="center", fontsize=9.5, color=colour, zorder=6)
    axes.text(*at, text, **(style | options))


def panel(axes: plt.Axes, title: str, x: tuple, y: tuple) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=11.5, color=INK, loc="left", pad=6)


def camera_symbol(axes: plt.Axes, at: np.ndarray, towards: np.ndarray) -> None:
    """A small camera that looks from one point of the paper to another."""
    forward = (towards - at) / np.linalg.norm(towards - at)
    side = np.array([-forward[1], forward[0]])
    front = at + 0.1 * forward
    outline = [front + 0.045 * side, front - 0.045 * side, at]
    axes.add_patch(plt.Polygon(outline, facecolor="white", edgecolor=INK, lw=1.2, zorder=7))


def draw_object(axes: plt.Axes) -> None:
    """The axes of a CAD model."""
    panel(axes, "The object: right-handed, front towards -y", (-0.85, 0.85), (-0.52, 0.63))
    pose = Pose(math.radians(38), math.radians(22), 0.0, 3.0, (0.0, 0.0))
    draw_car(axes, pose)
    tips = {
        "x (its left)": ((0.55, 0, 0), RED),
        "y (back)": ((0, 0.85, 0), GREEN),
        "z (up)": ((0, 0, 0.48), BLUE),
    }
    origin = flat(np.zeros((1, 3)), pose)[0]
    for name, (tip, colour) in tips.items():
        end = flat(np.array([tip]), pose)[0]
        arrow(axes, origin, end, colour)
        away = (end - origin) / np.linalg.norm(end - origin)
        label(axes, end + away * [0.14, 0.06], name, colour)
    front = flat(np.array([[0, -0.62, -0.1]]), pose)[0]
    label(axes, front, "front", INK, style="italic")


def draw_azimuth(axes: plt.Axes) -> None:
    """From above, the front at the bottom of the paper, and so the object's left on the right."""
    panel(axes, "Azimuth, from above", (-1.2, 1.2), (-0.82, 0.82))
    above = Pose(0.0, math.pi / 2, 0.0, FAR, (0.0, 0.0))
    draw_car(axes, above, 0.75)
    axes.add_patch(plt.Circle((0, 0), 0.62, fill=False, ls=(0, (4, 3)), color=GREY, lw=1))
    for degrees, name in (
        (0, "0\nfront"),
        (90, "π/2\nits left"),
        (180, "π\nback"),
        (270, "3π/2\nits right"),
    ):
        azimuth = math.radians(degrees)
        at = 0.62 * np.array([math.sin(azimuth), -math.cos(azimuth)])
        camera_symbol(axes, at, np.zeros(2))
        label(axes, at * [1.3, 1.22], name)
    axes.add_patch(Arc((0, 0), 1.0, 1.0, theta1=-84, theta2=-28, color=RED, lw=2))
    arrow(axes, (0.43, -0.255), (0.455, -0.205), RED)
    label(axes, (0.72, -0.47), "azimuth", RED)


def draw_elevation(axes: plt.Axes) -> None:
    """From the object's left, its front on the left of the paper."""
    panel(axes, "Elevation and distance, from its left", (-1.12, 0.62), (-0.48, 0.71))
    draw_car(axes, SIDE_VIEW, 0.75)
    elevation = math.radians(32)
    at = 0.95 * np.array([-math.cos(elevation), math.sin(elevation)])
    axes.plot([-1.05, 0.55], [0, 0], color=GREY, lw=1, ls=(0, (4, 3)))
    axes.plot([at[0], 0], [at[1], 0], color=INK, lw=1.2, zorder=4)
    axes.plot(0, 0, "o", color=INK, ms=4, zorder=6)
    camera_symbol(axes, at, np.zeros(2))
    label(axes, at * 0.55 + [0.09, 0.13], "distance", INK, rotation=-32)
    start, end = 180 - math.degrees(elevation), 180
    axes.add_patch(Arc((0, 0), 1.3, 1.3, theta1=start, theta2=end, color=BLUE, lw=2))
    arrow(axes, (-0.575, 0.30), (-0.551, 0.345), BLUE)
    label(axes, (-0.80, 0.13), "elevation", BLUE)


def draw_theta(axes: plt.Axes) -> None:
    """The picture: its axes, and what theta does."""
    panel(axes, "The picture: pixels and theta", (-0.14, 1.7), (-0.3, 0.95))
    turned = Pose(math.radians(30), math.radians(12), math.radians(20), 3.0, (0.0, 0.0))
    axes.add_patch(Rectangle((0, 0), 1.5, 0.8, facecolor="#f4f4f4", edgecolor=INK, lw=1.2))
    middle = np.array([0.75, 0.4])
    draw_car(axes, turned, 0.95, tuple(middle))
    right = np.array([math.cos(turned.theta), math.sin(turned.theta)])
    axes.plot(*zip(middle, middle + [0.62, 0]), color=GREY, lw=1, ls=(0, (4, 3)))
    axes.plot(*zip(middle, middle + 0.62 * right), color=RED, lw=1.4, zorder=4)
    axes.add_patch(Arc(middle, 1.1, 1.1, theta1=0, theta2=17, color=RED, lw=2))
    arrow(axes, middle + [0.5275, 0.155], middle + [0.517, 0.188], RED)
    label(axes, middle + [0.64, 0.1], "theta", RED)
    axes.plot(*middle, "o", color=INK, ms=4, zorder=6)
    label(axes, middle + [0.0, -0.33], "principal point: where the origin falls")
    arrow(axes, (0, 0.8), (0.34, 0.8), INK)
    arrow(axes, (0, 0.8), (0, 0.48), INK)
    label(axes, (0.2, 0.87), "x, columns")
    label(axes, (-0.06, 0.56), "y, rows", rotation=90)
    label(axes, (0.75, -0.17), "x = principal x + 3000 x / depth\ny = principal y - 3000 y / depth")


def draw_frames(axes: plt.Axes) -> None:
    """The three camera frames, all seen from behind the camera."""
    panel(axes, "Camera frames, seen from behind the camera", (-0.5, 3.5), (-1.35, 1.35))
    frames = {
        "pascal_cam": ("x", (1, 0), "y", (0, 1), "z to you", False),
        "cv_cam": ("x", (1, 0), "y", (0, -1), "z forward", True),
        "pt3d_cam": ("x", (-1, 0), "y", (0, 1), "z forward", True),
    }
    for number, (name, (x, x_way, y, y_way, z, away)) in enumerate(frames.items()):
        origin = np.array([1.25 * number + (0.4 if number == 2 else 0.0), 0.0])
        for axis, way, colour in ((x, x_way, RED), (y, y_way, GREEN)):
            end = origin + 0.5 * np.array(way)
            arrow(axes, origin, end, colour)
            label(axes, origin + 0.63 * np.array(way), axis, colour)
        # A dot is the tip of an arrow that comes, a cross the feathers of one that goes.
        axes.plot(*origin, "o", ms=13, mfc="white", mec=BLUE, mew=1.8, zorder=6)
        axes.plot(*origin, "x" if away else ".", ms=8, color=BLUE, mew=1.8, zorder=7)
        label(axes, origin + [0.34, -0.2 if y_way[1] > 0 else 0.22], z, BLUE, fontsize=8.5)
        label(axes, origin + [0, 1.0], name, INK, family="monospace", fontsize=10)
    label(axes, (1.5, -1.1), "cv = (x, -y, -z) of pascal        pt3d = (-x, y, -z) of pascal")


def draw_crop(axes: plt.Axes) -> None:
    """Photograph, crop, and feature map."""
    panel(
        axes,
        "Crop: distance 5, origin in the middle; cells of 8 pixels",
        (-0.05, 2.6),
        (-0.55, 1.23),
    )
    pose = Pose(math.radians(-35), math.radians(10), 0.0, 3.0, (0.0, 0.0))
    photo = np.array([0.46, 0.55])
    axes.add_patch(Rectangle((0, 0), 1.05, 0.95, facecolor="#f4f4f4", edgecolor=INK, lw=1.2))
    draw_car(axes, pose, 0.55, tuple(photo))
    window = np.array([0.42, 0.17])
    axes.add_patch(
        Rectangle(photo - window, *(2 * window), fill=False, edgecolor=RED, lw=1.6, zorder=6)
    )
    label(axes, (0.52, -0.12), "original")
    arrow(axes, (1.1, 0.5), (1.4, 0.5), INK)
    label(axes, (2.0, 0.87), "scaled by distance / 5")
    middle = np.array([2.0, 0.5])
    half = np.array([0.55, 0.2226])
    axes.add_patch(
        Rectangle(middle - half, *(2 * half), facecolor="#f4f4f4", edgecolor=RED, lw=1.6)
    )
    draw_car(axes, pose, 0.72, tuple(middle))
    lines = np.arange(1, 16) / 16
    for share in lines:
        x = middle[0] - half[0] + 2 * half[0] * share
        axes.plot([x, x], [middle[1] - half[1], middle[1] + half[1]], color=GREY, lw=0.4, zorder=5)
    for share in np.arange(1, 6) / 6:
        y = middle[1] - half[1] + 2 * half[1] * share
        axes.plot([middle[0] - half[0], middle[0] + half[0]], [y, y], color=GREY, lw=0.4, zorder=5)
    axes.plot(*middle, "o", color=INK, ms=4, zorder=7)
    axes.plot(*photo, "o", color=INK, ms=4, zorder=7)
    label(axes, (2.0, 0.13), "crop and feature map")
    label(axes, (1.25, -0.32), "crop = crop_scale * original + crop_offset, on (row, col)")


def main() -> None:
    figure, axes = plt.subplots(2, 3, figsize=(14, 8.2), dpi=110)
    draw_object(axes[0, 0])
    draw_azimuth(axes[0, 1])
    draw_elevation(axes[0, 2])
    draw_theta(axes[1, 0])
    draw_frames(axes[1, 1])
    draw_crop(axes[1, 2])
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.95, wspace=0.06, hspace=0.12)
    figure.savefig(Path(__file__).with_name("conventions.png"))


if __name__ == "__main__":
    main()
