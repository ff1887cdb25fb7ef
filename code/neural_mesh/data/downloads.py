"""Fetching archives: what arrived before a break is kept; only a whole archive gets its name."""

from __future__ import annotations

import ftplib
import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from tqdm import tqdm

from neural_mesh.machine.resources import require_disk
from neural_mesh.storage.files import disk_errors, lock, read_json, write_text
from neural_mesh.storage.foreign_files import has_zip_end

DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without an answer
ATTEMPTS = 4
SECONDS_BETWEEN_ATTEMPTS = 2.0

REFUSALS = (urllib.error.HTTPError, ftplib.error_perm)
# Of a connection that may work at the next attempt.
BREAKS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ftplib.Error,
    EOFError,
    TimeoutError,
    ConnectionError,
)


class DownloadError(ValueError):
    """An address did not give the archive; nothing is wrong on this side."""


@dataclass(frozen=True)
class Answer:
    """What a server sends: the bytes of a file from `start` on."""

    read: Callable[[int], bytes]
    start: int
    total: int  # bytes of the whole file; 0: not told
    # By what the server would tell a changed file; None: the rest cannot be asked for later.
    validator: str | None


def address_of(entry: str) -> str:
    """`drive:ID` -> the address Google Drive serves large files from; anything else stays."""
    return DRIVE.format(entry.removeprefix("drive:")) if entry.startswith("drive:") else entry


def download(entry: str, target: Path, manual: str) -> None:
    """Fetch a zip archive; what arrived of it before a break is kept, and fetching goes on there.

    Raises DownloadError, ending in `manual` (what to do by hand), when it does not arrive whole or
    is no zip, and ValueError when there is no room for it. Only a whole archive gets the name
    `target`.
    """
    address = address_of(entry)
    target = Path(target)
    part = target.with_name(f".{target.name}.fetched")
    with lock(target.parent, target.name, f"the download {target.name}"):
        _fetch_whole(address, part, manual)
        try:
            _check_zip(part, address, manual)
            os.replace(part, target)
        except DownloadError:
            part.unlink()
            raise
        finally:
            _origin(part).unlink(missing_ok=True)


def _fetch_whole(address: str, part: Path, manual: str) -> None:
    """Fetch until `part` is whole, in ATTEMPTS attempts; DownloadError after them."""
    for attempt in range(ATTEMPTS):
        is_last = attempt == ATTEMPTS - 1
        try:
            if _fetch(address, part):
                return
        except REFUSALS as error:
            raise DownloadError(f"{address} could not be downloaded ({error}); {manual}") from error
        except BREAKS as error:
            if is_last or not part.is_file():
                kept = _what_is_kept(part, address)
                raise DownloadError(
                    f"{address} could not be downloaded ({error}); {kept}{manual}"
                ) from error
        # The connection broke, or the server's file ended too early.
        sleep(0 if is_last else SECONDS_BETWEEN_ATTEMPTS)
    kept = _what_is_kept(part, address)
    raise DownloadError(f"{address} broke off {ATTEMPTS} times; {kept}{manual}")


def _what_is_kept(part: Path, address: str) -> str:
    """What to tell about the bytes that arrived; empty where there are none."""
    arrived = part.stat().st_size if part.is_file() else 0
    if not arrived:
        return ""
    if not read_origin(part, address).get("validator"):
        return (
            f"{arrived:,} bytes arrived, but this server does not let a download go on, "
            "the same command starts again; or "
        )
    return f"{arrived:,} bytes arrived and are kept, the same command goes on there; or "


def _fetch(address: str, part: Path) -> bool:
    """Fetch the rest of `part`, or all of it when the server's file is another one by now.

    Returns whether it is whole.
    """
    origin = read_origin(part, address)
    # Where the server cannot tell a changed file, all of it is fetched again.
    have = 0
    if part.is_file() and origin.get("validator"):
        have = part.stat().st_size
    plain_ftp = address.startswith("ftp://") and "ftp" not in urllib.request.getproxies()
    open_address = _ftp if plain_ftp else _web
    with open_address(address, have, origin) as answer:
        rest = max(0, answer.total - answer.start)
        remedy = "make space and run the command again"
        require_disk(part.parent, rest, f"the rest of {address}", remedy)
        origin = {"address": address, "validator": answer.validator, "total": answer.total}
        write_text(_origin(part), json.dumps(origin))
        with (
            disk_errors(part),
            open(part, "ab" if answer.start else "wb") as file,
            _bar(part.name[1:], answer) as bar,
        ):
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    return not answer.total or part.stat().st_size == answer.total


