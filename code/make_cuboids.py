"""CAD models -> cuboid meshes: one per category (single) or one per CAD model (multi)."""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.settings import EXACT_MINIMUM_THICKNESS, MESH_DIMENSIONS, CuboidConfig
from neural_mesh.stages.make_cuboids import CuboidOptions, make_cuboids


def main() -> None:
    """Make the cuboids of all categories."""
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option(
        "--raw",
        type=arguments.path,
        required=True,
        help="PASCAL3D+_release1.1, with CAD/<category>/NN.off",
    )
    option("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    option(
        "--number-vertices",
        type=arguments.positive,
        default=CuboidConfig().number_vertices,
        help="that a cuboid aims at",
    )
    option(
        "--geometry",
        choices=("paper", "exact"),
        default="paper",
        help="decides what --minimum-thickness is by default",
    )
    option(
        "--minimum-thickness",
        type=arguments.fraction,
        help="of a side, as a share of the longest; "
        "0, the default of paper: flat axes collapse as in the reference; "
        f"{EXACT_MINIMUM_THICKNESS}: the default of exact",
    )
    arguments.add_cuboids(parser)
    arguments.add_overwrite(parser)
    arguments.add_categories(parser)
    make_cuboids(CuboidOptions(**vars(parser.parse_args())))


if __name__ == "__main__":
    console.run_main(main)
