"""Fetching and unpacking the data sets. Nothing is in place before it is whole, and nothing leaves its folder."""

from __future__ import annotations

import ftplib
import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from time import sleep

from tqdm import tqdm

from neural_mesh.machine.resources import require_disk
from neural_mesh.storage.files import disk_errors, lock, read_json, write_text

DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without an answer
ATTEMPTS = 4
SECONDS_BETWEEN_ATTEMPTS = 2.0


class DownloadError(ValueError):
    """An address did not give the archive; nothing is wrong on this side."""


@dataclass(frozen=True)
class Answer:
    """What a server sends: the bytes of a file from `start` on, and by what it would tell a changed file."""

    read: Callable[[int], bytes]
    start: int
    total: int  # bytes of the whole file; 0: not told
    validator: str | None  # None: the rest of this file cannot be asked for later


def address_of(entry: str) -> str:
    """`drive:ID` -> the address that Google Drive serves large files from; anything else stays."""
    return DRIVE.format(entry.removeprefix("drive:")) if entry.startswith("drive:") else entry


def download(entry: str, target: Path, manual: str) -> None:
    """Fetch a zip archive; what arrived of it before a break is kept, and fetching goes on there.

    Raises DownloadError, ending in `manual` (what to do by hand), when it does not arrive whole or is no zip, and ValueError
    when there is no room for it. Only a whole archive gets the name `target`.
    """
    address, target = address_of(entry), Path(target)
    part = target.with_name(f".{target.name}.fetched")
    with lock(target.parent, target.name, f"the download {target.name}"):
        for attempt in range(ATTEMPTS):
            try:
                if _fetch(address, part):
                    break
            except (urllib.error.HTTPError, ftplib.error_perm) as error:
                raise DownloadError(
                    f"{address} could not be downloaded ({error}); {manual}"
                ) from error
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ftplib.Error,
                EOFError,
                TimeoutError,
                ConnectionError,
            ) as error:
                if attempt == ATTEMPTS - 1 or not part.is_file():
                    raise DownloadError(
                        f"{address} could not be downloaded ({error}); {_kept(part, address)}{manual}"
                    ) from error
            sleep(SECONDS_BETWEEN_ATTEMPTS if attempt < ATTEMPTS - 1 else 0)
        else:
            raise DownloadError(
                f"{address} broke off {ATTEMPTS} times; {_kept(part, address)}{manual}"
            )
        try:
            _check_zip(part, address, manual)
        except DownloadError:
            part.unlink()
            raise
        else:
            os.replace(part, target)
        finally:
            _origin(part).unlink(missing_ok=True)


def _kept(part: Path, address: str) -> str:
    arrived = part.stat().st_size if part.is_file() else 0
    if arrived and not _read_origin(part, address).get("validator"):
        return f"{arrived:,} bytes arrived, but this server does not let a download go on, the same command starts again; or "
    return (
        f"{arrived:,} bytes arrived and are kept, the same command goes on there; or "
        if arrived
        else ""
    )


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _fetch(address: str, part: Path) -> bool:
    """Fetch the rest of `part`, or all of it when the server's file is another one by now; whether it is whole."""
    have, origin = part.stat().st_size if part.is_file() else 0, _read_origin(part, address)
    plain_ftp = address.startswith("ftp://") and "ftp" not in urllib.request.getproxies()
    with (_ftp if plain_ftp else _web)(
        address, have if origin.get("validator") else 0, origin
    ) as answer:
        rest = max(0, answer.total - answer.start)
        require_disk(
            part.parent, rest, f"the rest of {address}", "make space and run the command again"
        )
        write_text(
            _origin(part),
            json.dumps({"address": address, "validator": answer.validator, "total": answer.total}),
        )
        with disk_errors(part), open(part, "ab" if answer.start else "wb") as file:
            bar = tqdm(
                total=answer.total or None,
                initial=answer.start,
                unit="B",
                unit_scale=True,
                desc=part.name[1:],
                file=sys.stderr,
            )
            with bar:
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
    return not answer.total or part.stat().st_size == answer.total


