"""Colours of curves, markers and meshes from the palette of Okabe and Ito.

Colour-blind readers can tell these colours apart. Occluder maps have colours of their own, see
`occluder_map.LABEL_COLOURS`.
"""

from __future__ import annotations

from collections.abc import Iterable

Colour = tuple[float, float, float]  # red, green and blue in 0..1, as matplotlib takes them

# Red, green and blue in 0..255.
GREEN = (0, 158, 115)
VERMILLION = (213, 94, 0)
BLUE = (0, 114, 178)
SKY = (86, 180, 233)
ORANGE = (230, 159, 0)


def fractions(rgb: Iterable[float]) -> Colour:
    """Convert a colour from 0..255 to 0..1."""
    red, green, blue = (float(value) / 255 for value in rgb)
    return red, green, blue
