"""Prepared images and vertex annotations -> a backbone and a feature bank per category."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from nemo import cli
from nemo.backbone import BACKBONES
from nemo.checkpoints import load_checkpoint
from nemo.dataset import TrainingImages
from nemo.devices import decoding_workers, gpus_of, place
from nemo.layout import PreparedSet, RawPascal3D, checkpoint_path, read_list
from nemo.meshes import read_off
from nemo.settings import FIXED_RECIPE, MESH_DIMENSIONS, TrainConfig
from nemo.training import Trainer


def settings_of(args: argparse.Namespace, category: str) -> TrainConfig:
    """The configuration of one category."""
    config = TrainConfig(
        category=category, mesh_d=args.mesh_d, backbone=args.backbone, pretrained=args.pretrained,
        image_scale=args.image_scale, batch_size=args.batch_size, total_epochs=args.total_epochs,
        learning_rate=args.learning_rate, weight_clutter=args.weight_clutter, num_clutter_image=args.num_clutter_image,
        num_clutter_group=args.num_clutter_group, seed=args.seed, augment=args.augment,
    )  # fmt: skip
    return replace(config, **FIXED_RECIPE) if args.recipe == "fixed" else config


def train_category(args: argparse.Namespace, category: str) -> int:
    """Train one category unless its checkpoint is there; returns the number of training images."""
    config = settings_of(args, category)
    last = checkpoint_path(args.save_dir, "saved_model_%s_last.pth", category)
    if last.is_file() and not args.overwrite:
        kept, data = load_checkpoint(last), PreparedSet(args.prepared).fingerprint(category)
        if kept.config != config or (data and kept.data and kept.data != data):
            raise ValueError(
                f"{last} was trained with other settings or on other data; set OVERWRITE=true to train again, "
                "or SAVED_NETWORK_PATH to another folder"
            )
        print(f"{category}: {last} exists, kept")
        return 0
    prepared = PreparedSet(cli.require_folder(args.prepared, "training set", "run PrepareData.sh first"))
    meshes = [read_off(path) for path in RawPascal3D(args.raw).cuboids(args.mesh_d, category)]
    placement = place(gpus_of(args.gpus), args.separate_bank)
    workers = decoding_workers(args.workers, placement.network[0])
    datasets = []
    for i, mesh in enumerate(meshes, start=1):
        list_path = prepared.mesh_list(args.mesh_d, category, i)
        if not list_path.is_file():
            raise FileNotFoundError(f"no list of training images: {list_path}; run PrepareData.sh first")
        datasets.append(TrainingImages(prepared, read_list(list_path), mesh, config, shared=workers > 0))
    images = sum(map(len, datasets))
    if not images:
        raise ValueError(f"{category} has no training image in {prepared.root}")
    print(f"{category}: {cli.count(images, 'image')}, {cli.count(len(meshes), 'cuboid')}; {placement.sentence}", flush=True)
    trainer = Trainer(config, meshes, datasets, placement, args.save_dir, workers, prepared.fingerprint(category))
    if args.resume and trainer.resume():
        print(f"{category}: going on after epoch {trainer.epoch}", flush=True)
    trainer.fit()
    return images


def main() -> None:
    """Train category after category."""
    default = TrainConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1, with the cuboids")
    parser.add_argument("--prepared", type=Path, required=True, help="training set made by PrepareData.sh")
    parser.add_argument("--save-dir", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, default=default.mesh_d, help="cuboids to train")
    parser.add_argument("--backbone", choices=BACKBONES, default=default.backbone, help="network")
    parser.add_argument("--pretrained", default=default.pretrained, help="imagenet, none or a state-dict file")
    parser.add_argument("--image-scale", type=float, choices=(1.0, 0.5), default=default.image_scale, help="of the crops")
    parser.add_argument("--recipe", choices=("paper", "fixed"), default=default.recipe, help="see settings.FIXED_RECIPE")
    parser.add_argument("--batch-size", type=cli.positive, default=default.batch_size, help="images per iteration")
    parser.add_argument("--total-epochs", type=cli.positive, default=default.total_epochs, help="epochs")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate, help="of Adam")
    parser.add_argument("--weight-clutter", type=float, default=default.weight_clutter, help="of a clutter feature in the loss")
    parser.add_argument("--num-clutter-image", type=cli.positive, default=default.num_clutter_image, help="clutter features per image")
    parser.add_argument("--num-clutter-group", type=cli.positive, default=default.num_clutter_group, help="images in the clutter bank")
    parser.add_argument("--separate-bank", type=cli.boolean, default=False, help="bank alone on the last GPU")
    parser.add_argument("--augment", type=cli.words, default=default.augment, help="any of flip, color, occlude")
    parser.add_argument("--gpus", default="all", help="all or indices; empty: CPU")
    parser.add_argument("--workers", default="auto", help="decoding processes")
    parser.add_argument("--seed", type=int, default=default.seed, help="of everything random")
    parser.add_argument("--resume", type=cli.boolean, default=True, help="go on with an unfinished training")
    parser.add_argument("--overwrite", type=cli.boolean, default=False, help="train again where a checkpoint exists")
    cli.add_categories(parser)
    args = parser.parse_args()
    images = [train_category(args, category) for category in args.categories]
    trained = sum(1 for n in images if n)
    print(f"{cli.count(trained, 'category')} trained on {cli.count(sum(images), 'image')}, "
          f"{len(images) - trained} kept; checkpoints in {args.save_dir}")  # fmt: skip


if __name__ == "__main__":
    cli.run_main(main)
