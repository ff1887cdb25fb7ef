"""The feature bank of a neural mesh, and the contrastive loss against it (paper section 3.2).

Only visible vertices enter the similarity product, image by image, and the gradient is formed in the same pass:
neither a one-hot matrix nor [B, V, V + N] logits nor a mask of that size ever exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nemo.settings import FEATURE_CHANNELS, TrainConfig

ROWS_AT_ONCE = 2048  # rows of the similarity product that are held in memory together


@dataclass
class Bank:
    """Features of one mesh: rows 0..V-1 its vertices, the other N clutter; all unit vectors. [V + N, C]."""

    memory: Tensor
    vertices: int
    ring: str  # reference, full
    mean: str  # batch, visible
    momentum: float
    slot: int = 0  # reference ring: index of the next slot; full ring: next row
    slots: int = 0  # reference ring: number of slots, fixed by the first batch

    @classmethod
    def create(
        cls, vertices: int, config: TrainConfig, generator: torch.Generator, device: torch.device | str = "cpu",
        channels: int = FEATURE_CHANNELS,
    ) -> Bank:  # fmt: skip
        """Random unit rows, uniform in the cube first, as in the reference."""
        bound = math.sqrt(3 / channels)
        rows = torch.rand(vertices + config.num_clutter, channels, generator=generator) * 2 * bound - bound
        memory = functional.normalize(rows, dim=1).to(device)
        return cls(memory, vertices, config.clutter_ring, config.bank_mean, config.bank_momentum)

    @property
    def mesh_rows(self) -> Tensor:
        return self.memory[: self.vertices]

    @property
    def clutter_rows(self) -> Tensor:
        return self.memory[self.vertices :]

    def state(self) -> dict:
        """What a resumed training needs."""
        return {"memory": self.memory.cpu(), "slot": self.slot, "slots": self.slots}

    def load_state(self, state: dict) -> None:
        """Take up what `state` gave."""
        self.memory.copy_(state["memory"])
        self.slot, self.slots = state["slot"], state["slots"]

    @torch.no_grad()
    def update(self, features: Tensor, visible: Tensor, noise: Tensor) -> None:
        """Move the bank towards a batch: features [B, V, C], visible [B, V] bool, noise [B, n, C].

        batch mean (reference): a vertex's sum is divided by B, so rarely visible vertices move slowly.
        """
        weight = visible.to(features.dtype)
        total = torch.einsum("bv,bvc->vc", weight, features)
        seen = weight.sum(0)
        divisor = torch.full_like(seen, len(features)) if self.mean == "batch" else seen.clamp(min=1)
        mixed = self.momentum * self.mesh_rows + (1 - self.momentum) * total / divisor[:, None]
        self.memory[: self.vertices] = torch.where((seen > 0)[:, None], mixed, self.mesh_rows)
        self._write_clutter(noise.flatten(0, 1), len(features))
        self.memory = functional.normalize(self.memory, dim=1)

    def _write_clutter(self, rows: Tensor, batch: int) -> None:
        clutter = self.clutter_rows
        if len(rows) >= len(clutter):
            clutter.copy_(rows[: len(clutter)])
        elif self.ring == "reference":
            self.slots = self.slots or max(1, len(clutter) // len(rows))
            first = self.slot * len(rows)  # a smaller last batch writes elsewhere: the reference's offsets
            clutter[first : first + len(rows)] = rows
            self.slot = (self.slot + 1) % self.slots
        else:
            at = (self.slot + torch.arange(len(rows), device=rows.device)) % len(clutter)
            clutter[at] = rows
            self.slot = (self.slot + len(rows)) % len(clutter)


class _ContrastiveLoss(torch.autograd.Function):
    """Mean cross entropy over visible vertices, its gradient computed on the way."""

    @staticmethod
    def forward(ctx, features, positions, visible, memory, vertices, temperature, near, log_weight):
        gradient = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        total = features.new_zeros(())
        count = visible.sum()
        step = max(1, ROWS_AT_ONCE // vertices)
        for first in range(0, len(features), step):
            chunk = slice(first, first + step)
            image, vertex = visible[chunk].nonzero(as_tuple=True)
            rows = features[chunk][image, vertex]  # [R, C]
            logits = rows @ memory.T / temperature  # [R, V + N]
            logits[:, vertices:] += log_weight
            close = torch.cdist(positions[chunk], positions[chunk]) <= near  # [b, V, V]
            close = close[image, vertex]
            row = torch.arange(len(rows), device=rows.device)
            close[row, vertex] = False
            logits[:, :vertices].masked_fill_(close, -math.inf)
            log_sum = logits.logsumexp(1)
            total += (log_sum - logits[row, vertex]).sum()
            if gradient is not None:
                share = logits.sub_(log_sum[:, None]).exp_()
                share[row, vertex] -= 1
                gradient[chunk][image, vertex] = share @ memory / temperature
        ctx.save_for_backward(gradient, count)
        return total / count.clamp(min=1)

    @staticmethod
    def backward(ctx, upstream):
        gradient, count = ctx.saved_tensors
        return upstream * gradient / count.clamp(min=1), *[None] * 7


def contrastive_loss(features: Tensor, positions_rc: Tensor, visible: Tensor, memory: Tensor, config: TrainConfig) -> Tensor:
    """-log of a visible vertex's share among the vertices farther than `near_distance_px` and the clutter (paper eq. 7).

    features [B, V, C] unit vectors at the vertices, positions_rc [B, V, 2] crop pixels (hidden vertices count as
    neighbours too), visible [B, V] bool, memory [V + N, C]. Near distance in crop pixels at the image scale in use.
    Returns the mean over visible vertices, 0 when there is none. No gradient flows into the bank.
    """
    return _ContrastiveLoss.apply(
        features, positions_rc, visible, memory, features.shape[1],
        config.temperature, config.near_distance_px * config.image_scale, math.log(config.weight_clutter),
    )  # fmt: skip


def clutter_loss(noise: Tensor, mesh_rows: Tensor) -> Tensor:
    """Mean similarity of clutter features [B, n, C] and vertex features [V, C], by the product of the two means."""
    return noise.mean((0, 1)) @ mesh_rows.mean(0)
