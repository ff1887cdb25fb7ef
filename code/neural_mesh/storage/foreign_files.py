"""What a file really is that was taken for another: a page, a pointer, an archive, half of itself.

Downloads go wrong in a few well-known ways. Whoever meets one of them is told its true name and the
next step, in place of what a decoder says about its bytes.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

HEAD_BYTES = 4096
MAX_SHOWN = 60  # characters of a text or of a name
MAX_MEMBERS = 1000  # of a tar archive that are looked at
MAX_SAFETENSORS_HEADER = 100 * 2**20  # bytes; its own reader has the same limit

AGAIN = "download or copy it again"
CUT_OFF = f"cut off, its end is missing; {AGAIN}"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script", b"<meta")
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
}
OTHER_FORMATS = {
    b"\x89HDF": "an HDF5 file (of Keras or MATLAB)",
    b"\x93NUMPY": "an array of NumPy",
    b"GGUF": "a GGUF model",
    b"%PDF": "a PDF document",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
}
WEIGHT_ENDINGS = (".pth", ".pt", ".safetensors", ".ckpt")
ZIP_START = b"PK\x03\x04"


def stands_for(path: Path) -> str:
    """The end of a sentence about a file that something was put in place of, with the next step.

    Such as `is a Git LFS pointer ...; run git lfs pull`; empty where it is none. This holds for
    files of every kind, texts too.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return f"is empty; {AGAIN}"
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if text[:9].lower().startswith(WEB_PAGES):
        return (
            "is a web page (most often a quota, consent or login page) in place of the file; "
            "download it again by hand, and look at its size"
        )
    if text.startswith(b"version https://git-lfs.github.com"):
        return (
            "is a Git LFS pointer, which stands for the file; "
            "run git lfs pull where it was cloned, or download the file itself"
        )
    if b"/annex/objects/" in text and len(head) < HEAD_BYTES:
        return "is a git-annex pointer, which stands for the file; run git annex get on it"
    return ""


def refusal(path: Path, otherwise: str) -> str:
    """The sentence about a file that cannot be read: what stands for it, or `otherwise`."""
    stands = stands_for(path)
    return f"{path} {stands}" if stands else f"{path}: {otherwise}"


def what_it_is(path: Path) -> str:
    """As `stands_for`, of a file of weights, which may also be of any other format.

    Of whole zip archives `archive_is` knows more.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    return stands_for(path) or _binary(path, head) or _text(path, head)


def has_zip_end(path: Path) -> bool:
    """Whether a file has the end of a zip archive, broken or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def is_cut_off(path: Path) -> bool:
    """Whether a file begins as a zip archive but lacks the end of one."""
    with open(path, "rb") as file:
        return file.read(4) == ZIP_START and not has_zip_end(path)


def _text(path: Path, head: bytes) -> str:
    """What a short text is, such as a server's answer; empty for anything else."""
    line = head.lstrip().splitlines()[:1]
    with suppress(UnicodeDecodeError):
        text = b"".join(line)[:MAX_SHOWN].decode()
        if len(text) > 3 and text.isprintable() and path.stat().st_size < HEAD_BYTES:
            return f"is a text that begins with {text!r}; download it again by hand"
    return ""


def _binary(path: Path, head: bytes) -> str:
    """What a file of a known other format is; empty for anything else."""
    for start, name in COMPRESSED.items():
        if head.startswith(start):
            return f"is packed with {name}; unpack it and name what was in it"
    for start, name in OTHER_FORMATS.items():
        if head.startswith(start):
            return f"is {name}; name the file that was trained"
    if head[257:262] == b"ustar":
        return f"is a tar archive{_of(_members_of_tar(path))}; unpack it and name what was in it"
    # A message of protocol buffers: its version, then the name of the program that wrote it.
    if head[:1] == b"\x08" and head[2:3] == b"\x12" and head[4 : 4 + head[3]].isascii():
        return "is an ONNX model, which holds no feature bank; name the .pth file it came from"
    if is_cut_off(path) or (is_safetensors(path) and _lacks_bytes(path)):
        return f"is {CUT_OFF}"
    return ""


def _members_of_tar(path: Path) -> list[str]:
    names: list[str] = []
    with suppress(tarfile.TarError, OSError, EOFError, ValueError), tarfile.open(path) as archive:
        for member in archive:
            names += [member.name] if member.isfile() else []
            if len(names) == MAX_MEMBERS:
                break
    return names


def _of(names: list[str]) -> str:
    """What an archive holds, weights before anything else, in a few words."""
    weights = [name for name in names if name.lower().endswith(WEIGHT_ENDINGS)]
    shown = weights or names
    if not shown:
        return ""
    more = f" and {len(shown) - 1:,} more" if len(shown) > 1 else ""
    return f" of {shown[0][-MAX_SHOWN:]!r}{more}"


# ---- zip archives --------------------------------------------------------------------------------


def archive_is(path: Path) -> str:
    """As `what_it_is`, of a zip archive that is not a file of torch.save; empty for one that is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a broken directory may raise nearly anything
        return f"is broken, its list of contents cannot be read; {AGAIN}"
    # One folder holds all that torch.save writes.
    inner = {PurePosixPath(name).name for name in names if name.count("/") == 1}
    if "constants.pkl" in inner:
        return (
            "is a program of TorchScript, not weights; "
            "name the file that torch.save wrote of the trained network"
        )
    if "data.pkl" in inner:
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "is a file of NumPy arrays (npz); name the file that was trained"
    files = [name for name in names if not name.endswith("/")]
    return f"is a zip archive{_of(files)}; unpack it and name what was in it"


# ---- safetensors ---------------------------------------------------------------------------------


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, then the header."""
    with open(path, "rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and 2 <= length <= MAX_SAFETENSORS_HEADER


def _lacks_bytes(path: Path) -> bool:
    """Whether a file of safetensors ends before its header or a tensor does."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return True
        header = file.read(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key[:2] != "__"]
        return size < 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return False
