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

# Opacity of a mesh over an image, and of its lines.
OPACITY = 0.62
LINE_OPACITY = 0.95
# Direction towards the light in the frame `cv_cam`: above, to the left, behind the camera.
LIGHT = np.array([-0.35, -0.75, -0.56])
# Brightness of faces in the shade, and what full light adds to it.
AMBIENT = 0.42
DIFFUSE = 0.58
# Share of the object's length over which the colour of its front fades.
FRONT_SHARE = 0.22
# A crease is drawn where neighbouring normals differ by more than 30 degrees.
CREASE_COSINE = math.cos(math.radians(30.0))
# An outline is drawn where the depth leaps by more than this share of the object's size.
DEPTH_JUMP = 0.04
# Strength of creases and of the lines between the cells of a cuboid; outlines have 1.
CREASE_STRENGTH = 0.5
CELL_STRENGTH = 0.35


def scale_camera(camera: MapCamera, factor: float) -> MapCamera:
    """Convert a camera to a picture that has `factor` pixels per cell."""
    x, y = camera.principal_xy
    height, width = camera.map_hw
    size_hw = (round(height * factor), round(width * factor))
    return MapCamera(camera.focal * factor, (x * factor, y * factor), size_hw)


def fit_camera(camera: MapCamera, image: NDArray) -> MapCamera:
    """Convert the camera of a feature map to an image [H, W, 3] of the same view."""
    return scale_camera(camera, image.shape[0] / camera.map_hw[0])


def camera_of_pose(pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute centre [3] and rotation object_from_cv_cam [3, 3] of a camera as the solver does."""
    # Imported here, since a report that is up to date needs neither.
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
    """Draw a shaded, semi-transparent mesh with light edges over an image [H, W, 3].

    The mesh is blue, its front (-y) orange. camera: in pixels of the image (`fit_camera`); the
    pose's own principal point is ignored. supersample: samples per pixel along each axis. Raises
    ValueError when the camera is for another size of picture.
    """
    size_hw = tuple(image.shape[:2])
    if size_hw != tuple(camera.map_hw):
        raise ValueError(
            f"the camera is for pictures of {camera.map_hw} pixels, the image has {size_hw}"
        )
    # White lines, which hide more of the image than faces do.
    layer = _draw_layer(mesh, pose, scale_camera(camera, supersample))
    line = layer.line[..., None]
    colour = layer.colour + (255.0 - layer.colour) * line
    alpha = np.where(layer.covered[..., None], opacity + (LINE_OPACITY - opacity) * line, 0.0)
    # Means over the samples of each pixel. Colours are multiplied by their opacity before, or
    # uncovered samples would darken the border.
    colour = _block_means(colour * alpha, supersample)
    alpha = _block_means(alpha, supersample)
    return np.clip(colour + (1.0 - alpha) * image + 0.5, 0, 255).astype(np.uint8)


class _Layer(NamedTuple):
    """A drawn mesh without an image.

    colour [H, W, 3]: in 0..255. covered [H, W]: which samples see the mesh. line [H, W]: strength
    of lines, in 0..1.
    """

    colour: NDArray[np.float64]
    covered: NDArray[np.bool_]
    line: NDArray[np.float64]


def _draw_layer(mesh: Mesh, pose: Pose, camera: MapCamera) -> _Layer:
    """Draw the mesh as the camera sees it."""
    # Face, depth and barycentric coordinates of each sample. Off the mesh `face` is -1, so that
    # lookups by face give the last one; those samples are masked by `covered` in the end.
    centre, object_from_cv_cam = camera_of_pose(pose)
    points_cam = (mesh.vertices - centre) @ object_from_cv_cam
    depth = points_cam[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        points_xy = camera.principal_xy + camera.focal * points_cam[:, :2] / depth[:, None]
    face, z, bary = rasterise(points_xy, depth, mesh.faces, *camera.map_hw)
    covered = face >= 0

    # Colours: blue, orange in front, darker where a face turns away from the light.
    normals = _normals_to_camera(points_cam[mesh.faces])
    towards_light = LIGHT / np.linalg.norm(LIGHT)
    shade = AMBIENT + DIFFUSE * np.clip(normals @ towards_light, 0.0, 1.0)
    front = _frontness(mesh, face, bary)
    colour = np.array(SKY) + front[..., None] * np.subtract(ORANGE, SKY)
    colour *= shade[face][..., None]

    # Outlines and creases. They are wider in larger pictures, so that they survive shrinking.
    width = camera.map_hw[1]
    size = np.ptp(mesh.vertices, axis=0).max()
    depth = np.where(covered, z, 1e3 * size)
    outline = thicken(depth_edges(depth, DEPTH_JUMP * size), width // 600)
    crease = thicken(creases(face, normals, CREASE_COSINE), width // 1300)
    line = np.maximum(CREASE_STRENGTH * crease, outline)
    if find_cuboid(mesh) is not None:
        # Two successive triangles make a cell of the cuboid's grid.
        cell = thicken(label_edges(np.where(covered, face // 2, -1)), width // 1300)
        line = np.maximum(line, CELL_STRENGTH * cell)
    return _Layer(colour, covered, np.where(covered, line, 0.0))


def _frontness(mesh: Mesh, face: NDArray, bary: NDArray) -> NDArray[np.float64]:
    """Share of the front's colour in each pixel [H, W], which is 1 at the very front."""
    # The front of the object is -y.
    forward = -mesh.vertices[mesh.faces, 1]
    behind = forward.max() - (bary * forward[face]).sum(-1)
    length = max(np.ptp(forward), 1e-12)
    return np.clip(1.0 - behind / length / FRONT_SHARE, 0.0, 1.0) ** 0.7


def _normals_to_camera(corners_cam: NDArray) -> NDArray[np.float64]:
    """Compute unit normals [F, 3] of triangles [F, 3, 3] in the camera's frame.

    All of them face the camera, since meshes do not agree on the order of a triangle's corners.
    """
    first_edge = corners_cam[:, 1] - corners_cam[:, 0]
    second_edge = corners_cam[:, 2] - corners_cam[:, 0]
    normal = np.cross(first_edge, second_edge)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    faces_away = (normal * corners_cam.mean(1)).sum(1, keepdims=True) > 0
    return np.where(faces_away, -normal, normal)


def _block_means(image: NDArray, factor: int) -> NDArray[np.float64]:
    """Average blocks of factor x factor pixels of an image [H, W, K]."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return blocks.mean((1, 3))
