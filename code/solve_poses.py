"""Test images (or saved feature maps) and a checkpoint -> poses by render-and-compare."""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.choose_renderer import RENDERERS
from neural_mesh.solve.model import PRECISIONS
from neural_mesh.solve.shards import Shard
from neural_mesh.stages.networks import TrainedNetworks
from neural_mesh.stages.solve_poses import SolveOptions, solve_poses


def shard(text: str) -> Shard:
    """argparse type of i/n with 0 <= i < n."""
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse() -> argparse.Namespace:
    """The arguments, checked one by one."""
    default = SolveConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    option = parser.add_argument
    # How poses are found.
    option(
        "--solver", choices=("paper", "best"), default=default.solver, help="how poses are searched"
    )
    option(
        "--renderer",
        choices=("auto", *RENDERERS),
        default=default.renderer,
        help="what compares mesh and map",
    )
    option(
        "--subtype",
        choices=("annotated", "predicted"),
        default=default.subtype,
        help="of several cuboids: the annotated one, or all and the lowest loss wins",
    )
    option(
        "--total-epochs",
        type=arguments.positive,
        default=default.total_epochs,
        help="optimiser steps of an image",
    )
    option("--learning-rate", type=float, default=default.learning_rate, help="of the optimiser")
    option(
        "--six-d",
        type=arguments.boolean,
        default=default.six_d,
        help="also find where the object lies on the map",
    )
    option("--precision", choices=PRECISIONS, default=default.precision, help="of the backbone")
    option("--seed", type=int, default=default.seed, help="of everything random")
    # How the work is done.
    option("--batch-size", default="auto", help="images at a time; auto: 64 on a GPU, 8 on a CPU")
    option("--workers", default="auto", help="decoding processes")
    option(
        "--shard",
        type=shard,
        help="i/n: only every n-th batch; the last run without it merges; torchrun sets it",
    )
    option(
        "--from-features",
        type=arguments.boolean,
        default=False,
        help="read what extract_features.py saved",
    )
    arguments.add_network(parser)
    return parser.parse_args()


def main() -> None:
    """Find poses category after category."""
    args = parse()
    networks = arguments.into_dataclass(TrainedNetworks, args)
    config = SolveConfig(
        solver=args.solver,
        precision=args.precision,
        renderer=args.renderer,
        total_epochs=args.total_epochs,
        learning_rate=args.learning_rate,
        subtype=args.subtype,
        six_d=args.six_d,
        seed=args.seed,
    )
    options = arguments.into_dataclass(SolveOptions, args)
    solve_poses(networks, config, options)


if __name__ == "__main__":
    console.run_main(main)
