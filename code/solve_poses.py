"""Test images (or saved feature maps) and a checkpoint -> poses by render-and-compare."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

import torch

from neural_mesh.compare.rendering import RENDERERS, check_renderer
from neural_mesh.machine import arguments, console
from neural_mesh.machine.devices import decoding_workers, gpus_of, images_at_a_time
from neural_mesh.settings import SolveConfig, short_digest
from neural_mesh.solve.inference import (
    PRECISIONS,
    Run,
    load_model,
    names_by_mesh,
    resolve_precision,
)
from neural_mesh.solve.pose import resolve_renderer
from neural_mesh.storage.files import lock, remove_parts
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D, checkpoint_path
from neural_mesh.storage.records import load_features, load_seconds, record_seconds


def shard(text: str) -> tuple[int, int]:
    """argparse type of i/n with 0 <= i < n."""
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        i, n = 1, 0
    if not 0 <= i < n:
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with 0 <= i < n")
    return i, n


def shard_here(given: tuple[int, int] | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """The share of this process: as given, else its rank among the processes that torchrun started, else everything."""
    if given is not None:
        return given
    return shard(f"{environment.get('RANK', 0)}/{environment.get('WORLD_SIZE', 1)}")


def device_here(gpus: Sequence[int], environment: Mapping[str, str]) -> torch.device:
    """The GPU of this process, in turn where torchrun started several on a machine; without GPUs the CPU."""
    local = int(environment.get("LOCAL_RANK", 0))
    return torch.device("cuda", gpus[local % len(gpus)]) if gpus else torch.device("cpu")


def make_run(
    args: argparse.Namespace, category: str, config: SolveConfig, device: torch.device
) -> Run:
    """Everything that the poses of one category need, checked."""
    raw, experiment = RawPascal3D(args.raw), Experiment(args.exp, args.mesh_d, args.azimuths)
    path = checkpoint_path(
        args.save_dir or experiment.network_folder, args.load_file_name, category
    )
    model = load_model(
        path, category, raw.cuboid_folder(args.mesh_d, category), device, config.precision
    )
    remedy = "run PrepareData.sh first" + (" with ENABLE_OCCLUDED=true" if args.level else "")
    prepared = PreparedSet(
        console.require_folder(args.prepared, "test set", remedy), args.azimuths.test_pattern
    )
    names = names_by_mesh(
        prepared, args.mesh_d, category + args.level, len(model.checkpoint.memory), config.subtype
    )
    features = (
        load_features(experiment.features(category, args.level)) if args.from_features else None
    )
    if features is not None and features.config.get("checkpoint") != model.checkpoint.fingerprint:
        raise ValueError(
            f"{experiment.features(category, args.level)} is of another checkpoint than {path}; run extract_features.py again"
        )
    return Run(
        model,
        prepared,
        args.level,
        config,
        experiment.poses(category, args.level),
        names,
        args.batch_size,
        decoding_workers(args.workers, device),
        args.shard,
        features,
        device.type == "cuda",
    )


def solve_category(run: Run) -> tuple[int, int, int]:
    """Solve one category; returns (images solved, of them already there, images that failed)."""
    total = sum(len(names) for _, names in run.batches())
    if run.finished() is not None:
        return total, total, 0
    run.collect()
    before = len(run.rows)
    with console.progress_bar(f"{run.category}{run.level} poses", total) as bar:
        run.execute(bar.update)
    return len(run.rows), before, len(run.failures)


def solve_locked(
    args: argparse.Namespace, category: str, config: SolveConfig, device: torch.device
) -> tuple[int, int, int]:
    """Solve one category while no other run writes the poses of the same shard, and note how long it took."""
    experiment, started = Experiment(args.exp, args.mesh_d, args.azimuths), monotonic()
    target, (number, of) = experiment.poses(category, args.level), args.shard
    with lock(target.parent, f"{target.stem}.{number}-of-{of}", f"the poses of {target.stem}"):
        run = make_run(args, category, config, device)
        for name in (
            run.partial.name,
            *((target.name, target.with_suffix(".csv").name) if of == 1 else ()),
        ):
            remove_parts(target.parent, name)
        solved, before, failed = solve_category(run)
        alone, settings = (
            experiment.timing("solve_poses", target.stem),
            short_digest(console.as_json(run.settings).encode()),
        )
        if of == 1:
            forget_times(alone, settings, shares_too=not before)
        if solved > before:  # parallel runs of one category have a time each
            timing = alone.with_stem(f"{alone.stem}_share{number + 1}of{of}") if of > 1 else alone
            record_seconds(
                timing, monotonic() - started, solved - before, "images", before > 0, settings
            )
        return solved, before, failed


def forget_times(alone: Path, settings: str, shares_too: bool) -> None:
    """Delete the times of runs whose poses are no longer there: those of other settings and, if none was used, of shares."""
    for path in [alone, *alone.parent.glob(f"{alone.stem}_share*.json")]:
        noted = load_seconds(path).get("settings", "") if path.is_file() else ""
        if noted not in ("", settings) or (shares_too and path != alone):
            path.unlink()


def main() -> None:
    """Find poses category after category."""
    default = SolveConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--solver", choices=("paper", "best"), default=default.solver, help="how poses are searched"
    )
    parser.add_argument(
        "--renderer",
        choices=("auto", *RENDERERS),
        default=default.renderer,
        help="what compares mesh and map",
    )
    parser.add_argument(
        "--subtype",
        choices=("annotated", "predicted"),
        default=default.subtype,
        help="of several cuboids: the annotated one, or all and the lowest loss wins",
    )
    parser.add_argument(
        "--total-epochs",
        type=arguments.positive,
        default=default.total_epochs,
        help="optimiser steps of an image",
    )
    parser.add_argument(
        "--learning-rate", type=float, default=default.learning_rate, help="of the optimiser"
    )
    parser.add_argument(
        "--six-d",
        type=arguments.boolean,
        default=default.six_d,
        help="also find where the object lies on the map",
    )
    parser.add_argument(
        "--batch-size", default="auto", help="images at a time; auto: 64 on a GPU, 8 on a CPU"
    )
    parser.add_argument("--workers", default="auto", help="decoding processes")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default=default.precision, help="of the backbone"
    )
    parser.add_argument(
        "--shard",
        type=shard,
        help="i/n: only every n-th batch; the last run without it merges; torchrun sets it",
    )
    parser.add_argument(
        "--from-features",
        type=arguments.boolean,
        default=False,
        help="read what extract_features.py saved",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of everything random")
    arguments.add_network(parser)
    args = parser.parse_args()
    by_torchrun = args.shard is None
    args.shard = shard_here(args.shard, os.environ)
    device = device_here(gpus_of(args.gpus), os.environ)
    args.batch_size = images_at_a_time(args.batch_size, device)
    if args.renderer != "auto":
        check_renderer(args.renderer, device)
    config = SolveConfig(
        solver=args.solver,
        renderer=args.renderer,
        total_epochs=args.total_epochs,
        learning_rate=args.learning_rate,
        six_d=args.six_d,
        subtype=args.subtype,
        seed=args.seed,
        precision="float32"
        if args.from_features
        else resolve_precision(args.precision, args.solver, device),
    )
    counts = [solve_locked(args, category, config, device) for category in args.categories]
    solved, known, failed = (sum(column) for column in zip(*counts, strict=True))
    how = f" by {resolve_renderer(args.renderer, device)} on {device}" if solved > known else ""
    print(
        f"{args.level or 'clean'}: poses of {console.count(solved, 'image')} of {console.count(len(counts), 'category')} "
        f"({known:,} of them from earlier runs, {failed} failed){how}, "
        f"in {args.exp}/Poses_{args.mesh_d}{args.azimuths.result_suffix}"
    )
    if by_torchrun and args.shard[0] == 0 < args.shard[1] - 1:
        print(
            f"this was 1 share of {args.shard[1]}; when all are done, run ./InferenceNeMo.sh with the same settings to merge them"
        )


if __name__ == "__main__":
    console.run_main(main)
