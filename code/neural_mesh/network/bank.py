"""The feature bank of a neural mesh, and its update by a batch (paper section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from neural_mesh.settings import FEATURE_CHANNELS, TrainConfig


@dataclass
class Bank:
    """Unit features of one mesh: rows 0 to V - 1 are its vertices', the other N are clutter.

    memory [V + N, C]: all features. vertices: V. ring: how clutter rows are replaced, `reference`
    or `full`, see TrainConfig.clutter_ring. mean: how a vertex's features are averaged, `batch` or
    `visible`, see TrainConfig.bank_mean. momentum: share of the old feature in a vertex's new one.
    slot: index of the next slot (reference ring), or of the next row (full ring). slots: number of
    slots of the reference ring, which the first batch fixes.
    """

    memory: Tensor
    vertices: int
    ring: str
    mean: str
    momentum: float
    slot: int = 0
    slots: int = 0

    @classmethod
    def create(
        cls,
        vertices: int,
        config: TrainConfig,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        channels: int = FEATURE_CHANNELS,
    ) -> Bank:
        """A bank of random rows, drawn uniformly from a cube and then normalised (reference)."""
        bound = math.sqrt(3 / channels)
        # Drawn on the CPU, so that the seed gives the same bank on every device.
        rows = torch.rand(vertices + config.num_clutter, channels, generator=generator)
        rows = rows * 2 * bound - bound
        memory = functional.normalize(rows, dim=1).to(device)
        return cls(memory, vertices, config.clutter_ring, config.bank_mean, config.bank_momentum)

    @property
    def mesh_rows(self) -> Tensor:
        """Vertex features [V, C], a view."""
        return self.memory[: self.vertices]

    @property
    def clutter_rows(self) -> Tensor:
        """Clutter features [N, C], a view."""
        return self.memory[self.vertices :]

    def state(self) -> dict:
        """Everything that a resumed training run needs of the bank."""
        return {"memory": self.memory.cpu(), "slot": self.slot, "slots": self.slots}

    def load_state(self, state: dict) -> None:
        """Restore what `state` returned."""
        self.memory.copy_(state["memory"])
        self.slot = state["slot"]
        self.slots = state["slots"]

    @torch.no_grad()
    def update(self, total: Tensor, seen: Tensor, noise: Tensor) -> None:
        """Move the vertices' features towards those of a batch, and replace old clutter features.

        total [V, C], seen [V]: the batch's `vertex_sums`. noise [B, n, C]: its clutter features.
        With the mean `batch` (reference) a vertex's sum is divided by B, so rarely visible vertices
        move slowly.
        """
        images = torch.full_like(seen, len(noise))
        divisor = images if self.mean == "batch" else seen.clamp(min=1)
        # Vertices that no image of the batch shows stay where they are.
        moved = (1 - self.momentum) * total / divisor[:, None]
        mixed = self.momentum * self.mesh_rows + moved
        self.memory[: self.vertices] = torch.where((seen > 0)[:, None], mixed, self.mesh_rows)
        self._write_clutter(noise.flatten(0, 1))
        # Weighted sums of unit vectors are shorter than 1.
        self.memory = functional.normalize(self.memory, dim=1)

    def _write_clutter(self, rows: Tensor) -> None:
        """Replace the oldest clutter features by new ones [K, C]."""
        # More rows than the bank holds replace all of it.
        clutter = self.clutter_rows
        if len(rows) >= len(clutter):
            clutter.copy_(rows[: len(clutter)])
        elif self.ring == "reference":
            self.slots = self.slots or max(1, len(clutter) // len(rows))
            # With these offsets, the reference's, a smaller last batch writes at other rows.
            first = self.slot * len(rows)
            clutter[first : first + len(rows)] = rows
            self.slot = (self.slot + 1) % self.slots
        else:
            # The ring wraps around at the last row.
            at = (self.slot + torch.arange(len(rows), device=rows.device)) % len(clutter)
            clutter[at] = rows
            self.slot = (self.slot + len(rows)) % len(clutter)


@torch.no_grad()
def vertex_sums(features: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of a batch's visible features per vertex [V, C], and number of images that show it [V].

    features [B, V, C], visible [B, V] bool. The sums of the parts of a batch add up to those of the
    whole batch.
    """
    weight = visible.to(features.dtype)
    return torch.einsum("bv,bvc->vc", weight, features), weight.sum(0)
