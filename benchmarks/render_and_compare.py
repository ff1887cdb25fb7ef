"""How long render-and-compare takes: one table, every renderer on the same images, in one run.

    python benchmarks/render_and_compare.py [--threads 1] [--device cuda]
    python benchmarks/render_and_compare.py --checkpoint exp/NeMo_single/saved_model_car_last.pth --prepared data/PASCAL3D_NeMo

Random unit features of 128 channels. "step" is one evaluation with its gradient and one optimiser update, per image.
"solve" is a whole image: score volume, 144 starts, 300 steps, the last loss. The pictures of the starts are the same for
all images of a mesh, are rendered once, and are not counted. Slow methods are extrapolated from a few steps, without
score volume and starts, and marked ~. "paper's loop" renders the 128 feature channels of one image at a time and differentiates through
them, as the published code does; with PyTorch3D's rasteriser where it is installed, else with the plain one.
"floor" is the arithmetic alone at the rate that this device multiplies matrices in the same run: 2 V C P flop for the
score volume, 6 for every covered cell of a start, 150 for every covered cell of a step.
With a checkpoint and a prepared set a second table follows: whole images, from JPEG to pose, and where their time goes.
Predictions were written down before measuring, for one quiet core of a 2 GHz server.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neural_mesh.categories import category_settings
from neural_mesh.compare import rendering
from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.cameras import paper_camera
from neural_mesh.geometry.meshes import CuboidGrid, cuboid_mesh
from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE, SolveConfig
from neural_mesh.solve import pose
from neural_mesh.solve.batches import names_by_mesh
from neural_mesh.solve.model import load_model
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import PreparedSet

GRIDS = {  # the cuboids of the published meshes, CAD units
    "car": CuboidGrid(
        np.array([-0.184, -0.441, -0.168]), np.array([0.184, 0.434, 0.120]), (10, 24, 8)
    ),
    "boat": CuboidGrid(
        np.array([-0.150, -0.480, -0.335]), np.array([0.149, 0.465, 0.123]), (8, 23, 12)
    ),
}
PREDICTED_STEP_MS = {  # car map: 1,200 covered cells at 20 ns and cache misses; boat map: twice the cells
    ("numba", "car"): 0.10,
    ("numba", "boat"): 0.18,
    ("numba, any mesh", "car"): 0.30,
    ("numba, any mesh", "boat"): 0.50,
    ("torch", "car"): 300.0,
    ("torch", "boat"): 900.0,
    (
        "paper's loop",
        "car",
    ): 400.0,  # PyTorch3D's CPU rasteriser took 264-412 and 638 on such a machine
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
    map_hw = tuple(n // FEATURE_STRIDE for n in category_settings(name).crop_hw)
    scene = rendering.make_scene(cuboid_mesh(GRIDS[name]), paper_camera(map_hw))
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (count, FEATURE_CHANNELS, *map_hw),
        (len(scene.vertices), FEATURE_CHANNELS),
        (1, FEATURE_CHANNELS),
    )
    features, bank, clutter = (torch.randn(s, generator=generator) for s in shapes)
    normalised = (
        torch.nn.functional.normalize(x, dim=1).to(device) for x in (features, bank, clutter)
    )
    features, bank, clutter = normalised
    return Problem(scene, features, bank, clutter[0], category_settings(name).paper_distance)


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
    starts = pose.make_starts(
        scene,
        config,
        problem.distance,
        renderer,
        torch.device("cpu" if renderer == "numba" else device),
    )

    def run() -> None:
        target = rendering.make_target(problem.features, problem.bank, problem.clutter, renderer)
        pose.solve_target(scene, target, starts, plan, renderer)

    return seconds(run, repeats, device)


def compiled(problem: Problem, renderer: str, device: str) -> tuple[float, float]:
    """Seconds per image of a step and of a solved image, from runs with 300 steps and with none."""
    images = len(problem.features)
    repeats = 3 if images < 64 else 1
    whole, start = (solve_seconds(problem, renderer, steps, repeats, device) for steps in (300, 0))
    return (whole - start) / 300 / images, whole / images


def one_by_one(problem: Problem, renderer: str, target_of: str, device: str) -> tuple[float, float]:
    """Seconds of a step, and of a solved image as 301 steps: its score volume and starts, which are cheap beside them, left out."""
    target = rendering.make_target(problem.features[:1], problem.bank, problem.clutter, target_of)
    poses = pose.start_poses(SolveConfig(), problem.distance)[40:41]
    poses = torch.as_tensor(np.append(poses, [problem.scene.camera.principal_xy], 1), device=device)

    def step() -> None:
        pose.pose_gradient(problem.scene, target, poses, renderer)

    each = seconds(step, 3, device)
    return each, 301 * each


def flop_per_second(device: str) -> float:
    """How fast float32 matrices are multiplied here, best of five."""
    a = (
        torch.randn(2048, FEATURE_CHANNELS, device=device),
        torch.randn(FEATURE_CHANNELS, 1024, device=device),
    )
    each = min(seconds(lambda: a[0] @ a[1], 1, device) for _ in range(5))
    return 2 * 2048 * FEATURE_CHANNELS * 1024 / each


def floor_seconds(problem: Problem, rate: float) -> tuple[float, float]:
    """Seconds of a step and of a solved image that the arithmetic alone takes."""
    starts = pose.make_starts(
        problem.scene, SolveConfig(), problem.distance, "numba", torch.device("cpu")
    )
    covered = float((starts.table.bary.sum(-1) > 0).sum(0).float().mean())
    volume = 2 * len(problem.scene.vertices) * FEATURE_CHANNELS * problem.scene.camera.pixels
    step = 150 * covered / rate
    return step, (volume + 144 * 6 * covered) / rate + 301 * step


@dataclass(frozen=True)
class Method:
    """A way to solve: measure(problem) -> seconds per step and per solved image, both for one image."""

    name: str
    measure: Callable[[Problem], tuple[float, float]]
    extrapolated: bool = True  # from one image and a few steps


def methods(device: str) -> list[Method]:
    """All that can run here, the default first."""
    found = []
    for name in ["numba"] + ["triton"] * device.startswith("cuda"):
        found.append(
            Method(name, lambda p, name=name: compiled(p, name, device), extrapolated=False)
        )
        whole = Method(
            f"{name}, any mesh",
            lambda p, name=name: compiled(_without_grid(p), name, device),
            extrapolated=False,
        )
        found.append(whole)
    found.append(Method("torch", lambda p: one_by_one(p, "torch", "torch", device)))
    if importlib.util.find_spec("pytorch3d"):
        found.append(Method("pytorch3d", lambda p: one_by_one(p, "pytorch3d", "pytorch3d", device)))
        found.append(
            Method(
                "paper's loop", lambda p: one_by_one(p, "pytorch3d", "pytorch3d-features", device)
            )
        )
    else:
        found.append(
            Method("paper's loop", lambda p: one_by_one(p, "torch", "pytorch3d-features", device))
        )
    return found


def _without_grid(problem: Problem) -> Problem:
    return replace(problem, scene=replace(problem.scene, cuboid=None))


def print_whole_run(checkpoint: Path, prepared: Path, device: str, count: int) -> None:
    """Milliseconds of each stage from JPEG to pose, for both solvers, one process, nothing overlapped."""
    stored = load_checkpoint(checkpoint)
    name = stored.config.category
    model = load_model(checkpoint, name, Path(), device)
    test_set = PreparedSet(prepared)
    paths = [
        test_set.image(name, image)
        for image in names_by_mesh(test_set, "single", name, 1)[1][:count]
    ]
    crops = torch.stack(
        [
            torch.from_numpy(read_crop(p, stored.config.image_scale).copy()).permute(2, 0, 1)
            for p in paths
        ]
    )
    features = model.features(crops)
    stages = {
        "decode (a worker each on a GPU)": seconds(
            lambda: [read_crop(p, stored.config.image_scale) for p in paths], 3, device
        ),
        f"network, {stored.config.backbone}": seconds(lambda: model.features(crops), 3, device),
    }
    print(
        f"\n{len(paths)} images of {prepared.name}, {name}, image scale {stored.config.image_scale:g}\n"
    )
    print("| stage | ms per image | share |\n|---|---|---|")
    for solver in ("paper", "best"):
        config = SolveConfig(solver=solver)
        camera, distance = pose.choose_camera(config, name, model.map_hw, stored.config.image_scale)
        arguments = model.mesh(1), features, *model.banks(1), config, camera, distance
        times = stages | {
            f"score volume, starts, steps: `{solver}`": seconds(
                lambda a=arguments: pose.solve(*a), 3, device
            )
        }
        total = sum(times.values())
        for stage, each in times.items():
            print(f"| {stage} | {1e3 * each / len(paths):.1f} | {each / total:.0%} |")
        print(
            f"| JPEG to pose, `{solver}`: {len(paths) / total:.1f} images/s, bound by {max(times, key=times.get)} | "
            f"{1e3 * total / len(paths):.1f} | |",
            flush=True,
        )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--checkpoint", type=Path, help="measure whole images with it, too")
    parser.add_argument(
        "--prepared", type=Path, help="prepared test set of the checkpoint's category"
    )
    parser.add_argument("--images", type=int, default=32, help="of the prepared set (default 32)")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="*",
        default=[16, 1, 64],
        help="images at a time (default 16 1 64)",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.threads} CPU threads, device {options.device}, load {os.getloadavg()[0]:.1f} before the run\n"
    )
    rate = flop_per_second(options.device)
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print(
        "| map | method | images at a time | step predicted, ms | step, ms | solve, s | slower than the first |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in GRIDS:
        first = None
        step, solve = floor_seconds(make_problem(name, 1, "cpu"), rate)
        print(f"| {name} | floor | | | {1e3 * step:.3f} | {solve:.4f} | |", flush=True)
        for method in methods(options.device):
            for count in (1,) if method.extrapolated else options.batches:
                step, solve = method.measure(make_problem(name, count, options.device))
                first = first or solve
                predicted = PREDICTED_STEP_MS.get((method.name, name))
                numbers = (
                    "" if predicted is None else f"{predicted:.2f}",
                    f"{1e3 * step:.3f}",
                    f"{'~' * method.extrapolated}{solve:.4f}",
                )
                print(
                    "|",
                    " | ".join([name, method.name, str(count), *numbers, f"{solve / first:.1f}"]),
                    "|",
                    flush=True,
                )
    if options.checkpoint:
        print_whole_run(options.checkpoint, options.prepared, options.device, options.images)


if __name__ == "__main__":
    main()
