"""A folder of the user's pictures, of which occluders for training images are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.data.occluders import Donors
from neural_mesh.digests import short_digest, short_file_digest
from neural_mesh.storage.pictures import read_picture

OCCLUDER_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
LONGEST_SIDE = 400  # of a picture in memory, in pixels
MOST_PICTURES = 2000  # 600 MB in memory


def occluder_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, sorted, so that their order does not depend on the file system."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in OCCLUDER_SUFFIXES]
    return tuple(sorted(files))


def donor_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of OCCLUDER_PICTURES; ValueError where there are none or too many."""
    if not folder.is_dir():
        raise ValueError(f"OCCLUDER_PICTURES: no folder {folder}")
    files = occluder_files(folder)
    if not files:
        raise ValueError(
            f"OCCLUDER_PICTURES: {folder} holds no pictures "
            f"(files ending in {' '.join(OCCLUDER_SUFFIXES)})"
        )
    if len(files) > MOST_PICTURES:
        raise ValueError(
            f"OCCLUDER_PICTURES: {folder} holds {len(files)} pictures, "
            f"which are kept in memory: put at most {MOST_PICTURES} into a folder"
        )
    return files


def digest_of(files: Sequence[Path]) -> str:
    """A digest of the files' content, by which a training knows its pictures."""
    return short_digest("".join(short_file_digest(path) for path in files).encode())


def read_donors(files: Sequence[Path]) -> Donors:
    """Pictures as donors: those with transparent parts are cut-outs, of the others pieces are used.

    Raises ValueError, naming the file, for one that is no picture.
    """
    pictures = []
    cutouts = []
    for path in files:
        pixels = _reduced(read_picture(path, "RGBA"))
        if pixels[..., 3].min() < 128:
            cutouts.append(pixels)
        else:
            pictures.append(np.ascontiguousarray(pixels[..., :3]))
    return Donors(tuple(pictures), tuple(cutouts))


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture whose longer side is at most LONGEST_SIDE pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)
