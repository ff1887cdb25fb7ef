"""Backbone, bank and loss against the reference; samples, augmentation and resuming by property."""

from __future__ import annotations

import argparse
import json
import shutil
import weakref
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from helpers.project import Trap
from helpers.small_training import (
    CONFIG,
    IMAGES,
    make_trainer,
    meshes,
    names_of,
    write_prepared,
)
from neural_mesh.data.augmentation import mirror, paste_patches
from neural_mesh.data.dataset import TrainingImages
from neural_mesh.data.decoded_crops import decoded_file
from neural_mesh.data.loading import batches, make_loader
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh
from neural_mesh.machine.devices import Placement, place
from neural_mesh.machine.distributed import Group
from neural_mesh.network import losses
from neural_mesh.network.backbone import FeatureNet, build_network, cells_of
from neural_mesh.network.bank import Bank, vertex_sums
from neural_mesh.network.losses import clutter_loss, contrastive_loss
from neural_mesh.settings import ALL_AZIMUTHS, FIXED_RECIPE, Azimuths, TrainConfig
from neural_mesh.solve import mesh_solver
from neural_mesh.solve.model import load_model
from neural_mesh.solve.solver import SolvedPoses
from neural_mesh.storage.checkpoints import (
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import write_off
from neural_mesh.storage.records import Annotation
from neural_mesh.training import trainer as training
from neural_mesh.training.journal import similarity_picture
from neural_mesh.training.trainer import Trainer, Validation, hold_out, learning_rate

GOLDEN = Path(__file__).parents[1] / "golden"


def made_up_weights(network: FeatureNet) -> dict[str, torch.Tensor]:
    """The recipe of tests/golden/backbone.npz: every entry drawn from a seed that is the checksum of its name."""
    state = {}
    for name, value in network.state_dict().items():
        random, shape = np.random.RandomState(zlib.crc32(name.encode())), tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            drawn = np.zeros(shape)
        elif name.endswith("running_var"):
            drawn = random.uniform(0.8, 1.2, shape)
        elif name.endswith(("running_mean", "bias")):
            drawn = 0.1 * random.standard_normal(shape)
        elif len(shape) == 4:
            drawn = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            drawn = random.standard_normal(shape) / np.sqrt(shape[1])
        else:
            drawn = random.uniform(0.4, 0.6, shape)
        state[name] = torch.tensor(drawn).to(value.dtype)
    return state


@pytest.fixture(scope="module")
def resnetext() -> FeatureNet:
    network = FeatureNet("resnetext")
    network.load_state_dict(made_up_weights(network))
    return network.eval()


def test_state_dict_names_equal_the_reference(resnetext):
    entries = json.loads((GOLDEN / "backbone_state.json").read_text())["entries"]
    assert {entry["name"] for entry in entries} == set(resnetext.state_dict())


@torch.no_grad()
def test_backbone_equals_the_reference(resnetext, golden):
    d = {key: torch.tensor(value) for key, value in golden("backbone.npz").items()}
    close = {"atol": 2e-5, "rtol": 0}
    torch.testing.assert_close(resnetext.net(d["image"]), d["trunk"], **close)
    torch.testing.assert_close(
        resnetext.feature_map(d["image"], bias=False), d["forward_test"], **close
    )
    torch.testing.assert_close(
        resnetext(d["image"], cells_of(d["keypoints_rc"], (8, 12))), d["forward_keypoints"], **close
    )
    torch.testing.assert_close(
        resnetext.feature_map(d["odd_image"], bias=False), d["odd_forward_test"], **close
    )


@torch.no_grad()
def test_backbone_in_training_mode_equals_the_reference(golden):
    d = {key: torch.tensor(value) for key, value in golden("backbone.npz").items()}
    network = FeatureNet("resnetext")
    network.load_state_dict(made_up_weights(network))
    found = network.train()(d["train_images"], cells_of(d["train_keypoints_rc"], (8, 12)))
    torch.testing.assert_close(found, d["train_forward_keypoints"], atol=1e-3, rtol=0)
    torch.testing.assert_close(
        network.net.extractor[1].running_mean,
        d["train_bn1_running_mean_after"],
        atol=1e-5,
        rtol=1e-4,
    )


@torch.no_grad()
def test_training_and_test_features_agree_when_the_bias_is_kept():
    network = FeatureNet("resnet18fpn").eval()
    image, cells = torch.randn(1, 3, 64, 96), torch.arange(96)[None]
    whole = network.feature_map(image, bias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network(image, cells), whole, atol=1e-5, rtol=0)
    assert (
        whole - network.feature_map(image, bias=False).flatten(2).transpose(1, 2)
    ).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["small_a", "small_b", "small_c", "real"])
