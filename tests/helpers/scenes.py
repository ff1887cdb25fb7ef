"""Meshes, poses and scores at random, to render."""

from __future__ import annotations

import numpy as np
import torch

from neural_mesh.compare.scene import Scene, Target, look_at
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh

GRID = CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (3, 6, 4))


def octahedron() -> Mesh:
    """Eight faces, subdivided once and pushed onto an ellipsoid: closed, and no cuboid."""
    vertices = np.concatenate([np.eye(3), -np.eye(3)])
    points = list(vertices)
    triangles = []
    for a, b, c in [(a, b, c) for a in (0, 3) for b in (1, 4) for c in (2, 5)]:
        ab = len(points)
        bc = ab + 1
        ca = ab + 2
        points += [vertices[a] + vertices[b], vertices[b] + vertices[c], vertices[c] + vertices[a]]
        triangles += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    directions = np.array(points) / np.linalg.norm(points, axis=1, keepdims=True)
    return Mesh(directions * [0.3, 0.5, 0.2], np.array(triangles))


def triangle_soup() -> Mesh:
    """Sixty random triangles that cut through each other."""
    generator = np.random.default_rng(3)
    middles = generator.uniform(-0.5, 0.5, (60, 1, 3))
    corners = middles + 0.25 * generator.standard_normal((60, 3, 3))
    return Mesh(corners.reshape(-1, 3), np.arange(180).reshape(60, 3))


MESHES = {"cuboid": cuboid_mesh(GRID), "octahedron": octahedron(), "soup": triangle_soup()}
# Low and high end of the camera's distance, and how far it looks past the object.
VIEWS = {
    "usual": (1.5, 4.0, 0.0),
    "out of the map": (1.5, 3.0, 0.2),
    "close": (0.55, 0.8, 0.3),
    "inside and behind": (0.0, 0.5, 3.0),
}


def random_mesh(generator: np.random.Generator) -> Mesh:
    """A cuboid with random sides and cells, or triangles at random, some of which share corners."""
    if generator.random() < 0.5:
        size = generator.uniform(0.05, 0.6, 3)
        low = -size * generator.uniform(0.3, 0.7, 3)
        samples = tuple(generator.integers(2, 7, 3).tolist())
        return cuboid_mesh(CuboidGrid(low, size / 2, samples))
    vertices = generator.uniform(-0.5, 0.5, (int(generator.integers(3, 40)), 3))
    count = int(generator.integers(1, 50))
    faces = [generator.permutation(len(vertices))[:3] for _ in range(count)]
    return Mesh(vertices, np.array(faces))


def random_poses(view: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Camera centres [count, 3] and rotations object_from_cv_cam [count, 3, 3] of one of VIEWS."""
    near, far, turn = VIEWS[view]
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    distance = near + (far - near) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    centre = centre / centre.norm(dim=1, keepdim=True) * distance
    theta = 6.28 * torch.rand(count, generator=generator, dtype=torch.float64)
    skew = turn * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    x, y, z = skew.unbind(1)
    zero = torch.zeros(count, dtype=torch.float64)
    spin = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    return centre, look_at(centre, theta) @ torch.matrix_exp(spin)


def random_target(scene: Scene, count: int, seed: int, use_clutter: bool = True) -> Target:
    """Scores and clutter of noise: in float64 float32 values, as the fast kernels read them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, scene.camera.pixels, len(scene.vertices))
    scores = torch.randn(shape, generator=generator).double()
    clutter = 0.5 * torch.randn(shape[:2], generator=generator).double()
    return Target(scores, clutter if use_clutter else None)
