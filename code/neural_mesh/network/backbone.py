"""Networks that turn an image into one unit feature per cell of 8 x 8 pixels. torchvision comes in here."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE
from neural_mesh.storage.checkpoints import load_torch_file

BACKBONES = ("resnetext", "resnet18fpn")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is a GPU with bfloat16 in hardware."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the GPU has it in hardware, else nothing.

    Entered inside `forward`: DataParallel's threads do not inherit the type of an autocast around them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def _double_convolution(channels: tuple[int, int, int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(channels[:-1], channels[1:], strict=True):
        layers += [
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class _DoubleConvolution(nn.Module):
    def __init__(self, channels: tuple[int, int, int]):
        super().__init__()
        self.doubleconv = _double_convolution(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.doubleconv(x)


class _Up(nn.Module):
    """Upsample twofold, pad with zeros to the skip connection's size, concatenate [skip, x], convolve twice."""

    def __init__(self, channels: tuple[int, int, int]):
        super().__init__()
        self.doubleconv = _DoubleConvolution(
            channels
        )  # doubled name: as in the reference's state dict

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        rows, cols = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        x = functional.pad(x, [cols // 2, cols - cols // 2, rows // 2, rows - rows // 2])
        return self.doubleconv(torch.cat([skip, x], dim=1))


class ResNetExt(nn.Module):
    """The paper's backbone: ResNet-50 with two upsampling blocks, [B, 3, H, W] -> [B, 256, H/8, W/8]."""

    channels = 256

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
        return self.upsample2(self.upsample1(self.upsample0(x32), x16), x8)

    def load_trunk(self, state: dict[str, Tensor]) -> None:
        """Load torchvision's resnet50 weights."""
        places = {
            "conv1": "extractor.0",
            "bn1": "extractor.1",
            "layer1": "extractor.4",
            "layer2": "extractor.5",
            "layer3": "extractor1",
            "layer4": "extractor2",
        }
        _load_renamed(self, state, places)


class ResNet18FPN(nn.Module):
    """A backbone for CPUs: ResNet-18 with a feature pyramid's top-down path, [B, 3, H, W] -> [B, 128, H/8, W/8]."""

    channels = 128

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision.models.resnet18(weights=None)
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1)
        self.layer2, self.layer3, self.layer4 = trunk.layer2, trunk.layer3, trunk.layer4
        self.lateral = nn.ModuleList(nn.Conv2d(c, self.channels, 1) for c in (128, 256, 512))
        self.smooth = nn.Sequential(
            nn.Conv2d(self.channels, self.channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(self.channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        x8 = self.layer2(self.stem(images))
        x16 = self.layer3(x8)
        x32 = self.layer4(x16)
        x = self.lateral[2](x32)
        for skip, lateral in ((x16, self.lateral[1]), (x8, self.lateral[0])):
            x = lateral(skip) + functional.interpolate(
                x, size=skip.shape[-2:], mode="bilinear", align_corners=False
            )
        return self.smooth(x)

    def load_trunk(self, state: dict[str, Tensor]) -> None:
        """Load torchvision's resnet18 weights."""
        places = {
            "conv1": "stem.0",
            "bn1": "stem.1",
            "layer1": "stem.4",
            "layer2": "layer2",
            "layer3": "layer3",
            "layer4": "layer4",
        }
        _load_renamed(self, state, places)


def _load_renamed(module: nn.Module, state: dict[str, Tensor], places: dict[str, str]) -> None:
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        if first in places:
            renamed[f"{places[first]}.{rest}"] = value
    wanted = {
        key
        for key in module.state_dict()
        if key.startswith(tuple(f"{p}." for p in places.values()))
    }
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(wanted - optional - set(renamed))
    if missing:
        raise ValueError(
            f"the pretrained weights lack {len(missing)} of {len(wanted)} entries, {missing[0]} first"
        )
    try:
        module.load_state_dict(renamed, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"the pretrained weights are of another network ({str(error).splitlines()[1].strip()})"
        ) from error


class FeatureNet(nn.Module):
    """Backbone and linear head. State-dict names are the reference's (`net.*`, `out_layer.*`)."""

    def __init__(self, backbone: str = "resnetext", channels: int = FEATURE_CHANNELS):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"BACKBONE is {backbone!r}, it can be {' or '.join(BACKBONES)}")
        self.net = ResNetExt() if backbone == "resnetext" else ResNet18FPN()
        self.out_layer = nn.Linear(self.net.channels, channels)

    def forward(self, images: Tensor, cells: Tensor) -> Tensor:
        """Unit features at chosen cells, with the head's bias (training).

        images: [B, 3, H, W], normalised. cells: [B, K] indices row * (W/8) + column. Returns [B, K, C] in float32.
        """
        with half_precision(images.device):
            maps = self.net(images).flatten(2)  # [B, D, P]
            gathered = maps.gather(2, cells[:, None, :].expand(-1, maps.shape[1], -1))
            projected = self.out_layer(gathered.transpose(1, 2))
        return functional.normalize(projected.float(), dim=-1)

    def feature_map(self, images: Tensor, bias: bool) -> Tensor:
        """Unit features of all cells [B, C, H/8, W/8] in float32. The reference leaves the bias out here (bias=False)."""
        maps = self.net(images)
        projected = functional.conv2d(
            maps, self.out_layer.weight[:, :, None, None], self.out_layer.bias if bias else None
        )
        return functional.normalize(projected.float(), dim=1)


def build_network(backbone: str, pretrained: str) -> FeatureNet:
    """A network whose trunk is pretrained: `imagenet` (downloaded by torchvision), `none`, or a state-dict file.

    Raises ValueError when the weights cannot be had or do not fit, with what to do instead.
    """
    network = FeatureNet(backbone)
    if pretrained == "none":
        return network
    if pretrained == "imagenet":
        weights = (
            "ResNet50_Weights.IMAGENET1K_V1"
            if backbone == "resnetext"
            else "ResNet18_Weights.IMAGENET1K_V1"
        )
        entry = torchvision.models.get_weight(weights)
        try:
            state = entry.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"ImageNet weights could not be downloaded from {entry.url} ({error}); "
                "download that file yourself and set PRETRAINED to its path, or set PRETRAINED=none"
            ) from error
    elif not Path(pretrained).is_file():
        raise ValueError(
            f"PRETRAINED is {pretrained!r}, it can be imagenet, none or a file of torchvision weights"
        )
    else:
        state = load_torch_file(Path(pretrained))
        state = state.get("state_dict", state)
    network.net.load_trunk(state)
    return network


def cells_of(positions_rc: Tensor, map_hw: tuple[int, int]) -> Tensor:
    """Crop pixels (row, col) [..., 2] -> index of the feature cell that they fall into [...]."""
    rows = (positions_rc[..., 0] / FEATURE_STRIDE).floor().long().clamp(0, map_hw[0] - 1)
    cols = (positions_rc[..., 1] / FEATURE_STRIDE).floor().long().clamp(0, map_hw[1] - 1)
    return rows * map_hw[1] + cols
