"""Prepared crops.

how they are written and read, what they take on disk, and how large their maps are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.categories import category_settings
from neural_mesh.geometry.boxes import CropPlacement
from neural_mesh.settings import FEATURE_STRIDE
from neural_mesh.storage.files import remove_parts
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.pictures import read_picture, write_jpeg
from neural_mesh.storage.records import Annotation, save_annotation

# By GEOMETRY; 75 is what the official checkpoints were trained on.
JPEG_QUALITY = {"paper": 75, "exact": 95}
# Of a crop, by its JPEG quality; photographs gave 0.24 for 95.
BYTES_PER_PIXEL = {75: 0.15, 95: 0.3}
BYTES_PER_ANNOTATION = 8192


def map_size(category: str, image_scale: float) -> tuple[int, int]:
    """(height, width) of the feature map of a category's crops, in cells."""
    height, width = category_settings(category).crop_hw
    return int(height * image_scale) // FEATURE_STRIDE, int(width * image_scale) // FEATURE_STRIDE


def crops_size(crops: int, crop_hw: tuple[int, int], quality: int) -> int:
    """Bytes that crops (JPEG of a quality) and their annotations take on disk.

    Measured on photographs, and rounded up.
    """
    height, width = crop_hw
    jpeg = int(BYTES_PER_PIXEL[quality] * height * width)
    return crops * (jpeg + BYTES_PER_ANNOTATION)


def read_crop(path: Path, image_scale: float) -> NDArray[np.uint8]:
    """A prepared crop as RGB [H, W, 3], at full or at half resolution (averaged)."""
    image = Image.fromarray(read_picture(path, "RGB"))
    if image_scale == 0.5:
        # The mean of 2 x 2 pixels.
        image = image.reduce(2)
    elif image_scale != 1:
        raise ValueError(f"IMAGE_SCALE is {image_scale}, it can be 1 or 0.5")
    return np.asarray(image)


def is_prepared(prepared: PreparedSet, subset: str, name: str) -> bool:
    """Whether a crop and its annotation are there."""
    image = prepared.image(subset, name)
    annotation = prepared.annotation(subset, name)
    return image.is_file() and annotation.is_file()


def prepared_names(prepared: PreparedSet, subset: str) -> list[str]:
    """Names that have a crop and an annotation, sorted."""
    # A kill between the two files leaves one without the other.
    images = {path.stem for path in prepared.image(subset, "x").parent.glob("*.JPEG")}
    annotations = prepared.annotation(subset, "x").parent.glob("*.npz")
    return sorted(path.stem for path in annotations if path.stem in images)


def write_crop(
    prepared: PreparedSet, subset: str, annotation: Annotation, crop: NDArray, quality: int
) -> None:
    """Write a crop and then its annotation, which says that both are there."""
    # In this order a kill leaves no annotation of a crop that is not there.
    write_jpeg(prepared.image(subset, annotation.name), crop, quality)
    save_annotation(prepared.annotation(subset, annotation.name), annotation)


def remove_half_written(prepared: PreparedSet, subset: str) -> None:
    """Remove what killed runs left of crops, annotations and lists. The caller holds the lock."""
    remove_parts(prepared.image(subset, "x").parent)
    remove_parts(prepared.annotation(subset, "x").parent)
    remove_parts(prepared.lists(subset))


def placement_fields(placement: CropPlacement) -> dict[str, Any]:
    """The fields of an Annotation that say where its crop lies."""
    return {
        "box": placement.box.astype(np.float32),
        "box_ori": placement.box_ori.astype(np.float32),
        "box_obj": placement.box_obj.astype(np.float32),
        "geometry": placement.geometry,
        "crop_scale": placement.scale,
        "crop_offset": placement.offset_rc,
    }
