"""Work on a batch of images in halves where a GPU's memory is too small for the whole batch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def in_halves(work: Callable[[slice], T], images: int, what: str) -> list[T]:
    """Results of `work` for slices of a batch: one for all images if a GPU has the memory.

    Otherwise the slices are halves, quarters and so on, down to single images; each new size is
    reported once. Images do not influence each other, so the slices together give the same results.

    images: number of images. what: the product of `work`, for the messages. Raises ValueError when
    not even one image fits.
    """
    # Chunks are worked on from the left, so that the results are in the images' order.
    todo = [slice(0, images)]
    done = []
    smallest = images
    while todo:
        chunk = todo.pop(0)
        size = chunk.stop - chunk.start
        try:
            done.append(work(chunk))
            continue
        except torch.cuda.OutOfMemoryError as error:
            if size == 1:
                message = f"not even the {what} of one image fit into the GPU's memory; {error}"
                raise ValueError(message.splitlines()[0]) from error
        # Inside the except clause the exception would still hold the memory.
        torch.cuda.empty_cache()
        middle = chunk.start + size // 2
        todo[:0] = [slice(chunk.start, middle), slice(middle, chunk.stop)]
        # Print one note for each new size instead of one for each slice.
        larger_half = size - size // 2
        if larger_half < smallest:
            smallest = larger_half
            print(
                f"note: out of GPU memory, going on with {smallest} images at a time "
                f"(BATCH_SIZE={smallest})",
                file=sys.stderr,
            )
    return done
