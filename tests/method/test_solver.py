"""The solver's machinery: compiled optimisers against plain ones, plans, starts, memory."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from helpers.planted import (
    BEST,
    PAPER,
    SIX_D,
    moved_problem,
    planted_problem,
    setup_for,
    solve_small,
)
from helpers.renderers import CPU, FAST, INTERPRETED, SPECIFICATION
from neural_mesh.compare.scene import look_at, make_scene, score_target
from neural_mesh.compare.steps import local_gradient, local_move
from neural_mesh.geometry.cameras import consistent_camera, paper_camera
from neural_mesh.solve import solver
from neural_mesh.solve.plan import choose_camera, make_plan
from neural_mesh.solve.starts import choose_starts, start_poses

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- compiled optimisers against the plain one ----


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("clutter", [True, False])
def test_compiled_optimiser_equals_the_plain_one(clutter, renderer):
    """Same steps as PyTorch's Adam and autograd through the look-at, up to float32 scores."""
    problem, _ = planted_problem(2, noise=0.1)
    config = replace(PAPER, total_epochs=9, step_drop=5, clutter=clutter)
    fast = solve_small(problem, config, renderer, trace=True)
    slow = solve_small(problem, config, "torch", trace=True)
    np.testing.assert_array_equal(fast.start, slow.start)
    np.testing.assert_allclose(fast.start_losses, slow.start_losses, atol=1e-6)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.loss, slow.loss, atol=1e-5)
    last = np.concatenate([fast.centre, fast.pose.theta[:, None]], 1)
    np.testing.assert_array_equal(fast.path[:, -1], last)


def test_plain_optimiser_is_adam():
    """torch.optim.Adam on (centre, theta), with autograd for everything."""
    problem, _ = planted_problem(1, noise=0.1)
    config = replace(PAPER, total_epochs=4, step_drop=2)
    found = solve_small(problem, config, "torch", trace=True)
    scene = make_scene(problem.mesh, paper_camera(problem.features.shape[2:]))
    target = score_target(*problem[1:])
    poses = torch.as_tensor(start_poses(config, 5.0)[found.start]).requires_grad_()
    optimiser = torch.optim.Adam([poses], lr=config.learning_rate, betas=config.adam_betas)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.step_drop, config.drop_factor)
    for step in range(5):
        np.testing.assert_allclose(found.path[:, step], poses.detach(), atol=1e-7)
        optimiser.zero_grad()
        rotation = look_at(poses[:, :3], poses[:, 3])
        SPECIFICATION.loss(scene, target, poses[:, :3], rotation).sum().backward()
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("renderer", FAST)
def test_compiled_best_equals_the_plain_one(renderer):
    """Stages, selection, steps in the camera's frame and the average, up to float32 scores."""
    problem, _ = planted_problem(2, noise=0.1)
    plan = make_plan(BEST, ((3, 2), (2, 3), (1, 2)))
    fast = solve_small(problem, BEST, renderer, plan, trace=True)
    slow = solve_small(problem, BEST, "torch", plan, trace=True)
    assert fast.path.shape == (2, 8, 4)
    assert (fast.evaluations == 3 * 2 + 2 * 3 + 2 + 1).all()
    np.testing.assert_array_equal(fast.start, slow.start)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.centre, slow.centre, atol=1e-4)


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("solver", ["best"] if INTERPRETED else ["paper", "best"])
def test_compiled_six_d_equals_the_plain_one(solver, renderer):
    problem, _ = moved_problem(2)
    config = replace(SIX_D, solver=solver, total_epochs=5)
    config = replace(config, distance_factors=(1.2, 1.2, 1), shifts=(-0.1, 0.1, 2))
    plan = make_plan(config, ((2, 2), (1, 3)))
    fast = solve_small(problem, config, renderer, plan, trace=True)
    slow = solve_small(problem, config, "torch", plan, trace=True)
    assert fast.start_losses.shape == (2, 4 * 144)
    np.testing.assert_allclose(fast.start_losses, slow.start_losses, atol=1e-6)
    np.testing.assert_array_equal(fast.start, slow.start)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.path_principal_xy, slow.path_principal_xy, atol=1e-3)
    assert np.abs(np.diff(fast.path_principal_xy, axis=1)).max() > 0.1
    np.testing.assert_allclose(fast.pose.principal_xy, slow.pose.principal_xy, atol=1e-3)


