"""Processes that share out the images of a stage, and say which image one of them died of."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from neural_mesh.machine.console import progress
from neural_mesh.machine.resources import MORE_SHARED_MEMORY, SHARED_MEMORY

T = TypeVar("T")

# Of a process of a pool: the notes of all processes, and its own place among them.
_note: dict = {}


class WorkerPool(ProcessPoolExecutor):
    """Processes that end when the one that started them is killed.

    notes: shared memory that says, per process, 1 + the index of the name it works on; 0: none.
    """

    def __init__(self, workers: int):
        try:
            # Shared memory outlives the process that wrote into it.
            self.notes = multiprocessing.Array("q", workers, lock=False)
            entered = multiprocessing.Value("q", 0)
            super().__init__(workers, initializer=_enter_pool, initargs=(self.notes, entered))
        except OSError as error:
            raise ValueError(
                f"no shared memory for {workers} processes ({error.strerror}): {SHARED_MEMORY} is "
                f"full or missing; {MORE_SHARED_MEMORY}, or delete what other programs left there"
            ) from error


def _enter_pool(notes: Sequence[int], entered: Any) -> None:
    """Watch the parent from a thread, and take a place among the notes."""

    def watch() -> None:
        # With a fork server, os.getppid() is the server, so the parent is asked for by name.
        multiprocessing.parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    with entered.get_lock():
        _note.update(notes=notes, place=entered.value)
        entered.value += 1


def in_pool(
    pool: WorkerPool, work: Callable[[str], T], names: Sequence[str], description: str
) -> list[T]:
    """[work(name) for name in names], spread over processes, with a bar.

    Raises ValueError when a process dies, with the names that were being worked on.
    """
    # A process notes the number of a name, since a number fits into shared memory.
    noted_work = partial(_work_noted, work)
    numbers = range(1, len(names) + 1)
    try:
        results = pool.map(noted_work, numbers, names, chunksize=4)
        return list(progress(results, description, total=len(names)))
    except BrokenProcessPool as error:
        # One of these names is what the process died of.
        in_work = sorted(names[number - 1] for number in pool.notes if number)
        at = " or ".join(in_work) or "nothing"
        raise process_died("a process", f"while working on {at} of {description}") from error


def _work_noted(work: Callable[[str], T], number: int, name: str) -> T:
    """work(name), with a note of it while it lasts."""
    notes = _note["notes"]
    place = _note["place"]
    notes[place] = number
    try:
        return work(name)
    finally:
        notes[place] = 0


def process_died(what: str, at: str, remedy: str = "") -> ValueError:
    """The error of a process that ended by itself: what it was, what it was at, what else helps."""
    return ValueError(
        f"{what} died (killed, out of memory, or by a file that crashes the decoder) {at}; "
        f"finished work is kept, run the same command again to go on{remedy}"
    )


def worker_count(text: str) -> int:
    """WORKERS as set by the user -> processes: `auto` is one for each core this process may use."""
    if text == "auto":
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f'WORKERS is "{text}", it can be auto or a number of processes above 0')
    return int(text)
