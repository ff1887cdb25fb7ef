"""Meshes over a photograph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.geometry.cameras import MapCamera
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.photographs.poses import PhotographPose
from neural_mesh.pictures.mesh_overlay import draw_mesh
from neural_mesh.storage.pictures import Photograph


def overlay(
    photograph: Photograph, drawn: Sequence[tuple[Mesh, PhotographPose]], longest_side: int
) -> NDArray[np.uint8]:
    """Meshes over a photograph in their poses, the furthest first.

    Returns RGB [h, w, 3] with no side longer than longest_side, in pixels.
    """
    picture = _shrunk(photograph.pixels, longest_side)
    # Poses count pixels of the photograph as it was before anything was reduced.
    scale = picture.shape[1] / photograph.size_hw[1]
    # What is near hides what is far, whatever their own focal lengths are.
    for mesh, pose in sorted(drawn, key=lambda each: -each[1].pascal3d_distance):
        x, y = pose.pose.principal_xy
        camera = MapCamera(pose.focal_px * scale, (x * scale, y * scale), picture.shape[:2])
        picture = draw_mesh(picture, mesh, pose.pose, camera)
    return picture


def _shrunk(picture: NDArray[np.uint8], longest_side: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    factor = longest_side / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
