"""Render-and-compare: how well a neural mesh in a given pose explains a feature map, and which way to move it.

The neural mesh is never rendered. Interpolating vertex features and multiplying them with the image's features are both
linear and commute, so each pixel's score is the interpolation of three numbers of a score volume S = features x vertex
features that is computed once per image. Loss and gradient are the reference's to rounding:

    O(p) = sum_k b_k(p) S[p, v_k(p)], 0 off the mesh        loss = 1 - mean_p relu(O(p) - B(p))

with v_k(p), b_k(p) the corners and barycentric coordinates of the triangle that pixel p sees, and B the clutter score.

Frames. `world` is the object frame (CAD axes, z up, front towards -y). `cam` is x right, y down, z forward: a proper
rotation of the world, so that nothing is mirrored and the diagonals of a cuboid's cells stay where they are. `rotation`
is world_from_cam [3, 3], its columns are the camera's axes. Positions on the map are (x right, y down) in cells of the
feature map, cell (row, col) is sampled at its centre (col + 0.5, row + 0.5).

Visibility is hard: one face per pixel, no culling, perspective-correct; gradients flow through the barycentric
coordinates only. Every renderer leaves out a triangle that has a corner less than `NEAR` in front of the camera.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.compare import kernels_numba
from neural_mesh.compare.kernels_numba import NEAR, TINY
from neural_mesh.geometry.cameras import MapCamera
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh

RENDERERS = ("torch", "numba", "triton", "pytorch3d", "pytorch3d-features")
CPU_PAIRS, GPU_PAIRS = (
    10_000,
    4_000_000,
)  # pixel-face pairs the specification tests at a time: cache, memory
CPU_LOOKUPS, GPU_LOOKUPS = (
    1 << 20,
    1 << 28,
)  # scores of a table of pictures looked up at a time: cache, 1 GiB


@dataclass(frozen=True, eq=False)
class Scene:
    """What is rendered: vertices [V, 3] float64, faces [F, 3] int32, the camera, and the grid if it is a cuboid."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    camera: MapCamera
    cuboid: CuboidGrid | None


def make_scene(mesh: Mesh, camera: MapCamera) -> Scene:
    """A mesh in the object frame and a camera, recognising cuboids, which have a faster renderer."""
    vertices = np.ascontiguousarray(mesh.vertices, np.float64)
    faces = np.ascontiguousarray(mesh.faces, np.int32)
    return Scene(vertices, faces, camera, find_cuboid(Mesh(vertices, faces)))


def find_cuboid(mesh: Mesh) -> CuboidGrid | None:
    """The grid that `meshes.cuboid_mesh` makes this mesh from, to 1e-6 of its size; None for any other mesh."""
    if len(mesh.vertices) < 24 or len(mesh.faces) < 12:
        return None
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    tolerance = 1e-6 * float((high - low).max())
    ticks = [np.unique(np.round((mesh.vertices[:, a] - low[a]) / tolerance / 4)) for a in range(3)]
    samples = tuple(len(t) for t in ticks)
    a, b, c = samples
    if min(samples) < 2 or 2 * (a * b + b * c + c * a) != len(mesh.vertices):
        return None
    grid = CuboidGrid(low, high, samples)
    ideal = cuboid_mesh(grid)
    same = (
        np.array_equal(ideal.faces, mesh.faces)
        and np.abs(ideal.vertices - mesh.vertices).max() <= tolerance
    )
    return grid if same else None


def look_at(centre: Tensor, theta: Tensor) -> Tensor:
    """world_from_cam [..., 3, 3] of cameras at `centre` [..., 3] that look at the origin, z up, turned by theta [...].

    theta > 0 turns the picture counter-clockwise (spec of PASCAL3D+). On the vertical axis the camera's right is +x.
    """
    distance = centre.norm(dim=-1, keepdim=True).clamp_min(TINY)
    level = centre[..., :2].norm(dim=-1, keepdim=True)
    forward = -centre / distance
    sideways = torch.stack([-centre[..., 1], centre[..., 0], torch.zeros_like(centre[..., 0])], -1)
    along_x = torch.eye(1, 3, dtype=centre.dtype, device=centre.device)[
        0
    ]  # made there: a copy would make the host wait
    right = torch.where(level > TINY, sideways / level.clamp_min(TINY), along_x)
    up = torch.linalg.cross(right, forward)
    cos, sin = torch.cos(theta)[..., None], torch.sin(theta)[..., None]
    return torch.stack([cos * right - sin * up, -sin * right - cos * up, forward], -1)


