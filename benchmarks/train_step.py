"""How long a training step takes: bank and loss alone, and the whole step.

    python benchmarks/train_step.py [--threads 1] [--device cuda] [--batch 108] [--repeats 3]

Each is compared with the formulas written down. Bank and loss: forward, backward and bank update
for features that are given. "as written" is the loss of the paper in plain PyTorch: similarities
of all vertices with the whole bank, a mask of the same size, cross entropy over the visible ones.
Each method runs in a process of its own; peak memory is what it adds to the process that holds its
inputs (on a CPU resident memory as Linux counts it, on a GPU allocated memory). Times are the best
of the repeats. The share of visible vertices is that of photographs of cars. Predictions were
written down before measuring.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from neural_mesh.data.crops import map_size
from neural_mesh.data.dataset import normalise
from neural_mesh.network.backbone import FeatureNet, cells_of
from neural_mesh.network.bank import Bank, vertex_sums
from neural_mesh.network.losses import clutter_loss, contrastive_loss
from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE, TrainConfig

VERTICES = 1050
VISIBLE = 0.26  # share of vertices seen, mean over 100 photographs of cars
COVERED = 0.66  # of a crop's width and height by a cuboid, about
PREDICTED = {  # seconds on one quiet core of a 2 GHz server, and MiB, at batch 108
    ("bank and loss", "as written"): (16.0, 5200.0),
    ("bank and loss", "ours"): (2.7, 260.0),
}
METHODS = ("as written", "ours")
COLUMNS = (
    "part",
    "method",
    "batch",
    "s predicted",
    "s",
    "images/s",
    "MiB predicted",
    "MiB",
    "times faster",
    "share of memory",
)


@dataclass(frozen=True)
class BenchmarkOptions:
    """CPU threads, the device, and how often a step is timed."""

    threads: int
    device: str
    repeats: int


class Measured(NamedTuple):
    """Loss of the first step, best seconds of a step, and MiB that the steps add."""

    loss: float
    seconds: float
    memory_mib: float


# ---- a step --------------------------------------------------------------------------------------


class Inputs:
    """Positions, visibility and a bank, drawn by seed, for batches of a car's crops."""

    def __init__(self, batch: int, scale: float, device: torch.device):
        self.config = TrainConfig(image_scale=scale)
        self.generator = torch.Generator().manual_seed(0)
        self.map_hw = map_size("car", scale)
        size = torch.tensor(self.map_hw) * FEATURE_STRIDE
        # The object covers the middle of a crop.
        drawn = torch.rand(batch, VERTICES, 2, generator=self.generator)
        centred = drawn * COVERED + (1 - COVERED) / 2
        self.positions = (centred * size).to(device)
        drawn = torch.rand(batch, VERTICES, generator=self.generator)
        self.visible = (drawn < VISIBLE).to(device)
        self.bank = Bank.create(VERTICES, self.config, self.generator, device)


def as_written(features: Tensor, given: Inputs) -> Tensor:
    """Loss, gradient and the new bank by the formulas: one-hot product, mask and logits in full."""
    config = given.config
    memory = given.bank.memory
    at_vertices = features[:, :VERTICES]
    noise = features[:, VERTICES:]
    logits = at_vertices @ memory.T  # [B, V, V + N]
    logits = logits / config.temperature - _penalties(given)
    labels = torch.arange(VERTICES, device=features.device).expand(len(features), -1)
    main = functional.cross_entropy(logits[given.visible], labels[given.visible])
    regular = config.weight_regularisation * (noise @ memory[:VERTICES].T).mean()
    (main + regular).backward()
    _move_as_written(at_vertices.detach(), noise.detach(), given)
    return main.detach() + regular.detach()


def _penalties(given: Inputs) -> Tensor:
    """What is taken off the logits [B, V, V + N]: of near vertices, and of clutter."""
    config = given.config
    positions = given.positions
    device = positions.device
    distance = (positions[:, :, None] - positions[:, None]).pow(2).sum(-1).sqrt()
    near = (distance <= config.near_distance_px * config.image_scale).float() * 1e5
    near = near * (1 - torch.eye(VERTICES, device=device))
    weight = -torch.tensor(config.weight_clutter).log().item()
    shape = (len(positions), VERTICES, config.num_clutter)
    return torch.cat([near, torch.full(shape, weight, device=device)], dim=2)


