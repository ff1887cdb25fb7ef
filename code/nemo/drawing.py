"""Pictures: a mesh over an image, occluder maps, loss landscapes, and their arrangement. The only module that imports
matplotlib, inside functions and without its global state.

Frames and units as in `rendering`: positions on an image are (x right, y down), pixel (row, col) is sampled at
(col + 0.5, row + 0.5); a `MapCamera` measures in cells of the map or, after `scale_camera`, in pixels of a picture.
Images are RGB uint8 [H, W, 3].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nemo import rendering
from nemo.cameras import camera_centre
from nemo.files import atomic_path
from nemo.kernels_numba import rasterize
from nemo.meshes import Mesh
from nemo.rendering import MapCamera, Scene, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers tell apart
YELLOW, GREEN, VERMILLION = (240, 228, 66), (0, 158, 115), (213, 94, 0)
BLUE, SKY, ORANGE, BLACK = (0, 114, 178), (86, 180, 233), (230, 159, 0), (0, 0, 0)

BACKGROUND, OBJECT, OCCLUDED = 0, 1, 2  # labels of an occluder map
LABEL_NAMES = ("background", "object", "occluded")
LABEL_COLOURS = np.array([YELLOW, GREEN, VERMILLION], np.float64)
LABEL_OPACITY = np.array([0.42, 0.55, 0.66])

OPACITY = 0.62  # of a mesh over an image
LIGHT = np.array([-0.35, -0.75, -0.56])  # towards the light in the camera's frame: from above, left, behind the camera
FRONT_SHARE = 0.22  # share of the object's length over which the colour of its front fades
CREASE = math.cos(math.radians(30.0))  # neighbouring pixels whose normals differ by more are divided by a line
DPI = 140
CAPTION = 0.36  # inches above a row of a contact sheet
SCAN_NAMES = ("azimuth", "elevation", "theta")


class Pose(NamedTuple):
    """Where the camera is: radians, and CAD units for the distance."""

    azimuth: float
    elevation: float
    theta: float
    distance: float


def scale_camera(camera: MapCamera, factor: float) -> MapCamera:
    """The same camera on a picture that has `factor` pixels per cell."""
    x, y = camera.principal_xy
    height, width = camera.map_hw
    return MapCamera(camera.focal * factor, (x * factor, y * factor), (round(height * factor), round(width * factor)))


def camera_of_pose(pose: Pose) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Camera centre [3] in the object frame and world_from_cam rotation [3, 3], as the solver makes them."""
    centre = camera_centre(pose.azimuth, pose.elevation, pose.distance)
    return centre, rendering.look_at(torch.as_tensor(centre), torch.tensor(pose.theta, dtype=torch.float64)).numpy()


