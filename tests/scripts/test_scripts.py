"""The product as its users run it: the real scripts, end to end, on a tiny sample set."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.project import PYTHONPATH, ROOT
from helpers.runs import contents, printed_by, read_summary, rows_of, snapshot
from neural_mesh.geometry.cameras import Pose, geodesic_distance, pascal_cam_from_object
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import VertexAnnotation, load_annotation
from neural_mesh.storage.results import PoseSet, load_poses, save_poses
from neural_mesh.storage.timings import load_seconds

CATEGORIES = ("car", "chair")
RAW = "PASCAL3D+_release1.1"
TEST_SET = "PASCAL3D_NeMo"
TRAINING_SET = "PASCAL3D_train_NeMo"
CHECKPOINT = "saved_model_car_last.pth"
BEST_CHECKPOINT = "saved_model_car_best.pth"
PATTERN = "TFFTTFFT"  # of azimuths
COMPLEMENT = "FTTFFTTF"
PREPARE = {
    "CATEGORIES": "car chair",
    "GEOMETRY": "exact",
    "ENABLE_OCCLUDED": "true",
    "OCC_LEVELS": "FGL1_BGL1",
}
TRAIN = {
    "CATEGORIES": "car chair",
    "GPUS": "",
    "BACKBONE": "resnet18fpn",
    "PRETRAINED": "none",
    "IMAGE_SCALE": 0.5,
    "RECIPE": "fixed",
    "BATCH_SIZE": 4,
    "TOTAL_EPOCHS": 1,
    "LEARNING_RATE": 1e-3,
    "AUGMENT": "flip color",
    "NUM_CLUTTER_GROUP": 16,
}
INFER = {
    "CATEGORIES": "car chair",
    "GPUS": "",
    "TOTAL_EPOCHS": 20,
    "NUM_PICTURES": 1,
    "NUM_FILMS": 0,
    "BATCH_SIZE": 4,
}
NO_PICTURES = {"NUM_PICTURES": 0}


@pytest.fixture(scope="module")
def road(sample_raw, script, tmp_path_factory):
    """The three scripts, run once from another folder; their outputs by name."""
    roots = {"DATAROOT": sample_raw, "EXPROOT": tmp_path_factory.mktemp("my results")}
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(name: str, *arguments: str, **settings: object) -> str:
        return printed_by(script(name, *arguments, cwd=elsewhere, **settings, **roots))

    return roots | {
        "prepare": run("PrepareData.sh", **PREPARE),
        "train": run("TrainNeMo.sh", **TRAIN),
        "infer": run("InferenceNeMo.sh", **INFER),
        "infer_occluded": run("InferenceNeMo.sh", "FGL1_BGL1", **INFER),
    }


def poses_of(root: Path, category: str = "car") -> PoseSet:
    """The poses of a category in a folder of results."""
    return load_poses(root / "Poses_single" / f"{category}.npz")


# ---- preparation ----


@pytest.mark.parametrize(
    "name, subset, images",
    [
        (TRAINING_SET, "car", 10),
        (TEST_SET, "chair", 6),
        ("PASCAL3D_OCC_NeMo", "carFGL1_BGL1", 6),
    ],
)
def test_preparation_has_the_layout_of_the_reference(road, name, subset, images):
    root = road["DATAROOT"] / name
    for kind in ("images", "annotations", "annotations3D_single", "annotations3D_multi"):
        assert len(list((root / kind / subset).iterdir())) == images, kind
    names = (root / f"lists3D_single/{subset}/mesh01.txt").read_text().split()
    assert len(names) == images


def test_preparation_counts_lists_and_masks(road):
    lists = road["DATAROOT"] / TRAINING_SET / "lists/car"
    assert (lists / "mesh03.txt").is_file()
    assert (lists / "SOURCE.json").is_file()
    assert "train: 20 images of 2 categories" in road["prepare"]
    assert "single: 2 cuboids" in road["prepare"]
    assert "multi: 6 cuboids" in road["prepare"]
    clean = next((road["DATAROOT"] / TEST_SET / "annotations/car").iterdir())
    assert load_annotation(clean).occ_mask is None
    occluded = road["DATAROOT"] / "PASCAL3D_OCC_NeMo/annotations/carFGL1_BGL1"
    masked = load_annotation(next(occluded.iterdir()))
    assert masked.occ_mask.shape == (masked.height, masked.width)
    assert masked.occ_mask.any()


def view_of(raw: Path, category: str, name: str) -> dict[str, float]:
    """The viewpoint of an image as the .mat file has it, degrees and pixels."""
    record = loadmat(raw / "Annotations" / f"{category}_imagenet" / f"{name}.mat")["record"]
    viewpoint = record["objects"][0, 0]["viewpoint"][0, 0]
    keys = ("azimuth", "elevation", "theta", "distance", "px", "py")
    return {key: viewpoint[key][0, 0][0, 0] for key in keys}


def test_stored_points_are_row_column_and_lie_where_pascal3d_projects_them(road):
    """From the .mat file by PASCAL3D+'s formula, written out once more."""
    name = "n00000001_500000"
    test_set = PreparedSet(road["DATAROOT"] / TEST_SET)
    stored = load_annotation(test_set.vertex_annotation("single", "car", name), VertexAnnotation)
    vertices = read_off(road["DATAROOT"] / RAW / "CAD_single/car/01.off").vertices
    view = view_of(road["DATAROOT"] / RAW, "car", name)
    azimuth, elevation, theta = np.deg2rad([view["azimuth"], view["elevation"], view["theta"]])
    # the camera's axes
    level = np.cos(elevation)
    eye = np.array([level * np.sin(azimuth), -level * np.cos(azimuth), np.sin(elevation)])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    up = np.cross(eye, right)
    offset = vertices - view["distance"] * eye
    depth = -(offset @ eye)
    x = 3000 * (offset @ right) / depth
    y = 3000 * (offset @ up) / depth
    # turned by theta; the crop is centred on the principal point and scaled to distance 5
    scale = view["distance"] / 5
    column = np.cos(theta) * x - np.sin(theta) * y
    row = -np.sin(theta) * x - np.cos(theta) * y
    expected = np.stack([row * scale + 128, column * scale + 336], axis=-1)
    inside = ((expected >= 0) & (expected <= [255, 671])).all(1)
    assert inside.sum() > 500
    np.testing.assert_allclose(stored.cropped_kp_list[inside], expected[inside], atol=1e-6)


