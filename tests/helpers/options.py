"""Options of entry points, as they stand on a command line."""

from __future__ import annotations


def options(**settings: object) -> tuple[str, ...]:
    """options(batch_size=5) -> ("--batch-size", "5")."""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return tuple(words)


# A training of some seconds.
SMALL_TRAINING = options(
    gpus="",
    backbone="resnet18fpn",
    pretrained="none",
    image_scale=0.5,
    recipe="fixed",
    learning_rate=1e-3,
    workers=0,
)
