"""What the conventions mean, in numbers, and the reference's cameras."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neural_mesh.compare.rendering import look_at
from neural_mesh.geometry import cameras
from neural_mesh.geometry.cameras import Pose, consistent_camera, points_in_pascal_cam, project

AHEAD = Pose(0.0, 0.0, 0.0, 5.0, (0.0, 0.0))
RIGHT_SIDE, FRONT, TOP = np.array([[0.5, 0, 0]]), np.array([[0, -0.5, 0]]), np.array([[0, 0, 0.5]])


def depth(point, **pose):
    return -points_in_pascal_cam(point, replace(AHEAD, **pose))[0, 2]


def pixel(point, **pose):
    return project(point, replace(AHEAD, **pose))[0]


def test_azimuth_zero_sees_the_front_and_ninety_degrees_the_side_at_plus_x():
    assert depth(FRONT) == pytest.approx(4.5)
    assert depth(RIGHT_SIDE, azimuth=np.pi / 2) == pytest.approx(4.5)
    assert depth(FRONT, azimuth=np.pi / 2) == pytest.approx(5.0)


def test_positive_elevation_sees_the_top():
    assert depth(TOP, elevation=np.pi / 2) == pytest.approx(4.5)
    assert pixel(TOP)[1] == pytest.approx(-3000 * 0.5 / 5)  # up in the picture is a smaller row


def test_positive_theta_turns_the_picture_counter_clockwise():
    x, y = pixel(RIGHT_SIDE, theta=np.pi / 2)  # was right of the centre at azimuth 0
    assert x == pytest.approx(0, abs=1e-9) and y == pytest.approx(-300)


def test_one_unit_at_distance_five_is_six_hundred_pixels():
    assert pixel(np.array([[1.0, 0, 0]]))[0] == pytest.approx(600)


def test_projection_of_pascal3d_equals_that_of_the_solver():
    random = np.random.default_rng(0)
    points = random.uniform(-0.5, 0.5, (20, 3))
    for _ in range(10):
        azimuth, elevation, theta = random.uniform([0, -1, -1], [6, 1, 1])
        camera = consistent_camera((32, 84))
        pose = Pose(azimuth, elevation, theta, 5.0, np.array(camera.principal_xy))
        expected = project(points, pose, camera.focal)
        centre = torch.from_numpy(cameras.camera_centre(azimuth, elevation, 5.0))[None]
        world_from_cam = look_at(centre, torch.tensor([theta]))[0].numpy()
        cam = (points - centre[0].numpy()) @ world_from_cam
        found = np.array(camera.principal_xy) + camera.focal * cam[:, :2] / cam[:, 2:]
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_reference_cameras(golden):
    d = golden("cameras.npz")
    pose = Pose(d["azimuth"], d["elevation"], d["theta"], d["distance"], d["principal"])
    np.testing.assert_allclose(cameras.extrinsic_matrix(pose), d["p3d_matrix"], atol=1e-12)
    np.testing.assert_allclose(-pose.centre, d["ref_get_camera_position"], atol=1e-12)
    np.testing.assert_allclose(project(d["points"], pose), d["pixels"], atol=1e-9)
    np.testing.assert_allclose(pose.pascal_cam_from_object, d["rot_eval"], atol=1e-12)
    rotation, translation = cameras.pt3d_extrinsics(pose)
    np.testing.assert_allclose(rotation, d["R32"], atol=5e-7)
    np.testing.assert_allclose(translation, d["T32"], atol=5e-6)


def test_back_conversion_in_all_quadrants(golden):
    d = golden("cameras.npz")
    azimuth, elevation, distance = cameras.spherical_from_centre(
        d["campos32"] @ cameras.PT3D_FROM_OBJECT
    )
    np.testing.assert_allclose(distance, d["back_distance"], atol=5e-6)
    np.testing.assert_allclose(elevation, d["back_elevation"], atol=5e-6)
    assert np.abs((azimuth - d["back_azimuth"] + np.pi) % (2 * np.pi) - np.pi).max() < 1e-6


def test_centre_straight_behind_is_azimuth_pi():
    """The reference returns 0 there."""
    assert cameras.spherical_from_centre([0.0, 5.0, 0.0])[0] == pytest.approx(np.pi)


def test_geodesic_distance_is_exact_near_zero_and_near_pi(golden):
    d = golden("cameras.npz")
    np.testing.assert_allclose(
        cameras.geodesic_distance(d["err_gt"], d["err_pred"]), d["err_exact"], atol=1e-9
    )
    real = ~d["err_ref_iscomplex"].astype(bool)
    np.testing.assert_allclose(d["err_exact"][real], d["err_ref_real"][real], atol=1e-9)


def test_reference_camera_positions_and_projection_by_their_extrinsics(golden):
    d = golden("cameras.npz")
    pose = Pose(d["azimuth"], d["elevation"], d["theta"], d["distance"])
    centre = pose.centre @ cameras.PT3D_FROM_OBJECT.T
    np.testing.assert_allclose(centre, d["campos32"], atol=5e-6)
    ours = cameras.pt3d_extrinsics(pose)
    for (rotation, translation), tolerance in (((d["R32"], d["T32"]), 4e-4), (ours, 1e-9)):
        cam = (d["points"] @ cameras.PT3D_FROM_OBJECT.T) @ np.float64(rotation) + np.float64(
            translation
        )[:, None]
        pixels = d["principal"][:, None] - 3000 * cam[..., :2] / cam[..., 2:]
        np.testing.assert_allclose(pixels, d["pixels"], atol=tolerance)


def test_an_upside_down_pose_is_wrong_where_the_reference_counts_it_as_right(golden):
    """Its matrix logarithm of a turn by pi is complex with a real part near 0, which passes a threshold of pi / 6."""
    d = golden("cameras.npz")
    fooled = d["err_ref_iscomplex"].astype(bool) & (d["err_ref_real"] < np.pi / 6)
    assert fooled.any()
    ours = cameras.geodesic_distance(d["err_gt"], d["err_pred"])[fooled]
    np.testing.assert_allclose(ours, np.pi, atol=1e-6)
    np.testing.assert_allclose(ours, d["err_exact"][fooled], atol=1e-9)
