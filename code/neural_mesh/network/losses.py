"""The contrastive loss against a feature bank, and the clutter loss (paper section 3.2).

Only visible vertices enter the similarity product, a block of rows at a time, and the gradient is
formed in the same pass. So none of these ever exists: a one-hot matrix, [B, V, V + N] logits, or a
mask of that size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neural_mesh.settings import TrainConfig

# Rows of the similarity product that are in memory together: few enough for a CPU's cache, enough
# to fill a GPU.
ROWS_AT_ONCE = {"cpu": 512, "cuda": 16384}


def contrastive_loss(
    features: Tensor,
    positions_rc: Tensor,
    visible: Tensor,
    memory: Tensor,
    config: TrainConfig,
    count: int | None = None,
) -> Tensor:
    """-log of a visible vertex's share among the far vertices and the clutter (paper eq. 7).

    Far vertices are more than `near_distance_px` away, in crop pixels at the image scale in use.

    features [B, V, C] unit vectors at the vertices, positions_rc [B, V, 2] crop pixels (hidden
    vertices count as neighbours too), visible [B, V] bool, memory [V + N, C]. Returns the sum over
    visible vertices divided by `count`, which is their number unless this is a part of a batch; 0
    when there is none. No gradient flows into the bank.
    """
    return _ContrastiveLoss.apply(features, positions_rc, visible, memory, count, config)


class _ContrastiveLoss(torch.autograd.Function):
    """Cross entropy over visible vertices, divided by `count`; with its gradient in one pass."""

    @staticmethod
    def forward(ctx, features, positions_rc, visible, memory, count, config):
        vertices = features.shape[1]
        gradient = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        total = features.new_zeros(())
        image, vertex = visible.nonzero(as_tuple=True)
        if count is None:
            count = len(image)
        count = max(count, 1)
        scaled = memory / config.temperature
        log_weights = _log_weights(memory, vertices, config)
        planes = positions_rc.unbind(-1)
        radius = config.near_distance_px * config.image_scale
        step = ROWS_AT_ONCE.get(features.device.type, ROWS_AT_ONCE["cuda"])
        for i, k in zip(image.split(step), vertex.split(step), strict=True):
            row = torch.arange(len(i), device=i.device)
            # [R, V + N] similarities of R visible vertices with the whole bank
            logits = torch.addmm(log_weights, features[i, k], scaled.T)
            # Neighbours are no negatives, but the vertex itself stays.
            near = _near(planes, i, k, radius)
            near[row, k] = False
            logits[:, :vertices].masked_fill_(near, -math.inf)
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
        gradient = ctx.gradient
        ctx.gradient = None
        # Scaled in place, since it is as large as the features.
        return gradient.mul_(upstream), None, None, None, None, None


def _log_weights(memory: Tensor, vertices: int, config: TrainConfig) -> Tensor:
    """What the logits of all bank rows begin with [V + N]: 0 for vertices, a weight for clutter."""
    log_weights = memory.new_zeros(len(memory))
    clutter = math.log(config.weight_clutter) if config.weight_clutter else -math.inf
    log_weights[vertices:] = clutter
    return log_weights


def _near(planes: tuple[Tensor, Tensor], image: Tensor, vertex: Tensor, radius: float) -> Tensor:
    """Which vertices of its image lie within `radius` of each of R vertices [R, V] bool.

    planes: rows and columns [B, V] of all vertices. image, vertex [R]: which ones are asked about.
    """
    rows, cols = planes
    squared = (rows[image] - rows[image, vertex][:, None]).square_()
    squared += (cols[image] - cols[image, vertex][:, None]).square_()
    return squared <= radius**2


def clutter_loss(noise: Tensor, mesh_rows: Tensor, images: int | None = None) -> Tensor:
    """Mean similarity of clutter features [B, n, C] and vertex features [V, C].

    It is the product of the two means. images: how many images the mean is over, when the B of
    them are a part of a batch.
    """
    rows = noise.shape[1] * (images or len(noise))
    mean_noise = noise.sum((0, 1)) / rows
    return mean_noise @ mesh_rows.mean(0)