@dataclass(frozen=True)
class Target:
    """What a pose is compared with.

    scores [B, P, V]: similarity of each pixel with each vertex. clutter [B, P]: with the clutter, None to ignore it.
    features [B, P, C] and bank [V, C] take the place of scores for the paper's own route, which renders features.
    """

    scores: Tensor | None
    clutter: Tensor | None
    features: Tensor | None = None
    bank: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features if self.scores is None else self.scores)


def make_target(
    features: Tensor, bank: Tensor, clutter: Tensor | None, renderer: str = "numba"
) -> Target:
    """Score volume and clutter map of feature maps [B, C, H, W], vertex features [V, C], clutter [C] or None."""
    if features.dim() != 4 or bank.dim() != 2 or features.shape[1] != bank.shape[1]:
        raise ValueError(
            f"features must be [B, C, H, W] and bank [V, C] with the same C, found {tuple(features.shape)} and "
            f"{tuple(bank.shape)}"
        )
    if clutter is not None and clutter.shape != bank.shape[1:]:
        raise ValueError(
            f"clutter must be [{bank.shape[1]}] as the bank's features, found {tuple(clutter.shape)}"
        )
    pixels_first = features.flatten(2).transpose(1, 2)
    clutter_map = None if clutter is None else pixels_first @ clutter
    if renderer == "pytorch3d-features":
        return Target(None, clutter_map, pixels_first, bank)
    return Target(pixels_first @ bank.T, clutter_map)


def bytes_per_image(scene: Scene, channels: int) -> int:
    """Memory that `make_target` needs for one image of `channels` features, in bytes."""
    return 4 * scene.camera.pixels * (len(scene.vertices) + 2 * channels + 1)


