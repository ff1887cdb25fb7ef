"""From feature maps to saved poses: failing images, overlap, shares of processes, precision."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import CuboidGrid, cuboid_mesh
from neural_mesh.machine.devices import images_at_a_time
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.settings import SolveConfig, TrainConfig
from neural_mesh.solve import mesh_solver, run, shards, solver
from neural_mesh.solve.batches import ANY_MESH, PreparedSubset
from neural_mesh.solve.mesh_solver import MeshSolver
from neural_mesh.solve.model import Model, resolve_precision
from neural_mesh.solve.run import Run, RunOptions
from neural_mesh.solve.shards import Shard
from neural_mesh.stages.solve_poses import device_here, forget_times, shard_here
from neural_mesh.storage.results import FeatureSet, load_poses
from neural_mesh.storage.timings import record_seconds

MESH = cuboid_mesh(CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (3, 6, 4)))
NAMES = [f"n{i:02d}" for i in range(11)]
MAP_HW = (32, 84)
CONFIG = replace(SolveConfig(), total_epochs=3)


def noise_model() -> SimpleNamespace:
    """A model with random features of the vertices."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(len(MESH.vertices), 8, generator=generator)
    clutter = torch.randn(1, 8, generator=generator)
    bank = torch.nn.functional.normalize(bank, dim=1)
    clutter = torch.nn.functional.normalize(clutter, dim=1)
    return SimpleNamespace(
        checkpoint=SimpleNamespace(config=TrainConfig(category="car"), fingerprint="f"),
        device=torch.device("cpu"),
        map_hw=MAP_HW,
        mesh=lambda number: MESH,
        banks=lambda number: (bank, clutter[0]),
    )


def make_run(folder, maps, config=CONFIG, **options) -> Run:
    """A run over stored feature maps."""
    prepared = SimpleNamespace(fingerprint=lambda subset: "d")
    images = PreparedSubset(prepared, "", {1: NAMES})
    stored = FeatureSet(maps, {}, {}, {1: NAMES}, {})
    division = RunOptions(batch_size=4, **options)
    return Run(noise_model(), images, config, folder / "car.npz", division, stored)


@pytest.fixture(scope="module")
def maps():
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal((8, *MAP_HW)).astype(np.float32) for name in NAMES}


def solve_all(folder, maps, **options):
    whole = make_run(folder, maps, **options)
    counted = []
    whole.execute(counted.append)
    return whole, sum(counted)


def test_how_many_images_at_a_time():
    cpu = torch.device("cpu")
    gpu = torch.device("cuda", 1)
    assert images_at_a_time("auto", cpu) == 8
    assert images_at_a_time("auto", gpu) == 64
    assert images_at_a_time("7", gpu) == 7
    for text in ("0", "many", "-1"):
        sentence = f'BATCH_SIZE is "{text}", it can be auto or a whole number above 0'
        with pytest.raises(ValueError, match=sentence):
            images_at_a_time(text, cpu)


def test_overlapped_solving_gives_the_same_bytes(maps, tmp_path):
    for folder, overlap in (("a", False), ("b", True)):
        _, images = solve_all(tmp_path / folder, maps, overlap=overlap)
        assert images == len(NAMES)
    assert (tmp_path / "a/car.npz").read_bytes() == (tmp_path / "b/car.npz").read_bytes()


@pytest.mark.parametrize("overlap", [True, False])
def test_an_image_that_fails_is_reported_and_the_others_are_solved(
    maps, tmp_path, monkeypatch, capsys, overlap
):
    spoilt = maps | {"n05": np.full_like(maps["n05"], np.nan)}
    sound, _ = solve_all(tmp_path / "sound", maps)
    marked = torch.from_numpy(maps["n09"])
    solve = mesh_solver.solve

    def sometimes(mesh, features, *others):
        if any(torch.equal(f, marked) for f in features):
            raise RuntimeError("out of luck\nat length")
        return solve(mesh, features, *others)

    monkeypatch.setattr(mesh_solver, "solve", sometimes)
    failing, _ = solve_all(tmp_path / "spoilt", spoilt, overlap=overlap)
    assert failing.failures == [
        "n05: its feature map is not finite",
        "n09: the solver failed (out of luck)",
    ]
    assert "skipped: n09: the solver failed" in capsys.readouterr().err
    poses = load_poses(tmp_path / "spoilt/car.npz")
    kept = [name for name in NAMES if name not in ("n05", "n09")]
    assert poses.names.tolist() == kept
    expected = [sound.poses.images[name].loss for name in kept]
    np.testing.assert_allclose(poses.loss, expected, atol=1e-9)

    monkeypatch.setattr(mesh_solver, "solve", solve)
    again = make_run(tmp_path / "spoilt", maps)
    again.poses.collect()
    assert len(again.poses.images) == 9
    assert again.poses.finished() is None
    again.execute(lambda images: None)
    assert load_poses(tmp_path / "spoilt/car.npz").names.tolist() == NAMES


