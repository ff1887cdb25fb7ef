"""Changes of the size of pictures. Images are RGB uint8 [H, W, 3]."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def shrink(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average blocks of factor x factor pixels of an image [H, W, 3]."""
    return np.asarray(Image.fromarray(image).reduce(factor))


def enlarge(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Interpolate an image [H, W, 3] to `factor` times as many pixels along both axes."""
    height, width = image.shape[:2]
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def as_jpeg(image: NDArray[np.uint8], width: int, quality: int = 76) -> bytes:
    """Encode an image [H, W, 3] as a JPEG file of at most `width` pixels across."""
    picture = Image.fromarray(image)
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
