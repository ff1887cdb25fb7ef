"""Raw PASCAL3D+ (or its occluded twin) -> crops, annotations and lists of one set."""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.stages.prepare_images import PreparationOptions, prepare_images


def main() -> None:
    """Prepare the training set, the test set, or an occluded test set."""
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option("--raw", type=arguments.path, required=True, help="PASCAL3D+_release1.1")
    option("--out", type=arguments.path, required=True, help="folder of the prepared set")
    option("--split", choices=("train", "val"), required=True)
    option("--occluded", type=arguments.path, help="OccludedPASCAL3D; with --level")
    arguments.add_level(parser)
    option("--geometry", choices=("paper", "exact"), default="paper")
    option(
        "--parts",
        type=arguments.words,
        default=("imagenet",),
        help="of PASCAL3D+: imagenet, pascal or both",
    )
    option(
        "--record-rules",
        choices=("auto", "strict", "reference"),
        default="auto",
        help="see pascal3d.read_record",
    )
    arguments.add_overwrite(parser)
    arguments.add_workers(parser)
    arguments.add_categories(parser)
    prepare_images(PreparationOptions(**vars(parser.parse_args())))


if __name__ == "__main__":
    console.run_main(main)
