"""Reading KITTI's 3D object labels, and the object-centred viewpoint that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.cameras import spherical_from_centre
from neural_mesh.storage.files import read_text

# KITTI's occlusion states 0, 1, 2.
OCCLUSION_NAMES = ("fully_visible", "partly_occluded", "largely_occluded")
LABEL_NUMBERS = 14  # after the class


@dataclass(frozen=True)
class KittiObject:
    """One line of a label file.

    Metres in the camera's frame (x right, y down, z forward), pixels, radians.
    """

    kind: str
    truncation: float
    occlusion: int
    bbox_xyxy: NDArray[np.float64]  # [4]
    height: float
    location: NDArray[np.float64]  # [3], centre of the bottom
    rotation_y: float

    @property
    def centre(self) -> NDArray[np.float64]:
        """Centre of the object [3]."""
        return self.location - [0.0, self.height / 2, 0.0]

    @property
    def distance(self) -> float:
        """Of the location that the label gives (reference)."""
        return float(np.linalg.norm(self.location))


def read_labels(path: Path) -> list[KittiObject]:
    """All objects of a label file; ValueError, naming file and line, when a line is not a label."""
    objects = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        values = _numbers(words[1 : 1 + LABEL_NUMBERS], LABEL_NUMBERS)
        if values is None:
            raise ValueError(f"{path}, line {number}: not a KITTI label (a class and 14 numbers)")
        label = KittiObject(
            kind=words[0],
            truncation=values[0],
            occlusion=int(values[1]),
            bbox_xyxy=values[3:7],
            height=values[7],
            location=values[10:13],
            rotation_y=float(values[13]),
        )
        objects.append(label)
    return objects


def read_projection(path: Path, name: str = "P2") -> NDArray[np.float64]:
    """The projection matrix [3, 4] of a camera from a calibration file.

    Raises ValueError, naming file and line, when there is none.
    """
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        key, _, text = line.partition(":")
        if key.strip() == name:
            values = _numbers(text.split(), 12)
            if values is None:
                raise ValueError(f"{path}, line {number}: {name} is not 12 numbers")
            return values.reshape(3, 4)
    raise ValueError(f"{path}: has no line {name}")


def _numbers(words: Sequence[str], expected: int) -> NDArray[np.float64] | None:
    """Words as numbers; None where one is none, or not finite, or there are not as many."""
    try:
        values = np.array(words, dtype=np.float64)
    except ValueError:
        return None
    return values if len(values) == expected and np.isfinite(values).all() else None


def project_point(point: NDArray, projection: NDArray) -> NDArray[np.float64]:
    """A point [3] in the camera's frame -> pixel (x, y) [2]."""
    x, y, depth = projection @ np.append(point, 1.0)
    return np.array([x, y]) / depth


def viewpoint(label: KittiObject) -> tuple[float, float]:
    """(azimuth, elevation) in radians as in PASCAL3D+.

    where the camera stands, seen from the object.

    Azimuth is the reference's. Elevation is positive where the camera looks down on the object, as
    in PASCAL3D+; the reference takes minus the arc sine of a height that grows downwards, which
    makes it negative there.
    """
    front = np.array([np.cos(label.rotation_y), 0.0, -np.sin(label.rotation_y)])
    up = np.array([0.0, -1.0, 0.0])
    # Rows: the object's x, its y, which points away from its front, and its z.
    object_from_cv_cam = np.stack([np.cross(up, front), -front, up])
    camera_centre = object_from_cv_cam @ -label.centre
    azimuth, elevation, _ = spherical_from_centre(camera_centre)
    return float(azimuth), float(elevation)
