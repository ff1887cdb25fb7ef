"""A checkpoint and anybody's photographs -> poses, a confidence for each,
and pictures of the mesh over the photograph.

  python code/predict.py --checkpoint saved_model_car_last.pth photo.jpg --box 40 60 580 330
  python code/predict.py --checkpoint saved_model_car_last.pth folder --boxes boxes.csv --film
  python code/predict.py --checkpoint saved_model_car_last.pth --calibrate data/PASCAL3D_train_NeMo
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from neural_mesh.machine import arguments, console
from neural_mesh.photographs.calibration_images import CalibrationOptions
from neural_mesh.photographs.results import REFERENCE
from neural_mesh.settings import PhotographConfig, SolveConfig
from neural_mesh.solve.choose_renderer import RENDERERS
from neural_mesh.stages.predict import FinderOptions, PredictOptions, calibrate, predict

DEFAULT = PhotographConfig()


def add_photographs(parser: argparse.ArgumentParser) -> None:
    """Add what is looked at, and by which network."""
    option = parser.add_argument
    option(
        "photos",
        nargs="*",
        type=arguments.path,
        help="pictures, or folders of them (with all below)",
    )
    option(
        "--checkpoint",
        type=arguments.path,
        required=True,
        help="what TrainNeMo.sh saved, or the authors' file",
    )
    option(
        "--category",
        help="stop if the checkpoint is of another one; needed where it does not say what it is of",
    )
    option(
        "--meshes",
        type=arguments.path,
        help="folder of its cuboids, for a checkpoint of the reference, which has none in it",
    )
    option(
        "--box",
        type=float,
        nargs=4,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="where the object is, in pixels of the upright picture",
    )
    option(
        "--boxes",
        type=arguments.path,
        help="table (file,x0,y0,x1,y1; also with semicolons or tabs) or json "
        "({file: box or boxes}); others: the whole picture",
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add what is written, and where."""
    option = parser.add_argument
    option(
        "--out",
        type=arguments.path,
        default=Path("predictions"),
        help="folder of the results (default: predictions)",
    )
    option(
        "--overlays",
        type=arguments.boolean,
        default=True,
        help="pictures of the mesh over the photograph (default: true)",
    )
    option("--film", action="store_true", help="also an animated GIF of each search")
    option(
        "--draw-mesh",
        type=arguments.path,
        help="an .off file to draw in place of the cuboid, such as a CAD model",
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add how poses are searched, and on what."""
    option = parser.add_argument
    option(
        "--solver",
        choices=("paper", "best"),
        help=f"how poses are searched (default: {DEFAULT.solver}; --unlabelled: paper)",
    )
    option(
        "--renderer",
        choices=("auto", *RENDERERS),
        default=SolveConfig.renderer,
        help="what compares mesh and map (default: auto)",
    )
    option(
        "--gpus", default="all", help="all or indices, the first is used; empty: CPU (default: all)"
    )
    option(
        "--batch-size",
        type=arguments.positive,
        default=PredictOptions.batch_size,
        help="photographs at a time (default: 8)",
    )
    option(
        "--overwrite",
        type=arguments.boolean,
        default=False,
        help="begin again where --out holds results (default: false)",
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add what makes confidences."""
    option = parser.add_argument
    option(
        "--confidence",
        type=arguments.path,
        help="calibration file (default: <checkpoint>.confidence.json)",
    )
    option(
        "--calibrate",
        type=arguments.path,
        metavar="PREPARED",
        help="make the calibration from a prepared set, and stop",
    )
    option(
        "--calibration-images",
        type=arguments.positive,
        default=CalibrationOptions.images,
        help="images for it, drawn by the seed (default: 400)",
    )
    option(
        "--calibration-patches",
        choices=("auto", "true", "false"),
        default=CalibrationOptions.patches,
        help="disturb its images and cover parts; auto: unless surely not trained on "
        "(default: auto)",
    )
    option(
        "--seed",
        type=int,
        default=CalibrationOptions.seed,
        help="of everything random (default: 0)",
    )


def add_unlabelled(parser: argparse.ArgumentParser) -> None:
    """Add the reference's route for pictures without boxes."""
    option = parser.add_argument
    option(
        "--unlabelled",
        action="store_true",
        help="the reference's route for pictures without boxes; "
        f"also writes {REFERENCE} with its keys",
    )
    option(
        "--tar-horizontal-size",
        type=float,
        default=DEFAULT.reference_width,
        help="of --unlabelled: width that pictures are resized to, pixels (default: %(default)g)",
    )
    option(
        "--vertical-shift",
        type=float,
        default=DEFAULT.reference_shift,
        help="of --unlabelled: crop so far below their middle, pixels (default: %(default)g)",
    )


def parse() -> argparse.Namespace:
    """The arguments; ValueError where they do not go together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_photographs(parser)
    add_results(parser)
    add_search(parser)
    add_calibration(parser)
    add_unlabelled(parser)
    args = parser.parse_args()
    # What argparse cannot say: a calibration needs no photographs, all else does.
    if not args.calibrate and not args.photos:
        raise ValueError("name photographs, or a folder of them")
    # With both, it would be open which of them holds for the photograph.
    if args.box is not None and args.boxes:
        raise ValueError("--box and --boxes exclude each other")
    return args


def network_of(args: argparse.Namespace) -> FinderOptions:
    """Which network finds poses, and how."""
    # The reference's route is the paper's in all, unless the user wants another solver.
    solver = "paper" if args.unlabelled else DEFAULT.solver
    config = replace(
        DEFAULT,
        solver=args.solver or solver,
        reference_width=args.tar_horizontal_size,
        reference_shift=args.vertical_shift,
    )
    return FinderOptions(
        checkpoint=args.checkpoint,
        category=args.category,
        meshes=args.meshes,
        gpus=args.gpus,
        renderer=args.renderer,
        calibration=args.confidence,
        config=config,
    )


def main() -> None:
    """Predict, or calibrate."""
    args = parse()
    network = network_of(args)
    if args.calibrate:
        options = CalibrationOptions(
            args.calibration_images, args.calibration_patches, args.seed, args.batch_size
        )
        calibrate(network, args.calibrate, options)
        return
    options = PredictOptions(
        box=args.box,
        boxes=args.boxes,
        unlabelled=args.unlabelled,
        overlays=args.overlays,
        film=args.film,
        draw_mesh=args.draw_mesh,
        overwrite=args.overwrite,
        batch_size=args.batch_size,
    )
    predict(network, args.photos, args.out, options)


if __name__ == "__main__":
    console.run_main(main)
