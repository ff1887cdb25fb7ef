"""Networks that turn an image into one unit feature per cell of 8 x 8 pixels, with torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE
from neural_mesh.storage.checkpoints import load_weights

IMAGENET_WEIGHTS = {  # torchvision's names
    "resnetext": "ResNet50_Weights.IMAGENET1K_V1",
    "resnet18fpn": "ResNet18_Weights.IMAGENET1K_V1",
}
BACKBONES = tuple(IMAGENET_WEIGHTS)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is a GPU with bfloat16 in hardware."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the GPU has it in hardware, else nothing.

    Entered inside `forward`: DataParallel's threads do not inherit the type of an autocast around
    them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


# ---- backbones -----------------------------------------------------------------------------------


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


class ResNetExt(nn.Module):
    """The paper's backbone: ResNet-50 with two upsampling blocks.

    [B, 3, H, W] -> [B, 256, H/8, W/8].
    """

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
        x = self.upsample1(self.upsample0(x32), x16)
        return self.upsample2(x, x8)

    def load_trunk(self, state: dict[str, Tensor]) -> None:
        """Load torchvision's resnet50 weights. Raises ValueError when they do not fit."""
        names = {
            "conv1": "extractor.0",
            "bn1": "extractor.1",
            "layer1": "extractor.4",
            "layer2": "extractor.5",
            "layer3": "extractor1",
            "layer4": "extractor2",
        }
        _load_renamed(self, state, names)


class ResNet18FPN(nn.Module):
    """A backbone for CPUs: ResNet-18 with a feature pyramid's top-down path.

    [B, 3, H, W] -> [B, 128, H/8, W/8].
    """

    channels = 128

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision.models.resnet18(weights=None)
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1)
        self.layer2 = trunk.layer2
        self.layer3 = trunk.layer3
        self.layer4 = trunk.layer4
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
        lateral8, lateral16, lateral32 = self.lateral
        x = lateral32(x32)
        x = lateral16(x16) + _upsampled(x, x16)
        x = lateral8(x8) + _upsampled(x, x8)
        return self.smooth(x)

    def load_trunk(self, state: dict[str, Tensor]) -> None:
        """Load torchvision's resnet18 weights. Raises ValueError when they do not fit."""
        names = {
            "conv1": "stem.0",
            "bn1": "stem.1",
            "layer1": "stem.4",
            "layer2": "layer2",
            "layer3": "layer3",
            "layer4": "layer4",
        }
        _load_renamed(self, state, names)


def _upsampled(x: Tensor, like: Tensor) -> Tensor:
    """A map at the size of another one."""
    size = like.shape[-2:]
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


# ---- the network ---------------------------------------------------------------------------------


# By the name that BACKBONE takes: a network has `channels` and, for PRETRAINED, `load_trunk`.
NETWORKS: dict[str, type[ResNetExt] | type[ResNet18FPN]] = {
    "resnetext": ResNetExt,
    "resnet18fpn": ResNet18FPN,
}


class FeatureNet(nn.Module):
    """Backbone and linear head. State-dict names are the reference's (`net.*`, `out_layer.*`)."""

    def __init__(self, backbone: str = "resnetext", channels: int = FEATURE_CHANNELS):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"BACKBONE is {backbone!r}, it can be {' or '.join(BACKBONES)}")
        self.net = NETWORKS[backbone]()
        self.out_layer = nn.Linear(self.net.channels, channels)

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


# ---- pretrained weights --------------------------------------------------------------------------


def build_network(backbone: str, pretrained: str) -> FeatureNet:
    """A network whose trunk is pretrained.

    pretrained: `imagenet` (downloaded by torchvision), `none`, or a state-dict file. Raises
    ValueError when the weights cannot be had or do not fit, with what to do instead.
    """
    network = FeatureNet(backbone)
    if pretrained == "none":
        return network
    if pretrained == "imagenet":
        state = _imagenet_weights(backbone)
    elif Path(pretrained).is_file():
        state = _bare_weights(Path(pretrained))
    else:
        raise ValueError(
            f"PRETRAINED is {pretrained!r}, "
            "it can be imagenet, none or a file of torchvision weights"
        )
    try:
        network.net.load_trunk(state)
    except ValueError as error:
        raise ValueError(f"PRETRAINED is {pretrained}: {error}") from error
    return network


def _bare_weights(path: Path) -> dict[str, Any]:
    """The weights in a file, out of the containers that trainings put them into."""
    content = load_weights(path)
    if {"state", "memory"} <= content.keys():
        raise ValueError(
            f"{path} is a trained NeMo checkpoint; PRETRAINED takes torchvision's weights"
        )
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(name), dict):
            content = content[name]
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _imagenet_weights(backbone: str) -> dict[str, Tensor]:
    entry = torchvision.models.get_weight(IMAGENET_WEIGHTS[backbone])
    # torch would neither check a copy of an earlier run nor say that it is one.
    copy = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if copy.is_file():
        try:
            return load_weights(copy)
        except ValueError as error:
            raise ValueError(
                f"{error}. It is the copy of the ImageNet weights that torchvision keeps: "
                "delete it to have them downloaded again"
            ) from error
    try:
        return entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"ImageNet weights could not be downloaded from {entry.url} ({error}); download that "
            "file yourself and set PRETRAINED to its path, set TORCH_HOME to a folder that can be "
            "written if this one cannot, or set PRETRAINED=none"
        ) from error


def _load_renamed(module: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> None:
    """Load the weights of a trunk whose layers have other names here. names: theirs -> ours."""
    renamed = {}
    for key, value in state.items():
        layer, _, rest = key.partition(".")
        if layer in names:
            renamed[f"{names[layer]}.{rest}"] = value
    prefixes = tuple(f"{name}." for name in names.values())
    expected = {key for key in module.state_dict() if key.startswith(prefixes)}
    # Files of old versions of torch lack the counters of batch norm.
    required = {key for key in expected if not key.endswith("num_batches_tracked")}
    missing = sorted(required - renamed.keys())
    if missing:
        raise ValueError(
            f"the pretrained weights lack {len(missing)} of {len(expected)} entries, "
            f"{missing[0]} first"
        )
    try:
        module.load_state_dict(renamed, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"the pretrained weights are of another network ({reason})") from error
