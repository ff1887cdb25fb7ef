"""Several processes that train one network: who this one is, and what they exchange.

torchrun starts them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

TORCHRUN_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
SECONDS_TO_LET_GO = 0.1  # at the end; see `_let_go`
LONGEST_WAIT = timedelta(minutes=10)  # for another process, which then is taken for dead
# What gloo and NCCL say of a connection.
OF_AN_EXCHANGE = re.compile("gloo|NCCL|[Cc]onnection|[Tt]imed out|[Tt]imeout")


@dataclass(frozen=True)
class Group:
    """This process among those of a run. Of a run of one process every exchange is the identity.

    rank: 0 .. size - 1; rank 0 writes all files. local_rank, local_size: the same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def concatenate(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows [counts[rank], ...] of every process, concatenated in the order of the ranks."""
        if self.size == 1:
            return rows
        # all_gather takes equal shapes only, so every share is padded to the largest.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        blocks = zip(gathered, counts, strict=True)
        return torch.cat([block[:n] for block, n in blocks])

    def from_first(self, value: Any) -> Any:
        """What rank 0 passed, on every rank."""
        if self.size == 1:
            return value
        # A list of one, which is filled in place on the other ranks.
        box = [value if self.first else None]
        dist.broadcast_object_list(box)
        return box[0]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def collect(self, value: object) -> list:
        """What every rank passed, in their order."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def share(items: Sequence, rank: int, size: int) -> Sequence:
    """A process's share of a batch: consecutive items, as many as the others', give or take one."""
    first = len(items) * rank // size
    last = len(items) * (rank + 1) // size
    return items[first:last]


@contextmanager
def process_group(cuda: bool) -> Iterator[Group]:
    """Join the processes that torchrun has started, and leave them at the end.

    ValueError outside torchrun, and when the others are not met or no longer heard of.
    """
    absent = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if absent:
        raise ValueError(
            f"PARALLEL=ddp runs under torchrun, which sets {absent[0]}; start ./TrainNeMo.sh, or "
            "torchrun --nproc-per-node N with code/train.py and its arguments"
        )
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in TORCHRUN_VARIABLES[:4])
    me = f"process {rank} of {size}"
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(
            f"{me} has not met the others at {address} ({_first_line(error)}); start the same "
            "command on all machines, and check that they reach this address"
        ) from error
    try:
        yield Group(rank, size, local_rank, local_size)
        _let_go()
    except RuntimeError as error:
        if not _is_of_an_exchange(error):
            raise
        raise ValueError(
            f"{me} no longer hears from another one ({_first_line(error)}), whose own message "
            "says why it ended; run the same command again to go on"
        ) from error
    finally:
        dist.destroy_process_group()


def _is_of_an_exchange(error: RuntimeError) -> bool:
    """Whether another process, or the way to it, is what failed."""
    return isinstance(error, dist.DistError) or bool(OF_AN_EXCHANGE.search(str(error)))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _let_go() -> None:
    """Wait until gloo's threads have let go of the tensors of the last exchange.

    A thread that drops the last reference to one needs Python's lock, which destroy_process_group
    holds while it waits for the threads: torch 2.6 then hangs. So there is one more exchange, of a
    tensor that is held here, and a moment.
    """
    last = torch.zeros(1)
    dist.all_reduce(last)
    sleep(SECONDS_TO_LET_GO)