@pytest.mark.parametrize("renderer", [*FAST, "torch"])
def test_an_image_stops_by_itself_and_returns_the_average_of_its_iterates(renderer):
    """Against the same path without an end: when each has to stop, and what the average then is."""
    problem, _ = planted_problem(6, noise=0.1, seed=2)
    plan = replace(make_plan(BEST, ((1, 12),)), rates=np.full(12, 0.15), patience=2)
    found = solve_small(problem, BEST, renderer, plan, trace=True)
    endless = solve_small(problem, BEST, "numba", replace(plan, patience=0), trace=True)
    for image in range(6):
        path = found.path[image]
        free = endless.path[image]
        last = last_step(endless.path_losses[image, :-1], plan.patience)
        assert found.evaluations[image] == last + 2
        np.testing.assert_allclose(path[: last + 1], free[: last + 1], atol=1e-4)
        np.testing.assert_array_equal(path[last + 1 : -1], np.tile(path[last], (11 - last, 1)))
        if last < 11:
            # of the iterates after the start, which has no share
            weights = (1 - plan.averaging) ** np.arange(last)[::-1]
            average = weights @ free[1 : last + 1] / weights.sum()
            np.testing.assert_allclose(path[-1], average, atol=1e-4)
    assert len(set(found.evaluations)) > 1
    assert found.evaluations.max() <= endless.evaluations.min() == 13
    np.testing.assert_allclose(found.loss, found.path_losses[:, -1], atol=1e-12)


def last_step(losses, patience) -> int:
    """The step after which an image stops: so many in a row have not been its best."""
    since = 0
    for step, loss in enumerate(losses):
        since = 0 if loss < losses[:step].min(initial=np.inf) else since + 1
        if since == patience:
            break
    return step


@pytest.mark.parametrize("renderer", FAST)
def test_candidates_stop_by_themselves_in_every_stage(renderer):
    problem, _ = planted_problem(3, noise=0.1, seed=2)
    plan = replace(make_plan(BEST, ((2, 4), (1, 6))), rates=np.full(10, 0.15), patience=2)
    fast = solve_small(problem, BEST, renderer, plan, trace=True)
    slow = solve_small(problem, BEST, "torch", plan, trace=True)
    assert (fast.evaluations < plan.evaluations).all()
    np.testing.assert_array_equal(fast.evaluations, slow.evaluations)
    np.testing.assert_allclose(fast.path, slow.path, atol=1e-4)
    np.testing.assert_allclose(fast.path_losses, slow.path_losses, atol=1e-5)


def test_local_gradient_is_the_derivative_of_the_local_move():
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    rotation = look_at(poses[:, :3], poses[:, 3])
    step = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    (local_move(poses, rotation, step) * weights).sum().backward()
    torch.testing.assert_close(step.grad, local_gradient(poses, rotation, weights))


# ---- plans and starts ----


def test_solvers_and_their_cameras():
    assert choose_camera(PAPER, "boat", (60, 140)) == (paper_camera((60, 140)), 8.0)
    assert choose_camera(BEST, "boat", (60, 140)) == (consistent_camera((60, 140)), 5.0)
    with pytest.raises(ValueError, match="SOLVER must be paper or best, found 'fast'"):
        make_plan(replace(PAPER, solver="fast"))


def test_paper_and_best_differ_in_when_they_stop():
    paper = make_plan(PAPER)
    best = make_plan(BEST)
    assert (paper.patience, paper.averaging) == (0, 0)
    assert best.patience > 0
    assert best.averaging > 0


