"""What inference writes: poses (PoseSet) and feature maps (FeatureSet) of a category."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.cameras import Pose
from neural_mesh.storage.files import csv_text, plain_name, write_text
from neural_mesh.storage.npz_files import load_npz, save_npz

# ---- poses ----


@dataclass(frozen=True)
class PoseSet:
    """Predicted poses of one category, with loss and chosen start of every image.

    pose: of B images; its principal_xy [B, 2] is where the object's origin falls on the feature
    map, in cells, and None where the solver kept it at the config's `principal_xy_cells` (all but
    6D). config: everything that led to them (solver settings, checkpoint fingerprint), as plain
    JSON values.
    """

    category: str
    level: str
    names: NDArray  # [B] str
    pose: Pose  # [B]
    loss: NDArray
    start: NDArray  # [B] index into the start grid
    mesh: NDArray  # [B] 1-based
    config: dict

    def __len__(self) -> int:
        return len(self.names)

    @property
    def predicts_subtype(self) -> bool:
        """Whether the solver chose `mesh` among one cuboid per CAD model; else it is annotated."""
        subtype = self.config.get("solve", {}).get("subtype")
        return self.config.get("mesh_d") == "multi" and subtype == "predicted"

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping per image, angles in degrees."""
        for i in range(len(self)):
            pose = self.pose[i]
            row = {
                "name": str(self.names[i]),
                "azimuth_deg": round(float(np.rad2deg(pose.azimuth)), 4),
                "elevation_deg": round(float(np.rad2deg(pose.elevation)), 4),
                "theta_deg": round(float(np.rad2deg(pose.theta)), 4),
                "distance": round(pose.distance, 5),
                "loss": round(float(self.loss[i]), 6),
                "start": int(self.start[i]),
                "mesh": int(self.mesh[i]),
            }
            if pose.principal_xy is not None:
                x, y = pose.principal_xy.tolist()
                row |= {"principal_x": round(x, 3), "principal_y": round(y, 3)}
            yield row


_POSE_ARRAYS = ("azimuth", "elevation", "theta", "distance")
_CHOICE_ARRAYS = ("loss", "start", "mesh")
_ARRAYS = ("names", *_POSE_ARRAYS, *_CHOICE_ARRAYS)
_ARRAY_KINDS = {"names": "U", "start": "iu", "mesh": "iu"}  # the others are numbers with a fraction
_COLUMNS = (
    "name",
    "azimuth_deg",
    "elevation_deg",
    "theta_deg",
    "distance",
    "loss",
    "start",
    "mesh",
)


def save_poses(path: Path, poses: PoseSet, with_csv: bool = True) -> None:
    """Write poses as npz and, for reading by eye, as csv (degrees) beside it.

    The csv comes first, since the npz says that all is done.
    """
    if with_csv:
        _write_csv(Path(path).with_suffix(".csv"), poses)
    arrays = {
        "category": poses.category,
        "level": poses.level,
        "config": json.dumps(poses.config, sort_keys=True),
        "names": poses.names,
    }
    arrays |= {key: getattr(poses.pose, key) for key in _POSE_ARRAYS}
    arrays |= {key: getattr(poses, key) for key in _CHOICE_ARRAYS}
    if poses.pose.principal_xy is not None:
        arrays["principal_xy"] = poses.pose.principal_xy
    save_npz(path, arrays)


def _write_csv(path: Path, poses: PoseSet) -> None:
    columns = [*_COLUMNS]
    if poses.pose.principal_xy is not None:
        columns += ["principal_x", "principal_y"]
    values_in_order = itemgetter(*columns)
    lines = [values_in_order(row) for row in poses.rows()]
    write_text(path, csv_text([columns, *lines]))


def load_poses(path: Path) -> PoseSet:
    """Read poses; ValueError when the arrays do not belong together."""
    arrays = load_npz(path, ["category", "level", "config", *_ARRAYS])
    principal_xy = arrays.get("principal_xy")
    _check_pose_arrays(path, arrays)
    pose = Pose(*(arrays[key] for key in _POSE_ARRAYS), principal_xy)
    return PoseSet(
        str(arrays["category"]),
        str(arrays["level"]),
        arrays["names"],
        pose,
        *(arrays[key] for key in _CHOICE_ARRAYS),
        config=_config(path, arrays["config"]),
    )


