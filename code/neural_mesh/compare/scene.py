"""Scenes and targets of render-and-compare, the interface of renderers, the arguments of kernels.

The neural mesh is never rendered. Interpolating vertex features and multiplying them with the
image's features are both linear and commute. So each pixel's score is interpolated between three
numbers of a score volume S = features x vertex features, which is computed once per image. Up to
rounding, loss and gradient are the reference's:

    O(p) = sum_k b_k(p) S[p, v_k(p)], 0 off the mesh        loss = 1 - mean_p relu(O(p) - B(p))

where v_k(p) and b_k(p) are the corners and barycentric coordinates of the triangle that pixel p
sees, and B is the clutter score.

Frames. `object` has CAD axes, z up, front towards -y. `cv_cam` is x right, y down, z forward. It is
a proper rotation of the object frame, so nothing is mirrored and the diagonals of a cuboid's cells
stay where they are. `rotation` in this package is object_from_cv_cam [3, 3]; its columns are the
camera's axes. Positions on the map are (x right, y down) in cells of the feature map, and cell
(row, col) is sampled at its centre (col + 0.5, row + 0.5).

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

# An array of NumPy for numba's kernels, a tensor of PyTorch for the other renderers.
Array: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Scene:
    """What is rendered: a mesh and the camera that sees it.

    vertices [V, 3]: in the object frame. faces [F, 3]: vertex indices. cuboid: the grid of a mesh
    that is a cuboid, None for other meshes.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    camera: MapCamera
    cuboid: CuboidGrid | None


def make_scene(mesh: Mesh, camera: MapCamera) -> Scene:
    """Make a scene of a mesh in the object frame; cuboids, which render faster, are recognised."""
    vertices = np.ascontiguousarray(mesh.vertices, np.float64)
    faces = np.ascontiguousarray(mesh.faces, np.int32)
    return Scene(vertices, faces, camera, find_cuboid(Mesh(vertices, faces)))


def widened(scene: Scene, margin_rc: tuple[int, int]) -> Scene:
    """The same scene on a map that has margin_rc (rows, columns) more cells on every side."""
    camera = scene.camera
    rows, columns = margin_rc
    x, y = camera.principal_xy
    height, width = camera.map_hw
    map_hw = height + 2 * rows, width + 2 * columns
    return replace(scene, camera=MapCamera(camera.focal, (x + columns, y + rows), map_hw))


def look_at(centre: Tensor, theta: Tensor) -> Tensor:
    """object_from_cv_cam [..., 3, 3] of cameras that look at the origin, z up, turned by theta.

    centre [..., 3]: in the object frame. theta [...]: radians; a positive one turns the picture
    counter-clockwise (PASCAL3D+). A camera on the vertical axis has its right side towards +x.
    """
    # The axes of an upright camera.
    distance = centre.norm(dim=-1, keepdim=True).clamp_min(TINY)
    level = centre[..., :2].norm(dim=-1, keepdim=True)
    forward = -centre / distance
    sideways = torch.stack([-centre[..., 1], centre[..., 0], torch.zeros_like(centre[..., 0])], -1)
    # The axis is made on the device, because a copy from the host would make it wait.
    along_x = torch.eye(1, 3, dtype=centre.dtype, device=centre.device)[0]
    right = torch.where(level > TINY, sideways / level.clamp_min(TINY), along_x)
    up = torch.linalg.cross(right, forward)
    # Turn right and up by theta about the viewing direction; the camera's y axis points down.
    cos = torch.cos(theta)[..., None]
    sin = torch.sin(theta)[..., None]
    return torch.stack([cos * right - sin * up, -sin * right - cos * up, forward], -1)


def principal_points(camera: MapCamera, centre: Tensor, principal_xy: Tensor | None) -> Tensor:
    """Principal points [B, 2] of B cameras at `centre` [B, 3]: the camera's own by default."""
    if principal_xy is None:
        return centre.new_tensor(camera.principal_xy).expand(len(centre), 2)
    return principal_xy.to(centre)


