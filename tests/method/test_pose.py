"""The pose solver against the reference's recorded runs, planted poses, and its own slow twin."""

from __future__ import annotations

import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from neural_mesh.compare import rendering
from neural_mesh.geometry.cameras import (
    PT3D_FROM_OBJECT,
    camera_centre,
    consistent_camera,
    geodesic_distance,
    paper_camera,
    pascal_cam_from_object,
)
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh
from neural_mesh.settings import SolveConfig
from neural_mesh.solve import pose

INTERPRETED = bool(
    os.environ.get("TRITON_INTERPRET")
)  # see test_rendering.test_cuda_kernel_in_the_interpreter
FAST = ["numba", "triton"] if INTERPRETED or torch.cuda.is_available() else ["numba"]
PAPER = SolveConfig()
BEST = SolveConfig(solver="best")
GRID = CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (5, 10, 4))
SMALL_HW = (12, 20)

pytestmark = pytest.mark.usefixtures("one_thread")


def golden_problem(data):
    """Arguments of `solve` up to the configuration, from a stored run of the reference."""
    clutter = torch.as_tensor(data["clutter_bank"]).mean(0)
    features = torch.as_tensor(data["features"].astype(np.float32))
    mesh = Mesh(data["vertices"], data["faces"])
    return mesh, features, torch.as_tensor(data["bank"]), clutter / clutter.norm()


def rotation_error_deg(poses: pose.Poses, rotation: np.ndarray) -> np.ndarray:
    found = pascal_cam_from_object(poses.azimuth, poses.elevation, poses.theta)
    return np.degrees(geodesic_distance(found, rotation))


def planted_problem(
    count: int,
    noise: float,
    seed: int = 0,
    map_hw=SMALL_HW,
    hidden: float = 0.0,
    distance=5.0,
    shift_xy=(0.0, 0.0),
):
    """Feature maps of a cuboid in random poses, in front of clutter, a share of the map's columns hidden by clutter.

    distance: of the cameras. shift_xy [count, 2]: of the object over the map, in cells.
    Returns solve's first arguments and the poses (azimuth, elevation, theta).
    """
    generator = np.random.default_rng(seed)
    mesh = cuboid_mesh(GRID)
    scene = rendering.make_scene(mesh, paper_camera(map_hw))
    waves = generator.standard_normal((3, 16)) / 0.15
    bank = np.cos(mesh.vertices @ waves + generator.uniform(0, 6, 16))
    bank += 0.3 * generator.standard_normal(bank.shape)
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    clutter = generator.standard_normal(16)
    true = np.stack(
        [generator.uniform(low, high, count) for low, high in ((0, 6.28), (-0.3, 0.9), (-0.4, 0.4))]
    )
    centre = torch.as_tensor(camera_centre(true[0], true[1], distance))
    principal = torch.as_tensor(scene.camera.principal_xy + np.broadcast_to(shift_xy, (count, 2)))
    rotation = rendering.look_at(centre, torch.as_tensor(true[2]))
    corners, bary = rendering.visible_torch(scene, centre, rotation, principal)
    picture = (torch.as_tensor(bank)[corners] * bary[..., None]).sum(2).numpy()
    picture[~picture.any(-1)] = clutter
    first = generator.integers(0, map_hw[1], (count, 1)) + np.arange(round(hidden * map_hw[1]))
    picture.reshape(count, *map_hw, 16)[np.arange(count)[:, None], :, first % map_hw[1]] = clutter
    picture += noise * generator.standard_normal(picture.shape)
    picture /= np.linalg.norm(picture, axis=-1, keepdims=True)
    features = torch.as_tensor(picture, dtype=torch.float32).mT.unflatten(2, map_hw).contiguous()
    clutter = torch.as_tensor(clutter / np.linalg.norm(clutter), dtype=torch.float32)
    return (mesh, features, torch.as_tensor(bank, dtype=torch.float32), clutter), true


