"""Shading of a model: colours under a light, shadows on itself, and the shadow on the ground.

Coordinates are the first dimension in these functions ([3, N]), since operations on contiguous rows
are several times as fast.
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
# From this distance the perspective-correct kernel is practically orthographic.
FAR = 50.0
# The ground's shadow is drawn from at least this elevation, or objects would seem to float.
LEAST_SHADOW_ELEVATION_DEG = 2.5


class DrawnObject(NamedTuple):
    """The object alone.

    rgb [H, W, 3]: colour in 0..1, multiplied by the coverage [H, W]. depths [H n, W n]: depths of
    the n x n samples of each pixel, infinite off the object.
    """

    rgb: NDArray[np.float32]
    coverage: NDArray[np.float32]
    depths: NDArray


def draw_object(
    model: Model, view: Viewpoint, looks: Looks, size_hw: tuple[int, int]
) -> DrawnObject:
    """Draw the model into an empty picture of a size."""
    n = SUPERSAMPLING
    height, width = size_hw
    # Window of the picture that the model covers.
    pixels, depth = project(model.vertices, view)
    low = np.clip(np.floor(pixels.min(0)) - 1, 0, [width, height]).astype(int)
    high = np.clip(np.ceil(pixels.max(0)) + 1, low, [width, height]).astype(int)
    columns, rows = (int(length) for length in high - low)
    # Colours of the window's samples.
    face_of, z_of, bary = rasterise((pixels - low) * n, depth, model.faces, rows * n, columns * n)
    rgba = np.zeros((*face_of.shape, 4), np.float32)
    seen = face_of >= 0
    corners = model.faces[face_of[seen]]
    rgba[seen, :3] = _shade(model, view, looks, corners, bary[seen].astype(np.float32))
    rgba[seen, 3] = 1.0
    # Means over the samples, put into the whole picture.
    window = slice(low[1], high[1]), slice(low[0], high[0])
    full = np.zeros((height, width, 4), np.float32)
    full[window] = rgba.reshape(rows, n, columns, n, 4).mean((1, 3))
    depths = np.full((height * n, width * n), np.inf)
    depths[low[1] * n : high[1] * n, low[0] * n : high[0] * n] = z_of
    return DrawnObject(full[..., :3], full[..., 3], depths)


def _shade(
    model: Model, view: Viewpoint, looks: Looks, corners: NDArray, bary: NDArray
) -> NDArray[np.float32]:
    """Compute the colours [N, 3] of points of the surface.

    corners [N, 3]: vertices of each point's triangle. bary [N, 3]: barycentric coordinates there.
    """
    towards = camera_axes(view)[2].astype(np.float32)
    points, normal, tag = _surface_points(model, corners, bary, towards)
    facing = np.clip(dot(towards, normal), 0, 1)
    material = model.material[corners[:, 0]]
    if model.paint is not None:
        material = model.paint(points, tag, material)

    # Diffuse light.
    sunlit = _unshadowed(model, looks.light, points, normal)
    lit = np.clip(dot(looks.light, normal), 0, 1) * sunlit
    ambient = _ambient_light(model, looks, points, normal)
    colour = np.take(looks.albedo.T, material, axis=1) * _grain(points, material)
    colour *= ambient + _outer(looks.light_rgb, lit)

    # Reflections of the surroundings, stronger at grazing angles, and highlights of the light.
    mirror, highlight, exponent = np.take(looks.gloss.T, material, axis=1)
    reflected = 2 * facing * normal - towards[:, None]
    away = (1 - facing) ** 2
    surroundings = _surroundings(looks, reflected)
    colour += (surroundings - colour) * (mirror * (0.10 + 0.90 * away * away))
    from_light = dot(looks.light, reflected) - 1
    glint = highlight * np.exp(exponent * from_light) * (lit > 0)
    return np.clip(colour + _outer(looks.light_rgb, glint), 0, 1.2).T


def _surface_points(
    model: Model, corners: NDArray, bary: NDArray, towards: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Interpolate points [3, N], unit normals [3, N] and tags [N] between the corners of triangles.

    corners, bary [N, 3]: see `_shade`. towards [3]: to the camera, which all normals face.
    """
    columns = [model.vertices, model.normals, model.tag[:, None]]
    table = np.concatenate(columns, 1).T.astype(np.float32)
    first, second, third = (
        np.take(table, corners[:, corner], axis=1) * bary[:, corner] for corner in range(3)
    )
    values = first + second + third
    normal = values[3:6]
    sign = np.where(dot(towards, normal) < 0, -1, 1).astype(np.float32)
    length = np.sqrt((normal**2).sum(0))
    normal *= sign / np.maximum(length, 1e-6)
    return values[:3], normal, values[6]