def test_a_run_in_which_every_image_fails_says_so(maps, tmp_path):
    broken = {name: np.full_like(values, np.nan) for name, values in maps.items()}
    with pytest.raises(ValueError, match="no test image of car could be solved"):
        solve_all(tmp_path, broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overlap", [True, False])
def test_a_killed_run_goes_on_where_it_was(maps, tmp_path, monkeypatch, overlap):
    monkeypatch.setattr(run, "SECONDS_BETWEEN_SAVES", -1.0)
    solve_all(tmp_path / "whole", maps)
    seen = []

    def stop_in_the_third_batch(images):
        seen.append(images)
        if len(seen) == 4:  # the first call counts what was there before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / "killed", maps, overlap=overlap).execute(stop_in_the_third_batch)
    again = make_run(tmp_path / "killed", maps, overlap=overlap)
    again.poses.collect()
    assert sorted(again.poses.images) == NAMES[:8]
    again.execute(lambda images: None)
    assert (tmp_path / "killed/car.npz").read_bytes() == (tmp_path / "whole/car.npz").read_bytes()


def test_shares_of_several_processes_are_disjoint_and_merged(maps, tmp_path):
    for rank in range(3):
        share, images = solve_all(tmp_path / "shared", maps, shard=Shard(rank, 3))
        assert images == len(share.poses.images)
        assert not (tmp_path / "shared/car.npz").is_file()
    last = make_run(tmp_path / "shared", maps)
    last.poses.collect()
    assert len(last.poses.images) == len(NAMES)
    last.execute(lambda images: None)
    solve_all(tmp_path / "alone", maps)
    assert (tmp_path / "shared/car.npz").read_bytes() == (tmp_path / "alone/car.npz").read_bytes()
    assert [p.name for p in sorted((tmp_path / "shared").iterdir())] == ["car.csv", "car.npz"]


def test_a_merge_leaves_alone_what_it_did_not_use(maps, tmp_path, capsys):
    for rank in range(2):
        solve_all(tmp_path, maps, shard=Shard(rank, 2))
    shares = sorted(tmp_path.glob("*.partial-*"))
    longer = make_run(tmp_path, maps, config=replace(CONFIG, total_epochs=4))
    longer.poses.collect()
    assert not longer.poses.images
    note = f"note: {shares[0]} is of other settings and is not used"
    assert note in capsys.readouterr().err
    longer.execute(lambda images: None)
    assert sorted(tmp_path.glob("*.partial-*")) == shares
    assert len(load_poses(tmp_path / "car.npz")) == len(NAMES)
    rounded = make_run(tmp_path, maps, config=replace(CONFIG, precision="bfloat16"))
    sentence = (
        "car.partial-0-of-2.npz was solved with PRECISION=auto, "
        "this run has PRECISION=bfloat16: set"
    )
    with pytest.raises(ValueError, match=sentence):
        rounded.poses.collect()


def test_the_start_grid_is_rendered_once_and_gives_the_same_bytes(maps, tmp_path, monkeypatch):
    made = []
    solve = mesh_solver.solve
    make_starts = solver.make_starts

    def counted_starts(*arguments):
        made.append(make_starts(*arguments))
        return made[-1]

    monkeypatch.setattr(solver, "make_starts", counted_starts)
    solve_all(tmp_path / "once", maps)
    assert len(made) == 1
    monkeypatch.setattr(mesh_solver, "solve", lambda *arguments: solve(*arguments[:-1]))
    solve_all(tmp_path / "always", maps)
    assert (tmp_path / "once/car.npz").read_bytes() == (tmp_path / "always/car.npz").read_bytes()


def test_a_share_counts_its_own_images_only(maps, tmp_path, monkeypatch):
    solve_all(tmp_path, maps, shard=Shard(0, 2))
    other = make_run(tmp_path, maps, shard=Shard(1, 2))
    other.poses.collect()
    assert not other.poses.images
    assert other.poses.merged_files == [tmp_path / "car.partial-0-of-2.npz"]

    def merged_meanwhile(path):
        path.unlink()
        raise ValueError("cannot be read")

    monkeypatch.setattr(shards, "load_poses", merged_meanwhile)
    again = make_run(tmp_path, maps, shard=Shard(1, 2))
    again.poses.collect()
    assert not again.poses.merged_files


def test_of_several_meshes_one_without_a_finite_loss_is_never_the_best(monkeypatch):
    losses = {1: [np.nan, 0.2, 0.3, np.nan], 2: [0.5, 0.1, np.nan, np.nan]}
    model = noise_model()
    model.checkpoint.memory = [0, 0]
    zeros = np.zeros(4)
    pose = Pose(zeros, zeros, zeros, zeros)

    def solve(solver, number, features):
        return SimpleNamespace(pose=pose, start=zeros, loss=np.array(losses[number]))

    monkeypatch.setattr(MeshSolver, "solve", solve)
    mesh_solver = MeshSolver(model, CONFIG, NumbaRenderer())
    solved = mesh_solver.solve_images(ANY_MESH, torch.zeros(4, 8, *MAP_HW))
    assert [image.mesh for image in solved] == [2, 2, 1, 1]
    assert [image.loss for image in solved[:3]] == [0.5, 0.1, 0.3]


def test_features_go_into_renderers_with_automatic_differentiation():
    torch.manual_seed(0)
    checkpoint = SimpleNamespace(config=TrainConfig(category="car"))
    model = Model(checkpoint, FeatureNet("resnet18fpn").eval(), torch.device("cpu"))
    features = model.features(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8))
    scale = torch.ones((), requires_grad=True)
    (features * scale).sum().backward()  # keeps the features for the backward pass
    assert not features.requires_grad
    assert scale.grad.isfinite()


