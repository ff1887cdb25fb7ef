"""Short digests, by which settings, lists, results and files are recognised."""

from __future__ import annotations

import hashlib
from pathlib import Path

HEX_DIGITS = 16


def short_digest(content: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a content."""
    return hashlib.sha256(content).hexdigest()[:HEX_DIGITS]


def short_file_digest(path: Path) -> str:
    """The `short_digest` of a file's content, which is read block by block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:HEX_DIGITS]
