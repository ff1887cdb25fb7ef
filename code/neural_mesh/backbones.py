"""The names that BACKBONE takes."""

from __future__ import annotations

OWN_BACKBONES = ("resnetext", "resnet18fpn")
TIMM = "timm:"  # before the name of any network of timm
# Short names of networks of timm; lite0 is the recommended small one.
SHORT_NAMES = {"lite0": "timm:tf_efficientnet_lite0"}
BACKBONE_CHOICES = f"{', '.join([*OWN_BACKBONES, *SHORT_NAMES])} or {TIMM}NAME"


def full_name(backbone: str) -> str:
    """The name that settings and checkpoints hold of a backbone.

    Raises ValueError for a name that BACKBONE cannot take. Whether timm has the network is not
    looked up.
    """
    name = SHORT_NAMES.get(backbone, backbone)
    if name not in OWN_BACKBONES and not name.startswith(TIMM):
        raise ValueError(f"BACKBONE is {backbone!r}, it can be {BACKBONE_CHOICES}")
    return name
