"""What is known of an image: the pose and crop of one object, and where a mesh's vertices fall.

Annotation -> VertexAnnotation. The files have the reference's keys, and those of the reference are
read too. Nothing in them is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.boxes import CropPlacement, place_crop
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.visibility import uncovered_vertices, vertices_in_crop
from neural_mesh.storage.npz_files import load_npz, names_in_npz, save_npz


@dataclass(frozen=True)
class Annotation:
    """The pose of one object and its crop. Fields are named as the keys of the file (reference).

    box, box_ori, box_obj: (row0, row1, col0, col1, height, width), see neural_mesh.geometry.boxes.
    pose: its principal point in pixels; the keys azimuth, elevation, theta, distance, principal.
    The pose, height, width and bbox (x0, y0, x1, y1) belong to the original image.
    crop = crop_scale * original + crop_offset, on (row, col), is the map that the pixels follow;
    both and `geometry` are additions to the reference's keys. occ_mask, bool [height, width] in the
    original image, is there only for occluded images; objects, how many the image has, only where
    it has several.
    """

    name: str
    box: NDArray
    box_ori: NDArray
    box_obj: NDArray
    cropped_kp_list: NDArray  # [K, 2] (row, col) in the crop
    visible: NDArray  # [K]
    pose: Pose
    focal: float
    viewport: float
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

    @property
    def focal_px(self) -> float:
        """Focal length of the original image, in pixels."""
        return self.focal * self.viewport

    @property
    def crop_placement(self) -> CropPlacement:
        """Where the crop lies in the original image."""
        return place_crop(
            self.geometry,
            (self.height, self.width),
            self.crop_hw,
            self.bbox,
            self.pose.principal_xy,
            self.pose.distance,
        )

    def vertices_in_crop(self, mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Positions of a mesh's vertices in the crop (row, col) [V, 2], and which are seen [V]."""
        return vertices_in_crop(mesh, self.pose, self.focal_px, self.crop_placement, self.box_ori)

    def uncovered_vertices(self, mesh: Mesh) -> NDArray[np.bool_]:
        """Which vertices of a mesh [V] no occluder covers; all where there is no mask."""
        return uncovered_vertices(mesh, self.pose, self.focal_px, self.occ_mask)


@dataclass(frozen=True)
class VertexAnnotation(Annotation):
    """An annotation whose key points are the vertices of a mesh.

    cropped_kp_list: positions in the crop [V, 2]. visible: seen or not [V].
    occluder_subtracted: 1, only where vertices behind the occluder count as hidden.
    """

    kp_weights: NDArray | None = None  # [V]
    occluder_subtracted: int | None = None


# Keys that hold the fields of `pose`; the last of them, `principal`, stands further on in a file.
_POSE_KEYS = ("azimuth", "elevation", "theta", "distance")
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
# Additions to the reference's keys. Its own files lack them; where its crop lies follows from the
# rest.
_PLACE_KEYS = ("geometry", "crop_scale", "crop_offset")
_MOST_PIXELS_OFF = 2  # between stored boxes and those that the reference's rules give
_RANKS = dict.fromkeys(_SHAPES, 1) | {
    "cropped_kp_list": 2,
    "visible": 1,
    "kp_weights": 1,
    "occ_mask": 2,
}


def _keys(kind: type[Annotation]) -> list[str]:
    """The keys of a file in its order (reference), in which those of the pose are not together."""
    keys = []
    for field in fields(kind):
        keys += _POSE_KEYS if field.name == "pose" else (field.name,)
        if field.name == "viewport":
            keys.append("principal")
    return keys


def _value_of(annotation: Annotation, key: str) -> object:
    if key in _POSE_KEYS:
        return getattr(annotation.pose, key)
    return annotation.pose.principal_xy if key == "principal" else getattr(annotation, key)


def save_annotation(path: Path, annotation: Annotation) -> None:
    """Write an annotation of either kind."""
    values = {key: _value_of(annotation, key) for key in _keys(type(annotation))}
    save_npz(path, {key: value for key, value in values.items() if value is not None})


def is_of_others(path: Path) -> bool:
    """Whether another program made an annotation: it does not say how its crop was placed."""
    names = names_in_npz(path)
    return "azimuth" in names and "geometry" not in names


def load_annotation(path: Path, kind: type[Annotation] = Annotation) -> Annotation:
    """Read an annotation, ours or the reference's.

    ValueError, naming file and key, when a value is missing or of the wrong shape.
    """
    keys = _keys(kind)
    optional = {*_OPTIONAL, *_PLACE_KEYS}
    required = [key for key in keys if key not in optional]
    # For an image without occluders the reference pickles that there is no mask.
    arrays = load_npz(path, required, keys, absent_if_pickled=("occ_mask",))
    of_others = "geometry" not in arrays
    weights = arrays.get("kp_weights")
    if of_others and weights is not None and weights.dtype.kind == "f":
        # It divides by zero at flat corners. Nothing is weighted here.
        arrays["kp_weights"] = np.nan_to_num(weights, nan=0.0)
    values = {key: _checked_value(path, key, arrays[key]) for key in keys if key in arrays}
    if of_others:
        values |= _place_of_crop(path, values)
    lacking = [key for key in _PLACE_KEYS if key not in values]
    if lacking:
        raise ValueError(f"{path}: lacks {', '.join(lacking)}")
    points, visible = values["cropped_kp_list"], values["visible"]
    if points.shape != (*visible.shape, 2):
        raise ValueError(
            f"{path}: cropped_kp_list has shape {points.shape} but visible {visible.shape}"
        )
    pose = Pose(*(values.pop(key) for key in _POSE_KEYS), values.pop("principal"))
    return kind(pose=pose, **values)


def _place_of_crop(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Where the crop of an annotation of the reference lies, by the reference's rules.

    ValueError when its boxes contradict them: then it is somebody else's.
    """
    height, width = values["box_obj"][4:]
    try:
        crop = place_crop(
            "paper",
            (values["height"], values["width"]),
            (int(height), int(width)),
            values["bbox"],
            values["principal"],
            values["distance"],
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
    for key in ("box", "box_ori", "box_obj"):
        off = np.abs(values[key] - getattr(crop, key)).max()
        if off > _MOST_PIXELS_OFF:
            raise ValueError(
                f"{path}: {key} is {off:.0f} pixels from where the reference puts it, "
                "and it does not say how its crop was placed"
            )
    return {"geometry": "paper", "crop_scale": crop.scale, "crop_offset": crop.offset_rc}


def _checked_value(path: Path, key: str, value: NDArray) -> Any:
    """A stored value as its field has it: an array, or a text or number of Python."""
    if value.dtype.kind not in ("US" if key in _TEXT else "biuf"):
        raise ValueError(f"{path}: {key} is of type {value.dtype}")
    rank = _RANKS.get(key, 0)
    shape = _SHAPES.get(key)
    if value.ndim != rank or (shape and value.shape != shape):
        raise ValueError(
            f"{path}: {key} has shape {value.shape}, expected {shape or f'{rank} axes'}"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{path}: {key} is not finite")
    if rank:
        return value
    if key in _TEXT:
        return str(value)
    return int(value) if key in _WHOLE else float(value)