@torch.no_grad()
def _move_as_written(at_vertices: Tensor, noise: Tensor, given: Inputs) -> None:
    """The new bank by the formulas."""
    visible = given.visible
    memory = given.bank.memory
    momentum = given.config.bank_momentum
    identity = torch.eye(VERTICES, device=visible.device)
    one_hot = identity.expand(len(visible), -1, -1) * visible[:, :, None]  # [B, V, V]
    mean = torch.bmm(one_hot.transpose(1, 2), at_vertices).mean(0)
    mixed = momentum * memory[:VERTICES] + (1 - momentum) * mean
    new = torch.where(visible.any(0)[:, None], mixed, memory[:VERTICES])
    rows = noise.flatten(0, 1)
    clutter = memory[VERTICES:].clone()
    clutter[: len(rows)] = rows[: len(clutter)]
    memory.copy_(functional.normalize(torch.cat([new, clutter]), dim=1))


def ours(features: Tensor, given: Inputs) -> Tensor:
    """The same by neural_mesh.network."""
    config = given.config
    bank = given.bank
    at_vertices, noise = features.split([VERTICES, features.shape[1] - VERTICES], dim=1)
    main = contrastive_loss(at_vertices, given.positions, given.visible, bank.memory, config)
    regular = config.weight_regularisation * clutter_loss(noise, bank.mesh_rows)
    (main + regular).backward()
    bank.update(*vertex_sums(at_vertices.detach(), given.visible), noise.detach())
    return main.detach() + regular.detach()


def bank_step(method: str, batch: int, device: torch.device) -> Callable[[], float]:
    """A step of bank and loss for given features; returns the loss."""
    given = Inputs(batch, 1.0, device)
    learn = ours if method == "ours" else as_written
    shape = (batch, VERTICES + given.config.num_clutter_image, FEATURE_CHANNELS)
    drawn = torch.randn(shape, generator=given.generator)
    features = functional.normalize(drawn, dim=-1).to(device)

    def step() -> float:
        return learn(features.detach().requires_grad_(), given).item()

    return step


