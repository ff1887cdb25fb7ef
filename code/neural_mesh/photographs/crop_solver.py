"""Crops of photographs to poses in them, by the meshes of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.categories import category_settings
from neural_mesh.compare.scene import Renderer
from neural_mesh.geometry import cameras
from neural_mesh.photographs.framing import Framing, cut_crop
from neural_mesh.photographs.poses import Candidates
from neural_mesh.settings import FEATURE_STRIDE, SolveConfig
from neural_mesh.solve.mesh_solver import MeshSolver
from neural_mesh.solve.model import Model
from neural_mesh.solve.solver import solve
from neural_mesh.solve.starts import start_poses
from neural_mesh.storage.pictures import Photograph


class CropSolver:
    """Solves crops of photographs; each kind of search is made ready once.

    crop_hw: size of a crop, in pixels. cell: side of a cell of the feature map, in crop pixels.
    """

    def __init__(self, model: Model, renderer: Renderer):
        self.model = model
        self.renderer = renderer
        trained = model.checkpoint.config
        self.crop_hw = category_settings(trained.category).crop_hw
        self.cell = FEATURE_STRIDE / trained.image_scale
        self.image_scale = trained.image_scale
        self.solvers: dict[SolveConfig, MeshSolver] = {}

    def solver(self, config: SolveConfig) -> MeshSolver:
        """The solver of one kind of search."""
        if config not in self.solvers:
            self.solvers[config] = MeshSolver(self.model, config, self.renderer)
        return self.solvers[config]

    def features(self, photographs: Sequence[Photograph], framings: Sequence[Framing]) -> Tensor:
        """Feature maps [B, C, H, W] of one crop of each photograph."""
        # Each is as large as the crops that the network was trained on, whatever the photograph is.
        crops = []
        for photograph, framing in zip(photographs, framings, strict=True):
            crops.append(cut_crop(photograph, framing, self.crop_hw, self.image_scale))
        return self.model.features(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))

    def solve(self, features: Tensor, config: SolveConfig) -> Candidates:
        """A pose in each crop, of the mesh of the category that explains it best."""
        solver = self.solver(config)
        views = view_rotations(config)
        # Which of several meshes an object has is not known, so all are tried.
        every_mesh = []
        for number in range(1, len(self.model.checkpoint.memory) + 1):
            solved = solver.solve(number, features)
            # A view is started at several distances and places, of which the best one counts.
            view_losses = solved.start_losses.reshape(len(features), -1, len(views)).min(1)
            # The solver counts in cells of the feature map, not in crop pixels.
            pose = replace(solved.pose, principal_xy=solved.pose.principal_xy * self.cell)
            mesh = np.full(len(features), number)
            every_mesh.append(Candidates(pose, solved.loss, mesh, view_losses, views))
        return Candidates.best_of(every_mesh)

    def path(self, features: Tensor, mesh: int, config: SolveConfig) -> NDArray[np.float64]:
        """The iterates [S, 4] (camera centre, theta) of the search with a mesh in one crop."""
        bank, clutter = self.model.banks(mesh)
        setup = self.solver(config).setup
        solved = solve(self.model.mesh(mesh), features, bank, clutter, setup, trace=True)
        return solved.path[0]


def view_rotations(config: SolveConfig) -> NDArray[np.float64]:
    """Rotations pascal_cam_from_object [N, 3, 3] of the start grid's views."""
    # The distance does not turn the camera.
    views = start_poses(config, 1.0)
    azimuth, elevation, _ = cameras.spherical_from_centre(views[:, :3])
    return cameras.pascal_cam_from_object(azimuth, elevation, views[:, 3])
