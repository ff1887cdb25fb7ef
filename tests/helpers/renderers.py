"""The renderers, each with the device on which tests run it and the tolerance that they allow it.

Triton runs on a GPU, or on the CPU in its interpreter. The interpreter is on in a process of its
own, which `test_rendering` starts.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch

from neural_mesh.compare.scene import Gradients, Renderer, Scene, Target
from neural_mesh.compare.specification import TorchRenderer
from neural_mesh.solve.choose_renderer import RENDERERS, choose_renderer

CPU = torch.device("cpu")
SPECIFICATION = TorchRenderer(CPU)
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))


@dataclass(frozen=True)
class TestedRenderer:
    """How tests compare a renderer with the specification.

    device: where it runs. tolerance: of losses, and of gradients as a share of 1 + the largest.
    exempt: share of the poses of which a cell on an edge may see another triangle. package: the one
    it needs; its tests skip without it. any_matrix: whether its gradient by the rotation is the
    specification's in all nine numbers, instead of in those only that `Renderer.compare` promises
    (turns of the camera and the third column).
    """

    __test__ = False  # pytest would collect a class whose name begins with Test

    device: torch.device
    tolerance: float
    exempt: float = 0.0
    package: str = "torch"
    any_matrix: bool = True

    @property
    def runs_here(self) -> bool:
        has_device = self.device == CPU or torch.cuda.is_available()
        return has_device and importlib.util.find_spec(self.package) is not None


# A renderer of RENDERERS needs a row here. float64 allows 1e-9, float32 more.
TESTED = {
    "torch": TestedRenderer(CPU, 1e-9),
    "numba": TestedRenderer(CPU, 1e-9, package="numba"),
    "triton": TestedRenderer(
        CPU if INTERPRETED else torch.device("cuda"), 2e-5, exempt=1 / 24, package="triton"
    ),
    "pytorch3d": TestedRenderer(CPU, 1e-4, package="pytorch3d", any_matrix=False),
    "pytorch3d-features": TestedRenderer(CPU, 1e-4, package="pytorch3d", any_matrix=False),
}
# Every renderer but the specification itself, whether it runs here or not.
OTHERS = [name for name in RENDERERS if name != SPECIFICATION.name]
# Those that run here, and whose gradients are the specification's in every number.
FAST = [name for name, row in TESTED.items() if name in OTHERS and row.runs_here and row.any_matrix]
# The specification, and those of FAST that take tensors on the CPU.
ON_CPU = [SPECIFICATION.name, *(name for name in FAST if TESTED[name].device == CPU)]


def renderer_named(name: str) -> Renderer:
    """The renderer of that name on the device where it is tested."""
    return choose_renderer(name, TESTED[name].device)


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
