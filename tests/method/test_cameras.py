"""What the conventions mean, in numbers, and the reference's cameras."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neural_mesh.compare.scene import look_at
from neural_mesh.geometry import cameras
from neural_mesh.geometry.cameras import Pose, consistent_camera, points_in_pascal_cam, project

AHEAD = Pose(0.0, 0.0, 0.0, 5.0, (0.0, 0.0))
RIGHT_SIDE = np.array([[0.5, 0.0, 0.0]])
FRONT = np.array([[0.0, -0.5, 0.0]])
TOP = np.array([[0.0, 0.0, 0.5]])


def depth(point, **angles):
    return -points_in_pascal_cam(point, replace(AHEAD, **angles))[0, 2]


def pixel(point, **angles):
    return project(point, replace(AHEAD, **angles))[0]


# ---- what the angles mean ----


def test_azimuth_zero_sees_the_front_and_ninety_degrees_the_side_at_plus_x():
    assert depth(FRONT) == pytest.approx(4.5)
    assert depth(RIGHT_SIDE, azimuth=np.pi / 2) == pytest.approx(4.5)
    assert depth(FRONT, azimuth=np.pi / 2) == pytest.approx(5.0)


def test_positive_elevation_sees_the_top():
    assert depth(TOP, elevation=np.pi / 2) == pytest.approx(4.5)
    assert pixel(TOP)[1] == pytest.approx(-3000 * 0.5 / 5)  # up in the picture is a smaller row


def test_positive_theta_turns_the_picture_counter_clockwise():
    x, y = pixel(RIGHT_SIDE, theta=np.pi / 2)  # was right of the centre at azimuth 0
    assert x == pytest.approx(0, abs=1e-9)
    assert y == pytest.approx(-300)


def test_one_unit_at_distance_five_is_six_hundred_pixels():
    assert pixel(np.array([[1.0, 0, 0]]))[0] == pytest.approx(600)


# ---- poses and frames ----


def random_poses(count: int) -> Pose:
    random = np.random.default_rng(0)
    angles = random.uniform([0, -1, -1], [6, 1, 1], (count, 3))
    distance = random.uniform(3, 9, count)
    return Pose(*angles.T, distance, random.uniform(0, 500, (count, 2)))


def test_a_point_seen_by_both_frames_has_the_same_x_and_the_opposite_y_and_z():
    pose = random_poses(6)
    point = np.array([0.1, -0.4, 0.2])
    x, y, z = (pose.pascal_cam_from_object @ point).T
    np.testing.assert_array_equal((pose.cv_cam_from_object @ point).T, [x, -y, -z])
    back = cameras.cv_from_pascal_cam(pose.cv_cam_from_object)
    np.testing.assert_array_equal(back, pose.pascal_cam_from_object)


def test_the_camera_looks_at_the_origin_along_the_z_axis_of_cv_cam():
    pose = random_poses(6)
    origin_in_cam = pose.cv_cam_from_object @ -pose.centre[..., None]
    np.testing.assert_allclose(origin_in_cam[..., :2, 0], 0, atol=1e-12)
    np.testing.assert_allclose(origin_in_cam[..., 2, 0], pose.distance)


def test_one_of_several_poses_is_projected_as_all_of_them_are():
    poses = random_poses(6)
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (20, 3))
    assert len(poses) == 6
    for i, pixels in enumerate(project(points, poses)):
        np.testing.assert_allclose(project(points, poses[i]), pixels, atol=1e-9)
    assert isinstance(poses[2].azimuth, float)
    again = Pose.joined([poses[:2], poses[2:]])
    np.testing.assert_array_equal(again.angles, poses.angles)
    np.testing.assert_array_equal(again.principal_xy, poses.principal_xy)
    assert Pose.joined([replace(poses, principal_xy=None)]).principal_xy is None


def test_angles_come_back_from_rotation_and_centre():
    poses = random_poses(50)
    angles = cameras.angles_of_rotation(poses.pascal_cam_from_object)
    np.testing.assert_allclose(np.stack(angles, -1), poses.angles, atol=1e-9)
    _, _, distance = cameras.spherical_from_centre(poses.centre)
    np.testing.assert_allclose(distance, poses.distance)


def test_projection_of_pascal3d_equals_that_of_the_solver():
    points = np.random.default_rng(1).uniform(-0.5, 0.5, (20, 3))
    camera = consistent_camera((32, 84))
    for pose in random_poses(10):
        centre = torch.from_numpy(pose.centre)[None]
        theta = torch.tensor([pose.theta], dtype=torch.float64)
        object_from_cv_cam = look_at(centre, theta)[0].numpy()
        points_cam = (points - pose.centre) @ object_from_cv_cam
        plane_xy = camera.focal * points_cam[:, :2] / points_cam[:, 2:]
        expected = project(points, replace(pose, principal_xy=camera.principal_xy), camera.focal)
        np.testing.assert_allclose(camera.principal_xy + plane_xy, expected, atol=1e-9)


# ---- the reference ----


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
    centre = d["campos32"] @ cameras.PT3D_FROM_OBJECT
    azimuth, elevation, distance = cameras.spherical_from_centre(centre)
    np.testing.assert_allclose(distance, d["back_distance"], atol=5e-6)
    np.testing.assert_allclose(elevation, d["back_elevation"], atol=5e-6)
    assert np.abs((azimuth - d["back_azimuth"] + np.pi) % (2 * np.pi) - np.pi).max() < 1e-6


def test_centre_straight_behind_is_azimuth_pi():
    """The reference returns 0 there."""
    assert cameras.spherical_from_centre([0.0, 5.0, 0.0])[0] == pytest.approx(np.pi)


def test_geodesic_distance_is_exact_near_zero_and_near_pi(golden):
    d = golden("cameras.npz")
    ours = cameras.geodesic_distance(d["err_gt"], d["err_pred"])
    np.testing.assert_allclose(ours, d["err_exact"], atol=1e-9)
    real = ~d["err_ref_iscomplex"].astype(bool)
    np.testing.assert_allclose(d["err_exact"][real], d["err_ref_real"][real], atol=1e-9)


def test_reference_camera_positions_and_projection_by_their_extrinsics(golden):
    d = golden("cameras.npz")
    pose = Pose(d["azimuth"], d["elevation"], d["theta"], d["distance"])
    centre = pose.centre @ cameras.PT3D_FROM_OBJECT.T
    np.testing.assert_allclose(centre, d["campos32"], atol=5e-6)
    points_pt3d = d["points"] @ cameras.PT3D_FROM_OBJECT.T
    ours = cameras.pt3d_extrinsics(pose)
    theirs = (d["R32"], d["T32"])
    for (rotation, translation), tolerance in ((theirs, 4e-4), (ours, 1e-9)):
        points_cam = points_pt3d @ np.float64(rotation) + np.float64(translation)[:, None]
        pixels = d["principal"][:, None] - 3000 * points_cam[..., :2] / points_cam[..., 2:]
        np.testing.assert_allclose(pixels, d["pixels"], atol=tolerance)


def test_an_upside_down_pose_is_wrong_where_the_reference_counts_it_as_right(golden):
    """Its matrix logarithm of a turn by pi is complex with a real part near 0, below pi / 6."""
    d = golden("cameras.npz")
    fooled = d["err_ref_iscomplex"].astype(bool) & (d["err_ref_real"] < np.pi / 6)
    assert fooled.any()
    ours = cameras.geodesic_distance(d["err_gt"], d["err_pred"])[fooled]
    np.testing.assert_allclose(ours, np.pi, atol=1e-6)
    np.testing.assert_allclose(ours, d["err_exact"][fooled], atol=1e-9)
