"""Unpacking zip archives: nothing is in place before it is whole, and nothing leaves its folder."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from neural_mesh.machine.resources import require_disk
from neural_mesh.storage.files import disk_errors
from neural_mesh.storage.foreign_files import refusal

LEVELS = 2  # of an archive's folders that are merged with what is there
SYMBOLIC_LINK = 0xA  # of a member's Unix mode, its highest four bits
BROKEN_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
)


def half_unpacked(archive: Path, destination: Path) -> bool:
    """Whether an unpacking of the archive into a folder was killed on its way."""
    return _staging(archive, destination).exists()


def _staging(archive: Path, destination: Path) -> Path:
    return destination / f".unpacking-{archive.stem}"


def unpack(archive: Path, destination: Path) -> None:
    """Unpack a zip into a folder, entry by entry at its top two levels, each once all is on disk.

    Raises ValueError for a broken archive and for one that would write outside of the folder. The
    caller holds a lock.
    """
    staging = _staging(archive, destination)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        _extract(archive, destination, staging)
    except BROKEN_ARCHIVE_ERRORS as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise ValueError(
            refusal(archive, f"broken archive ({error}); delete it and run the command again")
        ) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    # After a break here what is left of the staging folder says that something is missing.
    for top in sorted(staging.iterdir()):
        _move(top, destination / top.name, LEVELS)
    shutil.rmtree(staging)


def _extract(archive: Path, destination: Path, staging: Path) -> None:
    """Check an archive and what it takes, then unpack it into the staging folder."""
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            if not _stays_inside(member):
                raise ValueError(
                    f"{archive}: {member.filename!r} would leave the folder; "
                    "the archive is not trustworthy"
                )
        require_disk(
            destination,
            sum(member.file_size for member in members),
            f"what {archive.name} unpacks to",
            "make space, or distrust the archive if that is absurd",
        )
        # Nothing is written before every member has been looked at.
        staging.mkdir(parents=True)
        with disk_errors(archive):
            opened.extractall(staging)


def _stays_inside(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    leads_elsewhere = path.is_absolute() or ".." in path.parts
    return not leads_elsewhere and (member.external_attr >> 28) != SYMBOLIC_LINK


def _move(source: Path, target: Path, levels: int) -> None:
    """Rename source to target.

    An existing folder is merged, `levels` deep, and what it already has is replaced.
    """
    if target.is_dir() and source.is_dir() and levels:
        for child in sorted(source.iterdir()):
            _move(child, target / child.name, levels - 1)
        return
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
