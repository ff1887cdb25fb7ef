"""Checkpoints: the reference's four keys, and beside them the meshes and settings that inference needs."""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from neural_mesh.geometry.meshes import Mesh
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.files import atomic_path

REFERENCE_NAMES = {  # its arguments that have another name here
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


@dataclass(frozen=True)
class Checkpoint:
    """A trained category.

    state: the network's state dict, without DataParallel's prefix. memory: per mesh the vertex features, then the
    clutter features [V + N, C]. meshes: None in files of the reference, which did not store them.
    """

    state: dict[str, Tensor]
    memory: list[Tensor]
    meshes: list[Mesh] | None
    config: TrainConfig
    epoch: int
    fingerprint: str = ""  # of the file
    data: str = ""  # fingerprint of the training data; empty in files of the reference

    def banks(self, mesh: int) -> tuple[Tensor, Tensor]:
        """Vertex features [V, C] and clutter features [N, C] of mesh 1, 2, ..."""
        memory = self.memory[mesh - 1]
        n_vertices = len(memory) - self.config.num_clutter
        return memory[:n_vertices], memory[n_vertices:]

    def with_meshes(self, meshes: list[Mesh], where: Path) -> Checkpoint:
        """This checkpoint with meshes from a folder; ValueError when a bank does not fit its mesh."""
        if len(meshes) != len(self.memory):
            raise ValueError(
                f"the checkpoint has {len(self.memory)} banks but {where} holds {len(meshes)} meshes"
            )
        for i, (mesh, memory) in enumerate(zip(meshes, self.memory, strict=True), start=1):
            rows = len(memory) - self.config.num_clutter
            if rows != len(mesh.vertices):
                raise ValueError(
                    f"bank {i} of the checkpoint has {rows} vertices but {where}/{i:02d}.off has {len(mesh.vertices)}: "
                    "it was trained on another cuboid; make the cuboids from the CAD models it was trained with, or put its mesh there"
                )
        return replace(self, meshes=meshes)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all; the reference's loader finds its keys and prefix in it."""
    if checkpoint.meshes is None:
        raise ValueError("a checkpoint is written with its meshes")
    content = {
        "state": {f"module.{key}": value.cpu() for key, value in checkpoint.state.items()},
        "memory": [memory.cpu() for memory in checkpoint.memory],
        "timestamp": checkpoint.epoch,
        "args": asdict(checkpoint.config),
        "data": checkpoint.data,
        "meshes": [
            {"vertices": torch.from_numpy(mesh.vertices), "faces": torch.from_numpy(mesh.faces)}
            for mesh in checkpoint.meshes
        ],
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)  # given a path, it would write the temporary name into the file


def export_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as safetensors, whole or not at all: nothing in such a file can be executed.

    Tensors: state.<name>, memory.<mesh>, vertices.<mesh> and faces.<mesh>, meshes counted from 1. Everything else is
    JSON in the metadata entry `nemo`.
    """
    tensors = {f"state.{key}": value for key, value in checkpoint.state.items()}
    tensors |= {f"memory.{i}": memory for i, memory in enumerate(checkpoint.memory, start=1)}
    for i, mesh in enumerate(checkpoint.meshes or [], start=1):
        tensors |= {
            f"vertices.{i}": torch.from_numpy(mesh.vertices),
            f"faces.{i}": torch.from_numpy(mesh.faces),
        }
    rest = {"config": asdict(checkpoint.config), "epoch": checkpoint.epoch, "data": checkpoint.data}
    with atomic_path(path) as temporary:
        packed = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        safetensors.torch.save_file(
            packed, temporary, metadata={"nemo": json.dumps(rest, sort_keys=True)}
        )


def _load_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            rest, tensors = (
                (file.metadata() or {}).get("nemo"),
                {key: file.get_tensor(key) for key in file.keys()},
            )  # noqa: SIM118
    except Exception as error:  # broken bytes may raise nearly anything
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    if rest is None:
        raise ValueError(
            f"{path}: lacks the metadata entry nemo, it is not a NeMo checkpoint of export_checkpoint.py"
        )
    try:
        rest = json.loads(rest)
        config, epoch, data = rest["config"], rest["epoch"], rest["data"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata entry nemo is broken ({error})") from error
    number = range(1, 1 + sum(key.startswith("memory.") for key in tensors))
    meshes = [
        {part: tensors.get(f"{part}.{i}") for part in ("vertices", "faces")}
        for i in number
        if f"vertices.{i}" in tensors
    ]
    content = {
        "state": {
            key.removeprefix("state."): value
            for key, value in tensors.items()
            if key.startswith("state.")
        },
        "memory": [tensors.get(f"memory.{i}") for i in number],
        "meshes": meshes,
        "timestamp": epoch,
        "data": data,
    }
    return _checkpoint_of(path, content, _config(path, config if isinstance(config, dict) else {}))


def load_torch_file(path: Path) -> dict:
    """Read a file of torch.save without executing anything in it; ValueError when it is broken or wants to run code."""
    path = Path(path)
    torch.serialization.add_safe_globals(
        [argparse.Namespace]
    )  # the reference stores its arguments as one
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes may raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _check_archive(path: Path) -> None:
    """torch.save compresses nothing, so a file whose members unpack to more than the file holds is not one of its own."""
    if not zipfile.is_zipfile(path):
        return  # the format of torch before 1.6, which reads no more than there is
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than it holds")


def _checked(path: Path, content: dict) -> None:
    """ValueError, naming the field, unless all that a checkpoint holds is of the right type, shape and size."""

    def require(right: bool, what: str) -> None:
        if not right:
            raise ValueError(f"{path}: {what}, it is not a NeMo checkpoint or a broken one")

    def is_array(value: object, rank: int | None = None) -> bool:
        return (
            isinstance(value, Tensor)
            and not value.is_sparse
            and value.layout == torch.strided
            and (
                (rank is None or value.ndim == rank)
                and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
            )
        )

    state, memory, meshes = content["state"], content["memory"], content.get("meshes")
    named = isinstance(state, dict) and all(
        isinstance(key, str) and is_array(value) for key, value in state.items()
    )
    require(named, "state is no set of named weights")
    banks = memory if isinstance(memory, (list, tuple)) else [memory]
    require(
        len(banks) > 0 and all(is_array(bank, 2) and bank.is_floating_point() for bank in banks),
        "memory holds no feature banks",
    )
    require(isinstance(content.get("timestamp", 0), int), "timestamp is no number")
    require(
        not meshes or (isinstance(meshes, list) and all(isinstance(mesh, dict) for mesh in meshes)),
        "meshes is no list of meshes",
    )
    for number, mesh in enumerate(meshes or [], start=1):
        vertices, faces = mesh.get("vertices"), mesh.get("faces")
        for key, array in (("vertices", vertices), ("faces", faces)):
            require(
                is_array(array, 2) and array.shape[1] == 3 and not array.is_complex(),
                f"{key} of mesh {number} are no rows of three",
            )
        require(bool(vertices.isfinite().all()), f"a vertex of mesh {number} is not finite")
        inside = not faces.is_floating_point() and bool(
            ((faces >= 0) & (faces < len(vertices))).all()
        )
        require(inside, f"a face of mesh {number} names a vertex that does not exist")
    require(
        not meshes or len(meshes) == len(banks),
        f"it has {len(banks)} banks but {len(meshes or [])} meshes",
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this project, .pth or .safetensors, or of the reference.

    Raises ValueError, naming what is wrong, when it is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}; train first, or set LOAD_FILE_NAME")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    content = load_torch_file(path)
    missing = [key for key in ("state", "memory") if key not in content]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}, it is not a NeMo checkpoint")
    stored = content.get("args")
    stored = (
        vars(stored)
        if isinstance(stored, argparse.Namespace)
        else stored
        if isinstance(stored, dict)
        else {}
    )
    return _checkpoint_of(path, content, _config(path, stored))


def _checkpoint_of(path: Path, content: dict, config: TrainConfig) -> Checkpoint:
    """What a file holds, whatever its format; ValueError, naming the field, when something in it is not what it must be."""
    _checked(path, content)
    memory, meshes = content["memory"], content.get("meshes")
    memory = [memory] if isinstance(memory, Tensor) else list(memory)
    for i, bank in enumerate(memory, start=1):
        rows = len(bank) - config.num_clutter
        if rows < 1 or (meshes and rows != len(meshes[i - 1]["vertices"])):
            raise ValueError(
                f"{path}: bank {i} has {len(bank)} rows, which do not fit its mesh and {config.num_clutter} clutter rows"
            )
    return Checkpoint(
        state={key.removeprefix("module."): value for key, value in content["state"].items()},
        memory=[bank.float() for bank in memory],
        meshes=[Mesh(mesh["vertices"].numpy(), mesh["faces"].numpy()) for mesh in meshes]
        if meshes
        else None,
        config=config,
        epoch=int(content.get("timestamp", 0)),
        fingerprint=_fingerprint(path),
        data=str(content.get("data", "")),
    )


def _config(path: Path, stored: dict) -> TrainConfig:
    """The settings among a file's; those that it does not have are the defaults.

    ValueError, naming the field, when a value is of another type than it must be.
    """
    default = asdict(TrainConfig())
    named = {
        REFERENCE_NAMES.get(key, key): tuple(value) if isinstance(value, list) else value
        for key, value in stored.items()
    }
    values = {key: value for key, value in named.items() if key in default}
    for key, value in values.items():
        wanted = (int, float) if isinstance(default[key], float) else type(default[key])
        if not isinstance(value, wanted) or (
            isinstance(value, bool) and not isinstance(default[key], bool)
        ):
            raise ValueError(
                f"{path}: {key} of its settings is {str(value)[:60]!r}, expected a {type(default[key]).__name__}"
            )
    return TrainConfig(**values)


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]
