"""Any network of timm that gives feature maps, as a backbone with a top-down path."""

from __future__ import annotations

import logging
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from neural_mesh.network.top_down import lateral_convolutions, smoothing, top_down
from neural_mesh.settings import FEATURE_STRIDE, InputStatistics

# It warns of the classifier's weights, which a backbone has no use for.
logging.getLogger("timm").setLevel(logging.ERROR)

# Options by which networks of timm take images of any size; a network knows at most one of them.
SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "dynamic_img_pad": True},  # vision transformers
    {"strict_img_size": False},  # transformers with windows
    {},
)
COARSEST_STRIDE = 32  # coarser maps say too little of a cell
# Sides of an image on which networks are tried: multiples of 8, but not of the coarser strides.
PROBE_HW = (72, 104)


class TimmFPN(nn.Module):
    """A network of timm with a feature pyramid's top-down path.

    Convolutional and hierarchical networks give maps at strides 8, 16 and 32; vision transformers
    give maps of tokens at one stride, which are resized. [B, 3, H, W] -> [B, 128, H/8, W/8].

    name: timm's, such as `tf_efficientnet_lite0`. Raises ValueError when timm has no such network,
    or it gives no usable maps.
    """

    channels = 128

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.body = _make_body(name)
        info: Any = self.body.feature_info
        strides = info.reduction()
        usable = [i for i, s in enumerate(strides) if FEATURE_STRIDE <= s <= COARSEST_STRIDE]
        if not usable:
            raise ValueError(
                f"BACKBONE: the maps of timm's {name} have strides {strides}, "
                f"none from {FEATURE_STRIDE} to {COARSEST_STRIDE}"
            )
        self.levels = usable
        widths = [info.channels()[level] for level in usable]
        self.channels_last = _puts_channels_last(name, self.body, usable[0], widths[0])
        self.lateral = lateral_convolutions(widths, self.channels)
        self.smooth = smoothing(self.channels)

    @property
    def statistics(self) -> InputStatistics:
        """How pixels are scaled for the weights of this network."""
        settings = _weights_settings(self.name)
        return InputStatistics(tuple(settings.mean), tuple(settings.std))

    @property
    def trunk(self) -> list[nn.Module]:
        """The pretrained part."""
        return [self.body]

    def forward(self, images: Tensor) -> Tensor:
        every = self.body(images)
        maps = [every[level] for level in self.levels]
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        height, width = images.shape[-2:]
        size_hw = height // FEATURE_STRIDE, width // FEATURE_STRIDE
        return self.smooth(top_down(maps, self.lateral, size_hw))

    def load_trunk(self, state: dict[str, Tensor]) -> None:
        """Load weights of this network, with or without its classifier.

        They have timm's names, others that timm knows, or list the tensors of the whole network in
        timm's order. Raises ValueError when they do not fit.
        """
        whole = timm.create_model(self.name, pretrained=False).state_dict()
        if not whole.keys() & state.keys() and _shapes(whole) == _shapes(state):
            state = dict(zip(whole, state.values(), strict=True))
        try:
            # timm renames weights, and resizes the positions that a transformer has learned.
            body = _make_body(self.name, {"state_dict": dict(state)})
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            reason = " ".join(str(error).splitlines()[:2])[:160]
            raise ValueError(f"the pretrained weights are of another network ({reason})") from error
        # timm does not tell of missing weights, which stay random.
        missing = _untouched(self.body, body)
        if missing:
            raise ValueError(
                f"the pretrained weights lack {len(missing)} weights of {self.name}, "
                f"{missing[0]} first"
            )
        self.body = body

    def download_trunk(self) -> None:
        """Load the ImageNet weights that timm names for this network.

        Raises ValueError when it names none, OSError or RuntimeError when they cannot be had.
        """
        settings = _weights_settings(self.name)
        if not settings.has_weights:
            tags = timm.list_pretrained(f"{self.name.split('.')[0]}.*")
            names = f"; there are some for {', '.join(tags[:4])}" if tags else ""
            raise ValueError(f"timm names no pretrained weights for {self.name}{names}")
        self.body = _make_body(self.name, {})


def _make_body(name: str, weights: dict[str, Any] | None = None) -> nn.Module:
    """timm's network that returns a list of maps. weights: where they come from; None: random."""
    if not timm.is_model(name.split(".")[0]):
        close = get_close_matches(name, timm.list_models(), 3)
        instead = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"BACKBONE: timm {timm.__version__} has no network {name!r}; {instead}"
            "timm.list_models() lists them"
        )
    options: dict[str, Any] = {"features_only": True, "pretrained": weights is not None}
    if weights:
        options["pretrained_cfg_overlay"] = weights
    for size_options in SIZE_OPTIONS:
        try:
            return timm.create_model(name, **options, **size_options)
        except TypeError as error:
            # Networks that do not know an option say so.
            if not size_options or "unexpected keyword" not in str(error):
                raise ValueError(_no_maps(name, error)) from error
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            # With weights, their caller tells what is wrong.
            if weights is not None:
                raise
            raise ValueError(_no_maps(name, error)) from error
    raise AssertionError("the last options are none, which every network takes")


def _weights_settings(name: str) -> PretrainedCfg:
    """What timm says of the weights that a network's name stands for."""
    settings = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if settings is None:
        raise ValueError(f"BACKBONE: timm {timm.__version__} knows no weights {name!r}")
    return settings


def _no_maps(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160]
    return f"BACKBONE: timm's {name} gives no feature maps ({reason})"


@torch.no_grad()
def _puts_channels_last(name: str, body: nn.Module, level: int, width: int) -> bool:
    """Try a network on an image; returns whether its maps are [B, h, w, D], not [B, D, h, w].

    Raises ValueError when it cannot take images of any size.
    """
    training = body.training
    try:
        shape = body.eval()(torch.zeros(1, 3, *PROBE_HW))[level].shape
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"BACKBONE: timm's {name} does not take images of any size "
            f"({' '.join(str(error).split())[:160]})"
        ) from error
    finally:
        body.train(training)
    return shape[1] != width


def _shapes(state: dict[str, Tensor]) -> list[torch.Size]:
    return [value.shape for value in state.values()]


def _untouched(before: nn.Module, after: nn.Module) -> list[str]:
    """Names of the weights that are the same in two networks; biases begin alike everywhere."""
    old = dict(before.named_parameters())
    return [
        name
        for name, weight in after.named_parameters()
        if weight.ndim > 1 and torch.equal(weight, old[name])
    ]