def solve_small(problem, config=PAPER, **options) -> pose.Poses:
    if options.get("renderer") == "triton" and not INTERPRETED:
        problem = (problem[0], *(x.cuda() for x in problem[1:]))
    return pose.solve(*problem, config, paper_camera(SMALL_HW), 5.0, **options)


@pytest.fixture(scope="module")
def solved():
    """Filled by `golden_solution`: the reference's images, solved once by the paper's method, with every iterate."""
    return {}


def golden_solution(golden, name, solved):
    data = golden(f"{name}.npz")
    if name not in solved:
        arguments = (
            *golden_problem(data),
            PAPER,
            paper_camera(data["features"].shape[2:]),
            5.0,
        )
        solved[name] = pose.solve(*arguments, trace=True)
    return data, solved[name]


@pytest.mark.parametrize("name", ["solve", "solve_white"])
def test_start_grid_reproduces_the_reference(golden, solved, name):
    data, poses = golden_solution(golden, name, solved)
    # one start of solve_white has a cell that lies on an edge to float32 rounding
    assert np.sort(np.abs(poses.start_losses - data["start_losses"]).ravel())[-2] < 5e-7
    np.testing.assert_allclose(
        poses.start_losses, data["start_losses"], atol=5e-7 if name == "solve" else 2e-6
    )
    np.testing.assert_array_equal(poses.start, data["start_index"])


def test_start_poses_are_the_references(golden):
    data = golden("solve.npz")
    starts = pose.start_poses(PAPER, 5.0)
    np.testing.assert_allclose(starts[:, :3] @ PT3D_FROM_OBJECT.T, data["grid_campos"], atol=2e-6)
    np.testing.assert_allclose(starts[:, 3], data["grid_theta"], atol=1e-6)


# Where a cell's centre lies so near to an edge between two triangles that the reference's float32 sees the other triangle:
# file, image, step, cell (row, column), and a move of its ray, in cells, that crosses the edge.
ON_AN_EDGE = [
    ("solve", 1, 5, (28, 46), (-2e-5, 0.0)),
    ("solve_white", 1, 6, (25, 15), (0.0, -1.5e-4)),
]


def away_from_the_reference(data, centre, theta, loss, images=slice(None)):
    """Largest difference [B] of the first eight positions and angles, and of their losses, from the stored ones."""
    position = np.abs(centre[:, :8] @ PT3D_FROM_OBJECT.T - data["campos_first20"][images, :8]).max(
        (1, 2)
    )
    angle = np.abs(theta[:, :8] - data["theta_first20"][images, :8]).max(1)
    return np.maximum(position, angle), np.abs(loss[:, :8] - data["loss_first20"][images, :8]).max(
        1
    )


@pytest.mark.parametrize("name", ["solve", "solve_white"])
def test_first_steps_reproduce_the_reference(golden, solved, name):
    """Eight steps to the tolerance of golden/README.md, in all images but those of `ON_AN_EDGE`; losses but for one cell."""
    data, poses = golden_solution(golden, name, solved)
    pose_error, loss_error = away_from_the_reference(
        data, poses.path[..., :3], poses.path[..., 3], poses.path_losses
    )
    exempt = [image for file, image, *_ in ON_AN_EDGE if file == name]
    others = np.delete(np.arange(len(poses)), exempt)
    assert (
        pose_error[others].max() < 3e-5
        and np.sort(loss_error[others])[-1 if name == "solve" else -2] < 1e-6
    )
    assert loss_error[others].max() < 1.3e-6  # see the next test
    assert (
        (pose_error[exempt] > 5e-5).all()
        and pose_error[exempt].max() < 1e-3
        and loss_error[exempt].max() < 2e-4
    )


