"""predict.py: resumable runs over folders, boxes, films, the reference's route, and mistakes."""

from __future__ import annotations

import csv
import errno
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.photographs import MESH, gradient
from helpers.project import ROOT
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.photographs import predictor
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.settings import FIXED_RECIPE, TrainConfig
from neural_mesh.storage.checkpoints import Checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A network with random weights, of which only the way that its poses take is tested."""
    torch.manual_seed(0)
    config = TrainConfig(
        category="car",
        backbone="resnet18fpn",
        pretrained="none",
        image_scale=0.5,
        num_clutter_group=16,
        **FIXED_RECIPE,
    )
    rows = torch.randn(len(MESH.vertices) + config.num_clutter, 128)
    memory = torch.nn.functional.normalize(rows, dim=1)
    weights = FeatureNet("resnet18fpn").state_dict()
    path = tmp_path_factory.mktemp("network") / "saved_model_car_last.pth"
    save_checkpoint(path, Checkpoint(weights, [memory], [MESH], config, 1))
    return path


@pytest.fixture
def run(checkpoint, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments) -> exit status, printed text and messages of predict.py on the CPU."""

    def run_predict(*arguments: object) -> tuple[int, str, str]:
        network = ["--checkpoint", str(checkpoint), "--gpus", ""]
        monkeypatch.setattr(sys, "argv", ["predict.py", *network, *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(ROOT / "code/predict.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_predict


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two photographs, one of them below, a broken one, and a text."""
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    Image.fromarray(gradient(120, 200)).save(photos / "one.jpg")
    Image.fromarray(gradient(90, 160)).save(photos / "below/two.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (photos / "notes.txt").write_text("not looked at")
    return photos


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "poses.jsonl").read_text().splitlines()]


def times_of(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_folder_gives_poses_pictures_and_a_count_and_goes_on_after_a_kill(run, folder, tmp_path):
    out = tmp_path / "results"
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("file,x0,y0,x1,y1\none.jpg,20,30,150,100\none.jpg,5,5,90,80\n")
    arguments = (folder, "--boxes", boxes, "--out", out, "--batch-size", 2)
    status, printed, messages = run(*arguments)
    assert status == 0
    assert (
        "3 poses of 2 photographs (0 of them from earlier runs, "
        "1 could not be used, see failures.txt)" in printed
    )
    assert "by numba on cpu, in" in printed
    assert "confidence is not given" in printed
    assert "broken.jpg" in messages
    assert "broken.jpg" in (out / "failures.txt").read_text()
    records = lines_of(out)
    assert [(r["photo"], r["object"], r["box"]) for r in records] == [
        ("below/two.png", 0, None),
        ("one.jpg", 0, [20, 30, 150, 100]),
        ("one.jpg", 1, [5, 5, 90, 80]),
    ]
    assert np.shape(records[0]["camera_matrix"]) == (3, 4)
    assert records[0]["confidence"] is None
    rows = list(csv.DictReader(open(out / "poses.csv")))
    azimuth_deg = np.degrees(records[1]["azimuth"]) % 360
    assert azimuth_deg == pytest.approx(float(rows[1]["azimuth_deg"]), abs=1e-3)
    assert Image.open(out / "overlays/one.jpg.jpg").size == (200, 120)
    assert (out / "overlays/below/two.png.jpg").is_file()

    # nothing is left to do
    before = times_of(out)
    status, printed, _ = run(*arguments)
    assert status == 0
    assert "(2 of them from earlier runs" in printed
    assert times_of(out) == before

    # as a kill in the middle of the last line leaves it
    text = (out / "poses.jsonl").read_text()
    (out / "poses.jsonl").write_text(text[: text.rindex('"score"')])
    status, printed, _ = run(*arguments)
    assert status == 0
    assert "(1 of them from earlier runs" in printed
    assert (out / "poses.jsonl").read_text() == text

    # what other runs found is kept
    status, printed, _ = run(folder / "below/two.png", "--out", out, "--boxes", boxes)
    assert status == 0
    assert "1 pose of 1 photograph" in printed
    assert len(lines_of(out)) == 4

    status, _, messages = run(*arguments, "--solver", "paper")
    assert status == 1
    assert "holds results of other settings (photograph, solve)" in messages


def test_a_photograph_that_fails_does_not_stop_the_others(run, folder, tmp_path, monkeypatch):
    find_all = PoseFinder.find_all
    batches = []

    def sometimes(finder, items):
        batches.append(len(items))
        if any(photograph.size_hw == (120, 200) for photograph, _ in items):
            raise RuntimeError("out of luck\nat length")
        return find_all(finder, items)

    monkeypatch.setattr(PoseFinder, "find_all", sometimes)
    Image.fromarray(gradient(100, 180)).save(folder / "three.jpg")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(
        "below/two.png,10,10,150,80\none.jpg,20,30,150,100\nthree.jpg,20,30,9000,100\n"
    )
    out = tmp_path / "r"
    status, printed, messages = run(folder, "--boxes", boxes, "--overlays", "false", "--out", out)
    assert status == 0
    assert "1 pose of 1 photograph (0 of them from earlier runs, 3 could not be used" in printed
    assert batches == [2, 1, 1]
    assert "one.jpg: no pose could be found (out of luck)" in messages
    assert (
        "box 20 30 9000 100 is more than 4 times as large as the picture of 180 x 100 pixels"
        in messages
    )
    assert [record["photo"] for record in lines_of(out)] == ["below/two.png"]


def test_a_single_photograph_is_told_in_a_sentence_and_filmed(run, folder, tmp_path):
    box = ("--box", 20, 30, 150, 100)
    status, printed, _ = run(folder / "one.jpg", *box, "--out", tmp_path / "r", "--film")
    assert status == 0
    assert printed.startswith("one.jpg: azimuth ")
    with Image.open(tmp_path / "r/films/one.jpg.gif") as film:
        assert film.size == (200, 120)
        assert film.n_frames > 5


def test_the_unlabelled_route_writes_the_keys_of_the_reference(run, folder, tmp_path):
    out = tmp_path / "r"
    arguments = ("--out", out, "--unlabelled", "--overlays", "false")
    status, _, _ = run(folder / "one.jpg", *arguments)
    assert status == 0
    record = lines_of(out)[0]
    with np.load(out / "final_pred.npz") as stored:
        distance, theta, elevation, azimuth, left, up = stored["one"]
    expected = tuple(record[key] for key in ("distance", "theta", "elevation", "azimuth"))
    assert (distance, theta, elevation, azimuth) == expected
    # T moves the object: its origin appears focal * T / distance away from the crop's middle
    x, y = np.subtract(record["crop_middle_xy"], record["principal_xy"])
    assert record["focal_px"] * left / distance == pytest.approx(x)
    assert record["focal_px"] * up / distance == pytest.approx(y)


# ---- names and files as they come ----


def names_in(out: Path) -> list[str]:
    with open(out / "poses.csv", newline="") as file:
        return [row["photo"] for row in csv.DictReader(file)]


def test_names_of_all_kinds_are_in_the_table(run, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    names = [b"caf\xe9.jpg", b'two\nlines, "quoted".jpg', b"a\rreturn.jpg", b"x" * 236 + b".jpg"]
    names += ["\u7167\u7247".encode() * 41 + b".JPG", b"good.jpg"]
    for name in names:
        Image.fromarray(gradient(60, 90)).save(photos / os.fsdecode(name), "JPEG")
    broken = photos / os.fsdecode(b"br\xf6ken\n.png")
    broken.write_bytes(b"nothing")
    out = tmp_path / "r"
    for earlier in (0, len(names)):
        status, printed, messages = run(photos, "--out", out)
        assert status == 0, messages
        assert f"6 poses of 6 photographs ({earlier} of them from earlier runs, 1 could" in printed
    expected = [name.decode(errors="backslashreplace") for name in names]
    assert sorted(names_in(out)) == sorted(expected)
    failures = (out / "failures.txt").read_text().splitlines()
    assert len(failures) == 1
    assert failures[0].startswith(f"{photos}/br\\xf6ken\\n.png: not a picture")
    overlays = {file for record in lines_of(out) for file in record["pictures"]}
    assert len(overlays) == len(names)
    assert all((out / file).is_file() for file in overlays)
    # The names of the long ones are cut, and stay apart.
    assert max(len(os.fsencode(Path(file).name)) for file in overlays) < 120


def test_one_name_that_is_no_utf8_is_told_in_words_and_by_the_route_of_the_reference(run, tmp_path):
    photo = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    Image.fromarray(gradient(60, 90)).save(photo)
    out = tmp_path / "r"
    status, printed, _ = run(photo, "--out", out, "--unlabelled", "--overlays", "false")
    assert status == 0
    assert printed.startswith("caf\\xe9.jpg: azimuth ")
    with np.load(out / "final_pred.npz") as stored:
        assert list(stored) == ["caf\\xe9"]


def test_what_is_no_file_costs_only_itself(run, folder, tmp_path):
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "absent.jpg")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "empty.png").touch()
    (folder / "album.jpg").mkdir()
    Image.fromarray(gradient(60, 90)).save(folder / "album.jpg/three.JFIF", "JPEG")
    out = tmp_path / "r"
    status, printed, messages = run(folder, "--out", out, "--overlays", "false")
    assert status == 0
    assert "3 poses of 3 photographs (0 of them from earlier runs, 5 could not be used" in printed
    assert names_in(out) == ["album.jpg/three.JFIF", "below/two.png", "one.jpg"]
    failures = (out / "failures.txt").read_text()
    assert "pipe.jpg: is a pipe, socket or device" in failures
    assert "photograph not found: " in failures
    assert "itself.jpg: cannot be read (too many levels of symbolic links)" in failures
    assert "empty.png: is empty" in failures
    assert f"not looked at in {folder}: 1 other file (1 .txt)" in messages


def test_a_picture_that_cannot_be_written_costs_its_photograph(run, folder, tmp_path, monkeypatch):
    write = predictor.write_jpeg

    def sometimes(path, *arguments):
        if path.name.startswith("one"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        write(path, *arguments)

    monkeypatch.setattr(predictor, "write_jpeg", sometimes)
    out = tmp_path / "r"
    status, _, _ = run(folder, "--out", out)
    assert status == 0
    assert names_in(out) == ["below/two.png"]
    failures = (out / "failures.txt").read_text()
    assert "one.jpg: its pose or its pictures could not be kept ([Errno 36] File name" in failures


def test_boxes_of_a_spreadsheet_are_used_and_counted(run, folder, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_bytes(b"\xef\xbb\xbfone.jpg;20,5;30;150;100;car\r\nother.jpg;1;2;3;4;car\r\n")
    out = tmp_path / "r"
    arguments = ("--boxes", boxes, "--out", out, "--overlays", "false")
    status, printed, messages = run(folder, *arguments)
    assert status == 0
    assert (
        f"2 boxes in {boxes}, 1 of them in 1 photograph of this run; 2 others looked at as a whole"
        in printed
    )
    assert "note: 1 file with boxes not among the photographs, other.jpg first" in messages
    boxed = {record["photo"]: record["box"] for record in lines_of(out)}
    assert boxed == {"below/two.png": None, "one.jpg": [20.5, 30, 150, 100]}


# ---- mistakes ----


MISTAKES = {
    "no photograph": ("{photos}/absent.jpg", "photograph not found"),
    "broken": ("{photos}/broken.jpg", "no photograph could be used"),
    "one box": ("{photos} --box 1 2 30 40", "--box is for one photograph, there are 3"),
    "outside": (
        "{photos}/one.jpg --box 500 2 600 40",
        "lies outside the picture of 200 x 120 pixels",
    ),
    "category": ("{photos}/one.jpg --category chair", "was trained on car, not on chair"),
    "box and route": ("{photos}/one.jpg --box 1 2 30 40 --unlabelled", "has no boxes"),
    "two kinds of boxes": ("{photos} --box 1 2 30 40 --boxes a.csv", "exclude each other"),
    "nothing": ("", "name photographs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_clear_sentence(run, folder, tmp_path, mistake):
    command, reason = MISTAKES[mistake]
    arguments = [word.format(photos=folder) for word in command.split()]
    status, _, messages = run(*arguments, "--out", tmp_path / "r")
    errors = [line for line in messages.splitlines() if line.startswith("error: ")]
    assert status == 1
    assert len(errors) == 1
    assert reason in errors[0]
    assert "Traceback" not in messages


TEN_LINES = """
from PIL import Image
from neural_mesh.photographs.finder import open_finder

finder = open_finder("saved_model_car_last.pth")
pose = finder.find("photo.jpg", box=(20, 30, 150, 100))  # without a box: the whole picture
print(pose.angles_deg, pose.pascal3d_distance, pose.confidence)
print(pose.camera_matrix)  # 3 x 4, from CAD coordinates to pixels of the upright photograph
Image.fromarray(finder.draw("photo.jpg", pose)).save("overlay.png")
"""


def test_the_ten_lines_of_the_readme(checkpoint, tmp_path, monkeypatch, capsys):
    assert f"```python\n{TEN_LINES.strip()}\n```" in (ROOT / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("saved_model_car_last.pth").symlink_to(checkpoint)
    Image.fromarray(gradient(120, 200)).save("photo.jpg")
    exec(TEN_LINES, {})
    assert Image.open("overlay.png").size == (200, 120)
    assert len(capsys.readouterr().out.splitlines()) == 4
