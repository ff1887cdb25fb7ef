"""What the file of a stranger must hold before it is used as a checkpoint.

Files are read without executing anything; here every field is checked for type, shape and size, so
that a broken file is refused by a sentence that names the field.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_mesh.categories import pascal3d_name
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.pickled_settings import plain

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
# How the settings of the reference's successor (key cfg) may call what has the same meaning here.
CATEGORY_NAMES = ("category", "cate", "type_")
ALL_CATEGORIES = ("all", "None")
STATED_NAMES = {"category", "type_"}  # of `args`, ours and the reference's
BACKBONE_NAMES = ("backbone", "net_type")


def check_content(path: Path, content: dict) -> None:
    """ValueError, naming the field, unless all of a checkpoint has the right type, shape, size."""
    _check_state(path, content["state"])
    # A single bank may stand without a list around it.
    banks = content["memory"]
    if not isinstance(banks, (list, tuple)):
        banks = [banks]
    are_banks = [_is_array(bank, rank=2) and bank.is_floating_point() for bank in banks]
    _require(path, len(banks) > 0 and all(are_banks), "memory holds no feature banks")
    _require(path, isinstance(epoch_of(content), int), "timestamp is no number")

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


# ---- settings ------------------------------------------------------------------------------------


def stated_settings(content: dict) -> dict:
    """The settings that a file states, as plain values by name; empty where it states none.

    They are `args` (ours and the reference's), or what is understood of `cfg` (its successor's).
    """
    settings = plain(content.get("args"))
    settings = dict(settings) if isinstance(settings, dict) else {}
    # Settings in groups, and those of the successor: only what cannot mean anything else.
    if not _states_category(settings):
        for source in (settings, plain(content.get("cfg"))):
            settings = settings | _understood(source)
    return settings


def _states_category(settings: dict) -> bool:
    return any(settings.get(name) for name in STATED_NAMES)


def _understood(settings: object) -> dict:
    """Category and backbone of settings in groups, where all that is said of them is one name."""
    named = list(_texts(settings, levels=4))
    found = {}
    categories = {text for name, text in named if name in CATEGORY_NAMES}
    if len(categories) == 1:
        category = categories.pop()
        if category.isidentifier() and category not in ALL_CATEGORIES:
            found["category"] = pascal3d_name(category) or category
    backbones = {text for name, text in named if name in BACKBONE_NAMES}
    if len(backbones) == 1:
        found["backbone"] = backbones.pop()
    return found


def _texts(settings: object, levels: int) -> Iterator[tuple[str, str]]:
    """Names and values of all settings that are texts, those of inner groups too."""
    if not isinstance(settings, dict) or not levels:
        return
    for name, value in settings.items():
        if isinstance(value, str):
            yield name, value
        yield from _texts(value, levels - 1)


def epoch_of(content: dict) -> Any:
    """After how many epochs a file was written; 0 where it does not say."""
    return plain(content.get("timestamp", content.get("epoch", 0)))


def with_category(path: Path, settings: dict, category: str | None) -> dict:
    """Settings that have a category: the stated one or, with a note, the one that the user names.

    ValueError where there is neither: none is guessed.
    """
    if _states_category(settings):
        return settings
    if category is None:
        raise ValueError(
            f"{path} does not say what it was trained on; "
            "name it with --category, or set CATEGORIES to it"
        )
    print(
        f"note: {path} does not say what it was trained on; it is taken for {category}, as named",
        file=sys.stderr,
    )
    return settings | {"category": category}


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
