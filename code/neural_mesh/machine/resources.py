"""How much memory and disk there is, asked before the work that needs it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SPARE = 1.05  # what is left free for everything else, as a factor on what is needed
CGROUPS = (  # limit and use of this process's container, both versions, and what it calls cached files that it can drop
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
SHARED_MEMORY = Path("/dev/shm")
BYTES_PER_PIXEL = {
    75: 0.15,
    95: 0.3,
}  # of a JPEG crop, by its quality; photographs gave 0.24 for 95
BYTES_PER_ANNOTATION = 8192  # of a crop


def free_disk(folder: Path) -> int:
    """Bytes that can be written in `folder`, or where it will be made."""
    folder = Path(folder).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_memory() -> int | None:
    """Bytes of memory that processes can still take on this machine or in this container; None where it cannot be known."""
    known = [
        room
        for room in (_machine_memory(), *(_group_memory(*paths) for paths in CGROUPS))
        if room is not None
    ]
    return min(known, default=None)


def _machine_memory() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None


def _group_memory(limit: str, use: str, droppable: str) -> int | None:
    try:
        room = int(Path(limit).read_text()) - int(Path(use).read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    try:
        statistics = dict(
            line.split() for line in Path(limit).with_name("memory.stat").read_text().splitlines()
        )
        return max(0, room + int(statistics[droppable]))
    except (OSError, KeyError, ValueError):
        return max(0, room)


def require_disk(folder: Path, needed: int, what: str, remedy: str) -> None:
    """ValueError, with both amounts, when `what` needs more bytes than `folder` has room for."""
    free = free_disk(folder)
    if needed * SPARE > free:
        raise ValueError(
            f"{what} needs about {size(needed)} of disk in {folder}, which has {size(free)} free; {remedy}"
        )


def require_memory(needed: int, what: str, remedy: str) -> None:
    """ValueError, with both amounts, when `what` needs more bytes of memory than are free."""
    free = free_memory()
    if free is not None and needed * SPARE > free:
        raise ValueError(
            f"{what} needs about {size(needed)} of memory, {size(free)} are free; {remedy}"
        )


def require_shared_memory(needed: int, what: str, remedy: str) -> None:
    """The same for memory that processes share, which containers limit to 64 MB unless told otherwise."""
    if SHARED_MEMORY.is_dir() and needed * SPARE > free_disk(SHARED_MEMORY):
        free = size(free_disk(SHARED_MEMORY))
        raise ValueError(
            f"{what} needs about {size(needed)} of shared memory, {SHARED_MEMORY} has {free} free; {remedy}"
        )
    require_memory(needed, what, remedy)


def crops_size(crops: int, crop_hw: tuple[int, int], quality: int) -> int:
    """Bytes that crops (JPEG of a quality) and their annotations take on disk: measured on photographs, and rounded up."""
    return crops * (int(BYTES_PER_PIXEL[quality] * crop_hw[0] * crop_hw[1]) + BYTES_PER_ANNOTATION)


def size(n_bytes: float) -> str:
    """`64 MB`, `7.5 GB`."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"
