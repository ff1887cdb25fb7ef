"""Whole files or none: everything the project writes goes through a temporary name and a rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it is renamed to `path`, on an error it is removed.

    A run that is killed leaves at most a `.part` file behind, which nothing mistakes for the real one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as a whole or not at all; an equal file is left untouched."""
    path = Path(path)
    if path.is_file() and path.read_text() == text:
        return
    with atomic_path(path) as temporary:
        temporary.write_text(text)
