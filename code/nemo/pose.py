"""The pose solver: which camera explains a feature map best (paper section 3.3, reference `MeshPoseSolveAll`).

A pose is (camera centre, theta): the camera sits anywhere, looks at the object's origin with z up, and is turned by
theta about its viewing direction. Frames as in `rendering`; angles are radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo import kernels_numba, rendering
from nemo.cameras import camera_centre, spherical_from_centre
from nemo.meshes import Mesh
from nemo.rendering import MapCamera, PictureTable, Scene, Target
from nemo.settings import SolveConfig

MEMORY_BUDGET = 2 << 30  # bytes of score volumes held at a time


@dataclass(frozen=True)
class Poses:
    """Solved poses of B images, NumPy.

    azimuth in [0, 2 pi), elevation, theta [B] in radians, distance [B] and centre [B, 3] (camera centre, object frame)
    in CAD units, loss [B] of this pose, start [B]: index into the start grid, start_losses [B, N] of the whole grid,
    evaluations [B]: renderings compared with the image after the grid.
    path [B, steps + 1, 4] (centre, theta) and path_losses [B, steps + 1]: every iterate; None unless traced.
    """

    azimuth: NDArray[np.float64]
    elevation: NDArray[np.float64]
    theta: NDArray[np.float64]
    distance: NDArray[np.float64]
    loss: NDArray[np.float64]
    start: NDArray[np.int64]
    evaluations: NDArray[np.int64]
    centre: NDArray[np.float64]
    start_losses: NDArray[np.float64]
    path: NDArray[np.float64] | None = None
    path_losses: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.loss)


@dataclass(frozen=True)
class Starts:
    """The start grid: poses [N, 4] (centre, theta) and the pictures seen from them, shared by all images."""

    poses: Tensor
    table: PictureTable


def start_poses(config: SolveConfig, distance: float) -> NDArray[np.float64]:
    """Poses [N, 4] (camera centre, theta) of the start grid: azimuth, elevation, theta, the last fastest (reference)."""
    azimuth = np.linspace(0, 2 * np.pi, config.azimuths, endpoint=False)
    grid = np.meshgrid(azimuth, np.linspace(*config.elevations), np.linspace(*config.thetas), indexing="ij")
    azimuth, elevation, theta = (g.ravel() for g in grid)
    return np.concatenate([camera_centre(azimuth, elevation, distance), theta[:, None]], axis=1)


def learning_rates(config: SolveConfig) -> NDArray[np.float64]:
    """Learning rate of each step [total_epochs] of the paper's schedule."""
    return config.learning_rate * config.drop_factor ** (np.arange(config.total_epochs) // config.step_drop)


def make_starts(scene: Scene, config: SolveConfig, distance: float, renderer: str, device: torch.device) -> Starts:
    """Render the start grid at a distance in CAD units."""
    poses = torch.as_tensor(start_poses(config, distance), device=device)
    rotation = rendering.look_at(poses[:, :3], poses[:, 3])
    return Starts(poses, rendering.render_table(scene, poses[:, :3], rotation, renderer))


def images_that_fit(mesh: Mesh, camera: MapCamera, channels: int, budget_bytes: int = MEMORY_BUDGET) -> int:
    """How many images `solve` can take at a time within a memory budget, at least one."""
    return rendering.images_that_fit(rendering.make_scene(mesh, camera), channels, budget_bytes)


def solve(
    mesh: Mesh,
    features: Tensor,
    bank: Tensor,
    clutter: Tensor,
    config: SolveConfig,
    camera: MapCamera,
    start_distance: float,
    renderer: str = "auto",
    *,
    trace: bool = False,
    budget_bytes: int = MEMORY_BUDGET,
) -> Poses:
    """Find the pose of the mesh in every feature map.

    features [B, C, H, W]: unit feature maps. bank [V, C]: unit vertex features. clutter [C]: unit clutter feature, used
    if config.clutter. start_distance: CAD units, of the start grid. renderer: see `rendering.resolve_renderer`, on the
    device of `features`. trace: also return every iterate. budget_bytes: for the score volumes held at a time.

    Returns `Poses` in the order of the images; an image's result does not depend on the others in the call.
    Raises ValueError when shapes do not fit together or the renderer cannot be used.
    """
    if tuple(features.shape[2:]) != tuple(camera.map_hw):
        raise ValueError(f"the camera is for maps of {camera.map_hw} cells, the features are {tuple(features.shape)}")
    if len(bank) != len(mesh.vertices):
        raise ValueError(f"the bank has {len(bank)} vertex features, the mesh {len(mesh.vertices)} vertices")
    renderer = rendering.resolve_renderer(renderer, features.device)
    scene = rendering.make_scene(mesh, camera)
    starts = make_starts(scene, config, start_distance, renderer, features.device)
    size = rendering.images_that_fit(scene, features.shape[1], budget_bytes)
    parts = []
    for chunk in features.split(size):
        target = rendering.make_target(chunk, bank, clutter if config.clutter else None, renderer)
        parts.append(_solve_target(scene, target, starts, config, renderer, trace))
    return _concatenate(parts)


def _concatenate(parts: list[Poses]) -> Poses:
    columns = {name: [getattr(p, name) for p in parts] for name in Poses.__dataclass_fields__}
    return Poses(**{name: None if c[0] is None else np.concatenate(c) for name, c in columns.items()})


def _solve_target(
    scene: Scene, target: Target, starts: Starts, config: SolveConfig, renderer: str, trace: bool
) -> Poses:
    """The paper's solver: the best start, then Adam; the last iterate is returned."""
    start_losses = rendering.compare_table(starts.table, target, renderer)
    start = start_losses.argmin(1)
    descend = _descend_numba if renderer == "numba" else _descend
    poses, loss, path = descend(scene, target, starts.poses[start], config, renderer, trace)
    centre, path = poses[:, :3].cpu().numpy(), None if path is None else path.cpu().numpy()
    azimuth, elevation, distance = spherical_from_centre(centre)
    return Poses(
        azimuth, elevation, poses[:, 3].cpu().numpy(), distance, loss.cpu().numpy(), start.cpu().numpy(),
        np.full(len(centre), config.total_epochs + 1), centre, start_losses.cpu().numpy(),
        None if path is None else path[..., :4], None if path is None else path[..., 4],
    )  # fmt: skip


def _descend(
    scene: Scene, target: Target, poses: Tensor, config: SolveConfig, renderer: str, trace: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Adam on (centre, theta), step by step in PyTorch: last poses [B, 4], their loss [B], path [B, steps + 1, 5]."""
    poses = poses.clone().requires_grad_()
    optimiser = torch.optim.Adam([poses], betas=config.adam_betas)
    path = []
    for rate in [*learning_rates(config), None]:
        rotation = rendering.look_at(poses[:, :3], poses[:, 3])
        loss, grad_centre, grad_rotation = rendering.compare(scene, target, poses[:, :3], rotation, renderer)
        path.append(torch.cat([poses.detach(), loss[:, None]], 1) if trace else None)
        if rate is None:
            return poses.detach(), loss, torch.stack(path, 1) if trace else None
        optimiser.zero_grad()
        rotation.backward(grad_rotation)
        poses.grad[:, :3] += grad_centre
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()


def _descend_numba(
    scene: Scene, target: Target, poses: Tensor, config: SolveConfig, renderer: str, trace: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `_descend`, compiled."""
    scores, clutter, use_clutter = rendering.numba_target(target)
    poses, loss = poses.numpy().copy(), np.empty(len(poses))
    path = np.empty((len(poses), config.total_epochs + 1 if trace else 0, 5))
    kernels_numba.descend(
        rendering.numba_shape(scene), poses, rendering.numba_intrinsics(scene.camera), scene.camera.map_hw[1],
        scores, clutter, use_clutter, learning_rates(config), *config.adam_betas, loss, path,
    )  # fmt: skip
    return torch.as_tensor(poses), torch.as_tensor(loss), torch.as_tensor(path) if trace else None
