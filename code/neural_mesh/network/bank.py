"""The feature bank of a neural mesh, and the contrastive loss against it (paper section 3.2).

Only visible vertices enter the similarity product, a block of rows at a time, and the gradient is formed in the same
pass: neither a one-hot matrix nor [B, V, V + N] logits nor a mask of that size ever exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from neural_mesh.settings import FEATURE_CHANNELS, TrainConfig

# rows of the similarity product that are held in memory together: few enough for a CPU's cache, enough to fill a GPU
ROWS_AT_ONCE = {"cpu": 512, "cuda": 16384}


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
        cls,
        vertices: int,
        config: TrainConfig,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        channels: int = FEATURE_CHANNELS,
    ) -> Bank:
        """Random unit rows, uniform in the cube first, as in the reference."""
        bound = math.sqrt(3 / channels)
        rows = (
            torch.rand(vertices + config.num_clutter, channels, generator=generator) * 2 * bound
            - bound
        )
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
    def update(self, total: Tensor, seen: Tensor, noise: Tensor) -> None:
        """Move the bank towards a batch: what `vertex_sums` gives of it, and its clutter features [B, n, C].

        batch mean (reference): a vertex's sum is divided by B, so rarely visible vertices move slowly.
        """
        divisor = torch.full_like(seen, len(noise)) if self.mean == "batch" else seen.clamp(min=1)
        mixed = self.momentum * self.mesh_rows + (1 - self.momentum) * total / divisor[:, None]
        self.memory[: self.vertices] = torch.where((seen > 0)[:, None], mixed, self.mesh_rows)
        self._write_clutter(noise.flatten(0, 1))
        self.memory = functional.normalize(self.memory, dim=1)

    def _write_clutter(self, rows: Tensor) -> None:
        clutter = self.clutter_rows
        if len(rows) >= len(clutter):
            clutter.copy_(rows[: len(clutter)])
        elif self.ring == "reference":
            self.slots = self.slots or max(1, len(clutter) // len(rows))
            first = self.slot * len(
                rows
            )  # a smaller last batch writes elsewhere: the reference's offsets
            clutter[first : first + len(rows)] = rows
            self.slot = (self.slot + 1) % self.slots
        else:
            at = (self.slot + torch.arange(len(rows), device=rows.device)) % len(clutter)
            clutter[at] = rows
            self.slot = (self.slot + len(rows)) % len(clutter)


@torch.no_grad()
def vertex_sums(features: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of a batch's visible features per vertex [V, C], and in how many images each is visible [V].

    features [B, V, C], visible [B, V] bool. Sums of parts of a batch add up to the sum of the batch.
    """
    weight = visible.to(features.dtype)
    return torch.einsum("bv,bvc->vc", weight, features), weight.sum(0)


class _ContrastiveLoss(torch.autograd.Function):
    """Cross entropy over visible vertices, divided by `count`; its gradient is computed on the way."""

    @staticmethod
    def forward(ctx, features, positions, visible, memory, count, config):
        vertices = features.shape[1]
        gradient = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        total = features.new_zeros(())
        image, vertex = visible.nonzero(as_tuple=True)
        count = max(len(image) if count is None else count, 1)
        scaled, log_weights = memory / config.temperature, memory.new_zeros(len(memory))
        log_weights[vertices:] = (
            math.log(config.weight_clutter) if config.weight_clutter else -math.inf
        )
        rows_rc = positions.unbind(-1)
        step = ROWS_AT_ONCE.get(features.device.type, ROWS_AT_ONCE["cuda"])
        for i, k in zip(image.split(step), vertex.split(step), strict=True):
            row = torch.arange(len(i), device=i.device)
            logits = torch.addmm(log_weights, features[i, k], scaled.T)  # [R, V + N]
            squared = sum(
                (plane[i] - plane[i, k][:, None]).square_() for plane in rows_rc
            )  # [R, V]
            close = squared <= (config.near_distance_px * config.image_scale) ** 2
            close[row, k] = False
            logits[:, :vertices].masked_fill_(close, -math.inf)
            share = torch.softmax(logits, 1)
            total -= share[row, k].log().sum()
            if gradient is not None:
                share[row, k] -= 1
                gradient[i, k] = (share @ scaled).div_(count)
        ctx.gradient = gradient
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        gradient, ctx.gradient = (
            ctx.gradient,
            None,
        )  # scaled in place: it is as large as the features
        return gradient.mul_(upstream), *[None] * 5


def contrastive_loss(
    features: Tensor,
    positions_rc: Tensor,
    visible: Tensor,
    memory: Tensor,
    config: TrainConfig,
    count: int | None = None,
) -> Tensor:
    """-log of a visible vertex's share among the vertices farther than `near_distance_px` and the clutter (paper eq. 7).

    features [B, V, C] unit vectors at the vertices, positions_rc [B, V, 2] crop pixels (hidden vertices count as
    neighbours too), visible [B, V] bool, memory [V + N, C]. Near distance in crop pixels at the image scale in use.
    Returns the sum over visible vertices divided by `count`, which is their number unless this is a part of a batch;
    0 when there is none. No gradient flows into the bank.
    """
    return _ContrastiveLoss.apply(features, positions_rc, visible, memory, count, config)


def clutter_loss(noise: Tensor, mesh_rows: Tensor, images: int | None = None) -> Tensor:
    """Mean similarity of clutter features [B, n, C] and vertex features [V, C], by the product of the two means.

    images: how many images the mean is over, when the B of them are a part of a batch.
    """
    return noise.sum((0, 1)) / (noise.shape[1] * (images or len(noise))) @ mesh_rows.mean(0)
