"""Prepared images and vertex annotations -> a backbone and a feature bank per category."""

from __future__ import annotations

import argparse

from neural_mesh.backbones import BACKBONE_CHOICES
from neural_mesh.data.augmentation import AUGMENTATIONS
from neural_mesh.data.decoded_crops import CACHES
from neural_mesh.machine import arguments, console
from neural_mesh.settings import MESH_DIMENSIONS, RECIPES, TrainConfig, with_recipe
from neural_mesh.stages.train import TrainFolders, TrainOptions, train


def parse() -> argparse.Namespace:
    """The arguments, checked one by one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    option = parser.add_argument
    option(
        "--raw", type=arguments.path, required=True, help="PASCAL3D+_release1.1, with the cuboids"
    )
    option(
        "--prepared", type=arguments.path, required=True, help="training set made by PrepareData.sh"
    )
    option("--save-dir", type=arguments.path, required=True, help="folder of the checkpoints")
    arguments.add_cuboids(parser)
    add_network(parser)
    add_training(parser)
    add_options(parser)
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    return parser.parse_args()


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add what is trained: network, banks and images."""
    default = TrainConfig()
    option = parser.add_argument
    option("--mesh-d", choices=MESH_DIMENSIONS, default=default.mesh_d, help="cuboids to train")
    option("--backbone", type=arguments.backbone, default=default.backbone, help=BACKBONE_CHOICES)
    option(
        "--pretrained",
        type=arguments.at_home,
        default=default.pretrained,
        help="imagenet, none or a state-dict file",
    )
    option(
        "--image-scale",
        type=float,
        choices=(1.0, 0.5),
        default=default.image_scale,
        help="of the crops",
    )
    option(
        "--recipe",
        choices=tuple(RECIPES),
        default=default.recipe,
        help="see docs/settings.md",
    )
    option(
        "--augment",
        type=arguments.recipe_or(arguments.words),
        help=f"any of {', '.join(AUGMENTATIONS)}; recipe: the recipe's own",
    )
    option(
        "--freeze", type=arguments.boolean, default=default.freeze, help="keep the pretrained trunk"
    )
    option(
        "--trunk-rate",
        type=arguments.not_negative,
        default=default.trunk_rate,
        help="learning rate of the pretrained trunk, as a share of the others'",
    )
    option(
        "--occluder-pictures",
        type=arguments.optional_path,
        help="folder of pictures to make occluders of in training",
    )
    option(
        "--num-clutter-image",
        type=arguments.recipe_or(arguments.positive),
        help="clutter features per image; recipe: the recipe's",
    )
    option(
        "--num-clutter-group",
        type=arguments.recipe_or(arguments.positive),
        help="images in the clutter bank; recipe: the recipe's",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add how it is trained."""
    default = TrainConfig()
    option = parser.add_argument
    option(
        "--batch-size",
        type=arguments.positive,
        default=default.batch_size,
        help="images per iteration",
    )
    option("--total-epochs", type=arguments.positive, default=default.total_epochs, help="epochs")
    option(
        "--learning-rate",
        type=arguments.not_negative,
        default=default.learning_rate,
        help="of Adam",
    )
    option(
        "--weight-clutter",
        type=arguments.not_negative,
        default=default.weight_clutter,
        help="of a clutter feature in the loss",
    )
    option(
        "--validate-every",
        type=arguments.count_or_none,
        default=default.validate_every,
        help="epochs; 0: never",
    )
    option(
        "--validation-share",
        type=float,
        default=default.validation_share,
        help="of the training images, held out",
    )
    option(
        "--sync-batchnorm",
        type=arguments.boolean,
        default=default.sync_batchnorm,
        help="with ddp on GPUs",
    )
    option("--seed", type=arguments.seed, default=default.seed, help="of everything random")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add how the work is done, which what is trained hardly depends on."""
    default = TrainOptions()
    option = parser.add_argument
    option("--gpus", default=default.gpus, help="all or indices; empty: CPU")
    option(
        "--parallel",
        choices=("dp", "ddp"),
        default=default.parallel,
        help="dp: DataParallel; ddp: one of torchrun's processes",
    )
    option(
        "--separate-bank",
        type=arguments.boolean,
        default=default.separate_bank,
        help="bank alone on the last GPU",
    )
    option(
        "--compile",
        type=arguments.boolean,
        default=default.compiled,
        help="torch.compile the network",
    )
    option("--workers", default=default.workers, help="decoding processes")
    option(
        "--image-cache",
        choices=CACHES,
        default=default.image_cache,
        help="where decoded crops are kept",
    )
    option(
        "--deterministic",
        type=arguments.boolean,
        default=default.deterministic,
        help="the same bits on the same GPU, slower; a CPU always does",
    )
    option(
        "--tensorboard",
        type=arguments.boolean,
        default=default.tensorboard,
        help="write scalars and pictures",
    )
    option(
        "--resume",
        type=arguments.boolean,
        default=default.resume,
        help="go on with an unfinished training",
    )
    option(
        "--overwrite",
        type=arguments.boolean,
        default=default.overwrite,
        help="train again where a checkpoint exists",
    )


def main() -> None:
    """Train category after category."""
    args = parse()
    config = TrainConfig(
        mesh_d=args.mesh_d,
        backbone=args.backbone,
        pretrained=args.pretrained,
        freeze=args.freeze,
        trunk_rate=args.trunk_rate,
        image_scale=args.image_scale,
        batch_size=args.batch_size,
        total_epochs=args.total_epochs,
        learning_rate=args.learning_rate,
        weight_clutter=args.weight_clutter,
        seed=args.seed,
        validate_every=args.validate_every,
        validation_share=args.validation_share,
        sync_batchnorm=args.sync_batchnorm,
    )
    # What is left to the recipe is None.
    chosen = {
        "augment": args.augment,
        "num_clutter_image": args.num_clutter_image,
        "num_clutter_group": args.num_clutter_group,
    }
    config = with_recipe(config, args.recipe, chosen)
    folders = TrainFolders(
        args.raw, args.prepared, args.save_dir, args.azimuths, args.cuboids, args.occluder_pictures
    )
    options = TrainOptions(
        gpus=args.gpus,
        parallel=args.parallel,
        separate_bank=args.separate_bank,
        compiled=args.compile,
        workers=args.workers,
        image_cache=args.image_cache,
        deterministic=args.deterministic,
        tensorboard=args.tensorboard,
        resume=args.resume,
        overwrite=args.overwrite,
    )
    train(config, args.categories, folders, options)


if __name__ == "__main__":
    console.run_main(main)