def images_that_fit(scene: Scene, channels: int, budget_bytes: int) -> int:
    """How many images' score volumes fit into a memory budget, at least one."""
    return max(1, budget_bytes // bytes_per_image(scene, channels))


def has_triton(device: torch.device) -> bool:
    """Whether Triton is installed and a device is a GPU, or its interpreter is asked for."""
    on_gpu = device.type == "cuda" or bool(os.environ.get("TRITON_INTERPRET"))
    return on_gpu and importlib.util.find_spec("triton") is not None


def check_renderer(name: str, device: torch.device) -> None:
    """ValueError for a renderer that does not exist or cannot run on a device."""
    if name not in RENDERERS:
        raise ValueError(f"RENDERER must be one of auto, {', '.join(RENDERERS)}, found {name!r}")
    if name == "triton" and not has_triton(device):
        raise ValueError(
            f"RENDERER=triton needs a CUDA device and the triton package, found {device}; RENDERER=auto picks what works"
        )
    if name.startswith("pytorch3d") and importlib.util.find_spec("pytorch3d") is None:
        raise ValueError(
            f"RENDERER={name} needs PyTorch3D, which is not installed: get it with `conda install -c conda-forge "
            "pytorch3d` or by https://github.com/facebookresearch/pytorch3d/blob/main/INSTALL.md; RENDERER=auto works "
            "without it and gives the same numbers"
        )


def compare(
    scene: Scene,
    target: Target,
    centre: Tensor,
    rotation: Tensor,
    renderer: str,
    principal_xy: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B] of one pose per image and its gradients with respect to centre [B, 3] and rotation [B, 3, 3].

    centre [B, 3]: camera centre in the object frame. rotation [B, 3, 3]: world_from_cam. principal_xy [B, 2]: in cells,
    in place of the camera's; `principal_gradient` has its gradient. renderer: one of `RENDERERS`. Results have the dtype
    and device of `centre`.
    """
    if renderer == "numba":
        return _compare_numba(scene, target, centre, rotation, principal_xy)
    if renderer == "triton":
        return _compare_triton(scene, target, centre, rotation, principal_xy)
    with torch.enable_grad():
        centre, rotation = centre.detach().requires_grad_(), rotation.detach().requires_grad_()
        principal_xy = principals(scene.camera, centre, principal_xy).detach().requires_grad_()
        loss = differentiable_loss(scene, target, centre, rotation, renderer, principal_xy)
        if not loss.requires_grad:
            return loss, torch.zeros_like(centre), torch.zeros_like(rotation)
        grad_centre, grad_rotation, grad_principal = torch.autograd.grad(
            loss.sum(), (centre, rotation, principal_xy)
        )
    if renderer.startswith("pytorch3d"):
        grad_rotation = _gradient_through_rays(
            scene.camera, rotation, grad_rotation, grad_principal
        )
    return loss.detach(), grad_centre, grad_rotation


def principal_gradient(camera: MapCamera, rotation: Tensor, grad_rotation: Tensor) -> Tensor:
    """Gradient [B, 2] of the loss by the principal point in cells, from what `compare` returns; no rendering needed.

    A ray d = ((x - principal_x) / focal, .., 1) enters the score through R d alone, dO/dd = t R^T q. The third column of
    the rotation's gradient is the sum of t q, because d's third number is 1.
    """
    return -(rotation.mT @ grad_rotation[..., 2:])[..., :2, 0] / camera.focal


def _gradient_through_rays(
    camera: MapCamera, rotation: Tensor, grad_rotation: Tensor, grad_principal: Tensor
) -> Tensor:
    """A gradient by the rotation [B, 3, 3] that moves vertices -> one that turns rays, which `principal_gradient` reads.

    The two differ in parts that no rotation has. Kept are the derivatives by turning about each axis (the antisymmetric
    part, in the camera frame) and the third column that belongs to grad_principal [B, 2]; the rest is free.
    """
    in_cam = rotation.mT @ grad_rotation
    turning = in_cam - in_cam.mT
    rays = torch.zeros_like(turning)
    rays[:, 0, 1], rays[:, 1, 0] = turning[:, 0, 1] / 2, -turning[:, 0, 1] / 2
    rays[:, :2, 2] = -camera.focal * grad_principal
    rays[:, 2, :2] = rays[:, :2, 2] - turning[:, :2, 2]
    return (rotation @ rays).detach()


def principals(camera: MapCamera, centre: Tensor, principal_xy: Tensor | None) -> Tensor:
    """Principal points [B, 2] of B cameras at `centre` [B, 3]: the camera's own where no others are given."""
    if principal_xy is None:
        return centre.new_tensor(camera.principal_xy).expand(len(centre), 2)
    return principal_xy.to(centre)


# ---- the specification ----


def differentiable_loss(
    scene: Scene,
    target: Target,
    centre: Tensor,
    rotation: Tensor,
    renderer: str,
    principal_xy: Tensor | None = None,
) -> Tensor:
    """Loss [B] as plain PyTorch operations, differentiable in centre [B, 3], rotation [B, 3, 3], principal_xy [B, 2]."""
    visible = visible_pytorch3d if renderer.startswith("pytorch3d") else visible_torch
    corners, bary = visible(scene, centre, rotation, principal_xy)
    return loss_of_scores(object_scores(target, corners, bary), target.clutter)


def loss_of_scores(scores: Tensor, clutter: Tensor | None) -> Tensor:
    """1 - mean relu(O - B) over pixels [..., P], or 1 - mean O without clutter (paper, and its turn_off_clutter)."""
    return 1 - (scores if clutter is None else torch.relu(scores - clutter)).mean(-1)


def object_scores(target: Target, corners: Tensor, bary: Tensor) -> Tensor:
    """Object scores O [B, P] from the corners [B, P, 3] that pixels see and their weights [B, P, 3]."""
    if target.scores is not None:
        return (target.scores.gather(2, corners) * bary).sum(-1)
    rendered = (target.bank[corners] * bary[..., None]).sum(
        2
    )  # [B, P, C], what the reference optimises through
    return (rendered * target.features).sum(-1)


def visible_torch(
    scene: Scene, centre: Tensor, rotation: Tensor, principal_xy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Vertices [B, P, 3] and barycentric coordinates [B, P, 3] that pixels see; coordinates are 0 off the mesh."""
    faces = torch.as_tensor(scene.faces, dtype=torch.int64, device=centre.device)
    positions = torch.as_tensor(scene.vertices, dtype=centre.dtype, device=centre.device)[
        faces
    ]  # [F, 3, 3]
    corners, barys = [], []
    for c, r, principal in zip(centre, rotation, principals(scene.camera, centre, principal_xy)):
        rays = cam_rays(scene.camera, principal)
        with torch.no_grad():
            face, _ = nearest_faces(positions - c, rays @ r.T, r[:, 2])
        hit = (face >= 0)[:, None]
        weights = (edge_normals(positions[face] - c) * (rays @ r.T)[:, None]).sum(-1)
        total = torch.where(hit, weights.sum(-1, keepdim=True), 1)
        corners.append(torch.where(hit, faces[face], 0))
        barys.append(torch.where(hit, weights / total, 0))
    return torch.stack(corners), torch.stack(barys)


def cam_rays(camera: MapCamera, principal_xy: Tensor | None = None) -> Tensor:
    """Directions [P, 3] of the pixels in the camera frame, with depth component 1, float64 or as principal_xy [2]."""
    principal_xy = (
        torch.tensor(camera.principal_xy, dtype=torch.float64)
        if principal_xy is None
        else principal_xy
    )
    rows, cols = torch.meshgrid(
        *(torch.arange(n).to(principal_xy) + 0.5 for n in camera.map_hw), indexing="ij"
    )
    x, y = (cols - principal_xy[0]) / camera.focal, (rows - principal_xy[1]) / camera.focal
    return torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)


def edge_normals(relative: Tensor) -> Tensor:
    """Normals [..., 3, 3] of the planes through the camera and the side opposite to each corner.

    relative [..., 3 corners, 3] is measured from the camera. A ray's products with the three, divided by their sum, are
    the barycentric coordinates of the point it meets, perspective included; it passes through if no two signs differ.
    """
    return torch.linalg.cross(relative.roll(-1, -2), relative.roll(-2, -2))


def nearest_faces(relative: Tensor, rays: Tensor, forward: Tensor) -> tuple[Tensor, Tensor]:
    """Face [P] (-1: none) and depth [P] (inf: none) that each ray [P, 3] meets first.

    relative [F, 3, 3]: corners relative to the camera. forward [3]: viewing direction.
    """
    in_front = (relative @ forward >= NEAR).all(-1)
    normals = edge_normals(relative)
    volume = (relative * normals).sum(-1)[:, 0]
    faces, depths = [], []
    pairs = GPU_PAIRS if rays.is_cuda else CPU_PAIRS
    for chunk in rays.split(max(1, pairs // len(relative))):
        weights = torch.einsum("fki,pi->kpf", normals, chunk)
        total = weights.sum(0)
        inside = ((weights.amin(0) >= 0) | (weights.amax(0) <= 0)) & (total != 0) & in_front
        depth, face = torch.where(inside, volume / total, math.inf).min(-1)
        faces.append(torch.where(depth < math.inf, face, -1))
        depths.append(depth)
    return torch.cat(faces), torch.cat(depths)


# ---- PyTorch3D, the paper's renderer ----


def visible_pytorch3d(
    scene: Scene, centre: Tensor, rotation: Tensor, principal_xy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `visible_torch`, by PyTorch3D's rasteriser (0.7, what `MeshRasterizer` calls), in float32.

    It takes vertices in its normalised coordinates: x left, y up, the shorter side of the picture from -1 to 1, and the
    depth as z. A face that our near rule leaves out is made degenerate, which its rasteriser skips.
    """
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    height, width = scene.camera.map_hw
    vertices = torch.as_tensor(scene.vertices, dtype=centre.dtype, device=centre.device)
    faces = torch.as_tensor(scene.faces, dtype=torch.int64, device=centre.device)
    cam = (vertices - centre[:, None]) @ rotation  # [B, V, 3], x right, y down, z forward
    depth = cam[..., 2:]
    offset = principals(scene.camera, centre, principal_xy) - cam.new_tensor(
        [width / 2, height / 2]
    )
    xy = -(scene.camera.focal * cam[..., :2] / depth.clamp_min(NEAR) + offset[:, None]) / (
        min(height, width) / 2
    )
    in_front = (depth[..., 0] >= NEAR)[:, faces].all(-1, keepdim=True)  # [B, F, 1]
    drawn = torch.where(in_front, faces, 0)
    meshes = Meshes(verts=torch.cat([xy, depth], -1).float(), faces=drawn)
    face, _, bary, _ = rasterize_meshes(
        meshes,
        image_size=(height, width),
        blur_radius=0.0,
        faces_per_pixel=1,
        bin_size=0,
        perspective_correct=True,
    )
    face, bary = face.flatten(1), bary.flatten(1, 3).to(centre)
    hit = (face >= 0)[..., None]
    return torch.where(hit, faces[face.clamp_min(0) % len(faces)], 0), torch.where(hit, bary, 0)


# ---- the CPU kernel ----


def numba_shape(scene: Scene) -> tuple:
    """The mesh as the kernels take it: vertices, faces, low, high, samples, whether it is a cuboid."""
    grid = scene.cuboid or CuboidGrid(np.zeros(3), np.zeros(3), (0, 0, 0))
    low, high = (np.ascontiguousarray(x, np.float64) for x in (grid.low, grid.high))
    return scene.vertices, scene.faces, low, high, np.array(grid.samples), scene.cuboid is not None


def numba_target(target: Target) -> tuple[NDArray, NDArray, bool]:
    """scores [B, P, V] and clutter [B, P] in float32, and whether there is a clutter."""
    scores = np.ascontiguousarray(target.scores.detach().cpu().numpy(), np.float32)
    if target.clutter is None:
        return scores, np.zeros(scores.shape[:2], np.float32), False
    return scores, np.ascontiguousarray(target.clutter.detach().cpu().numpy(), np.float32), True


def run_kernel(kernel: Callable, *arguments: object) -> None:
    """Call a parallel CPU kernel on no more threads than PyTorch uses, and leave PyTorch's number as it was.

    numba's OpenMP layer sets the number of threads of the whole process when it starts, against OMP_NUM_THREADS.
    """
    threads = torch.get_num_threads()
    kernels_numba.launch(kernel, threads, *arguments)
    torch.set_num_threads(threads)


def _compare_numba(
    scene: Scene, target: Target, centre: Tensor, rotation: Tensor, principal_xy: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    scores, clutter, use_clutter = numba_target(target)
    poses = centre, rotation, principals(scene.camera, centre, principal_xy)
    centres, rotations, principal = (
        np.ascontiguousarray(x.detach().cpu().numpy(), np.float64) for x in poses
    )
    loss, grad_centre, grad_rotation = (
        np.empty(len(scores)),
        np.empty_like(centres),
        np.empty_like(rotations),
    )
    run_kernel(
        kernels_numba.compare,
        numba_shape(scene),
        centres,
        rotations,
        float(scene.camera.focal),
        principal,
        scene.camera.map_hw[1],
        scores,
        clutter,
        use_clutter,
        loss,
        grad_centre,
        grad_rotation,
    )
    return tuple(torch.as_tensor(x).to(centre) for x in (loss, grad_centre, grad_rotation))


# ---- the CUDA kernel ----


def triton_kernels() -> ModuleType:
    """`kernels_triton`, imported when it is first used: triton comes only with the CUDA builds of PyTorch."""
    from neural_mesh.compare import kernels_triton

    return kernels_triton


@lru_cache(maxsize=4)
def triton_shape(scene: Scene, device: torch.device) -> tuple:
    """As `numba_shape`, with vertices and faces on the device, where they stay: every call of a kernel reads them."""
    return (
        *triton_kernels().place_mesh(scene.vertices, scene.faces, device),
        *numba_shape(scene)[2:],
    )


def triton_target(target: Target) -> tuple[Tensor, Tensor | None]:
    """scores [B, P, V] and clutter [B, P] or None in float32, contiguous."""
    return (
        target.scores.float().contiguous(),
        None if target.clutter is None else target.clutter.float().contiguous(),
    )


def _compare_triton(
    scene: Scene, target: Target, centre: Tensor, rotation: Tensor, principal_xy: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    poses = centre, rotation, principals(scene.camera, centre, principal_xy)
    centres, rotations, principal = (x.detach().float().contiguous() for x in poses)
    result = triton_kernels().compare(
        triton_shape(scene, centres.device),
        centres,
        rotations,
        float(scene.camera.focal),
        principal,
        scene.camera.map_hw[1],
        *triton_target(target),
    )
    return tuple(x.to(centre) for x in result)


# ---- pictures rendered once and compared with many images ----


@dataclass(frozen=True)
class PictureTable:
    """N pictures of a mesh: corners [Q, N, 3] that pixels see and their weights [Q, N, 3], 0 off the mesh.

    map_hw: size of the images' map. margin_rc: cells by which the pictures reach beyond it on every side, so that
    Q = (H + 2 margin) (W + 2 margin).
    """

    corners: Tensor
    bary: Tensor
    map_hw: tuple[int, int]
    margin_rc: tuple[int, int] = (0, 0)


def render_table(
    scene: Scene,
    centre: Tensor,
    rotation: Tensor,
    renderer: str,
    margin_rc: tuple[int, int] = (0, 0),
) -> PictureTable:
    """Render N poses (centre [N, 3], rotation [N, 3, 3]) into a table that any number of images is compared with.

    margin_rc: how far, in cells, the pictures can be moved over the map.
    """
    map_hw = scene.camera.map_hw
    scene = replace(scene, camera=widened(scene.camera, margin_rc))
    if renderer in ("torch", "pytorch3d", "pytorch3d-features"):
        visible = visible_torch if renderer == "torch" else visible_pytorch3d
        with torch.no_grad():
            corners, bary = visible(scene, centre, rotation)
    else:
        face, _, bary = rasterise_poses(scene, centre.cpu().numpy(), rotation.cpu().numpy())
        corners = torch.as_tensor(np.where(face[..., None] >= 0, scene.faces[face], 0)).flatten(
            1, 2
        )
        bary = torch.as_tensor(bary).flatten(1, 2)
    corners, bary = corners.transpose(0, 1).contiguous(), bary.transpose(0, 1).contiguous()
    corners = corners.to(centre.device, torch.int32 if renderer == "numba" else torch.int64)
    return PictureTable(corners, bary.to(centre.device, torch.float32), map_hw, margin_rc)


def widened(camera: MapCamera, margin_rc: tuple[int, int]) -> MapCamera:
    """The same camera with a map that has so many more cells (rows, columns) on every side."""
    (rows, columns), (height, width), (x, y) = margin_rc, camera.map_hw, camera.principal_xy
    return MapCamera(
        camera.focal, (x + columns, y + rows), (height + 2 * rows, width + 2 * columns)
    )


def rasterise_poses(
    scene: Scene, centre: NDArray, rotation: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Face [N, H, W] (-1: none), depth [N, H, W] (inf: none) and barycentrics [N, H, W, 3] of N poses, on the CPU.

    centre [N, 3], rotation [N, 3, 3] world_from_cam.
    """
    height, width = scene.camera.map_hw
    shape = (len(centre), height, width)
    face, depth, bary = np.full(shape, -1, np.int32), np.full(shape, np.inf), np.zeros((*shape, 3))
    run_kernel(
        kernels_numba.fragments,
        scene.vertices,
        scene.faces,
        np.ascontiguousarray(centre, np.float64),
        np.ascontiguousarray(rotation, np.float64),
        float(scene.camera.focal),
        np.array(scene.camera.principal_xy, np.float64),
        face,
        depth,
        bary,
    )
    return face, depth, bary


def compare_table(
    table: PictureTable, target: Target, renderer: str, shift_rc: tuple[int, int] = (0, 0)
) -> Tensor:
    """Loss [B, N] of every picture of a table for every image.

    shift_rc: cells by which the pictures are moved down and right over the map, at most the table's margin: what a
    camera sees whose principal point is moved.
    """
    (height, width), columns = table.map_hw, table.map_hw[1] + 2 * table.margin_rc[1]
    row, col = (margin - shift for margin, shift in zip(table.margin_rc, shift_rc, strict=True))
    if renderer == "numba":
        scores, clutter, use_clutter = numba_target(target)
        loss = np.empty((len(scores), table.corners.shape[1]))
        corners, bary = table.corners.numpy(), table.bary.numpy()
        run_kernel(
            kernels_numba.score_table,
            corners,
            bary,
            columns,
            row,
            col,
            width,
            scores,
            clutter,
            use_clutter,
            loss,
        )
        return torch.as_tensor(loss)
    window = (slice(row, row + height), slice(col, col + width))
    corners, bary = (
        x.unflatten(0, (-1, columns))[window].flatten(0, 1) for x in (table.corners, table.bary)
    )
    each = 3 if target.features is None else target.features.shape[2]
    together = (GPU_LOOKUPS if corners.is_cuda else CPU_LOOKUPS) // (
        len(target) * len(corners) * each
    )
    parts = zip(*(x.split(max(1, together), 1) for x in (corners, bary)))
    clutter = None if target.clutter is None else target.clutter[:, None]
    return torch.cat([loss_of_scores(_table_scores(target, *part), clutter) for part in parts], 1)


def _table_scores(target: Target, corners: Tensor, bary: Tensor) -> Tensor:
    """Object scores [B, N, P] of N pictures for every image: corners [P, N, 3], bary [P, N, 3]."""
    if target.scores is None:
        rendered = (target.bank[corners] * bary[..., None]).sum(2)  # [P, N, C]
        return torch.einsum("pnc,bpc->bnp", rendered, target.features)
    seen = target.scores.gather(2, corners.flatten(1).expand(len(target), -1, -1))
    return (seen.unflatten(2, bary.shape[1:]) * bary).sum(-1).mT
