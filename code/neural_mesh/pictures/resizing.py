"""Pictures in other sizes. Images are RGB uint8 [H, W, 3]."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def shrink(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The image [H, W, 3] with blocks of factor x factor pixels averaged."""
    return np.asarray(Image.fromarray(image).reduce(factor))


def enlarge(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The image [H, W, 3] with `factor` times as many pixels on both axes, interpolated."""
    height, width = image.shape[:2]
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def as_jpeg(image: NDArray[np.uint8], width: int, quality: int = 76) -> bytes:
    """The image [H, W, 3] as a JPEG file of at most this width."""
    picture = Image.fromarray(image)
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
