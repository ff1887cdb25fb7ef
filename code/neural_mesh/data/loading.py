"""Batches of training images: their order, each process's share, and what a dead decoder was at."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from neural_mesh.data.dataset import TrainingImages, TrainingSample
from neural_mesh.machine.distributed import Group, share
from neural_mesh.machine.workers import process_died


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
    # Samples are named tuples, which DataLoader stacks field by field.
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pinned,
        persistent_workers=workers > 0,
    )


def batches(loader: DataLoader) -> Iterator[TrainingSample]:
    """The batches of a loader of TrainingImages.

    Raises ValueError, naming the file, when one cannot be read or a worker dies.
    """
    try:
        yield from loader
    except (ValueError, OSError) as error:
        # Of a worker process its text is a traceback, which ends in the message.
        message = str(error).strip().splitlines()[-1]
        raise ValueError(message.removeprefix(f"{type(error).__name__}: ")) from error
    except RuntimeError as error:
        # So PyTorch tells of a worker that was killed.
        if "DataLoader worker" not in str(error):
            raise
        paths = loader.dataset.crops.paths_in_work()
        at = " or ".join(map(str, paths)) or "no image"
        raise process_died("a decoding process", f"at {at}", ", or set WORKERS=0") from error
