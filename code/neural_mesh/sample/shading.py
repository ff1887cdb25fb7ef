"""A model as its camera sees it: colours under a light, its own shadows, and the shadow on the
ground.

Inside of these functions coordinates come first ([3, N]): whole rows are contiguous, which is
several times as fast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from neural_mesh.compare.kernels_numba import rasterise
from neural_mesh.sample import parts
from neural_mesh.sample.looks import Looks
from neural_mesh.sample.parts import Model
from neural_mesh.sample.viewpoints import Viewpoint, camera_axes, dot, project

SUPERSAMPLING = 2  # samples per pixel along each axis
SHADOW_CELLS = 192  # of a shadow map along each axis
# So far away that the perspective-correct kernel is as good as orthographic.
FAR = 50.0
# From lower down the ground is drawn as from here, or objects would float.
LEAST_SHADOW_ELEVATION_DEG = 2.5


class DrawnObject(NamedTuple):
    """The object alone: RGB [H, W, 3] in 0..1 times its coverage [H, W], and depths [H n, W n] of
    samples.
    """

    rgb: NDArray[np.float32]
    coverage: NDArray[np.float32]
    depths: NDArray


def draw_object(
    model: Model, view: Viewpoint, looks: Looks, size_hw: tuple[int, int]
) -> DrawnObject:
    """The model in a picture of a size."""
    n = SUPERSAMPLING
    height, width = size_hw
    # The window that it takes.
    pixels, depth = project(model.vertices, view)
    low = np.clip(np.floor(pixels.min(0)) - 1, 0, [width, height]).astype(int)
    high = np.clip(np.ceil(pixels.max(0)) + 1, low, [width, height]).astype(int)
    columns, rows = (int(length) for length in high - low)
    # Its samples.
    face_of, z_of, bary = rasterise((pixels - low) * n, depth, model.faces, rows * n, columns * n)
    rgba = np.zeros((*face_of.shape, 4), np.float32)
    seen = face_of >= 0
    corners = model.faces[face_of[seen]]
    rgba[seen, :3] = _shade(model, view, looks, corners, bary[seen].astype(np.float32))
    rgba[seen, 3] = 1.0
    # The whole picture.
    window = slice(low[1], high[1]), slice(low[0], high[0])
    full = np.zeros((height, width, 4), np.float32)
    full[window] = rgba.reshape(rows, n, columns, n, 4).mean((1, 3))
    depths = np.full((height * n, width * n), np.inf)
    depths[low[1] * n : high[1] * n, low[0] * n : high[0] * n] = z_of
    return DrawnObject(full[..., :3], full[..., 3], depths)


def _shade(
    model: Model, view: Viewpoint, looks: Looks, corners: NDArray, bary: NDArray
) -> NDArray[np.float32]:
    """Colour [N, 3] of the points with barycentric coordinates [N, 3] in the triangles [N, 3]."""
    # Position, normal, direction towards the camera, material.
    columns = [model.vertices, model.normals, model.tag[:, None]]
    table = np.concatenate(columns, 1).T.astype(np.float32)
    values = sum(np.take(table, corners[:, i], axis=1) * bary[:, i] for i in range(3))
    points = values[:3]
    normal = values[3:6]
    tag = values[6]
    towards = camera_axes(view)[2].astype(np.float32)
    sign = np.where(dot(towards, normal) < 0, -1, 1).astype(np.float32)
    normal *= sign / np.maximum(np.sqrt((normal**2).sum(0)), 1e-6)
    facing = np.clip(dot(towards, normal), 0, 1)
    material = model.material[corners[:, 0]]
    if model.paint is not None:
        material = model.paint(points, tag, material)

    # Light of the sun, the sky and the ground.
    sunlit = _unshadowed(model, looks.light, points, normal)
    lit = np.clip(dot(looks.light, normal), 0, 1) * sunlit
    low = model.vertices[:, 2].min()
    high = model.vertices[:, 2].max()
    open_sky = np.clip(0.45 + (points[2] - np.float32(low)) * np.float32(1.6 / (high - low)), 0, 1)
    up = (0.5 + 0.5 * normal[2]) * (0.35 + 0.65 * open_sky)
    ambient = _outer(looks.ground_rgb, 0.45 + 0.55 * open_sky)
    ambient = ambient + _outer(looks.sky_rgb - looks.ground_rgb, up)
    colour = np.take(looks.albedo.T, material, axis=1) * _grain(points, material)
    colour *= ambient + _outer(looks.light_rgb, lit)

    # Reflections.
    mirror, highlight, exponent = np.take(looks.gloss.T, material, axis=1)
    reflected = 2 * facing * normal - towards[:, None]
    away = (1 - facing) ** 2
    surroundings = _surroundings(looks, reflected)
    colour += (surroundings - colour) * (mirror * (0.10 + 0.90 * away * away))
    from_light = dot(looks.light, reflected) - 1
    glint = highlight * np.exp(exponent * from_light) * (lit > 0)
    return np.clip(colour + _outer(looks.light_rgb, glint), 0, 1.2).T


def _outer(rgb: NDArray, weight: NDArray) -> NDArray[np.float32]:
    """A colour [3] times a weight [N] -> [3, N]."""
    return rgb[:, None] * weight


def _surroundings(looks: Looks, direction: NDArray) -> NDArray[np.float32]:
    """What a mirror sees in direction [3, N]: ground, a dark uneven horizon, sky [3, N]."""
    x, y, z = direction
    # An uneven horizon; the ground begins below, the sky above it.
    skyline = 0.10 + 0.08 * np.sin(5 * x + 3 * y) + 0.05 * np.sin(17 * x)
    above = np.clip((z - skyline) / 0.12, 0, 1)
    below = np.clip(z * -4, 0, 1)
    dark = 0.35 * looks.ground_rgb
    sky = _outer(1.45 * looks.sky_rgb - dark, above)
    ground = _outer(0.9 * looks.ground_rgb - dark, below)
    return dark[:, None] + sky + ground


def _grain(points: NDArray, material: NDArray) -> NDArray[np.float32]:
    """Brightness factor [N] of wood and woven fabric at points [3, N]; 1 elsewhere."""
    factor = np.ones(len(material), np.float32)
    # Rings and fibres of wood.
    wood = material == parts.WOOD
    x, y, z = points[:, wood]
    rings = 0.07 * np.sin(150 * (x + y) + 3 * np.sin(21 * z) + 14 * z)
    fibres = 0.05 * np.sin(460 * (x - y) + 9 * z)
    factor[wood] += rings + fibres
    # Threads of cloth.
    cloth = (material == parts.FABRIC) | (material == parts.FABRIC2)
    x, y, z = points[:, cloth]
    factor[cloth] += 0.06 * np.sin(520 * x) * np.sin(520 * (y + z))
    return factor


def _unshadowed(
    model: Model, light: NDArray, points: NDArray, normal: NDArray
) -> NDArray[np.float32]:
    """1 where the light reaches points [3, N], 0 where the object itself is in between (a shadow
    map).
    """
    # The object as the light sees it.
    helper = np.array([0.0, 0.0, 1.0]) if abs(light[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(helper, light)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(light, right), light]).astype(np.float32)
    flat = dot(axes, model.vertices.T).T
    low = flat[:, :2].min(0)
    span = np.ptp(flat[:, :2], axis=0).max() * 1.02
    cells = (flat[:, :2] - low) / span * SHADOW_CELLS
    _, z_of, _ = rasterise(cells, FAR - flat[:, 2], model.faces, SHADOW_CELLS, SHADOW_CELLS)
    # How far the points lie behind what it sees.
    column, row, height = dot(axes, points + np.float32(0.008) * normal)
    column = _shadow_cell(column, low[0], span)
    row = _shadow_cell(row, low[1], span)
    behind = (np.float32(FAR) - height) - z_of.astype(np.float32)[row, column]
    return 1 - np.clip(behind * np.float32(100) - np.float32(0.6), 0, 1)


def _shadow_cell(position: NDArray, low: float, span: float) -> NDArray[np.int64]:
    """Column or row of a shadow map, which spans `span` from `low` on, at positions [N]."""
    cell = (position - np.float32(low)) * np.float32(SHADOW_CELLS / span)
    return np.clip(cell, 0, SHADOW_CELLS - 1).astype(np.int64)


def ground_shadow(
    model: Model, view: Viewpoint, looks: Looks, size_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Share of the light that the ground loses at each pixel [H, W]: the cast shadow, and the dark
    below the object.
    """
    view = replace(view, elevation_deg=max(view.elevation_deg, LEAST_SHADOW_ELEVATION_DEG))
    straight_down = np.array([0.0, 0.0, 1.0])
    cast = 0.40 * _flat_shadow(model, view, looks.light, size_hw, blur=0.006) / 255
    below = 0.28 * _flat_shadow(model, view, straight_down, size_hw, blur=0.02) / 255
    return np.zeros(size_hw, np.float32) + cast + below


def _flat_shadow(
    model: Model, view: Viewpoint, light: NDArray, size_hw: tuple[int, int], blur: float
) -> NDArray[np.float32]:
    """The shadow [H, W] in 0..255 on the ground by a light [3], blurred by a share of the picture's
    width.
    """
    height, width = size_hw
    floor = model.vertices[:, 2].min()
    # Every vertex falls to the ground along the light; low light would fall too far.
    rise = (model.vertices[:, 2:] - floor) / max(float(light[2]), 0.25)
    flat = model.vertices - rise * light
    flat[:, 2] = floor
    pixels, depth = project(flat, view)
    # At half the size, since it is blurred anyway.
    face, _, _ = rasterise(pixels / 2, depth, model.faces, (height + 1) // 2, (width + 1) // 2)
    picture = Image.fromarray(np.uint8(255) * (face >= 0))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1 + blur * width)), np.float32)
