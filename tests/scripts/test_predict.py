"""Anybody's photographs: files of all kinds, boxes, planted poses in photographs, resumable runs, calibrated confidence."""

from __future__ import annotations

import csv
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from helpers.project import ROOT
from neural_mesh.compare.rendering import make_scene, rasterise_poses
from neural_mesh.geometry import cameras
from neural_mesh.geometry.cameras import MapCamera, Pose
from neural_mesh.geometry.meshes import CuboidGrid, cuboid_mesh
from neural_mesh.machine import console
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.photographs import calibration as confidence
from neural_mesh.photographs import finder as photographs
from neural_mesh.photographs.finder import (
    EVIDENCE,
    Framing,
    PhotographPose,
    PoseFinder,
    frame_box,
    outlines_of,
)
from neural_mesh.pictures.drawing import camera_of_pose
from neural_mesh.settings import FIXED_RECIPE, PhotographConfig, TrainConfig
from neural_mesh.solve.model import Model
from neural_mesh.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.pictures import Photograph, photograph_of, read_photograph
from neural_mesh.storage.records import Annotation, save_annotation
from neural_mesh.training.trainer import hold_out

MESH = cuboid_mesh(
    CuboidGrid(np.array([-0.18, -0.45, -0.15]), np.array([0.18, 0.45, 0.15]), (6, 14, 5))
)
TRUTH = Pose(np.radians(130.0), np.radians(12.0), np.radians(4.0), 5.0)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- pictures of all kinds ----


def gradient(height: int = 60, width: int = 90) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([40 + columns * 2, 50 + rows * 3, np.full_like(rows, 90)], -1).astype(np.uint8)


def save_kind(path: Path, kind: str) -> np.ndarray:
    """Write the gradient in some mode; returns what should be read."""
    expected, image = gradient(), Image.fromarray(gradient())
    grey = np.asarray(image.convert("L"))
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = (
            6  # the camera was held on its side: the stored picture has to be turned clockwise
        )
        Image.fromarray(np.rot90(gradient()).copy()).save(path, exif=exif)
    elif kind == "16 bit":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif kind == "32 bit float":
        Image.fromarray((grey / 255).astype(np.float32)).save(path)
    elif kind == "transparent":
        alpha = np.full(expected.shape[:2], 255, np.uint8)
        alpha[:, :30] = 0
        expected[:, :30] = 0
        Image.fromarray(np.dstack([gradient(), alpha])).save(path)
    else:
        image = image.convert(
            {"grey": "L", "palette": "P", "cmyk": "CMYK", "rgb": "RGB", "black and white": "1"}[
                kind
            ]
        )
        image.save(path)
        expected = np.asarray(image.convert("RGB"))
    if kind in ("16 bit", "32 bit float"):
        expected = np.repeat(grey[..., None], 3, 2)
    return expected