def test_data_of_another_geometry_are_not_mixed(road, script):
    done = script("PrepareData.sh", **PREPARE | {"GEOMETRY": "paper"}, DATAROOT=road["DATAROOT"])
    assert done.returncode != 0
    assert "another GEOMETRY" in done.stderr
    assert "OVERWRITE=true" in done.stderr


# ---- training ----


def test_training_leaves_a_last_checkpoint_a_log_and_a_summary(road):
    folder = road["EXPROOT"] / "NeMo_single"
    expected = {"tensorboard"}
    for category in CATEGORIES:
        expected.add(f"saved_model_{category}_last.pth")
        expected.add(f"training_log_{category}.csv")
        expected.add(f"training_summary_{category}.json")
    assert {path.name for path in folder.iterdir()} == expected
    assert "2 categories trained on 20 images" in road["train"]
    summary = read_summary(folder)
    assert summary["settings"]["recipe"] == "fixed"
    assert summary["data"]["training_images"] == [10]
    assert summary["data"]["fingerprint"]
    assert summary["versions"]["torch"] == torch.__version__
    assert "torchvision" in summary["versions"]
    assert summary["devices"]["parallel"] == "dp"
    assert summary["devices"]["compile"] is False
    assert summary["devices"]["deterministic"] is False
    log = rows_of(folder / "training_log_car.csv")
    assert float(log[-1]["loss"]) == summary["figures"]["last"]["loss"]
    assert summary["figures"]["best"] == {}