def test_bank_and_loss_equal_the_reference(golden, case):
    d = golden("bank.npz")
    vertices, channels, noise, groups, momentum, temperature, near, weight = d[f"{case}/params"]
    vertices = int(vertices)
    config = TrainConfig(
        num_clutter_image=int(noise),
        num_clutter_group=int(groups),
        bank_momentum=momentum,
        temperature=temperature,
        near_distance_px=near,
        weight_clutter=weight,
    )
    bank = Bank.create(vertices, config, torch.Generator(), channels=int(channels))
    bank.memory = torch.tensor(d[f"{case}/memory0"])
    for call in range(3):
        value = {
            key.split("/")[-1]: torch.tensor(d[key])
            for key in d.files
            if key.startswith(f"{case}/call{call}/")
        }
        features, visible = value["features"].requires_grad_(), value["visible"] > 0
        main = contrastive_loss(
            features[:, :vertices], value["keypoints_rc"], visible, bank.memory, config
        )
        clutter = config.weight_regularisation * clutter_loss(
            features[:, vertices:], bank.mesh_rows
        )
        (main + clutter).backward()
        bank.update(
            *vertex_sums(features.detach()[:, :vertices], visible), features.detach()[:, vertices:]
        )
        assert main.item() == pytest.approx(value["loss_main"].item(), rel=2e-6)
        assert clutter.item() == pytest.approx(value["loss_reg"].item(), abs=1e-7)
        expected = value["grad_features"]
        assert (features.grad - expected).abs().max() <= 2e-6 * expected.abs().max()
        torch.testing.assert_close(bank.memory, value["memory_after"], atol=1e-6, rtol=0)
        assert bank.slot == int(value["lru_after"])


def test_blocks_and_parts_of_a_batch_add_up(monkeypatch):
    """The loss does not depend on the rows held at once; parts with the whole's count sum to the whole, bank sums too."""
    config, generator = TrainConfig(num_clutter_group=8), torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(5, 30, 16, generator=generator), dim=-1)
    positions, visible = (
        torch.rand(5, 30, 2, generator=generator) * 200,
        torch.rand(5, 30, generator=generator) < 0.4,
    )
    memory = torch.nn.functional.normalize(torch.randn(70, 16, generator=generator), dim=-1)

    def loss_and_gradient(images: slice, count: int | None = None) -> tuple[float, torch.Tensor]:
        leaf = features[images].clone().requires_grad_()
        loss = 3 * contrastive_loss(leaf, positions[images], visible[images], memory, config, count)
        loss.backward()
        return loss.item(), leaf.grad

    whole, gradient = loss_and_gradient(slice(None))
    monkeypatch.setitem(losses.ROWS_AT_ONCE, "cpu", 7)
    in_blocks, same = loss_and_gradient(slice(None))
    assert in_blocks == pytest.approx(whole, rel=1e-6) and torch.allclose(gradient, same, atol=1e-7)
    parts = [loss_and_gradient(images, int(visible.sum())) for images in (slice(0, 2), slice(2, 5))]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(torch.cat([part for _, part in parts]), gradient, atol=1e-7)
    sums = [
        vertex_sums(features[images], visible[images])
        for images in (slice(0, 2), slice(2, 5), slice(None))
    ]
    assert all(
        torch.allclose(a + b, together, atol=1e-6) for a, b, together in zip(*sums, strict=True)
    )
    noise = features[:, :5]
    clutter = [
        clutter_loss(noise[images], memory, 5).item() for images in (slice(0, 2), slice(2, 5))
    ]
    assert sum(clutter) == pytest.approx(clutter_loss(noise, memory).item(), abs=1e-7)


