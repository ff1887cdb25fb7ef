"""Two processes on the CPU must train what one trains; torchrun starts this file in them."""

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
    state.SECONDS_BETWEEN_STATES = 0.0
    kinds = {"frozen": replace(CONFIG, accumulate=1000, total_epochs=1), "moving": CONFIG}
    with process_group(cuda=False) if "RANK" in os.environ else nullcontext(Group()) as group:
        outcomes = {}
        for kind, config in kinds.items():
            folder = out / f"files of rank {group.rank}" / kind
            trainer = make_trainer(group, root, folder, config)
            trainer.tensorboard = kind == "moving"
            # The reference takes an optimiser step at iteration 0.
            trainer.learner.iteration = 1
            trainer.fit()
            outcomes[kind] = outcome(trainer)
        trainer = make_trainer(group, root, out / "kept", CONFIG)
        outcomes["went on"] = trainer.resume()
        trainer.fit()
        outcomes["resumed"] = outcome(trainer)
        torch.save(outcomes, out / f"rank{group.rank}.pt")


def start(processes: int, root: Path, out: Path) -> list[dict]:
    """Run `program` in so many processes; what each of them saved."""
    out.mkdir()
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--log-dir", str(out)]
        launcher += ["--nproc-per-node", str(processes)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    for name, value in os.environ.items():
        if name not in ("RANK", "WORLD_SIZE"):
            environment.setdefault(name, value)
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
    root = tmp_path_factory.mktemp("prepared")
    out = tmp_path_factory.mktemp("runs")
    write_prepared(root, SMALL_HW)
    with ThreadPoolExecutor() as pool:
        one, two = pool.map(start, (1, 2), (root, root), (out / "one", out / "two"))
    return one[0], two, out / "two"


def largest_difference(tensors: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """As a share of the largest entry."""
    shares = []
    for a, b in zip(tensors, expected, strict=True):
        largest = b.abs().max().clamp(min=1e-12)
        shares.append(((a - b).abs().max() / largest).item())
    return max(shares)


def test_two_processes_train_what_one_trains(runs):
    one, two, _ = runs
    for rank in two:
        frozen = rank["frozen"]
        expected = one["frozen"]
        assert frozen["slots"] == expected["slots"]
        assert largest_difference(frozen["banks"], expected["banks"]) < 2e-6
        assert largest_difference(frozen["gradients"], expected["gradients"]) < 1e-4
        for row, row_of_one in zip(frozen["log"], expected["log"], strict=True):
            assert row["loss"] == pytest.approx(row_of_one["loss"], abs=2e-5)
            assert row["clutter_loss"] == row_of_one["clutter_loss"]
            assert row["empty_batches"] == row_of_one["empty_batches"]
        moving = rank["moving"]
        expected = one["moving"]
        last_loss = expected["log"][1]["loss"]
        assert moving["log"][1]["loss"] == pytest.approx(last_loss, rel=1e-3)
        assert largest_difference(moving["banks"], expected["banks"]) < 5e-2
    assert one["frozen"]["log"][0] != one["moving"]["log"][1]


def test_banks_and_networks_are_the_same_in_both_processes(runs):
    _, (first, second), _ = runs
    for key in ("banks", "weights", "gradients"):
        for a, b in zip(first["moving"][key], second["moving"][key], strict=True):
            assert (a is None and b is None) or torch.equal(a, b), key


def test_a_resumed_run_of_two_processes_ends_with_the_same_numbers(runs):
    one, two, _ = runs
    for outcomes in (one, *two):
        assert outcomes["went on"] is True
        resumed = outcomes["resumed"]
        whole = outcomes["moving"]
        assert resumed["log"] == whole["log"]
        for key in ("banks", "weights"):
            for a, b in zip(resumed[key], whole[key], strict=True):
                assert torch.equal(a, b), key


def test_only_rank_0_writes(runs):
    _, _, folder = runs
    written = folder / "files of rank 0/moving"
    assert sorted(path.name for path in written.iterdir()) == [
        "saved_model_car_last.pth",
        "tensorboard",
        "training_log_car.csv",
        "training_summary_car.json",
    ]
    assert len(list((written / "tensorboard/car").iterdir())) == 1
    assert not (folder / "files of rank 1").exists()


@pytest.mark.parametrize("length, batch, size", [(10, 4, 2), (9, 4, 2), (5, 4, 3), (3, 8, 4)])
def test_the_shares_of_all_processes_are_the_batch_of_one(length, batch, size):
    whole = EpochBatches(length, batch, 3)
    by_rank = [EpochBatches(length, batch, 3, rank, size) for rank in range(size)]
    for sampler in (whole, *by_rank):
        sampler.epoch = 2
    for number, together in enumerate(whole):
        counts = by_rank[0].counts(number)
        joined = []
        for sampler, count in zip(by_rank, counts, strict=True):
            own = list(sampler)[number]
            # A process without an image gets one that does not count.
            assert own
            joined += own[:count]
        assert joined == together
        assert max(counts) - min(counts) <= 1
    indices = [index for together in whole for _, index in together]
    assert sorted(indices) == list(range(length))
    assert [share("abc", rank, 2) for rank in (0, 1)] == ["a", "bc"]


def test_each_process_gets_a_gpu_of_its_own():
    placement = place_process([4, 6], 1, 2, False)
    own = torch.device("cuda", 6)
    assert placement.network == (own,)
    assert placement.bank == own
    assert place_process([4, 6, 7], 0, 2, False).sentence == "2 processes with a GPU each, GPUs 4 6"
    assert place_process([], 1, 2, False).network == (torch.device("cpu"),)
    few = "3 processes on this machine needs as many GPUs, GPUS gives 2"
    with pytest.raises(ValueError, match=few):
        place_process([4, 6], 0, 3, False)
    with pytest.raises(ValueError, match="SEPARATE_BANK=true is for PARALLEL=dp"):
        place_process([4, 6], 0, 2, True)
    assert decoding_workers("auto", torch.device("cuda", 0), 10**6) == 1
    assert decoding_workers("3", torch.device("cpu"), 2) == 3


def test_ddp_outside_torchrun_says_how_to_start_it(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ValueError, match="PARALLEL=ddp runs under torchrun"),
        process_group(cuda=False),
    ):
        pass


def test_settings_that_do_not_go_together_are_refused():
    gpus = (torch.device("cuda", 0), torch.device("cuda", 1))
    two = Placement(gpus, gpus[0], "")
    one = Placement(gpus[:1], gpus[0], "")
    cpu = Placement((torch.device("cpu"),), torch.device("cpu"), "")
    processes = Group(0, 2, 0, 2)
    synchronised = replace(CONFIG, sync_batchnorm=True)
    check_combination(synchronised, Hardware(one, processes, compiled=True))
    for hardware in (Hardware(one), Hardware(cpu, processes)):
        with pytest.raises(ValueError, match="SYNC_BATCHNORM=true needs PARALLEL=ddp on several"):
            check_combination(synchronised, hardware)
    with pytest.raises(ValueError, match="COMPILE=true does not go with PARALLEL=dp on several"):
        check_combination(CONFIG, Hardware(two, compiled=True))


if __name__ == "__main__":
    program(Path(sys.argv[1]), Path(sys.argv[2]))
