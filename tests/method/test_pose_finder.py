"""Poses in photographs: crops and boxes, planted poses, the vote of several answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.photographs import MESH, TRUTH, degrees_off, make_colour_finder, planted
from neural_mesh.geometry import cameras
from neural_mesh.geometry.cameras import Pose
from neural_mesh.photographs.evidence import EVIDENCE, mesh_coverage
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.photographs.framing import (
    Framing,
    check_box,
    cut_crop,
    frame_box,
    outlines_of,
    reference_framing,
)
from neural_mesh.photographs.poses import Candidates, PhotographPose
from neural_mesh.storage.pictures import Photograph, photograph_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def colour_finder() -> PoseFinder:
    return make_colour_finder()


# ---- crops and boxes ----


@pytest.mark.parametrize(
    "box, reason",
    [((50, 10, 20, 40), "empty"), ((100, 0, 200, 40), "outside"), ((1, 2, 3), "four numbers")],
)
def test_a_box_that_shows_nothing_is_refused(box, reason):
    with pytest.raises(ValueError, match=reason):
        check_box(box, (60, 90))


@pytest.mark.parametrize("reduction", [1, 2])
def test_what_falls_on_a_crop_pixel_is_found_again_in_the_photograph(reduction):
    pixels = np.zeros((200 // reduction, 300 // reduction, 3), np.uint8)
    rows = slice(80 // reduction, 84 // reduction)
    columns = slice(120 // reduction, 124 // reduction)
    pixels[rows, columns] = 255  # middle at (122, 82)
    framing = Framing(4.0, (130.0, 90.0))
    crop = cut_crop(Photograph(pixels, (200, 300), reduction), framing, (256, 672), 1.0)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    middle = framing.to_photograph([columns.mean() + 0.5, rows.mean() + 0.5], (256, 672))
    np.testing.assert_allclose(middle, [122, 82], atol=0.15)


def test_the_camera_matrix_projects_as_pascal3d_does():
    placed = Pose(2.2, 0.3, -0.1, 4.5, (320.0, 190.0))
    pose = PhotographPose(placed, 2100.0, 0.5, 1, ())
    points = np.column_stack([MESH.vertices, np.ones(len(MESH.vertices))])
    homogeneous = points @ pose.camera_matrix.T
    expected = cameras.project(MESH.vertices, placed, 2100.0)
    np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], expected, atol=1e-9)
    assert (homogeneous[:, 2] > 0).all()
    assert pose.pascal3d_distance == pytest.approx(4.5 * 3000 / 2100)


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
    around = angles[0] + [[0.2, 0, 0], [-0.2, 0, 0], [2.0, 0, 0]]
    rotations = cameras.pascal_cam_from_object(*around.T)
    mean = cameras.mean_rotation(rotations, [1, 1, 0])
    np.testing.assert_allclose(mean, rotation[0], atol=1e-9)
    weighted = cameras.mean_rotation(rotation, random.random(50))
    assert np.linalg.det(weighted) == pytest.approx(1)


# ---- planted poses ----


def test_a_planted_pose_is_found_in_its_box_and_in_the_whole_picture(colour_finder):
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    for where in (box, None):
        pose = colour_finder.find(image, where)
        assert degrees_off(pose.pose, TRUTH) < 6
        np.testing.assert_allclose(pose.pose.principal_xy, (310, 200), atol=20)
        assert pose.focal_px / pose.pose.distance == pytest.approx(1500 / 5, rel=0.12)
        assert pose.confidence is None
        assert len(pose.evidence) == len(EVIDENCE)
        assert 0 < pose.score < 1


def test_a_file_a_picture_and_an_array_have_the_same_pose(colour_finder, tmp_path):
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    path = tmp_path / "phone.png"
    Image.fromarray(np.rot90(image).copy()).save(path, exif=exif)
    expected = colour_finder.find(image, box)
    for same in (path, str(path), Image.open(path)):
        pose = colour_finder.find(same, box)
        assert pose == expected
        picture = colour_finder.draw(same, pose)
        np.testing.assert_array_equal(picture, colour_finder.draw(image, pose))
    with pytest.raises(ValueError, match="four numbers"):
        colour_finder.find(path, box[:3])
    with pytest.raises(FileNotFoundError, match="photograph not found"):
        colour_finder.find(tmp_path / "absent.jpg")


@pytest.mark.parametrize(
    "focal, principal_xy",
    [(1500.0, (420.0, 220.0)), (2000.0, (230.0, 180.0)), (2700.0, (320.0, 215.0))],
)
def test_an_object_of_any_size_and_place_is_found_without_a_box(colour_finder, focal, principal_xy):
    image, _ = planted(TRUTH, focal, principal_xy, (400, 640))
    pose = colour_finder.find(image)
    assert degrees_off(pose.pose, TRUTH) < 6
    np.testing.assert_allclose(pose.pose.principal_xy, principal_xy, atol=15)
    assert pose.focal_px / pose.pose.distance == pytest.approx(focal / 5, rel=0.12)


def test_a_crop_that_fits_best_but_stands_alone_is_outvoted(colour_finder):
    """Five answers: three within 8 degrees, one of them placed by the last round, and two far off
    with the lowest losses."""
    azimuth = np.radians([130.0, 30.0, 126.0, 250.0, 134.0])
    elevation = np.full(5, 0.2)
    place = np.tile([336.0, 128.0], (5, 1)) + np.arange(5)[:, None]
    candidates = Candidates(
        Pose(azimuth, elevation, np.zeros(5), np.full(5, 5.0), place),
        loss=np.array([0.5, 0.4, 0.52, 0.45, 0.51]),
        mesh=np.ones(5, int),
        view_losses=np.tile([0.5, 0.6], (5, 1)),
        views=cameras.pascal_cam_from_object(np.radians([130.0, 300.0]), 0.2, 0.0),
    )
    framings = [Framing(2.0, (100.0 * k, 50.0)) for k in range(5)]
    pose = colour_finder._agree(candidates, framings, np.arange(5))
    assert degrees_off(pose.pose, replace(TRUTH, elevation=0.2, theta=0.0)) < 1
    # place and score are of the last answer that agrees
    assert pose.pose.principal_xy == (402.0, 52.0)
    assert pose.score == pytest.approx(0.49)
    similarity, margin, agreement = pose.evidence
    last = candidates.pose[4]
    in_cells = replace(last, principal_xy=last.principal_xy / 8)
    share = mesh_coverage(MESH, colour_finder.camera, in_cells)
    assert 0.5 < share < 0.8
    assert (similarity, margin) == pytest.approx((0.49 / share, 0.2))
    assert 0.4 < agreement < 0.7


def test_several_objects_at_a_time_are_what_they_are_alone(colour_finder):
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    other, other_box = planted(replace(TRUTH, azimuth=1.0), 1200.0, (300.0, 210.0), (420, 600))
    items = [(image, box), (other, None), (other, other_box)]
    together = colour_finder.find_all([(photograph_of(each), where) for each, where in items])
    for pose, (each, where) in zip(together, items, strict=True):
        alone = colour_finder.find(each, where)
        np.testing.assert_allclose(pose.pose.angles[:2], alone.pose.angles[:2], atol=1e-6)
        np.testing.assert_allclose(pose.score, alone.score, atol=1e-6)


def test_the_route_of_the_reference_crops_and_starts_as_it_does(colour_finder):
    framing = reference_framing((400, 640), 435.0, 30.0)
    assert framing.scale == 435 / 640
    assert framing.centre_xy == (320.0, 200 + 30 * 640 / 435)
    upright = replace(TRUTH, theta=0.0)
    image, _ = planted(upright, 3000 / framing.scale, framing.centre_xy, (400, 640))
    pose = colour_finder.find_as_reference([photograph_of(image)])[0]
    assert degrees_off(pose.pose, upright) < 6


def test_an_overlay_lies_over_the_object(colour_finder):
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    pose = colour_finder.find(image, box)
    picture = colour_finder.draw(image, pose)
    changed = np.abs(picture.astype(int) - image).sum(-1) > 20
    rows, columns = np.nonzero(changed)
    outline = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(outline, box, atol=25)