def test_a_visible_mean_divides_by_how_often_a_vertex_was_seen():
    features, visible = (
        torch.eye(4)[None, :2].repeat(4, 1, 1),
        torch.tensor([[1, 1], [0, 1], [0, 1], [0, 1]], dtype=torch.bool),
    )
    for mean, weights in (("batch", (0.1 / 4, 0.1)), ("visible", (0.1, 0.1))):
        bank = Bank(torch.eye(4)[[2, 2, 3]], vertices=2, ring="full", mean=mean, momentum=0.9)
        bank.update(*vertex_sums(features, visible), torch.eye(4)[None, 3:].repeat(4, 1, 1))
        for row, weight in enumerate(weights):
            expected = torch.nn.functional.normalize(
                weight * torch.eye(4)[row] + 0.9 * torch.eye(4)[2], dim=0
            )
            torch.testing.assert_close(bank.memory[row], expected)


def test_loss_without_a_visible_vertex_is_zero_and_finite():
    config = TrainConfig(num_clutter_group=2)
    features = torch.nn.functional.normalize(torch.randn(2, 7, 16), dim=-1).requires_grad_()
    memory = torch.nn.functional.normalize(torch.randn(17, 16), dim=-1)
    loss = contrastive_loss(
        features, torch.rand(2, 7, 2), torch.zeros(2, 7, dtype=torch.bool), memory, config
    )
    loss.backward()
    assert loss.item() == 0 and features.grad.abs().max() == 0


def test_clutter_without_weight_is_left_out_of_the_loss():
    config = TrainConfig(num_clutter_group=2, weight_clutter=0.0)
    features = torch.nn.functional.normalize(torch.randn(2, 7, 16), dim=-1)
    memory = torch.nn.functional.normalize(torch.randn(17, 16), dim=-1)
    positions, visible = torch.rand(2, 7, 2) * 500, torch.rand(2, 7) < 0.7
    found = []
    for rows in (memory, memory[:7]):
        leaf = features.clone().requires_grad_()
        loss = contrastive_loss(leaf, positions, visible, rows, config)
        loss.backward()
        found.append((loss, leaf.grad))
    assert found[0][0].isfinite() and found[0][1].isfinite().all()
    torch.testing.assert_close(found[0], found[1])


def test_reference_ring_leaves_400_clutter_rows_untouched_and_the_full_ring_none():
    for recipe, untouched in (({}, 400), (FIXED_RECIPE, 0)):
        config = replace(TrainConfig(), **recipe)
        bank = Bank.create(3, config, torch.Generator().manual_seed(0), channels=8)
        before = bank.clutter_rows.clone()
        for _ in range(6):
            noise = torch.nn.functional.normalize(torch.randn(108, 5, 8), dim=-1)
            bank.update(
                *vertex_sums(torch.randn(108, 3, 8), torch.zeros(108, 3, dtype=torch.bool)), noise
            )
        same = torch.isclose(bank.clutter_rows, before, atol=1e-6).all(1).sum().item()
        assert same == untouched


def test_paper_schedule_is_a_fifth_from_the_first_epoch_on():
    config = TrainConfig()
    assert [learning_rate(config, epoch) for epoch in (0, 0.9, 1, 11, 799)] == [
        1e-4,
        1e-4,
        2e-5,
        2e-5,
        2e-5,
    ]


def test_fixed_schedule_warms_up_and_ends_near_zero():
    config = replace(TrainConfig(), **FIXED_RECIPE)
    rates = [learning_rate(config, epoch) for epoch in (0, 40, 400, 799.99)]
    assert (
        rates[0] < rates[1] == pytest.approx(1e-4)
        and rates[2] == pytest.approx(5.4e-5, rel=0.03)
        and rates[3] < 1e-9
    )


def test_bank_goes_to_the_last_of_several_gpus():
    assert place([0, 1, 2], True) == Placement(
        (torch.device("cuda", 0), torch.device("cuda", 1)),
        torch.device("cuda", 2),
        "network on 2 GPU(s), bank alone on GPU 2",
    )
    assert (
        place([3], True).bank == torch.device("cuda", 3)
        and "needs two GPUs" in place([3], True).sentence
    )
    assert place([], True).network == (torch.device("cpu"),)


@pytest.fixture(scope="module")
def noise_pictures(tmp_path_factory) -> Path:
    """A prepared set of 12 noise pictures of two meshes, 4 batches an epoch."""
    root = tmp_path_factory.mktemp("noise")
    write_prepared(root)
    return root


def trainer_of(root: Path, folder: Path, epochs: int = 1) -> Trainer:
    return make_trainer(
        Group(), root, folder, replace(CONFIG, total_epochs=epochs, augment=(), accumulate=1)
    )


