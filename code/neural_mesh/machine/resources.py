"""How much memory and disk there is, asked before the work that needs it starts."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

SPARE = 1.05  # what is left free for everything else, as a factor on what is needed
SHARED_MEMORY = Path("/dev/shm")
MORE_SHARED_MEMORY = "give the container more (docker run --shm-size=8g)"
BATCHES_AHEAD = 2  # that a decoding process prepares, PyTorch's default
BATCHES_IN_USE = 2  # beside those, in the process that takes them
# Open files of a process that decodes nothing, and of each decoding process that it has.
FILES, FILES_OF_A_WORKER = 128, 32
ENOUGH_FILES = 4096


class MemoryGroup(NamedTuple):
    """Where a container's limit and use of memory are told, and the name of cached files in it.

    cached: what it can drop, as its statistics call it.
    """

    limit: str
    use: str
    cached: str


# The group of this process's container, in both versions of the kernel's control groups.
CGROUPS = (
    MemoryGroup("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
    MemoryGroup(
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def free_disk(folder: Path) -> int:
    """Bytes that can be written in `folder`, or where it will be made."""
    folder = Path(folder).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_memory() -> int | None:
    """Bytes of memory that processes can still take on this machine or in this container.

    None where it cannot be known.
    """
    # A container may leave less than the machine has.
    rooms = [_machine_memory(), *(_group_memory(group) for group in CGROUPS)]
    return min((room for room in rooms if room is not None), default=None)


def _machine_memory() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _group_memory(group: MemoryGroup) -> int | None:
    limit = Path(group.limit)
    try:
        room = int(limit.read_text()) - int(Path(group.use).read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    try:
        lines = limit.with_name("memory.stat").read_text().splitlines()
        statistics = dict(line.split() for line in lines)
        return max(0, room + int(statistics[group.cached]))
    except (OSError, KeyError, ValueError):
        return max(0, room)


def require_disk(folder: Path, needed: int, what: str, remedy: str) -> None:
    """ValueError, with both amounts, when `what` needs more bytes than `folder` has room for."""
    free = free_disk(folder)
    if needed * SPARE > free:
        raise ValueError(
            f"{what} needs about {size(needed)} of disk in {folder}, "
            f"which has {size(free)} free; {remedy}"
        )


def require_memory(needed: int, what: str, remedy: str) -> None:
    """ValueError, with both amounts, when `what` needs more bytes of memory than are free."""
    free = free_memory()
    if free is not None and needed * SPARE > free:
        raise ValueError(
            f"{what} needs about {size(needed)} of memory, {size(free)} are free; {remedy}"
        )


def require_shared_memory(needed: int, what: str, remedy: str) -> None:
    """The same for memory that processes share; containers limit it to 64 MB by default."""
    if SHARED_MEMORY.is_dir() and needed * SPARE > free_disk(SHARED_MEMORY):
        free = size(free_disk(SHARED_MEMORY))
        raise ValueError(
            f"{what} needs about {size(needed)} of shared memory, "
            f"{SHARED_MEMORY} has {free} free; {MORE_SHARED_MEMORY}, {remedy}"
        )
    require_memory(needed, what, remedy)


def workers_with_room(workers: int, batch: int, processes: int = 1, taken: int = 0) -> int:
    """How many of so many decoding processes can hand over batches; a note says why not all.

    They do it through shared memory, where one that finds no room waits without end.

    batch: bytes. processes: on this machine, each with so many decoding processes. taken: bytes of
    shared memory that are needed otherwise.
    """
    free = _free_shared_memory()
    files = _most_open_files()
    with_files = max(0, (files - FILES) // FILES_OF_A_WORKER)
    with_memory = workers
    if free is not None:
        batches = int((free / SPARE - taken) / processes / max(batch, 1))
        with_memory = max(0, (batches - BATCHES_IN_USE) // BATCHES_AHEAD)
    fitting = min(workers, with_memory, with_files)
    if fitting == workers:
        return workers
    needed = size(processes * batch * (workers * BATCHES_AHEAD + BATCHES_IN_USE) + taken)
    reason = (
        f"{SHARED_MEMORY} has {size(free or 0)} free, {workers} decoding processes need {needed}; "
        f"{MORE_SHARED_MEMORY}"
    )
    if with_files < with_memory:
        reason = f"a process may open {files} files; `ulimit -n` gives more"
    print(f"note: going on with WORKERS={fitting}: {reason}", file=sys.stderr)
    return fitting


def _free_shared_memory() -> int | None:
    """Bytes; None where it cannot be known, as on a Mac."""
    if SHARED_MEMORY.is_dir():
        return free_disk(SHARED_MEMORY)
    return 0 if sys.platform == "linux" else None


def _most_open_files() -> int:
    """How many files this process may open, once it has taken what it may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def size(n_bytes: float) -> str:
    """`256 kB`, `64 MB`, `7.5 GB`."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:,.1f} GB"
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.0f} kB"
