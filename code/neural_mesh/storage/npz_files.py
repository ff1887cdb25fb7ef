"""Arrays in npz files.

They are read without pickled objects, and written with the same bytes for the same content.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.storage.files import atomic_path
from neural_mesh.storage.foreign_files import CUT_OFF, is_cut_off, refusal

# Of a compressed file; an occluder mask of 12 megapixels has 2**24.
MAX_UNPACKED_BYTES = 2**28
MAX_HEADER_BYTES = 10_000  # of an array
SAVED_AT = (1980, 1, 1, 0, 0, 0)  # every member's time, so that equal content has equal bytes


class _PickledError(ValueError):
    """An array is no array but pickled objects."""


def load_npz(
    path: Path,
    required: Sequence[str],
    only: Sequence[str] | None = None,
    absent_if_pickled: Sequence[str] = (),
) -> dict[str, NDArray]:
    """All arrays of an npz file, or those named in `only`.

    absent_if_pickled: keys for which the reference pickles None; nothing is unpickled, they are
    left out. Raises ValueError, naming file and key, when it is broken, pickled, lacks a required
    one, or claims more than it holds (compressed members may grow to MAX_UNPACKED_BYTES).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    room = max(MAX_UNPACKED_BYTES, path.stat().st_size)
    key = ""
    arrays: dict[str, NDArray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if only is None or key in only:
                    room -= member.file_size
                    try:
                        arrays[key] = _read_member(archive, member, room)
                    except _PickledError:
                        if key not in absent_if_pickled:
                            raise
    except Exception as error:  # a broken archive may raise nearly anything
        at = f" at {key[:60]!r}" if key else ""
        reason = f"cannot be read as npz without pickled objects{at} ({str(error)[:200]})"
        if is_cut_off(path):
            reason = CUT_OFF
        raise ValueError(refusal(path, reason)) from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    return arrays


def names_in_npz(path: Path) -> set[str]:
    """The keys of an npz file, of which nothing else is read; empty where it is broken."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception:  # a broken archive may raise nearly anything
        return set()


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, room: int) -> NDArray:
    """One array, whose header is checked before anything is allocated for it."""
    if room < 0:
        raise ValueError(f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    content = archive.read(member)
    file = io.BytesIO(content)
    shape, by_columns, dtype = _read_header(file)
    if dtype.hasobject:
        raise _PickledError("pickled objects")
    needed = math.prod(shape) * max(dtype.itemsize, 1)
    if dtype.kind not in "biufUS" or min(shape, default=0) < 0 or needed > len(content):
        raise ValueError(f"claims {dtype} {shape}, which {len(content):,} bytes cannot hold")
    order = "F" if by_columns else "C"
    array = np.ndarray(shape, dtype, content, file.tell(), order=order).copy(order="K")
    _check_text(array)
    return array


def _read_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is stored by columns, and type of an array."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file, max_header_size=MAX_HEADER_BYTES)
    raise ValueError(f"npy version {version}")


def _check_text(array: NDArray) -> None:
    """ValueError when a text has characters that Python would stumble over later."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        code_points = np.dtype(f"{array.dtype.byteorder}u4")
        codes = np.ascontiguousarray(array).reshape(-1).view(code_points)
        if codes.max() > sys.maxunicode:
            raise ValueError("a text of characters that do not exist")


def load_numbers(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, float]:
    """Only these numbers of an annotation; ValueError, naming file and key, when one is none."""
    arrays = load_npz(path, required, only=(*required, *optional))
    for key, value in arrays.items():
        if value.shape or value.dtype.kind not in "biuf" or not np.isfinite(value):
            raise ValueError(f"{path}: {key} is {value.dtype} {value.shape}, not a number")
    return {key: value.item() for key, value in arrays.items()}


def save_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as npz, whole or not at all, with the same bytes for the same content."""
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for key, value in arrays.items():
            encoded = io.BytesIO()
            array = np.ascontiguousarray(value).reshape(np.shape(value))
            np.lib.format.write_array(encoded, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy", SAVED_AT), encoded.getvalue())
