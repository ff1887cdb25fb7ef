"""Checkpoints -> safetensors beside them, or back: a format that cannot execute anything and that other tools read."""

from __future__ import annotations

import argparse
from pathlib import Path

from neural_mesh.machine import arguments, console
from neural_mesh.storage.checkpoints import export_checkpoint, load_checkpoint, save_checkpoint


def export(path: Path, suffix: str, overwrite: bool) -> bool:
    """Write one checkpoint in the other format; False when it has been."""
    target = path.with_suffix(suffix)
    if target == path:
        raise ValueError(f"{path} has that format already")
    if target.is_file() and not overwrite:
        return False
    checkpoint = load_checkpoint(path)
    if suffix == ".safetensors":
        export_checkpoint(target, checkpoint)
    else:
        save_checkpoint(target, checkpoint)
    return True


def main() -> None:
    """Export checkpoint after checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", help="files to convert; the results lie beside them"
    )
    parser.add_argument(
        "--to", choices=("safetensors", "pth"), default="safetensors", help="format to write"
    )
    parser.add_argument(
        "--overwrite", type=arguments.boolean, default=False, help="write again what exists"
    )
    args = parser.parse_args()
    written = [export(path, f".{args.to}", args.overwrite) for path in args.checkpoints]
    print(
        f"{console.count(sum(written), 'checkpoint')} written as {args.to}, {len(written) - sum(written)} kept"
    )


if __name__ == "__main__":
    console.run_main(main)
