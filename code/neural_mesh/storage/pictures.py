"""Pictures in files, those of strangers included: what is read, and up to which size.

Two kinds of files are decoded. The pictures of a data set (`read_picture`) are taken as they are
stored: their annotations count pixels from the stored corner. Anybody's photographs
(`read_photograph`) may be of more formats and larger, and are upright: a camera's turn (EXIF) is
undone before anything is measured. Positions in a photograph are (x right, y down) in pixels,
pixel (row, col) covers [col, col + 1) x [row, row + 1).

A file knows what its numbers mean: its orientation, palette, colour space. An array does not, so
one that may be of either of two kinds is refused instead of guessed (`photograph_of`).
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from neural_mesh.storage.files import write_bytes
from neural_mesh.storage.foreign_files import refusal

# Formats that are not listed can start programs (EPS) or decode in old libraries.
PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
PHOTOGRAPH_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# What a folder of photographs is searched for, in alphabetical order.
PHOTOGRAPH_SUFFIXES = (
    *(".apng", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
# Pictures that are not read, by what their files begin with, after so many bytes.
OTHER_KINDS = {
    (4, b"ftypavi"): "an AVIF picture",
    **{(4, b"ftyp" + brand): "a HEIC picture" for brand in (b"he", b"mif1", b"msf1")},
    (4, b"ftypcrx"): "a raw file of a camera",
    (0, b"FUJIFILMCCD-RAW"): "a raw file of a camera",
    (0, b"\xff\x0a"): "a JPEG XL picture",
    (4, b"JXL "): "a JPEG XL picture",
    (0, b"8BPS"): "a Photoshop file",
    (0, b"%PDF"): "a PDF document",
}
MAX_PIXELS = 2**26  # of a picture: 67 million, 200 MB once decoded
MAX_PHOTOGRAPH_PIXELS = 179_000_000  # decoded, 3 bytes each; Pillow refuses more by itself
SMALLEST_SIDE = 16  # pixels; a photograph with less shows nothing of an object
MAX_REDUCTION = 64
EXIF_ORIENTATION = 0x0112
# What makes a stored picture upright, by its orientation; the last four exchange width and height.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)
XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")
TIFF_KIND_OF_PAGE = 254  # a tag
REDUCED_PAGE = 1  # a smaller picture of another page
WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")  # modes
# Of an alpha channel, most pixels are clear or opaque, and some are opaque; black ink is neither.
CLEAR_OR_OPAQUE = 0.75
OPAQUE = 0.02
NOT_REDUCED = 2**31  # pixels of a side that no picture has

PictureLike: TypeAlias = str | os.PathLike | Image.Image | ArrayLike  # see `photograph_of`


# ---- pictures of a data set ----


def read_picture(path: Path, mode: str = "") -> NDArray[np.uint8]:
    """Decode a picture to [h, w, 3], or [h, w] when it is grey.

    CMYK, palette, alpha, and 16 or 32 bits become RGB of 8 bits. mode: force it.
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
        raise ValueError(refusal(path, _of_no_kind(PICTURE_FORMATS))) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ValueError(f"{path}: {error}") from error


def _of_no_kind(formats: Sequence[str]) -> str:
    return f"not a picture of the kinds {', '.join(formats)}"


def _as_stored(image: Image.Image, mode: str) -> NDArray[np.uint8]:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"claims {image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}"
        )
    if image.mode.startswith("I") or image.mode == "F":
        image = _as_rgb(image)
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
        _check_is_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes near the limit, which is checked here
            with Image.open(path, formats=PHOTOGRAPH_FORMATS) as image:
                return _upright_rgb(image, boxes_xyxy, wanted_side)
    except FileNotFoundError:
        raise FileNotFoundError(f"photograph not found: {path}") from None
    except UnidentifiedImageError:
        raise ValueError(refusal(path, _other_kind(path))) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path}: more than {MAX_PHOTOGRAPH_PIXELS:,} pixels; make it smaller first"
        ) from None
    except _UnfitPicture as error:
        raise ValueError(f"{path}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(
                f"{path}: cannot be read ({os.strerror(error.errno).lower()})"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"{path}: broken, or not a picture that can be read here ({reason})"
        ) from None


