"""The pose solver against the reference's recorded runs, and on planted poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.planted import (
    BEST,
    PAPER,
    SIX_D,
    golden_problem,
    moved_problem,
    planted_problem,
    rotation_error_deg,
    solve_small,
)
from helpers.renderers import SPECIFICATION
from neural_mesh.compare import specification
from neural_mesh.compare.scene import look_at, make_scene, score_target
from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.geometry.cameras import PT3D_FROM_OBJECT, paper_camera
from neural_mesh.solve.starts import start_poses

# Where a cell's centre lies so near to an edge between two triangles that the reference's float32
# sees the other triangle: file, image, step, cell (row, column), and a move of its ray, in cells,
# that crosses the edge.
ON_AN_EDGE = [
    ("solve", 1, 5, (28, 46), (-2e-5, 0.0)),
    ("solve_white", 1, 6, (25, 15), (0.0, -1.5e-4)),
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def solved():
    """The reference's images, solved once by the paper's method; filled by `golden_solution`."""
    return {}


def golden_solution(golden, name, solved):
    """A stored run of the reference, and ours of the same images, with every iterate."""
    data = golden(f"{name}.npz")
    if name not in solved:
        solved[name] = solve_small(golden_problem(data), PAPER, trace=True)
    return data, solved[name]


# ---- the reference's runs ----


@pytest.mark.parametrize("name", ["solve", "solve_white"])
def test_start_grid_reproduces_the_reference(golden, solved, name):
    data, poses = golden_solution(golden, name, solved)
    # one start of solve_white has a cell that lies on an edge to float32 rounding
    assert np.sort(np.abs(poses.start_losses - data["start_losses"]).ravel())[-2] < 5e-7
    tolerance = 5e-7 if name == "solve" else 2e-6
    np.testing.assert_allclose(poses.start_losses, data["start_losses"], atol=tolerance)
    np.testing.assert_array_equal(poses.start, data["start_index"])


def test_start_poses_are_the_references(golden):
    data = golden("solve.npz")
    starts = start_poses(PAPER, 5.0)
    np.testing.assert_allclose(starts[:, :3] @ PT3D_FROM_OBJECT.T, data["grid_campos"], atol=2e-6)
    np.testing.assert_allclose(starts[:, 3], data["grid_theta"], atol=1e-6)


def away_from_the_reference(data, centre, theta, loss, images=slice(None)):
    """Largest difference [B] of the first eight poses, and of their losses, from the stored ones.

    centre [B, 8+, 3], theta [B, 8+], loss [B, 8+].
    """
    campos = centre[:, :8] @ PT3D_FROM_OBJECT.T
    position = np.abs(campos - data["campos_first20"][images, :8]).max((1, 2))
    angle = np.abs(theta[:, :8] - data["theta_first20"][images, :8]).max(1)
    losses = np.abs(loss[:, :8] - data["loss_first20"][images, :8]).max(1)
    return np.maximum(position, angle), losses


@pytest.mark.parametrize("name", ["solve", "solve_white"])
def test_first_steps_reproduce_the_reference(golden, solved, name):
    """Eight steps to the tolerance of golden/README.md, in all images but those of `ON_AN_EDGE`.

    Losses but for one cell.
    """
    data, poses = golden_solution(golden, name, solved)
    pose_error, loss_error = away_from_the_reference(
        data, poses.path[..., :3], poses.path[..., 3], poses.path_losses
    )
    exempt = [image for file, image, *_ in ON_AN_EDGE if file == name]
    others = np.delete(np.arange(len(poses)), exempt)
    assert pose_error[others].max() < 3e-5
    assert np.sort(loss_error[others])[-1 if name == "solve" else -2] < 1e-6
    assert loss_error[others].max() < 1.3e-6  # see the next test
    assert (pose_error[exempt] > 5e-5).all()
    assert pose_error[exempt].max() < 1e-3
    assert loss_error[exempt].max() < 2e-4


def test_one_cell_seen_edge_on_is_what_the_losses_differ_by(golden, monkeypatch):
    """Step 4 of image 0 of solve_white: 1.1e-6 at the reference's own pose, others below 6e-7.

    Cell (2, 45) sees its face so nearly edge-on that its score changes by 2e-3 when its ray moves
    by 1.5e-4 cells, which is how far the reference's roundings move its picture there; see the test
    below.
    """
    data = golden("solve_white.npz")
    mesh, features, bank, clutter = golden_problem(data)
    scene = make_scene(mesh, paper_camera(features.shape[2:]))
    target = score_target(features[:1], bank, clutter)
    centre = torch.as_tensor(data["campos_first20"][:1, 4] @ PT3D_FROM_OBJECT).double()
    rotation = look_at(centre, torch.as_tensor(data["theta_first20"][:1, 4]).double())
    plain_rays = specification.cam_rays
    differences = []
    for nudge in (0.0, 1.5e-4):

        def rays(*arguments, nudge=nudge):
            rays = plain_rays(*arguments)
            rays[2 * features.shape[3] + 45, 1] += nudge / scene.camera.focal
            return rays

        monkeypatch.setattr(specification, "cam_rays", rays)
        loss = SPECIFICATION.compare(scene, target, centre, rotation).loss.item()
        differences.append(abs(loss - data["loss_first20"][0, 4]))
    assert differences[0] > 1e-6
    assert differences[1] < 1e-7


@pytest.mark.parametrize("name, image, step, cell_rc, nudge_xy", ON_AN_EDGE)
def test_one_cell_on_an_edge_parts_two_images_from_the_reference(
    golden, monkeypatch, name, image, step, cell_rc, nudge_xy
):
    """They meet the tolerance once that cell's ray is moved across the edge in that one step.

    In solve.npz the edge is 8.5e-6 cells from the cell's centre, where float32 coordinates are
    3.8e-6 apart; in solve_white.npz 7.4e-5 cells, and roundings before have moved the reference's
    picture by 1.4e-4. No implementation meets the tolerance in these two without repeating the
    reference's roundings: a change of the start by a millionth moves them by 4e-4 and 1e-4 in eight
    steps, and image 0 by 1e-5. golden/README.md's tolerance comes from six others.
    """
    data = golden(f"{name}.npz")
    mesh, features, bank, clutter = golden_problem(data)
    scene = make_scene(mesh, paper_camera(features.shape[2:]))
    target = score_target(features[image : image + 1], bank, clutter)
    cell = cell_rc[0] * features.shape[3] + cell_rc[1]
    start = torch.as_tensor(start_poses(PAPER, 5.0)[data["start_index"][image]])
    plain_rays = specification.cam_rays
    calls = iter(range(8))

    def rays(*arguments):
        rays = plain_rays(*arguments)
        if next(calls) == step:
            rays[cell, :2] += torch.tensor(nudge_xy) / scene.camera.focal
        return rays

    monkeypatch.setattr(specification, "cam_rays", rays)
    path = np.array(adam_path(scene, target, start[None], 8))[None]
    pose_error, loss_error = away_from_the_reference(
        data, path[..., :3], path[..., 3], path[..., 4], slice(image, image + 1)
    )
    assert pose_error < 1.5e-5
    assert loss_error < 4.5e-6


def adam_path(scene, target, poses, steps) -> list[np.ndarray]:
    """Poses (centre, theta) and losses [5] of one image by torch.optim.Adam and autograd."""
    poses = poses.clone().requires_grad_()
    optimiser = torch.optim.Adam([poses], lr=PAPER.learning_rate, betas=PAPER.adam_betas)
    path = []
    for _ in range(steps):
        optimiser.zero_grad()
        rotation = look_at(poses[:, :3], poses[:, 3])
        loss = SPECIFICATION.loss(scene, target, poses[:, :3], rotation)
        path.append(np.append(poses.detach().numpy()[0], loss.item()))
        loss.sum().backward()
        optimiser.step()
    return path


@pytest.mark.parametrize("name", ["solve", "solve_white"])
def test_final_pose_reproduces_the_reference(golden, solved, name):
    data, poses = golden_solution(golden, name, solved)
    assert rotation_error_deg(poses.pose, data["rot_pred"]).max() < 0.2
    np.testing.assert_allclose(poses.loss, data["final_loss"], atol=1e-3)
    np.testing.assert_allclose(poses.centre @ PT3D_FROM_OBJECT.T, data["final_campos"], atol=1e-2)
    np.testing.assert_allclose(poses.pose.distance, data["final_distance"], atol=1e-2)
    assert (poses.evaluations == 301).all()
    if name == "solve_white":  # the reference's wrong basin is part of the method
        assert poses.loss[2] == pytest.approx(0.944, abs=1e-3)
        assert rotation_error_deg(poses.pose, data["rot_true"])[2] > 40


def test_gradient_of_the_first_step_reproduces_the_reference(golden):
    data = golden("solve.npz")
    mesh, features, bank, clutter = golden_problem(data)
    scene = make_scene(mesh, paper_camera(features.shape[2:]))
    poses = torch.as_tensor(start_poses(PAPER, 5.0)[data["start_index"]]).requires_grad_()
    rotation = look_at(poses[:, :3], poses[:, 3])
    target = score_target(features, bank, clutter)
    gradients = NumbaRenderer().compare(scene, target, poses[:, :3], rotation)
    rotation.backward(gradients.grad_rotation)
    by_centre = poses.grad[:, :3] + gradients.grad_centre
    found = {
        "grad_campos_step0": by_centre @ torch.as_tensor(PT3D_FROM_OBJECT.T),
        "grad_theta_step0": poses.grad[:, 3],
    }
    for key, value in found.items():
        np.testing.assert_allclose(value, data[key], atol=5e-6 * np.abs(data[key]).max())


# ---- planted poses ----


def test_a_planted_pose_is_found():
    problem, true = planted_problem(12, noise=0.15)
    poses = solve_small(problem)
    error = rotation_error_deg(poses.pose, true.pascal_cam_from_object)
    assert np.median(error) < 1.5
    assert (error < 10).mean() > 0.8
    np.testing.assert_allclose(poses.pose.distance[error < 10], 5.0, atol=0.5)


def test_without_clutter_the_clutter_is_not_read():
    problem, true = planted_problem(6, noise=0.05)
    unknown = problem._replace(clutter=torch.full((16,), torch.nan))
    poses = solve_small(unknown, replace(PAPER, clutter=False))
    assert np.isfinite(poses.loss).all()
    assert np.median(rotation_error_deg(poses.pose, true.pascal_cam_from_object)) < 15


def test_best_against_paper_at_a_tenth_of_its_evaluations():
    """Three quarters of every object hidden; both solvers on the same camera.

    Two standard errors of 300 images are 0.04.
    """
    scores = {"paper": [], "best": []}
    for seed in (6, 7, 8):
        problem, true = planted_problem(100, noise=0.3, seed=seed, hidden=0.75, map_hw=(16, 42))
        for config in (PAPER, BEST):
            poses = solve_small(problem, config)
            error = rotation_error_deg(poses.pose, true.pascal_cam_from_object)
            numbers = [(error < 30).mean(), (error < 10).mean(), poses.evaluations.mean()]
            scores[config.solver].append(numbers)
    paper = np.mean(scores["paper"], 0)
    best = np.mean(scores["best"], 0)
    assert 0.5 < paper[1] < 0.95  # hard enough to tell them apart
    assert (best[:2] > paper[:2] - 0.04).all()
    assert paper[2] == 301
    assert best[2] * 10 < 1.1 * paper[2]


@pytest.mark.parametrize("solver", ["paper", "best"])
def test_six_d_finds_pose_place_and_distance(solver):
    problem, true = moved_problem(16)
    config = replace(SIX_D, solver=solver, total_epochs=150, step_drop=50)
    rotation = true.pascal_cam_from_object
    # with the object held in the middle few poses are right
    fixed = solve_small(problem, replace(config, six_d=False))
    assert (rotation_error_deg(fixed.pose, rotation) < 10).mean() < 0.3
    np.testing.assert_array_equal(fixed.pose.principal_xy, np.tile([12.0, 8.0], (16, 1)))
    # and with its place and distance free most
    pose = solve_small(problem, config).pose
    right = rotation_error_deg(pose, rotation) < 10
    assert right.mean() >= 0.75
    place = np.abs(pose.principal_xy - true.principal_xy).max(1)[right]
    scale = np.abs(np.log(pose.distance / true.distance))[right]
    assert np.median(place) < 0.3
    assert place.max() < 1.5
    assert np.median(scale) < 0.03
    assert scale.max() < 0.15