@pytest.fixture(scope="module")
def validated(road, script, tmp_path_factory):
    """PARALLEL=ddp through torchrun, with validation; the folder of results and the settings."""
    root = tmp_path_factory.mktemp("validated")
    settings = {
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": root,
        "CATEGORIES": "car",
        "PARALLEL": "ddp",
        "NUM_PROCESSES": 2,
        "TOTAL_EPOCHS": 2,
        "VALIDATE_EVERY": 1,
        "VALIDATION_SHARE": 0.3,
    }
    printed = printed_by(script("TrainNeMo.sh", **TRAIN | settings))
    assert "car: 7 images, 3 held out, 1 cuboid; 2 processes on the CPU" in printed
    assert printed.count("1 category trained on 7 images") == 1
    return root, settings


def test_two_processes_train_validate_and_keep_the_best(validated):
    root, _ = validated
    folder = root / "NeMo_single"
    log = rows_of(folder / "training_log_car.csv")
    figures = [{key: float(row[key]) for key in ("pi/6", "pi/18", "median")} for row in log]
    best = read_summary(folder)["figures"]["best"]
    epoch = best["epoch"]
    assert len(figures) == 2
    assert best == {"epoch": epoch} | figures[epoch]
    assert all(figure["pi/18"] <= best["pi/18"] for figure in figures)
    assert all(figure["median"] > 0 for figure in figures)
    assert load_checkpoint(folder / BEST_CHECKPOINT).epoch == epoch + 1
    # what TensorBoard shows
    events = EventAccumulator(str(folder / "tensorboard/car"), {"images": 0, "scalars": 0}).Reload()
    shown = [round(event.value, 3) for event in events.Scalars("validation/pi/6")]
    assert shown == [figure["pi/6"] for figure in figures]
    tags = events.Tags()
    assert {"loss", "learning_rate", "images_per_second"} <= set(tags["scalars"])
    assert len(tags["images"]) == 2


def test_the_best_checkpoint_exported_is_what_inference_reads(validated, script, code):
    """Training once more, at the same time, keeps it."""
    root, settings = validated
    roots = {key: settings[key] for key in ("DATAROOT", "EXPROOT", "CATEGORIES")}
    best = root / "NeMo_single" / BEST_CHECKPOINT
    code("export_checkpoint", best)
    exported = {"LOAD_FILE_NAME": "saved_model_%s_best.safetensors"}
    with ThreadPoolExecutor() as pool:
        again = pool.submit(script, "TrainNeMo.sh", **TRAIN | settings)
        printed_by(script("InferenceNeMo.sh", **INFER | roots | NO_PICTURES | exported))
        assert "1 kept" in printed_by(again.result())
    poses = poses_of(root)
    fingerprint = load_checkpoint(best.with_suffix(".safetensors")).fingerprint
    assert len(poses.names) == 6
    assert poses.config["checkpoint"] == fingerprint


