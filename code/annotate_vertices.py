"""Annotations and meshes -> where every vertex falls in the crop and whether it is seen.

Also the lists that training and inference read.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.settings import MESH_DIMENSIONS
from neural_mesh.stages.annotate_vertices import VertexOptions, annotate_vertices


def main() -> None:
    """Annotate a prepared set."""
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option(
        "--raw",
        type=arguments.path,
        required=True,
        help="PASCAL3D+_release1.1, with CAD_single and CAD_multi",
    )
    option("--prepared", type=arguments.path, required=True, help="folder of the prepared set")
    option("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    option(
        "--clean",
        type=arguments.path,
        help="the clean test set, when --prepared is the occluded one",
    )
    option("--level", type=arguments.level, default="", help="occlusion level; with --clean")
    option(
        "--occluded-visibility",
        choices=("clean", "subtract"),
        default="clean",
        help="clean: as if there were no occluder (reference); subtract: what it covers is hidden",
    )
    arguments.add_cuboids(parser)
    arguments.add_overwrite(parser)
    arguments.add_workers(parser)
    arguments.add_categories(parser)
    annotate_vertices(VertexOptions(**vars(parser.parse_args())))


if __name__ == "__main__":
    console.run_main(main)
