"""The optimiser's steps in plain PyTorch, with which tests compare the compiled optimisers.

A pose [6] is (camera centre, theta, principal point): the camera sits anywhere, looks at the
object's origin with z up, and is turned by theta about its viewing direction; the principal point
is where the origin falls on the map, in cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neural_mesh.compare.scene import (
    ADAM_EPSILON,
    CandidateStates,
    Renderer,
    Scene,
    Stage,
    StepRules,
    Target,
    look_at,
    principal_gradient,
)


class Problem(NamedTuple):
    """The function to minimise: the loss of a scene's poses for some images, by one renderer."""

    renderer: Renderer
    scene: Scene
    target: Target


def advance(
    problem: Problem, candidates: CandidateStates, rules: StepRules, stage: Stage, trace: bool
) -> Tensor:
    """Take a stage's steps with every candidate, one after the other; see `Renderer.advance`."""
    count = candidates.loss.shape[1]
    path = []
    candidates.evaluations.zero_()
    for s in range(stage.rows):
        last = s == len(stage.rates)
        for k in range(count):
            # Evaluate this iterate, or the average at the end.
            if last and rules.averaging:
                candidates.poses[:, k] = candidates.average[:, k]
            poses = candidates.poses[:, k].clone()
            going = candidates.since_best[:, k] < rules.patience
            loss, gradient, rotation = pose_gradient(problem, poses)
            _record(candidates, k, going | last, loss)
            path.append(torch.cat([poses, candidates.loss[:, k : k + 1]], 1))
            if last:
                continue
            # Take Adam's step, for the images whose candidate has not stopped.
            going &= candidates.since_best[:, k] < rules.patience
            number = stage.done + s + 1
            if rules.local_scale:
                gradient[:, :4] = local_gradient(poses, rotation, gradient)
            moments = candidates.first[:, k], candidates.second[:, k]
            step = adam_step(gradient, moments, stage.rates[s], number, rules)
            moved = move(poses, rotation, step, rules)
            average = candidates.average[:, k]
            averaged = average.lerp(moved, share_of_average(rules, number))
            candidates.poses[:, k] = torch.where(going[:, None], moved, poses)
            candidates.average[:, k] = torch.where(going[:, None], averaged, average)
    if not trace:
        return candidates.poses.new_zeros(*candidates.loss.shape, 0, 7)
    return torch.stack(path, 1).unflatten(1, (-1, count)).transpose(1, 2)


def pose_gradient(problem: Problem, poses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B], gradient [B, 6], and the look-at [B, 3, 3] of poses [B, 6], one per image."""
    renderer, scene, target = problem
    with torch.enable_grad():
        poses = poses.detach().requires_grad_()
        rotation = look_at(poses[:, :3], poses[:, 3])
        found = renderer.compare(scene, target, poses[:, :3], rotation, poses[:, 4:])
        (gradient,) = torch.autograd.grad(rotation, poses, found.grad_rotation)
    # The centre and the principal point also enter the loss directly.
    rotation = rotation.detach()
    gradient[:, :3] += found.grad_centre
    gradient[:, 4:] = principal_gradient(scene.camera, rotation, found.grad_rotation)
    return found.loss, gradient, rotation


def _record(candidates: CandidateStates, k: int, seen: Tensor, loss: Tensor) -> None:
    """Record the loss [B] of candidate k for the images whose mask `seen` [B] is set."""
    better = seen & (loss < candidates.best_loss[:, k])
    since = candidates.since_best[:, k] + seen
    # torch.where keeps the numbers of the images that were not seen.
    poses = candidates.poses[:, k]
    best_poses = candidates.best_poses[:, k]
    candidates.loss[:, k] = torch.where(seen, loss, candidates.loss[:, k])
    candidates.best_loss[:, k] = torch.where(better, loss, candidates.best_loss[:, k])
    candidates.best_poses[:, k] = torch.where(better[:, None], poses, best_poses)
    candidates.since_best[:, k] = torch.where(better, 0, since)
    candidates.evaluations[:, k] += seen


def adam_step(
    gradient: Tensor, moments: tuple[Tensor, Tensor], rate: float, number: int, rules: StepRules
) -> Tensor:
    """Step [B, 6] of Adam's update `number` (from 1), by the formula of `torch.optim.Adam`.

    The step of the principal point is in cells. Both moments [B, 6] are updated in place.
    """
    first, second = moments
    mean = first.lerp_(gradient, 1 - rules.beta1) / (1 - rules.beta1**number)
    square = second.lerp_(gradient**2, 1 - rules.beta2) / (1 - rules.beta2**number)
    step = -rate * mean / (square.sqrt() + ADAM_EPSILON)
    step[:, 4:] *= rules.principal_scale
    return step


def move(poses: Tensor, rotation: Tensor, step: Tensor, rules: StepRules) -> Tensor:
    """Poses [B, 6] after a step [B, 6]. rotation [B, 3, 3]: the poses' look-at."""
    moved = poses + step
    if rules.local_scale:
        step[:, 3] *= rules.local_scale
        moved[:, :4] = local_move(poses, rotation, step)
    return moved


def share_of_average(rules: StepRules, number: int) -> float:
    """Share of iterate `number` (from 1) in the running average; the start has none."""
    if not rules.averaging:
        return 0.0
    return rules.averaging / (1 - (1 - rules.averaging) ** number)


def local_gradient(poses: Tensor, rotation: Tensor, gradient: Tensor) -> Tensor:
    """Turn a gradient [B, 4+] by (centre, theta) into one [B, 4] in the camera's own frame.

    Its variables are (sideways, up, theta, log distance), where sideways and up are angles by which
    the camera moves on its sphere. poses [B, 4+], rotation [B, 3, 3]: the poses and their look-at.
    """
    distance = poses[:, :3].norm(dim=1, keepdim=True)
    # Moving sideways by an angle moves the centre by distance times that angle.
    axes = _turned_back(poses, rotation)
    along = (gradient[:, None, :3] @ axes)[:, 0] * distance  # right, up, forward
    return torch.stack([along[:, 0], along[:, 1], gradient[:, 3], -along[:, 2]], 1)


def local_move(poses: Tensor, rotation: Tensor, step: Tensor) -> Tensor:
    """Poses [B, 4] after a step [B, 4+] in the variables of `local_gradient`."""
    distance = poses[:, :3].norm(dim=1, keepdim=True) * step[:, 3:4].exp()
    # Step from the unit direction towards the camera along the tangent plane, and normalise.
    towards = torch.stack([step[:, 0], step[:, 1], -torch.ones_like(step[:, 0])], 1)
    direction = (_turned_back(poses, rotation) @ towards[..., None])[..., 0]
    centre = distance * direction / towards.norm(dim=1, keepdim=True)
    return torch.cat([centre, poses[:, 3:4] + step[:, 2:3]], 1)


def _turned_back(poses: Tensor, rotation: Tensor) -> Tensor:
    """The camera's right, up and forward axes without theta, as columns [B, 3, 3]."""
    cos = torch.cos(poses[:, 3:4])
    sin = torch.sin(poses[:, 3:4])
    x, y, z = rotation.unbind(2)
    return torch.stack([cos * x - sin * y, -sin * x - cos * y, z], 2)
