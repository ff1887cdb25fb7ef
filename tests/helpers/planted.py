"""Problems for the pose solver whose answer is known, planted or stored."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from helpers.renderers import SPECIFICATION, renderer_named
from neural_mesh.compare.scene import look_at, make_scene
from neural_mesh.geometry.cameras import (
    MapCamera,
    Pose,
    camera_centre,
    geodesic_distance,
    paper_camera,
)
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.plan import Plan
from neural_mesh.solve.solver import Setup, SolvedPoses, make_setup, solve

PAPER = SolveConfig()
BEST = SolveConfig(solver="best")
SIX_D = replace(BEST, six_d=True, distance_factors=(0.7, 1.4, 3), shifts=(-0.25, 0.25, 5))
GRID = CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (5, 10, 4))
SMALL_HW = (12, 20)
SIX_D_HW = (16, 24)
CHANNELS = 16
# Azimuth, elevation, theta.
LOWEST_ANGLES = (0, -0.3, -0.4)
HIGHEST_ANGLES = (6.28, 0.9, 0.4)


class Problem(NamedTuple):
    """First arguments of `solve`: features [B, C, H, W], bank [V, C] and clutter [C]."""

    mesh: Mesh
    features: torch.Tensor
    bank: torch.Tensor
    clutter: torch.Tensor

    def to(self, device: torch.device) -> Problem:
        """With its tensors on a device."""
        return Problem(self.mesh, *(x.to(device) for x in self[1:]))


def golden_problem(data) -> Problem:
    """The problem of a stored run of the reference."""
    clutter = torch.as_tensor(data["clutter_bank"]).mean(0)
    features = torch.as_tensor(data["features"].astype(np.float32))
    mesh = Mesh(data["vertices"], data["faces"])
    return Problem(mesh, features, torch.as_tensor(data["bank"]), clutter / clutter.norm())


def planted_problem(
    count: int,
    noise: float,
    seed: int = 0,
    map_hw: tuple[int, int] = SMALL_HW,
    hidden: float = 0.0,
    distance: NDArray | float = 5.0,
    shift_xy: NDArray | tuple[float, float] = (0.0, 0.0),
) -> tuple[Problem, Pose]:
    """Feature maps of a cuboid in random poses, in front of clutter, and the poses [count].

    hidden: share of the map's columns that clutter hides. distance: of the cameras. shift_xy
    [count, 2]: of the object over the map, in cells.
    """
    generator = np.random.default_rng(seed)
    mesh = cuboid_mesh(GRID)
    scene = make_scene(mesh, paper_camera(map_hw))
    # features that vary over the cuboid, and one for what is not the object
    waves = generator.standard_normal((3, CHANNELS)) / 0.15
    bank = np.cos(mesh.vertices @ waves + generator.uniform(0, 6, CHANNELS))
    bank += 0.3 * generator.standard_normal(bank.shape)
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    clutter = generator.standard_normal(CHANNELS)
    # the poses
    limits = zip(LOWEST_ANGLES, HIGHEST_ANGLES, strict=True)
    azimuth, elevation, theta = (generator.uniform(low, high, count) for low, high in limits)
    principal_xy = scene.camera.principal_xy + np.broadcast_to(shift_xy, (count, 2))
    true = Pose(azimuth, elevation, theta, np.broadcast_to(distance, count), principal_xy)
    # the pictures
    centre = torch.as_tensor(camera_centre(azimuth, elevation, distance))
    rotation = look_at(centre, torch.as_tensor(theta))
    principal = torch.as_tensor(principal_xy)
    corners, bary = SPECIFICATION.visible(scene, centre, rotation, principal)
    picture = (torch.as_tensor(bank)[corners] * bary[..., None]).sum(2).numpy()
    picture[~picture.any(-1)] = clutter
    hidden_columns = np.arange(round(hidden * map_hw[1]))
    columns = (generator.integers(0, map_hw[1], (count, 1)) + hidden_columns) % map_hw[1]
    picture.reshape(count, *map_hw, CHANNELS)[np.arange(count)[:, None], :, columns] = clutter
    picture += noise * generator.standard_normal(picture.shape)
    picture /= np.linalg.norm(picture, axis=-1, keepdims=True)
    features = torch.as_tensor(picture, dtype=torch.float32).mT.unflatten(2, map_hw).contiguous()
    unit_clutter = torch.as_tensor(clutter / np.linalg.norm(clutter), dtype=torch.float32)
    unit_bank = torch.as_tensor(bank, dtype=torch.float32)
    return Problem(mesh, features, unit_bank, unit_clutter), true


def moved_problem(count: int, noise: float = 0.15, seed: int = 0) -> tuple[Problem, Pose]:
    """`planted_problem` seen from other distances and moved over the map."""
    generator = np.random.default_rng(seed)
    distance = 5.0 * np.exp(generator.uniform(-0.3, 0.3, count))
    size = generator.uniform(2.5, 5, (count, 2))
    shift_xy = size * generator.choice([-1, 1], (count, 2)) * [1.0, 0.5]
    return planted_problem(count, noise, seed, SIX_D_HW, distance=distance, shift_xy=shift_xy)


def setup_for(
    config: SolveConfig, camera: MapCamera, renderer: str = "numba", plan: Plan | None = None
) -> Setup:
    """A setup with starts at the distance of planted poses."""
    return make_setup(config, camera, 5.0, renderer_named(renderer), plan)


def solve_small(
    problem: Problem,
    config: SolveConfig = PAPER,
    renderer: str = "numba",
    plan: Plan | None = None,
    **options,
) -> SolvedPoses:
    """Poses with the paper's camera. options: of `solve`."""
    camera = paper_camera(tuple(problem.features.shape[2:]))
    return solve(*problem, setup_for(config, camera, renderer, plan), **options)


def rotation_error_deg(pose: Pose, pascal_cam_from_object: NDArray) -> NDArray[np.float64]:
    """Angles [B] between poses and rotations [B, 3, 3], in degrees."""
    return np.degrees(geodesic_distance(pose.pascal_cam_from_object, pascal_cam_from_object))
