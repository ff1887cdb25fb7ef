"""What is rendered and compared, the interface of a renderer, and the arguments of kernels.

The neural mesh is never rendered. Interpolating vertex features and multiplying them with the
image's features are both linear and commute, so each pixel's score is the interpolation of three
numbers of a score volume S = features x vertex features that is computed once per image. Loss and
gradient are the reference's to rounding:

    O(p) = sum_k b_k(p) S[p, v_k(p)], 0 off the mesh        loss = 1 - mean_p relu(O(p) - B(p))

with v_k(p), b_k(p) the corners and barycentric coordinates of the triangle that pixel p sees, and B
the clutter score.

Frames. `object` has CAD axes, z up, front towards -y. `cv_cam` is x right, y down, z forward: a
proper rotation of the object's, so that nothing is mirrored and the diagonals of a cuboid's cells
stay where they are. `rotation` is object_from_cv_cam [3, 3], its columns are the camera's axes.
Positions on the map are (x right, y down) in cells of the feature map, cell (row, col) is sampled
at its centre (col + 0.5, row + 0.5).

Visibility is hard: one face per pixel, no culling, perspective-correct; gradients flow through the
barycentric coordinates only. Every renderer leaves out a triangle that has a corner less than
`NEAR` in front of the camera.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.geometry.cameras import MapCamera
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, find_cuboid

NEAR = 1e-3  # a triangle with a corner nearer to the camera than this (in CAD units) is not drawn
TINY = 1e-9  # CAD units; keeps the look-at finite on the vertical axis and at the origin
ADAM_EPSILON = 1e-8  # torch.optim.Adam's default, which the reference uses


# ---- what is rendered ----

# Of NumPy in the arguments of numba's kernels, of PyTorch in those of the others.
Array: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Scene:
    """What is rendered: a mesh and the camera that sees it.

    vertices [V, 3]: in the object frame. faces [F, 3]. cuboid: the grid, if the mesh is one.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    camera: MapCamera
    cuboid: CuboidGrid | None


def make_scene(mesh: Mesh, camera: MapCamera) -> Scene:
    """A mesh in the object frame and a camera; cuboids are recognised, they render faster."""
    vertices = np.ascontiguousarray(mesh.vertices, np.float64)
    faces = np.ascontiguousarray(mesh.faces, np.int32)
    return Scene(vertices, faces, camera, find_cuboid(Mesh(vertices, faces)))


def widened(scene: Scene, margin_rc: tuple[int, int]) -> Scene:
    """The same scene on a map that has so many more cells (rows, columns) on every side."""
    camera = scene.camera
    rows, columns = margin_rc
    x, y = camera.principal_xy
    height, width = camera.map_hw
    map_hw = height + 2 * rows, width + 2 * columns
    return replace(scene, camera=MapCamera(camera.focal, (x + columns, y + rows), map_hw))


def look_at(centre: Tensor, theta: Tensor) -> Tensor:
    """object_from_cv_cam [..., 3, 3] of cameras that look at the origin, z up, turned by theta.

    centre [..., 3], theta [...]. theta > 0 turns the picture counter-clockwise (spec of
    PASCAL3D+). On the vertical axis the camera's right is +x.
    """
    distance = centre.norm(dim=-1, keepdim=True).clamp_min(TINY)
    level = centre[..., :2].norm(dim=-1, keepdim=True)
    forward = -centre / distance
    sideways = torch.stack([-centre[..., 1], centre[..., 0], torch.zeros_like(centre[..., 0])], -1)
    # made on the device: a copy would make the host wait
    along_x = torch.eye(1, 3, dtype=centre.dtype, device=centre.device)[0]
    right = torch.where(level > TINY, sideways / level.clamp_min(TINY), along_x)
    up = torch.linalg.cross(right, forward)
    cos = torch.cos(theta)[..., None]
    sin = torch.sin(theta)[..., None]
    return torch.stack([cos * right - sin * up, -sin * right - cos * up, forward], -1)


def principal_points(camera: MapCamera, centre: Tensor, principal_xy: Tensor | None) -> Tensor:
    """Principal points [B, 2] of B cameras at `centre` [B, 3]: the camera's own by default."""
    if principal_xy is None:
        return centre.new_tensor(camera.principal_xy).expand(len(centre), 2)
    return principal_xy.to(centre)