def test_one_cell_seen_edge_on_is_what_the_losses_differ_by(golden, monkeypatch):
    """Step 4 of image 0 of solve_white: 1.1e-6 at the reference's own pose, all others are below 6e-7.

    Cell (2, 45) sees its face so nearly edge-on that its score changes by 2e-3 when its ray moves by 1.5e-4 cells, which is
    how far the reference's roundings move its picture there; see the test below.
    """
    data = golden("solve_white.npz")
    mesh, features, bank, clutter = golden_problem(data)
    scene = rendering.make_scene(mesh, paper_camera(features.shape[2:]))
    target = rendering.make_target(features[:1], bank, clutter, "torch")
    centre = torch.as_tensor(data["campos_first20"][:1, 4] @ PT3D_FROM_OBJECT).double()
    rotation = rendering.look_at(centre, torch.as_tensor(data["theta_first20"][:1, 4]).double())
    plain_rays, found = rendering.cam_rays, []
    for nudge in (0.0, 1.5e-4):

        def rays(*arguments, nudge=nudge):
            rays = plain_rays(*arguments)
            rays[2 * features.shape[3] + 45, 1] += nudge / scene.camera.focal
            return rays

        monkeypatch.setattr(rendering, "cam_rays", rays)
        found.append(
            rendering.compare(scene, target, centre, rotation, "torch")[0].item()
            - data["loss_first20"][0, 4]
        )
    assert abs(found[0]) > 1e-6 and abs(found[1]) < 1e-7


@pytest.mark.parametrize("name, image, step, cell_rc, nudge_xy", ON_AN_EDGE)
def test_one_cell_on_an_edge_parts_two_images_from_the_reference(
    golden, monkeypatch, name, image, step, cell_rc, nudge_xy
):
    """They meet the tolerance, too, once that one cell's ray is moved across the edge in that one step.

    In solve.npz the edge is 8.5e-6 cells from the cell's centre, where float32 coordinates are 3.8e-6 apart; in
    solve_white.npz 7.4e-5 cells, and roundings before have moved the reference's picture by 1.4e-4. No implementation
    meets the tolerance in these two without repeating the reference's roundings: a change of the start by a millionth
    moves them by 4e-4 and 1e-4 in eight steps, and image 0 by 1e-5. golden/README.md's tolerance comes from six others.
    """
    data = golden(f"{name}.npz")
    mesh, features, bank, clutter = golden_problem(data)
    scene = rendering.make_scene(mesh, paper_camera(features.shape[2:]))
    target = rendering.make_target(features[image : image + 1], bank, clutter, "torch")
    cell = cell_rc[0] * features.shape[3] + cell_rc[1]
    start = torch.as_tensor(pose.start_poses(PAPER, 5.0)[data["start_index"][image]])
    plain_rays, calls = rendering.cam_rays, iter(range(8))

    def rays(*arguments):
        found = plain_rays(*arguments)
        if next(calls) == step:
            found[cell, :2] += torch.tensor(nudge_xy) / scene.camera.focal
        return found

    monkeypatch.setattr(rendering, "cam_rays", rays)
    poses = start.clone()[None].requires_grad_()
    optimiser = torch.optim.Adam([poses], lr=PAPER.learning_rate, betas=PAPER.adam_betas)
    path = []
    for _ in range(8):
        optimiser.zero_grad()
        rotation = rendering.look_at(poses[:, :3], poses[:, 3])
        loss = rendering.differentiable_loss(scene, target, poses[:, :3], rotation, "torch")
        path.append(np.append(poses.detach().numpy()[0], loss.item()))
        loss.sum().backward()
        optimiser.step()
    path = np.array(path)[None]
    errors = away_from_the_reference(
        data, path[..., :3], path[..., 3], path[..., 4], slice(image, image + 1)
    )
    assert errors[0] < 1.5e-5 and errors[1] < 4.5e-6


@pytest.mark.parametrize("name", ["solve", "solve_white"])
def test_final_pose_reproduces_the_reference(golden, solved, name):
    data, poses = golden_solution(golden, name, solved)
    assert rotation_error_deg(poses, data["rot_pred"]).max() < 0.2
    np.testing.assert_allclose(poses.loss, data["final_loss"], atol=1e-3)
    np.testing.assert_allclose(poses.centre @ PT3D_FROM_OBJECT.T, data["final_campos"], atol=1e-2)
    np.testing.assert_allclose(poses.distance, data["final_distance"], atol=1e-2)
    assert (poses.evaluations == 301).all()
    if name == "solve_white":  # the reference's wrong basin is part of the method
        assert (
            poses.loss[2] == pytest.approx(0.944, abs=1e-3)
            and rotation_error_deg(poses, data["rot_true"])[2] > 40
        )


