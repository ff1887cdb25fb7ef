"""Checkpoints: the reference's four keys, and beside them what inference needs.

That is the meshes and the settings of the training.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from neural_mesh.digests import short_file_digest
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.checkpoint_checks import check_content, train_config_of
from neural_mesh.storage.files import atomic_path

METADATA = "nemo"  # the entry of a safetensors file that holds all but its tensors


@dataclass(frozen=True)
class Checkpoint:
    """A trained category.

    state: the network's state dict, without DataParallel's prefix. memory: per mesh the vertex
    features, then the clutter features [V + N, C]. meshes: None in files of the reference, which
    did not store them. fingerprint: of the file. data: of the training data, empty in files of the
    reference.
    """

    state: dict[str, Tensor]
    memory: list[Tensor]
    meshes: list[Mesh] | None
    config: TrainConfig
    epoch: int
    fingerprint: str = ""
    data: str = ""

    def banks(self, mesh: int) -> tuple[Tensor, Tensor]:
        """Vertex features [V, C] and clutter features [N, C] of mesh 1, 2, ..."""
        memory = self.memory[mesh - 1]
        n_vertices = len(memory) - self.config.num_clutter
        return memory[:n_vertices], memory[n_vertices:]

    def with_meshes(self, meshes: list[Mesh], where: Path) -> Checkpoint:
        """This checkpoint with the meshes of the folder `where`.

        ValueError when a bank does not fit its mesh.
        """
        if len(meshes) != len(self.memory):
            raise ValueError(
                f"the checkpoint has {len(self.memory)} banks "
                f"but {where} holds {len(meshes)} meshes"
            )
        for i, mesh in enumerate(meshes, start=1):
            rows = len(self.memory[i - 1]) - self.config.num_clutter
            if rows != len(mesh.vertices):
                raise ValueError(
                    f"bank {i} of the checkpoint has {rows} vertices "
                    f"but {where}/{i:02d}.off has {len(mesh.vertices)}: "
                    "it was trained on another cuboid; make the cuboids from the CAD models "
                    "it was trained with, or put its mesh there"
                )
        return replace(self, meshes=meshes)


# ---- writing ----


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    The reference's loader finds its keys and prefix in it.
    """
    if checkpoint.meshes is None:
        raise ValueError("a checkpoint is written with its meshes")
    content = {
        "state": {f"module.{key}": value.cpu() for key, value in checkpoint.state.items()},
        "memory": [memory.cpu() for memory in checkpoint.memory],
        "timestamp": checkpoint.epoch,
        "args": asdict(checkpoint.config),
        "data": checkpoint.data,
        "meshes": [_as_tensors(mesh) for mesh in checkpoint.meshes],
    }
    # Given a path instead of a file, torch would write the temporary name into it.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def _as_tensors(mesh: Mesh) -> dict[str, Tensor]:
    return {"vertices": torch.from_numpy(mesh.vertices), "faces": torch.from_numpy(mesh.faces)}


def export_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as safetensors, whole or not at all.

    Nothing in such a file can be executed. Tensors: state.<name>, memory.<mesh>, vertices.<mesh>
    and faces.<mesh>, meshes counted from 1. Everything else is JSON in the metadata entry `nemo`.
    """
    tensors = {f"state.{key}": value for key, value in checkpoint.state.items()}
    for number, memory in enumerate(checkpoint.memory, start=1):
        tensors[f"memory.{number}"] = memory
    for number, mesh in enumerate(checkpoint.meshes or [], start=1):
        tensors |= {f"{key}.{number}": value for key, value in _as_tensors(mesh).items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    rest = {"config": asdict(checkpoint.config), "epoch": checkpoint.epoch, "data": checkpoint.data}
    metadata = {METADATA: json.dumps(rest, sort_keys=True)}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=metadata)


# ---- reading ----


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
    settings = content.get("args")
    if isinstance(settings, argparse.Namespace):
        settings = vars(settings)
    return _checkpoint_of(path, content, settings)


def load_torch_file(path: Path) -> dict:
    """Read a file of torch.save without executing anything in it.

    ValueError when it is broken or wants to run code.
    """
    path = Path(path)
    # The reference stores its arguments as a Namespace.
    torch.serialization.add_safe_globals([argparse.Namespace])
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
    """ValueError when the members of a file unpack to more than the file holds.

    torch.save compresses nothing, so such a file is not one of its own.
    """
    if not zipfile.is_zipfile(path):
        return  # the format of torch before 1.6, which reads no more than there is
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than it holds")


def _load_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            rest = (file.metadata() or {}).get(METADATA)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # broken bytes may raise nearly anything
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    if rest is None:
        raise ValueError(
            f"{path}: lacks the metadata entry {METADATA}, "
            "it is not a NeMo checkpoint of export_checkpoint.py"
        )
    try:
        rest = json.loads(rest)
        config, epoch, data = rest["config"], rest["epoch"], rest["data"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata entry {METADATA} is broken ({error})") from error

    # From here on as the content of a .pth file.
    number_of_banks = sum(key.startswith("memory.") for key in tensors)
    numbers = range(1, 1 + number_of_banks)
    content = {
        "state": {
            key.removeprefix("state."): value
            for key, value in tensors.items()
            if key.startswith("state.")
        },
        "memory": [tensors.get(f"memory.{number}") for number in numbers],
        "meshes": [
            {"vertices": tensors[f"vertices.{number}"], "faces": tensors.get(f"faces.{number}")}
            for number in numbers
            if f"vertices.{number}" in tensors
        ],
        "timestamp": epoch,
        "data": data,
    }
    return _checkpoint_of(path, content, config)


def _checkpoint_of(path: Path, content: dict, settings: object) -> Checkpoint:
    """What a file holds, whatever its format; settings: named values, or there are none.

    ValueError, naming the field, when something in it is not what it must be.
    """
    config = train_config_of(path, settings if isinstance(settings, dict) else {})
    check_content(path, content)
    memory = content["memory"]
    if isinstance(memory, Tensor):
        memory = [memory]
    meshes = None
    if content.get("meshes"):
        meshes = [Mesh(m["vertices"].numpy(), m["faces"].numpy()) for m in content["meshes"]]
    for number, bank in enumerate(memory, start=1):
        rows = len(bank) - config.num_clutter
        if rows < 1 or (meshes and rows != len(meshes[number - 1].vertices)):
            raise ValueError(
                f"{path}: bank {number} has {len(bank)} rows, "
                f"which do not fit its mesh and {config.num_clutter} clutter rows"
            )
    state = {key.removeprefix("module."): value for key, value in content["state"].items()}
    return Checkpoint(
        state=state,
        memory=[bank.float() for bank in memory],
        meshes=meshes,
        config=config,
        epoch=int(content.get("timestamp", 0)),
        fingerprint=short_file_digest(path),
        data=str(content.get("data", "")),
    )
