"""Render-and-compare by PyTorch3D's rasteriser, the paper's renderer.

Frames as in `scene`; PyTorch3D's own are met in `visible_pytorch3d` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from neural_mesh.compare.scene import (
    NEAR,
    Gradients,
    Scene,
    Target,
    look_at,
    pixel_features,
    principal_points,
)
from neural_mesh.compare.specification import TorchRenderer
from neural_mesh.geometry.cameras import MapCamera


@dataclass(frozen=True)
class Pytorch3dRenderer(TorchRenderer):
    """As the specification, with PyTorch3D's visibility, and its gradients by autograd."""

    name: ClassVar[str] = "pytorch3d"

    def visible(
        self,
        scene: Scene,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `TorchRenderer.visible`."""
        return visible_pytorch3d(scene, centre, rotation, principal_xy)

    def compare(
        self,
        scene: Scene,
        target: Target,
        centre: Tensor,
        rotation: Tensor,
        principal_xy: Tensor | None = None,
    ) -> Gradients:
        """See `Renderer.compare`."""
        gradients, grad_principal = self._differentiate(
            scene, target, centre, rotation, principal_xy
        )
        grad_rotation = gradient_through_rays(
            scene.camera, rotation.detach(), gradients.grad_rotation, grad_principal
        )
        return gradients._replace(grad_rotation=grad_rotation)


@dataclass(frozen=True)
class Pytorch3dFeatureRenderer(Pytorch3dRenderer):
    """The paper's own route: features are rendered, and then compared with the image's."""

    name: ClassVar[str] = "pytorch3d-features"

    def target(self, features: Tensor, bank: Tensor, clutter: Tensor | None) -> Target:
        """See `Renderer.target`."""
        pixels_first, clutter_map = pixel_features(features, bank, clutter)
        return Target(None, clutter_map, pixels_first, bank)


def visible_pytorch3d(
    scene: Scene, centre: Tensor, rotation: Tensor, principal_xy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `specification.visible`, by PyTorch3D's rasteriser (0.7), in float32.

    It takes vertices in its normalised coordinates: x left, y up, the shorter side of the picture
    from -1 to 1, and the depth as z. A face that our near rule leaves out is made degenerate, which
    its rasteriser skips.
    """
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    height, width = scene.camera.map_hw
    vertices = torch.as_tensor(scene.vertices, dtype=centre.dtype, device=centre.device)
    faces = torch.as_tensor(scene.faces, dtype=torch.int64, device=centre.device)
    # vertices in its coordinates
    cam = (vertices - centre[:, None]) @ rotation  # [B, V, 3], x right, y down, z forward
    depth = cam[..., 2:]
    middle = cam.new_tensor([width / 2, height / 2])
    offset = principal_points(scene.camera, centre, principal_xy) - middle
    from_middle = scene.camera.focal * cam[..., :2] / depth.clamp_min(NEAR) + offset[:, None]
    xy = -from_middle / (min(height, width) / 2)
    # faces in front of the camera
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
    face = face.flatten(1)
    bary = bary.flatten(1, 3).to(centre)
    hit = (face >= 0)[..., None]
    corners = torch.where(hit, faces[face.clamp_min(0) % len(faces)], 0)
    return corners, torch.where(hit, bary, 0)


def pytorch3d_complaint(device: torch.device) -> str:
    """Why PyTorch3D cannot be used on a device, found by rendering a triangle; empty if it can be.

    It is compiled for one PyTorch, and with CUDA or without.
    """
    corners = np.array([[-1.0, 0.0, -1.0], [1.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    camera = MapCamera(focal=4.0, principal_xy=(2.0, 2.0), map_hw=(4, 4))
    triangle = Scene(corners, np.array([[0, 1, 2]], np.int32), camera, None)
    centre = torch.tensor([[0.0, -3.0, 0.0]], device=device)
    rotation = look_at(centre, torch.zeros(1, device=device))
    try:
        visible_pytorch3d(triangle, centre, rotation)
    except Exception as error:  # a loader's, a compiler's, a GPU's
        lines = str(error).strip().splitlines() or ["no reason given"]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


def gradient_through_rays(
    camera: MapCamera, rotation: Tensor, grad_rotation: Tensor, grad_principal: Tensor
) -> Tensor:
    """Gradient by the rotation [B, 3, 3] that moves vertices -> one that turns rays.

    `principal_gradient` reads the latter. The two differ in parts that no rotation has. Kept are
    the derivatives by turning about each axis (the antisymmetric part, in the camera frame) and the
    third column that belongs to grad_principal [B, 2]; the rest is free.
    """
    in_cam = rotation.mT @ grad_rotation
    turning = in_cam - in_cam.mT
    rays = torch.zeros_like(turning)
    rays[:, 0, 1] = turning[:, 0, 1] / 2
    rays[:, 1, 0] = -turning[:, 0, 1] / 2
    rays[:, :2, 2] = -camera.focal * grad_principal
    rays[:, 2, :2] = rays[:, :2, 2] - turning[:, :2, 2]
    return (rotation @ rays).detach()
