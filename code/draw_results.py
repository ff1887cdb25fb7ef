"""Saved poses, their images and the checkpoint -> one figure per chosen image, films, and a contact
sheet of all of them.

A figure shows the crop, the mesh in the predicted pose over it, which cells of the feature map are
background, object or occluded, and the loss along azimuth, elevation and theta around the
prediction; a film shows the same from the start pose to the final one. Four other drawings, each in
place of these:

  --landscape AROUND  mean and spread of the loss over a set, around the annotated poses (truth) or
                      the predicted ones
  --viewpoints        how annotated and predicted poses are distributed
  --poses FILE        the poses of any file over their images; needs no checkpoint
  --compare EXP       which images got better or worse than in another folder of results; needs no
                      checkpoint
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.pictures.selection import NUM_PICTURES, OVERLAYS, SELECTIONS, Choice
from neural_mesh.stages.draw_results import OtherDrawing, draw_results
from neural_mesh.stages.networks import TrainedNetworks


def parse() -> argparse.Namespace:
    """The arguments, checked one by one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option(
        "--clean",
        type=arguments.path,
        required=True,
        help="clean test set, whose annotations are the truth",
    )
    option(
        "--images",
        type=arguments.positive,
        help=f"images of each category (default {NUM_PICTURES}; --landscape: all)",
    )
    option(
        "--select",
        choices=SELECTIONS,
        default="spread",
        help="evenly over the errors (default), or these",
    )
    option(
        "--film",
        type=arguments.count_or_none,
        default=0,
        help="films of each category, of the images nearest to the median error (default 0)",
    )
    option(
        "--overlay",
        choices=OVERLAYS,
        default="cad",
        help="cad (default): the annotated one if --raw has it",
    )
    option("--seed", type=int, default=0, help="of --select random (default 0)")
    # Each of these takes the place of the result pictures, so there can be only one.
    other = parser.add_mutually_exclusive_group().add_argument
    other(
        "--landscape", choices=("truth", "prediction"), help="loss over a set, around these poses"
    )
    other("--viewpoints", action="store_true", help="distribution of the poses")
    other("--poses", type=arguments.path, help="npz or csv file of poses to draw")
    other("--compare", type=arguments.path, help="folder of the results to compare with")
    arguments.add_network(parser)
    return parser.parse_args()


def main() -> None:
    """Draw the chosen images and the contact sheet, or one of the other drawings."""
    args = parse()
    networks = arguments.into_dataclass(TrainedNetworks, args)
    choice = Choice(
        images=args.images,
        select=args.select,
        seed=args.seed,
        films=args.film,
        overlay=args.overlay,
    )
    other = OtherDrawing(
        landscape=args.landscape,
        viewpoints=args.viewpoints,
        poses=args.poses,
        compare=args.compare,
    )
    draw_results(networks, args.clean, choice, args.gpus, other)


if __name__ == "__main__":
    console.run_main(main)