def test_batches_without_a_visible_vertex_are_counted_and_change_nothing(noise_pictures, tmp_path):
    trainer = trainer_of(noise_pictures, tmp_path)
    trainer.datasets[1].vertices[1][:] = False
    bank = trainer.banks[1].memory.clone()
    trainer.fit()
    assert (
        trainer.log[0]["empty_batches"] == 2
        and trainer.log[0]["non_finite_batches"] == 0
        and trainer.iteration == 4
    )
    assert torch.equal(trainer.banks[1].memory, bank) and 0 < trainer.log[0]["loss"] < 20
    trainer = trainer_of(noise_pictures, tmp_path)
    for dataset in trainer.datasets:
        dataset.vertices[1][:] = False
    with pytest.raises(ValueError, match="no visible vertex in any training image of car"):
        trainer.fit()


def test_a_batch_without_a_finite_loss_is_counted_and_changes_nothing(noise_pictures, tmp_path):
    trainer, calls = trainer_of(noise_pictures, tmp_path), []

    def spoil_the_second(module, inputs, output):
        calls.append(len(output))
        return output * float("nan") if len(calls) == 2 else output

    trainer.network.register_forward_hook(spoil_the_second)
    trainer.fit()
    assert trainer.log[0]["non_finite_batches"] == 1 and trainer.iteration == 4 and len(calls) == 4
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())
    assert all(bank.memory.isfinite().all() for bank in trainer.banks)
    assert (
        json.loads((tmp_path / "training_summary_car.json").read_text())["figures"][
            "non_finite_batches"
        ]
        == 1
    )


def test_training_stops_when_the_loss_stays_not_finite(noise_pictures, tmp_path):
    trainer = trainer_of(noise_pictures, tmp_path, epochs=9)
    trainer.network.net = torch.nn.AvgPool2d(8)  # nothing else matters here
    trainer.network.out_layer = torch.nn.Linear(3, 128)
    torch.nn.init.constant_(trainer.network.out_layer.weight, float("nan"))
    with pytest.raises(
        ValueError,
        match=r"not finite in 10 batches in a row, up to epoch 2 .iteration 9.*smaller LEARNING_RATE",
    ):
        trainer.fit()
    assert not list(tmp_path.glob("saved_model*"))


@pytest.mark.parametrize(
    "recipe, at", [({}, [0]), ({"accumulate": 3}, [0, 3]), ({"accumulate": 1}, [0, 1, 2, 3])]
)
def test_the_optimiser_steps_at_iteration_0_and_then_at_every_accumulated_one(
    noise_pictures, tmp_path, recipe, at
):
    trainer = make_trainer(
        Group(),
        noise_pictures,
        tmp_path,
        replace(CONFIG, total_epochs=1, **({"accumulate": 10} | recipe)),
    )
    steps = []
    trainer.optimiser.step = lambda: steps.append(trainer.iteration)
    trainer.network.net, trainer.network.out_layer = torch.nn.AvgPool2d(8), torch.nn.Linear(3, 128)
    trainer.fit()
    assert steps == at


def bare_trainer(
    root: Path, folder: Path, names: list[list[str]] | None = None, workers: int = 0
) -> Trainer:
    """A trainer with a linear network."""
    names = names or [names_of(0), names_of(1)]
    datasets = [
        TrainingImages(PreparedSet(root), group, mesh, CONFIG)
        for group, mesh in zip(names, meshes(), strict=True)
    ]
    cpu = torch.device("cpu")
    trainer = Trainer(CONFIG, meshes(), datasets, Placement((cpu,), cpu, "test"), folder, workers)
    trainer.network.net, trainer.network.out_layer = torch.nn.AvgPool2d(8), torch.nn.Linear(3, 128)
    return trainer


def test_smaller_batches_are_tried_with_nothing_of_the_failed_step_alive(noise_pictures, tmp_path):
    trainer, computed, alive = trainer_of(noise_pictures, tmp_path), [], []

    def step(mesh, batch, counts, rate, report):
        alive.append([reference() is not None for reference in computed])
        activations = torch.zeros(9)
        computed.append(weakref.ref(activations))
        if len(batch.image) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    trainer.step = step
    with pytest.raises(
        ValueError,
        match="a batch of 4 images does not fit into the memory of cpu; BATCH_SIZE=1 fits",
    ):
        trainer.fit()
    assert alive == [[], [False], [False, False]]


