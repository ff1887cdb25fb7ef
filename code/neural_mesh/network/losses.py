"""The contrastive loss against a feature bank, and the clutter loss (paper section 3.2).

Only visible vertices enter the similarity product, a block of rows at a time, and the gradient is
computed in the same pass. The full [B, V, V + N] logits, a mask of that size and a one-hot matrix
are never in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from neural_mesh.settings import TrainConfig

# Rows of the similarity product that are in memory together: few enough for a CPU's cache, and
# enough to keep a GPU busy.
ROWS_AT_ONCE = {"cpu": 512, "cuda": 16384}


def contrastive_loss(
    features: Tensor,
    positions_rc: Tensor,
    visible: Tensor,
    memory: Tensor,
    config: TrainConfig,
    count: int | None = None,
) -> Tensor:
    """Cross entropy of each visible vertex against far vertices and clutter (paper eq. 7).

    Far vertices are more than `near_distance_px` away, in crop pixels at the image scale in use.

    features [B, V, C]: unit vectors at the vertices. positions_rc [B, V, 2]: where the vertices
    are, in crop pixels; hidden vertices also count as neighbours. visible [B, V]: bool. memory [V +
    N, C]: the bank. count: number of visible vertices of the whole batch, where this is a part of
    one. Returns the sum over visible vertices divided by `count`, and 0 when no vertex is visible.
    No gradient flows into the bank.
    """
    return _ContrastiveLoss.apply(features, positions_rc, visible, memory, count, config)


class _ContrastiveLoss(torch.autograd.Function):
    """Cross entropy over visible vertices, divided by `count`, with its gradient in one pass."""

    @staticmethod
    def forward(ctx, features, positions_rc, visible, memory, count, config):
        vertices = features.shape[1]
        gradient = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        total = features.new_zeros(())
        image, vertex = visible.nonzero(as_tuple=True)
        if count is None:
            count = len(image)
        count = max(count, 1)
        # The temperature divides the bank once instead of every block of similarities.
        scaled = memory / config.temperature
        log_weights = _log_weights(memory, vertices, config)
        planes = positions_rc.unbind(-1)
        radius = config.near_distance_px * config.image_scale
        step = ROWS_AT_ONCE.get(features.device.type, ROWS_AT_ONCE["cuda"])
        for i, k in zip(image.split(step), vertex.split(step), strict=True):
            row = torch.arange(len(i), device=i.device)
            # Similarities [R, V + N] of R visible vertices with the whole bank.
            logits = torch.addmm(log_weights, features[i, k], scaled.T)
            # Neighbours are not negatives; the vertex itself is the positive and stays.
            near = _near(planes, i, k, radius)
            near[row, k] = False
            logits[:, :vertices].masked_fill_(near, -math.inf)
            # The softmax gives both the loss and its gradient by the logits, share - one-hot.
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
        # It is scaled in place because it is as large as the features.
        return gradient.mul_(upstream), None, None, None, None, None


def _log_weights(memory: Tensor, vertices: int, config: TrainConfig) -> Tensor:
    """Terms [V + N] added to the logits: 0 for vertices, the log of their weight for clutter."""
    log_weights = memory.new_zeros(len(memory))
    clutter = math.log(config.weight_clutter) if config.weight_clutter else -math.inf
    log_weights[vertices:] = clutter
    return log_weights


def _near(planes: tuple[Tensor, Tensor], image: Tensor, vertex: Tensor, radius: float) -> Tensor:
    """For R vertices, which vertices of the same image lie within `radius` pixels: [R, V] bool.

    planes: rows and columns [B, V] of all vertices. image, vertex [R]: the indices of the R
    vertices.
    """
    rows, cols = planes
    # Rows and columns are added in place, which needs one [R, V] array less.
    squared = (rows[image] - rows[image, vertex][:, None]).square_()
    squared += (cols[image] - cols[image, vertex][:, None]).square_()
    return squared <= radius**2


def clutter_loss(noise: Tensor, mesh_rows: Tensor, images: int | None = None) -> Tensor:
    """Mean similarity of clutter features [B, n, C] and vertex features [V, C].

    images: number of images of the whole batch, where the B images are a part of one.
    """
    # The mean of all products is the product of the two means.
    rows = noise.shape[1] * (images or len(noise))
    mean_noise = noise.sum((0, 1)) / rows
    return mean_noise @ mesh_rows.mean(0)


def dense_clutter_loss(
    noise: Tensor, memory: Tensor, vertices: int, temperature: float, images: int | None = None
) -> Tensor:
    """Mean log loss of clutter features [B, n, C] as vertices against clutter.

    For a clutter feature f, softplus(logsumexp_v(f.u_v / T) - logsumexp_k(f.c_k / T)): the log odds
    that f is any of the vertices u rather than any of the clutter rows c. memory [V + N, C]: the
    bank, whose first `vertices` rows are the vertices. images: as of `clutter_loss`. No gradient
    flows into the bank.
    """
    rows = noise.shape[1] * (images or len(noise))
    logits = noise.flatten(0, 1) @ memory.T / temperature
    odds = logits[:, :vertices].logsumexp(1) - logits[:, vertices:].logsumexp(1)
    return functional.softplus(odds).sum() / rows
