"""Accuracy against evaluations and time for several ways to search a pose.

One table, the same images, in one run.

    python benchmarks/solvers.py         # planted poses, most of each object hidden
    python benchmarks/solvers.py --checkpoint exp/NeMo_single/saved_model_car_last.pth \\
        --prepared data/PASCAL3D_NeMo --half 1 \\
        --features exp/Features_single/car/saved_feature_car_single.npz ...     # and photographs

Feature files are what SAVE_FEATURES=true leaves behind, one per occlusion level; --prepared has the
annotations. --half 0 takes every second image, 1 the others: the solver `best` was chosen on
half 0, so half 1 is the fair one.
Each cell is pi/6, pi/18 in %, median error in degrees. "evaluations": renderings compared with an
image, with gradient, after the 144 starts, on average over the sets. The starts are looked up in
one table of pictures that all images share, without rendering, for every solver alike. "ms": one
core's time for starts and steps of one image, without the score volume, which does not depend on
the solver.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neural_mesh.compare.scene import look_at, make_scene
from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.geometry.cameras import MapCamera, camera_centre, paper_camera
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh
from neural_mesh.geometry.pose_error import accuracy, pose_errors
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.plan import BEST_RATES, Plan, choose_camera, make_plan
from neural_mesh.solve.solver import make_setup, solve_target
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import load_annotation
from neural_mesh.storage.results import load_features

CAR = CuboidGrid(np.array([-0.184, -0.441, -0.168]), np.array([0.184, 0.434, 0.120]), (10, 24, 8))
MAP_HW = (32, 84)
HIDDEN = (0.6, 0.9, 0.95)  # share of the planted objects that clutter covers
PATCH_HW = (6, 10)  # cells that a block of clutter covers
CLUTTER_KINDS = 100
CHANNELS = 32
PAPER = SolveConfig()
BEST = SolveConfig(solver="best")
# What does best without an average.
BEST_ITERATE = dict(rates=(0.15, 0.01), averaging=0.0, keep_best=True, patience=0)


@dataclass(frozen=True)
class Problem:
    """Images of one mesh.

    features [B, C, H, W], bank [V, C], clutter [C], truth [B, 3] in radians. image_scale: of the
    images; None where they are planted with the reference's camera, which every solver then gets.
    """

    name: str
    mesh: Mesh
    features: torch.Tensor
    bank: torch.Tensor
    clutter: torch.Tensor
    truth: NDArray[np.float64]
    category: str = "car"
    image_scale: float | None = None

    def camera(self, config: SolveConfig) -> tuple[MapCamera, float]:
        """Camera and start distance of a solver."""
        map_hw = tuple(self.features.shape[2:])
        if self.image_scale is None:
            return paper_camera(map_hw), 5.0
        return choose_camera(config, self.category, map_hw, self.image_scale)


def planted(hidden: float, count: int, seed: int = 0) -> Problem:
    """Cars in random poses with smooth random vertex features, a share of each behind clutter."""
    generator = np.random.default_rng(seed)
    mesh = cuboid_mesh(CAR)
    # poses, and features of the car and of what is not the car
    limits = ((0, 2 * np.pi), (-0.3, 0.8), (-0.4, 0.4))
    truth = np.stack([generator.uniform(low, high, count) for low, high in limits], 1)
    waves = generator.standard_normal((3, CHANNELS)) / 0.12
    bank = unit(np.cos(mesh.vertices @ waves + generator.uniform(0, 2 * np.pi, CHANNELS)))
    bank = unit(bank + 0.5 * unit(generator.standard_normal(bank.shape)))
    background = generator.standard_normal(CHANNELS)
    kinds = unit(background + 0.5 * generator.standard_normal((CLUTTER_KINDS, CHANNELS)))
    # pictures
    scene = make_scene(mesh, paper_camera(MAP_HW))
    centre = torch.as_tensor(camera_centre(truth[:, 0], truth[:, 1], 5.0))
    rotation = look_at(centre, torch.as_tensor(truth[:, 2]))
    table = NumbaRenderer().table(scene, centre, rotation)
    picture = np.einsum("pbkc,pbk->bpc", bank[table.corners.numpy()], table.bary.numpy())
    seen = picture.any(-1)
    for cells in seen:
        hide(cells.reshape(MAP_HW), hidden, generator)
    clutter = kinds[generator.integers(0, CLUTTER_KINDS, seen.shape)]
    picture = np.where(seen[..., None], picture, clutter)
    picture = unit(picture + 0.15 * generator.standard_normal(picture.shape))
    return Problem(
        f"planted, {hidden:.0%} hidden",
        mesh,
        torch.as_tensor(picture, dtype=torch.float32).mT.unflatten(2, MAP_HW).contiguous(),
        torch.as_tensor(bank, dtype=torch.float32),
        torch.as_tensor(unit(kinds.mean(0)), dtype=torch.float32),
        truth,
    )


def hide(seen: NDArray[np.bool_], share: float, generator: np.random.Generator) -> None:
    """Cover cells [H, W] that show the car block by block, until a share of them is hidden."""
    size = seen.sum()
    height, width = PATCH_HW
    while seen.sum() > (1 - share) * size:
        row = generator.integers(0, MAP_HW[0] - height + 1)
        col = generator.integers(0, MAP_HW[1] - width + 1)
        seen[row : row + height, col : col + width] = False


def unit(x: NDArray) -> NDArray:
    """Vectors [..., C] of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def photographs(features: Path, checkpoint: Path, prepared: Path, half: slice) -> Problem:
    """The images of a feature file with their annotated poses."""
    stored = load_features(features)
    trained = load_checkpoint(checkpoint)
    if trained.meshes is None or len(trained.meshes) != 1:
        raise ValueError(f"{checkpoint}: a checkpoint with one mesh inside is needed")
    names = stored.names[1][half]
    bank, clutter = trained.banks(1)
    category = trained.config.category
    files = PreparedSet(prepared)
    truth = [load_annotation(files.annotation(category, name)).pose.angles for name in names]
    return Problem(
        features.stem.split("_saved")[0],
        trained.meshes[0],
        torch.from_numpy(np.stack([stored.maps[name] for name in names])),
        bank,
        torch.nn.functional.normalize(clutter.mean(0), dim=0),
        np.array(truth),
        category,
        trained.config.image_scale,
    )


