"""Checkpoints: the reference's four keys, and beside them what inference needs.

That is the meshes and the settings of the training.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from neural_mesh.digests import short_file_digest
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.checkpoint_checks import (
    check_content,
    epoch_of,
    stated_settings,
    train_config_of,
    with_category,
)
from neural_mesh.storage.files import atomic_path
from neural_mesh.storage.foreign_files import (
    AGAIN,
    CUT_OFF,
    archive_is,
    has_zip_end,
    is_safetensors,
    what_it_is,
)
from neural_mesh.storage.pickled_settings import READABLE

# How files of torch before 1.6 begin: a pickle of a number.
OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
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


def load_checkpoint(path: Path, category: str | None = None) -> Checkpoint:
    """Read a checkpoint of this project (.pth or .safetensors), of the reference or its successor.

    category: what it was trained on, where the file does not say so. Raises ValueError, naming what
    is wrong or what the file is, when it is none of them.
    """
    path = Path(path)
    if (path / "data.pkl").is_file():
        raise ValueError(
            f"{path} is a folder: a program has unpacked the checkpoint; "
            "download it again, and keep the browser from unpacking it"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a checkpoint, such as one in it")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint not found: {path}; train first, or set LOAD_FILE_NAME")
    # Its first bytes say what a file is, not its name.
    if is_safetensors(path) or (path.suffix == ".safetensors" and not has_zip_end(path)):
        return _load_safetensors(path, category)
    content = load_torch_file(path)
    missing = [key for key in ("state", "memory") if key not in content]
    if missing:
        raise ValueError(
            f"{path}: lacks {', '.join(missing)}, it is not a NeMo checkpoint{_instead(content)}"
        )
    return _checkpoint_of(path, content, stated_settings(content), category)


def _instead(content: dict) -> str:
    """What a file of torch.save is in place of a checkpoint, and what to do with it."""
    if {"network", "optimiser", "banks"} <= content.keys():
        return " but the state of an unfinished training; let TrainNeMo.sh finish it"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return " but the weights of a network alone, from which PRETRAINED can start"
    keys = ", ".join(sorted(str(key)[:40] for key in content)[:6]) or "nothing"
    return f"; it holds {keys}"


def load_weights(path: Path) -> dict[str, Any]:
    """Named values of a file of torch.save or of safetensors, with nothing in it executed.

    ValueError, naming what the file is, when it is neither.
    """
    return _read_safetensors(path)[1] if is_safetensors(path) else load_torch_file(path)


def load_torch_file(path: Path) -> dict[str, Any]:
    """Read a file of torch.save without executing anything in it.

    ValueError when it is broken, is another kind of file, or wants to run code.
    """
    path = Path(path)
    other = what_it_is(path)
    if has_zip_end(path):
        other = other or archive_is(path)
    if other:
        raise ValueError(f"{path} {other}")
    try:
        _check_archive(path)
        content = _load(path)
    except Exception as error:  # broken bytes may raise nearly anything
        reason = _reason(error)
        raise ValueError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _load(path: Path) -> Any:
    """What torch reads of a file while nothing in it is executed."""
    # Given a path, torch would go by its ending. Its warnings ask for reports of strangers' files.
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.serialization.safe_globals(READABLE):
            return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """Why a file could not be read, in words of ours: torch's advise running what is in it."""
    message = str(error)
    wanted = re.search(
        r"(?:GLOBAL|global|class|type|function) ([\w.<>' ]{1,80}?) (?:was|whose)", message
    )
    if wanted:
        return f"it wants to run {wanted[1].strip()}, and nothing in a file is run"
    if isinstance(error, _Refused):
        return message
    if isinstance(error, EOFError) or "EOF" in message:
        return f"it is {CUT_OFF}"
    if isinstance(error, pickle.UnpicklingError) and "magic" not in message.lower():
        return "it holds more than tensors and plain values, and nothing in a file is run"
    return f"its bytes are not what torch.save writes, or are broken; {AGAIN}"


class _Refused(ValueError):
    """A reason in words of ours."""


def _check_archive(path: Path) -> None:
    """ValueError when a file is not of torch.save, or its members unpack to more than it holds.

    torch.save compresses nothing.
    """
    if not has_zip_end(path):
        # The format of torch before 1.6, which reads no more than there is.
        with open(path, "rb") as file:
            start = file.read(len(OLD_FORMAT))
        if start != OLD_FORMAT and start[:1] == b"\x80":
            raise _Refused("it is a Python pickle of another program, and nothing in a file is run")
        return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise _Refused("it unpacks to more than it holds")


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors; ValueError when the file is broken or another kind of file."""
    other = what_it_is(path)
    if other:
        raise ValueError(f"{path} {other}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except Exception as error:  # broken bytes may raise nearly anything
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error


def _load_safetensors(path: Path, category: str | None) -> Checkpoint:
    metadata, tensors = _read_safetensors(path)
    rest = metadata.get(METADATA)
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
    return _checkpoint_of(path, content, stated_settings({"args": config}), category)


def _checkpoint_of(path: Path, content: dict, settings: dict, category: str | None) -> Checkpoint:
    """What a file holds, whatever its format. settings: as it states them. category: see above.

    ValueError, naming the field, when something in it is not what it must be.
    """
    check_content(path, content)
    config = train_config_of(path, with_category(path, settings, category))
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
        epoch=int(epoch_of(content)),
        fingerprint=short_file_digest(path),
        data=str(content.get("data", "")),
    )
