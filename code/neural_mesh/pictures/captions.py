"""Poses in words, as captions of pictures give them."""

from __future__ import annotations

from numpy.typing import ArrayLike

from neural_mesh.geometry.cameras import in_degrees

ANGLE_NAMES = ("azimuth", "elevation", "theta")


def short_angles(angles: ArrayLike) -> str:
    """Write azimuth, elevation and theta [3], in radians, as `92°, 7°, 0°`."""
    return ", ".join(f"{round(value)}°" for value in in_degrees(angles).tolist())


def long_angles(angles: ArrayLike) -> str:
    """Write angles [3], in radians, as `azimuth 92.3°, elevation 6.8°, theta -0.3°`."""
    words = []
    for name, value in zip(ANGLE_NAMES, in_degrees(angles).tolist(), strict=True):
        # Adding zero turns -0.0 into 0.0.
        words.append(f"{name} {round(value, 1) + 0.0:.1f}°")
    return ", ".join(words)
