"""An occluded twin of the test images of any set in PASCAL3D+'s raw layout, or of any set that
PrepareData.sh made.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.settings import OCC_LEVELS
from neural_mesh.stages.make_occluded import OcclusionOptions, make_occluded


def main() -> None:
    """Occlude the test images of all categories to all levels."""
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option(
        "--raw",
        type=arguments.path,
        required=True,
        help="PASCAL3D+_release1.1, or a set in its layout",
    )
    option(
        "--prepared",
        type=arguments.path,
        help="occlude the crops of this prepared set; --raw then gives the CAD models",
    )
    option(
        "--out",
        type=arguments.path,
        required=True,
        help="folder of the occluded set "
        "(PATH_OCCLUDED_PASCAL3DP; --prepared: PATH_CACHE_TESTING_SET_OCC)",
    )
    option(
        "--levels",
        type=arguments.words,
        default=OCC_LEVELS,
        help="any of FGL1_BGL1 .. FGL3_BGL3",
    )
    option(
        "--occluders",
        type=arguments.path,
        help="folder of cut-out pictures (PNG with alpha); without it they are procedural",
    )
    option(
        "--record-rules",
        choices=("auto", "strict", "reference"),
        default="auto",
        help="as in prepare_images.py",
    )
    option("--seed", type=int, default=0, help="the same seed gives the same pictures")
    arguments.add_workers(parser)
    arguments.add_categories(parser)
    # The options are called as the fields of the dataclass are.
    make_occluded(OcclusionOptions(**vars(parser.parse_args())))


if __name__ == "__main__":
    console.run_main(main)
