"""Held-out training images, and how well their poses are found during a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neural_mesh.compare.scene import Renderer
from neural_mesh.geometry.pose_error import Accuracy, accuracy, pose_errors
from neural_mesh.machine import console
from neural_mesh.machine.distributed import Group, share
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.batches import DecodedBatch, read_batches, split_into_batches
from neural_mesh.solve.mesh_solver import MeshSolver
from neural_mesh.solve.model import Model
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import load_annotation

METRICS = ("pi/6", "pi/18", "median")  # % of the images within the first two; degrees
VALIDATION_BATCH = 8  # images solved together


def hold_out(
    names: Sequence[Sequence[str]], fraction: float, seed: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Split the names of each mesh into those to train on and those to validate on.

    names: of the images of each mesh. fraction: share to validate on, drawn by seed from the whole
    category. Raises ValueError when either list would be empty.
    """
    # Sorted, so that the draw does not depend on which mesh an image belongs to.
    every = sorted(name for group in names for name in group)
    held_out = round(fraction * len(every))
    if not 0 < held_out < len(every):
        raise ValueError(
            f"VALIDATION_SHARE={fraction:g} of {console.count(len(every), 'image')} holds out "
            f"{held_out}: too few to validate on or to train on"
        )
    order = np.random.default_rng(seed).permutation(len(every))
    drawn = {every[i] for i in order[:held_out]}
    trained_on = []
    validated_on = []
    for group in names:
        trained_on.append([name for name in group if name not in drawn])
        validated_on.append([name for name in group if name in drawn])
    return trained_on, validated_on


@dataclass(frozen=True)
class Validation:
    """Training images that are not trained on; those of names[i] are compared with mesh i + 1."""

    prepared: PreparedSet
    names: list[list[str]]
    renderer: Renderer

    @property
    def sizes(self) -> list[int]:
        """Number of held-out images of each mesh."""
        return [len(names) for names in self.names]

    def figures(self, model: Model, group: Group) -> dict[str, float]:
        """The figures named in METRICS, rounded as they are logged. Raises as `accuracy`."""
        reached = self.accuracy(model, group)
        return {name: round(reached.value(name), 3) for name in METRICS}

    def accuracy(self, model: Model, group: Group) -> Accuracy:
        """Accuracy on the held-out images with SOLVER=best, by all processes together.

        Raises ValueError for an image that cannot be read.
        """
        solver = MeshSolver(model, SolveConfig(solver="best"), self.renderer)
        category = model.checkpoint.config.category
        # Each process takes its share of the batches.
        by_mesh = dict(enumerate(self.names, start=1))
        batches = split_into_batches(by_mesh, VALIDATION_BATCH)
        own = share(batches, group.rank, group.size)
        errors: list[float] = []
        for batch in read_batches(self.prepared, category, own, model, workers=0):
            errors += self._errors(solver, category, batch)
        of_all = [error for part in group.collect(errors) for error in part]
        return accuracy(of_all)

    def _errors(self, solver: MeshSolver, category: str, batch: DecodedBatch) -> list[float]:
        """Angles between the poses found and annotated, in radians."""
        if batch.messages or batch.images is None:
            raise ValueError((batch.messages or ["no image of the batch can be read"])[0])
        features = solver.model.features(batch.images)
        angles = solver.solve(batch.mesh, features).pose.angles
        paths = [self.prepared.annotation(category, name) for name in batch.names]
        truth = [load_annotation(path).pose.angles for path in paths]
        return pose_errors(angles, truth).tolist()
