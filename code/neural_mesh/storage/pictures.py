"""Pictures in files, those of strangers included: what is read, and up to which size.

Two kinds of files are decoded. The pictures of a data set (`read_picture`) are taken as they are
stored: their annotations count pixels from the stored corner. Anybody's photographs
(`read_photograph`) may be of more formats and larger, and are upright: a camera's turn (EXIF) is
undone before anything is measured. Positions in a photograph are (x right, y down) in pixels,
pixel (row, col) covers [col, col + 1) x [row, row + 1).
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from neural_mesh.storage.files import write_bytes

# Formats that are not listed can start programs (EPS) or decode in old libraries.
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
PHOTOGRAPH_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# What a folder of photographs is searched for, in alphabetical order.
PHOTOGRAPH_SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
MAX_PIXELS = 2**26  # of a picture: 67 million, 200 MB once decoded
MAX_PHOTOGRAPH_PIXELS = 179_000_000  # decoded, 3 bytes each; Pillow refuses more by itself
SMALLEST_SIDE = 16  # pixels; a photograph with less shows nothing of an object
MAX_REDUCTION = 64
EXIF_ORIENTATION = 0x0112
ON_ITS_SIDE = (5, 6, 7, 8)  # orientations that exchange width and height
WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")  # modes
READING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    Image.DecompressionBombError,
)


# ---- pictures of a data set ----


def read_picture(path: Path, mode: str = "") -> NDArray[np.uint8]:
    """Decode a picture to [h, w, 3], or [h, w] when it is grey.

    CMYK, palette and alpha become RGB. mode: force it.
    Raises FileNotFoundError, or ValueError naming the file when it is broken, of a format not in
    PICTURE_FORMATS, or when its header claims more than MAX_PIXELS, which is seen before anything
    is decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"picture not found: {path}")
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            return _as_stored(image, mode)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: {_of_no_kind(PICTURE_FORMATS)}") from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ValueError(f"{path}: {error}") from error


def _of_no_kind(formats: Sequence[str]) -> str:
    return f"not a picture of the kinds {', '.join(formats)}"


def _as_stored(image: Image.Image, mode: str) -> NDArray[np.uint8]:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"claims {image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}"
        )
    if not mode:
        mode = image.mode if image.mode in ("RGB", "L") else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))


def write_jpeg(path: Path, image: NDArray[np.uint8], quality: int) -> None:
    """Write uint8 [H, W, 3] or [H, W] as JPEG, as a whole or not at all."""
    encoded = io.BytesIO()  # an encoder that writes by itself swallows the error of a full disk
    Image.fromarray(image).save(encoded, "JPEG", quality=quality)
    write_bytes(path, encoded.getvalue())


# ---- anybody's photographs ----


@dataclass(frozen=True)
class Photograph:
    """An upright photograph.

    pixels: RGB uint8 [h, w, 3], reduced by `reduction` on both axes; size_hw: before that.
    """

    pixels: NDArray[np.uint8]
    size_hw: tuple[int, int]
    reduction: int = 1

    @property
    def whole(self) -> NDArray[np.float64]:
        """The whole picture as a box."""
        height, width = self.size_hw
        return np.array([0.0, 0.0, width, height])


