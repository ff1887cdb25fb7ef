"""Whole files or none, one writer at a time: what every stage does with files."""

from __future__ import annotations

import codecs
import csv
import errno
import fcntl
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep

MAX_TEXT_BYTES = 64 * 2**20
MAX_NAME_LENGTH = 200
SECONDS_TO_WAIT = 2.0  # for a lock: a killed run's processes may need a moment to go
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSING = (errno.EROFS, errno.EACCES, errno.EPERM)
AGAIN = "run the same command again, finished work is kept"
MAKE_SPACE = f"make space and {AGAIN}"
# The longer of two that begin alike stands first.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NO_TEXT = frozenset(map(chr, range(32))) - frozenset("\t\n\f\r")
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
        # Another user's are in nobody's way.
        with suppress(PermissionError):
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
        raise WriteError(f"cannot write {path}: {reason}") from error


def _disk_reason(error: BaseException, folder: Path) -> str:
    """Why the disk refused, and what to do; nothing when the error is of another kind."""
    # Encoders wrap the system's error ...
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WriteError):
            return ""
        if isinstance(cause, OSError) and cause.errno in FULL:
            return f"the disk is full; {MAKE_SPACE}"
        if isinstance(cause, OSError) and cause.errno == errno.EIO:
            return f"{os.strerror(errno.EIO).lower()}; look after the disk and {AGAIN}"
        if isinstance(cause, OSError) and _is_refused(cause, folder):
            refusal = os.strerror(cause.errno or errno.EACCES).lower()
            return f"{refusal}; choose another folder for it, or let yourself write there"
        cause = cause.__cause__ or cause.__context__
    # ... or swallow it.
    swallowed = isinstance(error, OSError) and error.errno is None
    if swallowed and folder.is_dir() and shutil.disk_usage(folder).free < MIN_FREE_BYTES:
        return f"the disk is full; {MAKE_SPACE}"
    return ""


def _is_refused(error: OSError, folder: Path) -> bool:
    """Whether an error says that nothing may be written into a folder, or where it would be."""
    if error.errno not in REFUSING:
        return False
    where = folder if error.filename is None else Path(os.fsdecode(error.filename))
    return (
        error.errno == errno.EROFS or where in (folder, *folder.parents) or where.parent == folder
    )


def can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the one in which it would be made."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Lines as the text of a CSV file."""
    text = io.StringIO()
    usual = csv.writer(text, lineterminator="\n")
    # Not every version of Python quotes a carriage return by itself.
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for line in lines:
        returns = any("\r" in cell for cell in line if isinstance(cell, str))
        (quoting if returns else usual).writerow(line)
    return text.getvalue()


def readable(text: str) -> str:
    """Text that can be written: bytes of file names that are no UTF-8 become `caf\\xe9.jpg`."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """`readable` text without line ends and other control characters, which are escaped."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], readable(text))


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
    """Write `readable` text to `path` as a whole or not at all; an equal file is left untouched."""
    if not holds(path, text):
        write_bytes(path, readable(text).encode())


# ---- reading ----


def read_text(path: Path) -> str:
    """The text of a file as people save it: with a byte order mark or without, any line ends.

    It is UTF-8, what its byte order mark says, or else Windows' Western encoding, which is said.
    ValueError, naming the file, when it is too large for a text or none.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"{path}: {size:,} bytes is too large for a list or a table")
    content = path.read_bytes()
    try:
        text = decode(content)
    except UnicodeDecodeError as error:
        try:
            text = decode(content, "cp1252")
        except UnicodeDecodeError:
            text = "\0"
        if not NO_TEXT.isdisjoint(text):
            raise ValueError(
                f"{path}: not a text file ({error.reason} at byte {error.start})"
            ) from None
        _tell_encoding(path)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode(content: bytes, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Bytes as text, by their byte order mark if they have one, else in an encoding."""
    for mark, marked in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(marked, errors)
    return content.decode(encoding, errors)


@lru_cache(maxsize=64)
def _tell_encoding(path: Path) -> None:
    """Say, once a process, that a text was not in the encoding that was expected."""
    print(f"note: {path} is not UTF-8, it is read as Windows-1252", file=sys.stderr)


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
    """Whether a file is there and holds exactly this `readable` text."""
    return Path(path).is_file() and Path(path).read_bytes() == readable(text).encode()


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

    A killed process holds nothing, whosever it was.

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
        # A file of another user may have to stay.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """The descriptor of a locked file, or None while another process has the lock."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(path)
    if descriptor is None:
        raise BusyError(
            f"{path} belongs to another user and cannot be locked; "
            "delete it if none of their runs is at work there"
        )
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


def _open_lock(path: Path) -> int | None:
    """The descriptor of the file that carries a lock, made if need be.

    Of a file that another user's run has left or holds, to read it is enough; None where that is
    not allowed.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
    try:
        return os.open(path, os.O_RDONLY)
    except PermissionError:
        return None


def _leave_locks_to_parent() -> None:
    while _held:
        os.close(_held.pop())
