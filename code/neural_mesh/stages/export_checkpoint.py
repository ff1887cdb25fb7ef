"""Checkpoints -> safetensors beside them, or back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neural_mesh.machine import console
from neural_mesh.storage.checkpoints import export_checkpoint, load_checkpoint, save_checkpoint


def export_checkpoints(
    paths: Sequence[Path],
    file_format: str,
    overwrite: bool = False,
    category: str | None = None,
) -> None:
    """Write checkpoint after checkpoint in another format, and say how many.

    file_format: `safetensors` or `pth`. category: of files that do not say theirs. Raises
    ValueError for a file that has that format already, and as `load_checkpoint`.
    """
    suffix = f".{file_format}"
    written = [_export(path, suffix, overwrite, category) for path in paths]
    print(
        f"{console.count(sum(written), 'checkpoint')} written as {file_format}, "
        f"{len(written) - sum(written)} kept"
    )


def _export(path: Path, suffix: str, overwrite: bool, category: str | None) -> bool:
    """Write one checkpoint in the other format; False when it has been."""
    target = path.with_suffix(suffix)
    if target == path:
        raise ValueError(f"{path} has that format already")
    if target.is_file() and not overwrite:
        return False
    write = export_checkpoint if suffix == ".safetensors" else save_checkpoint
    write(target, load_checkpoint(path, category))
    return True
