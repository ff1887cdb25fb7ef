"""How long render-and-compare takes: one table, every renderer on the same images, in one run.

    python benchmarks/render_and_compare.py [--threads 1] [--device cuda]
    python benchmarks/render_and_compare.py --prepared data/PASCAL3D_NeMo \\
        --checkpoint exp/NeMo_single/saved_model_car_last.pth

Random unit features of 128 channels. "step" is one evaluation with its gradient and one optimiser
update, per image. "solve" is a whole image: score volume, 144 starts, 300 steps, the last loss. The
pictures of the starts are the same for all images of a mesh, are rendered once, and are not
counted. Slow methods are extrapolated from a few steps, without score volume and starts, and marked
~. "paper's loop" renders the 128 feature channels of one image at a time and differentiates through
them, as the published code does; with PyTorch3D's rasteriser where it is installed, else with the
plain one.
"floor" is the arithmetic alone at the rate that this device multiplies matrices in the same run:
2 V C P flop for the score volume, 6 for every covered cell of a start, 150 for every covered cell
of a step.
With a checkpoint and a prepared set a second table follows: whole images, from JPEG to pose, and
where their time goes.
Predictions were written down before measuring, for one quiet core of a 2 GHz server.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neural_mesh.categories import category_settings
from neural_mesh.compare import steps
from neural_mesh.compare.scene import Renderer, Scene, Target, make_scene
from neural_mesh.compare.specification import TorchRenderer
from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.compare.with_pytorch3d import Pytorch3dFeatureRenderer, Pytorch3dRenderer
from neural_mesh.compare.with_triton import TritonRenderer
from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.cameras import paper_camera
from neural_mesh.geometry.meshes import CuboidGrid, cuboid_mesh
from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE, SolveConfig
from neural_mesh.solve.batches import names_by_mesh
from neural_mesh.solve.choose_renderer import choose_renderer
from neural_mesh.solve.model import load_model
from neural_mesh.solve.plan import choose_camera
from neural_mesh.solve.solver import make_setup, solve, solve_target
from neural_mesh.solve.starts import make_starts, start_poses
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import PreparedSet

CPU = torch.device("cpu")
# The cuboids of the published meshes, CAD units.
CAR = CuboidGrid(np.array([-0.184, -0.441, -0.168]), np.array([0.184, 0.434, 0.120]), (10, 24, 8))
BOAT = CuboidGrid(np.array([-0.150, -0.480, -0.335]), np.array([0.149, 0.465, 0.123]), (8, 23, 12))
GRIDS = {"car": CAR, "boat": BOAT}
# Car map: 1,200 covered cells at 20 ns and cache misses; boat map: twice the cells. PyTorch3D's CPU
# rasteriser took 264-412 and 638 on such a machine.
PREDICTED_STEP_MS = {
    ("numba", "car"): 0.10,
    ("numba", "boat"): 0.18,
    ("numba, any mesh", "car"): 0.30,
    ("numba, any mesh", "boat"): 0.50,
    ("torch", "car"): 300.0,
    ("torch", "boat"): 900.0,
    ("paper's loop", "car"): 400.0,
    ("paper's loop", "boat"): 650.0,
}


# ---- the images ----


@dataclass(frozen=True)
class Problem:
    """One category's scene and images.

    features [B, C, H, W], bank [V, C], clutter [C]; distance of the starts.
    """

    scene: Scene
    features: torch.Tensor
    bank: torch.Tensor
    clutter: torch.Tensor
    distance: float

    def target(self, renderer: Renderer) -> Target:
        """What a renderer compares with."""
        return renderer.target(self.features, self.bank, self.clutter)

    def without_grid(self) -> Problem:
        """The same cuboid as a mesh like any other."""
        return replace(self, scene=replace(self.scene, cuboid=None))


def make_problem(name: str, count: int, device: torch.device) -> Problem:
    """Random unit features for `count` images of a category."""
    category = category_settings(name)
    map_hw = tuple(n // FEATURE_STRIDE for n in category.crop_hw)
    scene = make_scene(cuboid_mesh(GRIDS[name]), paper_camera(map_hw))
    generator = torch.Generator().manual_seed(0)
    features = unit_noise(generator, (count, FEATURE_CHANNELS, *map_hw)).to(device)
    bank = unit_noise(generator, (len(scene.vertices), FEATURE_CHANNELS)).to(device)
    clutter = unit_noise(generator, (1, FEATURE_CHANNELS)).to(device)[0]
    return Problem(scene, features, bank, clutter, category.paper_distance)


def unit_noise(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Noise that has length 1 along its second dimension."""
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=1)