def test_plans_that_differ_in_anything_have_different_names():
    plan = make_plan(BEST)
    changes = {
        "stages": ((3, 4), (2, 5), (1, 19)),
        "rates": plan.rates * 1.01,
        "betas": (0.7, 0.71),
        "local_scale": 0.2,
        "principal_scale": 0.1,
        "separation": 0.1,
        "averaging": 0.2,
        "keep_best": True,
        "patience": 5,
    }
    assert set(changes) == {field.name for field in fields(plan)}
    others = [replace(plan, **{name: value}) for name, value in changes.items()]
    names = {each.fingerprint for each in [plan, *others, make_plan(PAPER)]}
    assert len(names) == len(changes) + 2
    assert make_plan(BEST).fingerprint == plan.fingerprint


def test_starts_too_near_to_a_better_one_come_last():
    poses = torch.as_tensor(start_poses(PAPER, 5.0))
    losses = torch.arange(144.0)[None]
    assert choose_starts(poses, losses, 5, 0.0).tolist() == [[0, 1, 2, 3, 4]]
    # steps are 30 degrees
    assert choose_starts(poses, losses, 4, np.radians(35)).tolist() == [[0, 2, 4, 6]]
    everything = choose_starts(poses, losses, 144, np.radians(360))[0].tolist()
    assert sorted(everything) == list(range(144))


def test_a_moved_picture_is_what_a_moved_principal_point_sees():
    """Every start's loss in the 6D grid against rendering its pose with its principal point."""
    problem, _ = moved_problem(1)
    setup = setup_for(SIX_D, paper_camera(problem.features.shape[2:]))
    starts = setup.starts(problem.mesh)
    found = solve_small(problem, SIX_D)
    assert len(starts.poses) == 25 * 3 * 144 == found.start_losses.shape[1]
    scene = make_scene(problem.mesh, setup.camera)
    target = score_target(*problem[1:])
    for n in (0, 5, 24 * 432 + 200, 7 * 432 + 300, found.start[0]):
        pose = starts.poses[n : n + 1]
        rotation = look_at(pose[:, :3], pose[:, 3])
        loss = SPECIFICATION.compare(scene, target, pose[:, :3], rotation, pose[:, 4:]).loss
        assert found.start_losses[0, n] == pytest.approx(loss.item(), abs=1e-6)


# ---- images, shapes, memory ----


def test_an_image_does_not_depend_on_the_others():
    """The reference changes its own start grid; ours gives the same pose in any order and company.

    And in batches of any size.
    """
    problem, _ = planted_problem(5, noise=0.15)
    together = solve_small(problem)
    others = problem._replace(features=problem.features[[0, 0, 4, 2]])
    again = solve_small(others, budget_bytes=1)
    np.testing.assert_allclose(again.centre, together.centre[[0, 0, 4, 2]], atol=1e-9)
    np.testing.assert_allclose(again.loss, together.loss[[0, 0, 4, 2]], atol=1e-9)


def test_shapes_that_do_not_fit_are_named():
    problem, _ = planted_problem(1, noise=0.1)
    setup = setup_for(PAPER, paper_camera((12, 20)))
    cut = problem._replace(features=problem.features[:, :, :10])
    sizes = r"maps of \(12, 20\) cells, the features are \(1, 16, 10, 20\)"
    with pytest.raises(ValueError, match=sizes):
        solver.solve(*cut, setup)
    with pytest.raises(ValueError, match="99 vertex features, the mesh"):
        solver.solve(*problem._replace(bank=problem.bank[:99]), setup)


def test_score_volumes_get_a_quarter_of_the_memory_that_is_free(monkeypatch):
    most = solver.MEMORY_BUDGET
    for free, expected in ((None, most), (400, 100), (1 << 50, most)):
        monkeypatch.setattr(solver, "free_memory", lambda free=free: free)
        assert solver.memory_budget(CPU) == expected