def test_a_mesh_without_training_images_keeps_its_random_bank(noise_pictures, tmp_path):
    trainer = bare_trainer(noise_pictures, tmp_path, [names_of(0), []])
    before = [bank.memory.clone() for bank in trainer.banks]
    trainer.fit()
    assert not torch.equal(trainer.banks[0].memory, before[0]) and torch.equal(
        trainer.banks[1].memory, before[1]
    )
    assert len(load_checkpoint(tmp_path / "saved_model_car_last.pth").memory) == 2


def test_the_workers_are_divided_among_the_meshes_that_have_images(noise_pictures, tmp_path):
    for images, workers, expected in (
        (IMAGES, 4, [2, 2]),
        (IMAGES, 1, [1, 1]),
        (IMAGES, 0, [0, 0]),
        ((7, 0), 2, [2]),
    ):
        names = [names_of(mesh)[:number] for mesh, number in enumerate(images)]
        loaders = bare_trainer(noise_pictures, tmp_path, names, workers=workers).loaders
        assert [loader.num_workers for loader in loaders if loader] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_training_image_is_named_in_one_sentence(noise_pictures, workers):
    dataset = TrainingImages(PreparedSet(noise_pictures), names_of(0), meshes()[0], CONFIG)
    dataset.paths[3] = dataset.paths[3].with_name("gone.JPEG")
    with pytest.raises(ValueError) as caught:
        list(batches(make_loader(dataset, Group(), workers, False)))
    assert str(caught.value) == f"picture not found: {dataset.paths[3]}"


def test_a_training_does_not_go_on_with_another_cuboid(noise_pictures, tmp_path):
    trainer, (first, second) = bare_trainer(noise_pictures, tmp_path), meshes()
    trainer.save_state()
    assert trainer.resume()
    for other in ([Mesh(first.vertices * 1.01, first.faces), second], [second, first], [first]):
        trainer.meshes = other
        with pytest.raises(
            ValueError,
            match="training_state_car.pth is of an unfinished training with other cuboids; set RESUME=false",
        ):
            trainer.resume()


def test_a_checkpoint_of_another_cuboid_is_not_kept(tmp_path):
    saved = tiny_checkpoint()
    save_checkpoint(tmp_path / "saved_model_car_last.pth", saved)
    args = argparse.Namespace(
        save_dir=tmp_path,
        overwrite=False,
        prepared=tmp_path,
        azimuths=ALL_AZIMUTHS,
        raw=tmp_path,
        mesh_d="single",
    )
    assert train.kept(args, saved.config), "without cuboids there is nothing to compare"
    path = RawPascal3D(tmp_path).cuboid_folder("single", "car") / "01.off"
    write_off(path, saved.meshes[0])
    assert train.kept(args, saved.config)
    write_off(path, Mesh(saved.meshes[0].vertices + 1e-5, saved.meshes[0].faces))
    with pytest.raises(
        ValueError,
        match="was trained with other cuboids than those in .*CAD_single/car; set OVERWRITE=true",
    ):
        train.kept(args, saved.config)


def test_the_room_for_decoded_crops_counts_processes_and_what_is_there(
    noise_pictures, tmp_path, monkeypatch
):
    shutil.copytree(noise_pictures, tmp_path / "set", ignore=shutil.ignore_patterns("decoded"))
    prepared, names, needed = PreparedSet(tmp_path / "set"), [names_of(0), names_of(1)], []
    for kind in ("disk", "memory", "shared_memory"):
        monkeypatch.setattr(
            train,
            f"require_{kind}",
            lambda *rest, kind=kind: needed.append((kind, *[r for r in rest if type(r) is int])),
        )

    def asked(cache: str, workers: int, processes: int) -> tuple[str, int]:
        needed.clear()
        train.require_room(
            argparse.Namespace(image_cache=cache, save_dir=tmp_path),
            CONFIG,
            names,
            workers,
            processes,
            prepared,
        )
        return needed[0]

    crop = 3 * 128 * 336
    assert asked("memory", 0, 1) == ("memory", 12 * crop) and asked("memory", 2, 1) == (
        "shared_memory",
        12 * crop,
    )
    assert asked("memory", 0, 3) == ("memory", 36 * crop) and asked("disk", 0, 3) == (
        "disk",
        12 * crop,
    )
    kept = TrainingImages(prepared, names[0], meshes()[0], CONFIG, cache="disk")
    for index in range(len(kept)):
        kept[0, index]
    assert decoded_file(prepared, names[0], CONFIG).is_file()
    assert 4.5 * crop < asked("disk", 0, 1)[1] <= 5 * crop


