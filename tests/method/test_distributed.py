"""Two processes on the CPU must train what one process trains; torchrun starts this file as their program."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.project import PYTHONPATH
from helpers.small_training import CONFIG, SMALL_HW, make_trainer, outcome, write_prepared
from neural_mesh.categories import CATEGORIES
from neural_mesh.data.loading import EpochBatches
from neural_mesh.machine.devices import Placement, decoding_workers, place_process
from neural_mesh.machine.distributed import Group, process_group, share
from neural_mesh.training import state
from neural_mesh.training.setup import Hardware, check_combination


def program(root: Path, out: Path) -> None:
    """What every process runs: without optimiser steps, with them, and the second epoch resumed."""
    CATEGORIES["car"] = replace(CATEGORIES["car"], crop_hw=SMALL_HW)
    with process_group(cuda=False) if "RANK" in os.environ else nullcontext(Group()) as group:
        folder, found = out / f"files of rank {group.rank}", {}
        state.SECONDS_BETWEEN_STATES = 0.0
        for kind, config in (
            ("frozen", replace(CONFIG, accumulate=1000, total_epochs=1)),
            ("moving", CONFIG),
        ):
            trainer = make_trainer(group, root, folder / kind, config)
            trainer.tensorboard = kind == "moving"
            # The reference takes an optimiser step at iteration 0.
            trainer.learner.iteration = 1
            trainer.fit()
            found[kind] = outcome(trainer)
        trainer = make_trainer(group, root, out / "kept", CONFIG)
        found["went on"] = trainer.resume()
        trainer.fit()
        found["resumed"] = outcome(trainer)
        torch.save(found, out / f"rank{group.rank}.pt")


def start(processes: int, root: Path, out: Path) -> list[dict]:
    out.mkdir()
    launcher = (
        []
        if processes == 1
        else [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--log-dir",
            str(out),
            "--nproc-per-node",
            str(processes),
        ]
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")
    } | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PYTHONPATH,
    }
    done = subprocess.run(
        [sys.executable, *launcher, __file__, str(root), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Outcomes of one process, and of each of two; and the folder of the two."""
    root, out = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("runs")
    write_prepared(root, SMALL_HW)
    with ThreadPoolExecutor() as pool:
        one, two = pool.map(start, (1, 2), (root, root), (out / "one", out / "two"))
    return one[0], two, out / "two"


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """As a share of the largest entry."""
    return max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()
        for a, b in zip(found, expected, strict=True)
    )


def test_two_processes_train_what_one_trains(runs):
    one, two, _ = runs
    for rank in two:
        assert rank["frozen"]["slots"] == one["frozen"]["slots"]
        assert largest_difference(rank["frozen"]["banks"], one["frozen"]["banks"]) < 2e-6
        assert largest_difference(rank["frozen"]["gradients"], one["frozen"]["gradients"]) < 1e-4
        for row, expected in zip(rank["frozen"]["log"], one["frozen"]["log"], strict=True):
            assert (
                row["loss"] == pytest.approx(expected["loss"], abs=2e-5)
                and row["clutter_loss"] == expected["clutter_loss"]
            )
            assert row["empty_batches"] == expected["empty_batches"]
        assert rank["moving"]["log"][1]["loss"] == pytest.approx(
            one["moving"]["log"][1]["loss"], rel=1e-3
        )
        assert largest_difference(rank["moving"]["banks"], one["moving"]["banks"]) < 5e-2
    assert one["frozen"]["log"][0] != one["moving"]["log"][1]


def test_banks_and_networks_are_the_same_in_both_processes(runs):
    _, (first, second), _ = runs
    for key in ("banks", "weights", "gradients"):
        pairs = zip(first["moving"][key], second["moving"][key], strict=True)
        assert all((a is None and b is None) or torch.equal(a, b) for a, b in pairs), key


def test_a_resumed_run_of_two_processes_ends_with_the_same_numbers(runs):
    for outcome_of in (runs[0], *runs[1]):
        assert outcome_of["went on"] is True
        resumed, whole = outcome_of["resumed"], outcome_of["moving"]
        assert resumed["log"] == whole["log"]
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                resumed["banks"] + resumed["weights"],
                whole["banks"] + whole["weights"],
                strict=True,
            )
        )


def test_only_rank_0_writes(runs):
    folder = runs[2]
    kinds = sorted(p.name for p in (folder / "files of rank 0/moving").iterdir())
    assert kinds == [
        "saved_model_car_last.pth",
        "tensorboard",
        "training_log_car.csv",
        "training_summary_car.json",
    ]
    assert len(list((folder / "files of rank 0/moving/tensorboard/car").iterdir())) == 1
    assert not (folder / "files of rank 1").exists()


@pytest.mark.parametrize("length, batch, size", [(10, 4, 2), (9, 4, 2), (5, 4, 3), (3, 8, 4)])
def test_the_shares_of_all_processes_are_the_batch_of_one(length, batch, size):
    whole = EpochBatches(length, batch, 3)
    parts = [EpochBatches(length, batch, 3, rank, size) for rank in range(size)]
    for sampler in (whole, *parts):
        sampler.epoch = 2
    for number, together in enumerate(whole):
        counts = parts[0].counts(number)
        pieces = [list(part)[number] for part in parts]
        assert sum((piece[:n] for piece, n in zip(pieces, counts, strict=True)), []) == together
        assert all(pieces) and max(counts) - min(counts) <= 1
    assert sorted(index for together in whole for _, index in together) == list(range(length))
    assert [share("abc", rank, 2) for rank in (0, 1)] == ["a", "bc"]


def test_each_process_gets_a_gpu_of_its_own():
    placement = place_process([4, 6], 1, 2, False)
    assert placement.network == (torch.device("cuda", 6),) and placement.bank == torch.device(
        "cuda", 6
    )
    assert place_process([4, 6, 7], 0, 2, False).sentence == "2 processes with a GPU each, GPUs 4 6"
    assert place_process([], 1, 2, False).network == (torch.device("cpu"),)
    with pytest.raises(
        ValueError, match="3 processes on this machine needs as many GPUs, GPUS gives 2"
    ):
        place_process([4, 6], 0, 3, False)
    with pytest.raises(ValueError, match="SEPARATE_BANK=true is for PARALLEL=dp"):
        place_process([4, 6], 0, 2, True)
    assert (
        decoding_workers("auto", torch.device("cuda", 0), 10**6) == 1
        and decoding_workers("3", torch.device("cpu"), 2) == 3
    )


def test_ddp_outside_torchrun_says_how_to_start_it(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ValueError, match="PARALLEL=ddp runs under torchrun"),
        process_group(cuda=False),
    ):
        pass


def test_settings_that_do_not_go_together_are_refused():
    gpus = tuple(torch.device("cuda", i) for i in range(2))
    two, one, cpu = (
        Placement(network, network[0], "") for network in (gpus, gpus[:1], (torch.device("cpu"),))
    )
    synchronised = replace(CONFIG, sync_batchnorm=True)
    for devices, group in ((one, Group()), (cpu, Group(0, 2, 0, 2))):
        with pytest.raises(
            ValueError, match="SYNC_BATCHNORM=true needs PARALLEL=ddp on several GPUs"
        ):
            check_combination(synchronised, Hardware(devices, group))
    with pytest.raises(
        ValueError, match="COMPILE=true does not go with PARALLEL=dp on several GPUs"
    ):
        check_combination(CONFIG, Hardware(two, compiled=True))
    check_combination(synchronised, Hardware(one, Group(0, 2, 0, 2), compiled=True))


if __name__ == "__main__":
    program(Path(sys.argv[1]), Path(sys.argv[2]))
