"""Render-and-compare on the CPU, with the kernels of `kernels_numba`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.compare import kernels_numba
from neural_mesh.compare.rasteriser import rasterised_table, run_kernel
from neural_mesh.compare.scene import (
    CandidateStates,
    Gradients,
    MapScores,
    MeshArrays,
    PictureTable,
    Scene,
    Stage,
    StepRules,
    TableArrays,
    Target,
    Views,
    principal_points,
    score_target,
)
from neural_mesh.geometry.meshes import CuboidGrid


@dataclass(frozen=True)
class NumbaRenderer:
    """`Renderer` on the CPU."""

    device: ClassVar[torch.device] = torch.device("cpu")
    name: ClassVar[str] = "numba"

    def target(self, features: Tensor, bank: Tensor, clutter: Tensor | None) -> Target:
        """See `Renderer.target`."""
        return score_target(features, bank, clutter)

    def compare(
        self,
        scene: Scene,
        target: Target,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> Gradients:
        """See `Renderer.compare`; in float64, whatever the dtype of `centre`."""
        principal_xy = principal_points(scene.camera, centre, principal_xy)
        views = Views(_array(centre), _array(rotation), _array(principal_xy))
        loss = np.empty(len(target))
        result = Gradients(loss, np.empty_like(views.centre), np.empty_like(views.rotation))
        run_kernel(
            kernels_numba.compare,
            mesh_arrays(scene),
            float(scene.camera.focal),
            map_scores(target, scene.camera.map_hw[1]),
            views,
            *result,
        )
        return Gradients(*(torch.as_tensor(x).to(centre) for x in result))

    def table(
        self,
        scene: Scene,
        centre: Tensor,
        rotation: Tensor,
        margin_rc: tuple[int, int] = (0, 0),
    ) -> PictureTable:
        """See `Renderer.table`."""
        return rasterised_table(scene, centre, rotation, margin_rc, torch.int32)

    def compare_table(
        self, table: PictureTable, target: Target, shift_rc: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """See `Renderer.compare_table`."""
        row, col = table.first_cell_rc(shift_rc)
        pictures = TableArrays(table.corners.numpy(), table.bary.numpy(), table.width, row, col)
        loss = np.empty((len(target), table.corners.shape[1]))
        scores = map_scores(target, table.map_hw[1])
        run_kernel(kernels_numba.score_table, pictures, scores, loss)
        return torch.as_tensor(loss)

    def advance(
        self,
        scene: Scene,
        target: Target,
        candidates: CandidateStates,
        rules: StepRules,
        stage: Stage,
        trace: bool = False,
    ) -> Tensor:
        """See `Renderer.advance`."""
        path = np.empty((*candidates.loss.shape, stage.rows if trace else 0, 7))
        run_kernel(
            kernels_numba.advance,
            mesh_arrays(scene),
            float(scene.camera.focal),
            map_scores(target, scene.camera.map_hw[1]),
            CandidateStates(*(x.numpy() for x in candidates)),
            rules,
            stage,
            path,
        )
        return torch.as_tensor(path)


def mesh_arrays(scene: Scene) -> MeshArrays:
    """The mesh in the form that the kernels take."""
    grid = scene.cuboid or CuboidGrid(np.zeros(3), np.zeros(3), (0, 0, 0))
    return MeshArrays(
        scene.vertices,
        scene.faces,
        np.ascontiguousarray(grid.low, np.float64),
        np.ascontiguousarray(grid.high, np.float64),
        np.array(grid.samples),
        scene.cuboid is not None,
    )


def map_scores(target: Target, width: int) -> MapScores:
    """Scores and clutter of maps `width` cells wide, in the form that the kernels take."""
    scores = np.ascontiguousarray(target.scores.detach().cpu().numpy(), np.float32)
    # The kernels do not read a clutter that is not used, but its type has to be the same.
    if target.clutter is None:
        return MapScores(scores, np.zeros(scores.shape[:2], np.float32), False, width)
    clutter = np.ascontiguousarray(target.clutter.detach().cpu().numpy(), np.float32)
    return MapScores(scores, clutter, True, width)


def _array(values: Tensor) -> NDArray[np.float64]:
    return np.ascontiguousarray(values.detach().cpu().numpy(), np.float64)
