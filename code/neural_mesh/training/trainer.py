"""The training loop: images against the bank, one category at a time."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from neural_mesh.data.dataset import (
    SAMPLE_FIELDS,
    Sample,
    TrainingImages,
    batches,
    make_loader,
    normalise,
)
from neural_mesh.geometry.meshes import Mesh, same_meshes
from neural_mesh.geometry.pose_error import Accuracy, accuracy, pose_errors
from neural_mesh.machine import console
from neural_mesh.machine.devices import Placement, send
from neural_mesh.machine.distributed import Group, share
from neural_mesh.network.backbone import build_network, cells_of
from neural_mesh.network.bank import Bank, vertex_sums
from neural_mesh.network.losses import clutter_loss, contrastive_loss
from neural_mesh.settings import SolveConfig, TrainConfig
from neural_mesh.solve.batches import read_batches
from neural_mesh.solve.mesh_solver import MeshSolver
from neural_mesh.solve.model import Model
from neural_mesh.storage.checkpoints import Checkpoint, load_torch_file, save_checkpoint
from neural_mesh.storage.files import atomic_path, csv_text, write_text
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import load_annotation
from neural_mesh.training.journal import Journal, similarity_picture

REFERENCE_EPOCHS_BETWEEN_SAVES = (
    200  # the reference writes after 200, 400, ... epochs, numbered 199, 399, ...
)
SECONDS_BETWEEN_STATES = 20.0  # at least; and 20 times what writing one takes
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
WARM_UP = 0.05  # of all epochs, with the cosine schedule
MOST_NON_FINITE = 10  # batches in a row without a finite loss, then training stops
VALIDATION_BATCH = 8  # images
PICTURES = 2  # images of which TensorBoard gets similarity maps, some ten times in a training


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate at a (fractional) epoch.

    as-executed: the reference recomputes it from the base at epochs 1, 11, ..., so that it is a fifth from epoch 1 on.
    """
    if config.schedule == "as-executed":
        return config.learning_rate * (1.0 if epoch < 1 else 0.2)
    done = epoch / config.total_epochs
    if done < WARM_UP:
        return config.learning_rate * max(done / WARM_UP, 0.02)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def hold_out(
    names: Sequence[Sequence[str]], fraction: float, seed: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Names per mesh -> those to train on and those to validate on, drawn by seed from the whole category.

    Raises ValueError when nothing would be left of either.
    """
    every = sorted(name for group in names for name in group)
    wanted = round(fraction * len(every))
    if not 0 < wanted < len(every):
        raise ValueError(
            f"VALIDATION_SHARE={fraction:g} of {console.count(len(every), 'image')} holds out {wanted}: "
            "too few to validate on or to train on"
        )
    held = {every[i] for i in np.random.default_rng(seed).permutation(len(every))[:wanted]}
    return [[n for n in group if n not in held] for group in names], [
        [n for n in group if n in held] for group in names
    ]


def check_combination(
    config: TrainConfig, devices: Placement, group: Group, compiled: bool
) -> None:
    """ValueError for settings that do not go together."""
    if config.sync_batchnorm and (group.size == 1 or devices.network[0].type == "cpu"):
        raise ValueError("SYNC_BATCHNORM=true needs PARALLEL=ddp on several GPUs")
    if compiled and len(devices.network) > 1:
        raise ValueError(
            "COMPILE=true does not go with PARALLEL=dp on several GPUs; set PARALLEL=ddp"
        )


@dataclass(frozen=True)
class Validation:
    """Training images that are not trained on: names[i] are compared with mesh i + 1."""

    prepared: PreparedSet
    names: list[list[str]]
    renderer: str = "numba"

    def accuracy(self, model: Model, group: Group) -> Accuracy:
        """What inference with SOLVER=best gives on them, by all processes together. ValueError for an unreadable image."""
        solver = MeshSolver(model, SolveConfig(solver="best"), self.renderer)
        category = model.checkpoint.config.category
        batches = [
            (mesh, names[i : i + VALIDATION_BATCH])
            for mesh, names in enumerate(self.names, start=1)
            for i in range(0, len(names), VALIDATION_BATCH)
        ]
        errors: list[float] = []
        for mesh, names, images in read_batches(
            self.prepared, category, share(batches, group.rank, group.size), model, 0
        ):
            if unreadable := [image for image in images if isinstance(image, str)]:
                raise ValueError(unreadable[0])
            poses = solver.solve(mesh, model.features(torch.stack(images)))
            found = np.stack([poses.azimuth, poses.elevation, poses.theta], axis=1)
            truth = [load_annotation(self.prepared.annotation(category, name)) for name in names]
            errors += pose_errors(
                found, [a.pose.angles for a in truth]
            ).tolist()
        return accuracy([error for part in group.collect(errors) for error in part])


@dataclass
class Progress:
    """What happened in an epoch."""

    images: int = 0
    batches: int = 0
    loss: float = 0.0
    clutter: float = 0.0
    trained: int = 0  # batches that moved bank and gradient
    empty: int = 0  # batches in which no vertex is visible
    non_finite: int = 0  # batches whose loss is not a finite number

    def means(self) -> tuple[float, float]:
        """Mean loss and clutter loss of the batches that were trained on."""
        return self.loss / max(self.trained, 1), self.clutter / max(self.trained, 1)


@dataclass
class Trainer:
    """Network, banks and optimiser of one category.

    With a group of several processes each trains on its share of every batch; bank and network stay the same in all.
    """

    config: TrainConfig
    meshes: list[Mesh]
    datasets: list[TrainingImages]
    devices: Placement
    folder: Path
    workers: int = 0
    data: str = ""  # fingerprint of the training set
    group: Group = field(default_factory=Group)
    validation: Validation | None = None
    tensorboard: bool = False
    compiled: bool = False  # torch.compile
    epoch: int = 0
    iteration: int = 0
    non_finite_in_a_row: int = 0
    best: dict = field(default_factory=dict)  # figures of the best validation
    log: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_combination(self.config, self.devices, self.group, self.compiled)
        generator = torch.Generator().manual_seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        device = self.devices.network[0]
        self.network = build_network(self.config.backbone, self.config.pretrained).to(device)
        self.network = self.network.to(memory_format=torch.channels_last)
        self.parallel: nn.Module = self._parallel()
        self.banks = [
            Bank.create(len(m.vertices), self.config, generator, self.devices.bank)
            for m in self.meshes
        ]
        self.optimiser = torch.optim.Adam(
            self.network.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        # a CAD model that no training image shows keeps its random bank, as in the reference
        workers = self.workers and max(
            1, self.workers // max(1, sum(1 for d in self.datasets if len(d)))
        )  # all loaders keep theirs
        self.loaders = [
            make_loader(d, self.group, workers, device.type == "cuda") if len(d) else None
            for d in self.datasets
        ]

    def _parallel(self) -> nn.Module:
        """The network as the devices and processes need it; all share its parameters. Batch norm stays per replica."""
        devices = list(self.devices.network)
        if self.config.sync_batchnorm:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        if self.compiled:
            self.network.compile()
        if (
            self.group.size > 1
        ):  # of batch norm's running statistics, those of rank 0 are kept, as by DataParallel
            return nn.parallel.DistributedDataParallel(
                self.network, device_ids=devices if devices[0].type == "cuda" else None
            )
        return (
            nn.DataParallel(self.network, device_ids=devices) if len(devices) > 1 else self.network
        )

    def path(self, kind: str, end: str) -> Path:
        """A file of this category, such as saved_model_car_last.pth."""
        return self.folder / f"{kind}_{self.config.category}{end}"

    @property
    def state_path(self) -> Path:
        return self.path("training_state", ".pth")

    def step(
        self, mesh: int, batch: Sample, counts: Sequence[int], rate: float, report: Progress
    ) -> None:
        """One iteration: features, loss, gradient, bank update, and an optimiser step when enough are accumulated.

        counts: images of this batch in each process. A batch without a visible vertex (the reference's weights turn
        into NaN there) or without a finite loss is counted and leaves bank and gradient alone.
        """
        report.images += sum(counts)
        report.batches += 1
        seen = batch.visible[: counts[self.group.rank]].sum()
        self.group.sum(seen)
        if seen:
            self._learn(mesh, batch, counts, int(seen), report)
        else:
            report.empty += 1
        if self.iteration % self.config.accumulate == 0:
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        self.iteration += 1

    def _learn(
        self, mesh: int, batch: Sample, counts: Sequence[int], seen: int, report: Progress
    ) -> None:
        """Loss of a batch, its gradient, and the bank's move; `seen` vertices are visible in all processes together."""
        device, bank, mine = self.devices.network[0], self.banks[mesh], counts[self.group.rank]
        image, positions, noise_cells = (
            send(part, device) for part in (batch.image, batch.positions, batch.noise_cells)
        )
        cells = torch.cat([cells_of(positions, self.datasets[mesh].map_hw), noise_cells], dim=1)
        images = normalise(image).contiguous(memory_format=torch.channels_last)
        features = self.parallel(images, cells)[:mine].to(self.devices.bank)
        positions, visible = (
            positions[:mine].to(self.devices.bank),
            send(batch.visible[:mine], self.devices.bank),
        )
        at_vertices, at_noise = features.split(
            [bank.vertices, features.shape[1] - bank.vertices], dim=1
        )
        main = contrastive_loss(at_vertices, positions, visible, bank.memory, self.config, seen)
        clutter = self.config.weight_regularisation * clutter_loss(
            at_noise, bank.mesh_rows, sum(counts)
        )
        values = torch.stack([main, clutter]).detach()
        self.group.sum(values)
        loss, clutter_value = (
            values.tolist()
        )  # the host waits for the GPU here, and not after the backward pass
        if not math.isfinite(loss + clutter_value):
            self._skip_non_finite(report)
            return
        (
            (main + clutter) * self.group.size
        ).backward()  # DistributedDataParallel takes the mean over processes
        with torch.no_grad():
            total, images_seen = vertex_sums(at_vertices, visible)
            self.group.sum(total, images_seen)
            bank.update(total, images_seen, self.group.concatenate(at_noise, counts))
        report.loss, report.clutter, report.trained = (
            report.loss + loss,
            report.clutter + clutter_value,
            report.trained + 1,
        )
        self.non_finite_in_a_row = 0

    def _skip_non_finite(self, report: Progress) -> None:
        report.non_finite += 1
        self.non_finite_in_a_row += 1
        if self.non_finite_in_a_row >= MOST_NON_FINITE:
            raise ValueError(
                f"the loss was not finite in {MOST_NON_FINITE} batches in a row, up to epoch {self.epoch} (iteration {self.iteration}); "
                "try a smaller LEARNING_RATE; RESUME=true goes on from the last state on disk"
            )

    def run_epoch(self, bar: tqdm) -> tuple[Progress, float]:
        """All images of all meshes once, mesh after mesh; what happened, and the last learning rate."""
        self.network.train()
        report = Progress()
        total = sum(len(loader) for loader in self.loaders if loader is not None)
        for mesh, loader in enumerate(self.loaders):
            if loader is None:
                continue
            loader.batch_sampler.epoch = self.epoch
            for number, batch in enumerate(batches(loader)):
                rate = learning_rate(self.config, self.epoch + report.batches / total)
                counts = loader.batch_sampler.counts(number)
                try:
                    self.step(mesh, batch, counts, rate, report)
                    fits = True
                except torch.cuda.OutOfMemoryError:
                    fits = False
                if not fits:  # told after the exception is gone, which keeps what the failed step had computed
                    raise ValueError(self.out_of_memory(mesh, batch))
                bar.set_postfix_str(
                    f"epoch {self.epoch + 1}/{self.config.total_epochs} loss {report.means()[0]:.3f} rate {rate:.1e}",
                    refresh=False,
                )
                bar.update(sum(counts))
        if report.empty == report.batches:
            raise ValueError(
                f"no visible vertex in any training image of {self.config.category}: check the prepared data"
            )
        return report, rate

    def out_of_memory(self, mesh: int, batch: Sample) -> str:
        """What to tell when a batch does not fit: the largest of its halves, quarters, ... that does, found by trying.

        The run ends then, since a smaller batch changes what the bank becomes; so it does not matter what a try does.
        """
        fits, size = 0, len(batch.image) // 2
        while size and not fits and self.group.size == 1:
            self.optimiser.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            part = Sample(*(getattr(batch, key)[:size] for key in SAMPLE_FIELDS))
            try:
                self.step(mesh, part, [size], 0.0, Progress())
                fits = size
            except torch.cuda.OutOfMemoryError:
                size //= 2
        remedy = (
            f"BATCH_SIZE={fits} fits"
            if fits
            else "not even one image fits: set IMAGE_SCALE=0.5 or BACKBONE=resnet18fpn"
        )
        if (
            self.group.size > 1
        ):  # the other processes wait for this one, so that nothing can be tried
            remedy = f"try BATCH_SIZE={max(self.group.size, self.config.batch_size // 2)}"
        return (
            f"a batch of {len(batch.image)} images does not fit into the memory of {self.devices.network[0]}; {remedy}, "
            "or use more GPUs; with RESUME=false, since the bank depends on the batch size"
        )

    def fit(self) -> None:
        """Train to the last epoch; states are kept on the way so that a killed run goes on where it was."""
        images = sum(len(dataset) for dataset in self.datasets)
        if self.group.first and not self.epoch:
            self.path("saved_model", "_best.pth").unlink(
                missing_ok=True
            )  # of a training that this one replaces
        log_folder = (
            self.folder / "tensorboard" / self.config.category
            if self.tensorboard and self.group.first
            else None
        )
        journal = Journal(log_folder, self.epoch + 1 if self.epoch else 0)
        due = monotonic() + SECONDS_BETWEEN_STATES
        total, done = images * self.config.total_epochs, images * self.epoch
        with console.progress_bar(
            self.config.category, total, initial=done, disable=not self.group.first
        ) as bar:
            while self.epoch < self.config.total_epochs:
                started = monotonic()
                report, rate = self.run_epoch(bar)
                self._record(report, rate, max(monotonic() - started, 1e-9), journal)
                if monotonic() > due and self.epoch < self.config.total_epochs:
                    started = monotonic()
                    self.save_state()
                    due = monotonic() + max(SECONDS_BETWEEN_STATES, 20 * (monotonic() - started))
        journal.close()
        self._finish()

    def _record(self, report: Progress, rate: float, seconds: float, journal: Journal) -> None:
        """Close an epoch: log, validation, checkpoints, TensorBoard."""
        loss, clutter = report.means()
        row = {
            "epoch": self.epoch,
            "loss": round(loss, 5),
            "clutter_loss": round(clutter, 6),
            "learning_rate": f"{rate:.3e}",
            "empty_batches": report.empty,
            "non_finite_batches": report.non_finite,
        }
        scalars = {
            "loss": loss,
            "clutter_loss": clutter,
            "learning_rate": rate,
            "images_per_second": report.images / seconds,
            "skipped/empty_batches": report.empty,
            "skipped/non_finite_batches": report.non_finite,
        }
        self.epoch += 1
        last = self.epoch == self.config.total_epochs
        if self.validation is not None:
            due = last or self.epoch % self.config.validate_every == 0
            figures = self.validate() if due else {}
            row |= {name: figures.get(name, "") for name in ("pi/6", "pi/18", "median")}
            scalars |= {f"validation/{name}": value for name, value in figures.items()}
        self.log.append(row)
        journal.scalars(scalars, self.epoch)
        if journal.path is not None and (
            self.epoch == 1 or last or self.epoch % max(1, self.config.total_epochs // 10) == 0
        ):
            self._draw(journal)
        if self.epoch % REFERENCE_EPOCHS_BETWEEN_SAVES == 0:
            self.save(f"_{self.epoch - 1}.pth")

    def _model(self) -> Model:
        """The network so far, for inference; the next epoch puts it into training mode again."""
        self.network.eval()
        return Model(self.checkpoint(), self.network, self.devices.network[0])

    def validate(self) -> dict[str, float]:
        """Accuracy in % and median error in degrees on the held-out images; the best network so far is saved.

        Best is the highest share within pi/18, then the lowest median error.
        """
        self.group.copy_from_first(list(self.network.buffers()))
        found = self.validation.accuracy(self._model(), self.group)
        figures = {name: round(found.value(name), 3) for name in ("pi/6", "pi/18", "median")}
        if not self.best or (figures["pi/18"], -figures["median"]) > (
            self.best["pi/18"],
            -self.best["median"],
        ):
            self.best = {"epoch": self.epoch - 1} | figures
            self.save("_best.pth")
        return figures

    @torch.no_grad()
    def _draw(self, journal: Journal) -> None:
        """Similarity maps of a few training images."""
        model = self._model()
        for mesh, dataset in enumerate(self.datasets, start=1):
            for index in range(0, len(dataset), max(1, len(dataset) // PICTURES))[:PICTURES]:
                image, positions, visible = dataset.original(index)
                seen = visible.nonzero()[:, 0].tolist()
                if not seen:
                    continue
                vertex = seen[len(seen) // 2]
                picture = similarity_picture(
                    image.permute(1, 2, 0).numpy(),
                    model.features(image[None])[0],
                    model.banks(mesh)[0],
                    vertex,
                    tuple(positions[vertex].tolist()),
                )
                journal.picture(
                    f"similarity/mesh {mesh}, {dataset.paths[index].stem}, vertex {vertex}",
                    picture,
                    self.epoch,
                )

    def checkpoint(self) -> Checkpoint:
        """What inference needs."""
        memory = [bank.memory for bank in self.banks]
        return Checkpoint(
            self.network.state_dict(), memory, self.meshes, self.config, self.epoch, data=self.data
        )

    def save(self, end: str) -> None:
        """Write saved_model_<category><end>, by rank 0."""
        if self.group.first:
            save_checkpoint(self.path("saved_model", end), self.checkpoint())

    def _finish(self) -> None:
        if self.non_finite_in_a_row:
            raise ValueError(
                "the loss of the last batch is not finite, so no last checkpoint is written; try a smaller LEARNING_RATE"
            )
        if self.group.first:
            self.write_log()
            write_text(self.path("training_summary", ".json"), console.as_json(self.summary()))
            self.save("_last.pth")
            self.state_path.unlink(missing_ok=True)

    def write_log(self) -> None:
        """Loss per epoch as csv beside the checkpoint."""
        columns = list(self.log[0])
        lines = [[row[column] for column in columns] for row in self.log]
        write_text(self.path("training_log", ".csv"), csv_text([columns, *lines]))

    def summary(self) -> dict:
        """What was trained, on what, with what, and the figures it ended with; the same for the same training."""
        return {
            "settings": asdict(self.config),
            "data": {
                "fingerprint": self.data,
                "training_images": [len(d) for d in self.datasets],
                "validation_images": [len(names) for names in self.validation.names]
                if self.validation
                else [],
                "mesh_vertices": [len(mesh.vertices) for mesh in self.meshes],
            },
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": version("torchvision"),
                "numpy": np.__version__,
                "cuda": torch.version.cuda if self.devices.network[0].type == "cuda" else None,
            },
            "devices": {
                "placement": self.devices.sentence,
                "processes": self.group.size,
                "parallel": "ddp" if self.group.size > 1 else "dp",
                "compile": self.compiled,
                "deterministic": torch.are_deterministic_algorithms_enabled(),
            },
            "figures": {
                "epochs": self.epoch,
                "iterations": self.iteration,
                "empty_batches": sum(row["empty_batches"] for row in self.log),
                "non_finite_batches": sum(row["non_finite_batches"] for row in self.log),
                "last": self.log[-1],
                "best": self.best,
            },
        }

    def save_state(self) -> None:
        """Everything that a resumed run needs, at the end of an epoch; not of one that ended without a finite loss."""
        if not self.group.first or self.non_finite_in_a_row:
            return
        gradients = [p.grad for p in self.network.parameters()]
        state = {
            "config": asdict(self.config),
            "data": self.data,
            "images": [len(d) for d in self.datasets],
            "epoch": self.epoch,
            "meshes": [
                (torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces))
                for mesh in self.meshes
            ],
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "banks": [bank.state() for bank in self.banks],
            "gradients": gradients,
            "best": self.best,
            "log": self.log,
        }
        with atomic_path(self.state_path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)  # given a path, torch would tell nothing of a full disk

    def resume(self) -> bool:
        """Go on from a saved state if there is one; ValueError when it belongs to other settings or data."""
        state = self.group.from_first(self._load_state() if self.group.first else None)
        if state is None:
            return False
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        for bank, stored in zip(self.banks, state["banks"], strict=True):
            bank.load_state(stored)
        for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.epoch, self.iteration, self.log = state["epoch"], state["iteration"], state["log"]
        self.best = state.get("best", {})
        return True

    def _load_state(self) -> dict | None:
        if not self.state_path.is_file():
            return None
        state = load_torch_file(self.state_path)
        if lacking := [key for key in STATE_KEYS if key not in state]:
            raise ValueError(
                f"{self.state_path} lacks {lacking[0]}; delete it, or set RESUME=false to start again"
            )
        stored = asdict(TrainConfig()) | state["config"]
        differing = [k for k, v in asdict(self.config).items() if _plain(stored[k]) != _plain(v)]
        if state["images"] != [len(d) for d in self.datasets] or state.get("data", "") != self.data:
            differing = differing or ["training data"]
        elif not same_meshes(
            [Mesh(*(part.numpy() for part in mesh)) for mesh in state["meshes"]], self.meshes
        ):
            differing = differing or ["cuboids"]
        if differing:
            raise ValueError(
                f"{self.state_path} is of an unfinished training with other {', '.join(differing)}; "
                "set RESUME=false to start again, or SAVED_NETWORK_PATH to another folder"
            )
        return state


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
