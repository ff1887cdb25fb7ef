"""predict.py: resumable runs over folders, boxes, films, the reference's route, and mistakes."""

from __future__ import annotations

import csv
import json
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
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.photographs.jobs import read_boxes
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


@pytest.mark.parametrize(
    "name, text, expected",
    [
        (
            "b.csv",
            "a.jpg,1,2,3,4\n\nb.jpg, 5,6,7,8.5\n",
            {"a.jpg": [(1, 2, 3, 4)], "b.jpg": [(5, 6, 7, 8.5)]},
        ),
        (
            "b.json",
            '{"a": [1, 2, 3, 4], "b": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
            {"a": [(1, 2, 3, 4)], "b": [(1, 2, 3, 4), (5, 6, 7, 8)]},
        ),
        ("b.csv", "a.jpg,1,2,3\n", None),
        ("b.json", "[1, 2]", None),
        ("b.json", '{"a.jpg": {"x": 1}}', None),
        ("b.json", "{", None),
    ],
)
def test_boxes_come_as_csv_or_json(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    if expected is not None:
        assert read_boxes(tmp_path / name) == expected
        return
    with pytest.raises(ValueError, match=name):
        read_boxes(tmp_path / name)


TEN_LINES = """
import numpy as np
from PIL import Image
from neural_mesh.photographs.finder import open_finder

finder = open_finder("saved_model_car_last.pth")
photo = np.asarray(Image.open("photo.jpg"))
pose = finder.find(photo, box=(20, 30, 150, 100))  # without a box: the whole picture
print(pose.angles_deg, pose.pascal3d_distance, pose.confidence)
print(pose.camera_matrix)  # 3 x 4, from CAD coordinates to pixels of the photograph
Image.fromarray(finder.draw(photo, pose)).save("overlay.png")
"""


def test_the_ten_lines_of_the_readme(checkpoint, tmp_path, monkeypatch, capsys):
    assert f"```python\n{TEN_LINES.strip()}\n```" in (ROOT / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("saved_model_car_last.pth").symlink_to(checkpoint)
    Image.fromarray(gradient(120, 200)).save("photo.jpg")
    exec(TEN_LINES, {})
    assert Image.open("overlay.png").size == (200, 120)
    assert len(capsys.readouterr().out.splitlines()) == 4
