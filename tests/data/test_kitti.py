"""KITTI3D: viewpoints, and labels and pictures that become three test sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_mesh.data.kitti import KittiObject, viewpoint
from neural_mesh.stages.prepare_kitti3d import KittiOptions, prepare_kitti3d
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import load_annotation

FOLDERS = ("label_2", "image_2", "calib")
PROJECTION = "P0: 0\nP2: 700 0 600 40 0 700 170 0.2 0 0 1 0.003\n"


def car_at(location: object, rotation_y: float) -> KittiObject:
    """A car 1.5 m high."""
    return KittiObject("Car", 0.0, 0, np.zeros(4), 1.5, np.array(location), rotation_y)


def reference_azimuth(x: float, z: float, rotation_y: float) -> float:
    """As published: rotation_y + atan(z / x), and half a turn more where that is positive."""
    slope = np.arctan(z / x)
    return (rotation_y + slope + (np.pi if slope > 0 else 0)) % (2 * np.pi)


def test_kitti_viewpoints_are_where_the_camera_stands():
    random = np.random.default_rng(0)
    for x, y, z, turn in random.uniform([-20, 0.5, 4, -np.pi], [20, 2.5, 60, np.pi], (50, 4)):
        car = car_at([x, y, z], turn)
        azimuth, elevation = viewpoint(car)
        assert np.cos(azimuth - reference_azimuth(x, z, turn)) == pytest.approx(1, abs=1e-9)
        down = car.centre[1] / np.linalg.norm(car.centre)
        assert elevation == pytest.approx(np.arcsin(down))
    # A car that comes towards the camera: its front, a little from above.
    azimuth, elevation = viewpoint(car_at([0.0, 1.7, 20.0], np.pi / 2))
    assert np.cos(azimuth) == pytest.approx(1)
    assert elevation > 0


def label_line(
    kind: str = "Car",
    truncation: float = 0.0,
    occlusion: int = 0,
    box: str = "400 150 640 300",
    location: str = "1.0 1.65 8.0",
) -> str:
    return f"{kind} {truncation} {occlusion} 0.1 {box} 1.5 1.6 3.9 {location} 1.2"


@pytest.fixture
def kitti(tmp_path) -> Path:
    """KITTI's layout: two frames, with a car of each kind that is kept and each that is not."""
    root = tmp_path / "training"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    lines_of = {
        "000000": [
            label_line("Pedestrian"),
            label_line(),
            label_line(occlusion=1),
            label_line(occlusion=3),
            label_line("DontCare", -1, -1),
        ],
        "000001": [
            label_line(truncation=0.2),
            label_line(box="10 150 640 250"),
            label_line(occlusion=2, location="-3.0 1.65 20.0"),
            label_line(location="0.5 1.6 6.4"),
        ],
    }
    image = np.full((375, 1242, 3), 90, np.uint8)
    image[300:320, 640:660] = 255
    for frame, lines in lines_of.items():
        (root / f"label_2/{frame}.txt").write_text("\n".join(lines) + "\n")
        (root / f"calib/{frame}.txt").write_text(PROJECTION)
        Image.fromarray(image).save(root / f"image_2/{frame}.png")
    return root


def test_kitti_becomes_three_test_sets(kitti, code, tmp_path):
    out = tmp_path / "KITTI"
    arguments = ("prepare_kitti3d", "--kitti", kitti, "--out", out, "--workers", 1)
    arguments += ("--geometry", "exact")
    line = code(*arguments).stdout.splitlines()[-1]
    assert "2 fully_visible, 1 partly_occluded, 1 largely_occluded of 2 frames" in line
    assert "1 skipped: occlusion unknown; 1 skipped: too small; 1 skipped: truncated" in line
    visible = PreparedSet(out / "fully_visible")
    assert visible.mesh_list("single", "car", 1).read_text() == "000000_1.JPEG\n000001_3.JPEG\n"
    assert (visible.lists("car") / "car_fully_visible_folder1.txt").read_text() == "000001_3.JPEG\n"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert code(*arguments).stdout.splitlines()[-1] == line
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "other options" in code(*arguments, "--minimum-side", 50, check=False).stderr


