"""A shaded mesh in a pose over an image, with its outlines and creases.

Positions on an image are (x right, y down); pixel (row, col) is sampled at (col + 0.5, row + 0.5).
A `MapCamera` measures in cells of a feature map or, after `scale_camera`, in pixels of a picture.
Images are RGB uint8 [H, W, 3].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.compare.kernels_numba import rasterise
from neural_mesh.geometry.cameras import MapCamera, Pose
from neural_mesh.geometry.meshes import Mesh, find_cuboid
from neural_mesh.pictures.colours import ORANGE, SKY
from neural_mesh.pictures.edges import creases, depth_edges, label_edges, thicken

OPACITY = 0.62  # of a mesh over an image
LINE_OPACITY = 0.95  # of its lines
# Towards the light in the frame `cv_cam`: from above, from the left, from behind the camera.
LIGHT = np.array([-0.35, -0.75, -0.56])
AMBIENT = 0.42  # brightness of faces in the shade
DIFFUSE = 0.58  # what light adds to it
FRONT_SHARE = 0.22  # share of the object's length over which the colour of its front fades
# Neighbouring pixels whose normals differ by more are divided by a line.
CREASE_COSINE = math.cos(math.radians(30.0))
DEPTH_JUMP = 0.04  # share of the object's size by which the depth leaps at an outline
CREASE_STRENGTH = 0.5
CELL_STRENGTH = 0.35  # of the lines between the cells of a cuboid


def scale_camera(camera: MapCamera, factor: float) -> MapCamera:
    """The same camera on a picture that has `factor` pixels per cell."""
    x, y = camera.principal_xy
    height, width = camera.map_hw
    size_hw = (round(height * factor), round(width * factor))
    return MapCamera(camera.focal * factor, (x * factor, y * factor), size_hw)


def fit_camera(camera: MapCamera, image: NDArray) -> MapCamera:
    """The camera of a feature map on an image [H, W, 3] that shows all that the map shows."""
    return scale_camera(camera, image.shape[0] / camera.map_hw[0])


def camera_of_pose(pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Camera centre [3] and rotation object_from_cv_cam [3, 3], as the solver makes them."""
    # Inside, since a report that is up to date needs neither.
    import torch

    from neural_mesh.compare.scene import look_at

    theta = torch.tensor(pose.theta, dtype=torch.float64)
    rotation = look_at(torch.as_tensor(pose.centre), theta)
    return pose.centre, rotation.numpy()


def draw_mesh(
    image: NDArray[np.uint8],
    mesh: Mesh,
    pose: Pose,
    camera: MapCamera,
    opacity: float = OPACITY,
    supersample: int = 2,
) -> NDArray[np.uint8]:
    """A shaded, semi-transparent mesh over an image [H, W, 3], with light edges; its front (-y) is
    orange.

    camera: in pixels of the image (`fit_camera`); the pose's own principal point plays no role.
    supersample: samples per pixel and axis. Raises ValueError when the camera is for another size
    of picture.
    """
    size_hw = tuple(image.shape[:2])
    if size_hw != tuple(camera.map_hw):
        raise ValueError(
            f"the camera is for pictures of {camera.map_hw} pixels, the image has {size_hw}"
        )
    # Lines are white, and hide more of the image than faces.
    layer = _draw_layer(mesh, pose, scale_camera(camera, supersample))
    line = layer.line[..., None]
    colour = layer.colour + (255.0 - layer.colour) * line
    alpha = np.where(layer.covered[..., None], opacity + (LINE_OPACITY - opacity) * line, 0.0)
    # Samples become pixels.
    colour = _block_means(colour * alpha, supersample)
    alpha = _block_means(alpha, supersample)
    return np.clip(colour + (1.0 - alpha) * image + 0.5, 0, 255).astype(np.uint8)


class _Layer(NamedTuple):
    """A mesh without an image: colour [H, W, 3] of 0..255, whether covered [H, W], strength of
    lines [H, W] of 0..1.
    """

    colour: NDArray[np.float64]
    covered: NDArray[np.bool_]
    line: NDArray[np.float64]


def _draw_layer(mesh: Mesh, pose: Pose, camera: MapCamera) -> _Layer:
    """The mesh as the camera sees it."""
    # What each sample sees.
    centre, object_from_cv_cam = camera_of_pose(pose)
    points_cam = (mesh.vertices - centre) @ object_from_cv_cam
    depth = points_cam[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        points_xy = camera.principal_xy + camera.focal * points_cam[:, :2] / depth[:, None]
    face, z, bary = rasterise(points_xy, depth, mesh.faces, *camera.map_hw)
    covered = face >= 0

    # Blue, orange in front, darker where it faces away from the light.
    normals = _normals_to_camera(points_cam[mesh.faces])
    towards_light = LIGHT / np.linalg.norm(LIGHT)
    shade = AMBIENT + DIFFUSE * np.clip(normals @ towards_light, 0.0, 1.0)
    front = _frontness(mesh, face, bary)
    colour = np.array(SKY) + front[..., None] * np.subtract(ORANGE, SKY)
    colour *= shade[face][..., None]

    # Outlines and creases. Lines grow with the picture, so that they survive its reduction.
    width = camera.map_hw[1]
    size = np.ptp(mesh.vertices, axis=0).max()
    depth = np.where(covered, z, 1e3 * size)
    outline = thicken(depth_edges(depth, DEPTH_JUMP * size), width // 600)
    crease = thicken(creases(face, normals, CREASE_COSINE), width // 1300)
    line = np.maximum(CREASE_STRENGTH * crease, outline)
    if find_cuboid(mesh) is not None:
        # Two triangles in a row make a cell.
        cell = thicken(label_edges(np.where(covered, face // 2, -1)), width // 1300)
        line = np.maximum(line, CELL_STRENGTH * cell)
    return _Layer(colour, covered, np.where(covered, line, 0.0))


def _frontness(mesh: Mesh, face: NDArray, bary: NDArray) -> NDArray[np.float64]:
    """How much of the front's colour each pixel has [H, W], 1 at the very front of the object,
    which is its least y.
    """
    forward = -mesh.vertices[mesh.faces, 1]  # [F, 3], how far each corner lies to the front
    behind = forward.max() - (bary * forward[face]).sum(-1)
    length = max(np.ptp(forward), 1e-12)
    return np.clip(1.0 - behind / length / FRONT_SHARE, 0.0, 1.0) ** 0.7


def _normals_to_camera(corners_cam: NDArray) -> NDArray[np.float64]:
    """Unit normals [F, 3] of triangles [F, 3, 3] in the camera's frame, turned so that all face the
    camera.
    """
    first_edge = corners_cam[:, 1] - corners_cam[:, 0]
    second_edge = corners_cam[:, 2] - corners_cam[:, 0]
    normal = np.cross(first_edge, second_edge)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    faces_away = (normal * corners_cam.mean(1)).sum(1, keepdims=True) > 0
    return np.where(faces_away, -normal, normal)


def _block_means(image: NDArray, factor: int) -> NDArray[np.float64]:
    """Mean of blocks of factor x factor pixels of [H, W, K]."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return blocks.mean((1, 3))