def _bar(name: str, answer: Answer) -> tqdm:
    return tqdm(
        total=answer.total or None,
        initial=answer.start,
        unit="B",
        unit_scale=True,
        desc=name,
        file=sys.stderr,
    )


# ---- servers -------------------------------------------------------------------------------------


def _nothing_left(start: int, validator: str | None) -> Answer:
    """The answer when all of a file has arrived."""
    return Answer(lambda size: b"", start, start, validator)


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
        yield _nothing_left(have, origin["validator"])
        return
    with answer:
        headers = answer.headers
        content_range = headers.get("Content-Range")
        goes_on = getattr(answer, "status", None) == 206
        if goes_on and not (content_range or "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException(f"it answered with {content_range} instead of the rest")
        start = have if goes_on else 0
        rest = int(headers.get("Content-Length") or 0)
        # A weak tag may stay the same for a changed file.
        strong = (headers.get("ETag") or "").startswith('"')
        validator = headers.get("ETag" if strong else "Last-Modified")
        yield Answer(answer.read, start, start + rest if rest else 0, validator)


@contextmanager
def _ftp(address: str, have: int, origin: dict) -> Iterator[Answer]:
    """A file from an FTP server, the same as before while its size and its time are."""
    place = urllib.parse.urlsplit(address)
    path = urllib.parse.unquote(place.path.removeprefix("/"))
    server = ftplib.FTP(timeout=TIMEOUT)
    try:
        _log_in(server, place)
        total, validator = _size_and_validator(server, path)
        start = have if validator == origin.get("validator") and have <= total else 0
        if start and start == total:
            yield _nothing_left(total, validator)
            return
        with server.transfercmd(f"RETR {path}", rest=start or None) as connection:
            yield Answer(connection.recv, start, total, validator)
    finally:
        server.close()


def _log_in(server: ftplib.FTP, place: urllib.parse.SplitResult) -> None:
    try:
        server.connect(place.hostname or "", place.port or ftplib.FTP_PORT)
    except OSError as error:  # of any kind: no such host, no way to it, no answer
        raise urllib.error.URLError(error) from error
    user = urllib.parse.unquote(place.username or "")
    password = urllib.parse.unquote(place.password or "")
    server.login(user, password)


def _size_and_validator(server: ftplib.FTP, path: str) -> tuple[int, str | None]:
    """Bytes of a file, 0 where unknown, and a validator if the server can start in the middle."""
    server.voidcmd("TYPE I")
    total = 0
    changed = ""
    validator = None
    # Each of these commands is younger than FTP.
    with suppress(ftplib.error_perm):
        total = server.size(path) or 0
    with suppress(ftplib.error_perm):
        changed = server.voidcmd(f"MDTM {path}").removeprefix("213").strip()
    with suppress(ftplib.error_perm):
        server.sendcmd("REST 0")
        validator = f"{total} bytes of {changed}" if total else None
    return total, validator


# ---- what has arrived ----------------------------------------------------------------------------


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def read_origin(part: Path, address: str) -> dict:
    """What is known of where `part` comes from; nothing when it is of another address."""
    try:
        origin = read_json(_origin(part))
    except (OSError, ValueError):
        return {}
    return origin if origin.get("address") == address else {}


def _check_zip(path: Path, address: str, manual: str) -> None:
    if has_zip_end(path):
        return
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise DownloadError(
            f"{address} gave a web page instead of the archive "
            f"(a quota or a consent page); {manual}"
        )
    raise DownloadError(f"{address} gave something that is not a zip archive; {manual}")
