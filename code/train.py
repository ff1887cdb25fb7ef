"""Prepared images and vertex annotations -> a backbone and a feature bank per category."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import monotonic

import torch

from neural_mesh.data.augmentation import AUGMENTATIONS
from neural_mesh.data.dataset import TrainingImages
from neural_mesh.data.decoded_crops import CACHES, decoded_file, decoded_shape
from neural_mesh.geometry.meshes import same_meshes
from neural_mesh.machine import arguments, console
from neural_mesh.machine.devices import (
    Placement,
    compute_the_same_bits,
    decoding_workers,
    gpus_of,
    place,
    place_process,
)
from neural_mesh.machine.distributed import Group, process_group
from neural_mesh.machine.resources import require_disk, require_memory, require_shared_memory
from neural_mesh.network.backbone import BACKBONES, FeatureNet
from neural_mesh.settings import FIXED_RECIPE, MESH_DIMENSIONS, TrainConfig
from neural_mesh.solve.pose import resolve_renderer
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.files import lock, remove_parts
from neural_mesh.storage.layout import (
    Experiment,
    PreparedSet,
    RawPascal3D,
    checkpoint_path,
    numbered_meshes,
    read_list,
)
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.timings import record_seconds
from neural_mesh.training.trainer import Trainer, Validation, hold_out

BYTES_OF_A_BLOCK = 512  # of a file, as stat counts them
FILES_OF_WEIGHTS = 9  # weights, gradients and Adam's two moments of a state, twice while it is replaced, and a checkpoint


def not_negative(text: str) -> float:
    """argparse type of a finite number >= 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def seed(text: str) -> int:
    """argparse type of an integer >= 0 that all random generators take."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def in_order(augment: Sequence[str]) -> tuple[str, ...]:
    """AUGMENT in one order however it is written, since its order means nothing; unknown names stay, for TrainingImages to refuse."""
    return tuple(dict.fromkeys([*(name for name in AUGMENTATIONS if name in augment), *augment]))


def settings_of(args: argparse.Namespace, category: str) -> TrainConfig:
    """The configuration of one category."""
    config = TrainConfig(
        category=category,
        mesh_d=args.mesh_d,
        backbone=args.backbone,
        pretrained=args.pretrained,
        image_scale=args.image_scale,
        batch_size=args.batch_size,
        total_epochs=args.total_epochs,
        learning_rate=args.learning_rate,
        weight_clutter=args.weight_clutter,
        num_clutter_image=args.num_clutter_image,
        num_clutter_group=args.num_clutter_group,
        seed=args.seed,
        augment=in_order(args.augment),
        sync_batchnorm=args.sync_batchnorm,
        validate_every=args.validate_every,
        validation_share=args.validation_share,
    )
    if not config.validate_every:
        config = replace(
            config, validation_share=TrainConfig.validation_share
        )  # which then means nothing
    return replace(config, **FIXED_RECIPE) if args.recipe == "fixed" else config


def kept(args: argparse.Namespace, config: TrainConfig) -> bool:
    """Whether the category has been trained; ValueError when that was with other settings or data."""
    last = checkpoint_path(args.save_dir, "saved_model_%s_last.pth", config.category)
    if args.overwrite or not last.is_file():
        return False
    found, data = (
        load_checkpoint(last),
        PreparedSet(args.prepared, args.azimuths.pattern).fingerprint(config.category),
    )
    remedy = "set OVERWRITE=true to train again, or SAVED_NETWORK_PATH to another folder"
    if found.config != config or (data and found.data and found.data != data):
        raise ValueError(f"{last} was trained with other settings or on other data; {remedy}")
    folder = RawPascal3D(args.raw).cuboid_folder(args.mesh_d, config.category)
    if (
        found.meshes
        and folder.is_dir()
        and not same_meshes(found.meshes, [read_off(path) for path in numbered_meshes(folder)])
    ):
        raise ValueError(f"{last} was trained with other cuboids than those in {folder}; {remedy}")
    print(f"{config.category}: {last} exists, kept")
    return True


def image_names(prepared: PreparedSet, config: TrainConfig, meshes: int) -> list[list[str]]:
    """Training images of each mesh, from the lists; FileNotFoundError or ValueError when there is none."""
    paths = [prepared.mesh_list(config.mesh_d, config.category, i) for i in range(1, meshes + 1)]
    for path in paths:
        if not path.is_file():
            remedy = "run PrepareData.sh first" + (
                " with the same AZIMUTH_SELECTION" if prepared.azimuths else ""
            )
            raise FileNotFoundError(f"no list of training images: {path}; {remedy}")
    names = [read_list(path) for path in paths]
    if not any(names):
        raise ValueError(f"{config.category} has no training image in {prepared.root}")
    return names


def train_category(
    args: argparse.Namespace, category: str, placement: Placement, group: Group
) -> int:
    """Train one category unless its checkpoint is there; returns the number of training images."""
    alone = (
        lock(args.save_dir, f"train-{category}", f"the training of {category}")
        if group.first
        else nullcontext()
    )
    with alone:
        if group.first:
            remove_parts(args.save_dir, f"*_{category}[._]*")
        try:
            return _train_category(args, category, placement, group)
        except RuntimeError as error:  # outside a training step, which tells what batch fits
            if "out of memory" not in str(error):
                raise
            devices = dict.fromkeys(map(str, (*placement.network, placement.bank)))
            raise ValueError(
                f"training {category} does not fit into the memory of {' '.join(devices)}; "
                "stop what else uses it, set IMAGE_SCALE=0.5, or BACKBONE=resnet18fpn; finished work is kept"
            ) from error


def _train_category(
    args: argparse.Namespace, category: str, placement: Placement, group: Group
) -> int:
    config = settings_of(args, category)
    if group.from_first(group.first and kept(args, config)):
        return 0
    folder = console.require_folder(args.prepared, "training set", "run PrepareData.sh first")
    prepared = PreparedSet(folder, args.azimuths.pattern)
    meshes = [read_off(path) for path in RawPascal3D(args.raw).cuboids(args.mesh_d, category)]
    names, held = image_names(prepared, config, len(meshes)), None
    if config.validate_every:
        names, held = hold_out(names, config.validation_share, config.seed)
    workers = decoding_workers(args.workers, placement.network[0], group.local_size)
    if group.first:
        require_room(args, config, names, workers, group.local_size, prepared)
    datasets = [
        TrainingImages(
            prepared, group_names, mesh, config, shared=workers > 0, cache=args.image_cache
        )
        for group_names, mesh in zip(names, meshes, strict=True)
    ]
    images = sum(map(len, datasets))
    validation = (
        Validation(prepared, held, resolve_renderer("auto", placement.network[0])) if held else None
    )
    trainer = Trainer(
        config,
        meshes,
        datasets,
        placement,
        args.save_dir,
        workers,
        prepared.fingerprint(category),
        group,
        validation,
        args.tensorboard,
        args.compile,
    )
    started, resumed = monotonic(), args.resume and trainer.resume()
    epochs = config.total_epochs - trainer.epoch
    if group.first:
        held_out = f", {sum(map(len, held))} held out" if held else ""
        print(
            f"{category}: {console.count(images, 'image')}{held_out}, {console.count(len(meshes), 'cuboid')}; {placement.sentence}"
        )
        if resumed:
            print(f"{category}: going on after epoch {trainer.epoch}", flush=True)
    trainer.fit()
    if group.first:
        timing = Experiment(args.save_dir.parent, args.mesh_d, args.azimuths).timing(
            "train", category
        )
        record_seconds(timing, monotonic() - started, epochs, "epochs", resumed)
    return images


def require_room(
    args: argparse.Namespace,
    config: TrainConfig,
    names: Sequence[Sequence[str]],
    workers: int,
    processes: int,
    prepared: PreparedSet,
) -> None:
    """ValueError when the decoded crops do not fit into memory, or the files of a training not onto the disk.

    names: of each mesh. processes: trainings on this machine, each of which keeps all crops if that is in memory.
    """
    needed = sum(math.prod(decoded_shape(group, config)) for group in names)
    what, remedy = (
        f"keeping {sum(map(len, names)):,} decoded crops of {config.category}",
        "set IMAGE_CACHE=disk or IMAGE_SCALE=0.5",
    )
    if processes > 1 and args.image_cache == "memory":
        needed, what = needed * processes, f"{what} in each of {processes} processes"
    if args.image_cache == "disk":
        there = [
            path
            for path in (decoded_file(prepared, group, config) for group in names)
            if path.is_file()
        ]
        needed -= min(
            needed, sum(path.stat().st_blocks * BYTES_OF_A_BLOCK for path in there)
        )  # a file with holes takes less than its size
        require_disk(
            prepared.decoded(config.category), needed, what, "make space, or set IMAGE_CACHE=memory"
        )
    elif workers:
        require_shared_memory(needed, what, f"{remedy}, or WORKERS=0 to do without shared memory")
    else:
        require_memory(needed, what, remedy)
    with torch.device("meta"):
        weights = 4 * sum(
            parameter.numel() for parameter in FeatureNet(config.backbone).parameters()
        )
    require_disk(
        args.save_dir,
        FILES_OF_WEIGHTS * weights,
        f"training {config.category}",
        "make space, or set EXPROOT to another disk",
    )


def main() -> None:
    """Train category after category."""
    default = TrainConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--raw", type=Path, required=True, help="PASCAL3D+_release1.1, with the cuboids"
    )
    parser.add_argument(
        "--prepared", type=Path, required=True, help="training set made by PrepareData.sh"
    )
    parser.add_argument("--save-dir", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument(
        "--mesh-d", choices=MESH_DIMENSIONS, default=default.mesh_d, help="cuboids to train"
    )
    parser.add_argument("--backbone", choices=BACKBONES, default=default.backbone, help="network")
    parser.add_argument(
        "--pretrained", default=default.pretrained, help="imagenet, none or a state-dict file"
    )
    parser.add_argument(
        "--image-scale",
        type=float,
        choices=(1.0, 0.5),
        default=default.image_scale,
        help="of the crops",
    )
    parser.add_argument(
        "--recipe",
        choices=("paper", "fixed"),
        default=default.recipe,
        help="see settings.FIXED_RECIPE",
    )
    parser.add_argument(
        "--batch-size", type=arguments.positive, default=default.batch_size, help="images per iteration"
    )
    parser.add_argument(
        "--total-epochs", type=arguments.positive, default=default.total_epochs, help="epochs"
    )
    parser.add_argument(
        "--learning-rate", type=not_negative, default=default.learning_rate, help="of Adam"
    )
    parser.add_argument(
        "--weight-clutter",
        type=not_negative,
        default=default.weight_clutter,
        help="of a clutter feature in the loss",
    )
    parser.add_argument(
        "--num-clutter-image",
        type=arguments.positive,
        default=default.num_clutter_image,
        help="clutter features per image",
    )
    parser.add_argument(
        "--num-clutter-group",
        type=arguments.positive,
        default=default.num_clutter_group,
        help="images in the clutter bank",
    )
    parser.add_argument(
        "--parallel",
        choices=("dp", "ddp"),
        default="dp",
        help="dp: DataParallel; ddp: one of torchrun's processes",
    )
    parser.add_argument(
        "--sync-batchnorm",
        type=arguments.boolean,
        default=default.sync_batchnorm,
        help="with ddp on GPUs",
    )
    parser.add_argument(
        "--compile", type=arguments.boolean, default=False, help="torch.compile the network"
    )
    parser.add_argument(
        "--image-cache", choices=CACHES, default="memory", help="where decoded crops are kept"
    )
    parser.add_argument(
        "--validate-every",
        type=arguments.count_or_none,
        default=default.validate_every,
        help="epochs; 0: never",
    )
    parser.add_argument(
        "--validation-share",
        type=float,
        default=default.validation_share,
        help="of the training images, held out",
    )
    parser.add_argument(
        "--deterministic",
        type=arguments.boolean,
        default=False,
        help="the same bits on the same GPU, slower; a CPU always does",
    )
    parser.add_argument(
        "--tensorboard", type=arguments.boolean, default=True, help="write scalars and pictures"
    )
    parser.add_argument(
        "--separate-bank", type=arguments.boolean, default=False, help="bank alone on the last GPU"
    )
    parser.add_argument(
        "--augment", type=arguments.words, default=default.augment, help="any of flip, color, occlude"
    )
    parser.add_argument("--gpus", default="all", help="all or indices; empty: CPU")
    parser.add_argument("--workers", default="auto", help="decoding processes")
    parser.add_argument("--seed", type=seed, default=default.seed, help="of everything random")
    parser.add_argument(
        "--resume", type=arguments.boolean, default=True, help="go on with an unfinished training"
    )
    parser.add_argument(
        "--overwrite", type=arguments.boolean, default=False, help="train again where a checkpoint exists"
    )
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    args = parser.parse_args()
    gpus = gpus_of(args.gpus)
    if args.deterministic:
        compute_the_same_bits()
    else:
        torch.backends.cudnn.benchmark = True  # all crops of a category have one size, for which the fastest algorithms are sought
    with process_group(bool(gpus)) if args.parallel == "ddp" else nullcontext(Group()) as group:
        if args.parallel == "dp":
            placement = place(gpus, args.separate_bank)
        else:
            placement = place_process(gpus, group.local_rank, group.local_size, args.separate_bank)
            if gpus:
                torch.cuda.set_device(placement.network[0])
        images = [train_category(args, category, placement, group) for category in args.categories]
    if group.first:
        trained = sum(1 for n in images if n)
        print(
            f"{console.count(trained, 'category')} trained on {console.count(sum(images), 'image')}, "
            f"{len(images) - trained} kept; checkpoints in {args.save_dir}"
        )


if __name__ == "__main__":
    console.run_main(main)
