"""Preparation alone: killed, begun again, downloaded, and on real photographs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from helpers.project import ROOT
from helpers.runs import contents, printed_by
from neural_mesh.storage.files import lock
from neural_mesh.storage.records import VertexAnnotation, load_annotation

RAW = "PASCAL3D+_release1.1"


def test_a_killed_preparation_ends_with_the_same_bytes(sample_raw, code, tmp_path):
    raw = sample_raw / RAW
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    arguments = ["--raw", raw, "--split", "train", "--categories", "car chair", "--workers", 1]
    code("prepare_images", *arguments, "--out", whole)
    # killed with SIGKILL as soon as there is an image
    program = [sys.executable, ROOT / "code/prepare_images.py"]
    process = subprocess.Popen(
        [*map(str, [*program, *arguments, "--out", killed])],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(killed.rglob("*.JPEG")) and process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list((killed / "annotations").rglob("*.npz"))) < 20
    # and begun again
    code("prepare_images", *arguments, "--out", killed)
    finished = {
        name: content for name, content in contents(killed).items() if not name.endswith(".part")
    }
    assert finished == contents(whole)


def test_overwriting_leaves_nothing_of_what_was_there(sample_raw, code, tmp_path):
    prepared = tmp_path / "prepared"
    annotations = prepared / "annotations3D_multi/chair"
    stale = prepared / "lists/chair/stale.txt"
    raw = ("--raw", sample_raw / RAW, "--categories", "chair")
    prepare = (*raw, "--out", prepared, "--split", "val", "--geometry")
    annotate = (*raw, "--prepared", prepared, "--mesh-d", "multi")
    code("prepare_images", *prepare, "paper")
    code("make_cuboids", *raw, "--mesh-d", "multi")
    code("annotate_vertices", *annotate)
    stale.write_text("stranger.JPEG\n")
    code("prepare_images", *prepare, "exact", "--overwrite", "true")
    assert not annotations.exists()
    assert not stale.exists()
    code("annotate_vertices", *annotate)
    stored = [load_annotation(path, VertexAnnotation) for path in annotations.iterdir()]
    assert len(stored) == 6
    assert {annotation.geometry for annotation in stored} == {"exact"}


def zip_without_subsets(sample_raw: Path, archive: Path) -> None:
    """The sample as PASCAL3D+ is offered, where Image_subsets come from elsewhere."""
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted((sample_raw / RAW).rglob("*")):
            if path.is_file() and "Image_subsets" not in path.parts:
                opened.write(path, path.relative_to(sample_raw))


def test_missing_data_are_downloaded_or_the_manual_steps_are_told(sample_raw, code, tmp_path):
    absent = (tmp_path / "absent.zip").as_uri()
    raw = tmp_path / "data" / RAW
    done = code("download_data", "--raw", raw, "--address", f"{RAW}={absent}", check=False)
    assert done.returncode == 1
    assert "download it yourself, unpack it so that" in done.stderr
    assert "Traceback" not in done.stderr
    archive = tmp_path / "pascal.zip"
    zip_without_subsets(sample_raw, archive)
    addresses = ("--address", f"{RAW}={archive.as_uri()}", "--address", f"Image_subsets={absent}")
    done = code("download_data", "--raw", raw, *addresses)
    assert (raw / "Annotations/car_imagenet").is_dir()
    assert "Going on with Image_sets" in done.stderr
    assert "1 downloaded" in done.stdout
    # as a run leaves it that is killed before all is in place
    (raw.parent / f".unpacking-{RAW}").mkdir()
    shutil.rmtree(raw / "Images")
    done = code("download_data", "--raw", raw, *addresses)
    assert (raw / "Images/car_imagenet").is_dir()
    assert "1 downloaded" in done.stdout
    with lock(raw, "unpack", "the test's"):
        done = code("download_data", "--raw", raw, *addresses, check=False)
    assert done.returncode == 1
    assert "another run is writing what Image_subsets.zip holds" in done.stderr
    prepared = tmp_path / "prepared"
    split = ("--split", "val", "--categories", "car")
    code("prepare_images", "--raw", raw, "--out", prepared, *split)
    assert "Image_sets" in (prepared / "lists/car/SOURCE.json").read_text()


def test_real_photographs_are_prepared(shared, script, tmp_path):
    raw = tmp_path / RAW
    raw.mkdir()
    for folder in ("Annotations", "Images", "Image_sets", "Image_subsets"):
        (raw / folder).symlink_to(shared("data/RealCars") / folder)
    models = str(shared("data/pascal3d_cad.tar.xz"))
    subprocess.run(["tar", "xJf", models, "-C", str(raw), "CAD/car"], check=True)
    settings = {"CATEGORIES": "car", "MESH_DIMENSIONS": "single"}
    printed = printed_by(script("PrepareData.sh", DATAROOT=tmp_path, **settings))
    assert "train: 762 images of 1 category" in printed
    assert "val: 143 images of 1 category" in printed
    assert "vertices of 762 images annotated, 762 of them now" in printed
