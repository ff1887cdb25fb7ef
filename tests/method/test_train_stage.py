"""The stage of training: its settings, a checkpoint that is there, and room for what it needs."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.small_training import CONFIG, meshes, names_of, tiny_checkpoint
from neural_mesh.data.dataset import TrainingImages
from neural_mesh.data.decoded_crops import decoded_file
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine import arguments
from neural_mesh.machine.devices import place
from neural_mesh.machine.distributed import Group
from neural_mesh.settings import Azimuths, TrainConfig
from neural_mesh.stages.train import CategoryTraining, TrainFolders, TrainOptions, complete
from neural_mesh.storage.checkpoints import save_checkpoint
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import write_off
from neural_mesh.training import memory


def category_training(folder: Path, config: TrainConfig, *gpus: int) -> CategoryTraining:
    """A category whose data and files all lie in one folder."""
    folders = TrainFolders(raw=folder, prepared=folder, save_dir=folder)
    return CategoryTraining(config, folders, TrainOptions(), place(gpus, False), Group())


def test_a_checkpoint_of_another_cuboid_is_not_kept(tmp_path):
    saved = tiny_checkpoint()
    save_checkpoint(tmp_path / "saved_model_car_last.pth", saved)
    training = category_training(tmp_path, saved.config)
    assert training.is_kept(), "without cuboids there is nothing to compare"
    path = RawPascal3D(tmp_path).cuboid_folder("single", "car") / "01.off"
    write_off(path, saved.meshes[0])
    assert training.is_kept()
    write_off(path, Mesh(saved.meshes[0].vertices + 1e-5, saved.meshes[0].faces))
    sentence = "was trained with other cuboids than those in .*CAD_single/car; set OVERWRITE=true"
    with pytest.raises(ValueError, match=sentence):
        training.is_kept()


def test_the_room_for_decoded_crops_counts_processes_and_what_is_there(
    noise_pictures, tmp_path, monkeypatch
):
    shutil.copytree(noise_pictures, tmp_path / "set", ignore=shutil.ignore_patterns("decoded"))
    prepared = PreparedSet(tmp_path / "set")
    names = [names_of(0), names_of(1)]
    needed = []

    def note(kind: str):
        def require(*given: object) -> None:
            needed.append((kind, next(size for size in given if isinstance(size, int))))

        return require

    for kind in ("disk", "memory", "shared_memory"):
        monkeypatch.setattr(memory, f"require_{kind}", note(kind))

    def asked(cache: str, workers: int, processes: int) -> tuple[str, int]:
        needed.clear()
        memory.require_room_for_crops(prepared, names, CONFIG, cache, workers, processes)
        return needed[0]

    crop = 3 * 128 * 336
    assert asked("memory", 0, 1) == ("memory", 12 * crop)
    assert asked("memory", 2, 1) == ("shared_memory", 12 * crop)
    assert asked("memory", 0, 3) == ("memory", 36 * crop)
    assert asked("disk", 0, 3) == ("disk", 12 * crop)
    decoded = TrainingImages(prepared, names[0], meshes()[0], CONFIG, cache="disk")
    for index in range(len(decoded)):
        decoded[0, index]
    assert decoded_file(prepared, names[0], CONFIG).is_file()
    _, rest = asked("disk", 0, 1)
    assert 4.5 * crop < rest <= 5 * crop


def test_a_full_card_outside_a_step_is_told_in_one_sentence(tmp_path, monkeypatch):
    def full(_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee ...")

    monkeypatch.setattr(CategoryTraining, "_train", full)
    sentence = "training car does not fit into the memory of cuda:0; stop what else uses it"
    with pytest.raises(ValueError, match=sentence) as caught:
        category_training(tmp_path, CONFIG, 0).run()
    assert "\n" not in str(caught.value)


def test_settings_of_training_are_checked_and_their_order_means_nothing():
    def ordered(*augment: str) -> tuple[str, ...]:
        return complete(replace(CONFIG, augment=augment)).augment

    assert ordered("color", "flip") == ("flip", "color")
    assert ordered("flip", "color", "flip") == ("flip", "color")
    assert ordered("wind", "flip") == ("flip", "wind")
    assert arguments.not_negative("0") == 0
    assert arguments.not_negative("5e-3") == 5e-3
    assert arguments.seed("3") == 3


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "x"])
def test_a_number_that_is_negative_or_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
        arguments.not_negative(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "", str(2**32)])
def test_a_seed_that_no_generator_takes_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
        arguments.seed(text)


def test_times_of_other_azimuths_lie_elsewhere():
    def folder(stage: str, *azimuths: str) -> str:
        experiment = Experiment(Path("exp"), "single", Azimuths(*azimuths))
        return experiment.timing(stage, "car").parent.name

    assert folder("train") == folder("solve_poses") == "Timings_single"
    assert folder("train", "TFFT") == folder("train", "TFFT", "seen") == "Timings_single_azum_TFFT"
    assert folder("solve_poses", "TFFT", "seen") == "Timings_single_azum_TFFT_seen"
    assert folder("solve_poses", "TFFT", "unseen") == "Timings_single_azum_TFFT_unseen"
