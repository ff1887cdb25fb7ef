"""The learning rate over a training run."""

from __future__ import annotations

import math

from neural_mesh.settings import TrainConfig

WARM_UP = 0.05  # share of all epochs that the cosine schedule warms up for
LOWEST_WARM_UP = 0.02  # share of the learning rate in the first iterations


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate at a (fractional) epoch.

    as-executed: the reference recomputes the rate from the base rate at epochs 1, 11, ..., so that
    it is a fifth from epoch 1 on, although it seems meant to fall to a fifth of the last rate each
    time. cosine: a linear warm-up, then half a cosine down to 0.
    """
    if config.schedule == "as-executed":
        return config.learning_rate * (1.0 if epoch < 1 else 0.2)
    # The cosine schedule counts in shares of the whole training run.
    done = epoch / config.total_epochs
    if done < WARM_UP:
        return config.learning_rate * max(done / WARM_UP, LOWEST_WARM_UP)
    angle = math.pi * (done - WARM_UP) / (1 - WARM_UP)
    return config.learning_rate * 0.5 * (1 + math.cos(angle))