def staged(
    *stages: tuple[int, int], rates: tuple[float, float] = BEST_RATES, **changes
) -> tuple[SolveConfig, Plan]:
    """The solver `best` with other stages, rates (first, last) and changes of its plan."""
    each_step = np.geomspace(*rates, sum(steps for _, steps in stages))
    return BEST, replace(make_plan(BEST), stages=stages, rates=each_step, **changes)


def plans() -> dict[str, tuple[SolveConfig, Plan]]:
    """What is compared: the two solvers, and other numbers of candidates and steps."""
    best = make_plan(BEST)
    fewer = replace(PAPER, total_epochs=30, step_drop=10)
    return {
        "`paper`": (PAPER, make_plan(PAPER)),
        "`paper`, 30 steps": (PAPER, make_plan(fewer)),
        f"**`best`**: {described(best.stages)}; average of the iterates, early stop": (BEST, best),
        "the same without early stop": (BEST, replace(best, patience=0)),
        "2, 1; best iterate": staged((2, 5), (1, 19), **BEST_ITERATE),
        "8, 3, 1; best iterate": staged((8, 5), (3, 10), (1, 24), **BEST_ITERATE),
        "4, 2, 1; longer": staged((4, 8), (2, 10), (1, 20)),
        "8, 4, 2; in `paper`'s time": staged((8, 8), (4, 20), (2, 60), patience=12),
    }


def described(stages: tuple[tuple[int, int], ...]) -> str:
    """Candidates of each stage: `4, 2, 1`."""
    return ", ".join(str(candidates) for candidates, _ in stages)


def measure(problem: Problem, config: SolveConfig, plan: Plan) -> tuple[list[float], float, float]:
    """(pi/6, pi/18, median), seconds of one core and evaluations per image."""
    setup = make_setup(config, *problem.camera(config), NumbaRenderer(), plan)
    scene = make_scene(problem.mesh, setup.camera)
    starts = setup.starts(problem.mesh)
    target = setup.renderer.target(problem.features, problem.bank, problem.clutter)
    elapsed = []
    for _ in range(2):
        begin = time.process_time()
        solved = solve_target(scene, target, starts, setup)
        elapsed.append(time.process_time() - begin)
    reached = accuracy(pose_errors(solved.pose.angles, problem.truth))
    numbers = [reached.within_pi6, reached.within_pi18, reached.median_deg]
    return numbers, min(elapsed) / len(problem.features), solved.evaluations.mean()


def parse_arguments() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--checkpoint", type=Path, help="of the feature files")
    option("--prepared", type=Path, help="prepared test set that has the annotations")
    option(
        "--features",
        type=Path,
        nargs="*",
        default=[],
        help="feature files, one per occlusion level",
    )
    option("--half", choices=("0", "1", "all"), default="all", help="which of the photographs")
    option("--planted", type=int, default=60, help="planted images per share of hidden cells")
    return parser.parse_args()


def main() -> None:
    """Measure and print the table."""
    options = parse_arguments()
    torch.set_num_threads(1)
    half = slice(None) if options.half == "all" else slice(int(options.half), None, 2)
    problems = [
        photographs(path, options.checkpoint, options.prepared, half) for path in options.features
    ]
    if options.planted:
        problems += [planted(hidden, options.planted) for hidden in HIDDEN]
    print("images:", ", ".join(f"{len(p.features)} {p.name}" for p in problems), "\n")
    names = " | ".join(problem.name for problem in problems)
    print("| steps | evaluations | ms |", names, "| mean pi/6, pi/18 |")
    print("|---|---|---|" + "---|" * (len(problems) + 1))
    for name, (config, plan) in plans().items():
        results = [measure(problem, config, plan) for problem in problems]
        cells = " | ".join(", ".join(f"{x:.1f}" for x in numbers) for numbers, _, _ in results)
        pi6, pi18 = np.mean([numbers[:2] for numbers, _, _ in results], 0)
        ms = 1e3 * np.mean([seconds for _, seconds, _ in results])
        evaluations = np.mean([count for _, _, count in results])
        print(
            f"| {name} | {evaluations:.1f} | {ms:.1f} | {cells} | {pi6:.1f}, {pi18:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