def principal_gradient(camera: MapCamera, rotation: Tensor, grad_rotation: Tensor) -> Tensor:
    """Gradient [B, 2] of the loss by the principal point in cells, from a renderer's gradients.

    No rendering is needed: a ray d = ((x - principal_x) / focal, .., 1) enters the score through
    the product R d alone, dO/dd = t R^T q. The third column of the rotation's gradient is the sum
    of t q, because d's third number is 1.
    """
    return -(rotation.mT @ grad_rotation[..., 2:])[..., :2, 0] / camera.focal


# ---- what it is compared with ----


@dataclass(frozen=True)
class Target:
    """What a pose is compared with.

    scores [B, P, V]: similarity of each pixel with each vertex. clutter [B, P]: with the clutter,
    None to ignore it. features [B, P, C] and bank [V, C] take the place of scores for the paper's
    own route, which renders features.
    """

    scores: Tensor | None
    clutter: Tensor | None
    features: Tensor | None = None
    bank: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features if self.scores is None else self.scores)


def score_target(features: Tensor, bank: Tensor, clutter: Tensor | None) -> Target:
    """Score volume and clutter map of images.

    features [B, C, H, W], bank [V, C], clutter [C] or None. Raises ValueError where their shapes do
    not fit together.
    """
    pixels_first, clutter_map = pixel_features(features, bank, clutter)
    return Target(pixels_first @ bank.T, clutter_map)


