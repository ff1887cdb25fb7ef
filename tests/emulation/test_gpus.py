"""What the host does in a run on GPUs, on pretended ones: what lies where, when it waits, what it
launches.

Tests named after triton run in its interpreter, see
`test_rendering.test_cuda_kernel_in_the_interpreter`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from helpers.planted import (
    BEST,
    PAPER,
    SMALL_HW,
    golden_problem,
    planted_problem,
    rotation_error_deg,
)
from helpers.pretend_gpus import PretendGPUs, pretend_gpus
from helpers.project import cannot_run
from helpers.ptx import Program, UnknownInstruction
from helpers.small_training import CONFIG, outcome, small_data, write_prepared
from neural_mesh.compare import with_triton
from neural_mesh.compare.scene import Renderer, look_at, make_scene
from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.compare.with_triton import TritonRenderer
from neural_mesh.geometry.cameras import camera_centre, paper_camera
from neural_mesh.machine.devices import place
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.choose_renderer import choose_renderer, triton_agrees
from neural_mesh.solve.plan import choose_camera
from neural_mesh.solve.solver import Setup, make_setup, solve
from neural_mesh.training.setup import Hardware
from neural_mesh.training.step import Learner
from neural_mesh.training.trainer import Trainer

GPU = torch.device("cuda", 1)
SOLVERS = {"paper": replace(PAPER, total_epochs=6), "best": BEST}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:'pin_memory' argument is set as true", "ignore:.*CUDA is not available"
    ),  # true
]
in_interpreter = pytest.mark.skipif(
    not os.environ.get("TRITON_INTERPRET"),
    reason="for Triton's interpreter, which another test starts",
)


def setup_of(config: SolveConfig, renderer: Renderer) -> Setup:
    """As a category's maps are solved."""
    return make_setup(config, *choose_camera(config, "car", SMALL_HW), renderer)


@pytest.fixture
def gpus():
    with pretend_gpus(2) as pretended:
        yield pretended


def test_the_pretence_keeps_the_rules(gpus: PretendGPUs):
    """What these tests rely on, so that they can fail."""
    here, there = torch.ones(3), torch.ones(3).to(GPU)
    assert (
        there.is_cuda
        and there.device == (there * 2)[1:].device == torch.zeros(2, device=GPU).device == GPU
        and not here.is_cuda
    )
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: there + there.to("cuda:0"),
        lambda: here[there.long()],
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="can't convert cuda:1 device type tensor to numpy"):
        there.numpy()
    there.cpu().zero_()
    assert there.tolist() == [1, 1, 1] and (there * torch.tensor(2.0))[0] == 2
    gpus.log.clear()
    assert (
        here.pin_memory().to(GPU, non_blocking=True).sum().device == GPU and here.sum().item() == 3
    )
    assert gpus.log == []
    for wait in (
        lambda x: x.sum().item(),
        lambda x: bool(x[0]),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        here.to,
    ):
        gpus.log.clear()
        wait(there)
        assert len(gpus.log) >= 1, wait


