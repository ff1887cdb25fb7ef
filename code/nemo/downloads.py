"""Fetching and unpacking the data sets. Nothing is in place before it is whole, and nothing leaves its folder."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from nemo.files import atomic_path

DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without an answer


def address_of(entry: str) -> str:
    """`drive:ID` -> the address that Google Drive serves large files from; anything else stays."""
    return DRIVE.format(entry.removeprefix("drive:")) if entry.startswith("drive:") else entry


def download(entry: str, target: Path, manual: str) -> None:
    """Fetch a zip archive. ValueError, ending in `manual` (what to do by hand), when it does not arrive or is no zip."""
    address = address_of(entry)
    try:
        with atomic_path(target) as temporary:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, open(temporary, "wb") as file:
                total = int(answer.headers.get("Content-Length") or 0)
                with tqdm(total=total or None, unit="B", unit_scale=True, desc=target.name, file=sys.stderr) as bar:
                    while block := answer.read(BLOCK):
                        file.write(block)
                        bar.update(len(block))
            received = temporary.stat().st_size
            if total and received != total:
                raise ValueError(f"{address} broke off after {received:,} of {total:,} bytes; {manual}")
            _check_zip(temporary, address, manual)
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(f"{address} could not be downloaded ({error}); {manual}") from error


def _check_zip(path: Path, address: str, manual: str) -> None:
    if zipfile.is_zipfile(path):
        return
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{address} gave a web page instead of the archive (a quota or a consent page); {manual}")
    raise ValueError(f"{address} gave something that is not a zip archive; {manual}")


def unpack(archive: Path, destination: Path) -> None:
    """Unpack a zip into a folder, entry by entry at its top two levels, each only when all of it is on disk.

    Raises ValueError for a broken archive and for one that would write outside of the folder.
    """
    staging = destination / f".unpacking-{archive.stem}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                parts = PurePosixPath(member.filename.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or (member.external_attr >> 28) == 0xA:
                    raise ValueError(f"{archive}: {member.filename!r} would leave the folder; the archive is not trustworthy")
            staging.mkdir(parents=True)
            opened.extractall(staging)
        for top in sorted(staging.iterdir()):
            _move(top, destination / top.name, levels=2)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{archive}: broken archive ({error}); delete it and run the command again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move(source: Path, target: Path, levels: int) -> None:
    """Rename source to target; an existing folder is merged, `levels` deep, and what it already has is replaced."""
    if target.is_dir() and source.is_dir() and levels:
        for child in sorted(source.iterdir()):
            _move(child, target / child.name, levels - 1)
        return
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
