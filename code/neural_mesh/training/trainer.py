"""The training loop of one category: epoch after epoch, with log, validation and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from torch.utils.data import DataLoader
from tqdm import tqdm

from neural_mesh.data.loading import batches, make_loader
from neural_mesh.machine import console
from neural_mesh.settings import TrainConfig
from neural_mesh.solve.model import Model
from neural_mesh.storage.checkpoints import Checkpoint, save_checkpoint
from neural_mesh.storage.files import write_text
from neural_mesh.training.log import TrainingLog, scalars, summary
from neural_mesh.training.memory import batch_too_large
from neural_mesh.training.schedule import learning_rate
from neural_mesh.training.setup import Hardware, TrainingData
from neural_mesh.training.state import StateFile
from neural_mesh.training.step import EpochTally, Learner, MeshBatch
from neural_mesh.training.tensorboard_log import TensorBoardLog, draw_similarity_maps
from neural_mesh.training.validation import Validation

# The reference writes after 200, 400, ... epochs, numbered 199, 399, ...
REFERENCE_EPOCHS_BETWEEN_SAVES = 200
PICTURES_PER_TRAINING = 10  # about as many epochs send similarity maps to TensorBoard


class Trainer:
    """Train one category, and write its files into a folder.

    validation: None to train on all images. tensorboard: whether to keep a TensorBoard log. Raises
    ValueError for settings that contradict each other.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        hardware: Hardware,
        folder: Path,
        validation: Validation | None = None,
        tensorboard: bool = False,
    ):
        self.config = config
        self.data = data
        self.hardware = hardware
        self.folder = folder
        self.validation = validation
        self.tensorboard = tensorboard
        self.epoch = 0
        self.log = TrainingLog()
        # Settings are checked here, before anything is written.
        self.learner = Learner(config, data.meshes, hardware)
        self.loaders = _make_loaders(data, hardware)
        self.state_file = StateFile(self.path("training_state", ".pth"), config, data)

    def path(self, kind: str, end: str) -> Path:
        """A file of this category, such as saved_model_car_last.pth."""
        return self.folder / f"{kind}_{self.config.category}{end}"

    def resume(self) -> bool:
        """Resume from a saved state; returns whether there was one. Raises as `StateFile.load`."""
        # Rank 0 reads the file and sends it to the others.
        group = self.hardware.group
        state = group.from_first(self.state_file.load() if group.first else None)
        if state is None:
            return False
        self.learner.load_state(state)
        self.epoch = state["epoch"]
        self.log = TrainingLog(state["log"], state.get("best", {}))
        return True

    def fit(self) -> None:
        """Train to the last epoch, and save states in between so that a killed run can resume.

        Raises ValueError when no image shows a vertex, when a batch does not fit into a GPU's
        memory, or when the loss stays not finite.
        """
        first = self.hardware.group.first
        if first and not self.epoch:
            # The file may be left over from a training run that this one replaces.
            self.path("saved_model", "_best.pth").unlink(missing_ok=True)
        board = self._open_tensorboard()
        images = sum(self.data.sizes)
        # The bar counts images; a resumed training run begins in its middle.
        total = images * self.config.total_epochs
        done = images * self.epoch
        name = self.config.category
        with console.progress_bar(name, total, initial=done, disable=not first) as bar:
            while not self._ended():
                started = monotonic()
                tally = self._run_epoch(bar)
                seconds = max(monotonic() - started, 1e-9)
                self._close_epoch(tally, seconds, board)
                # After the last epoch, the checkpoint makes a state superfluous.
                if self.state_file.is_due() and not self._ended():
                    self.state_file.save(self.learner, self.epoch, self.log)
        board.close()
        self._finish()

    def _ended(self) -> bool:
        return self.epoch >= self.config.total_epochs

    def _open_tensorboard(self) -> TensorBoardLog:
        """TensorBoard's log of rank 0; a resumed run hides only the epochs that it repeats."""
        if not (self.tensorboard and self.hardware.group.first):
            return TensorBoardLog(None)
        folder = self.folder / "tensorboard" / self.config.category
        return TensorBoardLog(folder, self.epoch + 1 if self.epoch else 0)

    # ---- an epoch --------------------------------------------------------------------------------

    def _run_epoch(self, bar: tqdm) -> EpochTally:
        """All images of all meshes once, mesh after mesh."""
        self.learner.network.train()
        tally = EpochTally(self.epoch)
        total = sum(len(loader) for loader in self.loaders if loader is not None)
        for batch in self._batches():
            # The rate also changes within an epoch.
            tally.rate = learning_rate(self.config, self.epoch + tally.batches / total)
            if not self.learner.try_step(batch, tally.rate, tally):
                raise batch_too_large(self.learner, batch)
            epochs = f"{self.epoch + 1}/{self.config.total_epochs}"
            figures = f"loss {tally.mean_loss:.3f} rate {tally.rate:.1e}"
            bar.set_postfix_str(f"epoch {epochs} {figures}", refresh=False)
            bar.update(batch.images)
        if tally.empty == tally.batches:
            raise ValueError(
                f"no visible vertex in any training image of {self.config.category}: "
                "check the prepared data"
            )
        return tally

    def _batches(self) -> Iterator[MeshBatch]:
        """This process's share of the batches of an epoch, decoded."""
        for mesh, loader in enumerate(self.loaders):
            if loader is None:
                continue
            sampler = loader.batch_sampler
            # Order, clutter cells and augmentation all follow from the epoch.
            sampler.epoch = self.epoch
            for number, sample in enumerate(batches(loader)):
                yield MeshBatch(mesh, sample, sampler.counts(number))

    def _close_epoch(self, tally: EpochTally, seconds: float, board: TensorBoardLog) -> None:
        """Validate and log a finished epoch, and write the checkpoint that is due."""
        self.epoch += 1
        validated = None
        # The last epoch is always validated, so that the summary has its figures.
        if self.validation is not None:
            due = self._ended() or self.epoch % self.config.validate_every == 0
            validated = self._validate() if due else {}
        self.log.add(tally, validated)
        board.scalars(scalars(tally, seconds, validated), self.epoch)
        if board.path is not None and self._is_drawn():
            draw_similarity_maps(board, self.model(), self.data.datasets, self.epoch)
        if self.epoch % REFERENCE_EPOCHS_BETWEEN_SAVES == 0:
            self._save(f"_{self.epoch - 1}.pth")

    def _is_drawn(self) -> bool:
        """Whether this epoch sends pictures to TensorBoard."""
        between = max(1, self.config.total_epochs // PICTURES_PER_TRAINING)
        return self.epoch == 1 or self._ended() or self.epoch % between == 0

    def _validate(self) -> dict[str, float]:
        """Figures of the held-out images; a network that is the best so far is saved."""
        group = self.hardware.group
        # Batch norm's running statistics differ between processes; all use those of rank 0.
        group.copy_from_first(list(self.learner.network.buffers()))
        figures = self.validation.figures(self.model(), group)
        if self.log.is_best(figures):
            self.log.best = {"epoch": self.epoch - 1} | figures
            self._save("_best.pth")
        return figures

    # ---- the files of a training run
    # ------------------------------------------------------------------

    def model(self) -> Model:
        """The network so far, for inference; the next epoch puts it into training mode again."""
        network = self.learner.network.eval()
        return Model(self._checkpoint(), network, self.hardware.devices.network[0])

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            state=self.learner.network.state_dict(),
            memory=[bank.memory for bank in self.learner.banks],
            meshes=self.data.meshes,
            config=self.config,
            epoch=self.epoch,
            data=self.data.fingerprint,
        )

    def _save(self, end: str) -> None:
        """Write saved_model_<category><end>, by rank 0."""
        if self.hardware.group.first:
            save_checkpoint(self.path("saved_model", end), self._checkpoint())

    def _finish(self) -> None:
        """Write log, summary and last checkpoint, and delete the state; only rank 0 writes."""
        if self.learner.non_finite_in_a_row:
            raise ValueError(
                "the loss of the last batch is not finite, so no last checkpoint is written; "
                "try a smaller LEARNING_RATE"
            )
        if not self.hardware.group.first:
            return
        # The last checkpoint comes after log and summary, so that it never stands without them.
        self.log.write(self.path("training_log", ".csv"))
        held_out = self.validation.sizes if self.validation else []
        content = summary(
            self.config, self.data, held_out, self.hardware, self.log, self.learner.iteration
        )
        write_text(self.path("training_summary", ".json"), console.as_json(content))
        self._save("_last.pth")
        self.state_file.delete()


def _make_loaders(data: TrainingData, hardware: Hardware) -> list[DataLoader | None]:
    """A loader for each mesh that has images, None for the others.

    All loaders keep their workers between epochs, so they divide the workers among them.
    """
    # With workers, every loader gets at least one.
    workers = hardware.workers
    if workers:
        with_images = sum(1 for size in data.sizes if size)
        workers = max(1, workers // max(1, with_images))
    pinned = hardware.devices.network[0].type == "cuda"
    return [
        make_loader(dataset, hardware.group, workers, pinned) if len(dataset) else None
        for dataset in data.datasets
    ]
