"""Occluded PASCAL3D+ in files.

whole pictures with occluders, and annotations that hold their masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.data.occlusion import Occluded
from neural_mesh.storage.files import atomic_path
from neural_mesh.storage.layout import RawOccluded, write_list
from neural_mesh.storage.npz_files import load_npz
from neural_mesh.storage.pictures import write_jpeg

JPEG_QUALITY = 92


def read_occluder_mask(raw: RawOccluded, category: str, level: str, name: str) -> NDArray[np.bool_]:
    """What occluders cover [H, W] of a picture.

    Raises FileNotFoundError, or ValueError when the annotation is broken.
    """
    path = raw.annotation(category, level, name)
    arrays = load_npz(path, ["occluder_mask"], only=("occluder_mask",))
    return arrays["occluder_mask"].astype(bool)


def write_image(path: Path, image: NDArray) -> None:
    """Write an occluded picture, uint8 [H, W, 3]."""
    write_jpeg(path, image, JPEG_QUALITY)


def write_occluded(
    raw: RawOccluded,
    category: str,
    level: str,
    name: str,
    result: Occluded,
    object_mask: NDArray,
    bbox_xyxy: Sequence[float],
    source: str,
) -> None:
    """Write an occluded picture and its annotation with the keys of OccludedPASCAL3D.

    Boxes are y0 y1 x0 x1 H W. object_mask: uint8 [H, W], above 10 is object. source: which clean
    picture it was made from.
    """
    x0, y0, x1, y1 = bbox_xyxy
    write_image(raw.image(category, level, name), result.image)
    with (
        atomic_path(raw.annotation(category, level, name)) as temporary,
        temporary.open("wb") as file,
    ):
        # A mask has a byte for each pixel of the picture, so it is compressed.
        np.savez_compressed(
            file,
            source=np.array(source),
            mask=object_mask,
            occluder_mask=result.occluder_mask,
            box=np.array([y0, y1, x0, x1, *object_mask.shape]),
            occluder_box=result.occluder_boxes,
            category=np.array(category),
            occluder_level=np.array(level),
        )


def is_written(raw: RawOccluded, category: str, level: str, name: str) -> bool:
    """Whether an occluded picture and its annotation are there."""
    image = raw.image(category, level, name)
    annotation = raw.annotation(category, level, name)
    return image.is_file() and annotation.is_file()


def write_occluded_lists(raw: RawOccluded, category: str, levels: Sequence[str]) -> int:
    """Write the lists of the occluded pictures that there are. Returns how many that is."""
    total = 0
    for level in levels:
        names = raw.names(category, level)
        write_list(raw.root / "lists" / f"{category}{level}.txt", names)
        total += len(names)
    return total
