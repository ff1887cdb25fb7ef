"""The host's side of the CUDA kernels for render-and-compare: packs arguments, launches, unpacks.

The kernels do the same as those of `kernels_numba`. `triton_kernels` has the optimiser,
`triton_loss` the loss of an image, and `triton_rays` finds the triangle that a ray sees. With
TRITON_INTERPRET=1 in the environment everything runs on the CPU, slowly, which is how tests run it
without a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neural_mesh.compare.scene import (
    CandidateStates,
    Gradients,
    MapScores,
    MeshArrays,
    Stage,
    StepRules,
    Views,
)
from neural_mesh.compare.triton_kernels import advance_kernel, compare_kernel
from neural_mesh.compare.triton_numbers import (
    AVERAGE,
    CLUTTER,
    CUBOID,
    LOCAL,
    TRACE,
)
from neural_mesh.machine.devices import send

WARPS = 8  # per program


def place_mesh(mesh: MeshArrays, device: torch.device) -> MeshArrays:
    """The same mesh with its vertices (float32) and faces on the device, where they stay."""
    vertices = send(torch.as_tensor(mesh.vertices, dtype=torch.float32), device)
    faces = send(torch.as_tensor(mesh.faces, dtype=torch.int32), device)
    return mesh._replace(vertices=vertices, faces=faces)


def _scene_constants(mesh: MeshArrays, focal: float, scores: MapScores) -> list[float]:
    """The constants that all kernels share, in the order of `triton_numbers`."""
    box = [*mesh.low.tolist(), *mesh.high.tolist(), *mesh.samples.tolist()]
    _, pixels, vertex_count = scores.scores.shape
    return [*box, focal, scores.width, pixels, vertex_count, len(mesh.faces)]


def _flags(mesh: MeshArrays, scores: MapScores) -> int:
    """The bits of FLAGS that all kernels share."""
    clutter = CLUTTER.value if scores.use_clutter else 0
    cuboid = CUBOID.value if mesh.is_cuboid else 0
    return clutter | cuboid


def _send_numbers(values: list | np.ndarray, device: torch.device) -> Tensor:
    """Copy numbers to the device, in float64."""
    return send(torch.as_tensor(values, dtype=torch.float64), device)


def compare(mesh: MeshArrays, focal: float, scores: MapScores, views: Views) -> Gradients:
    """Loss and gradients of one pose per image in float32, as `kernels_numba.compare`.

    All tensors are contiguous and on the GPU: the mesh comes from `place_mesh`, and scores and
    views are float32.
    """
    parts = (views.centre, views.rotation.flatten(1), views.principal_xy)
    # A view is 14 numbers in a row; the kernel writes 13.
    packed = torch.cat(parts, 1)
    gradients = packed.new_empty(len(packed), 13)
    constants = _send_numbers(_scene_constants(mesh, focal, scores), packed.device)
    with torch.cuda.device_of(packed):
        compare_kernel[(len(packed),)](
            scores.scores,
            scores.clutter,
            mesh.vertices,
            mesh.faces,
            constants,
            packed,
            gradients,
            FLAGS=_flags(mesh, scores),
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    rotation = gradients[:, 4:].reshape(-1, 3, 3)
    return Gradients(gradients[:, 0], gradients[:, 1:4], rotation)


def _schedule(rules: StepRules, stage: Stage) -> np.ndarray:
    """Learning rates, bias corrections and averaging shares [steps, 3] for `advance_kernel`."""
    # Adam's bias corrections and the averaging share depend on the number of the step.
    count = stage.done + 1 + np.arange(len(stage.rates))
    shares = np.zeros(len(stage.rates))
    if rules.averaging:
        shares = rules.averaging / (1 - (1 - rules.averaging) ** count)
    rates = stage.rates / (1 - rules.beta1**count)
    return np.stack([rates, np.sqrt(1 - rules.beta2**count), shares], 1)


def _pack(candidates: CandidateStates) -> Tensor:
    """Pack candidates into the array [B, K, STATE] that `advance_kernel` takes."""
    poses = (
        candidates.poses,
        candidates.first,
        candidates.second,
        candidates.best_poses,
        candidates.average,
    )
    numbers = (
        candidates.loss,
        candidates.best_loss,
        candidates.since_best.double(),
        candidates.evaluations.double(),
    )
    return torch.cat([*poses, torch.stack(numbers, -1)], -1)


def _unpack(state: Tensor, candidates: CandidateStates) -> None:
    """Copy the state that the kernel has left back into the candidates."""
    poses, first, second, best_poses, average, numbers = state.split([6, 6, 6, 6, 6, 4], -1)
    loss, best_loss, since_best, evaluations = numbers.unbind(-1)
    changed = CandidateStates(
        poses, first, second, loss, best_loss, best_poses, average, since_best, evaluations
    )
    for old, new in zip(candidates, changed, strict=True):
        old.copy_(new)


def advance(
    mesh: MeshArrays,
    focal: float,
    scores: MapScores,
    candidates: CandidateStates,
    rules: StepRules,
    stage: Stage,
    path: Tensor,
) -> None:
    """Take a stage's steps as `kernels_numba.advance`, without waiting for the device.

    All tensors are contiguous and on the GPU. path [B, K, rows, 7], or [B, K, 0, 7] if not traced.
    """
    # Pack the constants in the order of `triton_numbers`.
    count = candidates.poses.shape[1]
    optimiser = [rules.beta1, rules.beta2, rules.local_scale, rules.principal_scale]
    loop = [rules.patience, len(stage.rates), stage.rows, count]
    constants = [*_scene_constants(mesh, focal, scores), *optimiser, *loop]
    # Choose the variant of the kernel.
    flags = _flags(mesh, scores)
    flags |= LOCAL.value if rules.local_scale > 0 else 0
    flags |= AVERAGE.value if rules.averaging > 0 else 0
    flags |= TRACE.value if path.shape[2] > 0 else 0
    state = _pack(candidates)
    with torch.cuda.device_of(state):
        advance_kernel[(len(scores.scores) * count,)](
            scores.scores,
            scores.clutter,
            mesh.vertices,
            mesh.faces,
            _send_numbers(constants, state.device),
            state,
            path,
            _send_numbers(_schedule(rules, stage), state.device),
            FLAGS=flags,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )
    _unpack(state, candidates)