@pytest.mark.parametrize("renderer", ["torch", "numba"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gpus_features_give_the_poses_of_the_cpus(gpus, solver, renderer):
    problem, _ = planted_problem(2, 0.1)
    config = SOLVERS[solver]
    on_cpu = setup_of(config, choose_renderer(renderer, torch.device("cpu")))
    on_gpu = setup_of(config, choose_renderer(renderer, GPU))
    expected = solve(*problem, on_cpu)
    found = solve(*problem.to(GPU), on_gpu)
    for key in ("start_losses", "centre", "loss", "evaluations"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))


@in_interpreter
@pytest.mark.parametrize("solver", SOLVERS)
def test_triton_never_waits_between_the_first_launch_and_the_last(gpus, solver):
    """Of batches after the first nothing waits, from the features' scores to the end of the last
    stage.
    """
    problem = planted_problem(2, 0.1)[0].to(GPU)
    setup = setup_of(SOLVERS[solver], TritonRenderer(GPU))
    starts = setup.starts(problem.mesh)
    found = []
    for _ in range(2):
        gpus.log.clear()
        found.append(solve(*problem, setup, starts).centre)
    launches = len(setup.plan.stages)
    assert gpus.log[:launches] == ["launch"] * launches
    assert "launch" not in gpus.log[launches:]
    np.testing.assert_array_equal(*found)


def test_auto_leaves_triton_where_it_does_not_agree_and_says_why(gpus, monkeypatch, capsys):
    pytest.importorskip("triton")
    kernels, notes = with_triton.kernels(), []

    def resolved() -> str:
        triton_agrees.cache_clear()
        return choose_renderer("auto", GPU).name

    def undefined(mesh, focal, scores, candidates, *_: object) -> None:
        for tensor in candidates:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)

    def fail(*_: object) -> None:
        raise RuntimeError("at 1:0:\n\nno C compiler\n")

    for broken in (lambda *_: None, undefined, fail):
        monkeypatch.setattr(kernels, "advance", broken)
        assert resolved() == "numba"
        notes.append(capsys.readouterr().err)
    assert notes[0].count("note: RENDERER=auto uses numba; on cuda:1") == 1 and notes[0].endswith(
        "they differ by inf\n"
    )
    assert notes[1].endswith("they differ by nan\n")
    assert notes[2].endswith("they failed with RuntimeError: at 1:0: ... no C compiler\n")
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(
        ValueError, match="have left cuda:1 unusable, they failed with .*; set RENDERER=numba"
    ):
        resolved()


@pytest.fixture
def compiled_gpus(request):
    """Pretended GPUs of a compute capability, whose kernels Triton compiles and `ptx` runs."""
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("kernels are not compiled in the interpreter")
    driver = pytest.importorskip("triton.runtime").driver
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", request.param, 32)
    programs, before = {}, dict(vars(driver))

    def compile_and_run(kernel: object, grid: tuple, arguments: tuple, options: dict) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        assert compiled.metadata.target == target and len(compiled.asm["cubin"]) > 10_000
        program = programs.setdefault(
            compiled.hash, Program(compiled.asm["ptx"], 32 * compiled.metadata.num_warps)
        )
        fixed = {
            name if isinstance(name, str) else kernel.arg_names[name[0]]
            for name in compiled.src.constants
        }
        try:
            program.run(
                grid[0],
                [
                    x
                    for name, x in zip(kernel.arg_names, arguments, strict=False)
                    if name not in fixed
                ],
            )
        except UnknownInstruction as error:
            message = f"tests/helpers/ptx.py does not know the instruction `{error}`"
            cannot_run(message, "REQUIRE_KNOWN_INSTRUCTIONS")

    there = {
        "get_current_target": lambda: target,
        "get_current_device": lambda: request.param,
        "get_current_stream": lambda device: 0,
    }
    driver.set_active(SimpleNamespace(**there))
    try:
        with pretend_gpus(2, compile_and_run):
            yield programs
    finally:
        vars(driver).update(before)


CAPABILITIES = [80, *(pytest.param(other, marks=pytest.mark.slow) for other in (75, 90))]


@pytest.mark.parametrize("compiled_gpus", CAPABILITIES, indirect=True)
def test_auto_takes_compiled_triton(compiled_gpus, capsys):
    """With the trial that decides it, of both solvers, on a cuboid and on a mesh that is none, in
    the code for a GPU.
    """
    assert choose_renderer("auto", GPU).name == "triton" and capsys.readouterr().err == ""
    assert len(compiled_gpus) >= 4 and all(
        program.executed > 10_000 for program in compiled_gpus.values()
    )


