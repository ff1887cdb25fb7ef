"""Meshes in files: the OFF format of PASCAL3D+'s CAD models and of the cuboids."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.meshes import Mesh
from neural_mesh.storage.files import atomic_path

MAX_OFF_BYTES = 32 * 2**20  # the largest CAD model of PASCAL3D+ has some 9 MB


def read_off(path: Path) -> Mesh:
    """Read a triangle mesh in OFF format.

    Comments, blank lines, polygons and a merged first line are understood.
    Raises ValueError, naming the file and the line, when the file is not a mesh.
    """
    path = Path(path)
    words = _words(path)
    try:
        n_vertices, n_faces = int(words[0]), int(words[1])
    except (ValueError, IndexError):
        raise ValueError(f"{path}: the counts after OFF are not numbers") from None
    numbers = words[3:]  # the third word, the number of edges, is not used
    if n_vertices < 1 or n_faces < 0 or 3 * n_vertices + 4 * n_faces > len(numbers):
        raise ValueError(
            f"{path}: says {n_vertices} vertices and {n_faces} faces "
            f"but has only {len(numbers)} numbers"
        )
    try:
        vertices = np.array(numbers[: 3 * n_vertices], dtype=np.float64).reshape(n_vertices, 3)
        polygons = np.array(numbers[3 * n_vertices :], dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not np.isfinite(vertices).all():
        raise ValueError(f"{path}: a vertex coordinate is not finite")
    return Mesh(vertices, _triangles(path, polygons, n_vertices, n_faces))


def _words(path: Path) -> list[str]:
    """The words of an OFF file after OFF itself, without comments."""
    size = path.stat().st_size
    if size > MAX_OFF_BYTES:
        raise ValueError(
            f"{path}: {size:,} bytes is too large for a mesh, at most {MAX_OFF_BYTES:,} are read"
        )
    lines = path.read_text(errors="replace").splitlines()
    words = " ".join(line.split("#", 1)[0] for line in lines).split()
    first = words[0] if words else ""
    if not first.upper().startswith("OFF"):
        raise ValueError(f"{path}: not an OFF file (its first word is {first[:20] or 'missing'!r})")
    # The first count may follow OFF without a space.
    merged = [first[3:]] if len(first) > 3 else []
    return merged + words[1:]


def _triangles(path: Path, polygons: NDArray, n_vertices: int, n_faces: int) -> NDArray[np.int32]:
    """Rows `k a b c ...` -> triangles [F, 3]; polygons become fans."""
    if n_faces == 0:
        return np.zeros((0, 3), np.int32)
    # Nearly all files hold triangles alone, which need no loop.
    rows = polygons[: 4 * n_faces]
    if len(rows) == 4 * n_faces and (rows[::4] == 3).all():
        faces = rows.reshape(n_faces, 4)[:, 1:]
    else:
        faces = _fans(path, polygons, n_faces)
    exist = (faces >= 0) & (faces < n_vertices)
    are_whole = faces == np.floor(faces)
    if not (exist & are_whole).all():
        raise ValueError(f"{path}: a face names a vertex that does not exist")
    return faces.astype(np.int32)


def _fans(path: Path, polygons: NDArray, n_faces: int) -> NDArray:
    """Rows `k a b c ...` -> triangles [F, 3], each from its polygon's first corner on."""
    triangles: list[tuple[float, float, float]] = []
    at = 0
    for _ in range(n_faces):
        left = len(polygons) - at - 1  # numbers after the count of corners
        if left < 0 or not 3 <= polygons[at] <= left:
            raise ValueError(
                f"{path}: face {len(triangles)} is cut off or has fewer than three corners"
            )
        corners = int(polygons[at])
        first, *others = polygons[at + 1 : at + 1 + corners]
        triangles += [(first, *edge) for edge in pairwise(others)]
        at += 1 + corners
    return np.array(triangles)


def write_off(path: Path, mesh: Mesh) -> None:
    """Write a mesh as the reference does: 16 decimals, rows `3 a b c`."""
    lines = ["OFF", f"{len(mesh.vertices)} {len(mesh.faces)} 0"]
    lines += ["%.16f %.16f %.16f" % tuple(vertex) for vertex in mesh.vertices]
    lines += ["3 %d %d %d" % tuple(face) for face in mesh.faces]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
