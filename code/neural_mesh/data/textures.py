"""Textures and cut-out shapes drawn at random, of which procedural occluders are made."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

CUTOUT_SIZE = 160  # side of a procedural cut-out in pixels


def fractal_noise(
    generator: Generator, size_hw: tuple[int, int], coarsest: int = 3, octaves: int = 4
) -> NDArray[np.float32]:
    """Smooth noise [H, W] about 0 with standard deviation near 0.3.

    coarsest: cells of the coarsest octave.
    """
    height, width = size_hw
    total = np.zeros(size_hw, np.float32)
    for octave in range(octaves):
        rows = coarsest * 2**octave
        columns = max(2, round(rows * width / height))
        cells = generator.standard_normal((rows + 1, columns + 1)).astype(np.float32)
        fine = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(fine) * 0.5 ** (octave + 1)
    return total


def random_colour(generator: Generator) -> NDArray[np.float32]:
    """An RGB colour in [0, 255], most often muted."""
    grey = generator.uniform(30, 225)
    tint = generator.uniform(-1, 1, 3)
    strength = generator.choice([12.0, 35.0, 80.0], p=[0.45, 0.35, 0.2])
    return np.clip(grey + tint * strength, 5, 250).astype(np.float32)


def procedural_texture(generator: Generator, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """A picture [H, W, 3] in [0, 255]: noise, stripes or checks between two or three colours."""
    # Coordinates across the stripes, bent by noise.
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
    angle = generator.uniform(0, np.pi)
    period = generator.uniform(0.05, 0.3) * size_hw[0]
    warp = fractal_noise(generator, size_hw, 2, 5)
    straight = (rows * np.sin(angle) + columns * np.cos(angle)) / period
    along = straight + warp * generator.uniform(0, 0.5)
    across = (columns * np.sin(angle) - rows * np.cos(angle)) / period

    # The weight of the second colour.
    kind = generator.choice(["noise", "stripes", "checks", "noise"])
    if kind == "noise":
        noise = fractal_noise(generator, size_hw, int(generator.integers(2, 9)), 4)
        weight = np.clip(0.5 + 1.3 * noise, 0, 1)
    else:
        wave = np.sin(2 * np.pi * along)
        if kind == "checks":
            wave = wave * np.sin(2 * np.pi * across)
        weight = np.clip(0.5 + wave * generator.uniform(0.6, 4), 0, 1)

    # Colours, the third in broad patches, and grain.
    first, second, third = (random_colour(generator) for _ in range(3))
    colour = first + (second - first) * weight[..., None]
    colour += (third - colour) * np.clip(warp * 0.8, 0, 0.6)[..., None]
    grain = 14 * generator.standard_normal(size_hw)[..., None]
    return np.clip(colour + grain, 0, 255).astype(np.float32)


def procedural_cutout(generator: Generator) -> NDArray[np.uint8]:
    """A shaded, textured shape (blob, polygon or bar) as RGBA [CUTOUT_SIZE, CUTOUT_SIZE, 4]."""
    size = CUTOUT_SIZE
    colour = procedural_texture(generator, (size, size))
    # x, y in (-1, 1); u, v are the same turned.
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y = axis[:, None]
    x = axis[None, :]
    turn = generator.uniform(0, np.pi)
    u = x * np.cos(turn) + y * np.sin(turn)
    v = y * np.cos(turn) - x * np.sin(turn)

    # `inside` is positive in the shape.
    kind = generator.choice(["blob", "blob", "polygon", "bar"])
    if kind == "bar":
        half = generator.uniform(0.22, 0.6)
        power = generator.uniform(4, 12)
        inside = 1 - ((np.abs(u) / 0.95) ** power + (np.abs(v) / half) ** power) ** (1 / power)
    else:
        outline = _outline(kind, np.arctan2(v, u), generator)
        inside = outline - np.hypot(u, v / generator.uniform(0.55, 1))
    alpha = np.clip(0.5 + inside * size / 4, 0, 1)

    # Light from one side, and a dark rim.
    light = generator.uniform(-1, 1, 2)
    rim = np.clip(1 - inside / 0.35, 0, 1) ** 2
    shade = 1 + 0.30 * (light[0] * x + light[1] * y) - 0.35 * rim
    rgb = np.clip(colour * shade[..., None], 0, 255)
    return np.concatenate([rgb, 255 * alpha[..., None]], -1).round().astype(np.uint8)


def _outline(kind: str, angle: NDArray, generator: Generator) -> NDArray:
    """Distance of the outline from the centre at each angle, in (0.2, 1)."""
    if kind == "polygon":
        corners = np.sort(generator.uniform(-np.pi, np.pi, int(generator.integers(4, 9))))
        distances = generator.uniform(0.55, 0.97, len(corners))
        return np.interp(angle, corners, distances, period=2 * np.pi)
    waves = 0
    for k in range(2, 7):
        height = generator.normal(0, 0.16 / k)
        waves = waves + height * np.cos(k * angle + generator.uniform(0, 2 * np.pi))
    return np.clip(0.72 + waves, 0.25, 0.98)
