"""The pose solver: which camera explains a feature map best.

Paper section 3.3, reference `MeshPoseSolveAll`. Frames as in `compare.scene`; a pose is (camera
centre, theta, principal point) as in `compare.steps`. The principal point stays where the camera
has it unless `SolveConfig.six_d`. Angles are radians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.compare.scene import (
    Renderer,
    Scene,
    Stage,
    Target,
    images_that_fit,
    make_scene,
)
from neural_mesh.geometry.cameras import MapCamera, Pose, spherical_from_centre
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine.resources import free_memory
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.candidates import Track, take
from neural_mesh.solve.plan import Plan, make_plan
from neural_mesh.solve.starts import Starts, make_starts

MEMORY_BUDGET = 2 << 30  # bytes of score volumes held at a time on the CPU, at most
FREE_SHARE = 0.25  # share of the free memory that score volumes may take


@dataclass(frozen=True)
class Setup:
    """Everything about solving that images and meshes share.

    config: the solver and its settings. camera, start_distance: the camera that renders and the
    distance of the start grid in CAD units, see `plan.choose_camera`. renderer: see
    `choose_renderer`. plan: the stages and steps.
    """

    config: SolveConfig
    camera: MapCamera
    start_distance: float
    renderer: Renderer
    plan: Plan

    def starts(self, mesh: Mesh) -> Starts:
        """Make the start grid of a mesh, for several calls of `solve`."""
        scene = make_scene(mesh, self.camera)
        return make_starts(scene, self.config, self.start_distance, self.renderer)


def make_setup(
    config: SolveConfig,
    camera: MapCamera,
    start_distance: float,
    renderer: Renderer,
    plan: Plan | None = None,
) -> Setup:
    """Make a setup. plan: takes the place of the solver's own.

    Raises ValueError for a solver that does not exist.
    """
    return Setup(config, camera, start_distance, renderer, plan or make_plan(config))


@dataclass(frozen=True)
class SolvedPoses:
    """Solved poses of B images, in NumPy arrays.

    pose: azimuth in [0, 2 pi), elevation, theta and distance [B], and principal_xy [B, 2], where
    the object's origin falls on the map, in cells. centre [B, 3]: the pose's camera centre, as the
    solver computed it. loss [B]: that of the pose. start [B]: index of its start in the grid.
    start_losses [B, N]: losses of the whole grid. evaluations [B]: number of renderings compared
    with the image after the grid, over all candidates. path [B, steps + 1, 4] (centre, theta),
    path_principal_xy [B, steps + 1, 2], path_losses [B, steps + 1]: every iterate, the last one
    repeated where a candidate stopped early; None unless traced.
    """

    pose: Pose
    loss: NDArray[np.float64]
    start: NDArray[np.int64]
    evaluations: NDArray[np.int64]
    centre: NDArray[np.float64]
    start_losses: NDArray[np.float64]
    path: NDArray[np.float64] | None = None
    path_principal_xy: NDArray[np.float64] | None = None
    path_losses: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.loss)

    @classmethod
    def joined(cls, batches: Sequence[SolvedPoses]) -> SolvedPoses:
        """The images of all batches, in order."""
        columns: dict[str, Any] = {"pose": Pose.joined([batch.pose for batch in batches])}
        for field in fields(cls)[1:]:
            values = [getattr(batch, field.name) for batch in batches]
            columns[field.name] = None if values[0] is None else np.concatenate(values)
        return cls(**columns)


def memory_budget(device: torch.device) -> int:
    """Bytes that score volumes may take on a device.

    They are a quarter of the free memory, and on the CPU at most `MEMORY_BUDGET`.
    """
    if device.type == "cuda":
        return int(FREE_SHARE * torch.cuda.mem_get_info(device)[0])
    free = free_memory()
    return MEMORY_BUDGET if free is None else min(MEMORY_BUDGET, int(FREE_SHARE * free))


def solve(
    mesh: Mesh,
    features: Tensor,
    bank: Tensor,
    clutter: Tensor,
    setup: Setup,
    starts: Starts | None = None,
    *,
    trace: bool = False,
    budget_bytes: int | None = None,
) -> SolvedPoses:
    """Find the pose of the mesh in every feature map.

    features [B, C, H, W]: unit feature maps of any float type; scores are computed in float32 on
    the renderer's device. bank [V, C]: unit vertex features. clutter [C]: unit clutter feature,
    used if config.clutter. starts: the result of `Setup.starts` for this mesh, made here by
    default. trace: also return every iterate. budget_bytes: memory for the score volumes held at a
    time, by default `memory_budget`.

    Returns the poses in the order of the images, which influence each other in rounding at most.
    Raises ValueError when shapes do not fit together.
    """
    # Check the shapes before anything is rendered.
    map_hw = tuple(setup.camera.map_hw)
    if tuple(features.shape[2:]) != map_hw:
        raise ValueError(
            f"the camera is for maps of {setup.camera.map_hw} cells, "
            f"the features are {tuple(features.shape)}"
        )
    if len(bank) != len(mesh.vertices):
        raise ValueError(
            f"the bank has {len(bank)} vertex features, the mesh {len(mesh.vertices)} vertices"
        )
    # Everything that all images share.
    device = setup.renderer.device
    scene = make_scene(mesh, setup.camera)
    starts = starts or setup.starts(mesh)
    bank = bank.to(device, torch.float32)
    clutter = clutter.to(device, torch.float32) if setup.config.clutter else None
    # Solve as many images at a time as fit into the memory.
    budget_bytes = memory_budget(device) if budget_bytes is None else budget_bytes
    solved = []
    for batch in features.split(images_that_fit(scene, features.shape[1], budget_bytes)):
        target = setup.renderer.target(batch.to(device, torch.float32), bank, clutter)
        solved.append(solve_target(scene, target, starts, setup, trace))
    return SolvedPoses.joined(solved)


def solve_target(
    scene: Scene, target: Target, starts: Starts, setup: Setup, trace: bool = False
) -> SolvedPoses:
    """Solve images whose scores are available in `target`."""
    plan = setup.plan
    # Score the start grid.
    start_losses = starts.losses(target, setup.renderer)
    start = starts.best(start_losses, plan.stages[0][0], plan.separation)
    track = Track.begin(starts.poses[start], start)
    # Take the steps of each stage with the best candidates of the one before.
    rules = plan.rules(scene.camera.focal)
    evaluations = torch.zeros_like(start[:, 0])
    done = 0
    for number, (count, steps) in enumerate(plan.stages):
        finish = number == len(plan.stages) - 1
        stage = Stage(plan.rates[done : done + steps], done, finish)
        track = track.best(count)
        path = setup.renderer.advance(scene, target, track.candidates, rules, stage, trace)
        track = track.extended(path)
        evaluations += track.candidates.evaluations.sum(1)
        done += steps
    return _solved(track, start_losses, evaluations, plan.keep_best, trace)


def _solved(
    track: Track, start_losses: Tensor, evaluations: Tensor, keep_best: bool, trace: bool
) -> SolvedPoses:
    """The best candidate of every image."""
    # A plan returns either the last evaluated poses or the best iterates.
    candidates = track.candidates
    losses = candidates.best_loss if keep_best else candidates.loss
    winner = losses.argmin(1, keepdim=True)
    poses = _winning(candidates.best_poses if keep_best else candidates.poses, winner)
    path = _winning(track.path, winner)
    # The solver works with camera centres, and a Pose holds angles and a distance.
    centre = poses[:, :3].copy()
    azimuth, elevation, distance = spherical_from_centre(centre)
    return SolvedPoses(
        pose=Pose(azimuth, elevation, poses[:, 3].copy(), distance, poses[:, 4:].copy()),
        loss=_winning(losses, winner),
        start=_winning(track.start, winner),
        evaluations=evaluations.cpu().numpy(),
        centre=centre,
        start_losses=start_losses.cpu().numpy(),
        path=path[..., :4] if trace else None,
        path_principal_xy=path[..., 4:6] if trace else None,
        path_losses=path[..., 6] if trace else None,
    )


def _winning(values: Tensor, winner: Tensor) -> NDArray:
    """Values [B, ...] of the candidate winner [B, 1] from values [B, K, ...]."""
    return take(values, winner)[:, 0].cpu().numpy()