def whole_step(method: str, batch: int, device: torch.device) -> Callable[[], float]:
    """Images on the device to updated weights.

    As written: float32, channels first. Ours: bfloat16 on a GPU, channels last.
    """
    scale, backbone = (1.0, "resnetext") if device.type == "cuda" else (0.5, "resnet18fpn")
    given = Inputs(batch, scale, device)
    config = given.config
    torch.manual_seed(0)
    layout = torch.channels_last if method == "ours" else torch.contiguous_format
    learn = ours if method == "ours" else as_written
    network = FeatureNet(backbone).to(device, memory_format=layout).train()
    optimiser = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    pixels, cells = _pixels_and_cells(given, batch, device)

    def step() -> float:
        images = normalise(pixels, network.statistics).contiguous(memory_format=layout)
        if method == "ours":
            features = network(images, cells)
        else:
            features = _features_as_written(network, images, cells)
        loss = learn(features, given)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _pixels_and_cells(given: Inputs, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise images, and the cells of their vertices and of clutter."""
    height, width = given.map_hw
    shape = (batch, 3, height * FEATURE_STRIDE, width * FEATURE_STRIDE)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=given.generator)
    shape = (batch, given.config.num_clutter_image)
    noise_cells = torch.randint(height * width, shape, generator=given.generator).to(device)
    cells = torch.cat([cells_of(given.positions, given.map_hw), noise_cells], dim=1)
    return pixels.to(device), cells


def _features_as_written(network: FeatureNet, images: Tensor, cells: Tensor) -> Tensor:
    """As FeatureNet.forward, without autocast."""
    maps = network.net(images).flatten(2)
    gathered = maps.gather(2, cells[:, None, :].expand(-1, maps.shape[1], -1))
    return functional.normalize(network.out_layer(gathered.transpose(1, 2)), dim=-1)


# ---- measuring -----------------------------------------------------------------------------------


def in_a_process(part: str, method: str, options: BenchmarkOptions, batch: int) -> Measured:
    """What `measure` sends."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    arguments = (part, method, options, batch, sender)
    process = context.Process(target=measure, args=arguments)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def measure(
    part: str, method: str, options: BenchmarkOptions, batch: int, sender: Connection
) -> None:
    """Run steps, and send what they take."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    make_step = bank_step if part == "bank and loss" else whole_step
    step = make_step(method, batch, device)
    before = start_watching_memory(device)
    loss = step()
    times = []
    for _ in range(options.repeats):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    sender.send(Measured(loss, min(times), peak_mib(device) - before))


def start_watching_memory(device: torch.device) -> float:
    """MiB held now; from here on `peak_mib` counts.

    On a CPU by Linux's resident set, whose mark clear_refs resets.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def peak_mib(device: torch.device) -> float:
    """The most MiB held at a time since the watch began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status_mib("VmHWM")


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(name))
    return int(line.split()[1]) / 1024


def matmul_seconds(rows: int, columns: int, options: BenchmarkOptions) -> float:
    """The floor of bank and loss: a product of the visible rows with the bank, and one back."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    block = 512 if device.type == "cpu" else rows
    left = torch.randn(block, FEATURE_CHANNELS, device=device)
    right = torch.randn(columns, FEATURE_CHANNELS, device=device)
    times = []
    for _ in range(options.repeats + 1):
        begin = time.perf_counter()
        for _ in range(-(-rows // block)):
            product = left @ right.T
            product @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)


# ---- the table -----------------------------------------------------------------------------------


def print_part(part: str, batch: int, options: BenchmarkOptions) -> None:
    """Measure and print the rows of a part. AssertionError when the losses do not agree."""
    on_gpu = options.device.startswith("cuda")
    measured = {method: in_a_process(part, method, options, batch) for method in METHODS}
    written, own = (measured[method] for method in METHODS)
    # Given features give the same numbers; a whole step on a GPU is in bfloat16.
    tolerance = 5e-2 if on_gpu and part == "whole step" else 1e-4
    assert abs(written.loss - own.loss) < tolerance * written.loss, (written.loss, own.loss)
    for method, (_, seconds, memory_mib) in measured.items():
        predicted = ("", "")
        if not on_gpu and batch == 108 and (part, method) in PREDICTED:
            predicted_seconds, predicted_mib = PREDICTED[part, method]
            predicted = (f"{predicted_seconds:,.1f}", f"{predicted_mib:,.0f}")
        cells = [
            part,
            method,
            str(batch),
            predicted[0],
            f"{seconds:.3f}",
            f"{batch / seconds:.1f}",
            predicted[1],
            f"{memory_mib:,.0f}",
            f"{written.seconds / seconds:.1f}",
            f"{memory_mib / written.memory_mib:.2f}",
        ]
        print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--threads", type=int, default=1, help="CPU threads (default 1)")
    option("--device", default="cpu", help="cpu or cuda (default cpu)")
    option("--batch", type=int, default=108, help="images of the bank-and-loss part (default 108)")
    option("--repeats", type=int, default=3, help="timed repeats of a step (default 3)")
    args = parser.parse_args()
    options = BenchmarkOptions(args.threads, args.device, args.repeats)
    clutter = TrainConfig().num_clutter
    print(
        f"{options.threads} CPU threads, device {options.device}, "
        f"load {os.getloadavg()[0]:.1f} before the run; "
        f"V = {VERTICES}, {clutter} clutter rows, {VISIBLE:.0%} of the vertices visible\n"
    )
    print("|", " | ".join(COLUMNS), "|")
    print("|---" * len(COLUMNS) + "|")
    print_part("bank and loss", args.batch, options)
    print_part("whole step", args.batch if args.device.startswith("cuda") else 8, options)
    floor = matmul_seconds(int(VISIBLE * args.batch * VERTICES), VERTICES + clutter, options)
    print(f"\nfloor of bank and loss, its two matrix products alone: {floor:.3f} s")


if __name__ == "__main__":
    main()
