"""One iteration: features, their loss against the bank, the bank's move, the optimiser's step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neural_mesh.data.crops import map_size
from neural_mesh.data.dataset import TrainingSample, normalise
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine.devices import send
from neural_mesh.network.backbone import FeatureNet, cells_of
from neural_mesh.network.bank import Bank, vertex_sums
from neural_mesh.network.losses import clutter_loss, contrastive_loss, dense_clutter_loss
from neural_mesh.network.pretrained import build_network
from neural_mesh.settings import TrainConfig
from neural_mesh.training.setup import Hardware, check_combination

MOST_NON_FINITE = 10  # batches in a row without a finite loss after which training stops


class MeshBatch(NamedTuple):
    """Images of one mesh that are trained on together.

    mesh: index of the mesh. sample: this process's share of the images. counts: number of images of
    each process; a process whose number is 0 still gets one image, which is left out afterwards.
    """

    mesh: int
    sample: TrainingSample
    counts: Sequence[int]

    @property
    def images(self) -> int:
        """Number of images of all processes together."""
        return sum(self.counts)


@dataclass
class EpochTally:
    """Sums over the batches of an epoch so far; epochs are counted from 0."""

    epoch: int = 0
    images: int = 0
    batches: int = 0
    loss: float = 0.0  # summed over the batches that were trained on
    clutter: float = 0.0  # the part of `loss` that is clutter loss
    trained: int = 0  # batches that moved bank and gradient
    empty: int = 0  # batches in which no vertex is visible
    non_finite: int = 0  # batches whose loss is not a finite number
    rate: float = 0.0  # the last learning rate

    @property
    def mean_loss(self) -> float:
        """Mean loss over the batches that were trained on."""
        return self.loss / max(self.trained, 1)

    @property
    def mean_clutter(self) -> float:
        """Mean clutter loss over the batches that were trained on."""
        return self.clutter / max(self.trained, 1)


class VertexFeatures(NamedTuple):
    """Features of the images of a batch that count, on the device of the bank.

    vertices [B, V, C], noise [B, n, C], positions_rc [B, V, 2] in crop pixels, visible [B, V].
    """

    vertices: Tensor
    noise: Tensor
    positions_rc: Tensor
    visible: Tensor


class Learner:
    """Network, banks and optimiser of one category.

    With several processes each learns from its share of every batch; banks and network stay the
    same in all processes. Raises ValueError for settings that contradict each other.
    """

    def __init__(self, config: TrainConfig, meshes: Sequence[Mesh], hardware: Hardware):
        check_combination(config, hardware)
        self.config = config
        self.devices = hardware.devices
        self.group = hardware.group
        self.map_hw = map_size(config.category, config.image_scale)
        self.iteration = 0
        self.non_finite_in_a_row = 0
        # The banks have a generator of their own; the network draws from torch's global one.
        generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        self.network = _network(config, hardware)
        self.parallel = _in_parallel(self.network, hardware)
        # A CAD model that no training image shows keeps its random bank, as in the reference.
        self.banks = [
            Bank.create(len(mesh.vertices), config, generator, self.devices.bank) for mesh in meshes
        ]
        self.optimiser = torch.optim.Adam(
            _parameter_groups(self.network, config),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

    def step(self, batch: MeshBatch, rate: float, tally: EpochTally) -> None:
        """One iteration, with an optimiser step when enough gradients are accumulated.

        rate: the learning rate. tally: counts the batch. A batch without a visible vertex (which
        turns the reference's weights into NaN) or without a finite loss leaves banks and gradient
        unchanged. Raises ValueError after MOST_NON_FINITE such losses in a row.
        """
        tally.images += batch.images
        tally.batches += 1
        # All processes have to agree on whether the batch shows a vertex.
        own = batch.counts[self.group.rank]
        seen = batch.sample.visible[:own].sum()
        self.group.sum(seen)
        if seen:
            self._learn(batch, int(seen), tally)
        else:
            tally.empty += 1
        # The reference takes its first step at iteration 0.
        if self.iteration % self.config.accumulate == 0:
            self._move_weights(rate)
        self.iteration += 1

    def try_step(self, batch: MeshBatch, rate: float, tally: EpochTally) -> bool:
        """Take a step; returns False when it does not fit into the GPU's memory.

        Its caller can free that memory: the exception, which holds the tensors of the failed step,
        no longer exists by then.
        """
        try:
            self.step(batch, rate, tally)
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    def _learn(self, batch: MeshBatch, seen: int, tally: EpochTally) -> None:
        """Compute the loss of a batch and its gradient, and move the bank.

        seen: number of visible vertices in all processes together.
        """
        # Each visible vertex is contrasted with far vertices and with clutter.
        bank = self.banks[batch.mesh]
        features = self._features(batch)
        main = contrastive_loss(
            features.vertices,
            features.positions_rc,
            features.visible,
            bank.memory,
            self.config,
            seen,
        )
        clutter = self.config.weight_regularisation * self._clutter_loss(features, batch)
        values = torch.stack([main, clutter]).detach()
        self.group.sum(values)
        # Reading the values makes the host wait for the GPU; here it costs less than after the
        # backward pass.
        main_value, clutter_value = values.tolist()
        if not math.isfinite(main_value + clutter_value):
            self._skip_non_finite(tally)
            return
        # DistributedDataParallel averages gradients over processes; the loss is a sum over them.
        ((main + clutter) * self.group.size).backward()
        self._move_bank(bank, features, batch.counts)
        tally.loss += main_value
        tally.clutter += clutter_value
        tally.trained += 1
        self.non_finite_in_a_row = 0

    def _clutter_loss(self, features: VertexFeatures, batch: MeshBatch) -> Tensor:
        """How alike clutter and mesh are."""
        bank = self.banks[batch.mesh]
        if self.config.clutter_loss == "dense":
            temperature = self.config.temperature
            return dense_clutter_loss(
                features.noise, bank.memory, bank.vertices, temperature, batch.images
            )
        # Clutter is pushed away from the mesh as a whole.
        return clutter_loss(features.noise, bank.mesh_rows, batch.images)

    def _features(self, batch: MeshBatch) -> VertexFeatures:
        """Features of a batch at its vertices and at its clutter cells."""
        device = self.devices.network[0]
        sample = batch.sample
        image = send(sample.image, device)
        positions_rc = send(sample.positions, device)
        noise_cells = send(sample.noise_cells, device)
        # The network returns features at the vertices' cells, hidden or not, then at clutter cells.
        cells = torch.cat([cells_of(positions_rc, self.map_hw), noise_cells], dim=1)
        images = normalise(image, self.network.statistics)
        images = images.contiguous(memory_format=torch.channels_last)
        # From here on only the images that count are kept, on the device of the bank.
        own = batch.counts[self.group.rank]
        bank_device = self.devices.bank
        features = self.parallel(images, cells)[:own].to(bank_device)
        positions_rc = positions_rc[:own].to(bank_device)
        visible = send(sample.visible[:own], bank_device)
        vertices = self.banks[batch.mesh].vertices
        at_vertices, noise = features.split([vertices, features.shape[1] - vertices], dim=1)
        return VertexFeatures(at_vertices, noise, positions_rc, visible)

    @torch.no_grad()
    def _move_bank(self, bank: Bank, features: VertexFeatures, counts: Sequence[int]) -> None:
        """Move a bank towards the features of a batch in all processes."""
        # Every process applies the same sums, so their banks stay equal.
        total, images_seen = vertex_sums(features.vertices, features.visible)
        self.group.sum(total, images_seen)
        bank.update(total, images_seen, self.group.concatenate(features.noise, counts))

    def _move_weights(self, rate: float) -> None:
        """Take an optimiser step along the accumulated gradients."""
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate * parameters.get("share", 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _skip_non_finite(self, tally: EpochTally) -> None:
        tally.non_finite += 1
        self.non_finite_in_a_row += 1
        if self.non_finite_in_a_row >= MOST_NON_FINITE:
            raise ValueError(
                f"the loss was not finite in {MOST_NON_FINITE} batches in a row, "
                f"up to epoch {tally.epoch} (iteration {self.iteration}); "
                "try a smaller LEARNING_RATE; RESUME=true goes on from the last state on disk"
            )

    def state(self) -> dict:
        """Everything that a resumed training run needs of network, banks and optimiser."""
        return {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "banks": [bank.state() for bank in self.banks],
            "gradients": [parameter.grad for parameter in self.network.parameters()],
        }

    def load_state(self, state: dict) -> None:
        """Restore what `state` returned."""
        self.iteration = state["iteration"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        for bank, stored in zip(self.banks, state["banks"], strict=True):
            bank.load_state(stored)
        for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


def _network(config: TrainConfig, hardware: Hardware) -> FeatureNet:
    """The network on its first device, in the memory layout in which convolutions are fastest."""
    network = build_network(config.backbone, config.pretrained)
    if config.freeze:
        network.freeze()
    network = network.to(hardware.devices.network[0])
    network = network.to(memory_format=torch.channels_last)
    if config.sync_batchnorm:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if hardware.compiled:
        network.compile()
    return network


def _parameter_groups(network: FeatureNet, config: TrainConfig) -> list:
    """What is learned: all parameters alike, or those of the trunk at a rate of their own."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.trunk_rate == 1:
        return learned
    trunk = {p for module in network.net.trunk for p in module.parameters() if p.requires_grad}
    rest = [parameter for parameter in learned if parameter not in trunk]
    own_rate = [parameter for parameter in learned if parameter in trunk]
    return [{"params": rest}, {"params": own_rate, "share": config.trunk_rate}]


def _in_parallel(network: FeatureNet, hardware: Hardware) -> nn.Module:
    """Wrap a network for several devices or processes; the result shares its parameters.

    Batch norm sees one replica at a time. Its running statistics are those of rank 0, or with
    DataParallel those of the first device.
    """
    devices = list(hardware.devices.network)
    if hardware.group.size > 1:
        own_gpu = devices if devices[0].type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=own_gpu)
    if len(devices) > 1:
        return nn.DataParallel(network, device_ids=devices)
    return network
