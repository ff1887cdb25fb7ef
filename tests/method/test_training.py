"""The training loop and its parts: schedule, step, validation, state, TensorBoard log."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.small_training import CONFIG, IMAGES, make_trainer, meshes, names_of, small_data
from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine.devices import Placement, place
from neural_mesh.machine.distributed import Group
from neural_mesh.settings import FIXED_RECIPE, TrainConfig
from neural_mesh.solve import mesh_solver
from neural_mesh.solve.solver import SolvedPoses
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.training import state, validation
from neural_mesh.training.schedule import learning_rate
from neural_mesh.training.setup import Hardware
from neural_mesh.training.tensorboard_log import similarity_picture
from neural_mesh.training.trainer import Trainer
from neural_mesh.training.validation import Validation, hold_out

CPU = torch.device("cpu")


def trainer_of(root: Path, folder: Path, epochs: int = 1) -> Trainer:
    """A trainer that takes an optimiser step at every iteration."""
    config = replace(CONFIG, total_epochs=epochs, augment=(), accumulate=1)
    return make_trainer(Group(), root, folder, config)


def make_linear(trainer: Trainer) -> None:
    """Give a trainer a network that is fast, where nothing else matters."""
    trainer.learner.network.net = torch.nn.AvgPool2d(8)
    trainer.learner.network.out_layer = torch.nn.Linear(3, 128)


def linear_trainer(
    root: Path, folder: Path, images: tuple[int, int] = IMAGES, workers: int = 0
) -> Trainer:
    """A trainer with a linear network. images: how many of each mesh."""
    hardware = Hardware(Placement((CPU,), CPU, "test"), workers=workers)
    trainer = Trainer(CONFIG, small_data(root, CONFIG, images=images), hardware, folder)
    make_linear(trainer)
    return trainer


# ---- schedule and placement ----------------------------------------------------------------------


def test_paper_schedule_is_a_fifth_from_the_first_epoch_on():
    config = TrainConfig()
    rates = [learning_rate(config, epoch) for epoch in (0, 0.9, 1, 11, 799)]
    assert rates == [1e-4, 1e-4, 2e-5, 2e-5, 2e-5]


def test_fixed_schedule_warms_up_and_ends_near_zero():
    config = replace(TrainConfig(), **FIXED_RECIPE)
    first, warm, middle, last = (learning_rate(config, epoch) for epoch in (0, 40, 400, 799.99))
    assert first < warm
    assert warm == pytest.approx(1e-4)
    assert middle == pytest.approx(5.4e-5, rel=0.03)
    assert last < 1e-9


def test_bank_goes_to_the_last_of_several_gpus():
    gpus = [torch.device("cuda", i) for i in range(3)]
    sentence = "network on 2 GPU(s), bank alone on GPU 2"
    assert place([0, 1, 2], True) == Placement((gpus[0], gpus[1]), gpus[2], sentence)
    alone = place([3], True)
    assert alone.bank == torch.device("cuda", 3)
    assert "needs two GPUs" in alone.sentence
    assert place([], True).network == (CPU,)


# ---- steps ---------------------------------------------------------------------------------------


def test_batches_without_a_visible_vertex_are_counted_and_change_nothing(noise_pictures, tmp_path):
    trainer = trainer_of(noise_pictures, tmp_path)
    trainer.data.datasets[1].vertices.visible[:] = False
    bank = trainer.learner.banks[1].memory.clone()
    trainer.fit()
    row = trainer.log.rows[0]
    assert row["empty_batches"] == 2
    assert row["non_finite_batches"] == 0
    assert 0 < row["loss"] < 20
    assert trainer.learner.iteration == 4
    assert torch.equal(trainer.learner.banks[1].memory, bank)

    trainer = trainer_of(noise_pictures, tmp_path)
    for dataset in trainer.data.datasets:
        dataset.vertices.visible[:] = False
    with pytest.raises(ValueError, match="no visible vertex in any training image of car"):
        trainer.fit()


def test_a_batch_without_a_finite_loss_is_counted_and_changes_nothing(noise_pictures, tmp_path):
    trainer = trainer_of(noise_pictures, tmp_path)
    calls = []

    def spoil_the_second(module, inputs, output):
        calls.append(len(output))
        return output * float("nan") if len(calls) == 2 else output

    trainer.learner.network.register_forward_hook(spoil_the_second)
    trainer.fit()
    assert trainer.log.rows[0]["non_finite_batches"] == 1
    assert trainer.learner.iteration == len(calls) == 4
    assert all(value.isfinite().all() for value in trainer.learner.network.state_dict().values())
    assert all(bank.memory.isfinite().all() for bank in trainer.learner.banks)
    summary = json.loads((tmp_path / "training_summary_car.json").read_text())
    assert summary["figures"]["non_finite_batches"] == 1


def test_training_stops_when_the_loss_stays_not_finite(noise_pictures, tmp_path):
    trainer = trainer_of(noise_pictures, tmp_path, epochs=9)
    make_linear(trainer)
    torch.nn.init.constant_(trainer.learner.network.out_layer.weight, float("nan"))
    sentence = r"not finite in 10 batches in a row, up to epoch 2 .iteration 9.*LEARNING_RATE"
    with pytest.raises(ValueError, match=sentence):
        trainer.fit()
    assert not list(tmp_path.glob("saved_model*"))


@pytest.mark.parametrize("accumulate, at", [(10, [0]), (3, [0, 3]), (1, [0, 1, 2, 3])])
def test_the_optimiser_steps_at_iteration_0_and_then_at_every_accumulated_one(
    noise_pictures, tmp_path, accumulate, at
):
    config = replace(CONFIG, total_epochs=1, accumulate=accumulate)
    trainer = make_trainer(Group(), noise_pictures, tmp_path, config)
    make_linear(trainer)
    steps = []
    trainer.learner.optimiser.step = lambda: steps.append(trainer.learner.iteration)
    trainer.fit()
    assert steps == at


def test_smaller_batches_are_tried_with_nothing_of_the_failed_step_alive(noise_pictures, tmp_path):
    trainer = trainer_of(noise_pictures, tmp_path)
    computed = []
    alive = []

    def step(batch, rate, tally):
        alive.append([reference() is not None for reference in computed])
        activations = torch.zeros(9)
        computed.append(weakref.ref(activations))
        if len(batch.sample.image) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    trainer.learner.step = step
    sentence = "a batch of 4 images does not fit into the memory of cpu; BATCH_SIZE=1 fits"
    with pytest.raises(ValueError, match=sentence):
        trainer.fit()
    assert alive == [[], [False], [False, False]]


def test_a_mesh_without_training_images_keeps_its_random_bank(noise_pictures, tmp_path):
    trainer = linear_trainer(noise_pictures, tmp_path, images=(7, 0))
    before = [bank.memory.clone() for bank in trainer.learner.banks]
    trainer.fit()
    first, second = trainer.learner.banks
    assert not torch.equal(first.memory, before[0])
    assert torch.equal(second.memory, before[1])
    assert len(load_checkpoint(tmp_path / "saved_model_car_last.pth").memory) == 2


@pytest.mark.parametrize(
    "images, workers, expected",
    [(IMAGES, 4, [2, 2]), (IMAGES, 1, [1, 1]), (IMAGES, 0, [0, 0]), ((7, 0), 2, [2])],
)
def test_the_workers_are_divided_among_the_meshes_that_have_images(
    noise_pictures, tmp_path, images, workers, expected
):
    loaders = linear_trainer(noise_pictures, tmp_path, images, workers).loaders
    assert [loader.num_workers for loader in loaders if loader] == expected


# ---- state ---------------------------------------------------------------------------------------


def test_a_training_does_not_go_on_with_another_cuboid(noise_pictures, tmp_path):
    trainer = linear_trainer(noise_pictures, tmp_path)
    trainer.state_file.save(trainer.learner, trainer.epoch, trainer.log)
    assert trainer.resume()
    first, second = meshes()
    larger = Mesh(first.vertices * 1.01, first.faces)
    sentence = "training_state_car.pth is of an unfinished training with other cuboids; set RESUME"
    for other in ([larger, second], [second, first], [first]):
        trainer.state_file.data = replace(trainer.data, meshes=other)
        with pytest.raises(ValueError, match=sentence):
            trainer.resume()


def test_a_resumed_training_hides_only_the_steps_that_it_repeats(
    noise_pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(state, "SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.setattr(Trainer, "_is_drawn", lambda _: False)
    # As if killed before it, so that the state of the first epoch stays.
    monkeypatch.setattr(Trainer, "_finish", lambda _: None)
    for resumed in (False, True):
        trainer = linear_trainer(noise_pictures, tmp_path)
        trainer.tensorboard = True
        assert trainer.resume() is resumed
        assert trainer.epoch == int(resumed)
        trainer.fit()
    events = EventAccumulator(str(tmp_path / "tensorboard/car"), {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


# ---- validation and TensorBoard -----------------------------------------------------------------


def test_images_are_held_out_by_seed():
    names = [[f"a{i}" for i in range(30)], [], ["b0", "b1"]]
    trained_on, held_out = hold_out(names, 0.25, 1)
    assert sum(map(len, held_out)) == 8
    for trained, held, every in zip(trained_on, held_out, names, strict=True):
        assert sorted(trained + held) == sorted(every)
    assert hold_out(names, 0.25, 1) == (trained_on, held_out)
    assert hold_out(names, 0.25, 2) != (trained_on, held_out)
    for fraction in (0.01, 1.0):
        with pytest.raises(ValueError, match="too few to validate on or to train on"):
            hold_out(names, fraction, 1)


def test_validation_goes_on_in_halves_when_memory_is_short(noise_pictures, tmp_path, monkeypatch):
    truth = Pose(0.7, 0.2, 0.1, 5.0)
    tried = []

    def solve_two(mesh, features, *rest):
        tried.append(len(features))
        if len(features) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        of_images = np.ones(len(features))
        pose = Pose(0.7 * of_images, 0.2 * of_images, 0.1 * of_images, 5.0 * of_images)
        return SolvedPoses(pose, of_images, of_images, of_images, of_images, of_images)

    monkeypatch.setattr(mesh_solver, "solve", solve_two)
    annotation = SimpleNamespace(pose=truth)
    monkeypatch.setattr(validation, "load_annotation", lambda path: annotation)
    model = trainer_of(noise_pictures, tmp_path).model()
    held_out = [names_of(0)[:5], []]
    images = Validation(PreparedSet(noise_pictures), held_out, NumbaRenderer())
    accuracy = images.accuracy(model, Group())
    assert tried == [5, 2, 3, 1, 2]
    assert accuracy.value("pi/6") == 100
    assert accuracy.value("median") < 1e-3


def test_a_similarity_picture_is_bright_where_the_vertex_is():
    vertices = torch.eye(4)[:3]
    features = torch.eye(4)[3][:, None, None].repeat(1, 4, 5)
    features[:, 2, 3] = vertices[1]
    features[:, 0, 0] = vertices[0]
    crop = np.full((32, 40, 3), 100, np.uint8)
    picture = similarity_picture(crop, features, vertices, 1, (4.0, 12.0))
    photograph, best, single = picture.reshape(3, 32, 40, 3)
    assert (best[16:24, 24:32] > 190).all()
    assert (best[:8, :8] > 190).all()
    assert (best[8:16] == 35).all()
    assert (single[16:24, 24:32] > 190).all()
    assert (single[:8, :2] == 35).all()
    assert (photograph[4, 12] == (0, 255, 0)).all()
    assert (photograph[20] == 100).all()