def _check_is_file(path: Path) -> None:
    """_UnfitPicture unless a path is a file with something in it. To open a pipe may never end."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise _UnfitPicture("is a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise _UnfitPicture("is a pipe, socket or device, not a picture; copy it to a file")
    if not status.st_size:
        raise _UnfitPicture("is empty, not a picture")


def _other_kind(path: Path) -> str:
    """What a file is that is no picture of the kinds that are read, and what to do with it."""
    with open(path, "rb") as file:
        head = file.read(32)
    for (place, start), name in OTHER_KINDS.items():
        if head.startswith(start, place):
            return f"is {name}, which is not read here; convert it to JPEG or PNG first"
    return _of_no_kind(PHOTOGRAPH_FORMATS)


class _UnfitPicture(ValueError):
    """A picture that was understood but cannot be used."""


def _upright_rgb(
    image: Image.Image, boxes_xyxy: Sequence[ArrayLike], wanted_side: int
) -> Photograph:
    _check_size(image)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(TIFF_KIND_OF_PAGE) == REDUCED_PAGE:
        raise _UnfitPicture(
            "begins with a thumbnail, as raw files of cameras do; convert it to JPEG or PNG first"
        )
    width, height = image.size
    reduction = _reduction(image, boxes_xyxy, wanted_side)
    # A decoder of JPEG gives smaller pictures in much less time, but maybe not as small as wanted.
    reduced = 1
    if image.format == "JPEG" and image.draft(None, (width // reduction, height // reduction)):
        reduced = round(width / image.size[0])
    image.load()
    orientation = _orientation(image)
    pixels = _upright(image, orientation)
    # The size before anything was reduced.
    upright_hw = (pixels.height, pixels.width)
    if reduced > 1:
        upright_hw = (width, height) if orientation in ON_ITS_SIDE else (height, width)
    if reduction > reduced:
        pixels = pixels.reduce(reduction // reduced)
    return Photograph(np.asarray(pixels), upright_hw, reduction)


def _orientation(image: Image.Image) -> int:
    """How a picture, once it is decoded, has to be turned: a key of `TURNS`, or 1."""
    # Pillow turns a TIFF while it is decoded.
    if image.format == "TIFF":
        return 1
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # tags may be broken in many ways, and the picture be whole
        orientation = None
    if orientation in (1, *TURNS):
        return orientation
    # Editors write it in another block; not every version of Pillow looks there.
    segments = getattr(image, "applist", ())
    blocks = [content for name, content in segments if name == "APP1"]
    for block in (*blocks, image.info.get("xmp"), image.info.get("XML:com.adobe.xmp")):
        content = block.encode(errors="replace") if isinstance(block, str) else block or b""
        if found := XMP_ORIENTATION.search(content):
            return int(found[1])
    return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """A picture as RGB, as its camera was held."""
    pixels = _as_rgb(image)
    return pixels.transpose(TURNS[orientation]) if orientation in TURNS else pixels


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
        values = np.asarray(image)
        # Older versions of Pillow give 32 bits in place of the 16 of these files.
        if image.mode == "I" and image.format in ("PNG", "PPM"):
            values = np.clip(values, 0, 65535).astype(np.uint16)
        return Image.fromarray(_as_bytes(values)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
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


def photograph_of(
    image: PictureLike,
    boxes_xyxy: Sequence[ArrayLike] = (),
    wanted_side: int = NOT_REDUCED,
) -> Photograph:
    """A photograph from the path of a file, a picture of Pillow, or an array.

    image: of arrays [h, w, 3], [h, w, 1] (grey) or [h, w, 4] (with alpha), as bytes, 16 bits or
    floats up to 1; [h, w] unless it is of bytes. boxes_xyxy, wanted_side: of a file, see
    `read_photograph`.
    Raises ValueError when it is too small, of another shape, or when nothing tells what its numbers
    mean: [h, w] of bytes may be grey or indices of a palette, four channels may be inks, and true
    and false a mask. For files see `read_photograph`.
    """
    if isinstance(image, str | os.PathLike):
        return read_photograph(Path(image), boxes_xyxy, wanted_side)
    if isinstance(image, Image.Image):
        _check_size(image)
        image.load()
        pixels = np.asarray(_upright(image, _orientation(image)))
    else:
        pixels = _pixels_of_array(np.asarray(image))
    return Photograph(pixels, pixels.shape[:2])


def _pixels_of_array(image: NDArray) -> NDArray[np.uint8]:
    """RGB [h, w, 3] of an array, see `photograph_of`."""
    is_grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
    is_colour = image.ndim == 3 and image.shape[2] in (3, 4)
    is_number = image.dtype.kind in "uif"
    if not (is_grey or is_colour) or not (is_number or image.dtype == bool):
        raise ValueError(
            "an image is a path, a picture of Pillow, or an array [height, width, 3], [.., 4] or "
            f"[.., 1], found {image.dtype} {list(image.shape)}"
        )
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(
            f"the image has {width} x {height} pixels, "
            f"a pose needs at least {SMALLEST_SIDE} on both sides"
        )
    instead = "give the path of the file, or the picture as Pillow opens it"
    if image.dtype == bool:
        raise ValueError(f"an array of true and false may be a mask or a picture; {instead}")
    if image.ndim == 2 and image.dtype == np.uint8:
        raise ValueError(
            "an array [height, width] of bytes may be grey or indices of a palette; "
            f"{instead}, or [height, width, 1] for grey"
        )
    if is_grey:
        image = image.reshape(height, width)
    levels = np.ascontiguousarray(_as_bytes(image))
    if levels.shape[2:] == (4,) and not _is_alpha(levels[..., 3]):
        raise ValueError(
            "the fourth channel is no alpha, so the array may be CMYK; "
            f"{instead}, or [height, width, 3] for RGB"
        )
    return np.asarray(_as_rgb(Image.fromarray(levels)))


def _is_alpha(channel: NDArray[np.uint8]) -> bool:
    opaque = np.mean(channel == 255)
    return bool(opaque >= OPAQUE and opaque + np.mean(channel == 0) >= CLEAR_OR_OPAQUE)
