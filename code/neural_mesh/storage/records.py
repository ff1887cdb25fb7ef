"""What is known of an image: the pose of one object and its crop (Annotation), and a mesh's vertices in it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.storage.npz_files import load_npz, save_npz


@dataclass(frozen=True)
class Annotation:
    """The pose of one object and its crop, with the reference's keys. Angles in radians.

    box, box_ori, box_obj: (row0, row1, col0, col1, height, width), see neural_mesh.geometry.boxes. principal (x, y), height, width,
    bbox (x0, y0, x1, y1) and distance belong to the original image. crop = crop_scale * original + crop_offset, on
    (row, col), is the map that the pixels follow; both and `geometry` are additions to the reference's keys.
    occ_mask, bool [height, width] in the original image, is there only for occluded images; objects, how many the
    image has, only where it has several.
    """

    name: str
    box: NDArray
    box_ori: NDArray
    box_obj: NDArray
    cropped_kp_list: NDArray  # [K, 2] (row, col) in the crop
    visible: NDArray  # [K]
    azimuth: float
    elevation: float
    theta: float
    distance: float
    focal: float
    viewport: float
    principal: NDArray
    height: int
    width: int
    cad_index: int
    bbox: NDArray
    geometry: str
    crop_scale: float
    crop_offset: NDArray
    occ_mask: NDArray | None = None
    objects: int | None = None

    @property
    def crop_hw(self) -> tuple[int, int]:
        return int(self.box_obj[4]), int(self.box_obj[5])


@dataclass(frozen=True)
class VertexAnnotation(Annotation):
    """An annotation whose key points are the vertices of a mesh: positions in the crop [V, 2], seen or not [V].

    occluder_subtracted: 1, only where vertices behind the occluder count as hidden.
    """

    kp_weights: NDArray | None = None  # [V]
    occluder_subtracted: int | None = None


_TEXT = ("name", "geometry")
_WHOLE = ("height", "width", "cad_index", "objects", "occluder_subtracted")
_OPTIONAL = ("occ_mask", "objects", "occluder_subtracted")
_SHAPES = {
    "box": (6,),
    "box_ori": (6,),
    "box_obj": (6,),
    "principal": (2,),
    "bbox": (4,),
    "crop_offset": (2,),
}
_RANKS = dict.fromkeys(_SHAPES, 1) | {
    "cropped_kp_list": 2,
    "visible": 1,
    "kp_weights": 1,
    "occ_mask": 2,
}


def save_annotation(path: Path, annotation: Annotation) -> None:
    """Write an annotation of either kind."""
    values = {field.name: getattr(annotation, field.name) for field in fields(annotation)}
    save_npz(path, {key: value for key, value in values.items() if value is not None})


def load_annotation(path: Path, kind: type[Annotation] = Annotation) -> Annotation:
    """Read an annotation; ValueError, naming file and key, when a value is missing or of the wrong shape."""
    names = [field.name for field in fields(kind)]
    arrays = load_npz(path, [name for name in names if name not in _OPTIONAL])
    values: dict[str, object] = {}
    for name in names:
        value = arrays.get(name)
        if value is not None:
            values[name] = _annotation_value(path, name, value)
    if values["cropped_kp_list"].shape != (*values["visible"].shape, 2):
        raise ValueError(
            f"{path}: cropped_kp_list has shape {values['cropped_kp_list'].shape} but visible {values['visible'].shape}"
        )
    return kind(**values)


def _annotation_value(path: Path, name: str, value: NDArray) -> object:
    kinds = "US" if name in _TEXT else "biuf"
    if value.dtype.kind not in kinds:
        raise ValueError(f"{path}: {name} is of type {value.dtype}")
    rank, expected = _RANKS.get(name, 0), _SHAPES.get(name)
    if value.ndim != rank or (expected and value.shape != expected):
        raise ValueError(
            f"{path}: {name} has shape {value.shape}, expected {expected or f'{rank} axes'}"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{path}: {name} is not finite")
    if rank:
        return value
    return str(value) if name in _TEXT else int(value) if name in _WHOLE else float(value)
