"""Feature maps to poses with the meshes of a model, each made ready once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.batches import ANY_MESH
from neural_mesh.solve.halving import in_halves
from neural_mesh.solve.model import Model
from neural_mesh.solve.pose import Poses, Starts, choose_camera, solve, starts_of


class SolvedImage(NamedTuple):
    """What the solver says of one image.

    pose: of length 1; start: index into the start grid; mesh: from 1.
    """

    pose: Pose
    loss: float
    start: int
    mesh: int

    @property
    def rank(self) -> float:
        """The loss, so that one that is not finite is never the lowest."""
        return self.loss if np.isfinite(self.loss) else np.inf


class ReadyMesh(NamedTuple):
    """A mesh with its start grid rendered.

    bank [V, C]: vertex features. clutter [C]: clutter feature. Both are on the model's device.
    """

    mesh: Mesh
    bank: Tensor
    clutter: Tensor
    starts: Starts


class MeshSolver:
    """`solve` with the meshes of a model.

    Each mesh's banks are brought to the device, and its start grid is rendered, once. Where a
    GPU's memory is too small for a batch, see `in_halves`.
    """

    def __init__(self, model: Model, config: SolveConfig, renderer: str):
        trained = model.checkpoint.config
        self.model = model
        self.config = config
        self.renderer = renderer
        self.camera, self.start_distance = choose_camera(
            config, trained.category, model.map_hw, trained.image_scale
        )
        self.ready: dict[int, ReadyMesh] = {}  # by the mesh's number

    def solve(self, number: int, features: Tensor) -> Poses:
        """Poses of mesh `number` in feature maps [B, C, H, W]."""
        setup = self.config, self.camera, self.start_distance, self.renderer
        if number not in self.ready:
            mesh = self.model.mesh(number)
            starts = starts_of(mesh, *setup, features.device)
            self.ready[number] = ReadyMesh(mesh, *self.model.banks(number), starts)
        mesh, bank, clutter, starts = self.ready[number]
        parts = in_halves(
            lambda part: solve(mesh, features[part], bank, clutter, *setup, starts),
            len(features),
            "score volumes",
        )
        return Poses.joined(parts)

    def solve_images(self, mesh: int, features: Tensor) -> list[SolvedImage]:
        """What is found in each of the feature maps [B, C, H, W].

        mesh: its number or, for ANY_MESH, all of them, and the one of the lowest loss wins.
        """
        if mesh != ANY_MESH:
            return self._with_mesh(mesh, features)
        numbers = range(1, len(self.model.checkpoint.memory) + 1)
        by_mesh = [self._with_mesh(number, features) for number in numbers]
        return [
            min(candidates, key=lambda solved: solved.rank)
            for candidates in zip(*by_mesh, strict=True)
        ]

    def _with_mesh(self, number: int, features: Tensor) -> list[SolvedImage]:
        solved = self.solve(number, features)
        principal_xy = solved.principal_xy if self.config.six_d else None
        pose = Pose(solved.azimuth, solved.elevation, solved.theta, solved.distance, principal_xy)
        images = []
        for i in range(len(features)):
            images.append(SolvedImage(pose[i : i + 1], solved.loss[i], solved.start[i], number))
        return images
