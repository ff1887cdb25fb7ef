"""Checkpoints: the reference's four keys, and beside them the meshes and settings that inference needs."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemo.files import atomic_path
from nemo.meshes import Mesh
from nemo.settings import TrainConfig

REFERENCE_NAMES = {  # its arguments that have another name here
    "type_": "category", "lr": "learning_rate", "T": "temperature", "distance_thr": "near_distance_px",
    "weight_noise": "weight_clutter", "num_noise": "num_clutter_image", "max_group": "num_clutter_group",
    "adj_momentum": "bank_momentum", "train_accumulate": "accumulate",
}  # fmt: skip


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
            raise ValueError(f"the checkpoint has {len(self.memory)} banks but {where} holds {len(meshes)} meshes")
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
            {"vertices": torch.from_numpy(mesh.vertices), "faces": torch.from_numpy(mesh.faces)} for mesh in checkpoint.meshes
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
        tensors |= {f"vertices.{i}": torch.from_numpy(mesh.vertices), f"faces.{i}": torch.from_numpy(mesh.faces)}
    rest = {"config": asdict(checkpoint.config), "epoch": checkpoint.epoch, "data": checkpoint.data}
    with atomic_path(path) as temporary:
        packed = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        safetensors.torch.save_file(packed, temporary, metadata={"nemo": json.dumps(rest, sort_keys=True)})


def _load_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            rest, tensors = (file.metadata() or {}).get("nemo"), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    if rest is None:
        raise ValueError(f"{path}: lacks the metadata entry nemo, it is not a NeMo checkpoint of export_checkpoint.py")
    rest = json.loads(rest)
    number = range(1, 1 + sum(key.startswith("memory.") for key in tensors))
    meshes = [Mesh(tensors[f"vertices.{i}"].numpy(), tensors[f"faces.{i}"].numpy()) for i in number if f"vertices.{i}" in tensors]
    return Checkpoint(
        state={key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")},
        memory=[tensors[f"memory.{i}"] for i in number],
        meshes=meshes or None,
        config=_config(rest["config"]),
        epoch=rest["epoch"],
        fingerprint=_fingerprint(path),
        data=rest["data"],
    )


def load_torch_file(path: Path) -> dict:
    """Read a file of torch.save without executing anything in it; ValueError when it is broken or wants to run code."""
    path = Path(path)
    torch.serialization.add_safe_globals([argparse.Namespace])  # the reference stores its arguments as one
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a checkpoint that can be read safely ({str(error).splitlines()[0][:200]})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


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
    stored = vars(stored) if isinstance(stored, argparse.Namespace) else stored if isinstance(stored, dict) else {}
    memory = content["memory"]
    memory = [memory] if isinstance(memory, Tensor) else list(memory)
    meshes = content.get("meshes")
    return Checkpoint(
        state={key.removeprefix("module."): value for key, value in content["state"].items()},
        memory=[bank.float() for bank in memory],
        meshes=[Mesh(mesh["vertices"].numpy(), mesh["faces"].numpy()) for mesh in meshes] if meshes else None,
        config=_config(stored),
        epoch=int(content.get("timestamp", 0)),
        fingerprint=_fingerprint(path),
        data=str(content.get("data", "")),
    )


def _config(stored: dict) -> TrainConfig:
    """The settings among a file's; those that it does not have are the defaults."""
    known = {field.name for field in fields(TrainConfig)}
    named = {REFERENCE_NAMES.get(key, key): value for key, value in stored.items()}
    return TrainConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in named.items() if key in known})


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:16]