def test_gradient_of_the_first_step_reproduces_the_reference(golden):
    data = golden("solve.npz")
    mesh, features, bank, clutter = golden_problem(data)
    scene = rendering.make_scene(mesh, paper_camera(features.shape[2:]))
    poses = torch.as_tensor(pose.start_poses(PAPER, 5.0)[data["start_index"]]).requires_grad_()
    rotation = rendering.look_at(poses[:, :3], poses[:, 3])
    target = rendering.make_target(features, bank, clutter)
    _, grad_centre, grad_rotation = rendering.compare(
        scene, target, poses[:, :3], rotation, "numba"
    )
    rotation.backward(grad_rotation)
    found = (poses.grad[:, :3] + grad_centre) @ torch.as_tensor(PT3D_FROM_OBJECT.T)
    for value, key in ((found, "grad_campos_step0"), (poses.grad[:, 3], "grad_theta_step0")):
        np.testing.assert_allclose(value, data[key], atol=5e-6 * np.abs(data[key]).max())


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("clutter", [True, False])
def test_compiled_optimiser_equals_the_plain_one(clutter, renderer):
    """Same steps as PyTorch's Adam and autograd through the look-at, up to float32 scores."""
    problem, _ = planted_problem(2, noise=0.1)
    config = replace(PAPER, total_epochs=9, step_drop=5, clutter=clutter)
    fast, slow = (
        solve_small(problem, config, renderer=name, trace=True) for name in (renderer, "torch")
    )
    np.testing.assert_array_equal(fast.start, slow.start)
    np.testing.assert_allclose(fast.start_losses, slow.start_losses, atol=1e-6)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.loss, slow.loss, atol=1e-5)
    np.testing.assert_array_equal(
        fast.path[:, -1], np.concatenate([fast.centre, fast.theta[:, None]], 1)
    )


def test_plain_optimiser_is_adam():
    """torch.optim.Adam on (centre, theta), with autograd for everything."""
    problem, _ = planted_problem(1, noise=0.1)
    config = replace(PAPER, total_epochs=4, step_drop=2)
    found = solve_small(problem, config, renderer="torch", trace=True)
    scene = rendering.make_scene(problem[0], paper_camera(SMALL_HW))
    target = rendering.make_target(*problem[1:])
    poses = torch.as_tensor(pose.start_poses(config, 5.0)[found.start]).requires_grad_()
    optimiser = torch.optim.Adam([poses], lr=config.learning_rate, betas=config.adam_betas)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.step_drop, config.drop_factor)
    for step in range(5):
        np.testing.assert_allclose(found.path[:, step], poses.detach(), atol=1e-7)
        optimiser.zero_grad()
        rotation = rendering.look_at(poses[:, :3], poses[:, 3])
        rendering.differentiable_loss(
            scene, target, poses[:, :3], rotation, "torch"
        ).sum().backward()
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("renderer", FAST)
def test_compiled_best_equals_the_plain_one(renderer):
    """Stages, selection, steps in the camera's frame and the best iterate, up to float32 scores."""
    problem, _ = planted_problem(2, noise=0.1)
    plan = pose.make_plan(BEST, ((3, 2), (2, 3), (1, 2)))
    fast, slow = (
        solve_small(problem, BEST, plan=plan, renderer=name, trace=True)
        for name in (renderer, "torch")
    )
    assert fast.path.shape == (2, 8, 4) and (fast.evaluations == 3 * 2 + 2 * 3 + 2 + 1).all()
    np.testing.assert_array_equal(fast.start, slow.start)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.centre, slow.centre, atol=1e-4)


def test_paper_and_best_differ_in_when_they_stop():
    assert (pose.make_plan(PAPER).patience, pose.make_plan(PAPER).averaging) == (0, 0)
    assert pose.make_plan(BEST).patience > 0 and pose.make_plan(BEST).averaging > 0