def read_photograph(
    path: Path, boxes_xyxy: Sequence[ArrayLike] = (), wanted_side: int = 1344
) -> Photograph:
    """Read a picture file of `PHOTOGRAPH_FORMATS`, whatever its name ends in, upright and as RGB.

    boxes_xyxy: what will be looked at (nothing: the whole picture). wanted_side: pixels that the
    longer side of the smallest box is left with at least; what is larger is reduced by a power of
    two, for JPEG while it is decoded.
    Raises ValueError, in one sentence, when the file is broken, no picture, too large or too small.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes near the limit, which is checked here
            with Image.open(path, formats=PHOTOGRAPH_FORMATS) as image:
                return _upright_rgb(image, boxes_xyxy, wanted_side)
    except FileNotFoundError:
        raise FileNotFoundError(f"photograph not found: {path}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: {_of_no_kind(PHOTOGRAPH_FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path}: more than {MAX_PHOTOGRAPH_PIXELS:,} pixels; make it smaller first"
        ) from None
    except _UnfitPicture as error:
        raise ValueError(f"{path}: {error}") from None
    except READING_ERRORS as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(
            f"{path}: broken, or not a picture that can be read here ({reason})"
        ) from None


class _UnfitPicture(ValueError):
    """A picture that was understood but cannot be used."""


def _upright_rgb(
    image: Image.Image, boxes_xyxy: Sequence[ArrayLike], wanted_side: int
) -> Photograph:
    _check_size(image)
    width, height = image.size
    lying = image.getexif().get(EXIF_ORIENTATION, 1) in ON_ITS_SIDE
    upright_hw = (width, height) if lying else (height, width)
    reduction = _reduction(image, boxes_xyxy, wanted_side)
    # A decoder of JPEG gives smaller pictures in much less time, but maybe not as small as wanted.
    reduced = 1
    if image.format == "JPEG" and image.draft(None, (width // reduction, height // reduction)):
        reduced = round(width / image.size[0])
    pixels = _as_rgb(ImageOps.exif_transpose(image))
    if reduction > reduced:
        pixels = pixels.reduce(reduction // reduced)
    return Photograph(np.asarray(pixels), upright_hw, reduction)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PHOTOGRAPH_PIXELS:
        raise _UnfitPicture(
            f"{width} x {height} are more than {MAX_PHOTOGRAPH_PIXELS:,} pixels; "
            "make it smaller first"
        )
    if min(width, height) < SMALLEST_SIDE:
        raise _UnfitPicture(
            f"{width} x {height} pixels, a pose needs at least {SMALLEST_SIDE} on both sides"
        )


def _reduction(image: Image.Image, boxes_xyxy: Sequence[ArrayLike], wanted_side: int) -> int:
    """The largest power of two that leaves the smallest box `wanted_side` pixels."""
    sides = [max(np.subtract(box[2:], box[:2])) for box in boxes_xyxy]
    smallest = min(sides) if sides else max(image.size)
    reduction = 1
    while reduction < MAX_REDUCTION and smallest / (2 * reduction) >= wanted_side:
        reduction *= 2
    return reduction


def _as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: 16 and 32 bits become 8, what is transparent becomes black.

    A crop is black around a photograph, too.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_as_bytes(np.asarray(image))).convert("RGB")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


def _as_bytes(values: NDArray) -> NDArray[np.uint8]:
    """Grey or colour values of any number type as bytes, see `_white`."""
    if values.dtype == np.uint8:
        return values
    if not np.isfinite(values).all():
        raise _UnfitPicture("a pixel is not a finite number")
    levels = np.rint(values.astype(np.float64) * (255.0 / _white(values)))
    return np.clip(levels, 0, 255).astype(np.uint8)


def _white(values: NDArray) -> float:
    """The value that stands for white: 1 of floats up to 1, else 255 or 65535, or the largest."""
    largest = float(values.max(initial=0))
    if np.issubdtype(values.dtype, np.floating) and largest <= 1:
        return 1.0
    if largest <= 255 and values.dtype != np.uint16:
        return 255.0
    return max(65535.0, largest)


def photograph_of(image: ArrayLike) -> Photograph:
    """A photograph from an array: bytes, 16 bits or floats up to 1.

    image: [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] (alpha).
    Raises ValueError when it has another shape or is too small.
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    is_grey = image.ndim == 2
    is_colour = image.ndim == 3 and image.shape[2] in (3, 4)
    if not (is_grey or is_colour) or image.dtype == object:
        raise ValueError(
            "an image is an array [height, width], [.., 3] or [.., 4], "
            f"found {image.dtype} {list(image.shape)}"
        )
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"the image has {width} x {height} pixels, "
            f"a pose needs at least {SMALLEST_SIDE} on both sides"
        )
    levels = np.ascontiguousarray(_as_bytes(image))
    pixels = np.asarray(_as_rgb(Image.fromarray(levels)))
    return Photograph(pixels, pixels.shape[:2])
