"""Whole files or none, one writer at a time: what every stage does with files."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

MAX_TEXT_BYTES = 64 * 2**20
MAX_NAME_LENGTH = 200
SECONDS_TO_WAIT = 2.0  # for a lock: a killed run's processes may need a moment to go
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILING = (errno.EROFS, errno.EIO)
MIN_FREE_BYTES = 2**20  # with less, an error without a number means a full disk

_held: set[int] = set()  # descriptors of the locks of this process


class WriteError(OSError):
    """A file could not be written, most often because the disk is full."""


class BusyError(ValueError):
    """Another run is writing the same output."""


# ---- writing ----


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`.

    On a clean exit it is renamed to `path`, on an error it is removed. A run that is killed leaves
    at most a `.part` file behind, which nothing mistakes for the real one. Raises WriteError,
    naming `path` and what to do, when the disk is full or refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts(folder: Path, pattern: str = "*") -> None:
    """Remove what killed runs left half-written of the files `pattern` of a folder.

    The caller holds the folder's lock.
    """
    for path in Path(folder).glob(f".{pattern}.*.part"):
        path.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or failing disk into a WriteError that names `path`; other errors pass."""
    try:
        yield
    except Exception as error:
        reason = _disk_reason(error, Path(path).parent)
        if not reason:
            raise
        raise WriteError(
            f"cannot write {path}: {reason}; make space and run the same command again, "
            "finished work is kept"
        ) from error


def _disk_reason(error: BaseException, folder: Path) -> str:
    """Why the disk refused, or nothing when the error is of another kind."""
    # Encoders wrap the system's error ...
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WriteError):
            return ""
        if isinstance(cause, OSError) and cause.errno in FULL:
            return "the disk is full"
        if isinstance(cause, OSError) and cause.errno in FAILING:
            return os.strerror(cause.errno).lower()
        cause = cause.__cause__ or cause.__context__
    # ... or swallow it.
    swallowed = isinstance(error, OSError) and error.errno is None
    if swallowed and folder.is_dir() and shutil.disk_usage(folder).free < MIN_FREE_BYTES:
        return "the disk is full"
    return ""


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Lines as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes, zeros where nothing was, whose place on the disk is taken.

    To map it never fails later. Raises WriteError, naming `path`, when the disk has no room for it;
    a file that was not there is not left behind.
    """
    path = Path(path)
    new = not path.exists()
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                # A Mac has no such call: there a disk that fills up later ends the run.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                elif file.tell() < size:
                    file.truncate(size)
    except WriteError:
        if new:
            path.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as a whole or not at all; an equal file is left untouched."""
    if not holds(path, text):
        write_bytes(path, text.encode())


# ---- reading ----


def read_text(path: Path) -> str:
    """The text of a file; ValueError, naming it, when it is too large for a text or no UTF-8."""
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"{path}: {size:,} bytes is too large for a list or a table")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a text file ({error.reason} at byte {error.start})"
        ) from None


def read_json(path: Path) -> dict:
    """The named values of a JSON file; ValueError, naming it, when it holds anything else."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not named values")
    return content


def holds(path: Path, text: str) -> bool:
    """Whether a file is there and holds exactly this text."""
    return Path(path).is_file() and Path(path).read_bytes() == text.encode()


def plain_name(name: str, where: object) -> str:
    """`name` if it can be part of a path without leading elsewhere.

    ValueError, naming `where` it stands, if not.
    """
    has_slash = "/" in name or "\\" in name
    is_short = 0 < len(name) <= MAX_NAME_LENGTH
    if not is_short or name.startswith(".") or not name.isprintable() or has_slash:
        raise ValueError(
            f"{where}: {name[:60]!r} is not a file name here; names have no '/' or '\\' "
            "and do not start with a dot"
        )
    return name


# ---- one writer at a time ----


@contextmanager
def lock(folder: Path, name: str, what: str) -> Iterator[None]:
    """Hold the lock `name` of a folder; BusyError when another process has it.

    A killed process holds nothing.
    what: what is being written, for the message. The operating system keeps the lock, so the small
    file that carries it means nothing by itself; it is removed at the end. Processes forked
    meanwhile do not keep the lock alive.
    """
    path = Path(folder) / f".{name}.lock"
    deadline = monotonic() + SECONDS_TO_WAIT
    while (descriptor := _try_lock(path)) is None:
        if monotonic() > deadline:
            raise BusyError(
                f"another run is writing {what} in {folder}; wait until it has ended, "
                "or give this one another folder"
            )
        sleep(0.05)
    if not _held:
        os.register_at_fork(after_in_child=_leave_locks_to_parent)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor of a locked file, or None while another process has the lock."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # If they differ, the last holder has just removed the file that was opened.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        print(
            f"note: {path.parent} cannot be locked ({error.strerror}); do not start two runs on it",
            file=sys.stderr,
        )
        return descriptor
    os.close(descriptor)
    return None


def _leave_locks_to_parent() -> None:
    while _held:
        os.close(_held.pop())
