"""The colours of all pictures: Okabe and Ito's palette, which colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GREEN = (0, 158, 115)
VERMILLION = (213, 94, 0)
BLUE = (0, 114, 178)
SKY = (86, 180, 233)
ORANGE = (230, 159, 0)


def fractions(rgb: Sequence[float]) -> NDArray[np.float64]:
    """A colour of 0..255 as the shares of 0..1 that matplotlib takes."""
    return np.array(rgb) / 255
