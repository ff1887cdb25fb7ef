"""The stage that draws results, with an untrained network: pictures, films, other drawings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.small_results import make_small_results
from neural_mesh.geometry.cameras import Pose
from neural_mesh.pictures.selection import Choice
from neural_mesh.stages.draw_results import OtherDrawing, draw_results
from neural_mesh.stages.networks import TrainedNetworks
from neural_mesh.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from neural_mesh.storage.results import load_poses, save_poses

ONE_IMAGE = Choice(images=1)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    make_small_results(tmp_path)
    return tmp_path


def draw(world: Path, choice: Choice = ONE_IMAGE, level: str = "", **other: object) -> None:
    networks = TrainedNetworks(
        world / "raw", world / "prepared", world / "exp", ("car",), level=level
    )
    draw_results(networks, world / "prepared", choice, gpus="", other=OtherDrawing(**other))


def pictures_in(folder: Path) -> set[str]:
    """Names of all files; every PNG shows something."""
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10, path
    return {path.name for path in folder.iterdir()}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_stage_draws_once_and_repeats_itself(world, capsys):
    folder = world / "exp" / "Report_single" / "clean"
    draw(world)
    first = contents_of(folder)
    assert list(first) == ["car_a.png", "overview.png", "pictures.json"]
    printed = capsys.readouterr().out
    assert "1 figure of 1 category" in printed and "1 pose not finite" in printed
    draw(world)
    assert "kept" in capsys.readouterr().out
    (folder / "pictures.json").unlink()
    draw(world)
    assert contents_of(folder) == first


def test_the_stage_tells_what_is_wrong(world):
    with pytest.raises(FileNotFoundError, match="no poses of car"):
        draw(world, level="FGL1_BGL1")
    (world / "prepared" / "images" / "car" / "a.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="image not found"):
        draw(world, Choice())
    path = world / "exp" / "NeMo_single" / "saved_model_car_last.pth"
    save_checkpoint(path, Checkpoint(**{**vars(load_checkpoint(path)), "epoch": 2}))
    with pytest.raises(ValueError, match="solved with checkpoint"):
        draw(world, Choice())


def test_a_film_ends_in_the_solved_pose(world, capsys):
    draw(world, Choice(images=1, films=1))
    folder = world / "exp" / "Report_single" / "clean"
    assert "1 figure, 1 film of 1 category" in capsys.readouterr().out
    (film,) = folder.glob("*.gif")
    with Image.open(film) as opened:
        assert opened.n_frames > 5 and opened.width < 900
        first = np.asarray(opened.convert("RGB")).astype(int)
        opened.seek(opened.n_frames - 1)
        last = np.asarray(opened.convert("RGB"))
        assert (abs(last - first).max(-1) > 40).mean() > 0.002


def test_a_loss_landscape_over_a_set(world, capsys):
    draw(world, Choice(), landscape="prediction")
    folder = world / "exp" / "Report_single" / "clean"
    assert "loss landscapes of 2 images of 1 category" in capsys.readouterr().out
    expected = {f"landscape_car_prediction.{end}" for end in ("csv", "npz", "png")}
    assert pictures_in(folder) == expected
    stored = np.load(folder / "landscape_car_prediction.npz", allow_pickle=False)
    assert stored["names"].tolist() == ["a", "b"] and stored["azimuth_losses"].shape == (2, 121)
    middle_of_azimuth = stored["azimuth_losses"][:, 60]
    np.testing.assert_allclose(middle_of_azimuth, stored["distance_losses"][:, 20], atol=1e-6)


def test_viewpoints_of_annotated_and_predicted_poses(world, capsys):
    draw(world, viewpoints=True)
    assert "viewpoints of 2 images" in capsys.readouterr().out
    assert pictures_in(world / "exp" / "Report_single" / "clean") == {"viewpoints_car.png"}


def test_any_pose_file_can_be_drawn_without_a_checkpoint(world, capsys):
    (world / "exp" / "NeMo_single" / "saved_model_car_last.pth").unlink()
    draw(world, Choice(), poses=world / "exp" / "Poses_single" / "car.npz")
    table = world / "table.csv"
    table.write_text("name,azimuth_deg,elevation_deg,theta_deg\na,0,5.73,0\n")
    draw(world, Choice(), poses=table)
    printed = capsys.readouterr().out
    assert "car: 2 poses of 3 drawn" in printed and "car: 1 pose of 1 drawn" in printed
    expected = {"poses_car.png", "poses_table.png"}
    assert pictures_in(world / "exp" / "Report_single" / "clean") == expected
    table.write_text("name,azimuth_deg\na,0\n")
    with pytest.raises(ValueError, match="every line needs name, azimuth_deg"):
        draw(world, Choice(), poses=table)
    table.write_text("name,azimuth_deg,elevation_deg,theta_deg\nzebra,0,0,0\n")
    with pytest.raises(FileNotFoundError, match="name the set that the poses belong to"):
        draw(world, Choice(), poses=table)


def test_two_runs_are_compared(world, capsys):
    """The other run is 0.5 rad off in image a and right in image b; this one is 0.1 rad off in
    both.
    """
    path = world / "exp" / "Poses_single" / "car.npz"
    saved = load_poses(path)
    truth = np.array([0.0, 0.2, 0.4])

    def upright(azimuth: np.ndarray) -> Pose:
        return Pose(azimuth, np.full(3, 0.1), np.zeros(3), np.full(3, 5.0))

    save_poses(path, replace(saved, pose=upright(truth + 0.1)))
    other = replace(saved, pose=upright(truth + [0.5, 0.0, 0.1]))
    save_poses(world / "other" / "Poses_single" / "car.npz", other)
    draw(world, Choice(), compare=world / "other")
    printed = capsys.readouterr().out
    assert "3 images compared with" in printed
    assert "1 better, 1 worse; pi/6 100.0 -> 100.0" in printed
    folder = world / "exp" / "Report_single" / "clean"
    expected = {f"comparison_other{end}" for end in (".csv", ".png", "_pictures.png")}
    assert pictures_in(folder) == expected
    lines = [line.split(",") for line in (folder / "comparison_other.csv").read_text().splitlines()]
    assert [line[1] for line in lines] == ["name", "a", "c", "b"]
    changes = [float(line[4]) for line in lines[1:]]
    np.testing.assert_allclose(changes, np.rad2deg([-0.4, 0.0, 0.1]), atol=0.01)
    with pytest.raises(FileNotFoundError, match="has no Poses_single"):
        draw(world, Choice(), compare=world / "nothing")
