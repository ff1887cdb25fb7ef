"""Work in a process of its own that may not take much memory, as reading a hostile file must."""

from __future__ import annotations

import multiprocessing
import re
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

MEMORY = 3 * 2**30  # bytes of address space that reading may add
LITTLE = 2**28  # bytes that reading a hostile file may add


def in_child(work: Callable[[], object], memory: int = MEMORY) -> object:
    """The result of `work` in a process with little memory; fails when it dies, hangs or raises."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            there.send((True, work()))
        except BaseException:
            there.send((False, traceback.format_exc()[-3000:]))

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    there.close()
    try:
        fine, result = here.recv()
    except EOFError:
        child.join()
        pytest.fail(
            f"the reader ended with status {child.exitcode} (-14: it hung, -11: it crashed)"
        )
    child.join()
    assert fine, result
    return result


def refused(
    read: Callable[[Path], object], path: Path, complaint: str, memory: int = LITTLE
) -> None:
    """`read(path)` ends with a ValueError that names the file and says `complaint`.

    In a process with little memory.
    """

    def work() -> str:
        try:
            read(path)
        except ValueError as error:
            return str(error)
        return "it was read"

    message = in_child(work, memory)
    assert path.name in message
    assert re.search(complaint, message), message
