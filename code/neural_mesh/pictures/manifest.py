"""The manifest beside the result pictures, pictures.json: what was drawn, and from what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neural_mesh.machine.console import as_json
from neural_mesh.storage.files import read_json, write_text

MANIFEST = "pictures.json"


@dataclass(frozen=True)
class Manifest:
    """The file names of the pictures that an earlier run drew.

    origin: digest of everything that the pictures depend on; None when nothing was drawn.
    """

    origin: str | None
    pictures: list[str]

    def is_complete(self, folder: Path) -> bool:
        """Whether all of the pictures are still in the folder."""
        return all((folder / name).is_file() for name in self.pictures)


def digest_of(choices: Iterable[object], poses: Sequence[Path]) -> str:
    """Digest what pictures depend on.

    That is the choices of the command line, and the files of poses, which name their checkpoint.
    """
    digest = hashlib.sha256("".join(f"{choice};" for choice in choices).encode())
    for path in poses:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read what an earlier run drew into a folder."""
    # A broken manifest counts as a missing one, so that everything is drawn again.
    path = folder / MANIFEST
    try:
        content = read_json(path) if path.is_file() else {}
    except ValueError:
        content = {}
    pictures = content.get("pictures")
    if not isinstance(pictures, list):
        return Manifest(None, [])
    return Manifest(content.get("of"), pictures)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write down what was drawn into a folder."""
    content = {"of": manifest.origin, "pictures": manifest.pictures}
    write_text(folder / MANIFEST, as_json(content))
