"""Checkpoints -> safetensors beside them, or back.

A file in that format cannot execute anything, and other tools read it.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.stages.export_checkpoint import export_checkpoints


def main() -> None:
    """Export checkpoint after checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    option = parser.add_argument
    option(
        "checkpoints",
        type=arguments.path,
        nargs="+",
        help="files to convert; the results lie beside",
    )
    option("--to", choices=("safetensors", "pth"), default="safetensors", help="format to write")
    option("--overwrite", type=arguments.boolean, default=False, help="write again what exists")
    option("--category", help="what they were trained on, for files that do not say it")
    args = parser.parse_args()
    export_checkpoints(args.checkpoints, args.to, args.overwrite, args.category)


if __name__ == "__main__":
    console.run_main(main)
