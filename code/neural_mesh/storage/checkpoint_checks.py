"""What the file of a stranger must hold before it is used as a checkpoint.

Files are read without executing anything; here every field is checked for type, shape and size, so
that a broken file is refused by a sentence that names the field.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from neural_mesh.settings import TrainConfig

# Arguments of the reference that have another name here.
REFERENCE_NAMES = {
    "type_": "category",
    "lr": "learning_rate",
    "T": "temperature",
    "distance_thr": "near_distance_px",
    "weight_noise": "weight_clutter",
    "num_noise": "num_clutter_image",
    "max_group": "num_clutter_group",
    "adj_momentum": "bank_momentum",
    "train_accumulate": "accumulate",
}


def check_content(path: Path, content: dict) -> None:
    """ValueError, naming the field, unless all of a checkpoint has the right type, shape, size."""
    _check_state(path, content["state"])
    # A single bank may stand without a list around it.
    banks = content["memory"]
    if not isinstance(banks, (list, tuple)):
        banks = [banks]
    are_banks = [_is_array(bank, rank=2) and bank.is_floating_point() for bank in banks]
    _require(path, len(banks) > 0 and all(are_banks), "memory holds no feature banks")
    has_epoch = isinstance(content.get("timestamp", 0), int)
    _require(path, has_epoch, "timestamp is no number")

    meshes = content.get("meshes") or []
    are_meshes = isinstance(meshes, list) and all(isinstance(mesh, dict) for mesh in meshes)
    _require(path, are_meshes, "meshes is no list of meshes")
    for number, mesh in enumerate(meshes, start=1):
        _check_mesh(path, number, mesh)
    fit = not meshes or len(meshes) == len(banks)
    _require(path, fit, f"it has {len(banks)} banks but {len(meshes)} meshes")


def _require(path: Path, right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"{path}: {what}, it is not a NeMo checkpoint or a broken one")


def _check_state(path: Path, state: object) -> None:
    are_weights = isinstance(state, dict) and all(
        isinstance(key, str) and _is_array(value) for key, value in state.items()
    )
    _require(path, are_weights, "state is no set of named weights")


def _check_mesh(path: Path, number: int, mesh: dict) -> None:
    for key in ("vertices", "faces"):
        array = mesh.get(key)
        are_rows = _is_array(array, rank=2) and array.shape[1] == 3 and not array.is_complex()
        _require(path, are_rows, f"{key} of mesh {number} are no rows of three")
    vertices = mesh["vertices"]
    faces = mesh["faces"]
    is_finite = bool(vertices.isfinite().all())
    _require(path, is_finite, f"a vertex of mesh {number} is not finite")
    are_whole = not faces.is_floating_point()
    exist = are_whole and bool(((faces >= 0) & (faces < len(vertices))).all())
    _require(path, exist, f"a face of mesh {number} names a vertex that does not exist")


def _is_array(value: object, rank: int | None = None) -> bool:
    """Whether a value is a dense tensor whose storage is as large as it claims."""
    if not isinstance(value, Tensor) or value.is_sparse or value.layout != torch.strided:
        return False
    needed = value.numel() * value.element_size()
    return rank in (None, value.ndim) and needed <= value.untyped_storage().nbytes()


def train_config_of(path: Path, stored: dict) -> TrainConfig:
    """The settings among those of a file; what it does not have are the defaults.

    ValueError, naming the field, when a value is of another type than it must be.
    """
    defaults = asdict(TrainConfig())
    values = {}
    for key, value in stored.items():
        name = REFERENCE_NAMES.get(key, key)
        if name in defaults:
            values[name] = tuple(value) if isinstance(value, list) else value
    for name, value in values.items():
        if not _is_of_type(value, defaults[name]):
            raise ValueError(
                f"{path}: {name} of its settings is {str(value)[:60]!r}, "
                f"expected a {type(defaults[name]).__name__}"
            )
    return TrainConfig(**values)


def _is_of_type(value: object, default: object) -> bool:
    """Whether a value is of the type of its default; whole numbers may stand for others."""
    # To Python a bool is a whole number, too.
    if isinstance(value, bool):
        return isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))
