"""The annotations of PASCAL3D+.

the nested MATLAB record of an image -> the object that stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.categories import category_settings, is_same_category
from neural_mesh.data.mat_files import field_of, fields_of, read_mat, structs_of
from neural_mesh.geometry.cameras import Pose

RULES = ("strict", "reference")
MAX_NUMBER = 1e7  # an annotation's numbers are degrees, pixels and distances
FIELD_ERRORS = (IndexError, KeyError, ValueError, TypeError, OverflowError)


class UnusableRecord(ValueError):
    """An annotation that cannot be used; `reason` is short and the same for all of its kind.

    detail: the file, and what it says.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Record:
    """One object of one image. Pixels are of the original image, the pose's principal point too."""

    name: str
    category: str
    image_hw: tuple[int, int]
    bbox_xyxy: NDArray[np.float64]  # [4]
    cad_index: int  # 1-based
    pose: Pose
    focal: float
    viewport: float
    keypoints_xy: NDArray[np.float64]  # [K, 2], 0 where not visible
    keypoint_status: NDArray[np.int64]  # [K], 1 = visible
    objects: int  # how many the image has
    class_name: str  # as the annotation writes it

    @property
    def focal_px(self) -> float:
        """Focal length in pixels."""
        return self.focal * self.viewport


def read_record(path: Path, category: str, rules: str = "strict") -> Record:
    """Read the object of a PASCAL3D+ annotation that stands for its image.

    rules: `strict` takes the first object of the category that has a fine viewpoint, a positive
    distance and a box; `reference` takes the first object whatever its class, also when its
    distance is 0 or its box is empty. Neither guesses a number that is missing. Where no class is
    the category's own name, one that certainly means it counts (`is_same_category`). Raises
    UnusableRecord with the reason when there is no such object, FileNotFoundError when there is no
    such file.
    """
    if rules not in RULES:
        raise ValueError(f"RECORD_RULES is {rules!r} here, it can be strict or reference")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation not found: {path}")
    image = _read_image(path)
    height, width = image.hw
    if not 0 < min(height, width) <= max(height, width) <= MAX_NUMBER:
        raise UnusableRecord("no image size", f"{path} says {width} x {height}")

    # The candidates, of which the first usable one is taken.
    candidates = _candidates(image, category) if rules == "strict" else list(image.objects[:1])
    if not candidates:
        classes = ", ".join(name or "one without a class" for name in image.classes)
        raise UnusableRecord("no object of the category", f"{path} has {classes or 'no object'}")
    problems = []
    for candidate in candidates:
        try:
            return _record_of(candidate, path, category, image, strict=rules == "strict")
        except UnusableRecord as error:
            problems.append(error)
    raise problems[0]


@dataclass(frozen=True)
class _AnnotatedImage:
    """What an annotation says: the size of its image, the objects in it, and their classes."""

    hw: tuple[int, int]
    objects: Sequence[np.void]
    classes: Sequence[str]


def _candidates(image: _AnnotatedImage, category: str) -> list[np.void]:
    """The objects of a category."""
    exact = [number for number, name in enumerate(image.classes) if name == category]
    alike = [n for n, name in enumerate(image.classes) if is_same_category(name, category)]
    return [image.objects[number] for number in exact or alike]


def _read_image(path: Path) -> _AnnotatedImage:
    try:
        record = _image_record(read_mat(path))
        objects = structs_of(np.asarray(record["objects"]))
        width, height = (int(value) for value in field_of(record, "imgsize").reshape(-1)[:2])
        classes = [_class_of(candidate) for candidate in objects]
    except Exception as error:  # on broken bytes SciPy raises nearly anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UnusableRecord("unreadable annotation", f"{path} ({kind}{error})") from error
    return _AnnotatedImage((height, width), objects, classes)


