"""The state of an unfinished training on disk, from which a killed run goes on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import monotonic

import torch

from neural_mesh.geometry.meshes import Mesh, same_meshes
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.checkpoints import load_torch_file
from neural_mesh.storage.files import atomic_path
from neural_mesh.training.log import TrainingLog
from neural_mesh.training.setup import TrainingData
from neural_mesh.training.step import Learner

SECONDS_BETWEEN_STATES = 20.0  # at least
LONGEST_SHARE = 20  # and this many times what writing one takes
STATE_KEYS = (
    "config",
    "images",
    "meshes",
    "epoch",
    "iteration",
    "network",
    "optimiser",
    "banks",
    "gradients",
    "log",
)


class StateFile:
    """The state of a training with these settings and data; one with others is refused."""

    def __init__(self, path: Path, config: TrainConfig, data: TrainingData):
        self.path = path
        self.config = config
        self.data = data
        self.due = monotonic() + SECONDS_BETWEEN_STATES

    def is_due(self) -> bool:
        """Whether enough time has passed since the last state."""
        return monotonic() > self.due

    def save(self, learner: Learner, epoch: int, log: TrainingLog) -> None:
        """Write what a resumed run needs at the end of an epoch, by rank 0.

        An epoch that ended without a finite loss is no state to go on from. epoch: how many are
        done.
        """
        started = monotonic()
        if learner.group.first and not learner.non_finite_in_a_row:
            self._write(learner, epoch, log)
        seconds = monotonic() - started
        self.due = monotonic() + max(SECONDS_BETWEEN_STATES, LONGEST_SHARE * seconds)

    def _write(self, learner: Learner, epoch: int, log: TrainingLog) -> None:
        meshes = [
            (torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces))
            for mesh in self.data.meshes
        ]
        state = {
            "config": asdict(self.config),
            "data": self.data.fingerprint,
            "images": self.data.sizes,
            "epoch": epoch,
            "meshes": meshes,
            **learner.state(),
            "best": log.best,
            "log": log.rows,
        }
        # Given a path, torch would tell nothing of a full disk.
        with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def load(self) -> dict | None:
        """What `save` wrote, None when there is nothing.

        ValueError when it is broken, or belongs to other settings, data or cuboids.
        """
        if not self.path.is_file():
            return None
        state = load_torch_file(self.path)
        lacking = [key for key in STATE_KEYS if key not in state]
        if lacking:
            raise ValueError(
                f"{self.path} lacks {lacking[0]}; delete it, or set RESUME=false to start again"
            )
        differing = self._differing(state)
        if differing:
            raise ValueError(
                f"{self.path} is of an unfinished training with other {', '.join(differing)}; "
                "set RESUME=false to start again, or SAVED_NETWORK_PATH to another folder"
            )
        return state

    def _differing(self, state: dict) -> list[str]:
        """In what a state is of another training: its settings, else its data, else its cuboids."""
        # A state of an earlier version lacks settings, which had the value that is the default now.
        stored = asdict(TrainConfig()) | state["config"]
        settings = [
            name
            for name, value in asdict(self.config).items()
            if _listed(stored[name]) != _listed(value)
        ]
        if settings:
            return settings
        same_data = state.get("data", "") == self.data.fingerprint
        if state["images"] != self.data.sizes or not same_data:
            return ["training data"]
        meshes = [Mesh(vertices.numpy(), faces.numpy()) for vertices, faces in state["meshes"]]
        return [] if same_meshes(meshes, self.data.meshes) else ["cuboids"]

    def delete(self) -> None:
        """Remove it, once the training has ended."""
        self.path.unlink(missing_ok=True)


def _listed(value: object) -> object:
    """A tuple as a list: files may hold either."""
    return list(value) if isinstance(value, tuple) else value
