"""What a training tells its user on the way: TensorBoard scalars and pictures. tensorboard comes in here."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.settings import FEATURE_STRIDE
from neural_mesh.storage.files import disk_errors

GREY_SHARE = 0.35  # of the photograph under a similarity map
LOWEST_SHOWN = 0.4  # similarity that is black; what vertices have with unlike cells of a trained network lies below
CROSS_RADIUS = 9  # pixels


class Journal:
    """A TensorBoard log in `folder`, or nothing at all when there is no folder.

    first_step: 0 starts a new log; a resumed training passes the step that it records next, and what a killed run had
    written from there on is hidden. What is recorded is on disk at once, unlike with torch's SummaryWriter, whose thread
    keeps two minutes of it and ends with a traceback where the disk is full.

    Raises ValueError when tensorboard is not installed, and all methods WriteError when the disk is full.
    """

    def __init__(self, folder: Path | None, first_step: int = 0):
        self.path = None
        if folder is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        except ImportError as error:
            raise ValueError(
                f"TENSORBOARD=true needs a package ({error}); install requirements.txt or set TENSORBOARD=false"
            ) from error
        if not first_step and folder.is_dir():
            shutil.rmtree(folder)
        self.summary, self.event = summary, Event
        self.path = (
            folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        )  # later runs sort behind earlier ones
        with disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self.records = RecordWriter(open(self.path, "xb"))
        self._add(file_version="brain.Event:2")
        if first_step:
            self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **content: object) -> None:
        with disk_errors(self.path):
            self.records.write(self.event(wall_time=time.time(), **content).SerializeToString())
            self.records.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers, by name, of a step."""
        if self.path is not None:
            for name, value in values.items():
                self._add(step=step, summary=self.summary.scalar(name, value))

    def picture(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Record a picture [H, W, 3] of a step."""
        if self.path is not None:
            self._add(step=step, summary=self.summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """End the log."""
        if self.path is not None:
            self.records.close()


def similarity_picture(
    image: NDArray[np.uint8],
    features: Tensor,
    vertices: Tensor,
    vertex: int,
    position_rc: tuple[float, float],
) -> NDArray[np.uint8]:
    """What the bank sees in an image: the crop, each cell's best vertex score, and its similarity with one vertex.

    image [H, W, 3], features [C, H/8, W/8] and bank rows `vertices` [V, C], all unit vectors; position_rc: where
    `vertex` is annotated, marked by a cross. Returns the three one below the other; white is similarity 1.
    """
    scores = torch.einsum("vc,chw->vhw", vertices, features)
    panels = [image.copy()]
    for scored in (scores.amax(0), scores[vertex]):
        enlarged = np.kron(
            scored.cpu().numpy(), np.ones((FEATURE_STRIDE, FEATURE_STRIDE), np.float32)
        )
        colours = 255 * heat((enlarged - LOWEST_SHOWN) / (1 - LOWEST_SHOWN))
        blended = GREY_SHARE * image.mean(-1, keepdims=True) + (1 - GREY_SHARE) * colours
        panels.append(blended.round().astype(np.uint8))
    for panel in (panels[0], panels[2]):
        _mark(panel, position_rc)
    return np.concatenate(panels)


def heat(values: NDArray) -> NDArray[np.float64]:
    """Numbers [...] -> colours [..., 3] in 0..1: black at 0 and below, then red, yellow, white at 1."""
    return np.clip(3 * values[..., None] - np.arange(3), 0, 1)


def _mark(image: NDArray[np.uint8], position_rc: tuple[float, float]) -> None:
    row, column = (
        int(np.clip(p, 0, n - 1)) for p, n in zip(position_rc, image.shape[:2], strict=True)
    )
    rows = slice(max(row - CROSS_RADIUS, 0), row + CROSS_RADIUS + 1)
    columns = slice(max(column - CROSS_RADIUS, 0), column + CROSS_RADIUS + 1)
    image[rows, column] = image[row, columns] = (0, 255, 0)
