"""The figures of each epoch and the summary of a training run, beside its checkpoints."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from neural_mesh.settings import TrainConfig
from neural_mesh.storage.files import csv_text, write_text
from neural_mesh.training.setup import Hardware, TrainingData
from neural_mesh.training.step import EpochTally
from neural_mesh.training.validation import METRICS


@dataclass
class TrainingLog:
    """Figures of the epochs so far.

    rows: one for each epoch, all with the same columns. best: figures and epoch of the best
    validation; empty before the first validation.
    """

    rows: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)

    def add(self, tally: EpochTally, validated: Mapping[str, float] | None) -> None:
        """Append an epoch. validated: its figures; None without validation, empty if not due."""
        # Values are rounded for readers; TensorBoard gets all digits.
        row = {
            "epoch": tally.epoch,
            "loss": round(tally.mean_loss, 5),
            "clutter_loss": round(tally.mean_clutter, 6),
            "learning_rate": f"{tally.rate:.3e}",
            "empty_batches": tally.empty,
            "non_finite_batches": tally.non_finite,
        }
        # All rows have the same columns, even where no validation was due.
        if validated is not None:
            row |= {name: validated.get(name, "") for name in METRICS}
        self.rows.append(row)

    def is_best(self, figures: Mapping[str, float]) -> bool:
        """Whether a validation beats all before it, by the share within pi/18, then the median."""
        if not self.best:
            return True
        rank = (figures["pi/18"], -figures["median"])
        return rank > (self.best["pi/18"], -self.best["median"])

    def write(self, path: Path) -> None:
        """Write the epochs as csv."""
        header = list(self.rows[0])
        values_of = itemgetter(*header)
        lines = [values_of(row) for row in self.rows]
        write_text(path, csv_text([header, *lines]))

    def total(self, column: str) -> int:
        """The sum of a column over all epochs."""
        return sum(row[column] for row in self.rows)


def scalars(
    tally: EpochTally, seconds: float, validated: Mapping[str, float] | None
) -> dict[str, float]:
    """The figures of an epoch for TensorBoard, by name. seconds: duration of the epoch."""
    # TensorBoard's page groups names by what stands before a slash.
    figures = {
        "loss": tally.mean_loss,
        "clutter_loss": tally.mean_clutter,
        "learning_rate": tally.rate,
        "images_per_second": tally.images / seconds,
        "skipped/empty_batches": tally.empty,
        "skipped/non_finite_batches": tally.non_finite,
    }
    return figures | {f"validation/{name}": value for name, value in (validated or {}).items()}


def summary(
    config: TrainConfig,
    data: TrainingData,
    validation_images: Sequence[int],
    hardware: Hardware,
    log: TrainingLog,
    iterations: int,
) -> dict:
    """Settings, data, versions, devices and final figures of a training run.

    validation_images: number of held-out images of each mesh; empty without validation. iterations:
    number of iterations in all. Repeating a training run gives the same summary.
    """
    # It holds neither times nor folders, so that two training runs can be compared file by file.
    return {
        "settings": asdict(config),
        "data": {
            "fingerprint": data.fingerprint,
            "training_images": data.sizes,
            "validation_images": list(validation_images),
            "mesh_vertices": [len(mesh.vertices) for mesh in data.meshes],
        },
        "versions": _versions(hardware),
        "devices": {
            "placement": hardware.devices.sentence,
            "processes": hardware.group.size,
            "parallel": "ddp" if hardware.group.size > 1 else "dp",
            "compile": hardware.compiled,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        "figures": {
            "epochs": len(log.rows),
            "iterations": iterations,
            "empty_batches": log.total("empty_batches"),
            "non_finite_batches": log.total("non_finite_batches"),
            "last": log.rows[-1],
            "best": log.best,
        },
    }


def _versions(hardware: Hardware) -> dict[str, str | None]:
    """Versions of the software that the numbers depend on."""
    on_gpu = hardware.devices.network[0].type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
    }
