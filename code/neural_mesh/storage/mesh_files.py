"""Meshes in files: the OFF format of PASCAL3D+'s CAD models and of the cuboids.

Comments, blank lines, polygons and counts that follow OFF at once are understood. A vertex or a
face may be followed on its line by colours, normals or texture coordinates, as in COFF, NOFF and
STOFF, which are not used. Numbers that are not a vertex or a face a line are read one after the
other; then nothing may follow them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.meshes import Mesh
from neural_mesh.storage.files import atomic_path, decode
from neural_mesh.storage.foreign_files import refusal

MAX_OFF_BYTES = 32 * 2**20  # the largest CAD model of PASCAL3D+ has some 9 MB
# Texture coordinates, colours, normals; the first count may follow without a space.
KEYWORD = re.compile(r"(?:ST)?C?N?OFF([0-9]*)", re.IGNORECASE)
OTHER_DIMENSIONS = re.compile(r"(?:ST)?C?N?(?:4n?|n)OFF")  # NOFF has normals, nOFF more axes


@dataclass(frozen=True)
class _OffFile:
    """What follows the counts of an OFF file: the words of each line."""

    path: Path
    n_vertices: int
    n_faces: int
    lines: Sequence[Sequence[str]]

    @cached_property
    def by_line(self) -> bool:
        """Whether each vertex and each face has lines of its own."""
        if len(self.lines) < self.n_vertices + self.n_faces:
            return False
        return all(len(line) >= 3 for line in self.lines[: self.n_vertices])

    def words(self) -> list[str]:
        """All words, one after the other."""
        return list(chain.from_iterable(self.lines))

    def require_numbers(self, at_least: int) -> None:
        """ValueError when there are fewer numbers than the counts say."""
        numbers = sum(map(len, self.lines))
        if at_least > numbers:
            raise ValueError(
                f"{self.path}: says {self.n_vertices} vertices and {self.n_faces} faces "
                f"but has only {numbers} numbers"
            )


def read_off(path: Path) -> Mesh:
    """Read a triangle mesh in OFF format; polygons are cut into fans.

    Raises ValueError, naming the file, when the file is not a mesh.
    """
    off = _open_off(Path(path))
    off.require_numbers(3 * off.n_vertices + 4 * off.n_faces)
    vertices = _vertices(off)
    corners = _corners_by_line(off) if off.by_line else _corners_in_a_row(off)
    exist = (corners >= 0) & (corners < off.n_vertices)
    are_whole = corners == np.floor(corners)
    if not (exist & are_whole).all():
        raise ValueError(f"{path}: a face names a vertex that does not exist")
    return Mesh(vertices, corners.astype(np.int32))


def read_off_vertices(path: Path) -> NDArray[np.float64]:
    """The vertices [V, 3] of an OFF file, whatever its faces are; ValueError as `read_off`."""
    return _vertices(_open_off(Path(path)))


def _open_off(path: Path) -> _OffFile:
    """The counts and the lines of an OFF file; ValueError when it has none."""
    size = path.stat().st_size
    if size > MAX_OFF_BYTES:
        raise ValueError(
            f"{path}: {size:,} bytes is too large for a mesh, at most {MAX_OFF_BYTES:,} are read"
        )
    # Comments may be in any encoding.
    text = decode(path.read_bytes(), errors="replace")
    lines = [line.split("#", 1)[0].split() for line in text.splitlines()]
    lines = [line for line in lines if line]
    first, *others = lines[0] if lines else [""]
    keyword = KEYWORD.fullmatch(first)
    if keyword is None or OTHER_DIMENSIONS.fullmatch(first) or others[:1] == ["BINARY"]:
        raise ValueError(refusal(path, _not_read(first, others)))
    merged = [keyword.group(1)] if keyword.group(1) else []
    # The counts are on a line of their own; each on a line, or everything on one, is read, too.
    counts = merged + others
    at = 1
    while at < len(lines) and (len(counts) < 2 or (len(counts) == 2 and len(lines[at]) == 1)):
        counts += lines[at]
        at += 1
    try:
        n_vertices, n_faces = int(counts[0]), int(counts[1])
    except (ValueError, IndexError):
        raise ValueError(f"{path}: the counts after OFF are not numbers") from None
    rest = [counts[3:]] if len(counts) > 3 else []  # the number of edges is not used
    off = _OffFile(path, n_vertices, n_faces, rest + lines[at:])
    off.require_numbers(3 * n_vertices)
    if n_vertices < 1 or n_faces < 0:
        raise ValueError(f"{path}: says {n_vertices} vertices and {n_faces} faces")
    return off


def _not_read(first: str, others: Sequence[str]) -> str:
    """What a file is that does not begin as the OFF files that are read."""
    if OTHER_DIMENSIONS.fullmatch(first):
        return f"vertices of other than three dimensions ({first}) are not read"
    if others[:1] == ["BINARY"]:
        return "a binary OFF file is not read; save it as text"
    return f"not an OFF file (its first word is {first[:20] or 'missing'!r})"


def _vertices(off: _OffFile) -> NDArray[np.float64]:
    """Positions [V, 3]."""
    if off.by_line:
        positions = [line[:3] for line in off.lines[: off.n_vertices]]
    else:
        positions = off.words()[: 3 * off.n_vertices]
    vertices = _floats(off, positions).reshape(off.n_vertices, 3)
    if not np.isfinite(vertices).all():
        raise ValueError(f"{off.path}: a vertex coordinate is not finite")
    return vertices


def _floats(off: _OffFile, words: Sequence[object]) -> NDArray[np.float64]:
    """Words, or rows of as many words, as numbers."""
    try:
        return np.array(words, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{off.path}: {error}") from None


def _corners_by_line(off: _OffFile) -> NDArray[np.float64]:
    """Triangles [F, 3] of lines `k a b c ...`, of which what follows k corners is not used."""
    rows = off.lines[off.n_vertices : off.n_vertices + off.n_faces]
    # Nearly all files hold triangles alone, which need no loop.
    if all(len(row) >= 4 and row[0] == "3" for row in rows):
        return _floats(off, [row[1:4] for row in rows]).reshape(-1, 3)
    triangles: list[NDArray[np.float64]] = []
    lines = iter(off.lines[off.n_vertices :])
    for number in range(off.n_faces):
        row = list(next(lines, ()))
        corners = _number_of_corners(off, row[:1], number)
        # Corners of a large polygon may go on on the next line.
        for line in lines if len(row) <= corners else ():
            row += line
            if len(row) > corners:
                break
        triangles += _fan(off, _floats(off, row[1 : 1 + corners]), corners, number)
    return np.array(triangles).reshape(-1, 3)


def _corners_in_a_row(off: _OffFile) -> NDArray[np.float64]:
    """Triangles [F, 3] of numbers `k a b c ... k a b c ...`."""
    words = off.words()[3 * off.n_vertices :]
    triangles: list[NDArray[np.float64]] = []
    at = 0
    for number in range(off.n_faces):
        corners = _number_of_corners(off, words[at : at + 1], number)
        named = _floats(off, words[at + 1 : at + 1 + corners])
        triangles += _fan(off, named, corners, number)
        at += 1 + corners
    if at < len(words):
        raise ValueError(
            f"{off.path}: {len(words) - at} numbers follow the last face; "
            "a face with colours needs a line of its own"
        )
    return np.array(triangles).reshape(-1, 3)


def _number_of_corners(off: _OffFile, words: Sequence[str], number: int) -> int:
    """The count at the beginning of a face; ValueError unless it is 3 or more."""
    (count,) = _floats(off, words) if words else (0.0,)
    if not 3 <= count <= MAX_OFF_BYTES:
        raise _broken_face(off, number)
    return int(count)


def _fan(
    off: _OffFile, named: NDArray[np.float64], corners: int, number: int
) -> list[NDArray[np.float64]]:
    """A polygon's triangles, each from its first corner on. named: the vertices that there are."""
    if len(named) < corners:
        raise _broken_face(off, number)
    return [np.array((named[0], *edge)) for edge in pairwise(named[1:])]


def _broken_face(off: _OffFile, number: int) -> ValueError:
    return ValueError(f"{off.path}: face {number} is cut off or has fewer than three corners")


def write_off(path: Path, mesh: Mesh) -> None:
    """Write a mesh as the reference does: 16 decimals, rows `3 a b c`."""
    lines = ["OFF", f"{len(mesh.vertices)} {len(mesh.faces)} 0"]
    lines += ["%.16f %.16f %.16f" % tuple(vertex) for vertex in mesh.vertices]
    lines += ["3 %d %d %d" % tuple(face) for face in mesh.faces]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