def test_plans_that_differ_in_anything_have_different_names():
    plan = pose.make_plan(BEST)
    others = [
        replace(plan, **{key: value})
        for key, value in (
            ("stages", ((3, 4), (2, 5), (1, 19))),
            ("rates", plan.rates * 1.01),
            ("betas", (0.7, 0.71)),
            ("local_scale", 0.2),
            ("principal_scale", 0.1),
            ("separation", 0.1),
            ("averaging", 0.2),
            ("keep_best", True),
            ("patience", 5),
        )
    ]
    assert (
        len({each.fingerprint for each in [plan, *others, pose.make_plan(PAPER)]})
        == len(fields(plan)) + 2
    )
    assert pose.make_plan(BEST).fingerprint == plan.fingerprint


@pytest.mark.parametrize("renderer", [*FAST, "torch"])
def test_an_image_stops_by_itself_and_returns_the_average_of_its_iterates(renderer):
    """Against the same path without an end: when each image has to stop, and what the average of its iterates then is."""
    problem, _ = planted_problem(6, noise=0.1, seed=2)
    plan = replace(pose.make_plan(BEST, ((1, 12),)), rates=np.full(12, 0.15), patience=2)
    found = solve_small(problem, BEST, plan=plan, renderer=renderer, trace=True)
    free = solve_small(problem, BEST, plan=replace(plan, patience=0), trace=True)
    for image in range(6):
        losses, since, average = free.path_losses[image, :-1], 0, 0.0
        for s, loss in enumerate(losses):
            since = 0 if loss < losses[:s].min(initial=np.inf) else since + 1
            if since == plan.patience:
                break
            following = np.arange(
                1, min(s + 2, len(losses))
            )  # iterates after the start, which has no share
        weights = (1 - plan.averaging) ** np.arange(len(following))[::-1]
        if s < len(losses) - 1:
            average = (weights[:, None] * free.path[image, following]).sum(0) / weights.sum()
            np.testing.assert_allclose(found.path[image, -1], average, atol=1e-4)
        assert found.evaluations[image] == s + 2
        np.testing.assert_allclose(found.path[image, : s + 1], free.path[image, : s + 1], atol=1e-4)
        np.testing.assert_array_equal(
            found.path[image, s + 1 : -1], np.tile(found.path[image, s], (11 - s, 1))
        )
    assert (
        len(set(found.evaluations)) > 1 and found.evaluations.max() <= free.evaluations.min() == 13
    )
    np.testing.assert_allclose(found.loss, found.path_losses[:, -1], atol=1e-12)


@pytest.mark.parametrize("renderer", FAST)
def test_candidates_stop_by_themselves_in_every_stage(renderer):
    problem, _ = planted_problem(3, noise=0.1, seed=2)
    plan = replace(pose.make_plan(BEST, ((2, 4), (1, 6))), rates=np.full(10, 0.15), patience=2)
    fast, slow = (
        solve_small(problem, BEST, plan=plan, renderer=name, trace=True)
        for name in (renderer, "torch")
    )
    assert (fast.evaluations < plan.evaluations).all()
    np.testing.assert_array_equal(fast.evaluations, slow.evaluations)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.path_losses, slow.path_losses, atol=1e-5)


def test_local_gradient_is_the_derivative_of_the_local_move():
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    rotation = rendering.look_at(poses[:, :3], poses[:, 3])
    step = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    (pose.local_move(poses, rotation, step) * weights).sum().backward()
    torch.testing.assert_close(step.grad, pose.local_gradient(poses, rotation, weights))


def test_starts_too_near_to_a_better_one_come_last():
    poses = torch.as_tensor(pose.start_poses(PAPER, 5.0))
    losses = torch.arange(144.0)[None]
    assert pose.choose_starts(poses, losses, 5, 0.0).tolist() == [[0, 1, 2, 3, 4]]
    assert pose.choose_starts(poses, losses, 4, np.radians(35)).tolist() == [
        [0, 2, 4, 6]
    ]  # steps are 30 degrees
    everything = pose.choose_starts(poses, losses, 144, np.radians(360))[0].tolist()
    assert sorted(everything) == list(range(144))