def test_a_resumed_training_hides_only_the_steps_that_it_repeats(
    noise_pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_STATES", 0.0)
    monkeypatch.setattr(Trainer, "_draw", lambda *_: None)
    monkeypatch.setattr(
        Trainer, "_finish", lambda *_: None
    )  # as if killed before it, so that the state of the first epoch stays
    for went_on in (False, True):
        trainer = bare_trainer(noise_pictures, tmp_path)
        trainer.tensorboard = True
        assert trainer.resume() is went_on and trainer.epoch == int(went_on)
        trainer.fit()
    events = EventAccumulator(str(tmp_path / "tensorboard/car"), {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_validation_goes_on_in_halves_when_memory_is_short(noise_pictures, tmp_path, monkeypatch):
    tried = []

    def small(mesh, features, *rest):
        tried.append(len(features))
        if len(features) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        zeros = np.zeros(len(features))
        angles = {name: np.full(len(features), angle) for name, angle in truth.items()}
        pose = Pose(**angles, distance=zeros)
        return SolvedPoses(pose, zeros, zeros, zeros, zeros, zeros)

    truth = {"azimuth": 0.7, "elevation": 0.2, "theta": 0.1}
    monkeypatch.setattr(mesh_solver, "solve", small)
    monkeypatch.setattr(training, "load_annotation", lambda path: argparse.Namespace(**truth))
    trainer = trainer_of(noise_pictures, tmp_path)
    found = Validation(PreparedSet(noise_pictures), [names_of(0)[:5], []]).accuracy(
        trainer._model(), Group()
    )
    assert tried == [5, 2, 3, 1, 2] and found.value("pi/6") == 100 and found.value("median") < 1e-3


def test_a_full_card_outside_a_step_is_told_in_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20 GiB.\nSee the documentation"
        )

    monkeypatch.setattr(train, "_train_category", full)
    with pytest.raises(
        ValueError,
        match="training car does not fit into the memory of cuda:0; stop what else uses it",
    ) as caught:
        train.train_category(
            argparse.Namespace(save_dir=tmp_path), "car", place([0], False), Group()
        )
    assert "\n" not in str(caught.value)


def test_settings_of_training_are_checked_and_their_order_means_nothing():
    assert (
        train.in_order(("color", "flip"))
        == train.in_order(("flip", "color", "flip"))
        == ("flip", "color")
    )
    assert train.in_order(("wind", "flip")) == ("flip", "wind")
    assert (
        train.not_negative("0") == 0 and train.not_negative("5e-3") == 5e-3 and train.seed("3") == 3
    )
    for kind, texts in (
        (train.not_negative, ("-1", "nan", "inf", "x")),
        (train.seed, ("-1", "1.5", "", str(2**32))),
    ):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
                kind(text)


def test_times_of_other_azimuths_lie_elsewhere():
    def folder(stage: str, *azimuths: str) -> str:
        return (
            Experiment(Path("exp"), "single", Azimuths(*azimuths)).timing(stage, "car").parent.name
        )

    assert folder("train") == folder("solve_poses") == "Timings_single"
    assert folder("train", "TFFT") == folder("train", "TFFT", "seen") == "Timings_single_azum_TFFT"
    assert {folder("solve_poses", "TFFT", tested) for tested in ("seen", "unseen")} == {
        "Timings_single_azum_TFFT_seen",
        "Timings_single_azum_TFFT_unseen",
    }


def test_decoded_crops_on_disk_serve_the_next_training(noise_pictures, tmp_path):
    shutil.copytree(noise_pictures, tmp_path / "set")
    prepared, mesh = PreparedSet(tmp_path / "set"), meshes()[0]
    names = [p.stem for p in sorted((tmp_path / "set/images/car").glob("mesh0*"))]
    kept = TrainingImages(prepared, names, mesh, CONFIG, cache="disk")
    first = [kept[0, index] for index in range(len(names))]
    shutil.rmtree(tmp_path / "set/images")
    again = TrainingImages(prepared, names, mesh, CONFIG, cache="disk")
    for index, sample in enumerate(first):
        assert torch.equal(again[0, index].image, sample.image) and torch.equal(
            again[0, index].noise_cells, sample.noise_cells
        )
    assert not torch.equal(again[1, 0].noise_cells, first[0].noise_cells)
    prepared.remove("car")
    assert not (tmp_path / "set/decoded/car").exists()


def test_images_are_held_out_by_seed():
    names = [[f"a{i}" for i in range(30)], [], ["b0", "b1"]]
    train, held = hold_out(names, 0.25, 1)
    assert sum(map(len, held)) == 8 and all(
        sorted(t + h) == sorted(n) for t, h, n in zip(train, held, names, strict=True)
    )
    assert hold_out(names, 0.25, 1) == (train, held) and hold_out(names, 0.25, 2) != (train, held)
    for fraction in (0.01, 1.0):
        with pytest.raises(ValueError, match="too few to validate on or to train on"):
            hold_out(names, fraction, 1)


def test_a_similarity_picture_is_bright_where_the_vertex_is():
    vertices = torch.eye(4)[:3]
    features = torch.eye(4)[3][:, None, None].repeat(1, 4, 5)
    features[:, 2, 3] = vertices[1]
    features[:, 0, 0] = vertices[0]
    picture = similarity_picture(
        np.full((32, 40, 3), 100, np.uint8), features, vertices, 1, (4.0, 12.0)
    )
    photograph, best, single = picture.reshape(3, 32, 40, 3)
    assert (
        (best[16:24, 24:32] > 190).all() and (best[:8, :8] > 190).all() and (best[8:16] == 35).all()
    )
    assert (single[16:24, 24:32] > 190).all() and (single[:8, :2] == 35).all()
    assert (photograph[4, 12] == (0, 255, 0)).all() and (photograph[20] == 100).all()


def annotation_of(azimuth, elevation, theta, width=400) -> Annotation:
    bbox = np.array([40.0, 60.0, 340.0, 280.0])
    return Annotation(
        name="x",
        box=np.zeros(6),
        box_ori=np.array([60, 280, 40, 340, 300, width]),
        box_obj=np.array([0, 1, 0, 1, 256, 672]),
        cropped_kp_list=np.zeros((0, 2)),
        visible=np.zeros(0),
        pose=Pose(azimuth, elevation, theta, 6.0, np.array([188.0, 170.0])),
        focal=1.0,
        viewport=3000.0,
        height=300,
        width=width,
        cad_index=1,
        bbox=bbox,
        geometry="exact",
        crop_scale=1.2,
        crop_offset=np.zeros(2),
    )


def test_mirroring_an_annotation_mirrors_its_vertices():
    mesh = cuboid_mesh(
        cuboid_grid(
            np.array(np.meshgrid([-0.2, 0.2], [-0.45, 0.45], [-0.13, 0.13]))
            .reshape(3, -1)
            .T.repeat(50, 0),
            200,
        )
    )
    partner = [
        int(np.abs(mesh.vertices - vertex * [-1, 1, 1]).sum(1).argmin()) for vertex in mesh.vertices
    ]
    annotation = annotation_of(0.7, 0.3, 0.2)
    points, _ = annotation.vertices_in_crop(mesh)
    mirrored, _ = mirror(annotation).vertices_in_crop(mesh)
    inside = (points[:, 1] > 1) & (points[:, 1] < 670)
    np.testing.assert_allclose(mirrored[partner][inside, 1], 672 - points[inside, 1], atol=1e-6)
    np.testing.assert_allclose(mirrored[partner][inside, 0], points[inside, 0], atol=1e-6)


def test_patches_cover_what_they_say_and_nothing_else():
    image, donor = (
        torch.zeros(3, 64, 96, dtype=torch.uint8),
        torch.full((3, 64, 96), 9, dtype=torch.uint8),
    )
    points = np.random.default_rng(0).uniform([10, 20], [50, 80], (40, 2))
    shares = []
    for seed in range(20):
        changed, covered = paste_patches(image, donor, points, np.random.default_rng(seed))
        assert torch.equal(changed == 9, covered.expand(3, -1, -1))
        shares.append(covered.float().mean().item())
    assert min(shares) == 0 and 0.05 < max(shares) < 0.6


def tiny_checkpoint() -> Checkpoint:
    mesh = Mesh(np.eye(3), np.array([[0, 1, 2]], np.int32))
    config = TrainConfig(backbone="resnet18fpn", num_clutter_group=1, augment=("flip",))
    memory = torch.nn.functional.normalize(torch.randn(3 + 5, 128), dim=1)
    return Checkpoint(FeatureNet("resnet18fpn").state_dict(), [memory], [mesh], config, 7)


def test_checkpoints_survive_a_round_trip(tmp_path):
    saved = tiny_checkpoint()
    save_checkpoint(tmp_path / "a.pth", saved)
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.config == saved.config and loaded.epoch == 7
    assert all(torch.equal(loaded.state[key], value) for key, value in saved.state.items())
    assert [len(rows) for rows in loaded.banks(1)] == [3, 5]
    keys = torch.load(tmp_path / "a.pth", weights_only=True)
    assert {"state", "memory", "timestamp", "args"} <= set(keys) and all(
        k.startswith("module.") for k in keys["state"]
    )


def test_safetensors_hold_the_same_checkpoint(tmp_path, code):
    save_checkpoint(tmp_path / "a.pth", replace(tiny_checkpoint(), data="abc"))
    printed = code("export_checkpoint", tmp_path / "a.pth").stdout
    assert "1 checkpoint written as safetensors, 0 kept" in printed
    assert (
        "0 checkpoints written as safetensors, 1 kept"
        in code("export_checkpoint", tmp_path / "a.pth").stdout
    )
    expected, loaded = (
        load_checkpoint(tmp_path / "a.pth"),
        load_checkpoint(tmp_path / "a.safetensors"),
    )
    assert (loaded.config, loaded.epoch, loaded.data) == (expected.config, expected.epoch, "abc")
    assert loaded.state.keys() == expected.state.keys()
    assert all(torch.equal(loaded.state[key], value) for key, value in expected.state.items())
    assert torch.equal(loaded.memory[0], expected.memory[0]) and np.array_equal(
        loaded.meshes[0].faces, expected.meshes[0].faces
    )
    (tmp_path / "a.pth").unlink()
    code("export_checkpoint", tmp_path / "a.safetensors", "--to", "pth")
    back = load_checkpoint(tmp_path / "a.pth")
    assert back.config == expected.config and all(
        torch.equal(back.state[key], value) for key, value in expected.state.items()
    )
    export_checkpoint(tmp_path / "b.safetensors", expected)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_broken_or_foreign_safetensors_are_refused(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken\.safetensors: cannot be read as safetensors"):
        load_checkpoint(tmp_path / "broken.safetensors")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="lacks the metadata entry nemo"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_a_checkpoint_of_the_reference_loads_and_must_fit_its_mesh(tmp_path):
    path, bank = tmp_path / "saved_model_car_799.pth", torch.randn(1024 + 2560, 128)
    arguments = argparse.Namespace(lr=2e-4, type_="bus")
    content = {
        "state": {"module.out_layer.bias": torch.zeros(128)},
        "memory": [bank],
        "timestamp": 3,
        "args": arguments,
    }
    torch.save(content, path)
    loaded = load_checkpoint(path)
    assert loaded.config.category == "bus" and loaded.config.learning_rate == 2e-4
    with pytest.raises(ValueError, match="trained on bus, not on car"):
        load_model(path, "car", tmp_path)
    assert (
        loaded.meshes is None
        and "out_layer.bias" in loaded.state
        and len(loaded.banks(1)[0]) == 1024
    )
    mesh = Mesh(np.zeros((1092, 3)), np.zeros((0, 3), np.int32))
    with pytest.raises(ValueError, match=r"1024 vertices.*01\.off has 1092"):
        loaded.with_meshes([mesh], tmp_path)


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path):
    torch.save({"state": {}, "memory": [], "args": Trap(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth.*safely"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_pretrained_weights_that_do_not_exist_or_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="PRETRAINED is 'imagenets'"):
        build_network("resnet18fpn", "imagenets")
    torch.save(FeatureNet("resnet18fpn").net.stem.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="pretrained weights lack"):
        build_network("resnetext", str(tmp_path / "other.pth"))


def test_pretrained_weights_come_from_a_file(tmp_path):
    import torchvision

    trunk = torchvision.models.resnet18(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "weights.pth")
    network = build_network("resnet18fpn", str(tmp_path / "weights.pth"))
    assert torch.equal(network.net.layer3[0].conv1.weight, trunk.layer3[0].conv1.weight)
    torch.save({"conv1.weight": trunk.conv1.weight}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="pretrained weights lack"):
        build_network("resnet18fpn", str(tmp_path / "part.pth"))
