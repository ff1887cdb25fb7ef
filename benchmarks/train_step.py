"""How long a training step takes: bank and loss alone, and the whole step, each against the formulas written down.

    python benchmarks/train_step.py [--threads 1] [--device cuda] [--batch 108] [--repeats 3]

Bank and loss: forward, backward and bank update for features that are given. "as written" is the loss of the paper in
plain PyTorch: similarities of all vertices with the whole bank, a mask of the same size, cross entropy over the
visible ones. Each method runs in a process of its own; peak memory is what it adds to the process that holds its
inputs (on a CPU resident memory as Linux counts it, on a GPU allocated memory). Times are the best of the repeats. The share of visible
vertices is that of photographs of cars. Predictions were written down before measuring.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from neural_mesh.data.crops import map_size
from neural_mesh.data.dataset import normalise
from neural_mesh.network.backbone import FeatureNet, cells_of
from neural_mesh.network.bank import Bank, vertex_sums
from neural_mesh.network.losses import clutter_loss, contrastive_loss
from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE, TrainConfig

VERTICES = 1050
VISIBLE = 0.26  # share of vertices seen, mean over 100 photographs of cars
PREDICTED = {  # seconds on one quiet core of a 2 GHz server, and MiB, at batch 108
    ("bank and loss", "as written"): (16.0, 5200.0),
    ("bank and loss", "ours"): (2.7, 260.0),
}


def as_written(features, positions, visible, memory, config: TrainConfig, vertices: int):
    """Loss and gradient by the formulas, and the new bank; one-hot product, mask and logits in full."""
    at_vertices, noise = features[:, :vertices], features[:, vertices:]
    logits = at_vertices @ memory.T  # [B, V, V + N]
    distance = (positions[:, :, None] - positions[:, None]).pow(2).sum(-1).sqrt()
    near = (distance <= config.near_distance_px * config.image_scale).float() * 1e5
    near = near * (1 - torch.eye(vertices, device=features.device))
    clutter_mask = torch.full(
        (len(features), vertices, config.num_clutter),
        -torch.tensor(config.weight_clutter).log().item(),
        device=features.device,
    )
    masked = logits / config.temperature - torch.cat([near, clutter_mask], dim=2)
    labels = torch.arange(vertices, device=features.device).expand(len(features), -1)
    main = functional.cross_entropy(masked[visible], labels[visible])
    regular = config.weight_regularisation * (noise @ memory[:vertices].T).mean()
    (main + regular).backward()
    with torch.no_grad():
        one_hot = (
            torch.eye(vertices, device=features.device).expand(len(features), -1, -1)
            * visible[:, :, None]
        )  # [B, V, V]
        mean = torch.bmm(one_hot.transpose(1, 2), at_vertices).mean(0)
        mixed = config.bank_momentum * memory[:vertices] + (1 - config.bank_momentum) * mean
        new = torch.where(visible.any(0)[:, None], mixed, memory[:vertices])
        rows = noise.flatten(0, 1)
        clutter = memory[vertices:].clone()
        clutter[: len(rows)] = rows[: len(clutter)]
        memory.copy_(functional.normalize(torch.cat([new, clutter]), dim=1))
    return main.detach() + regular.detach()


def ours(features, positions, visible, bank: Bank, config: TrainConfig):
    """The same by neural_mesh.network."""
    at_vertices, noise = features.split([bank.vertices, features.shape[1] - bank.vertices], dim=1)
    main = contrastive_loss(at_vertices, positions, visible, bank.memory, config)
    regular = config.weight_regularisation * clutter_loss(noise, bank.mesh_rows)
    (main + regular).backward()
    bank.update(*vertex_sums(at_vertices.detach(), visible), noise.detach())
    return main.detach() + regular.detach()


class Inputs:
    """Positions, visibility and a bank, drawn by seed, for batches of a car's crops."""

    def __init__(self, batch: int, scale: float, device: torch.device):
        self.config = TrainConfig(image_scale=scale)
        self.generator = torch.Generator().manual_seed(0)
        self.map_hw = map_size("car", scale)
        size = torch.tensor(self.map_hw) * FEATURE_STRIDE
        # the object covers the middle: cuboids fill about two thirds of a crop's width and height
        centred = torch.rand(batch, VERTICES, 2, generator=self.generator) * 0.66 + 0.17
        self.positions = (centred * size).to(device)
        self.visible = (torch.rand(batch, VERTICES, generator=self.generator) < VISIBLE).to(device)
        self.bank = Bank.create(VERTICES, self.config, self.generator, device)


def bank_step(method: str, batch: int, device: torch.device) -> Callable[[], float]:
    """A step of bank and loss for given features; returns the loss."""
    given = Inputs(batch, 1.0, device)
    shape = (batch, VERTICES + given.config.num_clutter_image, FEATURE_CHANNELS)
    features = functional.normalize(torch.randn(shape, generator=given.generator), dim=-1).to(
        device
    )

    def step() -> float:
        leaf = features.detach().requires_grad_()
        if method == "ours":
            return ours(leaf, given.positions, given.visible, given.bank, given.config).item()
        return as_written(
            leaf, given.positions, given.visible, given.bank.memory, given.config, VERTICES
        ).item()

    return step


