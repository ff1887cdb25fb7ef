"""TensorBoard's log of a training run: scalars and pictures."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.data.dataset import TrainingImages
from neural_mesh.settings import FEATURE_STRIDE
from neural_mesh.solve.model import Model
from neural_mesh.storage.files import disk_errors

PICTURES = 2  # images of each mesh that get a similarity map
GREY_SHARE = 0.35  # weight of the photograph under a similarity map
# Similarity that is drawn black; with a trained network a vertex and an unlike cell have less.
LOWEST_SHOWN = 0.4
CROSS_RADIUS = 9  # pixels
CROSS_COLOUR = (0, 255, 0)


class TensorBoardLog:
    """A TensorBoard log in `folder`; without a folder it records nothing.

    first_step: 0 starts a new log; a resumed training run passes the step that it records next, and
    what a killed run had written from that step on is hidden. Each record is on disk at once,
    whereas the thread of torch's SummaryWriter holds back two minutes of them and ends with a
    traceback when the disk is full.

    Raises ValueError when tensorboard is not installed, and all methods WriteError when the disk
    is full.
    """

    def __init__(self, folder: Path | None, first_step: int = 0):
        self.path = None
        if folder is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        except Exception as error:  # of another protobuf or NumPy they raise this and that
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"TENSORBOARD=true needs packages that cannot be used here ({reason}); "
                "install requirements.txt or set TENSORBOARD=false"
            ) from error
        # TensorBoard would draw the log of an earlier run of the category beside this one.
        if not first_step and folder.is_dir():
            shutil.rmtree(folder)
        self.summary = summary
        self.event = Event
        # The time in the name sorts later runs after earlier ones.
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        with disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self.records = RecordWriter(open(self.path, "xb"))
        self._add(file_version="brain.Event:2")
        if first_step:
            self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **content: object) -> None:
        with disk_errors(self.path):
            event = self.event(wall_time=time.time(), **content)
            self.records.write(event.SerializeToString())
            self.records.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record the numbers of a step, by name."""
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


# ---- similarity maps -----------------------------------------------------------------------------


@torch.no_grad()
def draw_similarity_maps(
    board: TensorBoardLog, model: Model, datasets: Sequence[TrainingImages], step: int
) -> None:
    """Record similarity maps of a few training images. datasets: those of mesh 1, 2, ..."""
    for mesh, dataset in enumerate(datasets, start=1):
        # Take images at equal distances in the list, the same in every epoch.
        stride = max(1, len(dataset) // PICTURES)
        for index in range(0, len(dataset), stride)[:PICTURES]:
            image, positions, visible = dataset.original(index)
            seen = visible.nonzero()[:, 0].tolist()
            if not seen:
                continue
            # Any visible vertex would do; this one is in the middle of the list.
            vertex = seen[len(seen) // 2]
            features = model.features(image[None])[0]
            vertices, _ = model.banks(mesh)
            picture = similarity_picture(
                image.permute(1, 2, 0).numpy(),
                features,
                vertices,
                vertex,
                tuple(positions[vertex].tolist()),
            )
            name = f"similarity/mesh {mesh}, {dataset.paths[index].stem}, vertex {vertex}"
            board.picture(name, picture, step)


def similarity_picture(
    image: NDArray[np.uint8],
    features: Tensor,
    vertices: Tensor,
    vertex: int,
    position_rc: tuple[float, float],
) -> NDArray[np.uint8]:
    """Draw how an image's features resemble the bank's: three panels, one below the other.

    The first panel is the crop, the second each cell's highest similarity with any vertex, the
    third its similarity with one vertex. White is similarity 1.

    image [H, W, 3]: the crop. features [C, H/8, W/8]: unit vectors. vertices [V, C]: the bank's
    vertex rows, unit vectors. vertex: index of the one vertex. position_rc: where it is annotated
    in the crop, marked by a cross. Returns [3 H, W, 3].
    """
    scores = torch.einsum("vc,chw->vhw", vertices, features)
    best = _score_panel(image, scores.amax(0))
    single = _score_panel(image, scores[vertex])
    crop = image.copy()
    _mark(crop, position_rc)
    _mark(single, position_rc)
    return np.concatenate([crop, best, single])


def _score_panel(image: NDArray[np.uint8], scores: Tensor) -> NDArray[np.uint8]:
    """Scores [H/8, W/8] as colours over a grey image [H, W, 3]."""
    cell = np.ones((FEATURE_STRIDE, FEATURE_STRIDE), np.float32)
    enlarged = np.kron(scores.cpu().numpy(), cell)
    colours = 255 * heat((enlarged - LOWEST_SHOWN) / (1 - LOWEST_SHOWN))
    # Blend with the photograph in grey, so that colours mean similarity alone.
    grey = image.mean(-1, keepdims=True)
    blended = GREY_SHARE * grey + (1 - GREY_SHARE) * colours
    return blended.round().astype(np.uint8)


def heat(values: NDArray) -> NDArray[np.float64]:
    """Colours [..., 3] in 0 to 1 for numbers [...]: black at 0, then red, yellow, white at 1."""
    return np.clip(3 * values[..., None] - np.arange(3), 0, 1)


def _mark(image: NDArray[np.uint8], position_rc: tuple[float, float]) -> None:
    """Draw a cross into an image, in place."""
    height, width = image.shape[:2]
    row = int(np.clip(position_rc[0], 0, height - 1))
    column = int(np.clip(position_rc[1], 0, width - 1))
    rows = slice(max(row - CROSS_RADIUS, 0), row + CROSS_RADIUS + 1)
    columns = slice(max(column - CROSS_RADIUS, 0), column + CROSS_RADIUS + 1)
    image[rows, column] = CROSS_COLOUR
    image[row, columns] = CROSS_COLOUR
