"""What inference writes: poses (PoseSet) and feature maps (FeatureSet) of a category."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.storage.files import csv_text, plain_name, write_text
from neural_mesh.storage.npz_files import load_npz, save_npz


@dataclass(frozen=True)
class PoseSet:
    """Predicted poses of one category: names [B] and, per image, radians, distance, loss and chosen start.

    config: everything that led to them (solver settings, checkpoint fingerprint), as plain JSON values.
    principal_xy [B, 2]: where the object's origin falls on the feature map, in cells; None where the solver kept it at
    the config's `principal_xy_cells` (all but 6D).
    """

    category: str
    level: str
    names: NDArray  # [B] str
    azimuth: NDArray
    elevation: NDArray
    theta: NDArray
    distance: NDArray
    loss: NDArray
    start: NDArray  # [B] index into the start grid
    mesh: NDArray  # [B] 1-based
    config: dict
    principal_xy: NDArray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def angles(self) -> NDArray:
        """Azimuth, elevation and theta [B, 3] in radians."""
        return np.stack([self.azimuth, self.elevation, self.theta], axis=-1)

    @property
    def predicts_subtype(self) -> bool:
        """Whether `mesh` was found by the solver among one cuboid per CAD model, rather than annotated."""
        return (
            self.config.get("mesh_d") == "multi"
            and self.config.get("solve", {}).get("subtype") == "predicted"
        )

    def rows(self) -> Iterator[dict[str, object]]:
        """One mapping per image, angles in degrees."""
        for i in range(len(self)):
            yield {
                "name": str(self.names[i]),
                "azimuth_deg": round(float(np.rad2deg(self.azimuth[i])), 4),
                "elevation_deg": round(float(np.rad2deg(self.elevation[i])), 4),
                "theta_deg": round(float(np.rad2deg(self.theta[i])), 4),
                "distance": round(float(self.distance[i]), 5),
                "loss": round(float(self.loss[i]), 6),
                "start": int(self.start[i]),
                "mesh": int(self.mesh[i]),
            } | self._place(i)

    def _place(self, i: int) -> dict[str, object]:
        if self.principal_xy is None:
            return {}
        x, y = self.principal_xy[i].tolist()
        return {"principal_x": round(x, 3), "principal_y": round(y, 3)}


_POSE_ARRAYS = ("names", "azimuth", "elevation", "theta", "distance", "loss", "start", "mesh")


def save_poses(path: Path, poses: PoseSet, with_csv: bool = True) -> None:
    """Write poses as npz and, for reading by eye, as csv (degrees) beside it: before it, since the npz says that all is done."""
    arrays = {key: getattr(poses, key) for key in _POSE_ARRAYS}
    header = {
        "category": poses.category,
        "level": poses.level,
        "config": json.dumps(poses.config, sort_keys=True),
    }
    if poses.principal_xy is not None:
        arrays["principal_xy"] = poses.principal_xy
    if with_csv:
        columns = [
            "name",
            "azimuth_deg",
            "elevation_deg",
            "theta_deg",
            "distance",
            "loss",
            "start",
            "mesh",
        ]
        columns += [] if poses.principal_xy is None else ["principal_x", "principal_y"]
        lines = [[row[column] for column in columns] for row in poses.rows()]
        write_text(Path(path).with_suffix(".csv"), csv_text([columns, *lines]))
    save_npz(path, {**header, **arrays})


def load_poses(path: Path) -> PoseSet:
    """Read poses; ValueError when the arrays do not belong together."""
    arrays = load_npz(path, ["category", "level", "config", *_POSE_ARRAYS])
    shapes = {key: arrays[key].shape for key in _POSE_ARRAYS}
    if set(shapes.values()) != {(len(arrays["names"]) if arrays["names"].ndim else 0,)}:
        raise ValueError(f"{path}: arrays of different lengths {shapes}")
    principal = arrays.get("principal_xy")
    if principal is not None and (
        principal.shape != (len(arrays["names"]), 2) or principal.dtype.kind != "f"
    ):
        raise ValueError(f"{path}: principal_xy is {principal.dtype} {principal.shape}")
    for key in _POSE_ARRAYS:
        if arrays[key].dtype.kind not in (
            "U" if key == "names" else "iu" if key in ("start", "mesh") else "f"
        ):
            raise ValueError(f"{path}: {key} is of type {arrays[key].dtype}")
    for name in arrays["names"].tolist():
        plain_name(name, path)
    return PoseSet(
        str(arrays["category"]),
        str(arrays["level"]),
        *(arrays[key] for key in _POSE_ARRAYS),
        config=_config(path, arrays["config"]),
        principal_xy=principal,
    )


@dataclass(frozen=True)
class FeatureSet:
    """Feature maps of one category with the bank that they are compared with, in the reference's keys.

    maps: name -> [C, H, W]. vertex_banks and clutter_banks: mesh number -> [V, C] and [N, C]. names: mesh number ->
    the images that are compared with it.
    """

    maps: dict[str, NDArray]
    vertex_banks: dict[int, NDArray]
    clutter_banks: dict[int, NDArray]
    names: dict[int, list[str]]
    config: dict


def save_features(path: Path, features: FeatureSet) -> None:
    """Write feature maps with the reference's keys, and `config`."""
    arrays: dict[str, object] = {"config": json.dumps(features.config, sort_keys=True)}
    for mesh, bank in features.vertex_banks.items():
        arrays[f"memory_mesh{mesh:02d}"] = bank
        arrays[f"clutter_mesh{mesh:02d}"] = features.clutter_banks[mesh]
        arrays[f"names_mesh{mesh:02d}"] = np.array(features.names[mesh], dtype=str)
    save_npz(path, {**arrays, **features.maps})


def load_features(path: Path) -> FeatureSet:
    """Read feature maps, ours or the reference's."""
    arrays = load_npz(path, [])
    numbers = [key.removeprefix("memory_mesh") for key in arrays if key.startswith("memory_mesh")]
    meshes = sorted(int(number) for number in numbers if re.fullmatch("[0-9]{2}", number))
    if not meshes:
        raise ValueError(f"{path}: holds no memory_mesh01, it is not a feature file")
    lacking = [
        key
        for mesh in meshes
        for key in (f"clutter_mesh{mesh:02d}", f"names_mesh{mesh:02d}")
        if key not in arrays
    ]
    if lacking:
        raise ValueError(f"{path}: lacks {lacking[0]}")
    names = {mesh: [str(n) for n in arrays[f"names_mesh{mesh:02d}"].reshape(-1)] for mesh in meshes}
    missing = [n for group in names.values() for n in group if n not in arrays]
    if missing:
        raise ValueError(
            f"{path}: names {len(missing)} images without a feature map, {missing[0]} first"
        )
    ranks = {f"{kind}_mesh{mesh:02d}": 2 for mesh in meshes for kind in ("memory", "clutter")}
    for key, rank in (ranks | {n: 3 for group in names.values() for n in group}).items():
        if arrays[key].ndim != rank or arrays[key].dtype.kind != "f":
            raise ValueError(
                f"{path}: {key} is {arrays[key].dtype} {arrays[key].shape}, expected numbers along {rank} axes"
            )
    return FeatureSet(
        {n: arrays[n] for group in names.values() for n in group},
        {mesh: arrays[f"memory_mesh{mesh:02d}"] for mesh in meshes},
        {mesh: arrays[f"clutter_mesh{mesh:02d}"] for mesh in meshes},
        names,
        _config(path, arrays["config"]) if "config" in arrays else {},
    )


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