def _ambient_light(model: Model, looks: Looks, points: NDArray, normal: NDArray) -> NDArray:
    """Compute the light [3, N] of sky and ground; low points of the object see less of the sky."""
    low = model.vertices[:, 2].min()
    high = model.vertices[:, 2].max()
    above = points[2] - np.float32(low)
    open_sky = np.clip(0.45 + above * np.float32(1.6 / (high - low)), 0, 1)
    up = (0.5 + 0.5 * normal[2]) * (0.35 + 0.65 * open_sky)
    from_ground = _outer(looks.ground_rgb, 0.45 + 0.55 * open_sky)
    return from_ground + _outer(looks.sky_rgb - looks.ground_rgb, up)


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
    """Compute the brightness factor [N] of wood and woven fabric at points [3, N]; 1 elsewhere."""
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
    """Compute which points [3, N] the light reaches, by a shadow map.

    The result [N] is 1 in the light, 0 in the shadow of the object itself.
    """
    # Depth of the object as the light sees it.
    helper = np.array([0.0, 0.0, 1.0]) if abs(light[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(helper, light)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(light, right), light]).astype(np.float32)
    flat = dot(axes, model.vertices.T).T
    low = flat[:, :2].min(0)
    span = np.ptp(flat[:, :2], axis=0).max() * 1.02
    cells = (flat[:, :2] - low) / span * SHADOW_CELLS
    _, z_of, _ = rasterise(cells, FAR - flat[:, 2], model.faces, SHADOW_CELLS, SHADOW_CELLS)
    # Distance of the points behind the surface that the light sees.
    column, row, height = dot(axes, points + np.float32(0.008) * normal)
    column = _shadow_cell(column, low[0], span)
    row = _shadow_cell(row, low[1], span)
    behind = (np.float32(FAR) - height) - z_of.astype(np.float32)[row, column]
    return 1 - np.clip(behind * np.float32(100) - np.float32(0.6), 0, 1)


def _shadow_cell(position: NDArray, low: float, span: float) -> NDArray[np.int64]:
    """Find columns or rows [N] of positions in a shadow map, which covers low to low + span."""
    cell = (position - np.float32(low)) * np.float32(SHADOW_CELLS / span)
    return np.clip(cell, 0, SHADOW_CELLS - 1).astype(np.int64)


def ground_shadow(
    model: Model, view: Viewpoint, looks: Looks, size_hw: tuple[int, int]
) -> NDArray[np.floating]:
    """Compute the share of the light [H, W] that the ground loses in each pixel.

    That is the cast shadow, and the darkness below the object.
    """
    view = replace(view, elevation_deg=max(view.elevation_deg, LEAST_SHADOW_ELEVATION_DEG))
    straight_down = np.array([0.0, 0.0, 1.0])
    cast = 0.40 * _flat_shadow(model, view, looks.light, size_hw, blur=0.006) / 255
    below = 0.28 * _flat_shadow(model, view, straight_down, size_hw, blur=0.02) / 255
    return np.zeros(size_hw, np.float32) + cast + below


def _flat_shadow(
    model: Model, view: Viewpoint, light: NDArray, size_hw: tuple[int, int], blur: float
) -> NDArray[np.float32]:
    """Draw the shadow [H, W] in 0..255 that a light [3] casts on the ground.

    blur: radius of its blur, as a share of the picture's width.
    """
    height, width = size_hw
    floor = model.vertices[:, 2].min()
    # Every vertex is projected to the ground along the light; a low light would reach too far.
    rise = (model.vertices[:, 2:] - floor) / max(float(light[2]), 0.25)
    flat = model.vertices - rise * light
    flat[:, 2] = floor
    pixels, depth = project(flat, view)
    # Half the size is enough, since the shadow is blurred.
    face, _, _ = rasterise(pixels / 2, depth, model.faces, (height + 1) // 2, (width + 1) // 2)
    picture = Image.fromarray(np.uint8(255) * (face >= 0))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1 + blur * width)), np.float32)