def _image_record(variables: Mapping[str, NDArray]) -> np.void:
    """The struct `record` of an annotation, or the only one like it; ValueError without one."""
    named = {name: value for name, value in variables.items() if not name.startswith("__")}
    if "record" in named:
        records = structs_of(named["record"])[:1]
    else:
        every = [struct for value in named.values() for struct in structs_of(value)]
        records = [struct for struct in every if "objects" in fields_of(struct)]
    if len(records) != 1:
        raise ValueError(f"it holds {', '.join(named) or 'nothing'}, but no struct called record")
    fields = fields_of(records[0])
    for name in ("imgsize", "objects"):
        if name not in fields:
            raise ValueError(f"its record has no {name}, it has {', '.join(fields)}")
    return records[0]


def _class_of(candidate: np.void) -> str:
    """The class that an object has; empty where it has none."""
    if "class" not in fields_of(candidate):
        return ""
    return str(next(iter(field_of(candidate, "class").reshape(-1)), "")).strip()


def _record_of(
    candidate: np.void, path: Path, category: str, image: _AnnotatedImage, strict: bool
) -> Record:
    """One object as a Record; UnusableRecord when a value is missing, not finite, or cannot be."""
    try:
        viewpoint = structs_of(np.asarray(candidate["viewpoint"]))[0]
        bbox = np.asarray(field_of(candidate, "bbox"), dtype=np.float64).reshape(-1)
    except FIELD_ERRORS as error:
        raise UnusableRecord("no fine viewpoint or box", f"{path} ({error})") from None
    if bbox.shape != (4,) or not (np.abs(bbox) <= MAX_NUMBER).all():
        raise UnusableRecord("broken box", f"{path} has {bbox}")
    if strict and not (bbox[2] > bbox[0] and bbox[3] > bbox[1]):
        raise UnusableRecord("empty box", f"{path} has {bbox}")
    keypoints, status = _keypoints(candidate, category)
    # Of several broken numbers the first one in this order is the reason that is counted.
    cad_index = int(_number(candidate, "cad_index", path))
    azimuth = np.deg2rad(_number(viewpoint, "azimuth", path)).item()
    elevation = np.deg2rad(_number(viewpoint, "elevation", path)).item()
    theta = np.deg2rad(_number(viewpoint, "theta", path)).item()
    distance = (_positive if strict else _number)(viewpoint, "distance", path)
    focal = _positive(viewpoint, "focal", path)
    viewport = _positive(viewpoint, "viewport", path)
    principal_xy = np.array([_number(viewpoint, "px", path), _number(viewpoint, "py", path)])
    return Record(
        name=path.stem,
        category=category,
        image_hw=image.hw,
        bbox_xyxy=bbox,
        cad_index=cad_index,
        pose=Pose(azimuth, elevation, theta, distance, principal_xy),
        focal=focal,
        viewport=viewport,
        keypoints_xy=keypoints,
        keypoint_status=status,
        objects=len(image.objects),
        class_name=_class_of(candidate),
    )


def _number(holder: np.void, field: str, path: Path) -> float:
    try:
        value = float(field_of(holder, field).reshape(-1)[0])
    except FIELD_ERRORS:
        raise UnusableRecord(f"no {field}", f"{path} has no number there") from None
    if not np.isfinite(value):
        raise UnusableRecord(f"{field} is not finite", str(path))
    if abs(value) > MAX_NUMBER:
        raise UnusableRecord(f"{field} is out of range", f"{path} has {value:g}")
    return value


def _positive(holder: np.void, field: str, path: Path) -> float:
    value = _number(holder, field, path)
    if value <= 0:
        raise UnusableRecord(f"{field} not positive", f"{path} has {value}")
    return value


def _keypoints(candidate: np.void, category: str) -> tuple[NDArray, NDArray]:
    """Key points [K, 2] and their status [K], in the order of the settings.

    They are stored but play no role in NeMo, so a broken one gets status 0.
    """
    names = category_settings(category).keypoints
    points = np.zeros((len(names), 2))
    status = np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        try:
            anchor = structs_of(structs_of(np.asarray(candidate["anchors"]))[0][name])[0]
            status[i] = int(field_of(anchor, "status").reshape(-1)[0])
            if status[i] == 1:
                points[i] = field_of(anchor, "location").reshape(-1)[:2]
        except FIELD_ERRORS:
            status[i] = 0
        if not np.isfinite(points[i]).all():
            points[i] = 0
            status[i] = 0
    return points, status
