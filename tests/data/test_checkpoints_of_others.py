"""Checkpoints as other programs write them: keys, settings and numbers of other kinds."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch

from helpers.project import Trap
from helpers.small_training import tiny_checkpoint
from neural_mesh.network.pretrained import build_network
from neural_mesh.settings import TrainConfig
from neural_mesh.solve.model import load_model
from neural_mesh.stages.export_checkpoint import export_checkpoints
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.mesh_files import write_off

ROWS = 3 + 2560  # of the bank of a mesh of three vertices, with the paper's clutter


def content_of(**more: object) -> dict:
    """What the successor of the reference saves: weights, a bank that is no list, epoch 800."""
    state = {f"module.{key}": value for key, value in tiny_checkpoint().state.items()}
    bank = torch.nn.functional.normalize(torch.randn(ROWS, 128), dim=1)
    return {"state": state, "memory": bank, "lr": 1e-4, "epoch": 800} | more


def saved(path: Path, **more: object) -> Path:
    torch.save(content_of(**more), path)
    return path


SETTINGS = {"args": {"cate": "bus", "seed": 3}, "model": {"backbone": "resnet18fpn", "n": [1, {}]}}


# ---- what a file was trained on ----


@pytest.mark.parametrize("container", [dict, lambda values: argparse.Namespace(**values)])
def test_settings_of_the_successor_say_category_and_backbone(tmp_path, container):
    loaded = load_checkpoint(saved(tmp_path / "model_800.pth", cfg=container(SETTINGS)))
    assert loaded.config == TrainConfig(category="bus", backbone="resnet18fpn")
    assert loaded.epoch == 800
    assert [len(rows) for rows in loaded.banks(1)] == [3, 2560]


def test_its_usual_names_of_categories_are_understood(tmp_path):
    cfg = SETTINGS | {"args": {"cate": "airplane"}}
    assert load_checkpoint(saved(tmp_path / "a.pth", cfg=cfg)).config.category == "aeroplane"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"args": argparse.Namespace(lr=1e-4)},
        {"args": {"category": "", "lr": 1e-4}},
        {"cfg": {"args": {"cate": "all"}}},
        {"cfg": {"train": {"category": "car"}, "test": {"category": "bus"}}},
    ],
)
def test_a_category_is_never_guessed(tmp_path, capsys, more):
    path = saved(tmp_path / "model_800.pth", **more)
    for read in (load_checkpoint, lambda path: load_model(path, None, tmp_path)):
        with pytest.raises(ValueError, match="does not say what it was trained on.*--category"):
            read(path)
    assert load_checkpoint(path, "bus").config.category == "bus"
    assert "is taken for bus, as named" in capsys.readouterr().err


def test_a_stated_category_is_not_overruled(tmp_path, capsys):
    path = saved(tmp_path / "model_800.pth", cfg=SETTINGS)
    assert load_checkpoint(path, "car").config.category == "bus"
    with pytest.raises(ValueError, match="was trained on bus, not on car"):
        load_model(path, "car", tmp_path)
    assert not capsys.readouterr().err


def test_a_checkpoint_of_the_successor_is_a_model_with_its_cuboid(tmp_path):
    write_off(tmp_path / "01.off", tiny_checkpoint().meshes[0])
    path = saved(tmp_path / "model_800.pth", cfg=SETTINGS)
    model = load_model(path, None, tmp_path)
    assert model.map_hw == (40, 100)
    path = saved(tmp_path / "other.pth", cfg={"cate": "bus", "backbone": "resnetext3"})
    with pytest.raises(ValueError, match=r"other\.pth was trained with backbone 'resnetext3'"):
        load_model(path, None, tmp_path)


def test_a_file_without_settings_is_exported_with_the_named_category(tmp_path):
    path = saved(tmp_path / "model_800.pth")
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        export_checkpoints([path], "safetensors")
    export_checkpoints([path], "safetensors", category="bus")
    assert load_checkpoint(tmp_path / "model_800.safetensors").config.category == "bus"


# ---- values of other programs ----


def test_numbers_of_numpy_in_settings_are_plain_numbers(tmp_path):
    settings = asdict(TrainConfig(backbone="resnet18fpn")) | {
        "category": np.str_("bus"),
        "learning_rate": np.float64(2e-4),
        "weight_decay": np.float32(0.5),
        "seed": np.int64(3),
        "bias_at_test": np.bool_(True),
        "total_epochs": torch.tensor(7),
        "augment": [np.str_("flip")],
        # Not used here, and in the way of nothing.
        "steps": np.arange(6.0).reshape(2, 3),
        "folder": Path("/somewhere/else"),
        "groups": defaultdict(list, a=[np.float16(1)]),
        "device": torch.device("cpu"),
    }
    for args in (settings, argparse.Namespace(**settings)):
        for zipped in (True, False):
            path = tmp_path / "numbers.pth"
            content = content_of(args=args, timestamp=np.int64(5))
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            loaded = load_checkpoint(path)
            config = loaded.config
            assert (config.category, config.learning_rate, config.seed) == ("bus", 2e-4, 3)
            assert (config.weight_decay, config.total_epochs) == (0.5, 7)
            assert config.bias_at_test is True
            assert config.augment == ("flip",)
            values = (config.learning_rate, config.seed, config.total_epochs, loaded.epoch)
            assert [type(value) for value in values] == [float, int, int, int]
            assert loaded.epoch == 5


def test_a_dict_of_a_settings_library_is_read_without_the_library(tmp_path, monkeypatch):
    library = ModuleType("easydict")

    class EasyDict(dict):
        def __init__(self, values: dict):
            super().__init__(values)
            self.__dict__.update(values)

    library.EasyDict = EasyDict
    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    monkeypatch.setitem(sys.modules, "easydict", library)
    path = saved(tmp_path / "a.pth", cfg=EasyDict({"args": EasyDict({"cate": "bus"})}))
    monkeypatch.delitem(sys.modules, "easydict")
    assert load_checkpoint(path).config.category == "bus"


def test_values_that_claim_too_much_are_refused(tmp_path):
    """A number of NumPy whose type is larger than its bytes, and objects in place of a number."""

    class Claims:
        def __init__(self, code: str):
            self.code = code

        def __reduce__(self):
            scalar = np.float64(1).__reduce__()[0]
            return scalar, (np.dtype(self.code), b"12")

    for code in ("f8", "O", "V8", "M8"):
        path = saved(tmp_path / "claims.pth", args={"category": "bus", "seed": Claims(code)})
        with pytest.raises(ValueError, match=r"claims\.pth: not a checkpoint that can be read"):
            load_checkpoint(path)


def test_settings_that_want_to_run_code_are_refused_in_our_words(tmp_path):
    ran = tmp_path / "ran"
    path = saved(tmp_path / "evil.pth", cfg=Trap(ran), args=np.float64(1))
    with pytest.raises(ValueError, match="nothing in a file is run") as refusal:
        load_checkpoint(path)
    for advice in ("weights_only", "torch.load", "allowlist", "safe_globals", "report"):
        assert advice not in str(refusal.value)
    assert not ran.exists()


# ---- files of torch.save that are something else ----


@pytest.mark.parametrize(
    "content, complaint",
    [
        ({"epoch": 3, "state_dict": {}}, "lacks state, memory.*holds epoch, state_dict"),
        ({"conv1.weight": torch.ones(2)}, "weights of a network alone, from which PRETRAINED"),
        ({"network": {}, "optimiser": {}, "banks": []}, "an unfinished training"),
    ],
)
def test_other_files_of_torch_are_named(tmp_path, content, complaint):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=complaint):
        load_checkpoint(tmp_path / "other.pth")


def test_a_whole_module_is_refused_by_its_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"wants to run torch\.nn\.modules\.linear\.Linear,"):
        load_checkpoint(tmp_path / "module.pth")


def test_a_pickle_of_another_program_is_refused(tmp_path, recwarn):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": np.ones(3)}))
    with pytest.raises(ValueError, match=r"a\.pkl: .*a Python pickle of another program"):
        load_checkpoint(tmp_path / "a.pkl")
    assert not recwarn.list


def test_the_content_tells_safetensors_from_torch(tmp_path):
    """A browser or a hub may give a file another ending."""
    bus = saved(tmp_path / "bus.pth", cfg=SETTINGS)
    export_checkpoints([bus], "safetensors")
    (tmp_path / "bus.safetensors").rename(tmp_path / "exported.pth")
    bus.rename(tmp_path / "torch.safetensors")
    for name in ("exported.pth", "torch.safetensors"):
        assert load_checkpoint(tmp_path / name).config.category == "bus"


# ---- PRETRAINED ----


def test_pretrained_weights_come_out_of_usual_containers(tmp_path):
    trunk = {
        key.replace("stem.0", "conv1").replace("stem.1", "bn1").replace("stem.4", "layer1"): value
        for key, value in build_network("resnet18fpn", "none").net.state_dict().items()
        if key.startswith(("stem", "layer"))
    }
    torch.save({"model": {f"module.{key}": value for key, value in trunk.items()}}, tmp_path / "a")
    safetensors.torch.save_file(trunk, tmp_path / "b")
    for name in "ab":
        network = build_network("resnet18fpn", str(tmp_path / name))
        assert torch.equal(network.net.stem[0].weight, trunk["conv1.weight"])
    with pytest.raises(ValueError, match="is a trained NeMo checkpoint; PRETRAINED takes"):
        build_network("resnet18fpn", str(saved(tmp_path / "nemo.pth")))


def test_a_broken_copy_of_imagenet_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    copy = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    copy.parent.mkdir()
    copy.write_text("<html><title>Log in to the network</title></html>")
    with pytest.raises(ValueError, match=r"f37072fd\.pth is a web page.*delete it"):
        build_network("resnet18fpn", "imagenet")
