"""How long render-and-compare takes: one table, every renderer on the same images, in one run.

    python benchmarks/render_and_compare.py [--threads 1] [--device cuda]

Random unit features of 128 channels. "step" is one evaluation with its gradient and one optimiser update, per image.
"solve" is a whole image: score volume, 144 starts, 300 steps, the last loss; slow methods are extrapolated from a few
steps and marked ~. "paper's loop" renders the 128 feature channels of one image at a time and differentiates through
them, as the published code does; with PyTorch3D's rasteriser where it is installed, else with the plain one.
Predictions were written down before measuring, for one quiet core of a 2 GHz server.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))

import numpy as np
import torch

from nemo import pose, rendering
from nemo.meshes import CuboidGrid, cuboid_mesh
from nemo.settings import FEATURE_CHANNELS, FEATURE_STRIDE, SolveConfig, category

GRIDS = {  # the cuboids of the published meshes, CAD units
    "car": CuboidGrid(np.array([-0.184, -0.441, -0.168]), np.array([0.184, 0.434, 0.120]), (10, 24, 8)),
    "boat": CuboidGrid(np.array([-0.150, -0.480, -0.335]), np.array([0.149, 0.465, 0.123]), (8, 23, 12)),
}
PREDICTED_STEP_MS = {  # car map: 1,200 covered cells at 20 ns and cache misses; boat map: twice the cells
    ("numba", "car"): 0.10,
    ("numba", "boat"): 0.18,
    ("numba, any mesh", "car"): 0.30,
    ("numba, any mesh", "boat"): 0.50,
    ("torch", "car"): 300.0,
    ("torch", "boat"): 900.0,
    ("paper's loop", "car"): 400.0,  # PyTorch3D's CPU rasteriser took 264-412 and 638 on such a machine
    ("paper's loop", "boat"): 650.0,
}


@dataclass(frozen=True)
class Problem:
    """One category's scene and images: features [B, C, H, W], bank [V, C], clutter [C], and the start distance."""

    scene: rendering.Scene
    features: torch.Tensor
    bank: torch.Tensor
    clutter: torch.Tensor
    distance: float


def make_problem(name: str, count: int, device: str) -> Problem:
    """Random unit features for `count` images of a category."""
    map_hw = tuple(n // FEATURE_STRIDE for n in category(name).crop_hw)
    scene = rendering.make_scene(cuboid_mesh(GRIDS[name]), rendering.paper_camera(map_hw))
    generator = torch.Generator().manual_seed(0)
    shapes = ((count, FEATURE_CHANNELS, *map_hw), (len(scene.vertices), FEATURE_CHANNELS), (1, FEATURE_CHANNELS))
    features, bank, clutter = (torch.randn(s, generator=generator) for s in shapes)
    normalised = (torch.nn.functional.normalize(x, dim=1).to(device) for x in (features, bank, clutter))
    features, bank, clutter = normalised
    return Problem(scene, features, bank, clutter[0], category(name).paper_distance)


def seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """Median wall time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


def solve_seconds(problem: Problem, renderer: str, steps: int, repeats: int, device: str) -> float:
    """Wall time of the paper's solver with so many steps, all images together."""
    config = replace(SolveConfig(), total_epochs=steps)
    plan = pose.make_plan(config)
    scene = problem.scene
    starts = pose.make_starts(scene, config, problem.distance, renderer, torch.device(device))

    def run() -> None:
        target = rendering.make_target(problem.features, problem.bank, problem.clutter, renderer)
        pose.solve_target(scene, target, starts, plan, renderer)

    return seconds(run, repeats, device)


def compiled(problem: Problem, renderer: str, device: str) -> tuple[float, float]:
    """Seconds per image of a step and of a solved image, from runs with 300 steps and with none."""
    images = len(problem.features)
    whole, start = (solve_seconds(problem, renderer, steps, 3, device) for steps in (300, 0))
    return (whole - start) / 300 / images, whole / images


def one_by_one(problem: Problem, renderer: str, target_of: str, device: str) -> tuple[float, float]:
    """Seconds of a step, and of a solved image as 144 starts scored from their pictures and 301 steps."""
    target = rendering.make_target(problem.features[:1], problem.bank, problem.clutter, target_of)
    poses = pose.start_poses(SolveConfig(), problem.distance)[40:41]
    poses = torch.as_tensor(np.append(poses, [problem.scene.camera.principal_xy], 1), device=device)

    def step() -> None:
        pose.pose_gradient(problem.scene, target, poses, renderer)

    each = seconds(step, 3, device)
    return each, 301 * each


@dataclass(frozen=True)
class Method:
    """A way to solve: measure(problem) -> seconds per step and per solved image, both for one image."""

    name: str
    measure: Callable[[Problem], tuple[float, float]]
    batches: tuple[int, ...] = (1,)
    extrapolated: bool = True


def methods(device: str) -> list[Method]:
    """All that can run here, the default first."""
    fast = rendering.resolve_renderer("auto", device)
    found = [Method(fast, lambda p: compiled(p, fast, device), (16, 1), extrapolated=False)]
    if fast == "numba":
        found.append(
            Method("numba, any mesh", lambda p: compiled(_without_grid(p), fast, device), (16, 1), extrapolated=False)
        )
    found.append(Method("torch", lambda p: one_by_one(p, "torch", "torch", device)))
    if importlib.util.find_spec("pytorch3d"):
        found.append(Method("pytorch3d", lambda p: one_by_one(p, "pytorch3d", "pytorch3d", device)))
        found.append(Method("paper's loop", lambda p: one_by_one(p, "pytorch3d", "pytorch3d-features", device)))
    else:
        found.append(Method("paper's loop", lambda p: one_by_one(p, "torch", "pytorch3d-features", device)))
    return found


def _without_grid(problem: Problem) -> Problem:
    return replace(problem, scene=replace(problem.scene, cuboid=None))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} CPU threads, device {options.device}, load {os.getloadavg()[0]:.1f} before the run\n")
    print("| map | method | images at a time | step predicted, ms | step, ms | solve, s | slower than the first |")
    print("|---|---|---|---|---|---|---|")
    for name in GRIDS:
        first = None
        for method in methods(options.device):
            for count in method.batches:
                step, solve = method.measure(make_problem(name, count, options.device))
                first = first or solve
                predicted = PREDICTED_STEP_MS.get((method.name, name))
                numbers = (
                    "" if predicted is None else f"{predicted:.2f}",
                    f"{1e3 * step:.3f}",
                    f"{'~' * method.extrapolated}{solve:.4f}",
                )
                print(
                    "|", " | ".join([name, method.name, str(count), *numbers, f"{solve / first:.1f}"]), "|", flush=True
                )


if __name__ == "__main__":
    main()
