"""Pictures as arrays: a mesh over an image, occluder maps, loss landscapes, films. `plots` arranges them in figures.

Frames and units as in `rendering`: positions on an image are (x right, y down), pixel (row, col) is sampled at
(col + 0.5, row + 0.5); a `MapCamera` measures in cells of the map or, after `scale_camera`, in pixels of a picture.
Images are RGB uint8 [H, W, 3].
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.compare import rendering
from neural_mesh.compare.kernels_numba import rasterize
from neural_mesh.compare.rendering import Scene, Target
from neural_mesh.geometry.cameras import (
    MapCamera,
    Pose,
    camera_centre,
    geodesic_distance,
    in_degrees,
    pascal_cam_from_object,
    spherical_from_centre,
)
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.storage.files import atomic_path
from neural_mesh.storage.results import PoseSet

# Okabe and Ito's palette, which colour-blind readers tell apart
YELLOW, GREEN, VERMILLION = (240, 228, 66), (0, 158, 115), (213, 94, 0)
BLUE, SKY, ORANGE, BLACK = (0, 114, 178), (86, 180, 233), (230, 159, 0), (0, 0, 0)

BACKGROUND, OBJECT, OCCLUDED = 0, 1, 2  # labels of an occluder map
LABEL_NAMES = ("background", "object", "occluded")
# the paper's yellow, green and red, each less than half as light as the one before: told apart in grey and by the colour-blind
LABEL_COLOURS = np.array([(255, 226, 92), (44, 160, 96), (150, 0, 34)], np.float64)
LABEL_OPACITY = np.array([0.62, 0.62, 0.72])

OPACITY = 0.62  # of a mesh over an image
LIGHT = np.array(
    [-0.35, -0.75, -0.56]
)  # towards the light in the camera's frame: from above, left, behind the camera
FRONT_SHARE = 0.22  # share of the object's length over which the colour of its front fades
CREASE = math.cos(
    math.radians(30.0)
)  # neighbouring pixels whose normals differ by more are divided by a line
SCAN_NAMES = ("azimuth", "elevation", "theta")
# half widths (radians, CAD units) and numbers of points of the scans over a set (reference, PlotLossLandscape)
SET_SCANS = {
    "azimuth": (math.pi, 121),
    "elevation": (math.pi / 2, 61),
    "theta": (math.pi / 2, 61),
    "distance": (2.0, 41),
}
FILM_FRAMES, FILM_SECONDS, LAST_SECONDS = (
    30,
    4.0,
    1.5,
)  # of a film, and how long its last picture stays


def scale_camera(camera: MapCamera, factor: float) -> MapCamera:
    """The same camera on a picture that has `factor` pixels per cell."""
    x, y = camera.principal_xy
    height, width = camera.map_hw
    return MapCamera(
        camera.focal * factor,
        (x * factor, y * factor),
        (round(height * factor), round(width * factor)),
    )


def camera_of(poses: PoseSet, i: int) -> MapCamera:
    """The camera in which the pose of image i was found, in cells of the feature map."""
    config = poses.config
    principal_xy = (
        config["principal_xy_cells"]
        if poses.pose.principal_xy is None
        else poses.pose.principal_xy[i].tolist()
    )
    return MapCamera(config["focal_cells"], tuple(principal_xy), tuple(config["map_hw"]))


def camera_of_pose(pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Camera centre [3] in the object frame and world_from_cam rotation [3, 3], as the solver makes them."""
    centre = camera_centre(pose.azimuth, pose.elevation, pose.distance)
    return centre, rendering.look_at(
        torch.as_tensor(centre), torch.tensor(pose.theta, dtype=torch.float64)
    ).numpy()


