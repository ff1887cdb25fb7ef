"""From feature maps to saved poses: failing images, overlap, shares of several processes, precision."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import solve_poses
from neural_mesh.geometry.meshes import CuboidGrid, cuboid_mesh
from neural_mesh.machine.devices import images_at_a_time
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.settings import SolveConfig, TrainConfig
from neural_mesh.solve import inference, pose
from neural_mesh.storage.results import FeatureSet, load_poses
from neural_mesh.storage.timings import record_seconds

MESH = cuboid_mesh(CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (3, 6, 4)))
NAMES = [f"n{i:02d}" for i in range(11)]
MAP_HW = (32, 84)
CONFIG = replace(SolveConfig(), total_epochs=3)


def make_run(folder, maps, **options) -> inference.Run:
    """A run over stored feature maps, with random features of the vertices."""
    generator = torch.Generator().manual_seed(0)
    bank, clutter = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)
        for n in (len(MESH.vertices), 1)
    )
    model = SimpleNamespace(
        checkpoint=SimpleNamespace(config=TrainConfig(category="car"), fingerprint="f"),
        device=torch.device("cpu"),
        map_hw=MAP_HW,
        mesh=lambda number: MESH,
        banks=lambda number: (bank, clutter[0]),
    )
    prepared = SimpleNamespace(fingerprint=lambda subset: "d")
    stored = FeatureSet(maps, {}, {}, {1: NAMES}, {})
    config = options.pop("config", CONFIG)
    return inference.Run(
        model,
        prepared,
        "",
        config,
        folder / "car.npz",
        {1: NAMES},
        4,
        stored_features=stored,
        **options,
    )


@pytest.fixture(scope="module")
def maps():
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal((8, *MAP_HW)).astype(np.float32) for name in NAMES}


def solve_all(folder, maps, **options):
    run = make_run(folder, maps, **options)
    counted = []
    run.execute(counted.append)
    return run, sum(counted)


def test_how_many_images_at_a_time():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert [
        images_at_a_time("auto", cpu),
        images_at_a_time("auto", gpu),
        images_at_a_time("7", gpu),
    ] == [8, 64, 7]
    for text in ("0", "many", "-1"):
        with pytest.raises(
            ValueError, match=f'BATCH_SIZE is "{text}", it can be auto or a whole number above 0'
        ):
            images_at_a_time(text, cpu)


def test_overlapped_solving_gives_the_same_bytes(maps, tmp_path):
    for folder, overlap in (("a", False), ("b", True)):
        assert solve_all(tmp_path / folder, maps, overlap=overlap)[1] == len(NAMES)
    assert (tmp_path / "a/car.npz").read_bytes() == (tmp_path / "b/car.npz").read_bytes()


@pytest.mark.parametrize("overlap", [True, False])
def test_an_image_that_fails_is_reported_and_the_others_are_solved(
    maps, tmp_path, monkeypatch, capsys, overlap
):
    spoilt = maps | {"n05": np.full_like(maps["n05"], np.nan)}
    sound, marked, solve = (
        solve_all(tmp_path / "sound", maps)[0],
        torch.from_numpy(maps["n09"]),
        inference.solve,
    )

    def sometimes(mesh, features, *others):
        if any(torch.equal(f, marked) for f in features):
            raise RuntimeError("out of luck\nat length")
        return solve(mesh, features, *others)

    monkeypatch.setattr(inference, "solve", sometimes)
    run, _ = solve_all(tmp_path / "spoilt", spoilt, overlap=overlap)
    assert run.failures == [
        "n05: its feature map is not finite",
        "n09: the solver failed (out of luck)",
    ]
    assert "skipped: n09: the solver failed" in capsys.readouterr().err
    poses = load_poses(tmp_path / "spoilt/car.npz")
    kept = [name for name in NAMES if name not in ("n05", "n09")]
    assert poses.names.tolist() == kept
    np.testing.assert_allclose(poses.loss, [sound.rows[name]["loss"] for name in kept], atol=1e-9)
    monkeypatch.setattr(inference, "solve", solve)
    again = make_run(tmp_path / "spoilt", maps)
    again.collect()
    assert len(again.rows) == 9 and again.finished() is None
    again.execute(lambda images: None)
    assert load_poses(tmp_path / "spoilt/car.npz").names.tolist() == NAMES


@pytest.mark.parametrize("overlap", [True, False])
def test_a_killed_run_goes_on_where_it_was(maps, tmp_path, monkeypatch, overlap):
    monkeypatch.setattr(inference, "SECONDS_BETWEEN_SAVES", -1.0)
    solve_all(tmp_path / "whole", maps)
    seen = []

    def stop_in_the_third_batch(images):
        seen.append(images)
        if len(seen) == 4:  # the first call counts what was there before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / "killed", maps, overlap=overlap).execute(stop_in_the_third_batch)
    again = make_run(tmp_path / "killed", maps, overlap=overlap)
    again.collect()
    assert sorted(again.rows) == NAMES[:8]
    again.execute(lambda images: None)
    assert (tmp_path / "killed/car.npz").read_bytes() == (tmp_path / "whole/car.npz").read_bytes()


def test_shares_of_several_processes_are_disjoint_and_merged(maps, tmp_path):
    for rank in range(3):
        run, images = solve_all(tmp_path / "shared", maps, shard=(rank, 3))
        assert images == len(run.rows) and not (tmp_path / "shared/car.npz").is_file()
    last = make_run(tmp_path / "shared", maps)
    last.collect()
    assert len(last.rows) == len(NAMES)
    last.execute(lambda images: None)
    solve_all(tmp_path / "alone", maps)
    assert (tmp_path / "shared/car.npz").read_bytes() == (tmp_path / "alone/car.npz").read_bytes()
    assert [p.name for p in sorted((tmp_path / "shared").iterdir())] == ["car.csv", "car.npz"]


def test_a_merge_leaves_alone_what_it_did_not_use(maps, tmp_path, capsys):
    for rank in range(2):
        solve_all(tmp_path, maps, shard=(rank, 2))
    shares = sorted(tmp_path.glob("*.partial-*"))
    longer = make_run(tmp_path, maps, config=replace(CONFIG, total_epochs=4))
    longer.collect()
    assert (
        not longer.rows
        and f"note: {shares[0]} is of other settings and is not used" in capsys.readouterr().err
    )
    longer.execute(lambda images: None)
    assert sorted(tmp_path.glob("*.partial-*")) == shares and len(
        load_poses(tmp_path / "car.npz")
    ) == len(NAMES)
    with pytest.raises(
        ValueError,
        match="car.partial-0-of-2.npz was solved with PRECISION=auto, this run has PRECISION=bfloat16: set",
    ):
        make_run(tmp_path, maps, config=replace(CONFIG, precision="bfloat16")).collect()


def test_the_start_grid_is_rendered_once_and_gives_the_same_bytes(maps, tmp_path, monkeypatch):
    made, solve, starts_of = [], inference.solve, inference.starts_of
    monkeypatch.setattr(
        inference, "starts_of", lambda *arguments: made.append(starts_of(*arguments)) or made[-1]
    )
    solve_all(tmp_path / "once", maps)
    assert len(made) == 1
    monkeypatch.setattr(inference, "solve", lambda *arguments: solve(*arguments[:-1]))
    solve_all(tmp_path / "always", maps)
    assert (tmp_path / "once/car.npz").read_bytes() == (tmp_path / "always/car.npz").read_bytes()


def test_a_share_counts_its_own_images_only(maps, tmp_path, monkeypatch):
    solve_all(tmp_path, maps, shard=(0, 2))
    other = make_run(tmp_path, maps, shard=(1, 2))
    other.collect()
    assert not other.rows and other.used == [tmp_path / "car.partial-0-of-2.npz"]

    def merged_meanwhile(path):
        path.unlink()
        raise ValueError("cannot be read")

    monkeypatch.setattr(inference, "load_poses", merged_meanwhile)
    again = make_run(tmp_path, maps, shard=(1, 2))
    again.collect()
    assert not again.used


def test_of_several_meshes_one_without_a_finite_loss_is_never_the_best(maps, tmp_path):
    found = {1: [np.nan, 0.2, 0.3, np.nan], 2: [0.5, 0.1, np.nan, np.nan]}
    run = make_run(tmp_path, maps)
    run.model.checkpoint.memory = [0, 0]
    columns = {key: np.zeros(4) for key in run.columns if key not in ("mesh", "loss")}
    run.solver = SimpleNamespace(
        solve=lambda number, _: SimpleNamespace(**columns, loss=np.array(found[number]))
    )
    rows = run._rows(inference.ANY_MESH, torch.zeros(4, 8, *MAP_HW))
    assert [row["mesh"] for row in rows] == [2, 2, 1, 1] and [row["loss"] for row in rows[:3]] == [
        0.5,
        0.1,
        0.3,
    ]


def test_features_go_into_renderers_with_automatic_differentiation():
    torch.manual_seed(0)
    model = inference.Model(
        SimpleNamespace(config=TrainConfig(category="car")),
        FeatureNet("resnet18fpn").eval(),
        torch.device("cpu"),
    )
    features = model.features(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8))
    scale = torch.ones((), requires_grad=True)
    (features * scale).sum().backward()  # keeps the features for the backward pass
    assert not features.requires_grad and scale.grad.isfinite()


def test_times_of_poses_that_are_gone_are_forgotten(tmp_path):
    alone, share = tmp_path / "solve_poses_car.json", tmp_path / "solve_poses_car_share1of2.json"
    for settings, shares_too, left in (
        ("a", False, [alone, share]),
        ("a", True, [alone]),
        ("b", False, []),
    ):
        for path in (alone, share):
            record_seconds(path, 1.0, 1, "images", settings="a")
        solve_poses.forget_times(alone, settings, shares_too)
        assert sorted(tmp_path.iterdir()) == left


def test_torchrun_says_which_share_and_which_gpu():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert solve_poses.shard_here(None, environment) == (5, 8)
    assert solve_poses.shard_here(None, {}) == (0, 1) and solve_poses.shard_here(
        (1, 2), environment
    ) == (1, 2)
    assert solve_poses.device_here([0, 3], environment) == torch.device("cuda", 3)
    assert solve_poses.device_here([2], environment) == torch.device("cuda", 2)
    assert solve_poses.device_here([], environment) == torch.device("cpu")


def test_precision_of_the_backbone():
    cpu = torch.device("cpu")
    assert (
        inference.resolve_precision("auto", "best", cpu)
        == "float32"
        == inference.resolve_precision("auto", "paper", cpu)
    )
    assert inference.resolve_precision("bfloat16", "paper", cpu) == "bfloat16"
    with pytest.raises(
        ValueError, match="PRECISION must be one of auto, float32, bfloat16, found 'half'"
    ):
        inference.resolve_precision("half", "best", cpu)
    torch.manual_seed(0)
    checkpoint = SimpleNamespace(config=TrainConfig(category="car"))
    full = inference.Model(checkpoint, FeatureNet("resnet18fpn").eval(), cpu)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    exact, rough = full.features(images), replace(full, precision="bfloat16").features(images)
    assert exact.dtype == rough.dtype == torch.float32
    similarity = (exact * rough).sum(1)
    assert 0.98 < similarity.min() < 1 - 1e-6


def test_memory_budget_is_a_share_of_what_is_free(monkeypatch):
    assert 0 < pose.memory_budget(torch.device("cpu")) <= pose.MEMORY_BUDGET
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert pose.memory_budget(torch.device("cuda")) == 250
