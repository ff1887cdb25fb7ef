"""Fetch what is missing of PASCAL3D+, its image subsets and the occluded test sets."""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.settings import DOWNLOADS, OCC_LEVELS
from neural_mesh.stages.download_data import download_data


def address_pair(text: str) -> tuple[str, str]:
    """argparse type of NAME=ADDRESS."""
    name, sign, address = text.partition("=")
    # A misspelt name would otherwise fetch from the usual address without a word.
    if not sign or name not in DOWNLOADS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=ADDRESS with a NAME of {', '.join(DOWNLOADS)}"
        )
    return name, address


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option("--raw", type=arguments.path, required=True, help="PASCAL3D+_release1.1")
    option("--occluded", type=arguments.path, help="OccludedPASCAL3D, if it is wanted")
    option("--levels", type=arguments.words, default=OCC_LEVELS, help="occlusion levels")
    option(
        "--address",
        type=address_pair,
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="fetch NAME (as in settings.DOWNLOADS) from another address",
    )
    arguments.add_categories(parser)
    args = parser.parse_args()
    download_data(args.raw, args.occluded, args.levels, args.categories, dict(args.address))


if __name__ == "__main__":
    console.run_main(main)
