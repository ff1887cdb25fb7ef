"""The backbones with a ResNet as trunk: the paper's, and one for CPUs. With torchvision."""

from __future__ import annotations

from typing import ClassVar

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from neural_mesh.network.top_down import lateral_convolutions, smoothing, top_down
from neural_mesh.settings import IMAGENET_STATISTICS


class _DoubleConvolution(nn.Module):
    """Twice: convolve 3 x 3, normalise, rectify. channels: before, between and after."""

    def __init__(self, channels: tuple[int, int, int]):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip(channels[:-1], channels[1:], strict=True):
            layers.append(nn.Conv2d(before, after, 3, padding=1))
            layers.append(nn.BatchNorm2d(after))
            layers.append(nn.ReLU(inplace=True))
        self.doubleconv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.doubleconv(x)


class _Up(nn.Module):
    """Upsample twofold, pad with zeros to the skip connection's size, join, convolve twice."""

    def __init__(self, channels: tuple[int, int, int]):
        super().__init__()
        # The name is doubled in the reference's state dict, too: doubleconv.doubleconv.
        self.doubleconv = _DoubleConvolution(channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        rows = skip.shape[-2] - x.shape[-2]
        cols = skip.shape[-1] - x.shape[-1]
        x = functional.pad(x, [cols // 2, cols - cols // 2, rows // 2, rows - rows // 2])
        return self.doubleconv(torch.cat([skip, x], dim=1))


class _WithResNet(nn.Module):
    """A backbone whose trunk is one of torchvision's ResNets.

    weights: torchvision's name of the ImageNet weights. layers: names of the trunk's layers there,
    and here. statistics: how pixels are scaled for those weights.
    """

    weights: ClassVar[str]
    layers: ClassVar[dict[str, str]]
    statistics = IMAGENET_STATISTICS

    @property
    def trunk(self) -> list[nn.Module]:
        """The pretrained part."""
        names = dict.fromkeys(name.partition(".")[0] for name in self.layers.values())
        return [self.get_submodule(name) for name in names]

    def load_trunk(self, state: dict[str, Tensor]) -> None:
        """Load torchvision's weights. Raises ValueError when they do not fit."""
        renamed = {}
        for key, value in state.items():
            layer, _, rest = key.partition(".")
            if layer in self.layers:
                renamed[f"{self.layers[layer]}.{rest}"] = value
        prefixes = tuple(f"{name}." for name in self.layers.values())
        expected = {key for key in self.state_dict() if key.startswith(prefixes)}
        # Files of old versions of torch lack the counters of batch norm.
        required = {key for key in expected if not key.endswith("num_batches_tracked")}
        missing = sorted(required - renamed.keys())
        if missing:
            raise ValueError(
                f"the pretrained weights lack {len(missing)} of {len(expected)} entries, "
                f"{missing[0]} first"
            )
        try:
            self.load_state_dict(renamed, strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise ValueError(f"the pretrained weights are of another network ({reason})") from error


class ResNetExt(_WithResNet):
    """The paper's backbone: ResNet-50 with two upsampling blocks.

    [B, 3, H, W] -> [B, 256, H/8, W/8].
    """

    channels = 256
    weights = "ResNet50_Weights.IMAGENET1K_V1"
    layers: ClassVar[dict[str, str]] = {
        "conv1": "extractor.0",
        "bn1": "extractor.1",
        "layer1": "extractor.4",
        "layer2": "extractor.5",
        "layer3": "extractor1",
        "layer4": "extractor2",
    }

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision.models.resnet50(weights=None)
        self.extractor = nn.Sequential(
            trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1, trunk.layer2
        )
        self.extractor1 = trunk.layer3
        self.extractor2 = trunk.layer4
        self.upsample0 = _DoubleConvolution((2048, 1024, 1024))
        self.upsample1 = _Up((2048, 1024, 512))
        self.upsample2 = _Up((1024, 512, 256))

    def forward(self, images: Tensor) -> Tensor:
        x8 = self.extractor(images)
        x16 = self.extractor1(x8)
        x32 = self.extractor2(x16)
        x = self.upsample1(self.upsample0(x32), x16)
        return self.upsample2(x, x8)


class ResNet18FPN(_WithResNet):
    """A backbone for CPUs: ResNet-18 with a feature pyramid's top-down path.

    [B, 3, H, W] -> [B, 128, H/8, W/8].
    """

    channels = 128
    weights = "ResNet18_Weights.IMAGENET1K_V1"
    layers: ClassVar[dict[str, str]] = {
        "conv1": "stem.0",
        "bn1": "stem.1",
        "layer1": "stem.4",
        "layer2": "layer2",
        "layer3": "layer3",
        "layer4": "layer4",
    }

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision.models.resnet18(weights=None)
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1)
        self.layer2 = trunk.layer2
        self.layer3 = trunk.layer3
        self.layer4 = trunk.layer4
        self.lateral = lateral_convolutions((128, 256, 512), self.channels)
        self.smooth = smoothing(self.channels)

    def forward(self, images: Tensor) -> Tensor:
        x8 = self.layer2(self.stem(images))
        x16 = self.layer3(x8)
        x32 = self.layer4(x16)
        return self.smooth(top_down((x8, x16, x32), self.lateral, x8.shape[-2:]))
