"""Lists of the images whose azimuth lies in chosen bins, and of the others: unseen poses."""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.settings import MESH_DIMENSIONS
from neural_mesh.stages.select_azimuths import select_azimuths


def main() -> None:
    """Write the lists of all categories of one set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prepared",
        type=arguments.path,
        required=True,
        help="folder of a set with vertex annotations",
    )
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    arguments.add_level(parser)
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    args = parser.parse_args()
    select_azimuths(args.prepared, args.mesh_d, args.azimuths, args.categories, args.level)


if __name__ == "__main__":
    console.run_main(main)
