"""Renderers as tests name them, where they run: Triton on a GPU, or on the CPU in its interpreter.

The interpreter is on in a process of its own, which `test_rendering` starts.
"""

from __future__ import annotations

import os

import torch

from neural_mesh.compare.scene import Gradients, Renderer, Scene, Target
from neural_mesh.compare.specification import TorchRenderer
from neural_mesh.solve.choose_renderer import choose_renderer

CPU = torch.device("cpu")
SPECIFICATION = TorchRenderer(CPU)
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
FAST = ["numba", "triton"] if INTERPRETED or torch.cuda.is_available() else ["numba"]


def renderer_named(name: str) -> Renderer:
    """The renderer of that name on the device where it is tested."""
    on_gpu = name == "triton" and not INTERPRETED
    return choose_renderer(name, torch.device("cuda") if on_gpu else CPU)


def compare(
    name: str,
    scene: Scene,
    target: Target,
    centre: torch.Tensor,
    rotation: torch.Tensor,
    principal_xy: torch.Tensor | None = None,
) -> Gradients:
    """`Renderer.compare` of tensors on the CPU, with the result there."""
    renderer = renderer_named(name)
    tensors = (target.scores, target.clutter, target.features, target.bank)
    target = Target(*(None if x is None else x.to(renderer.device) for x in tensors))
    centre = centre.to(renderer.device)
    rotation = rotation.to(renderer.device)
    result = renderer.compare(scene, target, centre, rotation, principal_xy)
    return Gradients(*(x.cpu() for x in result))
