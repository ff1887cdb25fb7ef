"""A small PASCAL3D+ and OccludedPASCAL3D of procedural cars and chairs, in the authentic raw
layout.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.machine.workers import worker_count
from neural_mesh.sample.planned_pictures import OCCLUDED_FOLDER, RAW_FOLDER
from neural_mesh.stages.make_sample_data import SampleOptions, make_sample_data


def parse() -> argparse.Namespace:
    """The arguments, checked one by one."""
    default = SampleOptions()
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option(
        "--out",
        type=arguments.path,
        required=True,
        help=f"folder to put {RAW_FOLDER} and {OCCLUDED_FOLDER} in",
    )
    option(
        "--categories",
        type=arguments.words,
        default=default.categories,
        help="names, separated by spaces",
    )
    option(
        "--train-images",
        type=arguments.positive,
        default=default.train_images,
        help="training pictures per category",
    )
    option(
        "--val-images",
        type=arguments.positive,
        default=default.val_images,
        help="test pictures per category",
    )
    option("--seed", type=int, default=default.seed, help="the same seed gives the same bytes")
    option(
        "--image-width",
        type=arguments.positive,
        default=default.image_width,
        help="longer side of a picture in pixels",
    )
    arguments.add_workers(parser)
    option(
        "--overwrite",
        type=arguments.boolean,
        default=False,
        help="throw away the sample set that --out holds",
    )
    return parser.parse_args()


def main() -> None:
    """Make the set."""
    args = parse()
    options = SampleOptions(
        args.categories, args.train_images, args.val_images, args.seed, args.image_width
    )
    # The number of processes is no option of the set, which is the same for any.
    make_sample_data(args.out, options, worker_count(args.workers), args.overwrite)


if __name__ == "__main__":
    console.run_main(main)
