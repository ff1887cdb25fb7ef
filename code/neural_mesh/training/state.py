"""The state of an unfinished training run on disk, from which a killed run resumes."""

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
# The time between two states is at least this many times the time that writing one takes, so that
# writing takes at most a twentieth of a run.
TIMES_WRITING = 20
# The keys that every state has. Two more are optional because older states lack them: "data", the
# fingerprint of the prepared set, and "best", the figures of the best validation.
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
    """The state of a training run with these settings and data; a state of another is refused."""

    def __init__(self, path: Path, config: TrainConfig, data: TrainingData):
        self.path = path
        self.config = config
        self.data = data
        self.due = monotonic() + SECONDS_BETWEEN_STATES

    def is_due(self) -> bool:
        """Whether enough time has passed since the last state."""
        return monotonic() > self.due

    def save(self, learner: Learner, epoch: int, log: TrainingLog) -> None:
        """Write the state at the end of an epoch; only rank 0 does.

        epoch: number of finished epochs. No state is written where the last batch has no finite
        loss.
        """
        # Every process measures the time, but only rank 0 writes.
        started = monotonic()
        if learner.group.first and not learner.non_finite_in_a_row:
            self._write(learner, epoch, log)
        seconds = monotonic() - started
        self.due = monotonic() + max(SECONDS_BETWEEN_STATES, TIMES_WRITING * seconds)

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
        # Given a path instead of a file, torch does not report a full disk.
        with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def load(self) -> dict | None:
        """Read what `save` wrote; None when there is no state.

        Raises ValueError when the file is broken, or belongs to other settings, data or cuboids.
        """
        if not self.path.is_file():
            return None
        state = load_torch_file(self.path)
        # A file of another program, or of a much older version, lacks keys.
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
        """How a state differs from this run: in settings, else in data, else in cuboids."""
        # A setting that a state of an earlier version lacks had the value that is now the default.
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
        """Remove the state once the training run has ended."""
        self.path.unlink(missing_ok=True)


def _listed(value: object) -> object:
    """Turn a tuple into a list, since files may hold either."""
    return list(value) if isinstance(value, tuple) else value