def principal_gradient(camera: MapCamera, rotation: Tensor, grad_rotation: Tensor) -> Tensor:
    """Gradient [B, 2] of the loss by the principal point in cells, from that of `Renderer.compare`.

    It needs no rendering. A ray d = ((x - principal_x) / focal, (y - principal_y) / focal, 1)
    enters the score only through the product R d, so dO/dd = t R^T q with depth t and dO/dcentre =
    q. The third column of grad_rotation is the sum of t q, because the third component of d is 1.
    """
    return -(rotation.mT @ grad_rotation[..., 2:])[..., :2, 0] / camera.focal


# ---- what a scene is compared with ----


@dataclass(frozen=True)
class Target:
    """What the poses of B images are compared with.

    scores [B, P, V]: similarity of each pixel with each vertex. clutter [B, P]: similarity of each
    pixel with the clutter; None to ignore it. features [B, P, C] and bank [V, C] take the place of
    scores for a renderer that renders features, as the paper's does.
    """

    scores: Tensor | None
    clutter: Tensor | None
    features: Tensor | None = None
    bank: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features if self.scores is None else self.scores)


def score_target(features: Tensor, bank: Tensor, clutter: Tensor | None) -> Target:
    """Compute the score volume and clutter map of images.

    features [B, C, H, W]: of the images. bank [V, C]: of the vertices. clutter [C]: None to ignore
    it. Raises ValueError where shapes do not fit together.
    """
    pixels_first, clutter_map = pixel_features(features, bank, clutter)
    return Target(pixels_first @ bank.T, clutter_map)