def shrink(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The image [H, W, 3] with blocks of factor x factor pixels averaged."""
    return np.asarray(Image.fromarray(image).reduce(factor))


def enlarge(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The image [H, W, 3] with `factor` times as many pixels on both axes, smoothly interpolated."""
    height, width = image.shape[:2]
    return np.asarray(
        Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    )


# ---- a mesh over an image ----


def draw_mesh(
    image: NDArray[np.uint8],
    mesh: Mesh,
    pose: Pose,
    camera: MapCamera,
    opacity: float = OPACITY,
    supersample: int = 2,
) -> NDArray[np.uint8]:
    """A shaded, semi-transparent mesh over an image [H, W, 3], with light edges; its front (-y) is orange.

    camera: in pixels of the image (`scale_camera`). supersample: samples per pixel and axis.
    Raises ValueError when the camera is for another size of picture.
    """
    if tuple(image.shape[:2]) != tuple(camera.map_hw):
        raise ValueError(
            f"the camera is for pictures of {camera.map_hw} pixels, the image has {image.shape[:2]}"
        )
    colour, seen, line = _mesh_layer(mesh, pose, scale_camera(camera, supersample))
    colour += (255.0 - colour) * line[..., None]
    alpha = np.where(seen, opacity + (0.95 - opacity) * line, 0.0)[..., None]
    colour, alpha = _average(colour * alpha, supersample), _average(alpha, supersample)
    return np.clip(colour + (1.0 - alpha) * image + 0.5, 0, 255).astype(np.uint8)


def _mesh_layer(mesh: Mesh, pose: Pose, camera: MapCamera) -> tuple[NDArray, NDArray, NDArray]:
    """Colour [H, W, 3], covered or not [H, W] and strength of the lines [H, W] (0..1) of a mesh, without an image."""
    centre, world_from_cam = camera_of_pose(pose)
    cam = (mesh.vertices - centre) @ world_from_cam
    depth = cam[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        uv = camera.principal_xy + camera.focal * cam[:, :2] / depth[:, None]
    face, z, bary = rasterize(uv, depth, mesh.faces, *camera.map_hw)
    seen = face >= 0
    normals = normals_to_camera(cam[mesh.faces])
    shade = 0.42 + 0.58 * np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0.0, 1.0)
    forward = -mesh.vertices[mesh.faces, 1]  # [F, 3], how far each corner lies to the front
    share = (
        (forward.max() - (bary * forward[face]).sum(-1)) / max(np.ptp(forward), 1e-12) / FRONT_SHARE
    )
    front = np.clip(1.0 - share, 0.0, 1.0) ** 0.7
    colour = np.array(SKY) + front[..., None] * np.subtract(ORANGE, SKY)
    size = np.ptp(mesh.vertices, axis=0).max()
    line = _feature_lines(face, np.where(seen, z, 1e3 * size), normals, 0.04 * size)
    if rendering.find_cuboid(mesh) is not None:  # two triangles in a row make a cell
        line = np.maximum(
            line, 0.35 * _thicken(_differs(np.where(seen, face // 2, -1)), camera.map_hw[1] // 1300)
        )
    return colour * shade[face][..., None], seen, np.where(seen, line, 0.0)


def short_angles(angles: Sequence[float]) -> str:
    """Azimuth, elevation and theta in radians as `92°, 7°, 0°`."""
    return ", ".join(f"{round(value)}°" for value in in_degrees(angles).tolist())


def normals_to_camera(corners: NDArray) -> NDArray[np.float64]:
    """Unit normals [F, 3] of triangles [F, 3, 3] in the camera's frame, turned so that all face the camera."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    return np.where((normal * corners.mean(1)).sum(1, keepdims=True) > 0, -normal, normal)


def _feature_lines(
    face: NDArray, depth: NDArray, normals: NDArray, jump: float
) -> NDArray[np.float64]:
    """Strength [H, W] of outlines (1), where depth [H, W] jumps, and of creases (0.5), where the normal does."""
    crease, outline = np.zeros(face.shape, bool), np.zeros(face.shape, bool)
    for near, far in _neighbours():
        crease[near] |= (normals[face[near]] * normals[face[far]]).sum(-1) < CREASE
        leap = abs(depth[near] - depth[far]) > jump
        outline[near] |= leap
        outline[far] |= leap
    width = face.shape[1]  # lines grow with the picture, so that they survive its reduction
    return np.maximum(0.5 * _thicken(crease, width // 1300), _thicken(outline, width // 600))


def _thicken(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Lines of one pixel [H, W] -> lines of about `pixels` pixels."""
    mask = mask.copy()
    for step in range(pixels - 1):
        before = mask.copy()
        for near, far in _neighbours():
            mask[far if step % 2 else near] |= before[near if step % 2 else far]
    return mask


def _differs(label: NDArray) -> NDArray[np.bool_]:
    """Whether the pixel to the right or below has another label [H, W]."""
    edge = np.zeros(label.shape, bool)
    for near, far in _neighbours():
        edge[near] |= label[near] != label[far]
    return edge


def _neighbours() -> tuple[tuple, tuple]:
    """Index pairs (pixels, their neighbours) to the right and below."""
    whole, low, high = slice(None), slice(None, -1), slice(1, None)
    return ((whole, low), (whole, high)), ((low, whole), (high, whole))


def _average(image: NDArray, factor: int) -> NDArray[np.float64]:
    """Mean of blocks of factor x factor pixels of [H, W, K]."""
    height, width, channels = image.shape
    return image.reshape(height // factor, factor, width // factor, factor, channels).mean((1, 3))


# ---- occluder maps ----


def occluder_map(scene: Scene, scores: NDArray, clutter: NDArray, pose: Pose) -> NDArray[np.int8]:
    """Which cells show the object, which an occluder and which the background [H, W] (paper, qualitative results).

    scores [P, V]: similarity of each cell with each vertex. clutter [P]: with the clutter. On the mesh a cell is OBJECT
    where the interpolated score exceeds the clutter's, else OCCLUDED; off the mesh it is BACKGROUND.
    """
    centre, rotation = camera_of_pose(pose)
    face, _, bary = rendering.rasterise_poses(scene, centre[None], rotation[None])
    face, bary = face.ravel(), bary.reshape(-1, 3)
    object_score = (np.take_along_axis(np.asarray(scores), scene.faces[face], axis=1) * bary).sum(
        -1
    )
    labels = np.where(face >= 0, np.where(object_score > clutter, OBJECT, OCCLUDED), BACKGROUND)
    return labels.reshape(scene.camera.map_hw).astype(np.int8)


def colour_occluder_map(image: NDArray[np.uint8], labels: NDArray) -> NDArray[np.uint8]:
    """Labels [h, w] as colours over a grey version of the image [H, W, 3]; occluded cells are hatched besides.

    Raises ValueError when the image is not a whole number of pixels per cell.
    """
    cell = image.shape[0] // labels.shape[0]
    if (labels.shape[0] * cell, labels.shape[1] * cell) != tuple(image.shape[:2]):
        raise ValueError(
            f"an image of {image.shape[:2]} pixels does not divide into {labels.shape} square cells"
        )
    label = labels.repeat(cell, 0).repeat(cell, 1)
    grey = image @ np.array([0.299, 0.587, 0.114])
    opacity = LABEL_OPACITY[label][..., None]
    picture = (1.0 - opacity) * (100.0 + 0.6 * grey[..., None]) + opacity * LABEL_COLOURS[label]
    row, col = np.indices(label.shape)
    hatch = (label == OCCLUDED) & ((row + col) % cell < max(1, cell // 8))
    picture[hatch] += 0.4 * (255.0 - picture[hatch])
    picture[_differs(label)] *= 0.35
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


# ---- loss landscape ----


@dataclass(frozen=True)
class Scan:
    """Loss along one angle, the others and the distance staying those of the prediction. Radians.

    angles [N], losses [N]; at and loss: the prediction; truth: the annotated angle, in the turn nearest to `at`.
    """

    name: str
    angles: NDArray
    losses: NDArray
    at: float
    loss: float
    truth: float


def near_turn(angle: float, reference: float) -> float:
    """The angle plus the multiple of 2 pi that brings it within pi of the reference."""
    return reference + math.remainder(angle - reference, 2 * math.pi)


def losses_of(
    scene: Scene, target: Target, poses: Sequence[Pose], renderer: str = "numba"
) -> NDArray[np.float64]:
    """Loss [N] of one image (a target of B = 1, on the CPU) in each of N poses."""
    cameras = [camera_of_pose(pose) for pose in poses]
    centre, rotation = (torch.as_tensor(np.stack(part)) for part in zip(*cameras, strict=True))
    table = rendering.render_table(scene, centre, rotation, renderer)
    return rendering.compare_table(table, target, renderer)[0].numpy()


def loss_scans(
    scene: Scene,
    target: Target,
    pose: Pose,
    truth: Sequence[float],
    renderer: str = "numba",
    points: int = 121,
) -> list[Scan]:
    """Loss along azimuth (a full turn and more), elevation and theta (60 degrees either way or more) around a pose.

    target: of one image (B = 1), on the CPU. truth [3]: the annotated angles in radians; every scan reaches past them.
    """
    scans = []
    for i, (name, reach) in enumerate(
        zip(SCAN_NAMES, (1.1 * math.pi, math.pi / 3, math.pi / 3), strict=True)
    ):
        angle = float(pose.angles[i])
        true = near_turn(truth[i], angle)
        reach = max(reach, abs(true - angle) + 0.1)
        angles = angle + np.linspace(
            -reach, reach, points | 1
        )  # odd, so that the prediction is one of them
        if name == "elevation":
            angles = angles[abs(angles) <= max(math.pi / 2, abs(angle))]
        losses = losses_of(
            scene, target, [replace(pose, **{name: float(a)}) for a in angles], renderer
        )
        at = int(abs(angles - angle).argmin())
        scans.append(Scan(name, angles, losses, angle, float(losses[at]), true))
    return scans


def scans_around(
    scene: Scene, target: Target, pose: Pose, renderer: str = "numba"
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Offsets [N] (radians, CAD units) and losses [N] along every entry of `SET_SCANS`, through a pose.

    target: of one image (B = 1), on the CPU. The loss is nan where the elevation would pass a pole, and where the
    distance would not be positive.
    """
    scans = {}
    for name, (reach, points) in SET_SCANS.items():
        offsets = np.linspace(-reach, reach, points)
        values = getattr(pose, name) + offsets
        valid = (
            values > 0
            if name == "distance"
            else abs(values) <= math.pi / 2
            if name == "elevation"
            else np.ones(points, bool)
        )
        losses = np.full(points, np.nan)
        losses[valid] = losses_of(
            scene, target, [replace(pose, **{name: float(v)}) for v in values[valid]], renderer
        )
        scans[name] = (offsets, losses)
    return scans


# ---- films ----


def film_steps(path: NDArray, frames: int = FILM_FRAMES) -> list[int]:
    """Which iterates of a path [S, 4] (camera centre, theta) a film shows: about evenly spaced along the turning of the
    camera, so that the fast beginning gets as many pictures as the slow end. First and last are among them."""
    azimuth, elevation, _ = spherical_from_centre(path[:, :3])
    rotation = pascal_cam_from_object(azimuth, elevation, path[:, 3])
    turned = geodesic_distance(rotation[1:], rotation[:-1])
    travelled = np.concatenate([[0.0], np.cumsum(turned + 0.2 * turned.sum() / len(path) + 1e-9)])
    wanted = np.linspace(0.0, travelled[-1], min(frames, len(path)))
    return sorted(
        {int(abs(travelled - distance).argmin()) for distance in wanted} | {0, len(path) - 1}
    )


def pose_of_iterate(iterate: NDArray) -> Pose:
    """A row (camera centre, theta) [4] of the solver's path as a pose."""
    azimuth, elevation, distance = (float(x[0]) for x in spherical_from_centre(iterate[None, :3]))
    return Pose(azimuth, elevation, float(iterate[3]), distance)


def save_film(
    path: Path, frames: Sequence[NDArray[np.uint8]], seconds: float = FILM_SECONDS
) -> None:
    """Write pictures [H, W, 3] of one size as an animated GIF that repeats; the last stays for `LAST_SECONDS`.

    All frames share one palette, made from the first, a middle and the last one. Raises ValueError without frames.
    """
    if not len(frames):
        raise ValueError("a film needs at least one picture")
    montage = Image.fromarray(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]]))
    palette = montage.quantize(256, Image.Quantize.MEDIANCUT)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    durations = [round(1000 * seconds / len(frames))] * (len(frames) - 1) + [
        round(1000 * LAST_SECONDS)
    ]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pictures[0].save(
            file,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def as_jpeg(image: NDArray[np.uint8], width: int, quality: int = 76) -> bytes:
    """The image [H, W, 3] as a JPEG file of at most this width."""
    picture = Image.fromarray(image)
    if picture.width > width:
        picture = picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