def test_a_kitti_car_is_cropped_around_its_projected_centre(kitti, tmp_path):
    prepare_kitti3d(KittiOptions(kitti, tmp_path / "KITTI", geometry="exact", workers="1"))
    visible = PreparedSet(tmp_path / "KITTI/fully_visible")
    stored = load_annotation(visible.annotation("car", "000000_1"))
    x, y, z = 1.0, 1.65 - 0.75, 8.0
    depth = z + 0.003
    pixel_x = (700 * x + 600 * z + 40) / depth
    pixel_y = (700 * y + 170 * z + 0.2) / depth
    np.testing.assert_allclose(stored.pose.principal_xy, [pixel_x, pixel_y])
    distance = np.linalg.norm([1.0, 1.65, 8.0])
    assert stored.pose.distance == pytest.approx(distance)
    assert stored.crop_scale == pytest.approx(distance / 6.4)

    # The white square of the picture lies where the annotation says.
    crop = np.array(Image.open(visible.image("car", "000000_1")))
    assert crop.shape == (256, 672, 3)
    rows, cols = np.nonzero(crop[..., 0] > 170)
    centre = [rows.mean() + 0.5, cols.mean() + 0.5]
    expected = np.array([310, 650]) * stored.crop_scale + stored.crop_offset
    np.testing.assert_allclose(centre, expected, atol=0.5)


@pytest.mark.parametrize(
    "text", ["Car 0 0 1 2 3\n", "Car x 0 0.1 400 150 640 300 1.5 1.6 3.9 1 1.65 8 1.2\n"]
)
def test_a_line_that_is_not_a_kitti_label_is_named(kitti, code, tmp_path, text):
    (kitti / "label_2/000000.txt").write_text(text)
    arguments = ("--kitti", kitti, "--out", tmp_path / "out", "--workers", 1)
    done = code("prepare_kitti3d", *arguments, check=False)
    assert done.returncode == 1
    assert "000000.txt, line 1: not a KITTI label" in done.stderr
    assert "Traceback" not in done.stderr


def test_crops_of_kitti_that_broke_off_are_not_mixed_with_those_of_other_settings(
    kitti, code, tmp_path
):
    path = kitti / "calib/000001.txt"
    arguments = ("prepare_kitti3d", "--kitti", kitti, "--out", tmp_path / "out", "--workers", 1)
    path.write_text("P0: 0\nP2: 700 0 600 40 0 700 170 0.2 0 0 1\n")
    done = code(*arguments, check=False)
    assert done.returncode == 1
    assert "000001.txt, line 2: P2 is not 12 numbers" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("out/fully_visible/images/car/*.JPEG"))
    path.write_text(PROJECTION)
    done = code(*arguments, "--geometry", "exact", check=False)
    assert done.returncode == 1
    assert "fully_visible was prepared with other options" in done.stderr
    assert "2 fully_visible, 1 partly_occluded, 1 largely_occluded" in code(*arguments).stdout


def test_a_picture_that_cannot_be_read_costs_its_own_objects_alone(kitti, tmp_path, capsys):
    (kitti / "image_2/000000.png").write_bytes(b"no picture")
    prepare_kitti3d(KittiOptions(kitti, tmp_path / "out", workers="1"))
    line = capsys.readouterr().out.splitlines()[-1]
    assert "1 fully_visible, 0 partly_occluded, 1 largely_occluded of 2 frames" in line
    assert "2 skipped: unreadable picture" in line
    skipped = PreparedSet(tmp_path / "out/fully_visible").skipped("car").read_text()
    assert skipped.startswith("000000_1: unreadable picture (")
    assert "000000.png: not a picture of the kinds" in skipped


def test_kitti_s_pictures_may_be_jpeg_and_its_texts_from_windows(kitti, tmp_path, capsys):
    for path in (kitti / "image_2").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    for path in [*(kitti / "label_2").iterdir(), *(kitti / "calib").iterdir()]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    prepare_kitti3d(KittiOptions(kitti, tmp_path / "out", workers="1"))
    assert "2 fully_visible, 1 partly_occluded" in capsys.readouterr().out


def test_a_class_that_kitti_calls_otherwise_is_suggested(kitti, tmp_path):
    with pytest.raises(ValueError, match="no car of .* did you mean Car"):
        prepare_kitti3d(KittiOptions(kitti, tmp_path / "out", kind="car", workers="1"))