def pixel_features(
    features: Tensor, bank: Tensor, clutter: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Features [B, P, C] and clutter map [B, P] or None. Takes and raises as `score_target`."""
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
    """Bytes of memory that the target of one image with `channels` channels needs."""
    # In float32: scores, the features in two layouts, and the clutter map.
    return 4 * scene.camera.pixels * (len(scene.vertices) + 2 * channels + 1)


def images_that_fit(scene: Scene, channels: int, budget_bytes: int) -> int:
    """Number of images whose score volumes fit into a memory budget, at least one."""
    return max(1, budget_bytes // bytes_per_image(scene, channels))


@dataclass(frozen=True)
class PictureTable:
    """N pictures of a mesh with Q pixels each.

    corners [Q, N, 3]: vertices that pixels see. bary [Q, N, 3]: their weights, 0 off the mesh.
    map_hw: size (H, W) of the images' map. margin_rc: cells by which the pictures reach beyond the
    map on every side, so that Q = (H + 2 margin_rc[0]) (W + 2 margin_rc[1]).
    """

    corners: Tensor
    bary: Tensor
    map_hw: tuple[int, int]
    margin_rc: tuple[int, int] = (0, 0)

    def first_cell_rc(self, shift_rc: tuple[int, int]) -> tuple[int, int]:
        """The pictures' cell under the map's first, when shift_rc moves them down and right."""
        return self.margin_rc[0] - shift_rc[0], self.margin_rc[1] - shift_rc[1]

    @property
    def width(self) -> int:
        """Number of columns of a picture."""
        return self.map_hw[1] + 2 * self.margin_rc[1]


# ---- arguments of kernels: arrays for numba, tensors on the device for PyTorch and Triton ----
# numba keeps compiled kernels on disk and does not notice when fields of the same type change
# places here. Whoever changes their order also has to change kernels_numba.py, if only by a space;
# and see the note in `kernels_numba._add_side`.


class MeshArrays(NamedTuple):
    """A mesh: vertices [V, 3] in the object frame, and faces [F, 3] int32.

    is_cuboid: whether its corners low, high [3] and its vertices per axis, samples [3], are read.
    """

    vertices: Array
    faces: Array
    low: NDArray
    high: NDArray
    samples: NDArray
    is_cuboid: bool


class MapScores(NamedTuple):
    """Scores [B, P, V] and clutter [B, P], float32, of maps `width` cells wide."""

    scores: Array
    clutter: Array
    use_clutter: bool
    width: int


class TableArrays(NamedTuple):
    """A `PictureTable` whose cell (row, col) lies under the first cell of the images' map."""

    corners: NDArray[np.int32]
    bary: NDArray[np.float32]
    width: int
    row: int
    col: int


class Views(NamedTuple):
    """Cameras of B images: centre [B, 3], rotation [B, 3, 3], principal_xy [B, 2] in cells."""

    centre: Array
    rotation: Array
    principal_xy: Array


class Gradients(NamedTuple):
    """Loss [B] of B views, and its gradients by their centre [B, 3] and rotation [B, 3, 3]."""

    loss: Array
    grad_centre: Array
    grad_rotation: Array


class CandidateStates(NamedTuple):
    """The optimiser's state for K candidate poses of each of B images; `advance` updates it.

    poses [B, K, 6]: camera centre, theta, principal point in cells. first, second [B, K, 6]: Adam's
    moments. loss [B, K]: the last evaluated loss. best_loss [B, K], best_poses [B, K, 6]: the best
    iterate. average [B, K, 6]: running average of the iterates, where `StepRules.averaging`.
    since_best [B, K]: evaluations since the best iterate. evaluations [B, K]: evaluations in the
    last stage. The last two are int64, all others float64.
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
    """How the optimiser steps, in the same way in all stages.

    beta1, beta2: Adam's. local_scale: 0 takes steps in (centre, theta); otherwise steps are
    (sideways, up, theta, log distance) in the camera's frame, and the log distance is multiplied by
    it. principal_scale: cells per unit step of the principal point; 0 keeps it fixed. averaging:
    share of the newest iterate in the average; 0 for no average. patience: a candidate whose
    since_best reaches it takes no more steps.
    """

    beta1: float
    beta2: float
    local_scale: float
    principal_scale: float
    averaging: float
    patience: int


class Stage(NamedTuple):
    """The steps of one call of `advance`.

    rates [steps]: learning rate of each step. done: number of steps taken before. finish: whether
    the average (without averaging, the last iterate) is evaluated at the end and left in the poses.
    """

    rates: NDArray[np.float64]
    done: int
    finish: bool

    @property
    def rows(self) -> int:
        """Number of evaluations at most, and of rows of a path."""
        return len(self.rates) + self.finish


# ---- renderers ----


class Renderer(Protocol):
    """One way to compare a mesh with feature maps.

    Losses agree between renderers to the precision in which each of them computes: float64 (torch,
    numba) or float32 (the others). A pixel on the edge of a triangle may see its neighbour instead.

    name: value of RENDERER. device: where features, poses and targets are.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def target(self, features: Tensor, bank: Tensor, clutter: Tensor | None) -> Target:
        """Make the target that poses are compared with; arguments as of `score_target`."""
        ...

    def compare(
        self,
        scene: Scene,
        target: Target,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> Gradients:
        """Loss of one pose per image, and its gradients by the camera's centre and rotation.

        centre [B, 3]: camera centre in the object frame. rotation [B, 3, 3]: object_from_cv_cam.
        principal_xy [B, 2]: in cells; takes the place of the scene's principal point.

        grad_rotation is the derivative of the loss by the matrix R that turns rays, where a pixel's
        ray is R d with d = ((x - principal_x) / focal, (y - principal_y) / focal, 1). It is
        therefore the sum over pixels of g d^T, where g is the gradient by that pixel's ray, and its
        third column is the sum of g. `principal_gradient` relies on this column. A renderer that
        differentiates projected vertices gets another matrix, which agrees only for changes that
        keep R a rotation; `with_pytorch3d.gradient_through_rays` shows how to convert it.

        Results are detached and have the dtype and device of `centre`.
        """
        ...

    def table(
        self,
        scene: Scene,
        centre: Tensor,
        rotation: Tensor,
        margin_rc: tuple[int, int] = (0, 0),
    ) -> PictureTable:
        """Render N poses into a table that any number of images can be compared with.

        centre [N, 3], rotation [N, 3, 3]: of the cameras, as in `compare`. margin_rc: cells by
        which the pictures can be moved over the map.
        """
        ...

    def compare_table(
        self, table: PictureTable, target: Target, shift_rc: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Loss [B, N] of every picture of a table for every image.

        shift_rc: cells by which the pictures, and so their principal points, are moved down and
        right over the map; at most the table's margin.
        """
        ...

    def advance(
        self,
        scene: Scene,
        target: Target,
        candidates: CandidateStates,
        rules: StepRules,
        stage: Stage,
        trace: bool = False,
    ) -> Tensor:
        """Take a stage's steps with every candidate, in place.

        Returns the path [B, K, rows, 7] of every pose and its loss; [B, K, 0, 7] if not traced.
        """
        ...
