"""The training loop: images against the bank, one category at a time."""

from __future__ import annotations

import csv
import io
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from nemo.backbone import build_network, cells_of
from nemo.bank import Bank, clutter_loss, contrastive_loss
from nemo.checkpoints import Checkpoint, load_torch_file, save_checkpoint
from nemo.dataset import Sample, TrainingImages, collate, normalise
from nemo.devices import Placement
from nemo.files import atomic_path, write_text
from nemo.meshes import Mesh
from nemo.settings import TrainConfig

REFERENCE_EPOCHS_BETWEEN_SAVES = 200  # the reference writes after 200, 400, ... epochs, numbered 199, 399, ...
SECONDS_BETWEEN_STATES = 20.0  # at least; and 20 times what writing one takes
WARM_UP = 0.05  # of all epochs, with the cosine schedule


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


class EpochOrder(Sampler[int]):
    """A shuffle that depends on (seed, epoch) alone."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.length, generator=generator).tolist())


@dataclass
class Progress:
    """What happened in an epoch."""

    images: int = 0
    loss: float = 0.0
    clutter: float = 0.0
    batches: int = 0
    skipped: int = 0


@dataclass
class Trainer:
    """Network, banks and optimiser of one category."""

    config: TrainConfig
    meshes: list[Mesh]
    datasets: list[TrainingImages]
    devices: Placement
    folder: Path
    workers: int = 0
    data: str = ""  # fingerprint of the training set
    epoch: int = 0
    iteration: int = 0
    log: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        self.network = build_network(self.config.backbone, self.config.pretrained).to(self.devices.network[0])
        self.network = self.network.to(memory_format=torch.channels_last)
        self.parallel: nn.Module = self.network
        if len(self.devices.network) > 1:
            self.parallel = nn.DataParallel(self.network, device_ids=list(self.devices.network))
        self.banks = [Bank.create(len(m.vertices), self.config, generator, self.devices.bank) for m in self.meshes]
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.loaders = [self._loader(dataset) for dataset in self.datasets]

    def _loader(self, dataset: TrainingImages) -> DataLoader | None:
        if not len(dataset):
            return None  # a CAD model that no training image shows keeps its random bank, as in the reference
        return DataLoader(
            dataset, self.config.batch_size, sampler=EpochOrder(len(dataset), self.config.seed), collate_fn=collate,
            num_workers=self.workers, pin_memory=self.devices.network[0].type == "cuda",
        )  # fmt: skip

    @property
    def state_path(self) -> Path:
        return self.folder / f"training_state_{self.config.category}.pth"

    def step(self, mesh: int, batch: Sample, rate: float, report: Progress) -> None:
        """One iteration: features, loss, gradient, bank update, and an optimiser step when enough are accumulated."""
        device, bank_device, bank = self.devices.network[0], self.devices.bank, self.banks[mesh]
        images = normalise(batch.image.to(device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
        map_hw = self.datasets[mesh].map_hw
        cells = torch.cat([cells_of(batch.positions, map_hw), batch.noise_cells], dim=1).to(device)
        features = self.parallel(images, cells).to(bank_device)
        at_vertices, at_noise = features[:, : bank.vertices], features[:, bank.vertices :]
        visible = batch.visible.to(bank_device)
        if not visible.any():
            report.skipped += 1  # the reference turns all weights into NaN here
            return
        main = contrastive_loss(at_vertices, batch.positions.to(bank_device), visible, bank.memory, self.config)
        clutter = self.config.weight_regularisation * clutter_loss(at_noise, bank.mesh_rows)
        (main + clutter).backward()
        bank.update(at_vertices.detach(), visible, at_noise.detach())
        if self.iteration % self.config.accumulate == 0:
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        self.iteration += 1
        report.images += len(images)
        report.batches += 1
        report.loss += main.item()
        report.clutter += clutter.item()
        if not math.isfinite(report.loss):
            raise ValueError(f"the loss is not finite in epoch {self.epoch} (iteration {self.iteration}); try a smaller LEARNING_RATE")

    def run_epoch(self, bar: tqdm) -> None:
        """All images of all meshes once, mesh after mesh."""
        self.network.train()
        report, started = Progress(), monotonic()
        total = sum(len(loader) for loader in self.loaders if loader is not None)
        for mesh, loader in enumerate(self.loaders):
            if loader is None:
                continue
            loader.dataset.epoch = loader.sampler.epoch = self.epoch
            for batch in loader:
                rate = learning_rate(self.config, self.epoch + (report.batches + report.skipped) / total)
                self.step(mesh, batch, rate, report)
                bar.update(len(batch.image))
        if not report.batches:
            raise ValueError(f"no visible vertex in any training image of {self.config.category}: check the prepared data")
        seconds = max(monotonic() - started, 1e-9)
        self.log.append({
            "epoch": self.epoch,
            "loss": round(report.loss / report.batches, 5),
            "clutter_loss": round(report.clutter / report.batches, 6),
            "learning_rate": f"{rate:.3e}",
            "skipped_batches": report.skipped,
        })  # fmt: skip
        bar.set_postfix_str(f"epoch {self.epoch + 1}/{self.config.total_epochs} loss {report.loss / report.batches:.3f} "
                            f"{report.images / seconds:.1f} images/s")  # fmt: skip
        self.epoch += 1

    def fit(self) -> None:
        """Train to the last epoch; states are kept on the way so that a killed run goes on where it was."""
        images = sum(len(dataset) for dataset in self.datasets)
        due = monotonic() + SECONDS_BETWEEN_STATES
        with tqdm(total=images * self.config.total_epochs, initial=images * self.epoch, unit=" images", file=sys.stderr,
                  desc=self.config.category, mininterval=1.0 if sys.stderr.isatty() else 30.0) as bar:  # fmt: skip
            while self.epoch < self.config.total_epochs:
                self.run_epoch(bar)
                if self.epoch % REFERENCE_EPOCHS_BETWEEN_SAVES == 0:
                    save_checkpoint(self.folder / f"saved_model_{self.config.category}_{self.epoch - 1}.pth", self.checkpoint())
                if monotonic() > due and self.epoch < self.config.total_epochs:
                    started = monotonic()
                    self.save_state()
                    due = monotonic() + max(SECONDS_BETWEEN_STATES, 20 * (monotonic() - started))
        save_checkpoint(self.folder / f"saved_model_{self.config.category}_last.pth", self.checkpoint())
        self.write_log()
        self.state_path.unlink(missing_ok=True)

    def checkpoint(self) -> Checkpoint:
        """What inference needs."""
        memory = [bank.memory for bank in self.banks]
        return Checkpoint(self.network.state_dict(), memory, self.meshes, self.config, self.epoch, data=self.data)

    def write_log(self) -> None:
        """Loss per epoch as csv beside the checkpoint."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.log[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.log)
        write_text(self.folder / f"training_log_{self.config.category}.csv", text.getvalue())

    def save_state(self) -> None:
        """Everything that a resumed run needs, at the end of an epoch."""
        gradients = [p.grad for p in self.network.parameters()]
        state = {
            "config": asdict(self.config), "data": self.data, "images": [len(d) for d in self.datasets], "epoch": self.epoch,
            "iteration": self.iteration, "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(),
            "banks": [bank.state() for bank in self.banks], "gradients": gradients, "log": self.log,
        }  # fmt: skip
        with atomic_path(self.state_path) as temporary:
            torch.save(state, temporary)

    def resume(self) -> bool:
        """Go on from a saved state if there is one; ValueError when it belongs to other settings or data."""
        if not self.state_path.is_file():
            return False
        state = load_torch_file(self.state_path)
        differing = [k for k, v in asdict(self.config).items() if _plain(state["config"].get(k)) != _plain(v)]
        if differing or state["images"] != [len(d) for d in self.datasets] or state.get("data", "") != self.data:
            raise ValueError(
                f"{self.state_path} is of an unfinished training with other {', '.join(differing) or 'training data'}; "
                "set RESUME=false to start again, or SAVED_NETWORK_PATH to another folder"
            )
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        for bank, stored in zip(self.banks, state["banks"], strict=True):
            bank.load_state(stored)
        for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.epoch, self.iteration, self.log = state["epoch"], state["iteration"], state["log"]
        return True


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
