"""The looks of a picture: the colours and gloss of materials, and the light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from neural_mesh.data.textures import random_colour
from neural_mesh.sample import parts
from neural_mesh.sample.viewpoints import Viewpoint

# RGB in 0..1.
CAR_PAINTS = np.array(
    [
        (0.86, 0.86, 0.85),
        (0.62, 0.64, 0.66),
        (0.10, 0.10, 0.11),
        (0.30, 0.31, 0.33),
        (0.62, 0.06, 0.06),
        (0.08, 0.17, 0.45),
        (0.12, 0.33, 0.20),
        (0.80, 0.55, 0.08),
        (0.55, 0.30, 0.12),
        (0.45, 0.62, 0.72),
        (0.72, 0.66, 0.52),
        (0.35, 0.10, 0.14),
    ]
)
WOODS = np.array(
    [
        (0.55, 0.36, 0.20),
        (0.36, 0.21, 0.12),
        (0.70, 0.53, 0.33),
        (0.20, 0.13, 0.10),
        (0.82, 0.80, 0.76),
    ]
)
# Materials that always look the same: RGB, mirror reflection, highlight, exponent.
FIXED_LOOKS = {
    parts.GLASS: (0.05, 0.06, 0.07, 0.85, 0.9, 120),
    parts.TYRE: (0.035, 0.035, 0.037, 0.03, 0.05, 8),
    parts.RIM: (0.62, 0.63, 0.65, 0.35, 0.6, 40),
    parts.CHROME: (0.66, 0.67, 0.69, 0.6, 0.8, 60),
    parts.BLACK: (0.035, 0.036, 0.04, 0.08, 0.1, 15),
    parts.HEADLIGHT: (0.88, 0.90, 0.92, 0.6, 1.0, 80),
    parts.TAILLIGHT: (0.62, 0.02, 0.03, 0.4, 0.8, 60),
    parts.PLATE: (0.88, 0.88, 0.82, 0.05, 0.1, 10),
    parts.GAP: (0.03, 0.03, 0.03, 0.0, 0.0, 5),
    parts.METAL: (0.55, 0.56, 0.58, 0.45, 0.8, 50),
}


@dataclass(frozen=True)
class Looks:
    """Colours and light of one picture; directions are in the object frame, colours RGB in 0..1.

    albedo [materials, 3]: colours. gloss [materials, 3]: mirror reflection, highlight and exponent.
    light [3]: direction towards the light. light_rgb, sky_rgb, ground_rgb [3]: colours of the light
    from each.
    """

    albedo: NDArray[np.float32]
    gloss: NDArray[np.float32]
    light: NDArray[np.float32]
    light_rgb: NDArray[np.float32]
    sky_rgb: NDArray[np.float32]
    ground_rgb: NDArray[np.float32]


def random_looks(generator: Generator, view: Viewpoint) -> Looks:
    """Choose the colours of paint, wood and fabric, and the light."""
    # The order of these draws decides the pictures of a seed.
    table = _random_materials(generator)
    light = _random_direction(generator, view)
    warmth = generator.normal(0, 0.07)
    strength = generator.uniform(0.55, 1.15)
    ambient = generator.uniform(0.35, 0.65)
    # Colours of the sun, of a bluish sky and of a brownish ground.
    light_rgb = strength * np.array([1 + warmth, 1.0, 1 - warmth])
    sky_tone = np.array([0.95, 1.0, 1.08])
    ground_tone = np.array([1.05, 1.0, 0.92])
    sky_rgb = ambient * sky_tone * generator.uniform(0.95, 1.05, 3)
    ground_rgb = ambient * 0.55 * ground_tone * generator.uniform(0.9, 1.1, 3)
    return Looks(
        albedo=table[:, :3].astype(np.float32),
        gloss=table[:, 3:].astype(np.float32),
        light=light.astype(np.float32),
        light_rgb=light_rgb.astype(np.float32),
        sky_rgb=sky_rgb.astype(np.float32),
        ground_rgb=ground_rgb.astype(np.float32),
    )


def _random_materials(generator: Generator) -> NDArray:
    """Choose RGB, mirror reflection, highlight and exponent of every material [materials, 6]."""
    table = np.zeros((parts.NUM_MATERIALS, 6))
    for material, row in FIXED_LOOKS.items():
        table[material] = row
    table[parts.PAINT, :3] = _tint(generator, CAR_PAINTS, 0.05)
    table[parts.PAINT, 3:] = (generator.uniform(0.3, 0.6), 0.7, generator.uniform(30, 90))
    table[parts.WOOD] = (*_tint(generator, WOODS, 0.06), 0.12, 0.25, 20)
    table[parts.FABRIC] = (*_fabric_colour(generator), 0.0, 0.05, 6)
    table[parts.FABRIC2] = (*_fabric_colour(generator), 0.02, 0.06, 8)
    # Some metal is painted black.
    if generator.random() < 0.3:
        table[parts.METAL, :3] *= 0.12
    return table


def _fabric_colour(generator: Generator) -> NDArray:
    """Choose any colour; the exponent makes most of them darker and more saturated."""
    return (random_colour(generator) / 255) ** 1.3


def _random_direction(generator: Generator, view: Viewpoint) -> NDArray:
    """Choose a direction [3] towards the light, from above and mostly from the camera's side."""
    turn = np.radians(view.azimuth_deg) + generator.normal(0, 1.0)
    height = generator.uniform(0.35, 1.25)
    level = np.cos(height)
    return np.array([np.sin(turn) * level, -np.cos(turn) * level, np.sin(height)])


def _tint(generator: Generator, colours: NDArray, spread: float) -> NDArray:
    """Choose one of the colours [K, 3], and vary its brightness and its tone a little."""
    colour = colours[int(generator.integers(len(colours)))]
    brightness = generator.uniform(0.8, 1.15)
    tone = generator.normal(0, spread, 3) * colour
    return np.clip(colour * brightness + tone, 0.02, 0.95)
