"""Test images (or saved feature maps) and a checkpoint -> poses by render-and-compare."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import torch

from neural_mesh.digests import short_digest
from neural_mesh.machine import console
from neural_mesh.machine.devices import decoding_workers, gpus_of, images_at_a_time
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.batches import PreparedSubset, names_by_mesh
from neural_mesh.solve.choose_renderer import check_renderer, choose_renderer
from neural_mesh.solve.model import Model, resolve_precision
from neural_mesh.solve.run import Run, RunOptions
from neural_mesh.solve.shards import Shard, ShardPoses
from neural_mesh.stages.networks import TrainedNetworks
from neural_mesh.storage.files import lock, remove_parts
from neural_mesh.storage.results import FeatureSet, load_features
from neural_mesh.storage.timings import load_seconds, record_seconds


@dataclass(frozen=True)
class SolveOptions:
    """How the work is done; the poses hardly depend on it.

    gpus, batch_size, workers: as the user sets them, see `machine.devices`. shard: None for what
    torchrun says. from_features: read what extract_features.py saved.
    """

    gpus: str = "all"
    batch_size: str = "auto"
    workers: str = "auto"
    shard: Shard | None = None
    from_features: bool = False


class SolvedCount(NamedTuple):
    """Images of a category with a pose, those among them that had one before, and failures."""

    solved: int
    before: int
    failed: int


def solve_poses(networks: TrainedNetworks, config: SolveConfig, options: SolveOptions) -> None:
    """Find poses category after category, and say how many.

    config: the solver's settings; auto stands for the precision that fits the device.
    """
    # Where, and which part of the work?
    shard = shard_here(options.shard, os.environ)
    device = device_here(gpus_of(options.gpus), os.environ)
    batch_size = images_at_a_time(options.batch_size, device)
    # What a user asked for must be possible before any network is loaded.
    if config.renderer != "auto":
        check_renderer(config.renderer, device)
    precision = "float32"  # of feature maps that were saved
    if not options.from_features:
        precision = resolve_precision(config.precision, config.solver, device)
    config = replace(config, precision=precision)
    division = RunOptions(
        batch_size, decoding_workers(options.workers, device), shard, device.type == "cuda"
    )
    # Category after category.
    counts = []
    for category in networks.categories:
        category_run = CategoryRun(
            networks, category, config, division, device, options.from_features
        )
        counts.append(category_run.solve())
    _print_counts(networks, config, counts, device)
    # Told by torchrun, one of the processes says what comes next.
    if options.shard is None and shard.number == 0 and not shard.is_whole:
        print(
            f"this was 1 share of {shard.of}; when all are done, "
            "run ./InferenceNeMo.sh with the same settings to merge them"
        )


def shard_here(given: Shard | None, environment: Mapping[str, str]) -> Shard:
    """The share of this process: as given, else as torchrun says, else everything.

    environment: RANK and WORLD_SIZE are set by torchrun.
    """
    if given is not None:
        return given
    return Shard.parse(f"{environment.get('RANK', 0)}/{environment.get('WORLD_SIZE', 1)}")


def device_here(gpus: Sequence[int], environment: Mapping[str, str]) -> torch.device:
    """The GPU of this process, without GPUs the CPU.

    environment: LOCAL_RANK is set by torchrun, whose processes take the GPUs of a machine in turn.
    """
    local_rank = int(environment.get("LOCAL_RANK", 0))
    return torch.device("cuda", gpus[local_rank % len(gpus)]) if gpus else torch.device("cpu")


@dataclass(frozen=True)
class CategoryRun:
    """One category of the stage: its files checked and locked, poses solved, time noted."""

    networks: TrainedNetworks
    category: str
    config: SolveConfig
    options: RunOptions
    device: torch.device
    from_features: bool

    @property
    def target(self) -> Path:
        """The file of the poses."""
        return self.networks.experiment.poses(self.category, self.networks.level)

    def solve(self) -> SolvedCount:
        """Solve while no other run writes the poses of the same shard, and note the time."""
        started = monotonic()
        folder, name = self.target.parent, self.target.stem
        # Shards write files of their own, so that none of them waits for another.
        number, of = self.options.shard
        with lock(folder, f"{name}.{number}-of-{of}", f"the poses of {name}"):
            run = self.load()
            self._remove_half_written(run.poses)
            count = _solve(run)
            self._note_time(run.poses.settings, count, monotonic() - started)
        return count

    def load(self) -> Run:
        """Everything that the poses need, checked."""
        # The network.
        networks = self.networks
        model = networks.load(self.category, self.device, self.config.precision)
        # The images, or feature maps in place of them.
        remedy = "run PrepareData.sh first"
        if networks.level:
            remedy += " with ENABLE_OCCLUDED=true"
        console.require_folder(networks.prepared, "test set", remedy)
        names = names_by_mesh(
            networks.test_set,
            networks.mesh_d,
            self.category + networks.level,
            len(model.checkpoint.memory),
            self.config.subtype,
        )
        images = PreparedSubset(networks.test_set, networks.level, names)
        features = self._saved_features(model) if self.from_features else None
        return Run(model, images, self.config, self.target, self.options, features)

    def _saved_features(self, model: Model) -> FeatureSet:
        """What extract_features.py saved; ValueError for feature maps of another checkpoint."""
        path = self.networks.experiment.features(self.category, self.networks.level)
        features = load_features(path)
        if features.config.get("checkpoint") != model.checkpoint.fingerprint:
            checkpoint = self.networks.checkpoint(self.category)
            raise ValueError(
                f"{path} is of another checkpoint than {checkpoint}; run extract_features.py again"
            )
        return features

    def _remove_half_written(self, poses: ShardPoses) -> None:
        """Remove what killed runs left of the files that this one writes."""
        # Other shards may be writing theirs, and only the whole writes the final files.
        names = [poses.partial_file.name]
        if self.options.shard.is_whole:
            names += [self.target.name, self.target.with_suffix(".csv").name]
        for name in names:
            remove_parts(self.target.parent, name)

    def _note_time(self, settings: dict, count: SolvedCount, seconds: float) -> None:
        """Write down how long it took, if there was anything to do.

        Parallel runs of a category have a time each.
        """
        path = self.networks.experiment.timing("solve_poses", self.target.stem)
        digest = short_digest(console.as_json(settings).encode())
        number, of = self.options.shard
        # A whole run replaces the times of the shares whose poses it did not use.
        if self.options.shard.is_whole:
            forget_times(path, digest, shares_too=not count.before)
        else:
            path = path.with_stem(f"{path.stem}_share{number + 1}of{of}")
        # A run that found nothing to do must not replace the time of the one that did the work.
        if count.solved > count.before:
            new = count.solved - count.before
            record_seconds(path, seconds, new, "images", count.before > 0, digest)


def _solve(run: Run) -> SolvedCount:
    """Solve what is missing, with a progress bar."""
    total = sum(len(batch.names) for batch in run.batches())
    if run.poses.finished() is not None:
        return SolvedCount(total, total, 0)
    # What killed and parallel runs have left is used before anything is solved.
    run.poses.collect()
    before = len(run.poses.images)
    with console.progress_bar(f"{run.subset} poses", total) as bar:
        run.execute(bar.update)
    return SolvedCount(len(run.poses.images), before, len(run.failures))


def forget_times(alone: Path, settings: str, shares_too: bool) -> None:
    """Delete the times of runs whose poses are no longer there.

    These are the times of other settings and, with shares_too, those of shares: none of their poses
    was used. alone: the time of a run that is not shared. settings: a digest of this run's.
    """
    for path in [alone, *alone.parent.glob(f"{alone.stem}_share*.json")]:
        noted = load_seconds(path).get("settings", "") if path.is_file() else ""
        if noted not in ("", settings) or (shares_too and path != alone):
            path.unlink()


def _print_counts(
    networks: TrainedNetworks,
    config: SolveConfig,
    counts: Sequence[SolvedCount],
    device: torch.device,
) -> None:
    """The stage's last line."""
    solved = sum(count.solved for count in counts)
    before = sum(count.before for count in counts)
    failed = sum(count.failed for count in counts)
    # Without new poses no renderer was needed, and none is tried just for its name.
    renderer = ""
    if solved > before:
        renderer = f" by {choose_renderer(config.renderer, device).name} on {device}"
    folder = f"{networks.exp}/Poses_{networks.mesh_d}{networks.azimuths.result_suffix}"
    print(
        f"{networks.level or 'clean'}: poses of {console.count(solved, 'image')} "
        f"of {console.count(len(counts), 'category')} "
        f"({before:,} of them from earlier runs, {failed} failed){renderer}, in {folder}"
    )
