"""The product as its users run it: the real scripts, end to end, on a tiny sample set and on real photographs."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.project import PYTHONPATH, ROOT
from neural_mesh.geometry.cameras import Pose, geodesic_distance, pascal_cam_from_object
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.files import lock
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import VertexAnnotation, load_annotation
from neural_mesh.storage.results import PoseSet, load_poses, save_poses
from neural_mesh.storage.timings import load_seconds

SCRIPTS = ("PrepareData.sh", "TrainNeMo.sh", "InferenceNeMo.sh", "DemoNeMo.sh")
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


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of the last change and content of every file."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in snapshot(folder).items()}


def ran(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def road(sample_raw, script, tmp_path_factory):
    """The three scripts, run once from another folder; their outputs by name."""
    roots = {"DATAROOT": sample_raw, "EXPROOT": tmp_path_factory.mktemp("my results")}
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    return roots | {
        "prepare": ran(script("PrepareData.sh", cwd=elsewhere, **PREPARE, **roots)),
        "train": ran(script("TrainNeMo.sh", cwd=elsewhere, **TRAIN, **roots)),
        "infer": ran(script("InferenceNeMo.sh", cwd=elsewhere, **INFER, **roots)),
        "infer_occluded": ran(
            script("InferenceNeMo.sh", "FGL1_BGL1", cwd=elsewhere, **INFER, **roots)
        ),
    }


def test_preparation_has_the_layout_of_the_reference(road):
    train, test, occluded = (
        road["DATAROOT"] / n for n in ("PASCAL3D_train_NeMo", "PASCAL3D_NeMo", "PASCAL3D_OCC_NeMo")
    )
    for root, subset, images in (
        (train, "car", 10),
        (test, "chair", 6),
        (occluded, "carFGL1_BGL1", 6),
    ):
        for folder in (
            f"images/{subset}",
            f"annotations/{subset}",
            f"annotations3D_single/{subset}",
            f"annotations3D_multi/{subset}",
        ):
            assert len(list((root / folder).iterdir())) == images, folder
        assert len((root / f"lists3D_single/{subset}/mesh01.txt").read_text().split()) == images
    assert (train / "lists/car/mesh03.txt").is_file() and (
        train / "lists/car/SOURCE.json"
    ).is_file()
    assert (
        "train: 20 images of 2 categories" in road["prepare"]
        and "single: 2 cuboids" in road["prepare"]
    )
    assert "multi: 6 cuboids" in road["prepare"]
    clean = load_annotation(
        PreparedSet(test).annotation("car", next((test / "annotations/car").iterdir()).stem)
    )
    assert clean.occ_mask is None
    masked = load_annotation(next((occluded / "annotations/carFGL1_BGL1").iterdir()))
    assert masked.occ_mask.shape == (masked.height, masked.width) and masked.occ_mask.any()


def test_stored_points_are_row_column_and_lie_where_pascal3d_projects_them(road):
    """From the .mat file by PASCAL3D+'s formula, written out once more."""
    test, name = road["DATAROOT"] / "PASCAL3D_NeMo", "n00000001_500000"
    stored = load_annotation(
        PreparedSet(test).vertex_annotation("single", "car", name), VertexAnnotation
    )
    record = loadmat(
        road["DATAROOT"] / f"PASCAL3D+_release1.1/Annotations/car_imagenet/{name}.mat"
    )["record"]
    view = {
        k: record["objects"][0, 0]["viewpoint"][0, 0][k][0, 0][0, 0]
        for k in ("azimuth", "elevation", "theta", "distance", "px", "py")
    }
    azimuth, elevation, theta = np.deg2rad([view["azimuth"], view["elevation"], view["theta"]])
    vertices = read_off(road["DATAROOT"] / "PASCAL3D+_release1.1/CAD_single/car/01.off").vertices
    eye = np.array(
        [
            np.cos(elevation) * np.sin(azimuth),
            -np.cos(elevation) * np.cos(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    up = np.cross(eye, right)
    offset = vertices - view["distance"] * eye
    x, y = 3000 * (offset @ right) / -(offset @ eye), 3000 * (offset @ up) / -(offset @ eye)
    column = view["px"] + np.cos(theta) * x - np.sin(theta) * y
    row = view["py"] - np.sin(theta) * x - np.cos(theta) * y
    scale = view["distance"] / 5  # the crop is centred on the principal point
    expected = np.stack(
        [(row - view["py"]) * scale + 128, (column - view["px"]) * scale + 336], axis=-1
    )
    inside = ((expected >= 0) & (expected <= [255, 671])).all(1)
    assert inside.sum() > 500
    np.testing.assert_allclose(stored.cropped_kp_list[inside], expected[inside], atol=1e-6)


def test_training_leaves_a_last_checkpoint_a_log_and_a_summary(road):
    folder = road["EXPROOT"] / "NeMo_single"
    kinds = (("saved_model", "_last.pth"), ("training_log", ".csv"), ("training_summary", ".json"))
    expected = {f"{kind}_{category}{end}" for category in ("car", "chair") for kind, end in kinds}
    assert {p.name for p in folder.iterdir()} == expected | {"tensorboard"}
    assert "2 categories trained on 20 images" in road["train"]
    summary = json.loads((folder / "training_summary_car.json").read_text())
    assert summary["settings"]["recipe"] == "fixed" and summary["data"]["training_images"] == [10]
    assert (
        summary["data"]["fingerprint"]
        and summary["versions"]["torch"] == torch.__version__
        and "torchvision" in summary["versions"]
    )
    assert {key: summary["devices"][key] for key in ("parallel", "compile", "deterministic")} == {
        "parallel": "dp",
        "compile": False,
        "deterministic": False,
    }
    log = list(csv.DictReader(open(folder / "training_log_car.csv")))
    assert (
        float(log[-1]["loss"]) == summary["figures"]["last"]["loss"]
        and summary["figures"]["best"] == {}
    )


def test_two_processes_train_validate_and_keep_the_best(road, script, code, tmp_path):
    """PARALLEL=ddp through torchrun; the best checkpoint, exported to safetensors, is what inference then reads."""
    roots = {"DATAROOT": road["DATAROOT"], "EXPROOT": tmp_path, "CATEGORIES": "car"}
    settings = (
        TRAIN
        | roots
        | {
            "PARALLEL": "ddp",
            "NUM_PROCESSES": 2,
            "TOTAL_EPOCHS": 2,
            "VALIDATE_EVERY": 1,
            "VALIDATION_SHARE": 0.3,
        }
    )
    printed = ran(script("TrainNeMo.sh", **settings))
    assert "car: 7 images, 3 held out, 1 cuboid; 2 processes on the CPU" in printed
    assert printed.count("1 category trained on 7 images") == 1
    folder = tmp_path / "NeMo_single"
    log = list(csv.DictReader(open(folder / "training_log_car.csv")))
    best = json.loads((folder / "training_summary_car.json").read_text())["figures"]["best"]
    figures = [{key: float(row[key]) for key in ("pi/6", "pi/18", "median")} for row in log]
    assert len(figures) == 2 and best == {"epoch": best["epoch"]} | figures[best["epoch"]]
    assert all(f["pi/18"] <= best["pi/18"] for f in figures) and all(
        f["median"] > 0 for f in figures
    )
    assert load_checkpoint(folder / "saved_model_car_best.pth").epoch == best["epoch"] + 1
    events = EventAccumulator(str(folder / "tensorboard/car"), {"images": 0, "scalars": 0}).Reload()
    assert [round(e.value, 3) for e in events.Scalars("validation/pi/6")] == [
        f["pi/6"] for f in figures
    ]
    assert {"loss", "learning_rate", "images_per_second"} <= set(events.Tags()["scalars"]) and len(
        events.Tags()["images"]
    ) == 2
    code("export_checkpoint", folder / "saved_model_car_best.pth")
    with ThreadPoolExecutor() as pool:
        again = pool.submit(script, "TrainNeMo.sh", **settings)
        ran(
            script(
                "InferenceNeMo.sh",
                **INFER
                | roots
                | {"NUM_PICTURES": 0, "LOAD_FILE_NAME": "saved_model_%s_best.safetensors"},
            )
        )
        assert "1 kept" in ran(again.result())
    poses = load_poses(tmp_path / "Poses_single/car.npz")
    assert (
        len(poses.names) == 6
        and poses.config["checkpoint"]
        == load_checkpoint(folder / "saved_model_car_best.safetensors").fingerprint
    )


def test_the_table_follows_from_the_saved_poses_and_the_raw_annotations(road):
    """Computed again here from the .mat files, by another route than the project's."""
    for category in ("car", "chair"):
        poses = load_poses(road["EXPROOT"] / "Poses_single" / f"{category}.npz")
        errors = []
        for i, name in enumerate(poses.names):
            mat = (
                road["DATAROOT"]
                / "PASCAL3D+_release1.1/Annotations"
                / f"{category}_imagenet"
                / f"{name}.mat"
            )
            viewpoint = loadmat(mat)["record"]["objects"][0, 0]["viewpoint"][0, 0]
            truth = [
                np.deg2rad(viewpoint[key][0, 0][0, 0]) for key in ("azimuth", "elevation", "theta")
            ]
            found = poses.pose[i].pascal_cam_from_object
            errors.append(np.rad2deg(geodesic_distance(found, pascal_cam_from_object(*truth))))
        table = list(csv.DictReader(open(road["EXPROOT"] / "Accuracy_single/clean/table.csv")))
        assert float(table[0][category]) == pytest.approx(
            100 * np.mean(np.array(errors) < 30), abs=0.06
        )
        assert float(table[2][category]) == pytest.approx(np.median(errors), abs=0.06)


def test_the_table_is_printed_in_the_format_of_the_reference(road):
    lines = road["infer"].splitlines()
    assert "Metric | car\tchair\tMean\tCatMean" in lines
    assert any(line.startswith("Pi/18  | ") for line in lines)
    assert (
        (road["EXPROOT"] / "Accuracy_single/clean/table.md")
        .read_text()
        .startswith("# Accuracy, single cuboid, unoccluded")
    )
    assert "FGL1_BGL1: table of 12 images of 2 categories" in road["infer_occluded"]


def test_poses_come_as_npz_and_csv_and_pictures_are_drawn(road):
    rows = list(csv.DictReader(open(road["EXPROOT"] / "Poses_single/car.csv")))
    assert len(rows) == 6 and 0 <= float(rows[0]["azimuth_deg"]) < 360
    for level in ("clean", "FGL1_BGL1"):
        pictures = list((road["EXPROOT"] / "Report_single" / level).glob("*.png"))
        assert len(pictures) == 3 and all(
            p.stat().st_size > 20_000 for p in pictures
        )  # one a category, and the overview


def test_the_report_page_covers_what_was_run_and_how_long_it_took(road):
    page = (road["EXPROOT"] / "Report_single" / "index.html").read_text()
    assert "FGL1_BGL1" in page and page.count("<article") == 24 and "Not the full test set" in page
    for stage in ("train", "solve_poses", "draw_results"):
        assert f"<th scope=row>{stage}</th>" in page
    noted = {
        path.stem: load_seconds(path)["items"]
        for path in (road["EXPROOT"] / "Timings_single").iterdir()
    }
    assert noted == {
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
    before = snapshot(road["DATAROOT"]), snapshot(road["EXPROOT"])
    roots = {"DATAROOT": road["DATAROOT"], "EXPROOT": road["EXPROOT"]}
    ran(script("PrepareData.sh", **PREPARE, **roots))
    assert "2 kept" in ran(script("TrainNeMo.sh", **TRAIN, **roots))
    assert "(12 of them from earlier runs" in ran(
        script("InferenceNeMo.sh", **INFER | {"NUM_PICTURES": 0}, **roots)
    )
    assert (snapshot(road["DATAROOT"]), snapshot(road["EXPROOT"])) == before


def test_ground_truth_submitted_as_prediction_scores_100_100_0(road, code, tmp_path):
    test_set = PreparedSet(road["DATAROOT"] / "PASCAL3D_NeMo")
    for category in ("car", "chair"):
        poses = load_poses(road["EXPROOT"] / "Poses_single" / f"{category}.npz")
        truth = [load_annotation(test_set.annotation(category, name)) for name in poses.names]
        angles = np.array([a.pose.angles for a in truth])
        perfect = PoseSet(
            category,
            "",
            poses.names,
            Pose(*angles.T, poses.pose.distance),
            loss=poses.loss,
            start=poses.start,
            mesh=poses.mesh,
            config=poses.config,
        )
        save_poses(tmp_path / "Poses_single" / f"{category}.npz", perfect)
    printed = code(
        "report_accuracy", "--exp", tmp_path, "--clean", test_set.root, "--categories", "car chair"
    ).stdout
    assert "Pi/6   | 100.0\t100.0\t100.0\t100.0" in printed
    assert "Pi/18  | 100.0\t100.0" in printed and "MedErr | 0.0\t0.0\t0.0" in printed


def test_a_table_refuses_to_mix_settings_and_says_when_it_is_partial(road, code, tmp_path):
    clean = road["DATAROOT"] / "PASCAL3D_NeMo"
    car, chair = (
        load_poses(road["EXPROOT"] / "Poses_single" / f"{c}.npz") for c in ("car", "chair")
    )
    save_poses(tmp_path / "Poses_single/car.npz", car)
    done = code("report_accuracy", "--exp", tmp_path, "--clean", clean, "--categories", "car chair")
    assert "PARTIAL: no poses of chair" in done.stderr
    chair.config["solve"]["total_epochs"] = 7
    save_poses(tmp_path / "Poses_single/chair.npz", chair)
    done = code(
        "report_accuracy",
        "--exp",
        tmp_path,
        "--clean",
        clean,
        "--categories",
        "car chair",
        check=False,
    )
    assert done.returncode == 1 and "car and chair were solved with different solve" in done.stderr


def test_shards_together_give_what_one_run_gives(road, code, tmp_path):
    arguments = (
        "--raw",
        road["DATAROOT"] / "PASCAL3D+_release1.1",
        "--prepared",
        road["DATAROOT"] / "PASCAL3D_NeMo",
        "--exp",
        tmp_path,
        "--save-dir",
        road["EXPROOT"] / "NeMo_single",
        "--categories",
        "car",
        "--gpus",
        "",
        "--total-epochs",
        20,
        "--batch-size",
        4,
    )
    code("solve_poses", *arguments, "--shard", "1/2")
    assert not (tmp_path / "Poses_single/car.npz").is_file()
    merged = code("solve_poses", *arguments)
    assert "(2 of them from earlier runs" in merged.stdout
    assert (tmp_path / "Poses_single/car.csv").read_bytes() == (
        road["EXPROOT"] / "Poses_single/car.csv"
    ).read_bytes()
    assert [p.name for p in sorted((tmp_path / "Poses_single").iterdir())] == ["car.csv", "car.npz"]


def test_two_gpus_give_what_the_cpu_gives(road, script, tmp_path):
    """Training with a separate bank and validation, and inference in two shares, on pretended GPUs; auto finds that Triton does not run."""
    python, roots = tmp_path / "python", {"DATAROOT": road["DATAROOT"], "CATEGORIES": "car"}
    run = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "if sys.argv[0] == '-c': sys.exit(exec(sys.argv[1]))\n"
        "from helpers.pretend_gpus import pretend_gpus\n"
        "with pretend_gpus(2): runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{PYTHONPATH}" exec "{sys.executable}" -c "{run}" "$@"\n'
    )
    python.chmod(0o755)
    train = TRAIN | roots | {"SEPARATE_BANK": "true", "VALIDATE_EVERY": 1, "VALIDATION_SHARE": 0.3}
    ran(script("TrainNeMo.sh", **train | {"EXPROOT": tmp_path / "cpu"}))
    on_gpus = script(
        "TrainNeMo.sh",
        **train | {"EXPROOT": tmp_path / "gpu", "GPUS": "all", "PYTHON": python, "WORKERS": 1},
    )
    assert "network on 1 GPU(s), bank alone on GPU 1" in ran(on_gpus)
    cpu, gpu = (
        load_checkpoint(tmp_path / name / "NeMo_single/saved_model_car_best.pth")
        for name in ("cpu", "gpu")
    )
    torch.testing.assert_close(
        [*gpu.state.values(), *gpu.memory], [*cpu.state.values(), *cpu.memory], rtol=0, atol=0
    )
    cpu, gpu = (
        json.loads((tmp_path / name / "NeMo_single/training_summary_car.json").read_text())
        for name in ("cpu", "gpu")
    )
    assert cpu["figures"] == gpu["figures"] and gpu["figures"]["best"]
    settings = {"EXPROOT": tmp_path, "GPUS": "all", "PYTHON": python, "NUM_PICTURES": 0}
    infer = script(
        "InferenceNeMo.sh",
        **INFER | roots | settings,
        SAVED_NETWORK_PATH=road["EXPROOT"] / "NeMo_single",
    )
    assert "by numba on cuda:0" in ran(infer) and "by numba on cuda:1" in infer.stdout
    assert infer.stderr.count("note: RENDERER=auto uses numba") >= (
        2 if importlib.util.find_spec("triton") else 0
    )
    assert (tmp_path / "Poses_single/car.csv").read_bytes() == (
        road["EXPROOT"] / "Poses_single/car.csv"
    ).read_bytes()


def test_six_d_also_says_where_the_object_lies(road, script, tmp_path):
    (tmp_path / "NeMo_single").symlink_to(road["EXPROOT"] / "NeMo_single")
    settings = INFER | {
        "SIX_D": "true",
        "SOLVER": "best",
        "CATEGORIES": "car",
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": tmp_path,
    }
    ran(script("InferenceNeMo.sh", **settings))
    poses = load_poses(tmp_path / "Poses_single/car.npz")
    assert (
        poses.pose.principal_xy.shape == (6, 2)
        and len(np.unique(poses.pose.principal_xy.round(3), axis=0)) > 1
    )
    assert (
        "changed" not in ran(script("InferenceNeMo.sh", **settings))
        and (tmp_path / "Report_single/clean/overview.png").is_file()
    )


def test_one_cuboid_per_cad_model(road, script, tmp_path):
    """MESH_DIMENSIONS=multi: three banks in one checkpoint; each image is compared with the cuboid of its subtype."""
    roots = {
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": tmp_path,
        "MESH_DIMENSIONS": "multi",
        "CATEGORIES": "car",
    }
    assert "10 images, 3 cuboids" in ran(script("TrainNeMo.sh", **TRAIN | roots))
    ran(script("InferenceNeMo.sh", "FGL1_BGL1", **INFER | roots))
    poses = load_poses(tmp_path / "Poses_multi/carFGL1_BGL1.npz")
    truth = [
        load_annotation(
            PreparedSet(road["DATAROOT"] / "PASCAL3D_NeMo").annotation("car", name)
        ).cad_index
        for name in poses.names
    ]
    assert poses.mesh.tolist() == truth and set(truth) == {1, 2, 3}
    assert (tmp_path / "Accuracy_multi/FGL1_BGL1/table.csv").is_file()
    assert (tmp_path / "Report_multi/FGL1_BGL1/overview.png").is_file()
    ran(
        script(
            "InferenceNeMo.sh",
            "FGL1_BGL1",
            **INFER | roots | {"SUBTYPE": "predicted", "NUM_PICTURES": 0},
        )
    )
    predicted = load_poses(tmp_path / "Poses_multi/carFGL1_BGL1.npz")
    assert (
        predicted.names.tolist() == poses.names.tolist()
        and predicted.config["solve"]["subtype"] == "predicted"
    )
    assert set(predicted.mesh.tolist()) <= {1, 2, 3} and (predicted.loss <= poses.loss + 1e-6).all()
    same = predicted.mesh == poses.mesh
    np.testing.assert_allclose(predicted.loss[same], poses.loss[same], atol=1e-6)
    assert "subtype predicted" in (tmp_path / "Accuracy_multi/FGL1_BGL1/table.md").read_text()


def test_some_azimuths_are_trained_on_and_the_others_tested(road, script, code, tmp_path):
    roots = {
        "DATAROOT": road["DATAROOT"],
        "EXPROOT": tmp_path,
        "CATEGORIES": "car",
        "AZIMUTH_SELECTION": "TFFTTFFT",
    }
    missing = script("TrainNeMo.sh", **TRAIN | roots)
    assert (
        missing.returncode == 1
        and "run PrepareData.sh first with the same AZIMUTH_SELECTION" in missing.stderr
    )
    seen, azimuths = {}, {}
    for name in ("PASCAL3D_train_NeMo", "PASCAL3D_NeMo"):
        prepared = PreparedSet(road["DATAROOT"] / name)
        code(
            "select_azimuths",
            "--prepared",
            prepared.root,
            "--mesh-d",
            "single",
            "--categories",
            "car",
            "--azimuths",
            "TFFTTFFT",
        )
        lists = [
            set((prepared.root / f"lists3D_single_azum_{p}/car/mesh01.txt").read_text().split())
            for p in ("TFFTTFFT", "FTTFFTTF")
        ]
        assert not lists[0] & lists[1] and lists[0] | lists[1] == {
            f"{n}.JPEG" for n in prepared.wanted("single", "car")
        }
        for path in (prepared.root / "annotations/car").iterdir():
            azimuths[path.stem] = np.rad2deg(load_annotation(path).pose.azimuth)
        seen[name] = {n.removesuffix(".JPEG") for n in lists[0]}
        assert all(
            (azimuths[n.removesuffix(".JPEG")] // 45 in (0, 3, 4, 7)) is (n in lists[0])
            for n in lists[0] | lists[1]
        )
    assert f"car: {len(seen['PASCAL3D_train_NeMo'])} images, 1 cuboid" in ran(
        script("TrainNeMo.sh", **TRAIN | roots)
    )
    for tested in ("unseen", "seen"):
        printed = ran(
            script(
                "InferenceNeMo.sh",
                **INFER | roots | {"AZIMUTH_TEST": tested, "NUM_PICTURES": 0, "BASELINES": "true"},
            )
        )
        poses = load_poses(tmp_path / f"Poses_single_azum_TFFTTFFT_{tested}/car.npz")
        wanted = {p.stem for p in (road["DATAROOT"] / "PASCAL3D_NeMo/annotations/car").iterdir()}
        assert {n in seen["PASCAL3D_NeMo"] for n in poses.names.tolist()} == {tested == "seen"}
        assert set(poses.names.tolist()) == {
            n for n in wanted if (n in seen["PASCAL3D_NeMo"]) is (tested == "seen")
        }
        assert "PARTIAL" not in printed
        table = (tmp_path / f"Accuracy_single_azum_TFFTTFFT_{tested}/clean/table.md").read_text()
        assert f"Trained on the azimuths TFFTTFFT, tested on {tested} ones" in table


def test_saved_features_give_the_same_poses(road, script, tmp_path):
    (tmp_path / "NeMo_single").symlink_to(road["EXPROOT"] / "NeMo_single")
    settings = INFER | {"SAVE_FEATURES": "true", "NUM_PICTURES": 0, "CATEGORIES": "car"}
    ran(script("InferenceNeMo.sh", **settings, DATAROOT=road["DATAROOT"], EXPROOT=tmp_path))
    stored = np.load(
        tmp_path / "Features_single/car/saved_feature_car_single.npz", allow_pickle=False
    )
    assert {"memory_mesh01", "clutter_mesh01", "names_mesh01"} <= set(stored.files)
    streamed, saved = (
        load_poses(root / "Poses_single/car.npz") for root in (road["EXPROOT"], tmp_path)
    )
    np.testing.assert_allclose(saved.loss, streamed.loss, atol=1e-3)


def test_a_killed_preparation_ends_with_the_same_bytes(sample_raw, code, tmp_path):
    raw = sample_raw / "PASCAL3D+_release1.1"
    arguments = ["--raw", raw, "--split", "train", "--categories", "car chair", "--workers", 1]
    code("prepare_images", *arguments, "--out", tmp_path / "whole")
    command = [
        sys.executable,
        str(ROOT / "code/prepare_images.py"),
        *map(str, arguments),
        "--out",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "killed").rglob("*.JPEG"))
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = len(list((tmp_path / "killed/annotations").rglob("*.npz")))
    assert killed_at < 20
    code("prepare_images", *arguments, "--out", tmp_path / "killed")
    whole, again = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert {k: v for k, v in again.items() if not k.endswith(".part")} == whole


def test_a_killed_training_goes_on_with_the_same_result(road, tmp_path):
    """Killed with SIGKILL as soon as its first state is on disk; it goes on with worker processes and a cache on disk."""
    command = [
        sys.executable,
        "-c",
        "import sys, runpy; import neural_mesh.training.trainer as t; t.SECONDS_BETWEEN_STATES = 0.0; sys.argv[0] = 'train'; "
        f"runpy.run_path({str(ROOT / 'code/train.py')!r}, run_name='__main__')",
        "--raw",
        str(road["DATAROOT"] / "PASCAL3D+_release1.1"),
        "--prepared",
        str(road["DATAROOT"] / "PASCAL3D_train_NeMo"),
        "--categories",
        "car",
        "--gpus",
        "",
        "--backbone",
        "resnet18fpn",
        "--pretrained",
        "none",
        "--image-scale",
        "0.5",
        "--recipe",
        "fixed",
        "--batch-size",
        "4",
        "--total-epochs",
        "3",
        "--learning-rate",
        "1e-3",
        "--augment",
        "flip color",
        "--num-clutter-group",
        "16",
        "--validate-every",
        "1",
        "--validation-share",
        "0.2",
    ]
    environment = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
    }
    quiet = subprocess.DEVNULL
    undisturbed, process = (
        subprocess.Popen(
            [*command, "--save-dir", str(tmp_path / name)],
            env=environment,
            stdout=quiet,
            stderr=quiet,
        )
        for name in ("whole", "killed")
    )
    state = tmp_path / "killed/training_state_car.pth"
    while not state.is_file() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert state.is_file() and not (tmp_path / "killed/saved_model_car_last.pth").is_file(), (
        "it was not killed in time"
    )
    more = ["--workers", "2", "--image-cache", "disk", "--save-dir", str(tmp_path / "killed")]
    again = subprocess.run(
        [*command, *more], env=environment, check=True, capture_output=True, text=True, timeout=300
    )
    assert "going on after epoch" in again.stdout and undisturbed.wait(timeout=300) == 0
    assert (tmp_path / "killed/training_log_car.csv").read_text() == (
        tmp_path / "whole/training_log_car.csv"
    ).read_text()
    runs = contents(tmp_path / "killed"), contents(tmp_path / "whole")
    killed, whole = (
        {name: content for name, content in run.items() if not name.startswith("tensorboard")}
        for run in runs
    )
    assert (
        killed == whole and {"saved_model_car_best.pth", "saved_model_car_last.pth"} <= whole.keys()
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_prints_the_settings_and_unknown_arguments_are_an_error(script, name):
    printed = ran(script(name, "--help"))
    assert "GPUS=" in printed or "OVERWRITE=" in printed
    done = script(name, "--frobnicate")
    assert done.returncode != 0 and "does not take '--frobnicate'" in done.stderr


@pytest.mark.parametrize(
    "name, settings, complaint",
    [
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
    ],
)
def test_a_mistake_gets_one_clear_sentence(script, tmp_path, name, settings, complaint):
    done = script(
        name,
        DATAROOT=tmp_path / "nothing here",
        EXPROOT=tmp_path / "exp",
        CATEGORIES="car",
        **({"GPUS": ""} | settings),
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(complaint, done.stderr), done.stderr


def test_overwriting_leaves_nothing_of_what_was_there(sample_raw, code, tmp_path):
    raw, prepared = sample_raw / "PASCAL3D+_release1.1", tmp_path / "prepared"
    arguments = (
        "--raw",
        raw,
        "--out",
        prepared,
        "--split",
        "val",
        "--categories",
        "chair",
        "--geometry",
    )
    code("prepare_images", *arguments, "paper")
    code("make_cuboids", "--raw", raw, "--mesh-d", "multi", "--categories", "chair")
    code(
        "annotate_vertices",
        "--raw",
        raw,
        "--prepared",
        prepared,
        "--mesh-d",
        "multi",
        "--categories",
        "chair",
    )
    (prepared / "lists/chair/stale.txt").write_text("stranger.JPEG\n")
    code("prepare_images", *arguments, "exact", "--overwrite", "true")
    assert (
        not (prepared / "annotations3D_multi/chair").exists()
        and not (prepared / "lists/chair/stale.txt").exists()
    )
    code(
        "annotate_vertices",
        "--raw",
        raw,
        "--prepared",
        prepared,
        "--mesh-d",
        "multi",
        "--categories",
        "chair",
    )
    stored = [
        load_annotation(p, VertexAnnotation)
        for p in (prepared / "annotations3D_multi/chair").iterdir()
    ]
    assert len(stored) == 6 and {a.geometry for a in stored} == {"exact"}


def test_data_of_another_geometry_are_not_mixed(road, script):
    done = script("PrepareData.sh", **PREPARE | {"GEOMETRY": "paper"}, DATAROOT=road["DATAROOT"])
    assert (
        done.returncode != 0
        and "another GEOMETRY" in done.stderr
        and "OVERWRITE=true" in done.stderr
    )


def test_missing_data_are_downloaded_or_the_manual_steps_are_told(sample_raw, code, tmp_path):
    absent = (tmp_path / "absent.zip").as_uri()
    raw = tmp_path / "data/PASCAL3D+_release1.1"
    done = code(
        "download_data", "--raw", raw, "--address", f"PASCAL3D+_release1.1={absent}", check=False
    )
    assert (
        done.returncode == 1
        and "download it yourself, unpack it so that" in done.stderr
        and "Traceback" not in done.stderr
    )
    archive = tmp_path / "pascal.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted((sample_raw / "PASCAL3D+_release1.1").rglob("*")):
            if path.is_file() and "Image_subsets" not in path.parts:
                opened.write(path, path.relative_to(sample_raw))
    addresses = f"PASCAL3D+_release1.1={archive.as_uri()}", f"Image_subsets={absent}"
    done = code("download_data", "--raw", raw, "--address", addresses[0], "--address", addresses[1])
    assert (raw / "Annotations/car_imagenet").is_dir() and "Going on with Image_sets" in done.stderr
    assert "1 downloaded" in done.stdout
    (
        raw.parent / ".unpacking-PASCAL3D+_release1.1"
    ).mkdir()  # as a run leaves it that is killed before all is in place
    shutil.rmtree(raw / "Images")
    done = code("download_data", "--raw", raw, "--address", addresses[0], "--address", addresses[1])
    assert (raw / "Images/car_imagenet").is_dir() and "1 downloaded" in done.stdout
    with lock(raw, "unpack", "the test's"):
        done = code(
            "download_data",
            "--raw",
            raw,
            "--address",
            addresses[0],
            "--address",
            addresses[1],
            check=False,
        )
    assert (
        done.returncode == 1
        and "another run is writing what Image_subsets.zip holds" in done.stderr
    )
    code(
        "prepare_images",
        "--raw",
        raw,
        "--out",
        tmp_path / "prepared",
        "--split",
        "val",
        "--categories",
        "car",
    )
    assert "Image_sets" in (tmp_path / "prepared/lists/car/SOURCE.json").read_text()


def test_real_photographs_are_prepared(shared, script, tmp_path):
    raw = tmp_path / "PASCAL3D+_release1.1"
    raw.mkdir()
    for folder in ("Annotations", "Images", "Image_sets", "Image_subsets"):
        (raw / folder).symlink_to(shared("data/RealCars") / folder)
    subprocess.run(
        ["tar", "xJf", str(shared("data/pascal3d_cad.tar.xz")), "-C", str(raw), "CAD/car"],
        check=True,
    )
    printed = ran(
        script("PrepareData.sh", DATAROOT=tmp_path, CATEGORIES="car", MESH_DIMENSIONS="single")
    )
    assert (
        "train: 762 images of 1 category" in printed and "val: 143 images of 1 category" in printed
    )
    assert "vertices of 762 images annotated, 762 of them now" in printed
