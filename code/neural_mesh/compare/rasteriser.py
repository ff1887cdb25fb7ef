"""Rasterises poses of a mesh on the CPU: the face that each pixel sees, and tables of pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.compare import kernels_numba
from neural_mesh.compare.scene import PictureTable, Scene, Views, widened


def run_kernel(kernel: Callable, *arguments: object) -> None:
    """Call a parallel CPU kernel on at most as many threads as PyTorch uses.

    When numba's OpenMP layer starts, it sets the number of threads of the whole process regardless
    of OMP_NUM_THREADS; this function restores PyTorch's number.
    """
    threads = torch.get_num_threads()
    kernels_numba.launch(kernel, threads, *arguments)
    torch.set_num_threads(threads)


def rasterise_poses(
    scene: Scene, centre: NDArray, rotation: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Rasterise N poses: centre [N, 3], rotation [N, 3, 3] object_from_cv_cam.

    Returns the face [N, H, W] (-1 off the mesh), depth [N, H, W] (infinite off it) and barycentric
    coordinates [N, H, W, 3] that pixels see.
    """
    principal_xy = np.tile(np.array(scene.camera.principal_xy, np.float64), (len(centre), 1))
    views = Views(
        np.ascontiguousarray(centre, np.float64),
        np.ascontiguousarray(rotation, np.float64),
        principal_xy,
    )
    fragments = kernels_numba.empty_fragments((len(centre), *scene.camera.map_hw))
    run_kernel(
        kernels_numba.rasterise_views,
        scene.vertices,
        scene.faces,
        float(scene.camera.focal),
        views,
        fragments,
    )
    return fragments.face, fragments.z, fragments.bary


def rasterised_table(
    scene: Scene, centre: Tensor, rotation: Tensor, margin_rc: tuple[int, int], dtype: torch.dtype
) -> PictureTable:
    """`Renderer.table` on the CPU; it is put on the poses' device. dtype: that of its corners."""
    widened_scene = widened(scene, margin_rc)
    face, _, bary = rasterise_poses(widened_scene, centre.cpu().numpy(), rotation.cpu().numpy())
    # The pixels come first, then the poses.
    seen = np.where(face[..., None] >= 0, scene.faces[face], 0)
    corners = torch.as_tensor(seen).flatten(1, 2).transpose(0, 1).contiguous()
    weights = torch.as_tensor(bary).flatten(1, 2).transpose(0, 1).contiguous()
    return PictureTable(
        corners.to(centre.device, dtype),
        weights.to(centre.device, torch.float32),
        scene.camera.map_hw,
        margin_rc,
    )