@pytest.mark.parametrize(
    "kind, suffix, tolerance",
    [
        ("rgb", "png", 0),
        ("turned", "jpg", 6),
        ("grey", "png", 0),
        ("16 bit", "png", 1),
        ("32 bit float", "tiff", 1),
        ("transparent", "png", 0),
        ("palette", "png", 0),
        ("cmyk", "jpg", 6),
        ("black and white", "png", 0),
    ],
)
def test_every_kind_of_picture_becomes_upright_rgb(tmp_path, kind, suffix, tolerance):
    expected = save_kind(tmp_path / f"a.{suffix}", kind)
    photograph = read_photograph(tmp_path / f"a.{suffix}")
    assert photograph.pixels.dtype == np.uint8 and photograph.pixels.shape == expected.shape
    assert photograph.size_hw == (60, 90) and photograph.reduction == 1
    assert np.abs(photograph.pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_pictures_are_reduced_but_not_what_is_in_a_box(tmp_path, suffix):
    large = np.asarray(Image.fromarray(gradient()).resize((1205, 803)))
    Image.fromarray(large).save(tmp_path / f"a.{suffix}", quality=95)
    reduced = read_photograph(tmp_path / f"a.{suffix}", wanted_side=300)
    assert (
        reduced.reduction == 4
        and reduced.size_hw == (803, 1205)
        and reduced.pixels.shape == (201, 302, 3)
    )
    assert (
        np.abs(reduced.pixels[100, 150].astype(int) - large[400:404, 600:604].mean((0, 1))).max()
        < 4
    )
    assert (
        read_photograph(tmp_path / f"a.{suffix}", [(0, 0, 500, 400)], wanted_side=300).reduction
        == 1
    )


def test_unusable_files_are_told_apart_in_one_sentence(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "whole.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "script.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 60\n%%EndComments\nshowpage\n"
    )
    Image.new("RGB", (5, 300)).save(tmp_path / "tiny.png")
    Image.new("1", (14000, 14000)).save(tmp_path / "huge.png")
    for name, reason in (
        ("torn.jpg", "broken"),
        ("text.jpg", "not a picture"),
        ("empty.png", "not a picture"),
        ("script.jpg", "not a picture of the kinds BMP, GIF, JPEG"),
        ("tiny.png", "5 x 300 pixels, a pose needs at least 16"),
        ("huge.png", "make it smaller"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            read_photograph(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="photograph not found"):
        read_photograph(tmp_path / "absent.jpg")


def test_arrays_of_all_types_are_photographs():
    image = gradient()
    opaque = np.dstack([image, np.full((60, 90), 255, np.uint8)])
    for array in (image, image.astype(np.float32) / 255, image.astype(np.uint16) * 257, opaque):
        np.testing.assert_allclose(photograph_of(array).pixels.astype(int), image, atol=1)
    assert photograph_of(image[..., :1]).pixels.shape == (60, 90, 3)
    for wrong in (image[0], image[..., :2], np.zeros((8, 90, 3))):
        with pytest.raises(ValueError, match="array|pixels"):
            photograph_of(wrong)


@pytest.mark.parametrize(
    "box, reason",
    [((50, 10, 20, 40), "empty"), ((100, 0, 200, 40), "outside"), ((1, 2, 3), "four numbers")],
)
def test_a_box_that_shows_nothing_is_refused(box, reason):
    with pytest.raises(ValueError, match=reason):
        photographs.check_box(box, (60, 90))


# ---- geometry ----


@pytest.mark.parametrize("reduction", [1, 2])
def test_what_falls_on_a_crop_pixel_is_found_again_in_the_photograph(reduction):
    pixels = np.zeros((200 // reduction, 300 // reduction, 3), np.uint8)
    pixels[80 // reduction : 84 // reduction, 120 // reduction : 124 // reduction] = (
        255  # middle at (122, 82)
    )
    framing = Framing(4.0, (130.0, 90.0))
    crop = photographs.cut(Photograph(pixels, (200, 300), reduction), framing, (256, 672), 1.0)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    found = framing.to_photograph([columns.mean() + 0.5, rows.mean() + 0.5], (256, 672))
    np.testing.assert_allclose(found, [122, 82], atol=0.15)


def test_the_camera_matrix_projects_as_pascal3d_does():
    pose = PhotographPose(2.2, 0.3, -0.1, 4.5, 2100.0, (320.0, 190.0), 0.5, 1, ())
    homogeneous = (
        np.column_stack([MESH.vertices, np.ones(len(MESH.vertices))]) @ pose.camera_matrix.T
    )
    expected = cameras.project(MESH.vertices, Pose(2.2, 0.3, -0.1, 4.5, (320.0, 190.0)), 2100.0)
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], expected, atol=1e-9)
    assert (homogeneous[:, 2] > 0).all() and pose.pascal3d_distance == pytest.approx(
        4.5 * 3000 / 2100
    )


def test_the_box_of_a_known_view_gives_back_scale_and_place():
    placed = replace(TRUTH, principal_xy=(400.0, 300.0))
    points = cameras.project(MESH.vertices, placed, 1800.0)
    box = [*points.min(0), *points.max(0)]
    framing = frame_box(outlines_of(MESH, *TRUTH.angles), box, 1.0)
    assert framing.scale == pytest.approx(3000 / 1800, rel=1e-6)
    np.testing.assert_allclose(framing.centre_xy, [400, 300], atol=1e-6)


def test_angles_come_back_from_their_rotation_and_from_the_mean_of_such():
    random = np.random.default_rng(3)
    angles = random.uniform([0, -1.5, -3.1], [2 * np.pi, 1.5, 3.1], (50, 3))
    rotation = cameras.pascal_cam_from_object(*angles.T)
    np.testing.assert_allclose(np.stack(cameras.angles_of_rotation(rotation), 1), angles, atol=1e-9)
    around = cameras.pascal_cam_from_object(
        *(angles[0] + [[0.2, 0, 0], [-0.2, 0, 0], [2.0, 0, 0]]).T
    )
    np.testing.assert_allclose(cameras.mean_rotation(around, [1, 1, 0]), rotation[0], atol=1e-9)
    assert np.linalg.det(cameras.mean_rotation(rotation, random.random(50))) == pytest.approx(1)


# ---- planted poses ----


class ColourModel(Model):
    """A network that sees colours: the features of a cell are its mean colour, less grey."""

    map_hw = (32, 84)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(
            torch.nn.functional.avg_pool2d(images.float() - 110, 8), dim=1
        )


def vertex_colours() -> np.ndarray:
    waves = MESH.vertices @ np.array([[7.0, 2.0, -3.0], [1.0, 6.0, 4.0], [-9.0, 5.0, 11.0]])
    return np.clip(np.cos(waves + [0.3, 1.9, 4.0]) * 100 + 110, 0, 255)


def planted(
    pose: Pose, focal: float, principal_xy: tuple[float, float], size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture with the coloured cuboid in a pose, and the cuboid's box."""
    centre, rotation = camera_of_pose(pose)
    scene = make_scene(MESH, MapCamera(focal, principal_xy, size_hw))
    face, _, bary = (part[0] for part in rasterise_poses(scene, centre[None], rotation[None]))
    colour = (vertex_colours()[MESH.faces[face]] * bary[..., None]).sum(-2)
    rows, columns = np.nonzero(face >= 0)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    return np.where((face >= 0)[..., None], colour, 105).astype(np.uint8), box


@pytest.fixture(scope="module")
def colour_finder() -> PoseFinder:
    config = TrainConfig(category="car", num_clutter_image=1, num_clutter_group=4, mesh_d="single")
    bank = torch.nn.functional.normalize(torch.from_numpy(vertex_colours() - 110).float(), dim=1)
    memory = torch.cat([bank, torch.full((4, 3), -(3**-0.5))])
    model = ColourModel(
        Checkpoint({}, [memory], [MESH], config, 0, "colours", data="others"),
        None,
        torch.device("cpu"),
    )
    return PoseFinder(model, PhotographConfig(box_fill=1.0, box_drop=0.0))


def degrees_off(pose: PhotographPose, truth: Pose) -> float:
    rotations = [
        cameras.pascal_cam_from_object(p.azimuth, p.elevation, p.theta) for p in (pose, truth)
    ]
    return float(np.degrees(cameras.geodesic_distance(*rotations)))


def test_a_planted_pose_is_found_in_its_box_and_in_the_whole_picture(colour_finder):
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    for where in (box, None):
        pose = colour_finder.find(image, where)
        assert degrees_off(pose, TRUTH) < 6
        np.testing.assert_allclose(pose.principal_xy, (310, 200), atol=20)
        assert pose.focal_px / pose.distance == pytest.approx(1500 / 5, rel=0.12)
        assert (
            pose.confidence is None and len(pose.evidence) == len(EVIDENCE) and 0 < pose.score < 1
        )


@pytest.mark.parametrize(
    "focal, principal_xy",
    [(1500.0, (420.0, 220.0)), (2000.0, (230.0, 180.0)), (2700.0, (320.0, 215.0))],
)
def test_an_object_of_any_size_and_place_is_found_without_a_box(colour_finder, focal, principal_xy):
    image, _ = planted(TRUTH, focal, principal_xy, (400, 640))
    pose = colour_finder.find(image)
    assert degrees_off(pose, TRUTH) < 6
    np.testing.assert_allclose(pose.principal_xy, principal_xy, atol=15)
    assert pose.focal_px / pose.distance == pytest.approx(focal / 5, rel=0.12)


def test_a_crop_that_fits_best_but_stands_alone_is_outvoted(colour_finder):
    """Five answers: three within 8 degrees, one of them placed by the last round, and two far off with the lowest losses."""
    azimuth = np.radians([130.0, 30.0, 126.0, 250.0, 134.0])
    loss, place = (
        np.array([0.5, 0.4, 0.52, 0.45, 0.51]),
        np.tile([336.0, 128.0], (5, 1)) + np.arange(5)[:, None],
    )
    views = np.tile(
        cameras.pascal_cam_from_object(np.radians([130.0, 300.0]), 0.2, 0.0), (5, 1, 1, 1)
    )
    found = photographs._Found(
        azimuth,
        np.full(5, 0.2),
        np.zeros(5),
        np.full(5, 5.0),
        loss,
        place,
        np.ones(5, int),
        np.tile([0.5, 0.6], (5, 1)),
        views,
    )
    used = [Framing(2.0, (100.0 * k, 50.0)) for k in range(5)]
    pose = colour_finder._agree(found, used, np.arange(5)[:, None])
    assert degrees_off(pose, replace(TRUTH, elevation=0.2, theta=0.0)) < 1
    assert pose.principal_xy == (402.0, 52.0) and pose.score == pytest.approx(0.49), (
        "of the last answer that agrees"
    )
    similarity, margin, agreement = pose.evidence
    share = colour_finder._coverage(found, 4)
    assert (
        0.5 < share < 0.8
        and (similarity, margin) == pytest.approx((0.49 / share, 0.2))
        and 0.4 < agreement < 0.7
    )


def test_several_objects_at_a_time_are_what_they_are_alone(colour_finder):
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    other, other_box = planted(replace(TRUTH, azimuth=1.0), 1200.0, (300.0, 210.0), (420, 600))
    together = colour_finder.find_all(
        [
            (photograph_of(image), box),
            (photograph_of(other), None),
            (photograph_of(other), other_box),
        ]
    )
    alone = [
        colour_finder.find(image, box),
        colour_finder.find(other),
        colour_finder.find(other, other_box),
    ]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(
            [a.azimuth, a.elevation, a.score], [b.azimuth, b.elevation, b.score], atol=1e-6
        )


def test_the_route_of_the_reference_crops_and_starts_as_it_does(colour_finder):
    framing = photographs.reference_framing((400, 640), 435.0, 30.0)
    assert framing.scale == 435 / 640 and framing.centre_xy == (320.0, 200 + 30 * 640 / 435)
    image, _ = planted(
        replace(TRUTH, theta=0.0), 3000 / framing.scale, framing.centre_xy, (400, 640)
    )
    pose = colour_finder.find_as_reference([photograph_of(image)])[0]
    assert degrees_off(pose, replace(TRUTH, theta=0.0)) < 6


def test_an_overlay_lies_over_the_object(colour_finder):
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    pose = colour_finder.find(image, box)
    picture = colour_finder.draw(image, pose)
    changed = np.abs(picture.astype(int) - image).sum(-1) > 20
    rows, columns = np.nonzero(changed)
    np.testing.assert_allclose([columns.min(), rows.min(), columns.max(), rows.max()], box, atol=25)


# ---- confidence ----


def test_confidence_is_calibrated_where_the_evidence_is_logistic():
    random = np.random.default_rng(0)
    evidence = random.standard_normal((4000, 2)) * [3.0, 0.1] + [10.0, 0.0]
    chance = 1 / (1 + np.exp(-(1.2 * (evidence[:, 0] - 10) / 3 + 0.4)))
    right = random.random(4000) < chance
    made = confidence.calibrate(evidence[:2000], right[:2000], ("a", "b"), {}, {})
    said = made.confidence(evidence[2000:])
    assert np.abs(said - chance[2000:]).mean() < 0.03
    assert confidence.calibration_error(said, right[2000:]) < 0.05 and made.calibration_error < 0.06
    assert (
        confidence.brier_score(said, right[2000:])
        < confidence.brier_score(np.full(2000, right.mean()), right[2000:]) - 0.02
    )


def test_scores_of_confidences_by_hand():
    assert confidence.brier_score([0.9, 0.2], [1, 0]) == pytest.approx((0.01 + 0.04) / 2)
    assert confidence.calibration_error([0.95, 0.95, 0.15], [1, 0, 0]) == pytest.approx(
        (2 * 0.45 + 0.15) / 3
    )
    assert confidence.reliability([0.95, 0.95, 0.15], [1, 0, 0]) == [
        (0.15, 0.0, 1),
        (pytest.approx(0.95), 0.5, 2),
    ]


def test_a_calibration_survives_its_file_and_says_what_is_missing(tmp_path):
    random = np.random.default_rng(1)
    evidence = random.standard_normal((60, 3))
    right = evidence[:, 0] + random.standard_normal(60) > 0
    made = confidence.calibrate(evidence, right, ("a", "b", "c"), {"checkpoint": "x"}, {"seed": 0})
    confidence.save_calibration(tmp_path / "c.json", made)
    assert confidence.load_calibration(tmp_path / "c.json") == made
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json: not a calibration"):
        confidence.load_calibration(tmp_path / "c.json")
    with pytest.raises(ValueError, match="all of 60 poses are right"):
        confidence.calibrate(evidence, np.ones(60), ("a", "b", "c"), {}, {})
    with pytest.raises(ValueError, match="at least 20"):
        confidence.calibrate(evidence[:5], np.ones(5), ("a", "b", "c"), {}, {})


def test_calibration_on_a_prepared_set_tells_right_from_wrong(colour_finder, tmp_path, capsys):
    """Crops that show the annotated pose and crops that show nothing: their confidences differ afterwards."""
    root = PreparedSet(tmp_path / "set")
    names = [f"image{i:02d}" for i in range(24)]
    for i, name in enumerate(names):
        truth = replace(TRUTH, azimuth=0.25 * i)
        crop, box = planted(truth, 3000.0, (336.0, 128.0), (256, 672))
        if i % 3 == 0:
            crop = np.random.default_rng(i).integers(60, 160, crop.shape).astype(np.uint8)
        save_annotation(
            root.annotation("car", name),
            Annotation(
                name,
                np.zeros(6),
                np.zeros(6),
                np.array([box[1], box[3], box[0], box[2], 256, 672]),
                np.zeros((0, 2)),
                np.zeros(0),
                replace(truth, principal_xy=np.array([336.0, 128.0])),
                1.0,
                3000.0,
                256,
                672,
                1,
                box,
                "exact",
                1.0,
                np.zeros(2),
            ),
        )
        root.image("car", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(root.image("car", name), quality=95)
    root.mesh_list("single", "car", 1).parent.mkdir(parents=True)
    root.source("car").parent.mkdir(parents=True)
    root.source("car").write_text("{}")
    root.mesh_list("single", "car", 1).write_text("".join(f"{name}.JPEG\n" for name in names))
    file = tmp_path / "car.confidence.json"
    args = Namespace(
        calibrate=root.root,
        calibration_images=100,
        calibration_patches="auto",
        batch_size=8,
        seed=0,
        confidence=file,
    )
    finder = PoseFinder(colour_finder.model, replace(colour_finder.config, picture_zooms=(1.0,)))
    predict.calibrate(args, finder)
    assert (
        "calibrated on 24 images of a set not trained on (66.7% right within pi/6)"
        in capsys.readouterr().out
    )
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    assert not colour_finder.use_calibration(file) and colour_finder.calibration is None, (
        "made with other settings"
    )
    assert finder.use_calibration(file)
    noise = np.random.default_rng(5).integers(60, 160, image.shape).astype(np.uint8)
    assert finder.find(image, box).confidence > 0.8 > 0.4 > finder.find(noise, box).confidence


@pytest.mark.parametrize("covered", [0.0, 0.5])
def test_a_calibration_hides_as_much_of_an_object_as_the_occlusion_levels(covered, monkeypatch):
    monkeypatch.setattr(predict, "CALIBRATION_NOISE", 0.0)
    monkeypatch.setattr(predict, "change_colour", lambda image, random: image)
    crop, other, box = (
        np.full((256, 672, 3), 90, np.uint8),
        np.full((256, 672, 3), 200, np.uint8),
        np.array([100.0, 60, 500, 200]),
    )
    hidden = (predict.disturbed(crop, other, box, covered, np.random.default_rng(0)) == 200)[
        60:200, 100:500
    ].mean()
    assert covered <= hidden <= covered + 0.45 and (covered > 0 or hidden == 0)


def test_a_calibration_uses_what_training_held_out(checkpoint):
    names, loaded = [f"n{i:02d}" for i in range(20)], replace(load_checkpoint(checkpoint), data="d")
    validated = replace(
        loaded, config=replace(loaded.config, validate_every=5, validation_share=0.2)
    )
    held = hold_out([names[:7], names[7:]], 0.2, validated.config.seed)[1]
    assert (
        predict.calibration_names(names, validated, "d")
        == (sorted(sum(held, [])), predict.HELD_OUT)
        and len(sum(held, [])) == 4
    )
    for network, data, used in (
        (loaded, "d", predict.TRAINED),
        (validated, "e", predict.OTHERS),
        (validated, "", predict.UNKNOWN),
    ):
        assert predict.calibration_names(names, network, data) == (names, used)


# ---- the program ----


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
    memory = torch.nn.functional.normalize(
        torch.randn(len(MESH.vertices) + config.num_clutter, 128), dim=1
    )
    path = tmp_path_factory.mktemp("network") / "saved_model_car_last.pth"
    save_checkpoint(
        path, Checkpoint(FeatureNet("resnet18fpn").state_dict(), [memory], [MESH], config, 1)
    )
    return path


@pytest.fixture
def run(checkpoint, monkeypatch, capsys):
    """run(*arguments) -> exit status, what is printed, and the messages, of predict.py on the CPU."""

    def run_predict(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(
            sys,
            "argv",
            ["predict.py", "--checkpoint", str(checkpoint), "--gpus", "", *map(str, arguments)],
        )
        try:
            console.run_main(predict.main)
            status = 0
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_predict


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two photographs, one of them below, a broken one, and a text."""
    (tmp_path / "photos/below").mkdir(parents=True)
    Image.fromarray(gradient(120, 200)).save(tmp_path / "photos/one.jpg")
    Image.fromarray(gradient(90, 160)).save(tmp_path / "photos/below/two.png")
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "photos/notes.txt").write_text("not looked at")
    return tmp_path / "photos"


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "poses.jsonl").read_text().splitlines()]


def test_a_folder_gives_poses_pictures_and_a_count_and_goes_on_after_a_kill(run, folder, tmp_path):
    out = tmp_path / "results"
    (tmp_path / "boxes.csv").write_text(
        "file,x0,y0,x1,y1\none.jpg,20,30,150,100\none.jpg,5,5,90,80\n"
    )
    arguments = (folder, "--boxes", tmp_path / "boxes.csv", "--out", out, "--batch-size", 2)
    status, printed, messages = run(*arguments)
    assert (
        status == 0
        and "3 poses of 2 photographs (0 of them from earlier runs, 1 could not be used, see failures.txt)"
        in printed
    )
    assert (
        "confidence is not given" in printed
        and "broken.jpg" in messages
        and "broken.jpg" in (out / "failures.txt").read_text()
    )
    records, rows = lines_of(out), list(csv.DictReader(open(out / "poses.csv")))
    assert [(r["photo"], r["object"], r["box"]) for r in records] == [
        ("below/two.png", 0, None),
        ("one.jpg", 0, [20, 30, 150, 100]),
        ("one.jpg", 1, [5, 5, 90, 80]),
    ]
    assert np.shape(records[0]["camera_matrix"]) == (3, 4) and records[0]["confidence"] is None
    assert np.degrees(records[1]["azimuth"]) % 360 == pytest.approx(
        float(rows[1]["azimuth_deg"]), abs=1e-3
    )
    assert (
        Image.open(out / "overlays/one.jpg.jpg").size == (200, 120)
        and (out / "overlays/below/two.png.jpg").is_file()
    )

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    status, printed, _ = run(*arguments)
    assert status == 0 and "(2 of them from earlier runs" in printed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before

    text = (out / "poses.jsonl").read_text()
    (out / "poses.jsonl").write_text(
        text[: text.rindex('"score"')]
    )  # as a kill in the middle of the last line leaves it
    status, printed, _ = run(*arguments)
    assert (
        status == 0
        and "(1 of them from earlier runs" in printed
        and (out / "poses.jsonl").read_text() == text
    )

    status, printed, _ = run(
        folder / "below/two.png", "--out", out, "--boxes", tmp_path / "boxes.csv"
    )
    assert status == 0 and "1 pose of 1 photograph" in printed and len(lines_of(out)) == 4, (
        "what other runs found is kept"
    )

    status, _, messages = run(*arguments, "--solver", "paper")
    assert status == 1 and "holds results of other settings (photograph, solve)" in messages


def test_a_photograph_that_fails_does_not_stop_the_others(run, folder, tmp_path, monkeypatch):
    find_all, asked = PoseFinder.find_all, []

    def sometimes(finder, items):
        asked.append(len(items))
        if any(photograph.size_hw == (120, 200) for photograph, _ in items):
            raise RuntimeError("out of luck\nat length")
        return find_all(finder, items)

    monkeypatch.setattr(PoseFinder, "find_all", sometimes)
    Image.fromarray(gradient(100, 180)).save(folder / "three.jpg")
    (tmp_path / "boxes.csv").write_text(
        "below/two.png,10,10,150,80\none.jpg,20,30,150,100\nthree.jpg,20,30,9000,100\n"
    )
    status, printed, messages = run(
        folder, "--boxes", tmp_path / "boxes.csv", "--overlays", "false", "--out", tmp_path / "r"
    )
    assert (
        status == 0
        and "1 pose of 1 photograph (0 of them from earlier runs, 3 could not be used" in printed
        and asked == [2, 1, 1]
    )
    assert "one.jpg: no pose could be found (out of luck)" in messages
    assert (
        "box 20 30 9000 100 is more than 4 times as large as the picture of 180 x 100 pixels"
        in messages
    )
    assert [record["photo"] for record in lines_of(tmp_path / "r")] == ["below/two.png"]


def test_a_single_photograph_is_told_in_a_sentence_and_filmed(run, folder, tmp_path):
    status, printed, _ = run(
        folder / "one.jpg", "--box", 20, 30, 150, 100, "--out", tmp_path / "r", "--film"
    )
    assert status == 0 and printed.startswith("one.jpg: azimuth ")
    with Image.open(tmp_path / "r/films/one.jpg.gif") as film:
        assert film.size == (200, 120) and film.n_frames > 5


def test_the_unlabelled_route_writes_the_keys_of_the_reference(run, folder, tmp_path):
    status, _, _ = run(
        folder / "one.jpg", "--out", tmp_path / "r", "--unlabelled", "--overlays", "false"
    )
    record = lines_of(tmp_path / "r")[0]
    with np.load(tmp_path / "r/final_pred.npz") as stored:
        distance, theta, elevation, azimuth, left, up = stored["one"]
    assert status == 0 and (distance, theta, elevation, azimuth) == tuple(
        record[k] for k in ("distance", "theta", "elevation", "azimuth")
    )
    # T moves the object: its origin appears focal * T / distance away from the middle of the crop
    x, y = np.subtract(record["crop_middle_xy"], record["principal_xy"])
    assert record["focal_px"] * left / distance == pytest.approx(x) and record[
        "focal_px"
    ] * up / distance == pytest.approx(y)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("{photos}/absent.jpg",), "photograph not found"),
        (("{photos}/broken.jpg",), "no photograph could be used"),
        (("{photos}", "--box", "1", "2", "30", "40"), "--box is for one photograph, there are 3"),
        (
            ("{photos}/one.jpg", "--box", "500", "2", "600", "40"),
            "lies outside the picture of 200 x 120 pixels",
        ),
        (("{photos}/one.jpg", "--category", "chair"), "was trained on car, not on chair"),
        (("{photos}/one.jpg", "--box", "1", "2", "30", "40", "--unlabelled"), "has no boxes"),
        ((), "name photographs"),
    ],
)
def test_mistakes_get_one_clear_sentence(run, folder, tmp_path, arguments, reason):
    status, _, messages = run(
        *(a.format(photos=folder) for a in arguments), "--out", tmp_path / "r"
    )
    errors = [line for line in messages.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(errors) == 1 and reason in errors[0] and "Traceback" not in messages


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
        assert predict.read_boxes(tmp_path / name) == expected
        return
    with pytest.raises(ValueError, match=name):
        predict.read_boxes(tmp_path / name)


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
    assert (
        Image.open("overlay.png").size == (200, 120)
        and len(capsys.readouterr().out.splitlines()) == 4
    )
