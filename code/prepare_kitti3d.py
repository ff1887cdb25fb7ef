"""KITTI's 3D object data -> test sets of cars in the layout of PrepareData.sh.

One set per degree of occlusion.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.stages.prepare_kitti3d import KittiOptions, prepare_kitti3d


def main() -> None:
    """Prepare the three test sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    option = parser.add_argument
    option(
        "--kitti",
        type=arguments.path,
        required=True,
        help="KITTI's folder training, with label_2, image_2 and calib",
    )
    option(
        "--out",
        type=arguments.path,
        required=True,
        help="folder of the prepared sets, one folder per degree of occlusion",
    )
    option("--kind", default=KittiOptions.kind, help="class of KITTI")
    option(
        "--category",
        default=KittiOptions.category,
        help="category of the networks that it is tested with; it has the crop's size",
    )
    option(
        "--minimum-side",
        type=float,
        default=KittiOptions.minimum_side,
        help="of the box, in pixels; both sides must be longer",
    )
    option(
        "--maximum-truncation",
        type=float,
        default=KittiOptions.maximum_truncation,
        help="share outside the image; it must be smaller",
    )
    option(
        "--reference-distance",
        type=float,
        default=KittiOptions.reference_distance,
        help="metres at which a crop keeps the image's scale",
    )
    option(
        "--geometry",
        choices=("paper", "exact"),
        default=KittiOptions.geometry,
        help="as in PrepareData.sh",
    )
    arguments.add_workers(parser)
    # The options are called as the fields of the dataclass are.
    prepare_kitti3d(KittiOptions(**vars(parser.parse_args())))


if __name__ == "__main__":
    console.run_main(main)
