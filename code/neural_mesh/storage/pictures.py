"""Pictures in files, those of strangers included: what is read, and up to which size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from neural_mesh.storage.files import write_bytes

PICTURE_FORMATS = (
    "JPEG",
    "PNG",
    "GIF",
    "BMP",
    "WEBP",
)  # others can start programs (EPS) or decode in old libraries
MAX_PIXELS = 2**26  # of a picture: 67 million, 200 MB once decoded


def read_picture(path: Path, mode: str = "") -> NDArray[np.uint8]:
    """Decode a picture to [h, w, 3], or [h, w] when it is grey; CMYK, palette and alpha become RGB. mode: force it.

    Raises FileNotFoundError, or ValueError naming the file when it is broken, of a format not in PICTURE_FORMATS, or
    when its header claims more than MAX_PIXELS, which is seen before anything is decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"picture not found: {path}")
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"claims {image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}"
                )
            wanted = mode or (image.mode if image.mode in ("RGB", "L") else "RGB")
            return np.array(image if image.mode == wanted else image.convert(wanted))
    except Exception as error:  # decoders raise nearly anything on broken bytes
        reason = (
            f"not a picture of the kinds {', '.join(PICTURE_FORMATS)}"
            if isinstance(error, UnidentifiedImageError)
            else error
        )
        raise ValueError(f"{path}: {reason}") from error


def write_jpeg(path: Path, image: NDArray[np.uint8], quality: int) -> None:
    """Write uint8 [H, W, 3] or [H, W] as JPEG, as a whole or not at all."""
    encoded = io.BytesIO()  # an encoder that writes by itself swallows the error of a full disk
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    write_bytes(path, encoded.getvalue())