def shrink(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The image [H, W, 3] with blocks of factor x factor pixels averaged."""
    return np.asarray(Image.fromarray(image).reduce(factor))


def enlarge(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The image [H, W, 3] with `factor` times as many pixels on both axes, smoothly interpolated."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC))


# ---- a mesh over an image ----


def draw_mesh(
    image: NDArray[np.uint8], mesh: Mesh, pose: Pose, camera: MapCamera, opacity: float = OPACITY, supersample: int = 2
) -> NDArray[np.uint8]:
    """A shaded, semi-transparent mesh over an image [H, W, 3], with light edges; its front (-y) is orange.

    camera: in pixels of the image (`scale_camera`). supersample: samples per pixel and axis.
    Raises ValueError when the camera is for another size of picture.
    """
    if tuple(image.shape[:2]) != tuple(camera.map_hw):
        raise ValueError(f"the camera is for pictures of {camera.map_hw} pixels, the image has {image.shape[:2]}")
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
    share = (forward.max() - (bary * forward[face]).sum(-1)) / max(np.ptp(forward), 1e-12) / FRONT_SHARE
    front = np.clip(1.0 - share, 0.0, 1.0) ** 0.7
    colour = np.array(SKY) + front[..., None] * np.subtract(ORANGE, SKY)
    size = np.ptp(mesh.vertices, axis=0).max()
    line = _feature_lines(face, np.where(seen, z, 1e3 * size), normals, 0.04 * size)
    if rendering.find_cuboid(mesh) is not None:  # two triangles in a row make a cell
        line = np.maximum(line, 0.35 * _thicken(_differs(np.where(seen, face // 2, -1)), camera.map_hw[1] // 1300))
    return colour * shade[face][..., None], seen, np.where(seen, line, 0.0)


def normals_to_camera(corners: NDArray) -> NDArray[np.float64]:
    """Unit normals [F, 3] of triangles [F, 3, 3] in the camera's frame, turned so that all face the camera."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    return np.where((normal * corners.mean(1)).sum(1, keepdims=True) > 0, -normal, normal)


def _feature_lines(face: NDArray, depth: NDArray, normals: NDArray, jump: float) -> NDArray[np.float64]:
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
    object_score = (np.take_along_axis(np.asarray(scores), scene.faces[face], axis=1) * bary).sum(-1)
    labels = np.where(face >= 0, np.where(object_score > clutter, OBJECT, OCCLUDED), BACKGROUND)
    return labels.reshape(scene.camera.map_hw).astype(np.int8)


def colour_occluder_map(image: NDArray[np.uint8], labels: NDArray) -> NDArray[np.uint8]:
    """Labels [h, w] as colours over a grey version of the image [H, W, 3]; occluded cells are hatched besides.

    Raises ValueError when the image is not a whole number of pixels per cell.
    """
    cell = image.shape[0] // labels.shape[0]
    if (labels.shape[0] * cell, labels.shape[1] * cell) != tuple(image.shape[:2]):
        raise ValueError(f"an image of {image.shape[:2]} pixels does not divide into {labels.shape} square cells")
    label = labels.repeat(cell, 0).repeat(cell, 1)
    grey = image @ np.array([0.299, 0.587, 0.114])
    opacity = LABEL_OPACITY[label][..., None]
    picture = (1.0 - opacity) * (70.0 + 0.7 * grey[..., None]) + opacity * LABEL_COLOURS[label]
    row, col = np.indices(label.shape)
    hatch = (label == OCCLUDED) & ((row + col) % cell < max(1, cell // 8))
    picture[hatch] *= 0.45
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


def losses_of(scene: Scene, target: Target, poses: Sequence[Pose], renderer: str = "numba") -> NDArray[np.float64]:
    """Loss [N] of one image (a target of B = 1, on the CPU) in each of N poses."""
    cameras = [camera_of_pose(pose) for pose in poses]
    centre, rotation = (torch.as_tensor(np.stack(part)) for part in zip(*cameras, strict=True))
    table = rendering.render_table(scene, centre, rotation, renderer)
    return rendering.compare_table(table, target, renderer)[0].numpy()


def loss_scans(
    scene: Scene, target: Target, pose: Pose, truth: Sequence[float], renderer: str = "numba", points: int = 121
) -> list[Scan]:
    """Loss along azimuth (a full turn and more), elevation and theta (60 degrees either way or more) around a pose.

    target: of one image (B = 1), on the CPU. truth [3]: the annotated angles in radians; every scan reaches past them.
    """
    scans = []
    for i, (name, reach) in enumerate(zip(SCAN_NAMES, (1.1 * math.pi, math.pi / 3, math.pi / 3), strict=True)):
        true = near_turn(truth[i], pose[i])
        reach = max(reach, abs(true - pose[i]) + 0.1)
        angles = pose[i] + np.linspace(-reach, reach, points | 1)  # odd, so that the prediction is one of them
        if name == "elevation":
            angles = angles[abs(angles) <= max(math.pi / 2, abs(pose[i]))]
        losses = losses_of(scene, target, [pose._replace(**{name: float(a)}) for a in angles], renderer)
        at = int(abs(angles - pose[i]).argmin())
        scans.append(Scan(name, angles, losses, pose[i], float(losses[at]), true))
    return scans


# ---- figures ----


class Panel(NamedTuple):
    """An image [H, W, 3] with a small title."""

    title: str
    image: NDArray[np.uint8]


def result_figure(
    heading: str, details: str, remark: str, panels: Sequence[Panel], scans: Sequence[Scan], loss_at_truth: float
) -> Figure:
    """The figure of one image: panels in a row, scans of the loss below, legends; heading and details on top left, a
    remark on top right (texts of up to two lines).

    loss_at_truth: loss in the annotated angles at the predicted distance, drawn as a level in every scan.
    """
    from matplotlib.figure import Figure

    shape_hw = panels[0].image.shape
    height = min(4.6 * shape_hw[0] / shape_hw[1], 4.2)  # of a panel, in inches
    slot = max(height * shape_hw[1] / shape_hw[0], 3.4)
    width, total = 3 * slot + 1.1, height + 3.6
    figure = Figure((width, total), dpi=DPI)
    figure.text(0.3 / width, 1 - 0.16 / total, heading, fontsize=14, fontweight="bold", va="top")
    figure.text(0.3 / width, 1 - 0.46 / total, details, fontsize=10.5, va="top", color="0.25")
    figure.text(1 - 0.25 / width, 1 - 0.46 / total, remark, fontsize=9.5, va="top", ha="right", color="0.45")
    sides = dict(left=0.75 / width, right=1 - 0.25 / width)
    top = figure.add_gridspec(1, 3, **sides, top=1 - 1.1 / total, bottom=1 - (1.1 + height) / total, wspace=0.06)
    for i, panel in enumerate(panels):
        _show(figure.add_subplot(top[i]), panel)
    below = figure.add_gridspec(1, 3, **sides, top=1.85 / total, bottom=0.62 / total, wspace=0.06)
    first = None
    for i, scan in enumerate(scans):
        first = _plot_scan(figure.add_subplot(below[i], sharey=first), scan, loss_at_truth)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.45 / width, 2.0 / total), ncols=4, frameon=False,
                  fontsize=9.5, borderaxespad=0, columnspacing=1.4)  # fmt: skip
    figure.legend(handles=label_patches(), loc="lower right", bbox_to_anchor=(1 - 0.2 / width, 2.0 / total), ncols=3,
                  frameon=False, fontsize=9.5, borderaxespad=0, columnspacing=1.4)  # fmt: skip
    return figure


class Row(NamedTuple):
    """A line of a contact sheet: a caption, details in small print, the panels of one image, and its figure's file."""

    caption: str
    details: str
    panels: Sequence[Panel]
    file_name: str = ""


def contact_sheet(rows: Sequence[Row], title: str, slot: float = 2.9) -> Figure:
    """One line of panels per image under its caption; more than six images go into two, more than 24 into three blocks.

    The titles of the first image's panels head the columns. slot: width of a panel in inches.
    """
    from matplotlib.figure import Figure

    stacks = _stack_rows(rows, 1 if len(rows) <= 6 else 2 if len(rows) <= 24 else 3, slot)
    block_width = len(rows[0].panels) * slot + 0.3
    width = len(stacks) * block_width + 0.2
    total = max(sum(_height(row, slot) + CAPTION for row in stack) for stack in stacks) + 1.15
    figure = Figure((width, total), dpi=DPI)
    figure.text(0.25 / width, 1 - 0.16 / total, title, fontsize=13, fontweight="bold", va="top")
    figure.legend(handles=label_patches(), loc="lower left", bbox_to_anchor=(0.25 / width, 0.12 / total), ncols=3,
                  frameon=False, fontsize=9.5, borderaxespad=0, borderpad=0)  # fmt: skip
    for block, stack in enumerate(stacks):
        left, top = 0.25 + block * block_width, total - 0.72
        for k, row in enumerate(stack):
            _show_row(figure, row, (left, top), slot, with_titles=k == 0)
            top -= _height(row, slot) + CAPTION
    return figure


def _stack_rows(rows: Sequence[Row], blocks: int, slot: float) -> list[list[Row]]:
    """Rows in order, divided into blocks of about the same height."""
    heights = np.array([_height(row, slot) + CAPTION for row in rows])
    middles = np.cumsum(heights) - heights / 2
    block_of = (middles / heights.sum() * blocks).astype(int)
    return [[rows[k] for k in np.flatnonzero(block_of == b)] for b in sorted(set(block_of))]


def _show_row(figure: Figure, row: Row, left_top: tuple[float, float], slot: float, with_titles: bool) -> None:
    """Put a row into a figure, its top left corner and the width of its slots in inches."""
    (width, total), (left, top), height = figure.get_size_inches(), left_top, _height(row, slot)
    right, gap = left + len(row.panels) * slot - 0.06, 0.06
    figure.text(left / width, (top - 0.22) / total, row.caption, fontsize=9.5, fontweight="bold")
    figure.text(right / width, (top - 0.22) / total, row.details, fontsize=8.5, color="0.3", ha="right")
    for i, panel in enumerate(row.panels):
        x = left + i * slot
        axes = figure.add_axes((x / width, (top - 0.27 - height) / total, (slot - gap) / width, height / total))
        _show(axes, Panel("", panel.image))
        if with_titles:
            middle = (x + (slot - gap) / 2) / width
            figure.text(middle, (top + 0.03) / total, panel.title, fontsize=10, ha="center", color="0.3")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all, with the same bytes for the same content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def label_patches() -> list:
    """Legend entries of an occluder map."""
    from matplotlib.patches import Patch

    hatches = ("", "", "////")
    return [
        Patch(facecolor=colour / 255, edgecolor="0.2", hatch=hatch, label=name)
        for name, colour, hatch in zip(LABEL_NAMES, LABEL_COLOURS, hatches, strict=True)
    ]


def _height(row: Row, slot: float) -> float:
    """Height in inches of the panels of a row in slots of a width; tall images get less than the whole width."""
    height, width = row.panels[0].image.shape[:2]
    return min((slot - 0.06) * height / width, 0.9 * slot)


def _show(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.image)
    axes.set_title(panel.title, fontsize=10.5, pad=4)
    axes.set_axis_off()


def _plot_scan(axes: Axes, scan: Scan, loss_at_truth: float) -> Axes:
    """A curve with the prediction and the annotation marked; azimuth ticks are written modulo 360 degrees."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    blue, green = (np.array(c) / 255 for c in (BLUE, GREEN))
    axes.plot(np.rad2deg(scan.angles), scan.losses, color="0.25", lw=1.6)
    axes.axvline(np.rad2deg(scan.at), color=blue, lw=1.4)
    axes.plot(np.rad2deg(scan.at), scan.loss, "o", color=blue, ms=6, label="prediction")
    axes.axvline(np.rad2deg(scan.truth), color=green, lw=1.6, ls="--", label="annotation")
    axes.axhline(loss_at_truth, color=green, lw=1.1, ls=":", label="loss in the annotated rotation")
    axes.set_xlabel(f"{scan.name} (deg)", fontsize=10)
    axes.set_xlim(*np.rad2deg(scan.angles[[0, -1]]))
    axes.xaxis.set_major_locator(MultipleLocator(60 if np.ptp(scan.angles) > math.pi else 20))
    if scan.name == "azimuth":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda degrees, _: f"{degrees % 360:.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=9, labelleft=axes.get_subplotspec().is_first_col())
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel("loss", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