# ---- the clock ----


def seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median wall time of a call, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        wait_for(device)
        begin = time.perf_counter()
        call()
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


def wait_for(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def solve_seconds(
    problem: Problem, renderer: Renderer, step_count: int, repeats: int, device: torch.device
) -> float:
    """Wall time of the paper's solver with so many steps, all images together."""
    config = SolveConfig(total_epochs=step_count)
    scene = problem.scene
    setup = make_setup(config, scene.camera, problem.distance, renderer)
    starts = make_starts(scene, config, problem.distance, renderer)
    return seconds(
        lambda: solve_target(scene, problem.target(renderer), starts, setup), repeats, device
    )


def compiled(problem: Problem, renderer: Renderer, device: torch.device) -> tuple[float, float]:
    """Seconds per image of a step and of a solved image, from runs with 300 steps and with none."""
    images = len(problem.features)
    repeats = 3 if images < 64 else 1
    whole = solve_seconds(problem, renderer, 300, repeats, device)
    start = solve_seconds(problem, renderer, 0, repeats, device)
    return (whole - start) / 300 / images, whole / images


def one_by_one(
    problem: Problem, renderer: Renderer, target_of: Renderer, device: torch.device
) -> tuple[float, float]:
    """Seconds of a step, and of a solved image as 301 steps.

    Its score volume and starts, which are cheap beside them, are left out.
    """
    scene = problem.scene
    one_image = replace(problem, features=problem.features[:1])
    evaluated = steps.Problem(renderer, scene, one_image.target(target_of))
    view = start_poses(SolveConfig(), problem.distance)[40:41]
    pose = torch.as_tensor(np.append(view, [scene.camera.principal_xy], 1), device=device)
    each = seconds(lambda: steps.pose_gradient(evaluated, pose), 3, device)
    return each, 301 * each


def flop_per_second(device: torch.device) -> float:
    """How fast float32 matrices are multiplied here, best of five."""
    rows = 2048
    columns = 1024
    a = torch.randn(rows, FEATURE_CHANNELS, device=device)
    b = torch.randn(FEATURE_CHANNELS, columns, device=device)
    each = min(seconds(lambda: a @ b, 1, device) for _ in range(5))
    return 2 * rows * FEATURE_CHANNELS * columns / each


def floor_seconds(problem: Problem, rate: float) -> tuple[float, float]:
    """Seconds of a step and of a solved image that the arithmetic alone takes."""
    scene = problem.scene
    starts = make_starts(scene, SolveConfig(), problem.distance, NumbaRenderer())
    covered = float((starts.table.bary.sum(-1) > 0).sum(0).float().mean())
    volume = 2 * len(scene.vertices) * FEATURE_CHANNELS * scene.camera.pixels
    step = 150 * covered / rate
    return step, (volume + 144 * 6 * covered) / rate + 301 * step


# ---- what is compared ----


@dataclass(frozen=True)
class Method:
    """A way to solve.

    measure(problem): seconds per step and per solved image, both for one image. extrapolated: from
    one image and a few steps.
    """

    name: str
    measure: Callable[[Problem], tuple[float, float]]
    extrapolated: bool = True


def methods(device: torch.device) -> list[Method]:
    """All that can run here, the default first."""
    usable = list(compiled_methods(NumbaRenderer(), device))
    if device.type == "cuda":
        usable += compiled_methods(TritonRenderer(device), device)
    plain = TorchRenderer(device)
    usable.append(Method("torch", lambda p: one_by_one(p, plain, plain, device)))
    papers = plain
    if importlib.util.find_spec("pytorch3d"):
        papers = Pytorch3dRenderer(device)
        usable.append(Method("pytorch3d", lambda p: one_by_one(p, papers, papers, device)))
    features = Pytorch3dFeatureRenderer(device)
    usable.append(Method("paper's loop", lambda p: one_by_one(p, papers, features, device)))
    return usable


def compiled_methods(renderer: Renderer, device: torch.device) -> Iterator[Method]:
    """A renderer on a cuboid, and on the same as a mesh like any other."""
    yield Method(renderer.name, lambda p: compiled(p, renderer, device), extrapolated=False)
    yield Method(
        f"{renderer.name}, any mesh",
        lambda p: compiled(p.without_grid(), renderer, device),
        extrapolated=False,
    )


def print_methods(device: torch.device, batches: list[int]) -> None:
    """The first table."""
    rate = flop_per_second(device)
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print(
        "| map | method | images at a time | step predicted, ms | step, ms | solve, s | "
        "slower than the first |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in GRIDS:
        first = None
        step, whole = floor_seconds(make_problem(name, 1, CPU), rate)
        print(f"| {name} | floor | | | {1e3 * step:.3f} | {whole:.4f} | |", flush=True)
        for method in methods(device):
            for count in (1,) if method.extrapolated else batches:
                step, whole = method.measure(make_problem(name, count, device))
                first = first or whole
                predicted = PREDICTED_STEP_MS.get((method.name, name))
                cells = (
                    name,
                    method.name,
                    str(count),
                    "" if predicted is None else f"{predicted:.2f}",
                    f"{1e3 * step:.3f}",
                    f"{'~' * method.extrapolated}{whole:.4f}",
                    f"{whole / first:.1f}",
                )
                print("|", " | ".join(cells), "|", flush=True)


def print_whole_run(checkpoint: Path, prepared: Path, device: torch.device, count: int) -> None:
    """Milliseconds of each stage from JPEG to pose, for both solvers.

    One process, nothing overlapped.
    """
    trained = load_checkpoint(checkpoint).config
    name = trained.category
    scale = trained.image_scale
    model = load_model(checkpoint, name, Path(), device)
    test_set = PreparedSet(prepared)
    images = names_by_mesh(test_set, "single", name, 1)[1][:count]
    paths = [test_set.image(name, image) for image in images]
    crops = torch.from_numpy(np.stack([read_crop(path, scale) for path in paths]))
    crops = crops.permute(0, 3, 1, 2)
    features = model.features(crops)
    before = {
        "decode (a worker each on a GPU)": seconds(
            lambda: [read_crop(path, scale) for path in paths], 3, device
        ),
        f"network, {trained.backbone}": seconds(lambda: model.features(crops), 3, device),
    }
    print(f"\n{len(paths)} images of {prepared.name}, {name}, image scale {scale:g}\n")
    print("| stage | ms per image | share |\n|---|---|---|")
    renderer = choose_renderer(SolveConfig.renderer, features.device)
    for solver in ("paper", "best"):
        config = SolveConfig(solver=solver)
        camera, distance = choose_camera(config, name, model.map_hw, scale)
        setup = make_setup(config, camera, distance, renderer)
        arguments = model.mesh(1), features, *model.banks(1), setup
        stage = f"score volume, starts, steps: `{solver}`"
        times = before | {stage: seconds(lambda a=arguments: solve(*a), 3, device)}
        total = sum(times.values())
        for stage, each in times.items():
            print(f"| {stage} | {1e3 * each / len(paths):.1f} | {each / total:.0%} |")
        longest = max(times, key=times.get)
        print(
            f"| JPEG to pose, `{solver}`: {len(paths) / total:.1f} images/s, bound by {longest} | "
            f"{1e3 * total / len(paths):.1f} | |",
            flush=True,
        )


def parse_arguments() -> argparse.Namespace:
    """What is measured, and where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--threads", type=int, default=1, help="CPU threads (default 1)")
    option("--device", default="cpu", help="cpu or cuda (default cpu)")
    option("--checkpoint", type=Path, help="measure whole images with it, too")
    option("--prepared", type=Path, help="prepared test set of the checkpoint's category")
    option("--images", type=int, default=32, help="of the prepared set (default 32)")
    option(
        "--batches",
        type=int,
        nargs="*",
        default=[16, 1, 64],
        help="images at a time (default 16 1 64)",
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print the tables."""
    options = parse_arguments()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    print(f"{options.threads} CPU threads, device {device}, load {load:.1f} before the run\n")
    print_methods(device, options.batches)
    if options.checkpoint:
        print_whole_run(options.checkpoint, options.prepared, device, options.images)


if __name__ == "__main__":
    main()