def pixel_features(
    features: Tensor, bank: Tensor, clutter: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Features [B, P, C] and clutter map [B, P] or None, of the arguments of `score_target`.

    Raises ValueError where their shapes do not fit together.
    """
    if features.dim() != 4 or bank.dim() != 2 or features.shape[1] != bank.shape[1]:
        raise ValueError(
            "features must be [B, C, H, W] and bank [V, C] with the same C, found "
            f"{tuple(features.shape)} and {tuple(bank.shape)}"
        )
    if clutter is not None and clutter.shape != bank.shape[1:]:
        raise ValueError(
            f"clutter must be [{bank.shape[1]}] as the bank's features, "
            f"found {tuple(clutter.shape)}"
        )
    pixels_first = features.flatten(2).transpose(1, 2)
    clutter_map = None if clutter is None else pixels_first @ clutter
    return pixels_first, clutter_map


def bytes_per_image(scene: Scene, channels: int) -> int:
    """Memory that a target needs for one image of `channels` features, in bytes."""
    return 4 * scene.camera.pixels * (len(scene.vertices) + 2 * channels + 1)


def images_that_fit(scene: Scene, channels: int, budget_bytes: int) -> int:
    """How many images' score volumes fit into a memory budget, at least one."""
    return max(1, budget_bytes // bytes_per_image(scene, channels))


@dataclass(frozen=True)
class PictureTable:
    """N pictures of a mesh.

    corners [Q, N, 3]: vertices that pixels see. bary [Q, N, 3]: their weights, 0 off the mesh.
    map_hw: size of the images' map. margin_rc: cells by which the pictures reach beyond it on every
    side, so that Q = (H + 2 margin) (W + 2 margin).
    """

    corners: Tensor
    bary: Tensor
    map_hw: tuple[int, int]
    margin_rc: tuple[int, int] = (0, 0)

    def first_cell_rc(self, shift_rc: tuple[int, int]) -> tuple[int, int]:
        """The pictures' cell below the map's first, when they are moved down and right so far."""
        return self.margin_rc[0] - shift_rc[0], self.margin_rc[1] - shift_rc[1]

    @property
    def width(self) -> int:
        """Columns of a picture."""
        return self.map_hw[1] + 2 * self.margin_rc[1]


# ---- what kernels take: arrays for numba, tensors on the device for PyTorch and Triton ----
# Compiled kernels stay on disk and do not notice when fields of the same type change places here:
# whoever does that also touches kernels_numba.py.


class MeshArrays(NamedTuple):
    """A mesh: vertices [V, 3] and faces [F, 3] int32.

    Of a cuboid also its corners low, high [3] and the vertices along each axis, samples [3].
    """

    vertices: Array
    faces: Array
    low: NDArray
    high: NDArray
    samples: NDArray
    is_cuboid: bool


class MapScores(NamedTuple):
    """scores [B, P, V] and clutter [B, P] in float32, of maps `width` cells wide.

    The clutter is not read unless it is used.
    """

    scores: Array
    clutter: Array
    use_clutter: bool
    width: int


class TableArrays(NamedTuple):
    """A `PictureTable` over which a map is laid with its first cell on the pictures' (row, col)."""

    corners: NDArray[np.int32]
    bary: NDArray[np.float32]
    width: int
    row: int
    col: int


class Views(NamedTuple):
    """Cameras of B images.

    centre [B, 3]; rotation [B, 3, 3]: object_from_cv_cam; principal_xy [B, 2] in cells.
    """

    centre: Array
    rotation: Array
    principal_xy: Array


class Gradients(NamedTuple):
    """loss [B] of B views and its derivatives by their centre [B, 3] and rotation [B, 3, 3]."""

    loss: Array
    grad_centre: Array
    grad_rotation: Array


class Candidates(NamedTuple):
    """K candidate poses of each of B images on their way, changed in place by `advance`.

    poses [B, K, 6]: camera centre, theta, principal point in cells. first, second [B, K, 6]: Adam's
    moments. loss [B, K]: last evaluated. best_loss [B, K] and best_poses [B, K, 6]: of all
    iterates. average [B, K, 6]: of all iterates, where `StepRules.averaging`. since_best [B, K]:
    evaluations since the best. evaluations [B, K]: in the last stage. All float64, the last two
    int64.
    """

    poses: Array
    first: Array
    second: Array
    loss: Array
    best_loss: Array
    best_poses: Array
    average: Array
    since_best: Array
    evaluations: Array


class StepRules(NamedTuple):
    """How the optimiser steps, the same in all stages.

    beta1, beta2: Adam's. local_scale: 0 for steps in (centre, theta), else steps are (sideways, up,
    theta, log distance) in the camera's frame, and those in log distance are multiplied by it.
    principal_scale: cells per unit step of the principal point, 0 to leave it where it is.
    averaging: share of the newest iterate in the average, 0 for none. patience: a candidate whose
    since_best reaches it takes no more steps.
    """

    beta1: float
    beta2: float
    local_scale: float
    principal_scale: float
    averaging: float
    patience: int


class Stage(NamedTuple):
    """Steps that are taken in one go.

    rates [steps]: learning rate of each. done: steps taken before. finish: evaluate the average,
    too, and leave it in the poses, or the last iterate where nothing is averaged.
    """

    rates: NDArray[np.float64]
    done: int
    finish: bool

    @property
    def rows(self) -> int:
        """Evaluations at most, and rows of a path."""
        return len(self.rates) + self.finish


# ---- who renders ----


class Renderer(Protocol):
    """One way to compare a mesh with feature maps. All give the same numbers to rounding.

    name: as in RENDERER. device: on which it takes features, poses and targets.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def target(self, features: Tensor, bank: Tensor, clutter: Tensor | None) -> Target:
        """What poses are compared with.

        features [B, C, H, W], bank [V, C], clutter [C] or None to ignore it.
        """
        ...

    def compare(
        self,
        scene: Scene,
        target: Target,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> Gradients:
        """Loss [B] of one pose per image and its gradients by centre [B, 3] and rotation [B, 3, 3].

        centre [B, 3]: camera centre in the object frame. rotation [B, 3, 3]: object_from_cv_cam.
        principal_xy [B, 2]: in cells, in place of the camera's; `principal_gradient` has its
        gradient. Results are detached and have the dtype and device of `centre`.
        """
        ...

    def table(
        self,
        scene: Scene,
        centre: Tensor,
        rotation: Tensor,
        margin_rc: tuple[int, int] = (0, 0),
    ) -> PictureTable:
        """Render N poses into a table to compare any number of images with.

        centre [N, 3], rotation [N, 3, 3]. margin_rc: how far, in cells, the pictures can be moved
        over the map.
        """
        ...

    def compare_table(
        self, table: PictureTable, target: Target, shift_rc: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Loss [B, N] of every picture of a table for every image.

        shift_rc: cells by which the pictures are moved down and right over the map, at most the
        table's margin: what a camera sees whose principal point is moved.
        """
        ...

    def advance(
        self,
        scene: Scene,
        target: Target,
        candidates: Candidates,
        rules: StepRules,
        stage: Stage,
        trace: bool = False,
    ) -> Tensor:
        """Take a stage's steps with every candidate, in place.

        Returns the path [B, K, stage.rows, 7] of every pose [6] and its loss; [B, K, 0, 7] if not
        traced.
        """
        ...