@contextmanager
def _web(address: str, have: int, origin: dict) -> Iterator[Answer]:
    """A file from a web server, or of this machine. have: bytes of `origin` that have arrived."""
    request = urllib.request.Request(address)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", origin["validator"])
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or have != origin.get("total"):
            raise
        yield Answer(lambda size: b"", have, have, origin["validator"])  # nothing is left to fetch
        return
    with answer:
        goes_on = getattr(answer, "status", None) == 206
        if goes_on and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException(
                f"it answered with {answer.headers.get('Content-Range')} instead of the rest"
            )
        start, rest = have if goes_on else 0, int(answer.headers.get("Content-Length") or 0)
        strong = (answer.headers.get("ETag") or "").startswith('"')
        validator = answer.headers.get("ETag") if strong else answer.headers.get("Last-Modified")
        yield Answer(answer.read, start, start + rest if rest else 0, validator)


@contextmanager
def _ftp(address: str, have: int, origin: dict) -> Iterator[Answer]:
    """A file from an FTP server, which is the same as before while its size and its time are."""
    place = urllib.parse.urlsplit(address)
    path = urllib.parse.unquote(place.path.removeprefix("/"))
    server = ftplib.FTP(timeout=TIMEOUT)
    try:
        try:
            server.connect(place.hostname or "", place.port or ftplib.FTP_PORT)
        except OSError as error:  # of any kind: no such host, no way to it, no answer
            raise urllib.error.URLError(error) from error
        server.login(
            urllib.parse.unquote(place.username or ""), urllib.parse.unquote(place.password or "")
        )
        server.voidcmd("TYPE I")
        total, changed, validator = 0, "", None
        with suppress(ftplib.error_perm):  # these commands are younger than FTP
            total = server.size(path) or 0
        with suppress(ftplib.error_perm):
            changed = server.voidcmd(f"MDTM {path}").removeprefix("213").strip()
        with suppress(ftplib.error_perm):
            server.sendcmd("REST 0")  # whether it can start in the middle
            validator = f"{total} bytes of {changed}" if total else None
        start = have if validator == origin.get("validator") and have <= total else 0
        if start and start == total:
            yield Answer(lambda size: b"", start, total, validator)  # nothing is left to fetch
            return
        with server.transfercmd(f"RETR {path}", rest=start or None) as connection:
            yield Answer(connection.recv, start, total, validator)
    finally:
        server.close()


def _read_origin(part: Path, address: str) -> dict:
    """What is known of where `part` comes from; nothing when it is of another address."""
    try:
        origin = read_json(_origin(part))
    except (OSError, ValueError):
        return {}
    return origin if origin.get("address") == address else {}


def _check_zip(path: Path, address: str, manual: str) -> None:
    if zipfile.is_zipfile(path):
        return
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise DownloadError(
            f"{address} gave a web page instead of the archive (a quota or a consent page); {manual}"
        )
    raise DownloadError(f"{address} gave something that is not a zip archive; {manual}")


def half_unpacked(archive: Path, destination: Path) -> bool:
    """Whether an unpacking of the archive into a folder was killed on its way."""
    return _staging(archive, destination).exists()


def _staging(archive: Path, destination: Path) -> Path:
    return destination / f".unpacking-{archive.stem}"


def unpack(archive: Path, destination: Path) -> None:
    """Unpack a zip into a folder, entry by entry at its top two levels, each only when all of it is on disk.

    Raises ValueError for a broken archive and for one that would write outside of the folder. The caller holds a lock.
    """
    staging = _staging(archive, destination)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                parts = PurePosixPath(member.filename.replace("\\", "/"))
                if (
                    parts.is_absolute()
                    or ".." in parts.parts
                    or (member.external_attr >> 28) == 0xA
                ):
                    raise ValueError(
                        f"{archive}: {member.filename!r} would leave the folder; the archive is not trustworthy"
                    )
            needed = sum(member.file_size for member in opened.infolist())
            require_disk(
                destination,
                needed,
                f"what {archive.name} unpacks to",
                "make space, or distrust the archive if that is absurd",
            )
            staging.mkdir(parents=True)
            with disk_errors(archive):
                opened.extractall(staging)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise ValueError(
            f"{archive}: broken archive ({error}); delete it and run the command again"
        ) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for top in sorted(
        staging.iterdir()
    ):  # what is left of the folder after a break here says that something is missing
        _move(top, destination / top.name, levels=2)
    shutil.rmtree(staging)


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
