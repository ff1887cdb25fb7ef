"""Render-and-compare on a GPU, with the kernels that `triton_launch` starts."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from neural_mesh.compare.rasteriser import rasterised_table
from neural_mesh.compare.scene import (
    CandidateStates,
    Gradients,
    MapScores,
    MeshArrays,
    PictureTable,
    Scene,
    Stage,
    StepRules,
    Target,
    Views,
    principal_points,
    score_target,
)
from neural_mesh.compare.specification import compare_table
from neural_mesh.compare.with_numba import mesh_arrays


@dataclass(frozen=True)
class TritonRenderer:
    """`Renderer` on a GPU, or in Triton's interpreter."""

    device: torch.device
    name: ClassVar[str] = "triton"

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
        """See `Renderer.compare`; in float32, whatever the dtype of `centre`."""
        principal_xy = principal_points(scene.camera, centre, principal_xy)
        views = Views(_single(centre), _single(rotation), _single(principal_xy))
        result = kernels().compare(
            mesh_on_device(scene, centre.device),
            float(scene.camera.focal),
            scores_on_device(target, scene.camera.map_hw[1]),
            views,
        )
        return Gradients(*(x.to(centre) for x in result))

    def table(
        self,
        scene: Scene,
        centre: Tensor,
        rotation: Tensor,
        margin_rc: tuple[int, int] = (0, 0),
    ) -> PictureTable:
        """See `Renderer.table`."""
        return rasterised_table(scene, centre, rotation, margin_rc, torch.int64)

    def compare_table(
        self, table: PictureTable, target: Target, shift_rc: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """See `Renderer.compare_table`."""
        return compare_table(table, target, shift_rc)

    def advance(
        self,
        scene: Scene,
        target: Target,
        candidates: CandidateStates,
        rules: StepRules,
        stage: Stage,
        trace: bool = False,
    ) -> Tensor:
        """See `Renderer.advance`; the stage is one kernel, for which the host does not wait."""
        rows = stage.rows if trace else 0
        path = candidates.poses.new_empty(*candidates.loss.shape, rows, 7)
        kernels().advance(
            mesh_on_device(scene, target.scores.device),
            float(scene.camera.focal),
            scores_on_device(target, scene.camera.map_hw[1]),
            candidates,
            rules,
            stage,
            path,
        )
        return path


def has_triton(device: torch.device) -> bool:
    """Whether Triton is installed, and the device is a GPU or Triton's interpreter is on."""
    on_gpu = device.type == "cuda" or bool(os.environ.get("TRITON_INTERPRET"))
    return on_gpu and importlib.util.find_spec("triton") is not None


def kernels() -> ModuleType:
    """The module `triton_launch`, imported late because only PyTorch for CUDA brings Triton."""
    from neural_mesh.compare import triton_launch

    return triton_launch


def triton_complaint() -> str:
    """Why the Triton that is installed cannot be imported; empty if it can be."""
    try:
        kernels()
    except Exception as error:  # of a library, a driver, another PyTorch
        lines = str(error).strip().splitlines() or ["no reason given"]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


@lru_cache(maxsize=4)
def mesh_on_device(scene: Scene, device: torch.device) -> MeshArrays:
    """The mesh in the form that the kernels take; it stays on the device for further calls."""
    return kernels().place_mesh(mesh_arrays(scene), device)


def scores_on_device(target: Target, width: int) -> MapScores:
    """Scores and clutter of maps `width` cells wide, in the form that the kernels take."""
    scores = target.scores.float().contiguous()
    if target.clutter is None:
        # The kernels do not read a clutter that is not used, and any tensor takes its place.
        return MapScores(scores, scores, False, width)
    return MapScores(scores, target.clutter.float().contiguous(), True, width)


def _single(values: Tensor) -> Tensor:
    return values.detach().float().contiguous()
