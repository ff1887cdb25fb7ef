"""Checkpoints written and read in both formats, and those of the reference."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from helpers.project import Trap
from helpers.small_training import tiny_checkpoint
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.solve.model import load_model
from neural_mesh.storage.checkpoints import (
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def assert_same(loaded: Checkpoint, saved: Checkpoint) -> None:
    """The same settings, data and weights; weights and banks bit for bit."""
    assert (loaded.config, loaded.epoch, loaded.data) == (saved.config, saved.epoch, saved.data)
    assert loaded.state.keys() == saved.state.keys()
    for key, value in saved.state.items():
        assert torch.equal(loaded.state[key], value)
    assert torch.equal(loaded.memory[0], saved.memory[0])
    assert np.array_equal(loaded.meshes[0].faces, saved.meshes[0].faces)


def test_checkpoints_survive_a_round_trip(tmp_path):
    saved = tiny_checkpoint()
    save_checkpoint(tmp_path / "a.pth", saved)
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert_same(loaded, saved)
    assert loaded.epoch == 7
    assert [len(rows) for rows in loaded.banks(1)] == [3, 5]
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    # What the reference's loader looks for.
    assert {"state", "memory", "timestamp", "args"} <= set(content)
    assert all(key.startswith("module.") for key in content["state"])


def test_safetensors_hold_the_same_checkpoint(tmp_path, code):
    path = tmp_path / "a.pth"
    exported = tmp_path / "a.safetensors"
    save_checkpoint(path, replace(tiny_checkpoint(), data="abc"))
    printed = code("export_checkpoint", path).stdout
    assert "1 checkpoint written as safetensors, 0 kept" in printed
    printed = code("export_checkpoint", path).stdout
    assert "0 checkpoints written as safetensors, 1 kept" in printed
    expected = load_checkpoint(path)
    assert expected.data == "abc"
    assert_same(load_checkpoint(exported), expected)
    path.unlink()
    code("export_checkpoint", exported, "--to", "pth")
    assert_same(load_checkpoint(path), expected)
    export_checkpoint(tmp_path / "b.safetensors", expected)
    assert (tmp_path / "b.safetensors").read_bytes() == exported.read_bytes()


def test_broken_or_foreign_safetensors_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken\.safetensors: cannot be read as safetensors"):
        load_checkpoint(tmp_path / "broken.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="lacks the metadata entry nemo"):
        load_checkpoint(tmp_path / "foreign.safetensors")


@pytest.fixture
def reference_checkpoint(tmp_path) -> Path:
    """A file as the reference writes it, of one mesh with 1,024 vertices."""
    path = tmp_path / "saved_model_car_799.pth"
    content = {
        "state": {"module.out_layer.bias": torch.zeros(128)},
        "memory": [torch.randn(1024 + 2560, 128)],
        "timestamp": 3,
        "args": argparse.Namespace(lr=2e-4, type_="bus"),
    }
    torch.save(content, path)
    return path


def test_a_checkpoint_of_the_reference_loads_and_must_fit_its_mesh(reference_checkpoint, tmp_path):
    loaded = load_checkpoint(reference_checkpoint)
    assert loaded.config.category == "bus"
    assert loaded.config.learning_rate == 2e-4
    assert loaded.meshes is None
    assert "out_layer.bias" in loaded.state
    vertices, _ = loaded.banks(1)
    assert len(vertices) == 1024
    with pytest.raises(ValueError, match="trained on bus, not on car"):
        load_model(reference_checkpoint, "car", tmp_path)
    mesh = Mesh(np.zeros((1092, 3)), np.zeros((0, 3), np.int32))
    with pytest.raises(ValueError, match=r"1024 vertices.*01\.off has 1092"):
        loaded.with_meshes([mesh], tmp_path)


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path):
    content = {"state": {}, "memory": [], "args": Trap(tmp_path / "ran")}
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth.*safely"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