def test_best_against_paper_at_a_tenth_of_its_evaluations():
    """Three quarters of every object hidden; both solvers on the same camera. Two standard errors of 300 images are 0.04."""
    map_hw, found = (16, 42), {"paper": [], "best": []}
    for seed in (6, 7, 8):
        problem, true = planted_problem(100, noise=0.3, seed=seed, hidden=0.75, map_hw=map_hw)
        for config in (PAPER, BEST):
            poses = pose.solve(*problem, config, paper_camera(map_hw), 5.0)
            error = rotation_error_deg(poses, pascal_cam_from_object(*true))
            found[config.solver].append(
                [(error < 30).mean(), (error < 10).mean(), poses.evaluations.mean()]
            )
    paper, best = (np.mean(found[name], 0) for name in ("paper", "best"))
    assert 0.5 < paper[1] < 0.95  # hard enough to tell them apart
    assert (best[:2] > paper[:2] - 0.04).all() and best[2] * 10 < 1.1 * paper[2] == 1.1 * 301


SIX_D = replace(BEST, six_d=True, distance_factors=(0.7, 1.4, 3), shifts=(-0.25, 0.25, 5))


def moved_problem(count: int, noise: float = 0.15, seed: int = 0):
    """`planted_problem` seen from other distances and moved over the map; also distance [count] and shift_xy [count, 2]."""
    generator = np.random.default_rng(seed)
    distance = 5.0 * np.exp(generator.uniform(-0.3, 0.3, count))
    shift = (
        generator.uniform(2.5, 5, (count, 2)) * generator.choice([-1, 1], (count, 2)) * [1.0, 0.5]
    )
    return (
        *planted_problem(count, noise, seed, (16, 24), distance=distance, shift_xy=shift),
        distance,
        shift,
    )


@pytest.mark.parametrize("solver", ["paper", "best"])
def test_six_d_finds_pose_place_and_distance(solver):
    problem, true, distance, shift = moved_problem(16)
    camera, rotation = paper_camera((16, 24)), pascal_cam_from_object(*true)
    steps = dict(solver=solver, total_epochs=150, step_drop=50)
    fixed = pose.solve(*problem, replace(SIX_D, six_d=False, **steps), camera, 5.0)
    poses = pose.solve(*problem, replace(SIX_D, **steps), camera, 5.0)
    assert (rotation_error_deg(fixed, rotation) < 10).mean() < 0.3
    np.testing.assert_array_equal(fixed.principal_xy, np.tile(camera.principal_xy, (16, 1)))
    right = rotation_error_deg(poses, rotation) < 10
    assert right.mean() >= 0.75
    place = np.abs(poses.principal_xy - camera.principal_xy - shift).max(1)[right]
    scale = np.abs(np.log(poses.distance / distance))[right]
    assert (
        np.median(place) < 0.3
        and place.max() < 1.5
        and np.median(scale) < 0.03
        and scale.max() < 0.15
    )


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("solver", ["best"] if INTERPRETED else ["paper", "best"])
def test_compiled_six_d_equals_the_plain_one(solver, renderer):
    problem, *_ = moved_problem(2)
    config = replace(
        SIX_D, solver=solver, total_epochs=5, distance_factors=(1.2, 1.2, 1), shifts=(-0.1, 0.1, 2)
    )
    plan = pose.make_plan(config, ((2, 2), (1, 3)))
    run = dict(
        renderer=renderer,
        camera=paper_camera((16, 24)),
        start_distance=5.0,
        plan=plan,
        trace=True,
    )
    arguments = (
        problem
        if renderer == "numba" or INTERPRETED
        else (problem[0], *(x.cuda() for x in problem[1:]))
    )
    fast, slow = (
        pose.solve(*arguments, config, **run),
        pose.solve(*problem, config, **run | {"renderer": "torch"}),
    )
    assert fast.start_losses.shape == (2, 4 * 144)
    np.testing.assert_allclose(fast.start_losses, slow.start_losses, atol=1e-6)
    np.testing.assert_array_equal(fast.start, slow.start)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.path_principal_xy, slow.path_principal_xy, atol=1e-3)
    assert np.abs(np.diff(fast.path_principal_xy, axis=1)).max() > 0.1
    np.testing.assert_allclose(fast.principal_xy, slow.principal_xy, atol=1e-3)


