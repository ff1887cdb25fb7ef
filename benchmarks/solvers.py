"""Accuracy against evaluations and time for several ways to search a pose: one table, the same images, in one run.

    python benchmarks/solvers.py                                     # planted poses, most of each object hidden
    python benchmarks/solvers.py --checkpoint exp/NeMo_single/saved_model_car_last.pth --prepared data/PASCAL3D_NeMo \
        --features exp/Features_single/car/saved_feature_car_single.npz ... --half 1    # and photographs

Feature files are what SAVE_FEATURES=true leaves behind, one per occlusion level; --prepared has the annotations. --half 0
takes every second image, 1 the others: the solver `best` was chosen on half 0, so half 1 is the fair one.
Each cell is pi/6, pi/18 in %, median error in degrees. "evaluations": renderings compared with an image, with gradient,
after the 144 starts, on average over the sets. The starts are looked up in one table of pictures that all images share,
without rendering, for every solver alike. "ms": one core's time for starts and steps of one image, without the score
volume, which does not depend on the solver.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neural_mesh.compare import rendering
from neural_mesh.geometry.cameras import MapCamera, camera_centre, paper_camera
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh
from neural_mesh.geometry.pose_error import accuracy, pose_errors
from neural_mesh.settings import SolveConfig
from neural_mesh.solve import pose
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import load_annotation
from neural_mesh.storage.results import load_features

CAR = CuboidGrid(np.array([-0.184, -0.441, -0.168]), np.array([0.184, 0.434, 0.120]), (10, 24, 8))
MAP_HW = (32, 84)
HIDDEN = (0.6, 0.9, 0.95)  # share of the planted objects that clutter covers
PAPER, BEST = SolveConfig(), SolveConfig(solver="best")
CHANNELS = 32


@dataclass(frozen=True)
class Problem:
    """Images of one mesh: features [B, C, H, W], bank [V, C], clutter [C], truth [B, 3] in radians, scale of the images."""

    name: str
    mesh: Mesh
    features: torch.Tensor
    bank: torch.Tensor
    clutter: torch.Tensor
    truth: NDArray[np.float64]
    category: str = "car"
    image_scale: float | None = (
        None  # None: planted with the reference's camera, which every solver then gets
    )

    def camera(self, config: SolveConfig) -> tuple[MapCamera, float]:
        """Camera and start distance of a solver."""
        map_hw = tuple(self.features.shape[2:])
        if self.image_scale is None:
            return paper_camera(map_hw), 5.0
        return pose.choose_camera(config, self.category, map_hw, self.image_scale)


def planted(hidden: float, count: int, seed: int = 0) -> Problem:
    """Cars in random poses, smooth random vertex features, blocks of 6x10 cells of clutter over a share of each car."""
    generator = np.random.default_rng(seed)
    mesh = cuboid_mesh(CAR)
    scene = rendering.make_scene(mesh, paper_camera(MAP_HW))
    truth = np.stack(
        [generator.uniform(a, b, count) for a, b in ((0, 2 * np.pi), (-0.3, 0.8), (-0.4, 0.4))], 1
    )
    waves = generator.standard_normal((3, CHANNELS)) / 0.12
    bank = unit(np.cos(mesh.vertices @ waves + generator.uniform(0, 2 * np.pi, CHANNELS)))
    bank = unit(bank + 0.5 * unit(generator.standard_normal(bank.shape)))
    rows = unit(
        generator.standard_normal(CHANNELS) + 0.5 * generator.standard_normal((100, CHANNELS))
    )
    centre = torch.as_tensor(camera_centre(truth[:, 0], truth[:, 1], 5.0))
    table = rendering.render_table(
        scene, centre, rendering.look_at(centre, torch.as_tensor(truth[:, 2])), "numba"
    )
    picture = np.einsum("pbkc,pbk->bpc", bank[table.corners.numpy()], table.bary.numpy())
    kept = picture.any(-1)
    for cells in kept:
        grid, size = cells.reshape(MAP_HW), cells.sum()
        while grid.sum() > (1 - hidden) * size:
            row, col = generator.integers(0, MAP_HW[0] - 5), generator.integers(0, MAP_HW[1] - 9)
            grid[row : row + 6, col : col + 10] = False
    picture = np.where(kept[..., None], picture, rows[generator.integers(0, 100, kept.shape)])
    picture = unit(picture + 0.15 * generator.standard_normal(picture.shape))
    features = torch.as_tensor(picture, dtype=torch.float32).mT.unflatten(2, MAP_HW).contiguous()
    bank, clutter = (torch.as_tensor(x, dtype=torch.float32) for x in (bank, unit(rows.mean(0))))
    return Problem(f"planted, {hidden:.0%} hidden", mesh, features, bank, clutter, truth)


def unit(x: NDArray) -> NDArray:
    """Vectors [..., C] of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def photographs(features: Path, checkpoint: Path, prepared: Path, half: slice) -> Problem:
    """The images of a feature file with their annotated poses."""
    stored, trained = load_features(features), load_checkpoint(checkpoint)
    if trained.meshes is None or len(trained.meshes) != 1:
        raise ValueError(f"{checkpoint}: a checkpoint with one mesh inside is needed")
    names = stored.names[1][half]
    bank, clutter = trained.banks(1)
    category = trained.config.category
    annotations = [
        load_annotation(PreparedSet(prepared).annotation(category, name)) for name in names
    ]
    truth = np.array([a.pose.angles for a in annotations])
    maps = torch.from_numpy(np.stack([stored.maps[name] for name in names]))
    clutter = torch.nn.functional.normalize(clutter.mean(0), dim=0)
    name = features.stem.split("_saved")[0]
    return Problem(
        name, trained.meshes[0], maps, bank, clutter, truth, category, trained.config.image_scale
    )


