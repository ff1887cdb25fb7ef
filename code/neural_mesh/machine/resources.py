"""How much memory and disk there is, asked before the work that needs it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

SPARE = 1.05  # what is left free for everything else, as a factor on what is needed
SHARED_MEMORY = Path("/dev/shm")


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
            f"{SHARED_MEMORY} has {free} free; {remedy}"
        )
    require_memory(needed, what, remedy)


def size(n_bytes: float) -> str:
    """`64 MB`, `7.5 GB`."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"
