"""Prepared images and vertex annotations -> a backbone and a feature bank per category."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import torch

from neural_mesh.data.augmentation import AUGMENTATIONS
from neural_mesh.data.dataset import TrainingImages
from neural_mesh.data.donor_pictures import digest_of, donor_files, read_donors
from neural_mesh.geometry.meshes import Mesh, same_meshes
from neural_mesh.machine import console
from neural_mesh.machine.devices import (
    Placement,
    compute_the_same_bits,
    decoding_workers,
    gpus_of,
    place,
    place_process,
)
from neural_mesh.machine.distributed import Group, process_group
from neural_mesh.settings import ALL_AZIMUTHS, Azimuths, TrainConfig
from neural_mesh.solve.choose_renderer import choose_renderer
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
from neural_mesh.training.memory import (
    require_room_for_crops,
    require_room_for_weights,
    workers_for_batches,
)
from neural_mesh.training.setup import Hardware, TrainingData
from neural_mesh.training.trainer import Trainer
from neural_mesh.training.validation import Validation, hold_out


@dataclass(frozen=True)
class TrainFolders:
    """What a training reads and where it writes.

    raw: PASCAL3D+_release1.1, with the cuboids. prepared: the training set. save_dir: of the
    checkpoints. azimuths: which ones are trained on. cuboids: where they lie if not in `raw`.
    """

    raw: Path
    prepared: Path
    save_dir: Path
    azimuths: Azimuths = ALL_AZIMUTHS
    cuboids: Path | None = None
    occluder_pictures: Path | None = None

    @property
    def raw_set(self) -> RawPascal3D:
        """Of which the cuboids are needed."""
        return RawPascal3D(self.raw, cuboid_root=self.cuboids)

    @property
    def training_set(self) -> PreparedSet:
        """The images of these azimuths."""
        return PreparedSet(self.prepared, self.azimuths.pattern)


@dataclass(frozen=True)
class TrainOptions:
    """How the work is done; what is trained hardly depends on it.

    gpus, workers: as the user sets them, see `machine.devices`. parallel: `dp` for DataParallel,
    `ddp` for one of torchrun's processes. separate_bank: the bank alone on the last GPU.
    image_cache: see `data.decoded_crops.CACHES`. deterministic: the same bits on the same GPU.
    resume: go on with an unfinished training. overwrite: train again where a checkpoint exists.
    """

    gpus: str = "all"
    parallel: str = "dp"
    separate_bank: bool = False
    compiled: bool = False
    workers: str = "auto"
    image_cache: str = "memory"
    deterministic: bool = False
    tensorboard: bool = True
    resume: bool = True
    overwrite: bool = False


def train(
    config: TrainConfig, categories: Sequence[str], folders: TrainFolders, options: TrainOptions
) -> None:
    """Train category after category, and say how many.

    config: the settings of all categories, whose own it does not matter. Raises ValueError or
    FileNotFoundError for settings, data or hardware with which they cannot be trained.
    """
    config = complete(config)
    donor_paths: tuple[Path, ...] = ()
    if folders.occluder_pictures is not None:
        if config.occluders != "families" or "occlude" not in config.augment:
            raise ValueError("OCCLUDER_PICTURES needs RECIPE=robust, with occlude in AUGMENT")
        donor_paths = donor_files(folders.occluder_pictures)
        config = replace(config, occluder_pictures=digest_of(donor_paths))
    gpus = gpus_of(options.gpus)
    if options.deterministic:
        compute_the_same_bits()
    else:
        # All crops of a category have one size, for which the fastest algorithms are sought.
        torch.backends.cudnn.benchmark = True
    with _processes(options.parallel, gpus) as group:
        devices = _placement(options, gpus, group)
        # Each category uses all the devices, so they take turns.
        images = []
        for category in categories:
            own = replace(config, category=category)
            training = CategoryTraining(own, folders, options, devices, group, donor_paths)
            images.append(training.run())
    if group.first:
        trained = sum(1 for number in images if number)
        print(
            f"{console.count(trained, 'category')} trained on "
            f"{console.count(sum(images), 'image')}, {len(images) - trained} kept; "
            f"checkpoints in {folders.save_dir}"
        )


def complete(config: TrainConfig) -> TrainConfig:
    """Settings in the one form that is compared and written down.

    AUGMENT is in one order however it is written, since its
    order means nothing; unknown names stay, for TrainingImages to refuse.
    """
    augment = [name for name in AUGMENTATIONS if name in config.augment]
    config = replace(config, augment=tuple(dict.fromkeys([*augment, *config.augment])))
    if not config.validate_every:
        # Without validation its share means nothing.
        config = replace(config, validation_share=TrainConfig.validation_share)
    return config


def _processes(parallel: str, gpus: Sequence[int]) -> AbstractContextManager[Group]:
    """The processes that train together: those of torchrun, or this one alone."""
    return process_group(bool(gpus)) if parallel == "ddp" else nullcontext(Group())


def _placement(options: TrainOptions, gpus: Sequence[int], group: Group) -> Placement:
    """Where this process trains."""
    if options.parallel == "dp":
        return place(gpus, options.separate_bank)
    devices = place_process(gpus, group.local_rank, group.local_size, options.separate_bank)
    if gpus:
        # Collective operations run on the current device.
        torch.cuda.set_device(devices.network[0])
    return devices


@dataclass(frozen=True)
class CategoryTraining:
    """One category of the stage: its files are checked and locked, and its time is noted."""

    config: TrainConfig
    folders: TrainFolders
    options: TrainOptions
    devices: Placement
    group: Group
    donor_paths: tuple[Path, ...] = ()  # pictures of which occluders are made

    def run(self) -> int:
        """Train unless the checkpoint is there; returns the number of training images.

        Raises ValueError when another run trains the category, its checkpoint is of other settings
        or data, or the memory is too small.
        """
        category = self.config.category
        with self._locked():
            if self.group.first:
                remove_parts(self.folders.save_dir, f"*_{category}[._]*")
            try:
                # Rank 0 decides for all; if one process trained alone, it would wait for the others
                # forever.
                kept = self.group.from_first(self.group.first and self.is_kept())
                return 0 if kept else self._train()
            except RuntimeError as error:
                # Outside a training step, which tells what batch fits.
                if "out of memory" not in str(error):
                    raise
                devices = dict.fromkeys(map(str, (*self.devices.network, self.devices.bank)))
                raise ValueError(
                    f"training {category} does not fit into the memory of {' '.join(devices)}; "
                    "stop what else uses it, set IMAGE_SCALE=0.5, or BACKBONE=resnet18fpn; "
                    "finished work is kept"
                ) from error

    def _locked(self) -> AbstractContextManager[None]:
        """The lock of the category's files, held by rank 0."""
        if not self.group.first:
            return nullcontext()
        category = self.config.category
        return lock(self.folders.save_dir, f"train-{category}", f"the training of {category}")

    # ---- a checkpoint of an earlier run ----------------------------------------------------------

    def is_kept(self) -> bool:
        """Whether the category has been trained.

        ValueError when that was with other settings, data or cuboids.
        """
        save_dir = self.folders.save_dir
        last = checkpoint_path(save_dir, "saved_model_%s_last.pth", self.config.category)
        if self.options.overwrite or not last.is_file():
            return False
        # It is kept if this training would give it again.
        trained = load_checkpoint(last, self.config.category)
        data = self.folders.training_set.fingerprint(self.config.category)
        remedy = "set OVERWRITE=true to train again, or SAVED_NETWORK_PATH to another folder"
        # The fingerprint of data is empty where it is unknown.
        other_data = data and trained.data and trained.data != data
        if trained.config != self.config or other_data:
            raise ValueError(f"{last} was trained with other settings or on other data; {remedy}")
        if self._has_other_cuboids(trained.meshes):
            raise ValueError(
                f"{last} was trained with other cuboids than those in {self._cuboid_folder}; "
                f"{remedy}"
            )
        print(f"{self.config.category}: {last} exists, kept")
        return True

    @property
    def _cuboid_folder(self) -> Path:
        return self.folders.raw_set.cuboid_folder(self.config.mesh_d, self.config.category)

    def _has_other_cuboids(self, trained: list[Mesh] | None) -> bool:
        """Whether the cuboids have changed since; False where there is nothing to compare."""
        if not trained or not self._cuboid_folder.is_dir():
            return False
        present = [read_off(path) for path in numbered_meshes(self._cuboid_folder)]
        return not same_meshes(trained, present)

    # ---- a training ------------------------------------------------------------------------------

    def _train(self) -> int:
        """Train, and note how long it took; returns the number of training images."""
        trainer = self._make_trainer()
        started = monotonic()
        resumed = self.options.resume and trainer.resume()
        epochs = self.config.total_epochs - trainer.epoch
        if self.group.first:
            self._announce(trainer, resumed)
        trainer.fit()
        if self.group.first:
            # The experiment's folder is the one that holds the checkpoints' folder.
            folders = self.folders
            experiment = Experiment(folders.save_dir.parent, self.config.mesh_d, folders.azimuths)
            timing = experiment.timing("train", self.config.category)
            record_seconds(timing, monotonic() - started, epochs, "epochs", resumed)
        return sum(trainer.data.sizes)

    def _make_trainer(self) -> Trainer:
        """A trainer with everything that it needs, checked."""
        config = self.config
        # What there is: meshes, and the images of each.
        console.require_folder(self.folders.prepared, "training set", "run PrepareData.sh first")
        prepared = self.folders.training_set
        cuboids = self.folders.raw_set.cuboids(config.mesh_d, config.category)
        meshes = [read_off(path) for path in cuboids]
        names = self._image_names(prepared, len(meshes))
        held_out = None
        if config.validate_every:
            names, held_out = hold_out(names, config.validation_share, config.seed)
        # Whether it fits, before anything is decoded.
        device = self.devices.network[0]
        workers = decoding_workers(self.options.workers, device, self.group.local_size)
        if self.group.first:
            cache = self.options.image_cache
            processes = self.group.local_size
            require_room_for_crops(prepared, names, config, cache, workers, processes)
            require_room_for_weights(self.folders.save_dir, config)
        workers = workers_for_batches(
            names, meshes, config, self.options.image_cache, workers, self.group
        )
        # What the trainer is given.
        datasets = self._datasets(prepared, names, meshes, workers)
        data = TrainingData(meshes, datasets, prepared.fingerprint(config.category))
        hardware = Hardware(self.devices, self.group, workers, self.options.compiled)
        validation = None
        if held_out:
            validation = Validation(prepared, held_out, choose_renderer("auto", device))
        return Trainer(
            config, data, hardware, self.folders.save_dir, validation, self.options.tensorboard
        )

    def _image_names(self, prepared: PreparedSet, meshes: int) -> list[list[str]]:
        """Training images of each mesh, from the lists.

        FileNotFoundError when a list is missing, ValueError when all are empty.
        """
        category = self.config.category
        names = []
        for number in range(1, meshes + 1):
            path = prepared.mesh_list(self.config.mesh_d, category, number)
            if not path.is_file():
                remedy = "run PrepareData.sh first"
                if prepared.azimuths:
                    remedy += " with the same AZIMUTH_SELECTION"
                raise FileNotFoundError(
                    f"no list of training images: {path}; {remedy}, "
                    "unless the data set has test images alone, on which nothing can be trained"
                )
            names.append(read_list(path))
        # A single empty list is no error: there are CAD models that no training image shows.
        if not any(names):
            raise ValueError(f"{category} has no training image in {prepared.root}")
        return names

    def _datasets(
        self,
        prepared: PreparedSet,
        names: Sequence[Sequence[str]],
        meshes: Sequence[Mesh],
        workers: int,
    ) -> list[TrainingImages]:
        """The images of each mesh."""
        datasets = []
        donors = read_donors(self.donor_paths)
        for group, mesh in zip(names, meshes, strict=True):
            datasets.append(
                TrainingImages(
                    prepared,
                    group,
                    mesh,
                    self.config,
                    shared=workers > 0,
                    cache=self.options.image_cache,
                    donors=donors,
                )
            )
        return datasets

    def _announce(self, trainer: Trainer, resumed: bool) -> None:
        """Say what is trained on, and where."""
        category = self.config.category
        images = console.count(sum(trainer.data.sizes), "image")
        held_out = ""
        if trainer.validation is not None:
            held_out = f", {sum(trainer.validation.sizes)} held out"
        cuboids = console.count(len(trainer.data.meshes), "cuboid")
        print(f"{category}: {images}{held_out}, {cuboids}; {self.devices.sentence}")
        if resumed:
            print(f"{category}: going on after epoch {trainer.epoch}", flush=True)
