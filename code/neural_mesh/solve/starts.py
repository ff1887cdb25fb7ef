"""The start grid: poses with which all images begin, rendered once, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.compare.scene import PictureTable, Renderer, Scene, Target, look_at
from neural_mesh.geometry.cameras import camera_centre
from neural_mesh.settings import SolveConfig


@dataclass(frozen=True)
class Starts:
    """The start grid, shared by all images.

    poses [S D A, 6]: S shifts over the map, D distances and A views, of which the views vary
    fastest. table: pictures of the D A poses without shift. shifts_rc: S pairs of whole cells.
    views: A.
    """

    poses: Tensor
    table: PictureTable
    shifts_rc: list[tuple[int, int]]
    views: int

    def losses(self, target: Target, renderer: Renderer) -> Tensor:
        """Loss [B, S D A] of every start for every image."""
        losses = [
            renderer.compare_table(self.table, target, shift_rc) for shift_rc in self.shifts_rc
        ]
        return torch.cat(losses, 1)

    def best(self, losses: Tensor, count: int, separation: float) -> Tensor:
        """Indices [B, count] of the best starts by losses [B, S D A], best first.

        Each view is considered only at the shift and distance where it fits best. separation: see
        `choose_starts`.
        """
        # Choose among views first, then go back to the placement of each.
        view_losses, placement = losses.unflatten(1, (-1, self.views)).min(1)
        view = choose_starts(self.poses[: self.views], view_losses, count, separation)
        return placement.gather(1, view) * self.views + view


def start_poses(config: SolveConfig, distance: float) -> NDArray[np.float64]:
    """Poses [N, 4] (camera centre, theta) of the start grid (reference).

    The grid has azimuths, elevations and thetas, of which theta varies fastest.
    """
    azimuths = np.linspace(0, 2 * np.pi, config.azimuths, endpoint=False)
    elevations = np.linspace(*config.elevations)
    thetas = np.linspace(*config.thetas)
    grid = np.meshgrid(azimuths, elevations, thetas, indexing="ij")
    azimuth, elevation, theta = (axis.ravel() for axis in grid)
    return np.concatenate([camera_centre(azimuth, elevation, distance), theta[:, None]], axis=1)


def start_placements(
    config: SolveConfig, map_hw: tuple[int, int]
) -> tuple[NDArray[np.float64], list[tuple[int, int]]]:
    """Factors [D] of the start distance, and S shifts (rows, columns) in whole cells of the map."""
    if not config.six_d:
        return np.ones(1), [(0, 0)]
    rows, columns = (_whole_cells(np.linspace(*config.shifts) * cells) for cells in map_hw)
    shifts_rc = [(row, column) for row in rows for column in columns]
    return np.geomspace(*config.distance_factors), shifts_rc


def _whole_cells(shifts: NDArray) -> list[int]:
    return np.unique(np.round(shifts).astype(int)).tolist()


def make_starts(scene: Scene, config: SolveConfig, distance: float, renderer: Renderer) -> Starts:
    """Render the start grid at a distance in CAD units."""
    # The pictures reach beyond the map by the largest shift.
    factors, shifts_rc = start_placements(config, scene.camera.map_hw)
    most_down, most_right = np.abs(shifts_rc).max(0).tolist()
    # Render the views at every distance once; a shift only moves the picture.
    views = start_poses(config, distance)
    at_distances = np.concatenate([views * [f, f, f, 1] for f in factors])
    poses = torch.as_tensor(at_distances, device=renderer.device)
    object_from_cv_cam = look_at(poses[:, :3], poses[:, 3])
    margin_rc = (most_down, most_right)
    table = renderer.table(scene, poses[:, :3], object_from_cv_cam, margin_rc)
    # Shifted poses differ in their principal point alone.
    middle = poses.new_tensor(scene.camera.principal_xy)
    principals = middle + poses.new_tensor(shifts_rc).flip(1)
    placed = [torch.cat([poses, xy.expand(len(poses), 2)], 1) for xy in principals]
    return Starts(torch.cat(placed), table, shifts_rc, len(views))


def choose_starts(poses: Tensor, losses: Tensor, count: int, separation: float) -> Tensor:
    """Indices [B, count] of the best starts by losses [B, N], best first.

    poses [N, 4+]: the starts. separation: starts whose rotation is nearer than this, in radians, to
    that of a better start come after all others.
    """
    rotation = look_at(poses[:, :3], poses[:, 3])
    # The trace of the relative rotation gives the cosine of its angle.
    cosine = (torch.einsum("aij,bij->ab", rotation, rotation) - 1) / 2
    # Without a separation only the start itself is taken out.
    near = cosine > (np.cos(separation) if separation else np.inf)
    near.fill_diagonal_(True)
    losses = losses.clone()
    chosen = []
    for _ in range(min(count, len(poses))):
        best = losses.argmin(1)
        chosen.append(best)
        # Neighbours of the chosen start get more than any loss, and keep their order.
        losses = losses + near[best] * 1e3
        losses.scatter_(1, best[:, None], torch.inf)
    return torch.stack(chosen, 1)
