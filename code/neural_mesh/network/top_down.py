"""The top-down path of a feature pyramid (Lin et al., CVPR 2017), which ends in one map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


def lateral_convolutions(widths: Sequence[int], channels: int) -> nn.ModuleList:
    """For each map of a trunk a convolution to the path's width."""
    return nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)


def smoothing(channels: int) -> nn.Sequential:
    """What the path ends in: convolve 3 x 3, normalise, rectify."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def top_down(maps: Sequence[Tensor], lateral: nn.ModuleList, size_hw: Sequence[int]) -> Tensor:
    """Maps [B, widths[i], h, w] of a trunk, the finest first, added up from the coarsest on.

    Returns [B, D, H, W].
    """
    total = lateral[-1](maps[-1])
    for x, convolution in zip(reversed(maps[:-1]), reversed(lateral[:-1]), strict=True):
        total = convolution(x) + _resized(total, x.shape[-2:])
    return _resized(total, size_hw)


def _resized(x: Tensor, size_hw: Sequence[int]) -> Tensor:
    """A map at another size, bilinear."""
    if x.shape[-2:] == tuple(size_hw):
        return x
    return functional.interpolate(x, size=list(size_hw), mode="bilinear", align_corners=False)
