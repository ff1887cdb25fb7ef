"""The network that turns an image into one unit feature per cell of 8 x 8 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from neural_mesh.backbones import OWN_BACKBONES, TIMM, full_name
from neural_mesh.network.resnets import ResNet18FPN, ResNetExt
from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE

if TYPE_CHECKING:
    from neural_mesh.network.timm_backbone import TimmFPN

OWN = dict(zip(OWN_BACKBONES, (ResNetExt, ResNet18FPN), strict=True))


def make_backbone(backbone: str) -> ResNetExt | ResNet18FPN | TimmFPN:
    """A backbone with random weights.

    Raises ValueError for a name that BACKBONE cannot take, or of a network that gives no maps.
    """
    name = full_name(backbone)
    if name in OWN:
        return OWN[name]()
    # timm takes a second to import, which only its own networks are worth.
    from neural_mesh.network.timm_backbone import TimmFPN

    return TimmFPN(name.removeprefix(TIMM))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is a GPU with bfloat16 in hardware."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the GPU has it in hardware, else nothing.

    Entered inside `forward`: DataParallel's threads do not inherit the type of an autocast around
    them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


class FeatureNet(nn.Module):
    """Backbone and linear head. State-dict names are the reference's (`net.*`, `out_layer.*`).

    Raises ValueError as `make_backbone`.
    """

    def __init__(self, backbone: str = "resnetext", channels: int = FEATURE_CHANNELS):
        super().__init__()
        self.net = make_backbone(backbone)
        self.statistics = self.net.statistics
        self.frozen = False
        self.out_layer = nn.Linear(self.net.channels, channels)

    def freeze(self) -> None:
        """Keep the trunk as it is from now on: weights and statistics of its batch norm."""
        self.frozen = True
        for module in self.net.trunk:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeatureNet:
        """As of nn.Module; a frozen trunk stays in evaluation."""
        super().train(mode)
        if self.frozen:
            for module in self.net.trunk:
                module.eval()
        return self

    def forward(self, images: Tensor, cells: Tensor) -> Tensor:
        """Unit features at chosen cells, with the head's bias (training).

        images: [B, 3, H, W], normalised. cells: [B, K] indices row * (W/8) + column. Returns
        [B, K, C] in float32.
        """
        with half_precision(images.device):
            maps = self.net(images).flatten(2)  # [B, D, P]
            gathered = maps.gather(2, cells[:, None, :].expand(-1, maps.shape[1], -1))
            projected = self.out_layer(gathered.transpose(1, 2))
        return functional.normalize(projected.float(), dim=-1)

    def feature_map(self, images: Tensor, bias: bool) -> Tensor:
        """Unit features of all cells [B, C, H/8, W/8] in float32.

        The reference leaves the head's bias out here (bias=False), though it trains with it.
        """
        maps = self.net(images)
        weight = self.out_layer.weight[:, :, None, None]
        projected = functional.conv2d(maps, weight, self.out_layer.bias if bias else None)
        return functional.normalize(projected.float(), dim=1)


def cells_of(positions_rc: Tensor, map_hw: tuple[int, int]) -> Tensor:
    """Crop pixels (row, col) [..., 2] -> index of the feature cell that they fall into [...]."""
    height, width = map_hw
    rows = (positions_rc[..., 0] / FEATURE_STRIDE).floor().long().clamp(0, height - 1)
    cols = (positions_rc[..., 1] / FEATURE_STRIDE).floor().long().clamp(0, width - 1)
    return rows * width + cols
