"""MATLAB 5 files, checked before SciPy allocates what they claim. The door to SciPy."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, savemat

from neural_mesh.storage.files import write_bytes

MAX_MAT_BYTES = 64 * 2**20  # of an annotation, on disk and decompressed; real ones have some 10 kB
MAX_MAT_DEPTH = 16  # of records in records; the reader in SciPy would overflow the stack
MAX_BLANKS = 4096  # of a text without content

HEADER_BYTES = 128
DESCRIPTION_BYTES = 116  # of the header, a text

# Kinds of elements. SciPy has nothing for other kinds of data, and crashes.
INT8 = 1
INT32 = 5
UINT32 = 6
MATRIX = 14
COMPRESSED = 15
DATA_KINDS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)
TEXT_KINDS = (16, 17, 18)

# Classes of arrays.
CELL = 1
STRUCT = 2
CHAR = 4
SPARSE = 5
NUMBERS = range(6, 16)
OTHER_CLASSES = {
    3: "an object",
    16: "a function",
    17: "an object such as a string; save texts as char",
}

# How files of other kinds begin that people call .mat.
SAVE_AGAIN = "save it with -v7, or from Python with scipy.io.savemat"
OTHER_FILES = {
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file; {SAVE_AGAIN}",
    b"MATLAB 7.3 ": f"a MATLAB 7.3 file, which is HDF5; {SAVE_AGAIN}",
    b"version https://git-lfs": "a Git LFS pointer; run git lfs pull",
    b"PK\x03\x04": f"a zip archive, as NumPy's npz files are; {SAVE_AGAIN}",
    b"\x80": f"a pickle of Python; {SAVE_AGAIN}",
    b"<": "a web page or another text of tags; download it again",
    b"{": f"JSON; {SAVE_AGAIN}",
}


class Element(NamedTuple):
    """A piece of a file: what it is, and its bytes."""

    kind: int
    content: bytes


def read_mat(path: Path) -> dict[str, NDArray]:
    """The variables of a MATLAB 5 file.

    Raises ValueError where `check_mat` does, and nearly anything else where SciPy stumbles over
    what is left.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_MAT_BYTES:
        raise ValueError(f"{size:,} bytes, of an annotation at most {MAX_MAT_BYTES:,} are read")
    content = path.read_bytes()
    check_mat(content)
    return loadmat(io.BytesIO(content))


def structs_of(value: NDArray) -> list[np.void]:
    """The structs of a struct array, or of a cell array that holds some, in their order."""
    if value.dtype.names:
        return list(value.reshape(-1))
    if value.dtype != object:
        return []
    # Python's lists of dictionaries are saved as cells.
    cells = [cell for cell in value.reshape(-1) if isinstance(cell, np.ndarray)]
    return [struct for cell in cells for struct in structs_of(cell)]


def fields_of(struct: np.void) -> tuple[str, ...]:
    """The names of a struct's fields."""
    return struct.dtype.names or ()


def field_of(struct: np.void, name: str) -> NDArray:
    """A field of a struct, out of the cells that it may lie in alone.

    Raises ValueError when there is no such field.
    """
    value = np.asarray(struct[name])
    while value.dtype == object and value.size == 1 and isinstance(value.item(), np.ndarray):
        value = value.item()
    return value


def write_mat(path: Path, variables: Mapping[str, object], description: bytes) -> None:
    """Write variables as a MATLAB 5 file; the same ones give the same bytes.

    description: stands at its beginning, at most 116 bytes, in place of SciPy's, which has the date
    in it.
    """
    buffer = io.BytesIO()
    savemat(buffer, variables, oned_as="row")
    content = buffer.getvalue()[DESCRIPTION_BYTES:]
    write_bytes(path, description.ljust(DESCRIPTION_BYTES) + content)


def check_mat(content: bytes) -> None:
    """Check that a MATLAB 5 file is what it claims.

    Every element must fill exactly the place that it says it takes, arrays must hold as many items
    as their sizes say, and records may lie in records to MAX_MAT_DEPTH. Raises ValueError.
    """
    byte_order = content[126:128]
    if len(content) < HEADER_BYTES + 8 or byte_order not in (b"IM", b"MI"):
        raise ValueError(_other_kind(content))
    order = "<" if byte_order == b"IM" else ">"
    at = HEADER_BYTES
    room = MAX_MAT_BYTES
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        array = content[at + 8 : at + 8 + size]
        if len(array) != size or kind not in (COMPRESSED, MATRIX):
            raise ValueError(
                f"element of kind {kind} with {size} bytes at byte {at} of {len(content)}"
            )
        if kind == COMPRESSED:
            unpacked = zlib.decompressobj().decompress(array, room)
            room -= len(unpacked)
            if room <= 0:
                raise ValueError(f"decompresses to more than {MAX_MAT_BYTES:,} bytes")
            (kind, array), *rest = _elements(unpacked, order)
            if kind != MATRIX or rest:
                raise ValueError("a compressed element is not one array")
        _check_array(array, order, 0)
        at += 8 + size