@pytest.mark.parametrize("compiled_gpus", CAPABILITIES, indirect=True)
def test_compiled_triton_follows_numba(compiled_gpus):
    """In loss and gradients; and step for step, also where Triton compiles a single step into the
    kernel.
    """
    problem, true = planted_problem(2, 0.1)
    there = problem.to(GPU)
    scene = make_scene(problem.mesh, paper_camera(SMALL_HW))
    numba, triton = NumbaRenderer(), TritonRenderer(GPU)
    near = camera_centre(true.azimuth + 0.1, true.elevation, 4.5)
    centre = torch.as_tensor(near, dtype=torch.float32)
    rotation = look_at(centre, torch.as_tensor(true.theta, dtype=torch.float32))
    expected = numba.compare(scene, numba.target(*problem[1:]), centre, rotation)
    found = triton.compare(scene, triton.target(*there[1:]), centre.to(GPU), rotation.to(GPU))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.cpu(), y, atol=2e-6, rtol=1e-5)
    for config in (replace(PAPER, total_epochs=8), replace(PAPER, total_epochs=1), BEST):
        expected = solve(*problem, setup_of(config, numba), trace=True)
        found = solve(*there, setup_of(config, triton), trace=True)
        np.testing.assert_allclose(found.path_losses, expected.path_losses, atol=1e-5)
        np.testing.assert_allclose(found.path, expected.path, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("compiled_gpus", [90], indirect=True)
def test_compiled_triton_reproduces_the_reference(compiled_gpus, golden):
    """All of golden/solve: 301 evaluations of 12 maps in the code for a GPU."""
    data = golden("solve.npz")
    camera = paper_camera(data["features"].shape[2:])
    setup = make_setup(PAPER, camera, 5.0, TritonRenderer(GPU))
    poses = solve(*golden_problem(data).to(GPU), setup)
    np.testing.assert_array_equal(poses.start, data["start_index"])
    assert rotation_error_deg(poses.pose, data["rot_pred"]).max() < 0.2
    np.testing.assert_allclose(poses.loss, data["final_loss"], atol=1e-3)


def trained(root: Path, name: str, gpus: list[int], separate_bank: bool) -> Trainer:
    """A finished training on the noise pictures below root."""
    hardware = Hardware(place(gpus, separate_bank))
    trainer = Trainer(CONFIG, small_data(root, CONFIG), hardware, root / name)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("separate_bank", [pytest.param(False, marks=pytest.mark.slow), True])
def test_training_on_gpus_ends_as_on_the_cpu(gpus, tmp_path, separate_bank):
    """Weights, banks and losses, with the bank beside the network or on a GPU of its own; in
    bfloat16 nearly the same losses.
    """
    write_prepared(tmp_path)
    there = [0, 1] if separate_bank else [1]
    trainer = trained(tmp_path, "gpu", there, separate_bank)
    found = [outcome(trained(tmp_path, "cpu", [], False)), outcome(trainer)]
    in_half = partial(
        lambda autocast, device, *rest, **options: autocast("cpu", *rest, **options), torch.autocast
    )
    with mock.patch.object(torch, "autocast", in_half):
        half = trained(tmp_path, "half", there, separate_bank)
    for exact, rounded in zip(
        trainer.log.rows, half.log.rows, strict=True
    ):  # the same losses but for rounding
        assert 0 < abs(rounded["loss"] / exact["loss"] - 1) < 0.01
    network, bank = (torch.device("cuda", i) for i in ((0, 1) if separate_bank else (1, 1)))
    assert {p.device for p in trainer.learner.network.parameters()} == {network} and {
        b.memory.device for b in trainer.learner.banks
    } == {bank}
    assert found[0].pop("log") == found[1].pop("log")
    torch.testing.assert_close(*found, rtol=0, atol=0, check_device=False)


def test_the_host_waits_twice_in_a_training_step_and_never_in_the_network(
    gpus, tmp_path, monkeypatch
):
    """At most: for which vertices are visible, and for the loss; features are not waited for."""
    write_prepared(tmp_path)
    waits = []
    learn = Learner._learn

    def watched(*arguments: object) -> None:
        gpus.log.clear()
        learn(*arguments)
        waits.append(gpus.log.copy())

    monkeypatch.setattr(Learner, "_learn", watched)
    trainer = trained(tmp_path, "gpu", [0, 1], separate_bank=True)
    assert len(waits) == 8
    assert max(len(log) for log in waits[1:]) <= 2
    model = trainer.model()
    crops = torch.zeros(2, 3, 128, 336, dtype=torch.uint8)
    gpus.log.clear()
    assert model.features(crops).device == torch.device("cuda", 0) and gpus.log == []
