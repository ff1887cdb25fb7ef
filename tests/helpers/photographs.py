"""Photographs with a planted pose, and a network of colours that finds it."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from neural_mesh.compare.rasteriser import rasterise_poses
from neural_mesh.compare.scene import make_scene
from neural_mesh.geometry import cameras
from neural_mesh.geometry.cameras import MapCamera, Pose
from neural_mesh.geometry.meshes import CuboidGrid, cuboid_mesh
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.pictures.mesh_overlay import camera_of_pose
from neural_mesh.settings import PhotographConfig, TrainConfig
from neural_mesh.solve.model import Model
from neural_mesh.storage.checkpoints import Checkpoint

LOW = np.array([-0.18, -0.45, -0.15])
MESH = cuboid_mesh(CuboidGrid(LOW, -LOW, (6, 14, 5)))
TRUTH = Pose(np.radians(130.0), np.radians(12.0), np.radians(4.0), 5.0)
GREY = 110


def gradient(height: int = 60, width: int = 90) -> np.ndarray:
    """A picture [height, width, 3] of which every pixel can be told."""
    rows, columns = np.mgrid[:height, :width]
    blue = np.full_like(rows, 90)
    return np.stack([40 + columns * 2, 50 + rows * 3, blue], -1).astype(np.uint8)


class ColourModel(Model):
    """A network that sees colours: the features of a cell are its mean colour, less grey."""

    map_hw = (32, 84)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        colours = functional.avg_pool2d(images.float() - GREY, 8)
        return functional.normalize(colours, dim=1)


def vertex_colours() -> np.ndarray:
    """A colour [V, 3] of each vertex of MESH, unlike those of its surroundings."""
    waves = MESH.vertices @ np.array([[7.0, 2.0, -3.0], [1.0, 6.0, 4.0], [-9.0, 5.0, 11.0]])
    return np.clip(np.cos(waves + [0.3, 1.9, 4.0]) * 100 + GREY, 0, 255)


def planted(
    pose: Pose, focal: float, principal_xy: tuple[float, float], size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture with the coloured cuboid in a pose, and the cuboid's box."""
    centre, rotation = camera_of_pose(pose)
    scene = make_scene(MESH, MapCamera(focal, principal_xy, size_hw))
    faces, _, weights = rasterise_poses(scene, centre[None], rotation[None])
    face = faces[0]
    corner_colours = vertex_colours()[MESH.faces[face]]
    colour = (corner_colours * weights[0][..., None]).sum(-2)
    rows, columns = np.nonzero(face >= 0)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    return np.where((face >= 0)[..., None], colour, GREY - 5).astype(np.uint8), box


def make_colour_finder() -> PoseFinder:
    """A finder of MESH in the colours that `planted` gives it."""
    config = TrainConfig(category="car", num_clutter_image=1, num_clutter_group=4, mesh_d="single")
    bank = functional.normalize(torch.from_numpy(vertex_colours() - GREY).float(), dim=1)
    memory = torch.cat([bank, torch.full((4, 3), -(3**-0.5))])
    checkpoint = Checkpoint({}, [memory], [MESH], config, 0, "colours", data="others")
    model = ColourModel(checkpoint, None, torch.device("cpu"))
    return PoseFinder(model, PhotographConfig(box_fill=1.0, box_drop=0.0))


def degrees_off(pose: Pose, truth: Pose) -> float:
    """Angle between the rotations of two poses."""
    rotations = (pose.pascal_cam_from_object, truth.pascal_cam_from_object)
    return float(np.degrees(cameras.geodesic_distance(*rotations)))
