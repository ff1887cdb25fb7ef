"""Fetching and unpacking the data sets. Nothing is in place before it is whole, and nothing leaves its folder."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from time import sleep

from tqdm import tqdm

from nemo.files import disk_errors, lock, write_text
from nemo.resources import require_disk

DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without an answer
ATTEMPTS = 4
SECONDS_BETWEEN_ATTEMPTS = 2.0


def address_of(entry: str) -> str:
    """`drive:ID` -> the address that Google Drive serves large files from; anything else stays."""
    return DRIVE.format(entry.removeprefix("drive:")) if entry.startswith("drive:") else entry


def download(entry: str, target: Path, manual: str) -> None:
    """Fetch a zip archive; what arrived of it before a break is kept, and fetching goes on there.

    Raises ValueError, ending in `manual` (what to do by hand), when it does not arrive whole, is no zip, or there is no
    room for it. Only a whole archive gets the name `target`.
    """
    address, target = address_of(entry), Path(target)
    part = target.with_name(f".{target.name}.fetched")
    with lock(target.parent, target.name, f"the download {target.name}"):
        for attempt in range(ATTEMPTS):
            try:
                if _fetch(address, part):
                    break
            except urllib.error.HTTPError as error:
                raise ValueError(f"{address} could not be downloaded ({error}); {manual}") from error
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                if attempt == ATTEMPTS - 1 or not part.is_file():
                    raise ValueError(f"{address} could not be downloaded ({error}); {_kept(part)}{manual}") from error
            sleep(SECONDS_BETWEEN_ATTEMPTS if attempt < ATTEMPTS - 1 else 0)
        else:
            raise ValueError(f"{address} broke off {ATTEMPTS} times; {_kept(part)}{manual}")
        try:
            _check_zip(part, address, manual)
        except ValueError:
            part.unlink()
            raise
        else:
            os.replace(part, target)
        finally:
            _origin(part).unlink(missing_ok=True)


def _kept(part: Path) -> str:
    arrived = part.stat().st_size if part.is_file() else 0
    return f"{arrived:,} bytes arrived and are kept, the same command goes on there; or " if arrived else ""


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _fetch(address: str, part: Path) -> bool:
    """Fetch the rest of `part`, or all of it when the server's file is another one by now; whether it is whole."""
    start, origin = part.stat().st_size if part.is_file() else 0, _read_origin(part, address)
    request = urllib.request.Request(address)
    if start and origin.get("validator"):
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", origin["validator"])
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start == origin.get("total"):
            return True  # nothing is left to fetch
        raise
    with answer:
        goes_on = getattr(answer, "status", None) == 206
        if goes_on and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"it answered with {answer.headers.get('Content-Range')} instead of the rest")
        start = start if goes_on else 0
        rest = int(answer.headers.get("Content-Length") or 0)
        total = start + rest if rest else 0
        require_disk(part.parent, rest, f"the rest of {address}", "make space and run the command again")
        strong = (answer.headers.get("ETag") or "").startswith('"')
        validator = answer.headers.get("ETag") if strong else answer.headers.get("Last-Modified")
        write_text(_origin(part), json.dumps({"address": address, "validator": validator, "total": total}))
        with disk_errors(part), open(part, "ab" if goes_on else "wb") as file:
            bar = tqdm(total=total or None, initial=start, unit="B", unit_scale=True, desc=part.name[1:], file=sys.stderr)
            with bar:
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
    return not total or part.stat().st_size == total


def _read_origin(part: Path, address: str) -> dict:
    """What is known of where `part` comes from; nothing when it is of another address."""
    try:
        origin = json.loads(_origin(part).read_text())
    except (OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) and origin.get("address") == address else {}


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
            needed = sum(member.file_size for member in opened.infolist())
            require_disk(destination, needed, f"what {archive.name} unpacks to", "make space, or distrust the archive if that is absurd")
            staging.mkdir(parents=True)
            with disk_errors(archive):
                opened.extractall(staging)
        for top in sorted(staging.iterdir()):
            _move(top, destination / top.name, levels=2)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
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
