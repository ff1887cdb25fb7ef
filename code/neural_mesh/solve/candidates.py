"""The candidates of a solver from one stage to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neural_mesh.compare.scene import CandidateStates


@dataclass(frozen=True)
class Track:
    """K candidates of each of B images, with their start and the path they took.

    start [B, K]: index into the start grid. path [B, K, steps so far, 7]: poses and losses; empty
    unless traced.
    """

    candidates: CandidateStates
    start: Tensor
    path: Tensor

    @classmethod
    def begin(cls, poses: Tensor, start: Tensor) -> Track:
        """CandidateStates at poses [B, K, 6] that have not been evaluated yet."""
        # The first evaluation replaces infinite losses.
        poses = poses.double()
        candidates = CandidateStates(
            poses=poses,
            first=torch.zeros_like(poses),
            second=torch.zeros_like(poses),
            loss=torch.full_like(poses[..., 0], torch.inf),
            best_loss=torch.full_like(poses[..., 0], torch.inf),
            best_poses=poses.clone(),
            average=torch.zeros_like(poses),
            since_best=torch.zeros_like(start),
            evaluations=torch.zeros_like(start),
        )
        return cls(candidates, start, poses.new_zeros(*start.shape, 0, 7))

    def best(self, count: int) -> Track:
        """The `count` candidates of every image with the lowest losses so far, best first."""
        # A stable order makes ties the same on every device.
        order = self.candidates.best_loss.argsort(dim=1, stable=True)[:, :count]
        candidates = CandidateStates(*(take(values, order) for values in self.candidates))
        return Track(candidates, take(self.start, order), take(self.path, order))

    def extended(self, path: Tensor) -> Track:
        """The same candidates, with the path [B, K, steps, 7] of another stage appended."""
        return Track(self.candidates, self.start, torch.cat([self.path, path], 2))


def take(values: Tensor, index: Tensor) -> Tensor:
    """Values [B, k, ...] picked from values [B, K, ...] by index [B, k]."""
    images = torch.arange(len(index), device=index.device)[:, None]
    return values[images, index].contiguous()
