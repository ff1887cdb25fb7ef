"""The settings of the scripts: their help, and one clear sentence for each mistake."""

from __future__ import annotations

import re

import pytest

SCRIPTS = ("PrepareData.sh", "TrainNeMo.sh", "InferenceNeMo.sh", "DemoNeMo.sh")
# script, settings and the complaint, a pattern
MISTAKES = [
    (
        "TrainNeMo.sh",
        {},
        "no meshes: .*run PrepareData.sh|training set not found.*run PrepareData.sh",
    ),
    ("InferenceNeMo.sh", {}, "checkpoint not found.*train first"),
    ("InferenceNeMo.sh", {"RENDERER": "pytorch3d"}, "PyTorch3D|checkpoint not found"),
    ("TrainNeMo.sh", {"GPUS": "77"}, "GPUS names GPU 77|not found|no meshes"),
    ("InferenceNeMo.sh", {"SHARD": "2/2"}, "SHARD is '2/2', it can be i/n with 0 <= i < n"),
    (
        "InferenceNeMo.sh",
        {"PRECISION": "half"},
        "PRECISION is 'half', it can be auto or float32 or bfloat16",
    ),
    (
        "InferenceNeMo.sh",
        {"SAVE_FEATURES": "yes"},
        "SAVE_FEATURES is 'yes', it can be true or false",
    ),
    ("PrepareData.sh", {"MESH_DIMENSIONS": "single,triple"}, "MESH_DIMENSIONS names 'triple'"),
    ("TrainNeMo.sh", {"TOTAL_EPOCHS": "many"}, "not a whole number above 0"),
    ("TrainNeMo.sh", {"PARALLEL": "mpi"}, "PARALLEL is 'mpi', it can be dp or ddp"),
    ("TrainNeMo.sh", {"IMAGE_CACHE": "tape"}, "invalid choice: 'tape'"),
    ("PrepareData.sh", {"ENABLE_OCCLUDED": "maybe"}, "ENABLE_OCCLUDED is 'maybe'"),
    (
        "PrepareData.sh",
        {"AZIMUTH_SELECTION": "TTTT"},
        "AZIMUTH_SELECTION is 'TTTT', it must hold both T and F",
    ),
    (
        "PrepareData.sh",
        {"AZIMUTH_SELECTION": "TFx"},
        "AZIMUTH_SELECTION is 'TFx', it is a pattern of T and F",
    ),
    (
        "PrepareData.sh",
        {"NUMBER_VERTICES": "0"},
        "NUMBER_VERTICES is '0', it is a whole number above 0",
    ),
    (
        "PrepareData.sh",
        {"MINIMUM_THICKNESS": "1.5"},
        "MINIMUM_THICKNESS is '1.5', it is auto or a number from 0 to 1",
    ),
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_prints_the_settings_and_unknown_arguments_are_an_error(script, name):
    done = script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "GPUS=" in done.stdout or "OVERWRITE=" in done.stdout
    done = script(name, "--frobnicate")
    assert done.returncode != 0
    assert "does not take '--frobnicate'" in done.stderr


@pytest.mark.parametrize("name, settings, complaint", MISTAKES)
def test_a_mistake_gets_one_clear_sentence(script, tmp_path, name, settings, complaint):
    folders = {"DATAROOT": tmp_path / "nothing here", "EXPROOT": tmp_path / "exp"}
    done = script(name, **folders, CATEGORIES="car", **({"GPUS": ""} | settings))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(complaint, done.stderr), done.stderr