def test_times_of_poses_that_are_gone_are_forgotten(tmp_path):
    alone = tmp_path / "solve_poses_car.json"
    share = tmp_path / "solve_poses_car_share1of2.json"
    for settings, shares_too, left in (
        ("a", False, [alone, share]),
        ("a", True, [alone]),
        ("b", False, []),
    ):
        for path in (alone, share):
            record_seconds(path, 1.0, 1, "images", settings="a")
        forget_times(alone, settings, shares_too)
        assert sorted(tmp_path.iterdir()) == left


def test_torchrun_says_which_share_and_which_gpu():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert shard_here(None, environment) == (5, 8)
    assert shard_here(None, {}) == (0, 1)
    assert shard_here(Shard(1, 2), environment) == (1, 2)
    assert device_here([0, 3], environment) == torch.device("cuda", 3)
    assert device_here([2], environment) == torch.device("cuda", 2)
    assert device_here([], environment) == torch.device("cpu")


def test_precision_of_the_backbone():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", "best", cpu) == "float32"
    assert resolve_precision("auto", "paper", cpu) == "float32"
    assert resolve_precision("bfloat16", "paper", cpu) == "bfloat16"
    sentence = "PRECISION must be one of auto, float32, bfloat16, found 'half'"
    with pytest.raises(ValueError, match=sentence):
        resolve_precision("half", "best", cpu)
    torch.manual_seed(0)
    checkpoint = SimpleNamespace(config=TrainConfig(category="car"))
    full = Model(checkpoint, FeatureNet("resnet18fpn").eval(), cpu)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    exact = full.features(images)
    rough = replace(full, precision="bfloat16").features(images)
    assert exact.dtype == rough.dtype == torch.float32
    similarity = (exact * rough).sum(1)
    assert 0.98 < similarity.min() < 1 - 1e-6


def test_memory_budget_is_a_share_of_what_is_free(monkeypatch):
    assert 0 < solver.memory_budget(torch.device("cpu")) <= solver.MEMORY_BUDGET
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert solver.memory_budget(torch.device("cuda")) == 250
