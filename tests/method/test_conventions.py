"""Each sentence of docs/conventions.md, held by the test that it names."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from helpers.project import ROOT
from neural_mesh.geometry import cameras
from neural_mesh.geometry.boxes import place_crop
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.pose_error import pose_errors
from neural_mesh.photographs.finder import PhotographPose
from neural_mesh.settings import FEATURE_STRIDE, FOCAL_PX, NORMALISED_DISTANCE

FRONT = np.array([[0.0, -0.5, 0.0]])
LEFT = np.array([[0.2, 0.0, 0.0]])
TOP = np.array([[0.0, 0.0, 0.15]])
MIDDLE_XY = (320.0, 240.0)
POSES = [
    Pose(azimuth, elevation, theta, 5.0, MIDDLE_XY)
    for azimuth in (0.0, 0.7, 2.5, 4.0, 5.9)
    for elevation in (-0.4, 0.0, 0.9)
    for theta in (-0.5, 0.0, 1.2)
]


def pixel(point: np.ndarray, pose: Pose) -> np.ndarray:
    """(right, down) of a point against the principal point."""
    return cameras.project(point, pose)[0] - pose.principal_xy


def depth(point: np.ndarray, pose: Pose) -> float:
    return float((point[0] - pose.centre) @ -pose.pascal_cam_from_object[2])


def seen_from(azimuth: float, elevation: float = 0.0, theta: float = 0.0, distance: float = 5.0):
    return Pose(azimuth, elevation, theta, distance, MIDDLE_XY)


def test_every_sentence_has_its_test():
    text = (ROOT / "docs" / "conventions.md").read_text()
    named = set(re.findall(r"`([a-z0-9_]+)`", " ".join(re.findall(r"\[(`[^\]]+`)\]", text))))
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(named) > 15
    assert named == here - {"every_sentence_has_its_test", "functions_that_are_named_exist"}


@pytest.mark.parametrize(
    "name", ["angles_of_rotation", "cv_from_pascal_cam", "pt3d_extrinsics", "pose_from_pt3d"]
)
def test_functions_that_are_named_exist(name):
    assert f"`{name}`" in (ROOT / "docs" / "conventions.md").read_text()
    assert callable(getattr(cameras, name))


# ---- the object ----


def test_the_front_is_at_minus_y_and_the_left_at_plus_x():
    pose = seen_from(0.0)
    assert depth(FRONT, pose) == pytest.approx(4.5)  # nearest to a camera that looks at the front
    # Somebody who faces us has his left hand on our right.
    assert pixel(LEFT, pose)[0] > 0
    assert (
        np.cross([0, -1, 0], [0, 0, 1]) @ LEFT[0] < 0
    )  # forward x up is the right, in right-handed axes


# ---- angles and distance ----


def test_azimuth_turns_from_the_front_to_the_left():
    assert seen_from(0.0).centre == pytest.approx([0, -5, 0])
    assert seen_from(math.pi / 2).centre == pytest.approx([5, 0, 0])
    assert seen_from(math.pi).centre == pytest.approx([0, 5, 0])
    assert depth(LEFT, seen_from(math.pi / 2)) == pytest.approx(4.8)
    assert (
        pixel(FRONT, seen_from(math.pi / 2))[0] < 0
    )  # a car seen from its left drives to the left


def test_elevation_looks_down():
    pose = seen_from(0.3, elevation=0.5)
    assert pose.centre[2] > 0
    assert depth(TOP, pose) < depth(-TOP, pose)


def test_theta_turns_the_picture_counter_clockwise():
    right, down = pixel(TOP, seen_from(0.0, theta=0.3))
    assert pixel(TOP, seen_from(0.0)) == pytest.approx([0.0, -90.0])  # up, 3000 * 0.15 / 5 pixels
    assert right < 0 and down < 0  # what was up leans to the left
    assert math.atan2(-right, -down) == pytest.approx(0.3)


def test_half_the_distance_looks_twice_as_large():
    far = pixel(TOP, seen_from(0.0, distance=6.0))
    near = pixel(TOP, seen_from(0.0, distance=3.0))
    assert near == pytest.approx(2 * far)
    assert far == pytest.approx([0.0, -FOCAL_PX * 0.15 / 6.0])


def test_the_pose_error_is_the_angle_between_rotations():
    a = np.array([[0.4, 0.2, 0.1]])
    turned = a + [0.0, 0.0, 0.25]
    assert pose_errors(a, turned)[0] == pytest.approx(0.25)
    opposite = cameras.pascal_cam_from_object(0.0, 0.0, math.pi)
    upright = cameras.pascal_cam_from_object(0.0, 0.0, 0.0)
    assert cameras.geodesic_distance(opposite, upright) == pytest.approx(math.pi)


@pytest.mark.parametrize("pose", POSES)
def test_the_centre_is_spherical(pose):
    azimuth, elevation, distance = cameras.spherical_from_centre(pose.centre)
    assert (azimuth, elevation, distance) == pytest.approx((pose.azimuth, pose.elevation, 5.0))
    assert pose.centre == pytest.approx(
        [
            5.0 * math.cos(pose.elevation) * math.sin(pose.azimuth),
            -5.0 * math.cos(pose.elevation) * math.cos(pose.azimuth),
            5.0 * math.sin(pose.elevation),
        ]
    )


# ---- camera frames ----


@pytest.mark.parametrize("pose", POSES)
def test_what_is_in_front_has_a_negative_z_in_pascal_cam(pose):
    origin = np.zeros((1, 3))
    assert cameras.points_in_pascal_cam(origin, pose)[0] == pytest.approx([0.0, 0.0, -5.0])


def test_the_conversion_of_frames_is_its_own_inverse():
    pose = seen_from(1.0, 0.4, 0.2)
    cv_cam_from_object = cameras.cv_from_pascal_cam(pose.pascal_cam_from_object)
    assert (cv_cam_from_object == pose.cv_cam_from_object).all()
    assert (cameras.cv_from_pascal_cam(cv_cam_from_object) == pose.pascal_cam_from_object).all()
    right, up, backward = pose.pascal_cam_from_object
    assert (cv_cam_from_object == [right, -up, -backward]).all()


@pytest.mark.parametrize("pose", POSES)
def test_no_frame_is_mirrored(pose):
    pt3d_rotation, _ = cameras.pt3d_extrinsics(pose)
    for rotation in (pose.pascal_cam_from_object, pose.cv_cam_from_object, pt3d_rotation):
        assert np.linalg.det(rotation) == pytest.approx(1.0)
        assert rotation @ rotation.T == pytest.approx(np.eye(3))


@pytest.mark.parametrize("pose", POSES)
def test_angles_come_back_from_a_rotation(pose):
    angles = cameras.angles_of_rotation(pose.pascal_cam_from_object)
    assert np.stack(angles) == pytest.approx(pose.angles)


# ---- pixels ----


def test_a_point_to_the_right_and_up_falls_right_and_up():
    right, down = pixel(LEFT + TOP, seen_from(0.0))
    assert right == pytest.approx(FOCAL_PX * 0.2 / 5.0)
    assert down == pytest.approx(-FOCAL_PX * 0.15 / 5.0)


@pytest.mark.parametrize("pose", POSES)
def test_the_origin_falls_on_the_principal_point(pose):
    assert cameras.project(np.zeros((1, 3)), pose)[0] == pytest.approx(MIDDLE_XY)


# ---- crops and feature maps ----

IMAGE_HW = (480, 640)
CROP_HW = (256, 672)
PRINCIPAL_XY = (301.3, 250.8)
BBOX = (150.0, 180.0, 470.0, 330.0)


def crop_of(geometry: str, distance: float = 6.2):
    return place_crop(geometry, IMAGE_HW, CROP_HW, BBOX, PRINCIPAL_XY, distance)


def test_a_crop_is_centred_on_the_principal_point():
    crop = crop_of("exact")
    assert crop.scale == pytest.approx(6.2 / NORMALISED_DISTANCE)
    principal_rc = np.array(PRINCIPAL_XY)[::-1]
    assert crop.map_points(principal_rc) == pytest.approx(np.array(CROP_HW) / 2)
    expected = np.array(CROP_HW) / 2 - crop.scale * principal_rc
    assert crop.offset_rc == pytest.approx(expected)


@pytest.mark.parametrize("distance", [2.9, 5.0, 6.2, 9.7])
def test_the_two_geometries_agree_to_two_pixels(distance):
    exact = crop_of("exact", distance)
    paper = crop_of("paper", distance)
    corners_rc = np.array([[180.0, 150.0], [330.0, 470.0]])
    difference = paper.map_points_exactly(corners_rc) - exact.map_points(corners_rc)
    assert 0 < np.abs(difference).max() < 2


@pytest.mark.parametrize("pose", POSES[::5])
def test_the_map_camera_sees_what_the_crop_shows(pose):
    vertices = np.concatenate([FRONT, LEFT, TOP, -TOP])
    original = Pose(pose.azimuth, pose.elevation, pose.theta, 6.2, PRINCIPAL_XY)
    in_crop_rc = crop_of("exact").map_points(cameras.project(vertices, original)[:, ::-1])
    map_hw = (CROP_HW[0] // FEATURE_STRIDE, CROP_HW[1] // FEATURE_STRIDE)
    camera = cameras.consistent_camera(map_hw)
    near = Pose(pose.azimuth, pose.elevation, pose.theta, 5.0, camera.principal_xy)
    on_map_xy = cameras.project(vertices, near, camera.focal)
    # Scaling a picture is not quite moving the object: its perspective stays as it was.
    assert np.abs(in_crop_rc[:, ::-1] / FEATURE_STRIDE - on_map_xy).max() < 1.5
    flat = cameras.project(np.zeros((1, 3)), near, camera.focal)[0]
    assert flat == pytest.approx(np.array(map_hw)[::-1] / 2)


# ---- PyTorch3D and camera matrices ----


@pytest.mark.parametrize("pose", POSES)
def test_pytorch3d_sees_the_same_pixels(pose):
    points = np.concatenate([FRONT, LEFT, TOP])
    rotation, translation = cameras.pt3d_extrinsics(pose)
    points_world = points[:, [0, 2, 1]] * [1.0, 1.0, -1.0]
    left, up, forward = (points_world @ rotation + translation).T
    pixels = np.stack([-left, -up], 1) / forward[:, None] * FOCAL_PX + MIDDLE_XY
    assert pixels == pytest.approx(cameras.project(points, pose))


@pytest.mark.parametrize("pose", POSES)
def test_a_pose_comes_back_from_pytorch3d(pose):
    back = cameras.pose_from_pt3d(*cameras.pt3d_extrinsics(pose))
    assert back.angles == pytest.approx(pose.angles)
    assert back.distance == pytest.approx(pose.distance)


def test_the_camera_matrix_gives_pixels():
    pose = seen_from(0.8, 0.3, -0.2, distance=4.0)
    found = PhotographPose(pose, FOCAL_PX, score=0.5, mesh=1, evidence=(0.0, 0.0, 0.0))
    points = np.concatenate([FRONT, LEFT, TOP])
    pixels = found.camera_matrix @ np.column_stack([points, np.ones(3)]).T
    assert pytest.approx(cameras.project(points, pose)) == pixels[:2].T / pixels[2:].T
    assert pixels[2] == pytest.approx([depth(point[None], pose) for point in points])
