"""The poses of one category at one occlusion level, solved batch by batch."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from neural_mesh.settings import SolveConfig
from neural_mesh.solve.batches import (
    Batch,
    FeatureBatch,
    PreparedSubset,
    features_of_images,
    split_into_batches,
    stored_features,
)
from neural_mesh.solve.choose_renderer import choose_renderer
from neural_mesh.solve.mesh_solver import MeshSolver, SolvedImage
from neural_mesh.solve.model import Model
from neural_mesh.solve.shards import WHOLE, Shard, ShardPoses, run_config
from neural_mesh.storage.results import FeatureSet, PoseSet

SECONDS_BETWEEN_SAVES = 10.0
BATCHES_AHEAD = 2  # batches of feature maps that may wait for the solver, which bounds the memory


@dataclass(frozen=True)
class RunOptions:
    """How the work of a run is divided; the poses depend on it in their last digit at most.

    batch_size: images at a time. workers: number of decoding processes. shard: this run's share of
    the batches. overlap: solve in a second thread while the network computes the next batches,
    which pays where network and solver run on different devices; the poses are the same.
    """

    batch_size: int
    workers: int = 0
    shard: Shard = WHOLE
    overlap: bool = False


class Run:
    """Poses of one category at one occlusion level, computed batch by batch and saved in between.

    target: the file of the poses. features: stored feature maps that take the place of the images.
    """

    def __init__(
        self,
        model: Model,
        images: PreparedSubset,
        config: SolveConfig,
        target: Path,
        options: RunOptions,
        features: FeatureSet | None = None,
    ):
        self.model = model
        self.images = images
        self.config = config
        self.options = options
        self.features = features
        self.subset = model.checkpoint.config.category + images.level
        self.failures: list[str] = []
        self.solver: MeshSolver | None = None  # made when there is something to solve
        # Poses that are kept depend on these settings; files of others are not used.
        data = images.prepared.fingerprint(self.subset)
        self.poses = ShardPoses(
            target,
            options.shard,
            run_config(model, config, images.level, data),
            expected={name for group in images.names.values() for name in group},
            own={name for _, names in self.batches() for name in names},
        )

    def batches(self) -> list[Batch]:
        """The batches of this shard.

        Their borders do not depend on which images are done, so a resumed run repeats its numbers.
        """
        batches = split_into_batches(self.images.names, self.options.batch_size)
        return batches[self.options.shard.number :: self.options.shard.of]

    def execute(self, advance: Callable[[int], None]) -> PoseSet | None:
        """Solve the batches that are not done; returns all poses, or None for one shard of several.

        The result for an image may depend in its last digit on the others of its batch, so batches
        are solved as a whole; one with an unreadable image is solved again by every later run.

        advance: called with the number of finished images, batch after batch.
        """
        saved_at = monotonic()
        # Skip the batches of which an earlier run left all poses.
        batches = self.batches()
        todo = [batch for batch in batches if not self.poses.has_all(batch.names)]
        advance(_images_in(batches) - _images_in(todo))
        # A run that has nothing to solve does not try the renderer.
        if todo:
            renderer = choose_renderer(self.config.renderer, self.model.device)
            self.solver = MeshSolver(self.model, self.config, renderer)
        for images in self._solve_batches(todo):
            advance(images)
            # Each save writes all the poses so far, so there is some time between them.
            if monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                self.poses.save_partial()
                saved_at = monotonic()
        # A shard saves its own poses; the last run, which is not a shard, merges them.
        if not self.options.shard.is_whole:
            self.poses.save_partial()
            return None
        return self.poses.save_whole()

    def _solve_batches(self, todo: Sequence[Batch]) -> Iterator[int]:
        """Solve batch after batch, in order; yields the number of images in each."""
        if not self.options.overlap:
            for mesh, names, features in self._feature_batches(todo):
                self._keep(names, self._solve(mesh, names, features))
                yield len(names)
            return
        # The network fills the queue in this thread, and the solver empties it in another.
        waiting: deque[tuple[list[str], Future]] = deque()
        with ThreadPoolExecutor(max_workers=1) as solver:
            for mesh, names, features in self._feature_batches(todo):
                waiting.append((names, solver.submit(self._solve, mesh, names, features)))
                while len(waiting) > BATCHES_AHEAD:
                    yield self._keep_next(waiting)
            while waiting:
                yield self._keep_next(waiting)

    def _feature_batches(
        self, todo: Sequence[Batch]
    ) -> Iterator[tuple[int, list[str], Tensor | None]]:
        """Feature maps batch after batch; unreadable images are reported and left out."""
        batches: Iterator[FeatureBatch]
        if self.features is not None:
            batches = stored_features(self.features, todo, self.model.device)
        else:
            batches = features_of_images(
                self.images.prepared, self.subset, todo, self.model, self.options.workers
            )
        for mesh, names, features, messages in batches:
            self._report(messages)
            yield mesh, names, features

    def _keep_next(self, waiting: deque[tuple[list[str], Future]]) -> int:
        """Wait for the first batch that is being solved; returns the number of its images."""
        names, solved = waiting.popleft()
        self._keep(names, solved.result())
        return len(names)

    def _keep(self, names: list[str], solved: list[SolvedImage | str]) -> None:
        for name, image in zip(names, solved, strict=True):
            if isinstance(image, str):
                self._report([f"{name}: {image}"])
            else:
                self.poses.images[name] = image

    def _report(self, messages: list[str]) -> None:
        self.failures += messages
        for message in messages:
            print(f"skipped: {message}", file=sys.stderr)

    def _solve(
        self, mesh: int, names: list[str], features: Tensor | None
    ) -> list[SolvedImage | str]:
        """The result for each image, or the reason why it has no pose.

        A batch that fails is tried again image by image.
        """
        if features is None or not names:
            return []
        # One feature map that is not finite would make the whole batch fail.
        finite = torch.isfinite(features).flatten(1).all(1).tolist()
        if not all(finite):
            return self._solve_finite(mesh, names, features, finite)
        # If the batch fails, the images that can be solved are kept.
        try:
            solved = self.solver.solve_images(mesh, features)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            if len(names) == 1:
                return [f"the solver failed ({str(error).splitlines()[0]})"]
            return [
                self._solve(mesh, [name], features[i : i + 1])[0] for i, name in enumerate(names)
            ]
        return [image if np.isfinite(image.loss) else "its pose is not finite" for image in solved]

    def _solve_finite(
        self, mesh: int, names: list[str], features: Tensor, finite: list[bool]
    ) -> list[SolvedImage | str]:
        """Solve the feature maps that are finite [B], and give the reason for the others."""
        # Solve the finite ones together, and put their results back into the images' order.
        kept = features[torch.tensor(finite, device=features.device)]
        kept_names = [name for name, good in zip(names, finite, strict=True) if good]
        solved = iter(self._solve(mesh, kept_names, kept))
        return [next(solved) if good else "its feature map is not finite" for good in finite]


def _images_in(batches: Sequence[Batch]) -> int:
    return sum(len(batch.names) for batch in batches)
