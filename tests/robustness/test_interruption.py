"""kill -9 at random moments of the stages: a rerun ends where an undisturbed run does."""

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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.options import SMALL_TRAINING, options
from helpers.project import PYTHONPATH, ROOT, run_code
from neural_mesh.storage.files import lock
from neural_mesh.storage.results import load_poses, save_poses

FAST, SLOW = 2, 20  # kills per stage
MOST_TRIES = 10
CAR = options(categories="car")
NETWORK = (*CAR, *options(gpus=""))
TRAIN = (
    *CAR,
    *SMALL_TRAINING,
    *options(batch_size=5, total_epochs=3, num_clutter_group=16, tensorboard="false"),
)
# What makes a stage write its state as often as possible.
EAGER = {
    "train": "import neural_mesh.training.state as t; t.SECONDS_BETWEEN_STATES = 0.0; ",
    "solve_poses": "import neural_mesh.solve.run as r; r.SECONDS_BETWEEN_SAVES = 0.0; ",
}


@dataclass(frozen=True)
class Undisturbed:
    """A stage that ran to its end. option: names the folder that it writes to."""

    name: str
    arguments: tuple
    option: str
    folder: Path
    seconds: float

    def into(self, folder: Path) -> tuple:
        """The arguments of a run into another folder."""
        return (*self.arguments, self.option, folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file but those that say how long a stage took."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.parent.name.startswith("Timings_"):
            contents[str(path.relative_to(folder))] = path.read_bytes()
    return contents


def command(name: str, *arguments: object) -> list[str]:
    """code/<name>.py as a process of its own, which writes states as often as possible."""
    file = str(ROOT / "code" / f"{name}.py")
    program = (
        f"import sys, runpy; {EAGER.get(name, '')}sys.argv[0] = {name!r}; "
        f"runpy.run_path({file!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", program, *map(str, arguments)]


def started(name: str, *arguments: object, **more: object) -> subprocess.Popen:
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(name, *arguments),
        env=os.environ | {"PYTHONPATH": PYTHONPATH} | threads,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def finished(name: str, *arguments: object) -> float:
    """Seconds of a run that must end well."""
    begin = time.monotonic()
    process = started(name, *arguments)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return time.monotonic() - begin


# ---- killed runs ----


def killed_and_repeated(
    stage: Undisturbed, folder: Path, whole: Path, moments: list[float]
) -> None:
    """Kill a run into `folder` after each of so many seconds, then let one finish.

    Its children are killed with every second one. The result must equal `whole`, byte by byte. A
    run that ends before its moment is compared, its results are thrown away, and the moment comes
    sooner, so that all of the kills happen.
    """
    sooner = 1.0
    for i, moment in enumerate(moments):
        kill = os.killpg if i % 2 else os.kill
        for _ in range(MOST_TRIES):
            process = started(stage.name, *stage.into(folder), start_new_session=True)
            try:
                _, err = process.communicate(timeout=moment * sooner)
            except subprocess.TimeoutExpired:
                kill(process.pid, signal.SIGKILL)
                process.communicate()
                break
            assert process.returncode == 0, err
            assert tree(folder) == tree(whole)
            shutil.rmtree(folder)
            sooner *= 0.7
        else:
            pytest.fail("no run could be killed in time")
    finished(stage.name, *stage.into(folder))
    assert tree(folder).keys() == tree(whole).keys()
    assert tree(folder) == tree(whole), "the rerun ends with other bytes"


def moments_of(seconds: float, kills: int, seed: int) -> list[float]:
    """Random moments, most of them after the imports, which are the first part of a run."""
    chosen = random.Random(seed)
    return [chosen.uniform(0.3, 1.0) * seconds for _ in range(kills)]


@pytest.fixture(scope="module")
def prepared(sample_raw, tmp_path_factory) -> Path:
    """A training and a test set of cars, with cuboids and vertex annotations."""
    raw = sample_raw / "PASCAL3D+_release1.1"
    root = tmp_path_factory.mktemp("prepared")
    run_code("prepare_images", "--raw", raw, "--out", root / "train", "--split", "train", *CAR)
    run_code("prepare_images", "--raw", raw, "--out", root / "test", "--split", "val", *CAR)
    run_code("make_cuboids", "--raw", raw, "--mesh-d", "single", *CAR)
    for kind in ("train", "test"):
        annotated = options(raw=raw, prepared=root / kind, mesh_d="single")
        run_code("annotate_vertices", *annotated, *CAR)
    return root


@pytest.fixture(scope="module")
def stages(sample_raw, prepared, tmp_path_factory) -> dict[str, Undisturbed]:
    """Each stage run undisturbed."""
    raw = sample_raw / "PASCAL3D+_release1.1"
    root = tmp_path_factory.mktemp("undisturbed")
    made = {}

    def run(name: str, option: str, folder: Path, *arguments: object) -> None:
        seconds = finished(name, *arguments, option, folder)
        made[name] = Undisturbed(name, arguments, option, folder, seconds)

    preparing = options(raw=raw, split="train", workers=2)
    run("prepare_images", "--out", root / "train", *preparing, *CAR)
    training = options(raw=raw, prepared=prepared / "train")
    run("train", "--save-dir", root / "network", *training, *TRAIN)
    network = options(raw=raw, prepared=prepared / "test", save_dir=root / "network")
    solving = options(batch_size=2, total_epochs=60, workers=0)
    run("solve_poses", "--exp", root / "exp", *network, *NETWORK, *solving)
    return made


def survives(stage: Undisturbed, kills: int, tmp_path: Path, seed: int) -> None:
    moments = moments_of(stage.seconds, kills, seed)
    killed_and_repeated(stage, tmp_path / "killed", stage.folder, moments)


@pytest.mark.parametrize("name", ["prepare_images", "solve_poses"])
def test_a_killed_run_ends_with_the_same_bytes(stages, name, tmp_path):
    survives(stages[name], FAST, tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare_images", "train", "solve_poses"])
def test_twenty_kills_lose_nothing(stages, name, tmp_path):
    for turn in range(SLOW // 4):
        survives(stages[name], 4, tmp_path / str(turn), seed=turn)
    print(f"{name}: {SLOW} runs killed, no result lost")


# ---- two runs at once ----


def test_two_preparations_at_once_do_not_disturb_each_other(stages, tmp_path):
    stage = stages["prepare_images"]
    pair = [started(stage.name, *stage.into(tmp_path / "both")) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in pair]
    assert 0 in [process.returncode for process in pair]
    for process, err in zip(pair, errors, strict=True):
        busy = "error: another run is writing the crops of car in" in err
        assert process.returncode == 0 or busy, err
    assert tree(tmp_path / "both") == tree(stage.folder)


@pytest.mark.parametrize("name", ["train", "solve_poses"])
def test_a_second_training_or_inference_into_the_same_folder_is_told(stages, tmp_path, name):
    stage = stages[name]
    first = started(name, *stage.into(tmp_path / "both"))
    while first.poll() is None and not list((tmp_path / "both").rglob(".*.lock")):
        time.sleep(0.01)
    assert first.poll() is None
    os.kill(first.pid, signal.SIGSTOP)  # so that it is still there when the second one comes
    second = started(name, *stage.into(tmp_path / "both"))
    _, err = second.communicate(timeout=300)
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 1
    sentence = r"error: another run is writing the (training|poses) of car in .*; wait"
    assert re.search(sentence, err), err
    _, err = first.communicate(timeout=600)
    assert first.returncode == 0, err
    assert tree(tmp_path / "both") == tree(stage.folder)


def told_to_wait(name: str, arguments: tuple, folder: Path, lock_name: str) -> None:
    """A run must end with one sentence while another one holds its folder."""
    with lock(folder, lock_name, "it"):
        done = run_code(name, *arguments, check=False)
    assert done.returncode == 1
    sentence = r"error: another run is writing (pictures|poses) in .*; wait .*\n"
    assert re.fullmatch(sentence, done.stderr), done.stderr


def test_a_second_run_of_what_uses_poses_and_networks_is_told(
    stages, prepared, sample_raw, tmp_path
):
    exp = tmp_path / "exp"
    shutil.copytree(stages["solve_poses"].folder, exp)
    raw = sample_raw / "PASCAL3D+_release1.1"
    test_set = prepared / "test"
    drawing = (*options(raw=raw, prepared=test_set, clean=test_set, exp=exp), *NETWORK)
    told_to_wait("draw_results", drawing, exp / "Report_single/clean", "draw")

    photo = tmp_path / "photo.png"
    Image.new("RGB", (200, 100)).save(photo)
    checkpoint = stages["train"].folder / "saved_model_car_last.pth"
    predicting = (*options(checkpoint=checkpoint, gpus="", out=tmp_path / "out"), photo)
    told_to_wait("predict", predicting, tmp_path / "out", "predict")


# ---- what results depend on ----


def test_results_do_not_depend_on_time_or_workers(stages, tmp_path):
    # Of an option that is given twice the last one counts.
    solving = stages["solve_poses"]
    finished("solve_poses", *solving.into(tmp_path / "exp"), "--workers", 2)
    assert tree(tmp_path / "exp") == tree(solving.folder)
    preparing = stages["prepare_images"]
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        finished("prepare_images", *preparing.into(folder), "--workers", workers)
        assert tree(folder) == tree(preparing.folder)


def test_the_same_seed_trains_the_same_network(stages, tmp_path):
    """In deterministic mode, too, which on a CPU changes nothing but that the summary says so."""
    stage = stages["train"]
    finished("train", *stage.into(tmp_path / "network"), "--deterministic", "true")
    deterministic = tree(tmp_path / "network")
    other = tree(stage.folder)
    summary = json.loads(deterministic.pop("training_summary_car.json"))
    other_summary = json.loads(other.pop("training_summary_car.json"))
    assert summary["devices"].pop("deterministic") is True
    assert other_summary["devices"].pop("deterministic") is False
    assert deterministic == other
    assert summary == other_summary


def test_checkpoints_hold_no_time(stages):
    path = stages["train"].folder / "saved_model_car_last.pth"
    # `timestamp` is the reference's name for the epoch.
    assert torch.load(path, weights_only=True)["timestamp"] == 3
    assert str(time.localtime().tm_year).encode() not in path.read_bytes()


# ---- too little memory ----

# Functions that ask `check` how many images they may take at a time.
CHECKED_SOLVER = """
import neural_mesh.solve.mesh_solver as m
solve = m.solve
def checked(mesh, features, *rest):
    check(len(features))
    return solve(mesh, features, *rest)
m.solve = checked
"""
CHECKED_NETWORK = """
from neural_mesh.network.backbone import FeatureNet
feature_map = FeatureNet.feature_map
def checked_map(self, images, bias):
    check(len(images))
    return feature_map(self, images, bias)
FeatureNet.feature_map = checked_map
"""
CHECKED_TRAINING = """
import neural_mesh.training.step as t
normalise = t.normalise
def checked(images, statistics):
    check(len(images))
    return normalise(images, statistics)
t.normalise = checked
"""


def with_room_for(
    images: int, patch: str, name: str, *arguments: object
) -> subprocess.CompletedProcess:
    """A run in which torch's own error comes where `check` is asked about more images."""
    program = command(name, *arguments)
    program[2] = (
        "import torch\n"
        "def check(images):\n"
        f"    if images > {images}: raise torch.cuda.OutOfMemoryError('CUDA out of memory')\n"
        f"{patch}\n{program[2]}"
    )
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)


def test_inference_out_of_memory_gives_the_same_poses(stages, tmp_path):
    """In features and in the solver."""
    stage = stages["solve_poses"]
    patch = CHECKED_SOLVER + CHECKED_NETWORK
    done = with_room_for(1, patch, "solve_poses", *stage.into(tmp_path / "exp"))
    assert done.returncode == 0, done.stderr
    assert "out of GPU memory, going on with 1 images at a time" in done.stderr
    solved = load_poses(tmp_path / "exp" / "Poses_single/car.npz")
    expected = load_poses(stage.folder / "Poses_single/car.npz")
    # Convolutions round differently in batches of one.
    np.testing.assert_allclose(solved.loss, expected.loss, atol=1e-3)
    assert solved.names.tolist() == expected.names.tolist()


def test_training_out_of_memory_names_a_batch_that_fits(stages, tmp_path):
    stage = stages["train"]
    done = with_room_for(2, CHECKED_TRAINING, "train", *stage.into(tmp_path / "network"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    sentence = r"a batch of 5 images does not fit into the memory of cpu; BATCH_SIZE=2 fits"
    assert re.search(sentence, done.stderr), done.stderr


# ---- tables of such results ----


def test_a_table_refuses_poses_of_other_data_and_counts_what_is_no_pose(stages, prepared, tmp_path):
    poses = load_poses(stages["solve_poses"].folder / "Poses_single/car.npz")
    azimuth = poses.pose.azimuth.copy()
    azimuth[0] = np.nan
    azimuth[1] = np.inf
    kept = len(poses) - 1
    pose = replace(poses.pose, azimuth=azimuth)[:kept]
    columns = {key: getattr(poses, key)[:kept] for key in ("names", "loss", "start", "mesh")}
    changed = replace(poses, pose=pose, **columns)
    path = tmp_path / "exp/Poses_single/car.npz"
    save_poses(path, changed)
    arguments = options(exp=tmp_path / "exp", clean=prepared / "test", categories="car bus")
    done = run_code("report_accuracy", *arguments)
    assert "PARTIAL" in done.stdout
    assert "PARTIAL" in done.stderr
    assert "2 predictions not finite, counted as wrong" in done.stderr

    folder = tmp_path / "exp/Accuracy_single/clean"
    missing = str(poses.names[-1])
    table = (folder / "table.md").read_text()
    assert table.startswith("# PARTIAL: ")
    for words in (missing, "no poses of bus", "2 predictions not finite"):
        assert words in table
    assert "PARTIAL" in (folder / "table.csv").read_text()
    assert (folder / "errors.csv").read_text().count("180.000") >= 2
    assert (folder / "missing.csv").read_text() == f"category,name\ncar,{missing}\n"

    save_poses(path, replace(changed, config=poses.config | {"data": "another"}))
    done = run_code("report_accuracy", *arguments, check=False)
    assert done.returncode == 1
    assert "of other data" in done.stderr, done.stderr
    assert "run InferenceNeMo.sh again" in done.stderr
