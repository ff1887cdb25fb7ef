"""Poses of feature maps with the meshes of a model, each of which is prepared once."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from neural_mesh.compare.scene import Renderer
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.batches import ANY_MESH
from neural_mesh.solve.halving import in_halves
from neural_mesh.solve.model import Model
from neural_mesh.solve.plan import choose_camera
from neural_mesh.solve.solver import SolvedPoses, make_setup, solve
from neural_mesh.solve.starts import Starts


class SolvedImage(NamedTuple):
    """The solver's result for one image.

    pose: a Pose of length 1. start: index into the start grid. mesh: number of the mesh, from 1.
    """

    pose: Pose
    loss: float
    start: int
    mesh: int

    @property
    def rank(self) -> float:
        """The loss, or infinity where it is not finite, so that it is never the lowest."""
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

    Each mesh's features are copied to the device once, and its start grid is rendered once. A batch
    that does not fit into a GPU's memory is divided, see `in_halves`.
    """

    def __init__(self, model: Model, config: SolveConfig, renderer: Renderer):
        trained = model.checkpoint.config
        self.model = model
        self.config = config
        # The camera depends on the size of the maps for which the network was trained.
        camera, start_distance = choose_camera(
            config, trained.category, model.map_hw, trained.image_scale
        )
        self.setup = make_setup(config, camera, start_distance, renderer)
        self.ready: dict[int, ReadyMesh] = {}  # by the mesh's number

    def solve(self, number: int, features: Tensor) -> SolvedPoses:
        """Poses of mesh `number` in feature maps [B, C, H, W]."""
        # All batches of a mesh begin with the same starts.
        if number not in self.ready:
            mesh = self.model.mesh(number)
            starts = self.setup.starts(mesh)
            self.ready[number] = ReadyMesh(mesh, *self.model.banks(number), starts)
        mesh, bank, clutter, starts = self.ready[number]
        chunks = in_halves(
            lambda chunk: solve(mesh, features[chunk], bank, clutter, self.setup, starts),
            len(features),
            "score volumes",
        )
        return SolvedPoses.joined(chunks)

    def solve_images(self, mesh: int, features: Tensor) -> list[SolvedImage]:
        """Results for feature maps [B, C, H, W].

        mesh: number of the mesh; with ANY_MESH all meshes are tried and the lowest loss wins.
        """
        if mesh != ANY_MESH:
            return self._with_mesh(mesh, features)
        # Of meshes with equal losses the first one wins.
        numbers = range(1, len(self.model.checkpoint.memory) + 1)
        by_mesh = [self._with_mesh(number, features) for number in numbers]
        return [
            min(candidates, key=lambda solved: solved.rank)
            for candidates in zip(*by_mesh, strict=True)
        ]

    def _with_mesh(self, number: int, features: Tensor) -> list[SolvedImage]:
        solved = self.solve(number, features)
        # Without a search for the place, the principal point follows from the run's settings.
        pose = solved.pose if self.config.six_d else replace(solved.pose, principal_xy=None)
        images = []
        for i in range(len(features)):
            images.append(SolvedImage(pose[i : i + 1], solved.loss[i], solved.start[i], number))
        return images
