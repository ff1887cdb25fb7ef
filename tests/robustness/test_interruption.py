"""kill -9 at random moments of preparation, training and inference: a rerun ends where an undisturbed run does."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.project import PYTHONPATH, ROOT, run_code
from neural_mesh.storage.files import lock
from neural_mesh.storage.results import load_poses, save_poses

FAST, SLOW = 2, 20  # kills per stage
MOST_TRIES = 10
CAR = ("--categories", "car")
NETWORK = (*CAR, "--gpus", "")
TRAIN = (
    *NETWORK,
    "--backbone",
    "resnet18fpn",
    "--pretrained",
    "none",
    "--image-scale",
    "0.5",
    "--recipe",
    "fixed",
    "--batch-size",
    "5",
    "--total-epochs",
    "3",
    "--learning-rate",
    "1e-3",
    "--num-clutter-group",
    "16",
    "--workers",
    "0",
    "--tensorboard",
    "false",
)
EAGER = {
    "train": "import neural_mesh.training.trainer as t; t.SECONDS_BETWEEN_STATES = 0.0; ",
    "solve_poses": "import neural_mesh.solve.run as r; r.SECONDS_BETWEEN_SAVES = 0.0; ",
}


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file but those that say how long a stage took."""
    files = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.parent.name.startswith("Timings_")
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def command(name: str, *arguments: object) -> list[str]:
    """code/<name>.py with states and partial results written as often as possible, as a process of its own."""
    start = f"import sys, runpy; {EAGER.get(name, '')}sys.argv[0] = {name!r}; "
    start += f"runpy.run_path({str(ROOT / 'code' / (name + '.py'))!r}, run_name='__main__')"
    return [sys.executable, "-c", start, *map(str, arguments)]


