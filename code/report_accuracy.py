"""Saved poses and annotations -> the accuracy table.

It is printed in the reference's format, and written as Markdown and CSV.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.settings import MESH_DIMENSIONS
from neural_mesh.stages.report_accuracy import report_accuracy
from neural_mesh.storage.layout import Experiment


def main() -> None:
    """Print and write the table of one occlusion level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=arguments.path, required=True, help="folder of the results")
    parser.add_argument(
        "--clean",
        type=arguments.path,
        required=True,
        help="clean test set, whose annotations are the truth",
    )
    parser.add_argument(
        "--prepared", type=arguments.path, help="the set that was solved, if not the clean one"
    )
    parser.add_argument(
        "--train",
        type=arguments.path,
        help="training set: adds the two baselines that know only its poses",
    )
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, default="single")
    arguments.add_level(parser)
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    args = parser.parse_args()
    report_accuracy(
        Experiment(args.exp, args.mesh_d, args.azimuths),
        args.categories,
        args.level,
        clean=args.clean,
        tested=args.prepared,
        train=args.train,
    )


if __name__ == "__main__":
    console.run_main(main)
