"""Meshes in files: the OFF format of PASCAL3D+'s CAD models and of the cuboids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.meshes import Mesh
from neural_mesh.storage.files import atomic_path

MAX_OFF_BYTES = 32 * 2**20  # the largest CAD model of PASCAL3D+ has some 9 MB


def read_off(path: Path) -> Mesh:
    """Read a triangle mesh in OFF format (comments, blank lines, polygons and a merged first line are understood).

    Raises ValueError, naming the file and the line, when the file is not a mesh.
    """
    path = Path(path)
    if path.stat().st_size > MAX_OFF_BYTES:
        raise ValueError(
            f"{path}: {path.stat().st_size:,} bytes is too large for a mesh, at most {MAX_OFF_BYTES:,} are read"
        )
    tokens = " ".join(
        line.split("#", 1)[0] for line in path.read_text(errors="replace").splitlines()
    ).split()
    if not tokens or not tokens[0].upper().startswith("OFF"):
        raise ValueError(
            f"{path}: not an OFF file (its first word is {tokens[0][:20] if tokens else 'missing'!r})"
        )
    tokens = ([tokens[0][3:]] if len(tokens[0]) > 3 else []) + tokens[1:]
    try:
        n_vertices, n_faces = int(tokens[0]), int(tokens[1])
    except (ValueError, IndexError):
        raise ValueError(f"{path}: the counts after OFF are not numbers") from None
    values = tokens[3:]
    if n_vertices < 1 or n_faces < 0 or 3 * n_vertices + 4 * n_faces > len(values):
        raise ValueError(
            f"{path}: says {n_vertices} vertices and {n_faces} faces but has only {len(values)} numbers"
        )
    try:
        vertices = np.array(values[: 3 * n_vertices], dtype=np.float64).reshape(n_vertices, 3)
        rest = np.array(values[3 * n_vertices :], dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not np.isfinite(vertices).all():
        raise ValueError(f"{path}: a vertex coordinate is not finite")
    return Mesh(vertices, _triangles(rest, n_vertices, n_faces, path))


def _triangles(values: NDArray, n_vertices: int, n_faces: int, path: Path) -> NDArray[np.int32]:
    """Rows `k a b c ...` -> triangles [F, 3]; polygons become fans."""
    if n_faces == 0:
        return np.zeros((0, 3), np.int32)
    if len(values) >= 4 * n_faces and (values[: 4 * n_faces : 4] == 3).all():
        faces = values[: 4 * n_faces].reshape(n_faces, 4)[:, 1:]
    else:
        fans, at = [], 0
        for _ in range(n_faces):
            if at >= len(values) or not 3 <= values[at] <= len(values) - at - 1:
                raise ValueError(
                    f"{path}: face {len(fans)} is cut off or has fewer than three corners"
                )
            ring = values[at + 1 : at + 1 + int(values[at])]
            fans.extend((ring[0], ring[i], ring[i + 1]) for i in range(1, len(ring) - 1))
            at += 1 + int(values[at])
        faces = np.array(fans)
    if not ((faces >= 0) & (faces < n_vertices) & (faces == np.floor(faces))).all():
        raise ValueError(f"{path}: a face names a vertex that does not exist")
    return faces.astype(np.int32)


def write_off(path: Path, mesh: Mesh) -> None:
    """Write a mesh as the reference does: 16 decimals, rows `3 a b c`."""
    lines = ["OFF", f"{len(mesh.vertices)} {len(mesh.faces)} 0"]
    lines += ["%.16f %.16f %.16f" % tuple(v) for v in mesh.vertices]
    lines += ["3 %d %d %d" % tuple(f) for f in mesh.faces]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