def started(name: str, *arguments: object, **more: object) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command(name, *arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def finished(name: str, *arguments: object) -> tuple[str, float]:
    """Output and seconds of a run that must end well."""
    at, process = time.monotonic(), started(name, *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return out, time.monotonic() - at


def killed_and_repeated(
    name: str, arguments: tuple, target: tuple, folder: Path, whole: Path, moments: list[float]
) -> None:
    """Kill a run into `folder` after each of so many seconds, its children with every second one, then let one finish.

    The result must equal `whole`, byte by byte. A run that ends before its moment is compared, its results are thrown
    away, and the moment comes sooner, so that all of the kills happen.
    """
    sooner = 1.0
    for i, moment in enumerate(moments):
        for _ in range(MOST_TRIES):
            process = started(name, *arguments, *target, start_new_session=True)
            try:
                _, err = process.communicate(timeout=moment * sooner)
            except subprocess.TimeoutExpired:
                (os.killpg if i % 2 else os.kill)(process.pid, signal.SIGKILL)
                process.communicate()
                break
            assert process.returncode == 0, err
            assert tree(folder) == tree(whole)
            shutil.rmtree(folder)
            sooner *= 0.7
        else:
            pytest.fail("no run could be killed in time")
    finished(name, *arguments, *target)
    found = tree(folder)
    assert found.keys() == tree(whole).keys() and found == tree(whole), (
        "the rerun ends with other bytes"
    )


def moments_of(seconds: float, kills: int, seed: int) -> list[float]:
    """Random moments, most of them after the imports, which are the first part of a run."""
    chosen = random.Random(seed)
    return [chosen.uniform(0.3, 1.0) * seconds for _ in range(kills)]


@pytest.fixture(scope="module")
def stages(sample_raw, tmp_path_factory) -> dict:
    """Each stage run undisturbed: its arguments, its folder, its seconds."""
    raw, root = sample_raw / "PASCAL3D+_release1.1", tmp_path_factory.mktemp("undisturbed")
    made = {}

    def stage(name: str, option: str, folder: Path, *arguments: object) -> None:
        _, seconds = finished(name, *arguments, option, folder)
        made[name] = (arguments, option, folder, seconds)

    stage(
        "prepare_images",
        "--out",
        root / "train",
        "--raw",
        raw,
        "--split",
        "train",
        "--workers",
        2,
        *CAR,
    )
    run_code("prepare_images", "--raw", raw, "--out", root / "test", "--split", "val", *CAR)
    run_code("make_cuboids", "--raw", raw, "--mesh-d", "single", *CAR)
    for kind in ("train", "test"):
        run_code(
            "annotate_vertices", "--raw", raw, "--prepared", root / kind, "--mesh-d", "single", *CAR
        )
    stage(
        "train", "--save-dir", root / "network", "--raw", raw, "--prepared", root / "train", *TRAIN
    )
    network = ("--raw", raw, "--prepared", root / "test", "--save-dir", root / "network")
    stage(
        "solve_poses",
        "--exp",
        root / "exp",
        *network,
        *NETWORK,
        "--batch-size",
        2,
        "--total-epochs",
        60,
        "--workers",
        0,
    )
    made["prepared"] = root / "test"
    return made


def survives(stages: dict, name: str, kills: int, tmp_path: Path, seed: int) -> None:
    arguments, option, whole, seconds = stages[name]
    if name == "prepare_images":  # what was annotated later lies in the same folder
        finished(name, *arguments, option, tmp_path / "whole")
        whole = tmp_path / "whole"
    moments = moments_of(seconds, kills, seed)
    killed_and_repeated(
        name, arguments, (option, tmp_path / "killed"), tmp_path / "killed", whole, moments
    )


@pytest.mark.parametrize("name", ["prepare_images", "solve_poses"])
def test_a_killed_run_ends_with_the_same_bytes(stages, name, tmp_path):
    survives(stages, name, FAST, tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare_images", "train", "solve_poses"])
def test_twenty_kills_lose_nothing(stages, name, tmp_path):
    for turn in range(SLOW // 4):
        survives(stages, name, 4, tmp_path / str(turn), seed=turn)
    print(f"{name}: {SLOW} runs killed, no result lost")


def test_two_preparations_at_once_do_not_disturb_each_other(stages, tmp_path):
    arguments, option, _, _ = stages["prepare_images"]
    finished("prepare_images", *arguments, option, tmp_path / "alone")
    pair = [started("prepare_images", *arguments, option, tmp_path / "both") for _ in range(2)]
    ends = [(process.communicate(timeout=300), process.returncode) for process in pair]
    assert 0 in [code for _, code in ends]
    for (_, err), code in ends:
        assert code == 0 or "error: another run is writing the crops of car in" in err, err
    assert tree(tmp_path / "both") == tree(tmp_path / "alone")


def test_a_second_training_or_inference_into_the_same_folder_is_told(stages, tmp_path):
    for name, seen in (("train", "network"), ("solve_poses", "exp")):
        arguments, option, _, _ = stages[name]
        first = started(name, *arguments, option, tmp_path / seen)
        while first.poll() is None and not list((tmp_path / seen).rglob(".*.lock")):
            time.sleep(0.01)
        assert first.poll() is None
        os.kill(first.pid, signal.SIGSTOP)  # so that it is still there when the second one comes
        second = started(name, *arguments, option, tmp_path / seen)
        _, err = second.communicate(timeout=300)
        os.kill(first.pid, signal.SIGCONT)
        assert second.returncode == 1 and re.search(
            r"error: another run is writing the (training|poses) of car in .*; wait", err
        ), err
        _, err = first.communicate(timeout=600)
        assert first.returncode == 0, err
        assert tree(tmp_path / seen) == tree(stages[name][2])


def test_a_second_run_of_what_uses_poses_and_networks_is_told(stages, tmp_path):
    raw, exp = stages["solve_poses"][0][1], tmp_path / "exp"
    shutil.copytree(stages["solve_poses"][2], exp)
    Image.new("RGB", (200, 100)).save(tmp_path / "photo.png")
    drawn = (
        "--raw",
        raw,
        "--prepared",
        stages["prepared"],
        "--clean",
        stages["prepared"],
        "--exp",
        exp,
        *NETWORK,
    )
    checkpoint = stages["train"][2] / "saved_model_car_last.pth"
    found = (
        "--checkpoint",
        checkpoint,
        "--gpus",
        "",
        "--out",
        tmp_path / "out",
        tmp_path / "photo.png",
    )
    for name, arguments, folder in (
        ("draw_results", drawn, exp / "Report_single/clean"),
        ("predict", found, tmp_path / "out"),
    ):
        with lock(folder, name.removesuffix("_results"), "it"):
            done = run_code(name, *arguments, check=False)
        assert done.returncode == 1
        assert re.fullmatch(
            r"error: another run is writing (pictures|poses) in .*; wait .*\n", done.stderr
        ), done.stderr


def test_results_do_not_depend_on_time_or_workers(stages, tmp_path):
    arguments, option, whole, _ = stages["solve_poses"]
    again = tuple(argument for argument in arguments if argument != "--workers")
    finished("solve_poses", *again[:-1], "--workers", 2, option, tmp_path / "exp")
    assert tree(tmp_path / "exp") == tree(whole)
    arguments, option, _, _ = stages["prepare_images"]
    for workers in (1, 3):
        finished(
            "prepare_images",
            *(workers if a == 2 else a for a in arguments),
            option,
            tmp_path / str(workers),
        )
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


def with_room_for(
    images: int, patch: str, name: str, *arguments: object
) -> subprocess.CompletedProcess:
    """A run that gets torch's own error where `patch` asks `check` about more than so many images at a time."""
    program = command(name, *arguments)
    program[2] = (
        "import torch\n"
        "def check(images):\n"
        f"    if images > {images}: raise torch.cuda.OutOfMemoryError('CUDA out of memory')\n"
        f"{patch}\n{program[2]}"
    )
    return subprocess.run(
        program,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )


def test_inference_out_of_memory_gives_the_same_poses(stages, tmp_path):
    """In features and in the solver."""
    arguments, option, whole, _ = stages["solve_poses"]
    patch = (
        "import neural_mesh.solve.mesh_solver as m\n"
        "from neural_mesh.network.backbone import FeatureNet\n"
        "solve, maps = m.solve, FeatureNet.feature_map\n"
        "m.solve = lambda mesh, features, *rest: (check(len(features)), solve(mesh, features, *rest))[1]\n"
        "FeatureNet.feature_map = lambda self, images, bias: (check(len(images)), maps(self, images, bias))[1]\n"
    )
    done = with_room_for(1, patch, "solve_poses", *arguments, option, tmp_path / "exp")
    assert (
        done.returncode == 0
        and "out of GPU memory, going on with 1 images at a time" in done.stderr
    ), done.stderr
    found, expected = (
        load_poses(root / "Poses_single/car.npz") for root in (tmp_path / "exp", whole)
    )
    np.testing.assert_allclose(
        found.loss, expected.loss, atol=1e-3
    )  # convolutions round differently in batches of one
    assert found.names.tolist() == expected.names.tolist()


def test_training_out_of_memory_names_a_batch_that_fits(stages, tmp_path):
    arguments, option, _, _ = stages["train"]
    patch = "import neural_mesh.training.trainer as t; normalise = t.normalise; t.normalise = lambda images: (check(len(images)), normalise(images))[1]"
    done = with_room_for(2, patch, "train", *arguments, option, tmp_path / "network")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(
        r"a batch of 5 images does not fit into the memory of cpu; BATCH_SIZE=2 fits", done.stderr
    ), done.stderr


def test_a_table_refuses_poses_of_other_data_and_counts_what_is_no_pose(stages, tmp_path):
    _, _, whole, _ = stages["solve_poses"]
    poses = load_poses(whole / "Poses_single/car.npz")
    broken = poses.pose.azimuth.copy()
    broken[0], broken[1] = np.nan, np.inf
    kept = slice(0, len(poses) - 1)
    pose = replace(poses.pose, azimuth=broken)[kept]
    values = {key: getattr(poses, key)[kept] for key in ("names", "loss", "start", "mesh")}
    changed = replace(poses, pose=pose, **values)
    save_poses(tmp_path / "exp/Poses_single/car.npz", changed)
    arguments = (
        "--exp",
        tmp_path / "exp",
        "--clean",
        stages["prepared"],
        "--categories",
        "car bus",
    )
    done = run_code("report_accuracy", *arguments)
    folder, missing = tmp_path / "exp/Accuracy_single/clean", str(poses.names[-1])
    table, text = (folder / "table.md").read_text(), (folder / "table.csv").read_text()
    assert (
        table.startswith("# PARTIAL: ")
        and missing in table
        and "no poses of bus" in table
        and "2 predictions not finite" in table
    )
    assert (
        "PARTIAL" in text
        and "PARTIAL" in done.stderr
        and "2 predictions not finite, counted as wrong" in done.stderr
    )
    assert (folder / "errors.csv").read_text().count("180.000") >= 2
    assert (
        folder / "missing.csv"
    ).read_text() == f"category,name\ncar,{missing}\n" and "PARTIAL" in done.stdout
    save_poses(
        tmp_path / "exp/Poses_single/car.npz",
        type(poses)(**(vars(changed) | {"config": poses.config | {"data": "another"}})),
    )
    done = run_code("report_accuracy", *arguments, check=False)
    assert (
        done.returncode == 1
        and "of other data" in done.stderr
        and "run InferenceNeMo.sh again" in done.stderr
    ), done.stderr


def test_the_same_seed_trains_the_same_network(stages, tmp_path):
    """In deterministic mode, too, which on a CPU changes nothing but that the summary says so."""
    arguments, option, whole, _ = stages["train"]
    finished("train", *arguments, "--deterministic", "true", option, tmp_path / "network")
    runs = [tree(folder) for folder in (tmp_path / "network", whole)]
    deterministic, other = (json.loads(run.pop("training_summary_car.json")) for run in runs)
    assert (
        deterministic["devices"].pop("deterministic") is True
        and other["devices"].pop("deterministic") is False
    )
    assert runs[0] == runs[1] and deterministic == other


def test_checkpoints_hold_no_time(stages):
    path = stages["train"][2] / "saved_model_car_last.pth"
    content = path.read_bytes()
    assert torch.load(path, weights_only=True)["timestamp"] == 3, (
        "the reference's name for the epoch"
    )
    assert str(time.localtime().tm_year).encode() not in content
