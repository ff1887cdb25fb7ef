"""Which renderer runs where: RENDERER as asked for, and a trial of Triton's kernels on a GPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from neural_mesh.compare.scene import Renderer
from neural_mesh.compare.specification import TorchRenderer
from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.compare.with_pytorch3d import (
    Pytorch3dFeatureRenderer,
    Pytorch3dRenderer,
    pytorch3d_complaint,
)
from neural_mesh.compare.with_triton import TritonRenderer, has_triton, triton_complaint
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.plan import choose_camera, make_plan
from neural_mesh.solve.solver import make_setup, solve

RENDERERS: dict[str, Callable[[torch.device], Renderer]] = {
    "torch": TorchRenderer,
    "numba": lambda _: NumbaRenderer(),
    "triton": TritonRenderer,
    "pytorch3d": Pytorch3dRenderer,
    "pytorch3d-features": Pytorch3dFeatureRenderer,
}
TRIAL_STEPS = 6  # of the optimiser
TRIAL_STAGES = ((2, 2), (1, TRIAL_STEPS - 2))
TRIAL_MAP_HW = (24, 40)  # more cells than a kernel takes at once, and not a multiple of them
TRIAL_IMAGES = 3
TRIAL_CHANNELS = 8
TRIAL_TOLERANCE = 1e-3  # of losses, and of camera centres in CAD units; float32 gives 1e-6


def choose_renderer(name: str, device: torch.device) -> Renderer:
    """RENDERER as asked for -> the one to use for features on a device.

    auto is triton on a GPU where `triton_agrees`, otherwise numba. Raises ValueError for a name
    that does not exist, and for a renderer that cannot run there.
    """
    if name == "auto":
        on_gpu = device.type == "cuda" and has_triton(device)
        name = "triton" if on_gpu and triton_agrees(device) else "numba"
    else:
        check_renderer(name, device)
    return RENDERERS[name](device)


def check_renderer(name: str, device: torch.device) -> None:
    """ValueError for a renderer that does not exist or cannot run on a device."""
    if name not in RENDERERS:
        raise ValueError(f"RENDERER must be one of auto, {', '.join(RENDERERS)}, found {name!r}")
    if name == "triton" and not has_triton(device):
        raise ValueError(
            f"RENDERER=triton needs a CUDA device and the triton package, found {device}; "
            "RENDERER=auto picks what works"
        )
    if name == "triton" and (complaint := triton_complaint()):
        raise ValueError(
            f"RENDERER=triton needs Triton, and the one that is installed cannot be imported "
            f"({complaint}); install requirements.txt again, or set RENDERER=auto"
        )
    if name.startswith("pytorch3d"):
        _check_pytorch3d(name, device)


def _check_pytorch3d(name: str, device: torch.device) -> None:
    """ValueError when PyTorch3D is not there or does not work on a device."""
    remedy = (
        "https://github.com/facebookresearch/pytorch3d/blob/main/INSTALL.md; RENDERER=auto "
        "works without it and gives the same numbers"
    )
    if importlib.util.find_spec("pytorch3d") is None:
        raise ValueError(
            f"RENDERER={name} needs PyTorch3D, which is not installed: get it with `conda install "
            f"-c conda-forge pytorch3d` or by {remedy}"
        )
    if complaint := pytorch3d_complaint(device):
        raise ValueError(
            f"RENDERER={name} needs PyTorch3D, and the one that is installed does not work on "
            f"{device} ({complaint}): most often it was built for another PyTorch than "
            f"{torch.__version__}, or without CUDA; build it again by {remedy}"
        )


# ---- the trial of Triton's kernels ----


@lru_cache
def triton_agrees(device: torch.device) -> bool:
    """Whether Triton's kernels give on a GPU what numba's give on the CPU, by small problems.

    They are compiled for each GPU by the Triton that is installed, which may lack a C compiler, or
    fail. Where they do not agree, that is told. Raises ValueError when they leave the GPU unusable.
    """
    reason = _disagreement(device)
    if reason is None:
        return True
    if device.type == "cuda":
        # A kernel that crashed leaves errors behind, which would strike at some later, innocent
        # call.
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise ValueError(
                f"Triton's kernels have left {device} unusable, {reason}; "
                "set RENDERER=numba, or for training VALIDATE_EVERY=0"
            ) from error
    print(
        f"note: RENDERER=auto uses numba; on {device} Triton's kernels do not solve a trial "
        f"as it does: {reason}",
        file=sys.stderr,
    )
    return False


def _disagreement(device: torch.device) -> str | None:
    """What Triton's kernels do otherwise than numba's, or None."""
    trials = [
        _trial_problem(cuboid, solver) for cuboid in (True, False) for solver in ("paper", "best")
    ]
    on_cpu = [_solve_trial(trial, NumbaRenderer()) for trial in trials]
    try:
        with redirect_stdout(sys.stderr):  # where Triton writes what its assembler refuses
            on_gpu = [_solve_trial(trial, TritonRenderer(device)) for trial in trials]
    except Exception as error:  # a compiler's, a driver's, a GPU's; the caller tells it
        return f"they failed with {type(error).__name__}: {_first_and_last_line(error)}"
    # of most images: at a cell that lies on an edge to rounding, one that sees the other triangle
    # goes another way
    differences = [np.abs(a - b).max(1) for a, b in zip(on_gpu, on_cpu, strict=True)]
    difference = np.max(np.median(differences, axis=1))
    if difference <= TRIAL_TOLERANCE:
        return None
    return f"they differ by {difference:.1g}"


def _first_and_last_line(error: Exception) -> str:
    """The lines of a long message that say most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or ["no reason given"]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1])))


def _trial_problem(cuboid: bool, solver: str) -> tuple[Mesh, list[Tensor], SolveConfig]:
    """Images of noise, with a bank and clutter, to solve with a cuboid or a mesh that is none."""
    low = np.array([-0.2, -0.5, -0.15])
    high = np.array([0.25, 0.4, 0.2])
    mesh = cuboid_mesh(CuboidGrid(low, high, (2, 3, 2)))
    if not cuboid:
        mesh = Mesh(mesh.vertices * (1 + 0.1 * mesh.vertices[:, :1]), mesh.faces)
    random = np.random.default_rng(0)
    features = _unit_noise(random, (TRIAL_IMAGES, TRIAL_CHANNELS, *TRIAL_MAP_HW))
    bank = _unit_noise(random, (len(mesh.vertices), TRIAL_CHANNELS))
    clutter = _unit_noise(random, (1, TRIAL_CHANNELS))[0]
    config = SolveConfig(solver=solver, total_epochs=TRIAL_STEPS)
    return mesh, [features, bank, clutter], config


def _unit_noise(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    values = torch.as_tensor(random.standard_normal(shape)).float()
    return functional.normalize(values, dim=1)


def _solve_trial(
    trial: tuple[Mesh, list[Tensor], SolveConfig], renderer: Renderer
) -> NDArray[np.float64]:
    """Start losses, final loss and camera centre that a renderer finds for each image, in a row."""
    mesh, tensors, config = trial
    camera, distance = choose_camera(config, "car", TRIAL_MAP_HW)
    setup = make_setup(config, camera, distance, renderer, make_plan(config, TRIAL_STAGES))
    features, bank, clutter = (x.to(renderer.device) for x in tensors)
    solved = solve(mesh, features, bank, clutter, setup)
    return np.concatenate([solved.start_losses, solved.loss[:, None], solved.centre], 1)