def whole_step(method: str, batch: int, device: torch.device) -> Callable[[], float]:
    """Images on the device to updated weights. As written: float32, channels first. Ours: bfloat16 on a GPU, channels last."""
    scale, backbone = (1.0, "resnetext") if device.type == "cuda" else (0.5, "resnet18fpn")
    given = Inputs(batch, scale, device)
    torch.manual_seed(0)
    layout = torch.channels_last if method == "ours" else torch.contiguous_format
    network = FeatureNet(backbone).to(device, memory_format=layout).train()
    optimiser = torch.optim.Adam(
        network.parameters(), lr=given.config.learning_rate, weight_decay=given.config.weight_decay
    )
    height, width = (n * FEATURE_STRIDE for n in given.map_hw)
    pixels = torch.randint(
        0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=given.generator
    ).to(device)
    noise_cells = torch.randint(
        given.map_hw[0] * given.map_hw[1],
        (batch, given.config.num_clutter_image),
        generator=given.generator,
    )
    cells = torch.cat([cells_of(given.positions, given.map_hw), noise_cells.to(device)], dim=1)

    def forward(images):
        if method == "ours":
            return network(images, cells)
        maps = network.net(images).flatten(2)  # as FeatureNet.forward, without autocast
        gathered = maps.gather(2, cells[:, None, :].expand(-1, maps.shape[1], -1))
        return functional.normalize(network.out_layer(gathered.transpose(1, 2)), dim=-1)

    def step() -> float:
        features = forward(normalise(pixels).contiguous(memory_format=layout))
        if method == "ours":
            loss = ours(features, given.positions, given.visible, given.bank, given.config)
        else:
            loss = as_written(
                features, given.positions, given.visible, given.bank.memory, given.config, VERTICES
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


def measure(part: str, method: str, options: argparse.Namespace, batch: int, pipe) -> None:
    """Run in a process of its own: loss of the first step, best seconds of the repeats, and MiB that the steps add."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    step = (bank_step if part == "bank and loss" else whole_step)(method, batch, device)
    before = start_watching_memory(device)
    loss, times = step(), []
    for _ in range(options.repeats):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    pipe.send((loss, min(times), peak_mib(device) - before))


def start_watching_memory(device: torch.device) -> float:
    """MiB held now; from here on `peak_mib` counts. On a CPU by Linux's resident set, whose mark clear_refs resets."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mib("VmRSS")


def peak_mib(device: torch.device) -> float:
    """The most MiB held at a time since the watch began."""
    return (
        torch.cuda.max_memory_allocated(device) / 2**20
        if device.type == "cuda"
        else _status_mib("VmHWM")
    )


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def in_a_process(
    part: str, method: str, options: argparse.Namespace, batch: int
) -> tuple[float, float, float]:
    """What `measure` finds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(part, method, options, batch, there))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def matmul_seconds(rows: int, columns: int, options: argparse.Namespace) -> float:
    """The floor of bank and loss: one product of the visible rows with the bank, and one back."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    block = 512 if device.type == "cpu" else rows
    left, right = (
        torch.randn(block, FEATURE_CHANNELS, device=device),
        torch.randn(columns, FEATURE_CHANNELS, device=device),
    )
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


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument(
        "--batch", type=int, default=108, help="images of the bank-and-loss part (default 108)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed repeats of a step (default 3)"
    )
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    whole_batch = options.batch if cuda else 8
    print(
        f"{options.threads} CPU threads, device {options.device}, load {os.getloadavg()[0]:.1f} before the run; "
        f"V = {VERTICES}, {TrainConfig().num_clutter} clutter rows, {VISIBLE:.0%} of the vertices visible\n"
    )
    print(
        "| part | method | batch | s predicted | s | images/s | MiB predicted | MiB | times faster | share of memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for part, batch in (("bank and loss", options.batch), ("whole step", whole_batch)):
        found = {
            method: in_a_process(part, method, options, batch) for method in ("as written", "ours")
        }
        losses = [loss for loss, _, _ in found.values()]
        # given features: the same numbers; whole step on a GPU: bfloat16
        assert (
            abs(losses[0] - losses[1])
            < (5e-2 if cuda and part == "whole step" else 1e-4) * losses[0]
        ), losses
        for method, (_, seconds, memory) in found.items():
            expected = (
                (None, None)
                if cuda or batch != 108
                else PREDICTED.get((part, method), (None, None))
            )
            cells = [
                part,
                method,
                str(batch),
                *("" if e is None else f"{e:,.1f}" for e in expected[:1]),
                f"{seconds:.3f}",
                f"{batch / seconds:.1f}",
                *("" if e is None else f"{e:,.0f}" for e in expected[1:]),
                f"{memory:,.0f}",
                f"{found['as written'][1] / seconds:.1f}",
                f"{memory / found['as written'][2]:.2f}",
            ]
            print("|", " | ".join(cells), "|", flush=True)
    rows, columns = int(VISIBLE * options.batch * VERTICES), VERTICES + TrainConfig().num_clutter
    floor = matmul_seconds(rows, columns, options)
    print(f"\nfloor of bank and loss, its two matrix products alone: {floor:.3f} s")


if __name__ == "__main__":
    main()