def plans() -> dict[str, tuple[SolveConfig, pose.Plan]]:
    """What is compared: the two solvers, and how they do with other numbers of candidates and steps."""
    best = pose.make_plan(BEST)

    def staged(
        *stages: tuple[int, int], rates: tuple[float, float] = pose.BEST_RATES, **changes
    ) -> tuple[SolveConfig, pose.Plan]:
        rates = np.geomspace(*rates, sum(steps for _, steps in stages))
        return BEST, replace(best, stages=stages, rates=rates, **changes)

    iterate = dict(
        rates=(0.15, 0.01), averaging=0.0, keep_best=True, patience=0
    )  # what does best without an average
    return {
        "`paper`": (PAPER, pose.make_plan(PAPER)),
        "`paper`, 30 steps": (PAPER, pose.make_plan(replace(PAPER, total_epochs=30, step_drop=10))),
        f"**`best`**: {described(best.stages)}; average of the iterates, early stop": (BEST, best),
        "the same without early stop": (BEST, replace(best, patience=0)),
        "2, 1; best iterate": staged((2, 5), (1, 19), **iterate),
        "8, 3, 1; best iterate": staged((8, 5), (3, 10), (1, 24), **iterate),
        "4, 2, 1; longer": staged((4, 8), (2, 10), (1, 20)),
        "8, 4, 2; in `paper`'s time": staged((8, 8), (4, 20), (2, 60), patience=12),
    }


def described(stages: tuple[tuple[int, int], ...]) -> str:
    """Candidates of each stage: `4, 2, 1`."""
    return ", ".join(str(candidates) for candidates, _ in stages)


def measure(
    problem: Problem, config: SolveConfig, plan: pose.Plan
) -> tuple[list[float], float, float]:
    """(pi/6, pi/18, median), seconds of one core and evaluations per image."""
    camera, distance = problem.camera(config)
    scene = rendering.make_scene(problem.mesh, camera)
    starts = pose.make_starts(scene, config, distance, "numba", torch.device("cpu"))
    target = rendering.make_target(problem.features, problem.bank, problem.clutter, "numba")
    elapsed = []
    for _ in range(2):
        begin = time.process_time()
        found = pose.solve_target(scene, target, starts, plan, "numba")
        elapsed.append(time.process_time() - begin)
    angles = np.stack([found.azimuth, found.elevation, found.theta], 1)
    reached = accuracy(pose_errors(angles, problem.truth))
    numbers = [reached.within_pi6, reached.within_pi18, reached.median_deg]
    return numbers, min(elapsed) / len(problem.features), found.evaluations.mean()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="of the feature files")
    parser.add_argument("--prepared", type=Path, help="prepared test set that has the annotations")
    parser.add_argument(
        "--features",
        type=Path,
        nargs="*",
        default=[],
        help="feature files, one per occlusion level",
    )
    parser.add_argument(
        "--half", choices=("0", "1", "all"), default="all", help="which of the photographs"
    )
    parser.add_argument(
        "--planted", type=int, default=60, help="planted images per share of hidden cells"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    half = slice(None) if options.half == "all" else slice(int(options.half), None, 2)
    problems = [
        photographs(path, options.checkpoint, options.prepared, half) for path in options.features
    ]
    problems += [planted(hidden, options.planted) for hidden in HIDDEN if options.planted]
    print("images:", ", ".join(f"{len(p.features)} {p.name}" for p in problems), "\n")
    print(
        "| steps | evaluations | ms |", " | ".join(p.name for p in problems), "| mean pi/6, pi/18 |"
    )
    print("|---|---|---|" + "---|" * (len(problems) + 1))
    for name, (config, plan) in plans().items():
        results = [measure(problem, config, plan) for problem in problems]
        cells = [", ".join(f"{x:.1f}" for x in numbers) for numbers, _, _ in results]
        mean = np.mean([numbers[:2] for numbers, _, _ in results], 0)
        ms, evaluations = (
            1e3 * np.mean([seconds for _, seconds, _ in results]),
            np.mean([count for *_, count in results]),
        )
        print(
            f"| {name} | {evaluations:.1f} | {ms:.1f} |",
            " | ".join(cells),
            f"| {mean[0]:.1f}, {mean[1]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