def _check_pose_arrays(path: Path, arrays: dict[str, NDArray]) -> None:
    """ValueError, naming the array, unless all have the right type and one value per image."""
    names = arrays["names"]
    shapes = {key: arrays[key].shape for key in _ARRAYS}
    images = len(names) if names.ndim else 0
    if set(shapes.values()) != {(images,)}:
        raise ValueError(f"{path}: arrays of different lengths {shapes}")
    principal = arrays.get("principal_xy")
    if principal is not None and (principal.shape != (images, 2) or principal.dtype.kind != "f"):
        raise ValueError(f"{path}: principal_xy is {principal.dtype} {principal.shape}")
    for key in _ARRAYS:
        if arrays[key].dtype.kind not in _ARRAY_KINDS.get(key, "f"):
            raise ValueError(f"{path}: {key} is of type {arrays[key].dtype}")
    for name in names.tolist():
        plain_name(name, path)


# ---- feature maps ----


@dataclass(frozen=True)
class FeatureSet:
    """Feature maps of one category with the bank that they are compared with.

    In the file they have the reference's keys. maps: name -> [C, H, W]. vertex_banks and
    clutter_banks: mesh number -> [V, C] and [N, C]. names: mesh number -> the images that are
    compared with it. config: as in `PoseSet`; empty in files of the reference.
    """

    maps: dict[str, NDArray]
    vertex_banks: dict[int, NDArray]
    clutter_banks: dict[int, NDArray]
    names: dict[int, list[str]]
    config: dict


def save_features(path: Path, features: FeatureSet) -> None:
    """Write feature maps with the reference's keys, and `config`."""
    arrays: dict[str, Any] = {"config": json.dumps(features.config, sort_keys=True)}
    for mesh, bank in features.vertex_banks.items():
        arrays[f"memory_mesh{mesh:02d}"] = bank
        arrays[f"clutter_mesh{mesh:02d}"] = features.clutter_banks[mesh]
        arrays[f"names_mesh{mesh:02d}"] = np.array(features.names[mesh], dtype=str)
    save_npz(path, {**arrays, **features.maps})


def load_features(path: Path) -> FeatureSet:
    """Read feature maps, ours or the reference's.

    ValueError when a key is missing or an array has another number of axes.
    """
    arrays = load_npz(path, [])
    meshes = _numbered_meshes(path, arrays)
    names = {mesh: _names(arrays[f"names_mesh{mesh:02d}"]) for mesh in meshes}
    images = [name for group in names.values() for name in group]
    missing = [name for name in images if name not in arrays]
    if missing:
        raise ValueError(
            f"{path}: names {len(missing)} images without a feature map, {missing[0]} first"
        )
    for mesh in meshes:
        _check_rank(path, arrays, f"memory_mesh{mesh:02d}", 2)
        _check_rank(path, arrays, f"clutter_mesh{mesh:02d}", 2)
    for name in images:
        _check_rank(path, arrays, name, 3)
    return FeatureSet(
        maps={name: arrays[name] for name in images},
        vertex_banks={mesh: arrays[f"memory_mesh{mesh:02d}"] for mesh in meshes},
        clutter_banks={mesh: arrays[f"clutter_mesh{mesh:02d}"] for mesh in meshes},
        names=names,
        config=_config(path, arrays["config"]) if "config" in arrays else {},
    )


def _numbered_meshes(path: Path, arrays: dict[str, NDArray]) -> list[int]:
    """The numbers of the meshes that a feature file has banks for.

    ValueError when one lacks a key.
    """
    numbers = [re.fullmatch("memory_mesh([0-9]{2})", key) for key in arrays]
    meshes = sorted(int(number[1]) for number in numbers if number)
    if not meshes:
        raise ValueError(f"{path}: holds no memory_mesh01, it is not a feature file")
    for mesh in meshes:
        for key in (f"clutter_mesh{mesh:02d}", f"names_mesh{mesh:02d}"):
            if key not in arrays:
                raise ValueError(f"{path}: lacks {key}")
    return meshes


def _names(stored: NDArray) -> list[str]:
    return [str(name) for name in stored.reshape(-1)]


def _check_rank(path: Path, arrays: dict[str, NDArray], key: str, rank: int) -> None:
    array = arrays[key]
    if array.ndim != rank or array.dtype.kind != "f":
        raise ValueError(
            f"{path}: {key} is {array.dtype} {array.shape}, expected numbers along {rank} axes"
        )


# ---- settings of both ----


def load_config(path: Path) -> dict:
    """Only the settings of a file of poses or feature maps."""
    return _config(path, load_npz(path, ["config"], only=("config",))["config"])


def _config(path: Path, stored: NDArray) -> dict:
    try:
        config = json.loads(str(stored))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: config is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: config is not a set of named values")
    return config