def test_a_moved_picture_is_what_a_moved_principal_point_sees():
    """Every start's loss in the 6D grid against rendering its pose with its principal point."""
    problem, *_ = moved_problem(1)
    scene = rendering.make_scene(problem[0], paper_camera((16, 24)))
    starts = pose.make_starts(scene, SIX_D, 5.0, "numba", torch.device("cpu"))
    target = rendering.make_target(*problem[1:])
    found = pose.solve(*problem, SIX_D, scene.camera, 5.0)
    assert len(starts.poses) == 25 * 3 * 144 == found.start_losses.shape[1]
    for n in (0, 5, 24 * 432 + 200, 7 * 432 + 300, found.start[0]):
        at = starts.poses[n : n + 1]
        rotation = rendering.look_at(at[:, :3], at[:, 3])
        loss, *_ = rendering.compare(scene, target, at[:, :3], rotation, "torch", at[:, 4:])
        assert found.start_losses[0, n] == pytest.approx(loss.item(), abs=1e-6)


def test_solvers_and_their_cameras():
    assert pose.choose_camera(PAPER, "boat", (60, 140)) == (paper_camera((60, 140)), 8.0)
    assert pose.choose_camera(BEST, "boat", (60, 140)) == (
        consistent_camera((60, 140)),
        5.0,
    )
    with pytest.raises(ValueError, match="SOLVER must be paper or best, found 'fast'"):
        pose.make_plan(replace(PAPER, solver="fast"))


def test_a_planted_pose_is_found():
    problem, true = planted_problem(12, noise=0.15)
    poses = solve_small(problem)
    error = rotation_error_deg(poses, pascal_cam_from_object(*true))
    assert np.median(error) < 1.5 and (error < 10).mean() > 0.8
    np.testing.assert_allclose(poses.distance[error < 10], 5.0, atol=0.5)


def test_an_image_does_not_depend_on_the_others():
    """The reference changes its own start grid; ours gives the same pose in any order, company and batch size."""
    problem, _ = planted_problem(5, noise=0.15)
    mesh, features, bank, clutter = problem
    together = solve_small(problem)
    again = solve_small((mesh, features[[0, 0, 4, 2]], bank, clutter), budget_bytes=1)
    np.testing.assert_allclose(again.centre, together.centre[[0, 0, 4, 2]], atol=1e-9)
    np.testing.assert_allclose(again.loss, together.loss[[0, 0, 4, 2]], atol=1e-9)


def test_without_clutter_the_clutter_is_not_read():
    problem, true = planted_problem(6, noise=0.05)
    poses = solve_small((*problem[:3], torch.full((16,), torch.nan)), replace(PAPER, clutter=False))
    assert np.isfinite(poses.loss).all()
    assert np.median(rotation_error_deg(poses, pascal_cam_from_object(*true))) < 15


def test_shapes_that_do_not_fit_are_named():
    problem, _ = planted_problem(1, noise=0.1)
    with pytest.raises(
        ValueError, match=r"maps of \(12, 20\) cells, the features are \(1, 16, 10, 20\)"
    ):
        solve_small((problem[0], problem[1][:, :, :10], *problem[2:]))
    with pytest.raises(ValueError, match="99 vertex features, the mesh"):
        solve_small((problem[0], problem[1], problem[2][:99], problem[3]))


def test_score_volumes_get_a_quarter_of_the_memory_that_is_free(monkeypatch):
    for free, expected in ((None, pose.MEMORY_BUDGET), (400, 100), (1 << 50, pose.MEMORY_BUDGET)):
        monkeypatch.setattr(pose, "free_memory", lambda free=free: free)
        assert pose.memory_budget(torch.device("cpu")) == expected