def _other_kind(content: bytes) -> str:
    """What a file is that is no MATLAB 5 file, and what to do."""
    if not content:
        return "an empty file"
    for start, sentence in OTHER_FILES.items():
        if content.startswith(start):
            return sentence
    return f"not a MATLAB 5 file; {SAVE_AGAIN}"


def _elements(content: bytes, order: str) -> list[Element]:
    """The elements that follow each other and fill `content`. order: of bytes, as in `struct`."""
    elements = []
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start = at + 8
        step = 8 + size + -size % 8
        # A small element keeps up to four bytes in the tag itself, its size in the upper half.
        if kind >> 16:
            size = kind >> 16
            kind &= 0xFFFF
            start = at + 4
            step = 8
        if start + size > len(content) or (step == 8 and size > 4):
            raise ValueError(f"an element of {size} bytes does not fit where it stands")
        elements.append(Element(kind, content[start : start + size]))
        at += step
    return elements


def _check_array(content: bytes, order: str, depth: int) -> None:
    """Check an array and what it holds. depth: how many arrays it lies in."""
    # MATLAB writes empty arrays inside of records without any content.
    if not content:
        return
    if depth > MAX_MAT_DEPTH:
        raise ValueError(f"records in records, more than {MAX_MAT_DEPTH} deep")
    flags, sizes, name, *data = _elements(content, order)
    _check_kinds(flags, sizes, name)
    flag_bits = struct.unpack_from(f"{order}I", flags.content)[0]
    array_class = flag_bits & 0xFF
    is_complex = bool(flag_bits & 0x800)
    dimensions = struct.unpack(f"{order}{len(sizes.content) // 4}i", sizes.content)
    if not 2 <= len(dimensions) <= 8 or min(dimensions) < 0:
        raise ValueError(f"an array of size {dimensions}")
    items = math.prod(dimensions)
    if array_class == STRUCT:
        items *= _number_of_fields(data, order)
        data = data[2:]
    if array_class in (CELL, STRUCT):
        _check_members(data, items, order, depth)
    elif array_class == CHAR and _is_blank(data) and items <= MAX_BLANKS:
        return
    elif array_class == SPARSE:
        _check_sparse(data, dimensions, is_complex)
    elif array_class == CHAR or array_class in NUMBERS:
        text_kinds = TEXT_KINDS if array_class == CHAR else ()
        _check_values(data, items, is_complex, (*DATA_KINDS, *text_kinds))
    else:
        kind = OTHER_CLASSES.get(array_class, "nothing that is known")
        raise ValueError(f"an array of class {array_class}, {kind}")


def _check_kinds(flags: Element, sizes: Element, name: Element) -> None:
    """Check the three elements that every array begins with."""
    right_flags = flags.kind == UINT32 and len(flags.content) == 8
    right_sizes = sizes.kind in (INT32, UINT32)
    right_name = name.kind in (INT8, *TEXT_KINDS)
    if not (right_flags and right_sizes and right_name):
        raise ValueError("an array without flags, size and name")


def _number_of_fields(data: Sequence[Element], order: str) -> int:
    """How many fields a record has: the length of a name, then the names one after the other."""
    (length,) = struct.unpack(f"{order}i", data[0].content)
    names_bytes = len(data[1].content)
    kinds = [element.kind for element in data[:2]]
    if length <= 0 or names_bytes % length or kinds != [INT32, INT8]:
        raise ValueError("a record's field names are broken")
    return names_bytes // length


def _check_members(data: Sequence[Element], items: int, order: str, depth: int) -> None:
    """Check the arrays of a cell array or a record."""
    if len(data) != items or any(element.kind != MATRIX for element in data):
        raise ValueError(f"an array claims {items} items and has {len(data)}")
    for element in data:
        _check_array(element.content, order, depth + 1)


def _is_blank(data: Sequence[Element]) -> bool:
    """Whether a text is blank: MATLAB may leave its content out."""
    return [element.content for element in data] == [b""]


def _check_values(
    data: Sequence[Element], items: int, is_complex: bool, allowed: Sequence[int]
) -> None:
    """Check numbers or text: one element, two if complex, with a byte per item or more."""
    if any(element.kind not in allowed for element in data):
        raise ValueError(f"data of kinds {[element.kind for element in data]}")
    lengths = [len(element.content) for element in data]
    if len(lengths) != 1 + is_complex or any(items > length for length in lengths):
        raise ValueError(f"an array claims {items} items and has {sum(lengths)} bytes")


def _check_sparse(data: Sequence[Element], dimensions: Sequence[int], is_complex: bool) -> None:
    """Check a sparse matrix: rows, starts of columns, then values, of which no more are claimed."""
    if len(dimensions) != 2 or len(data) != 3 + is_complex:
        raise ValueError(f"a sparse array of size {dimensions} in {len(data)} pieces")
    rows, starts, *values = data
    allowed = all(value.kind in DATA_KINDS for value in values)
    if not allowed or (rows.kind, starts.kind) != (INT32, INT32):
        raise ValueError(f"data of kinds {[element.kind for element in data]}")
    if len(starts.content) != 4 * (dimensions[1] + 1):
        raise ValueError(f"a sparse array claims {dimensions[1]} columns")
