"""Batches of training images: their order, each process's share, and what a dead decoder was at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from neural_mesh.data.dataset import TrainingImages, TrainingSample
from neural_mesh.machine.distributed import Group, share
from neural_mesh.machine.workers import process_died

SECONDS_TO_WAIT = 300  # for a batch
# What PyTorch and the system say when a batch cannot be handed over.
NO_ROOM = re.compile(
    "unable to allocate shared memory|shared memory|[Bb]us error|Too many open files|ancdata"
)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), shuffled by (seed, epoch) alone; a process gets its share of each.

    In the order of the ranks the shares are the batch of a single process. A process for which the
    last batch has no image gets the first one, so that it takes part in every exchange; `counts`
    says that it does not count.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, size: int = 1):
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.size = size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def counts(self, batch: int) -> list[int]:
        """How many images of a batch each process has."""
        images = range(min(self.batch_size, self.length - batch * self.batch_size))
        return [len(share(images, rank, self.size)) for rank in range(self.size)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        permutation = torch.randperm(self.length, generator=generator).tolist()
        order = [(self.epoch, index) for index in permutation]
        for first in range(0, self.length, self.batch_size):
            batch = order[first : first + self.batch_size]
            # An exchange waits for all processes, so none may be without a batch.
            yield share(batch, self.rank, self.size) or batch[:1]


def make_loader(dataset: TrainingImages, group: Group, workers: int, pinned: bool) -> DataLoader:
    """Batches of a data set; worker processes live as long as the loader does."""
    config = dataset.config
    batches = EpochBatches(len(dataset), config.batch_size, config.seed, group.rank, group.size)
    # Samples are named tuples, which default_collate stacks field by field.
    return decoding_loader(dataset, batches, default_collate, workers, pinned, persistent=True)


def batches(loader: DataLoader) -> Iterator[TrainingSample]:
    """The batches of a loader of TrainingImages.

    Raises ValueError, naming the file, when one cannot be read or a worker dies.
    """

    def at_work() -> str:
        paths = loader.dataset.crops.paths_in_work()
        return "at " + (" or ".join(map(str, paths)) or "no image")

    try:
        yield from decoded(loader, at_work)
    except (ValueError, OSError) as error:
        # Of a worker process its text is a traceback, which ends in the message.
        message = str(error).strip().splitlines()[-1]
        raise ValueError(message.removeprefix(f"{type(error).__name__}: ")) from error


# ---- processes that decode -----------------------------------------------------------------------


@dataclass(frozen=True)
class HandOver:
    """Makes a batch of samples, and in a worker process moves it to shared memory.

    PyTorch would do so from a thread, whose failure nobody hears of: the batch would be waited for
    without end.
    """

    collate: Callable[[list], tuple]

    def __call__(self, samples: list) -> tuple:
        batch = self.collate(samples)
        if get_worker_info() is not None:
            for value in batch:
                if isinstance(value, Tensor):
                    value.share_memory_()
        return batch


def decoding_loader(
    dataset: Dataset,
    batches: Iterable,
    collate: Callable[[list], tuple],
    workers: int,
    pinned: bool = False,
    persistent: bool = False,
) -> DataLoader:
    """A loader whose worker processes, none for 0, are not waited for without end.

    batches: of indices. pinned: batches come in pinned memory. persistent: the processes serve all
    epochs.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=HandOver(collate),
        pin_memory=pinned,
        persistent_workers=persistent and workers > 0,
        timeout=SECONDS_TO_WAIT if workers else 0,
    )


def decoded(loader: DataLoader, at_work: Callable[[], str]) -> Iterator[Any]:
    """The batches of a decoding loader.

    Raises ValueError, saying what to do, when its worker processes die, stall or find no room.
    at_work: what they are at, such as `at a.JPEG`.
    """
    try:
        yield from loader
    except RuntimeError as error:
        text = str(error)
        no_room = NO_ROOM.search(text)
        if no_room:
            raise ValueError(
                f"the decoding processes cannot hand over a batch ({no_room[0]}): "
                "give them more shared memory (in a container, docker run --shm-size=8g) "
                "and more open files (ulimit -n), or set WORKERS=0"
            ) from error
        if "DataLoader timed out" in text:
            raise ValueError(
                f"the decoding processes have handed over nothing for {SECONDS_TO_WAIT} seconds, "
                f"{at_work()}: the disk of the images may stall, or the machine may be too busy; "
                "finished work is kept, run the same command again to go on, or set WORKERS=0"
            ) from error
        # So PyTorch tells of a worker that was killed.
        if "DataLoader worker" not in text:
            raise
        raise process_died("a decoding process", at_work(), ", or set WORKERS=0") from error