def test_a_killed_training_goes_on_with_the_same_result(road, tmp_path):
    """Killed with SIGKILL as soon as its first state is on disk.

    It goes on with worker processes and a cache on disk.
    """
    eager = (
        "import sys, runpy; import neural_mesh.training.state as t; "
        "t.SECONDS_BETWEEN_STATES = 0.0; sys.argv[0] = 'train'; "
        f"runpy.run_path({str(ROOT / 'code/train.py')!r}, run_name='__main__')"
    )
    options = {
        "raw": road["DATAROOT"] / RAW,
        "prepared": road["DATAROOT"] / TRAINING_SET,
        "categories": "car",
        "gpus": "",
        "backbone": "resnet18fpn",
        "pretrained": "none",
        "image-scale": 0.5,
        "recipe": "fixed",
        "batch-size": 4,
        "total-epochs": 3,
        "learning-rate": 1e-3,
        "augment": "flip color",
        "num-clutter-group": 16,
        "validate-every": 1,
        "validation-share": 0.2,
    }
    command = [sys.executable, "-c", eager]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    undisturbed = subprocess.Popen([*command, "--save-dir", str(whole)], **quiet)
    process = subprocess.Popen([*command, "--save-dir", str(killed)], **quiet)
    state = killed / "training_state_car.pth"
    while not state.is_file() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert state.is_file()
    assert not (killed / CHECKPOINT).is_file(), "it was not killed in time"
    again = subprocess.run(
        [*command, "--workers", "2", "--image-cache", "disk", "--save-dir", str(killed)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "going on after epoch" in again.stdout
    assert undisturbed.wait(timeout=300) == 0
    log = "training_log_car.csv"
    assert (killed / log).read_text() == (whole / log).read_text()
    expected = without_tensorboard(whole)
    assert without_tensorboard(killed) == expected
    assert {BEST_CHECKPOINT, CHECKPOINT} <= expected.keys()


def without_tensorboard(folder: Path) -> dict[str, bytes]:
    """Content of the files of a training that do not hold times."""
    files = contents(folder)
    return {name: files[name] for name in files if not name.startswith("tensorboard")}


# ---- inference, tables, pictures ----


def test_the_table_follows_from_the_saved_poses_and_the_raw_annotations(road):
    """Computed again here from the .mat files, by another route than the project's."""
    table = rows_of(road["EXPROOT"] / "Accuracy_single/clean/table.csv")
    for category in CATEGORIES:
        poses = poses_of(road["EXPROOT"], category)
        errors_deg = []
        for i, name in enumerate(poses.names):
            view = view_of(road["DATAROOT"] / RAW, category, name)
            angles = np.deg2rad([view["azimuth"], view["elevation"], view["theta"]])
            truth = pascal_cam_from_object(*angles)
            error = geodesic_distance(poses.pose[i].pascal_cam_from_object, truth)
            errors_deg.append(np.rad2deg(error))
        within = 100 * np.mean(np.array(errors_deg) < 30)
        assert float(table[0][category]) == pytest.approx(within, abs=0.06)
        assert float(table[2][category]) == pytest.approx(np.median(errors_deg), abs=0.06)


def test_the_table_is_printed_in_the_format_of_the_reference(road):
    lines = road["infer"].splitlines()
    assert "Metric | car\tchair\tMean\tCatMean" in lines
    assert any(line.startswith("Pi/18  | ") for line in lines)
    table = (road["EXPROOT"] / "Accuracy_single/clean/table.md").read_text()
    assert table.startswith("# Accuracy, single cuboid, unoccluded")
    assert "FGL1_BGL1: table of 12 images of 2 categories" in road["infer_occluded"]


def test_poses_come_as_npz_and_csv_and_pictures_are_drawn(road):
    rows = rows_of(road["EXPROOT"] / "Poses_single/car.csv")
    assert len(rows) == 6
    assert 0 <= float(rows[0]["azimuth_deg"]) < 360
    for level in ("clean", "FGL1_BGL1"):
        pictures = list((road["EXPROOT"] / "Report_single" / level).glob("*.png"))
        # one a category, and the overview
        assert len(pictures) == 3
        assert all(path.stat().st_size > 20_000 for path in pictures)


def test_the_report_page_covers_what_was_run_and_how_long_it_took(road):
    page = (road["EXPROOT"] / "Report_single" / "index.html").read_text()
    assert "FGL1_BGL1" in page
    assert page.count("<article") == 24
    assert "Not the full test set" in page
    for stage in ("train", "solve_poses", "draw_results"):
        assert f"<th scope=row>{stage}</th>" in page
    timings = (road["EXPROOT"] / "Timings_single").iterdir()
    assert {path.stem: load_seconds(path)["items"] for path in timings} == {
        "train_car": 1,
        "train_chair": 1,
        "solve_poses_car": 6,
        "solve_poses_chair": 6,
        "solve_poses_carFGL1_BGL1": 6,
        "solve_poses_chairFGL1_BGL1": 6,
        "draw_results_clean": 2,
        "draw_results_FGL1_BGL1": 2,
    }


def test_a_second_run_changes_nothing(road, script):
    roots = {"DATAROOT": road["DATAROOT"], "EXPROOT": road["EXPROOT"]}
    before = [snapshot(root) for root in roots.values()]
    printed_by(script("PrepareData.sh", **PREPARE, **roots))
    assert "2 kept" in printed_by(script("TrainNeMo.sh", **TRAIN, **roots))
    inferred = printed_by(script("InferenceNeMo.sh", **INFER | NO_PICTURES, **roots))
    assert "(12 of them from earlier runs" in inferred
    assert [snapshot(root) for root in roots.values()] == before


def test_ground_truth_submitted_as_prediction_scores_100_100_0(road, code, tmp_path):
    test_set = PreparedSet(road["DATAROOT"] / TEST_SET)
    for category in CATEGORIES:
        poses = poses_of(road["EXPROOT"], category)
        angles = []
        for name in poses.names:
            annotation = load_annotation(test_set.annotation(category, name))
            angles.append(annotation.pose.angles)
        perfect = PoseSet(
            category,
            "",
            poses.names,
            Pose(*np.array(angles).T, poses.pose.distance),
            loss=poses.loss,
            start=poses.start,
            mesh=poses.mesh,
            config=poses.config,
        )
        save_poses(tmp_path / "Poses_single" / f"{category}.npz", perfect)
    arguments = ("--exp", tmp_path, "--clean", test_set.root, "--categories", "car chair")
    printed = code("report_accuracy", *arguments).stdout
    assert "Pi/6   | 100.0\t100.0\t100.0\t100.0" in printed
    assert "Pi/18  | 100.0\t100.0" in printed
    assert "MedErr | 0.0\t0.0\t0.0" in printed


def test_a_table_refuses_to_mix_settings_and_says_when_it_is_partial(road, code, tmp_path):
    clean = road["DATAROOT"] / TEST_SET
    arguments = ("--exp", tmp_path, "--clean", clean, "--categories", "car chair")
    save_poses(tmp_path / "Poses_single/car.npz", poses_of(road["EXPROOT"], "car"))
    done = code("report_accuracy", *arguments)
    assert "PARTIAL: no poses of chair" in done.stderr
    chair = poses_of(road["EXPROOT"], "chair")
    chair.config["solve"]["total_epochs"] = 7
    save_poses(tmp_path / "Poses_single/chair.npz", chair)
    done = code("report_accuracy", *arguments, check=False)
    assert done.returncode == 1
    assert "car and chair were solved with different solve" in done.stderr


def test_shards_together_give_what_one_run_gives(road, code, tmp_path):
    data = ("--raw", road["DATAROOT"] / RAW, "--prepared", road["DATAROOT"] / TEST_SET)
    network = ("--save-dir", road["EXPROOT"] / "NeMo_single", "--categories", "car", "--gpus", "")
    solver = ("--total-epochs", 20, "--batch-size", 4)
    arguments = (*data, *network, *solver, "--exp", tmp_path)
    folder = tmp_path / "Poses_single"
    code("solve_poses", *arguments, "--shard", "1/2")
    assert not (folder / "car.npz").is_file()
    merged = code("solve_poses", *arguments)
    assert "(2 of them from earlier runs" in merged.stdout
    expected = (road["EXPROOT"] / "Poses_single/car.csv").read_bytes()
    assert (folder / "car.csv").read_bytes() == expected
    assert [path.name for path in sorted(folder.iterdir())] == ["car.csv", "car.npz"]


# ---- other settings ----


@pytest.fixture
def python_with_gpus(tmp_path) -> Path:
    """A Python that pretends to have two GPUs."""
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "if sys.argv[0] == '-c': sys.exit(exec(sys.argv.pop(1)))\n"
        "from helpers.pretend_gpus import pretend_gpus\n"
        "with pretend_gpus(2): runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{PYTHONPATH}" exec "{sys.executable}" -c "{program}" "$@"\n'
    )
    python.chmod(0o755)
    return python


def test_training_on_two_gpus_gives_what_the_cpu_gives(road, script, tmp_path, python_with_gpus):
    """With a separate bank and validation, on pretended GPUs."""
    settings = TRAIN | {
        "DATAROOT": road["DATAROOT"],
        "CATEGORIES": "car",
        "SEPARATE_BANK": "true",
        "VALIDATE_EVERY": 1,
        "VALIDATION_SHARE": 0.3,
    }
    gpus = {"GPUS": "all", "PYTHON": python_with_gpus, "WORKERS": 1}
    printed_by(script("TrainNeMo.sh", **settings | {"EXPROOT": tmp_path / "cpu"}))
    done = script("TrainNeMo.sh", **settings | {"EXPROOT": tmp_path / "gpu"} | gpus)
    assert "network on 1 GPU(s), bank alone on GPU 1" in printed_by(done)
    cpu = tmp_path / "cpu/NeMo_single"
    gpu = tmp_path / "gpu/NeMo_single"
    expected = load_checkpoint(cpu / BEST_CHECKPOINT)
    trained = load_checkpoint(gpu / BEST_CHECKPOINT)
    torch.testing.assert_close(
        [*trained.state.values(), *trained.memory],
        [*expected.state.values(), *expected.memory],
        rtol=0,
        atol=0,
    )
    figures = read_summary(gpu)["figures"]
    assert figures == read_summary(cpu)["figures"]
    assert figures["best"]


def test_inference_on_two_gpus_gives_what_the_cpu_gives(road, script, tmp_path, python_with_gpus):
    """In two shares, on pretended GPUs; auto finds that Triton does not run."""
    settings = INFER | {
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": tmp_path,
        "SAVED_NETWORK_PATH": road["EXPROOT"] / "NeMo_single",
        "CATEGORIES": "car",
        "GPUS": "all",
        "PYTHON": python_with_gpus,
    }
    done = script("InferenceNeMo.sh", **settings | NO_PICTURES)
    printed = printed_by(done)
    assert "by numba on cuda:0" in printed
    assert "by numba on cuda:1" in printed
    refusals = 2 if importlib.util.find_spec("triton") else 0
    assert done.stderr.count("note: RENDERER=auto uses numba") >= refusals
    expected = (road["EXPROOT"] / "Poses_single/car.csv").read_bytes()
    assert (tmp_path / "Poses_single/car.csv").read_bytes() == expected


def test_six_d_also_says_where_the_object_lies(road, script, tmp_path):
    (tmp_path / "NeMo_single").symlink_to(road["EXPROOT"] / "NeMo_single")
    settings = INFER | {
        "SIX_D": "true",
        "SOLVER": "best",
        "CATEGORIES": "car",
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": tmp_path,
    }
    printed_by(script("InferenceNeMo.sh", **settings))
    places = poses_of(tmp_path).pose.principal_xy
    assert places.shape == (6, 2)
    assert len(np.unique(places.round(3), axis=0)) > 1
    assert "changed" not in printed_by(script("InferenceNeMo.sh", **settings))
    assert (tmp_path / "Report_single/clean/overview.png").is_file()


def test_one_cuboid_per_cad_model(road, script, tmp_path):
    """MESH_DIMENSIONS=multi: three banks in one checkpoint.

    Each image is compared with the cuboid of its subtype, or the best one is taken.
    """
    roots = {
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": tmp_path,
        "MESH_DIMENSIONS": "multi",
        "CATEGORIES": "car",
    }
    poses_file = tmp_path / "Poses_multi/carFGL1_BGL1.npz"
    assert "10 images, 3 cuboids" in printed_by(script("TrainNeMo.sh", **TRAIN | roots))
    printed_by(script("InferenceNeMo.sh", "FGL1_BGL1", **INFER | roots))
    poses = load_poses(poses_file)
    test_set = PreparedSet(road["DATAROOT"] / TEST_SET)
    models = [load_annotation(test_set.annotation("car", n)).cad_index for n in poses.names]
    assert poses.mesh.tolist() == models
    assert set(models) == {1, 2, 3}
    assert (tmp_path / "Accuracy_multi/FGL1_BGL1/table.csv").is_file()
    assert (tmp_path / "Report_multi/FGL1_BGL1/overview.png").is_file()

    settings = INFER | roots | NO_PICTURES | {"SUBTYPE": "predicted"}
    printed_by(script("InferenceNeMo.sh", "FGL1_BGL1", **settings))
    predicted = load_poses(poses_file)
    assert predicted.names.tolist() == poses.names.tolist()
    assert predicted.config["solve"]["subtype"] == "predicted"
    assert set(predicted.mesh.tolist()) <= {1, 2, 3}
    assert (predicted.loss <= poses.loss + 1e-6).all()
    same = predicted.mesh == poses.mesh
    np.testing.assert_allclose(predicted.loss[same], poses.loss[same], atol=1e-6)
    assert "subtype predicted" in (tmp_path / "Accuracy_multi/FGL1_BGL1/table.md").read_text()


def is_trained_on(azimuth: float) -> bool:
    """Whether an azimuth in radians lies in a bin of PATTERN."""
    return PATTERN[int(np.rad2deg(azimuth) // 45)] == "T"


def select_azimuths(code, prepared: PreparedSet) -> set[str]:
    """Make the lists of a set, check them, and return the names that are trained on."""
    selection = ("--mesh-d", "single", "--categories", "car", "--azimuths", PATTERN)
    code("select_azimuths", "--prepared", prepared.root, *selection)
    lists = {}
    for pattern in (PATTERN, COMPLEMENT):
        file = prepared.root / f"lists3D_single_azum_{pattern}/car/mesh01.txt"
        lists[pattern] = {name.removesuffix(".JPEG") for name in file.read_text().split()}
    assert not lists[PATTERN] & lists[COMPLEMENT]
    assert lists[PATTERN] | lists[COMPLEMENT] == set(prepared.image_names("single", "car"))
    for name in lists[PATTERN] | lists[COMPLEMENT]:
        pose = load_annotation(prepared.annotation("car", name)).pose
        assert is_trained_on(pose.azimuth) is (name in lists[PATTERN])
    return lists[PATTERN]


def test_some_azimuths_are_trained_on_and_the_others_tested(road, script, code, tmp_path):
    roots = {
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": tmp_path,
        "CATEGORIES": "car",
        "AZIMUTH_SELECTION": PATTERN,
    }
    missing = script("TrainNeMo.sh", **TRAIN | roots)
    assert missing.returncode == 1
    assert "run PrepareData.sh first with the same AZIMUTH_SELECTION" in missing.stderr

    trained_on = select_azimuths(code, PreparedSet(road["DATAROOT"] / TRAINING_SET))
    printed = printed_by(script("TrainNeMo.sh", **TRAIN | roots))
    assert f"car: {len(trained_on)} images, 1 cuboid" in printed

    seen = select_azimuths(code, PreparedSet(road["DATAROOT"] / TEST_SET))
    annotations = (road["DATAROOT"] / TEST_SET / "annotations/car").iterdir()
    every_name = {path.stem for path in annotations}
    expected = {"seen": every_name & seen, "unseen": every_name - seen}
    for tested, names in expected.items():
        settings = {"AZIMUTH_TEST": tested, "BASELINES": "true"}
        printed = printed_by(script("InferenceNeMo.sh", **INFER | roots | NO_PICTURES | settings))
        assert "PARTIAL" not in printed
        poses = load_poses(tmp_path / f"Poses_single_azum_{PATTERN}_{tested}/car.npz")
        assert names
        assert set(poses.names.tolist()) == names
        accuracy = tmp_path / f"Accuracy_single_azum_{PATTERN}_{tested}"
        table = (accuracy / "clean/table.md").read_text()
        assert f"Trained on the azimuths {PATTERN}, tested on {tested} ones" in table


def test_saved_features_give_the_same_poses(road, script, tmp_path):
    (tmp_path / "NeMo_single").symlink_to(road["EXPROOT"] / "NeMo_single")
    settings = INFER | NO_PICTURES | {"SAVE_FEATURES": "true", "CATEGORIES": "car"}
    roots = {"DATAROOT": road["DATAROOT"], "EXPROOT": tmp_path}
    printed_by(script("InferenceNeMo.sh", **settings, **roots))
    file = tmp_path / "Features_single/car/saved_feature_car_single.npz"
    stored = np.load(file, allow_pickle=False)
    assert {"memory_mesh01", "clutter_mesh01", "names_mesh01"} <= set(stored.files)
    streamed = poses_of(road["EXPROOT"])
    np.testing.assert_allclose(poses_of(tmp_path).loss, streamed.loss, atol=1e-3)
