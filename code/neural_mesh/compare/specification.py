"""Render-and-compare in plain PyTorch, by autograd: the slow, obvious twin of every other renderer.

It runs everywhere and at any precision. Frames and units as in `scene`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neural_mesh.compare import steps
from neural_mesh.compare.scene import (
    NEAR,
    CandidateStates,
    Gradients,
    PictureTable,
    Scene,
    Stage,
    StepRules,
    Target,
    principal_points,
    score_target,
    widened,
)
from neural_mesh.geometry.cameras import MapCamera

# Pairs of a pixel and a face that are tested at a time: on a CPU they fit into its cache, on a GPU
# into its memory.
CPU_PAIRS = 10_000
GPU_PAIRS = 4_000_000
# Scores of a table of pictures that are looked up at a time: on a CPU they fit into its cache, on a
# GPU into 1 GiB.
CPU_LOOKUPS = 1 << 20
GPU_LOOKUPS = 1 << 28


@dataclass(frozen=True)
class TorchRenderer:
    """`Renderer` in plain PyTorch."""

    device: torch.device
    name: ClassVar[str] = "torch"

    def target(self, features: Tensor, bank: Tensor, clutter: Tensor | None) -> Target:
        """See `Renderer.target`."""
        return score_target(features, bank, clutter)

    def visible(
        self,
        scene: Scene,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See the function `visible`."""
        return visible(scene, centre, rotation, principal_xy)

    def loss(
        self,
        scene: Scene,
        target: Target,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> Tensor:
        """Loss [B], differentiable in centre [B, 3], rotation [B, 3, 3] and principal_xy [B, 2]."""
        corners, bary = self.visible(scene, centre, rotation, principal_xy)
        return loss_of_scores(object_scores(target, corners, bary), target.clutter)

    def compare(
        self,
        scene: Scene,
        target: Target,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> Gradients:
        """See `Renderer.compare`."""
        gradients, _ = self._differentiate(scene, target, centre, rotation, principal_xy)
        return gradients

    def _differentiate(
        self,
        scene: Scene,
        target: Target,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None,
    ) -> tuple[Gradients, Tensor]:
        """Gradients as of `compare`, and the gradient by the principal point [B, 2]."""
        with torch.enable_grad():
            centre = centre.detach().requires_grad_()
            rotation = rotation.detach().requires_grad_()
            principal_xy = principal_points(scene.camera, centre, principal_xy)
            principal_xy = principal_xy.detach().requires_grad_()
            variables = centre, rotation, principal_xy
            loss = self.loss(scene, target, *variables)
            # Where no pixel sees the mesh, the loss does not depend on the pose.
            if not loss.requires_grad:
                zeros = [torch.zeros_like(x) for x in variables]
                return Gradients(loss, zeros[0], zeros[1]), zeros[2]
            # Images do not depend on each other, so the sum has each image's own gradient.
            by_centre, by_rotation, by_principal = torch.autograd.grad(loss.sum(), variables)
        return Gradients(loss.detach(), by_centre, by_rotation), by_principal

    def table(
        self,
        scene: Scene,
        centre: Tensor,
        rotation: Tensor,
        margin_rc: tuple[int, int] = (0, 0),
    ) -> PictureTable:
        """See `Renderer.table`."""
        with torch.no_grad():
            corners, bary = self.visible(widened(scene, margin_rc), centre, rotation)
        corners = corners.transpose(0, 1).contiguous()
        bary = bary.transpose(0, 1).contiguous().float()
        return PictureTable(corners, bary, scene.camera.map_hw, margin_rc)

    def compare_table(
        self, table: PictureTable, target: Target, shift_rc: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """See `Renderer.compare_table`."""
        return compare_table(table, target, shift_rc)

    def advance(
        self,
        scene: Scene,
        target: Target,
        candidates: CandidateStates,
        rules: StepRules,
        stage: Stage,
        trace: bool = False,
    ) -> Tensor:
        """See `Renderer.advance`."""
        problem = steps.Problem(self, scene, target)
        return steps.advance(problem, candidates, rules, stage, trace)


# ---- loss ----


def loss_of_scores(scores: Tensor, clutter: Tensor | None) -> Tensor:
    """Loss 1 - mean relu(O - B) over pixels [..., P] (paper); without clutter 1 - mean O.

    The latter is the reference's turn_off_clutter.
    """
    if clutter is not None:
        scores = torch.relu(scores - clutter)
    return 1 - scores.mean(-1)


def object_scores(target: Target, corners: Tensor, bary: Tensor) -> Tensor:
    """Object scores O [B, P] from the corners [B, P, 3] that pixels see and their weights."""
    if target.scores is not None:
        return (target.scores.gather(2, corners) * bary).sum(-1)
    # The reference optimises through rendered features [B, P, C].
    rendered = (target.bank[corners] * bary[..., None]).sum(2)
    return (rendered * target.features).sum(-1)


# ---- visibility ----


def visible(
    scene: Scene, centre: Tensor, rotation: Tensor, principal_xy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Vertices [B, P, 3] and barycentric coordinates [B, P, 3] of the triangles that pixels see.

    Coordinates are 0 off the mesh, and differentiable in the arguments.
    """
    faces = torch.as_tensor(scene.faces, dtype=torch.int64, device=centre.device)
    vertices = torch.as_tensor(scene.vertices, dtype=centre.dtype, device=centre.device)
    positions = vertices[faces]  # [F, 3, 3]
    principals = principal_points(scene.camera, centre, principal_xy)
    # Image by image, which bounds the memory.
    corners = []
    barys = []
    for c, r, principal in zip(centre, rotation, principals):
        rays = cam_rays(scene.camera, principal)
        # The choice of a face is not differentiable, the barycentric coordinates are.
        with torch.no_grad():
            face, _ = nearest_faces(positions - c, rays @ r.T, r[:, 2])
        hit = (face >= 0)[:, None]
        weights = (edge_normals(positions[face] - c) * (rays @ r.T)[:, None]).sum(-1)
        total = torch.where(hit, weights.sum(-1, keepdim=True), 1)
        corners.append(torch.where(hit, faces[face], 0))
        barys.append(torch.where(hit, weights / total, 0))
    return torch.stack(corners), torch.stack(barys)


def cam_rays(camera: MapCamera, principal_xy: Tensor | None = None) -> Tensor:
    """Directions [P, 3] of the pixels in the camera frame, with depth component 1.

    They have the dtype of principal_xy [2], and float64 without it.
    """
    if principal_xy is None:
        principal_xy = torch.tensor(camera.principal_xy, dtype=torch.float64)
    height, width = camera.map_hw
    rows, cols = torch.meshgrid(
        torch.arange(height).to(principal_xy) + 0.5,
        torch.arange(width).to(principal_xy) + 0.5,
        indexing="ij",
    )
    x = (cols - principal_xy[0]) / camera.focal
    y = (rows - principal_xy[1]) / camera.focal
    return torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)


def edge_normals(relative: Tensor) -> Tensor:
    """Normals [..., 3, 3] of the planes through the camera and the side opposite to each corner.

    relative [..., 3 corners, 3]: corners relative to the camera. The scalar products of a ray with
    the three normals, divided by their sum, are the barycentric coordinates of the point that it
    meets, with perspective. The ray passes through the triangle if no two of the products differ in
    sign.
    """
    return torch.linalg.cross(relative.roll(-1, -2), relative.roll(-2, -2))


def nearest_faces(relative: Tensor, rays: Tensor, forward: Tensor) -> tuple[Tensor, Tensor]:
    """Face [P] (-1: none) and depth [P] (inf: none) that each ray [P, 3] meets first.

    relative [F, 3, 3]: corners relative to the camera. forward [3]: viewing direction.
    """
    # The near rule leaves out a face with any corner behind the near plane.
    in_front = (relative @ forward >= NEAR).all(-1)
    normals = edge_normals(relative)
    volume = (relative * normals).sum(-1)[:, 0]
    pairs = GPU_PAIRS if rays.is_cuda else CPU_PAIRS
    faces = []
    depths = []
    for chunk in rays.split(max(1, pairs // len(relative))):
        # A ray passes through a face on whose three planes it lies on the same side.
        weights = torch.einsum("fki,pi->kpf", normals, chunk)
        total = weights.sum(0)
        same_sign = (weights.amin(0) >= 0) | (weights.amax(0) <= 0)
        inside = same_sign & (total != 0) & in_front
        # The nearest face wins.
        depth, face = torch.where(inside, volume / total, math.inf).min(-1)
        faces.append(torch.where(depth < math.inf, face, -1))
        depths.append(depth)
    return torch.cat(faces), torch.cat(depths)


# ---- pictures rendered once and compared with many images ----


def compare_table(
    table: PictureTable, target: Target, shift_rc: tuple[int, int] = (0, 0)
) -> Tensor:
    """Loss [B, N] of every picture of a table for every image, see `Renderer.compare_table`."""
    # Cut out the cells of the pictures that lie on the map.
    height, width = table.map_hw
    row, col = table.first_cell_rc(shift_rc)
    window = slice(row, row + height), slice(col, col + width)
    corners = table.corners.unflatten(0, (-1, table.width))[window].flatten(0, 1)
    bary = table.bary.unflatten(0, (-1, table.width))[window].flatten(0, 1)
    # Limit how many pictures are compared at a time, by the memory that they need.
    each = 3 if target.features is None else target.features.shape[2]
    lookups = GPU_LOOKUPS if corners.is_cuda else CPU_LOOKUPS
    together = max(1, lookups // (len(target) * len(corners) * each))
    clutter = None if target.clutter is None else target.clutter[:, None]
    losses = []
    for some_corners, some_bary in zip(corners.split(together, 1), bary.split(together, 1)):
        scores = _table_scores(target, some_corners, some_bary)
        losses.append(loss_of_scores(scores, clutter))
    return torch.cat(losses, 1)


def _table_scores(target: Target, corners: Tensor, bary: Tensor) -> Tensor:
    """Object scores [B, N, P] of N pictures (corners and bary [P, N, 3]) for every image."""
    if target.scores is None:
        rendered = (target.bank[corners] * bary[..., None]).sum(2)  # [P, N, C]
        return torch.einsum("pnc,bpc->bnp", rendered, target.features)
    seen = target.scores.gather(2, corners.flatten(1).expand(len(target), -1, -1))
    return (seen.unflatten(2, bary.shape[1:]) * bary).sum(-1).mT
