"""Films of a pose optimisation: which of its iterates they show, their frames, and the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.geometry.cameras import (
    Pose,
    geodesic_distance,
    pascal_cam_from_object,
    spherical_from_centre,
)
from neural_mesh.pictures import canvas
from neural_mesh.pictures.canvas import Sheet
from neural_mesh.pictures.figures import OCCLUDER_TITLE, label_keys
from neural_mesh.pictures.landscape import Scan
from neural_mesh.pictures.loss_curves import (
    LANDSCAPE_TITLE,
    annotation_key,
    curve_keys,
    plot_landscape,
    scan_colour,
)
from neural_mesh.storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

FRAMES = 30
SECONDS = 4.0
LAST_SECONDS = 1.5  # how long the last picture stays
FRAME_DPI = 80


def film_steps(path: NDArray, frames: int = FRAMES) -> list[int]:
    """Which iterates of a path [S, 4] (camera centre, theta) a film shows: about evenly spaced
    along the turning of the camera, so that the fast beginning gets as many pictures as the slow
    end. First and last are among them.
    """
    # How far the camera turns from one iterate to the next.
    azimuth, elevation, _ = spherical_from_centre(path[:, :3])
    rotation = pascal_cam_from_object(azimuth, elevation, path[:, 3])
    turned = geodesic_distance(rotation[1:], rotation[:-1])
    # How far it has come; standing still takes a little of the film, too.
    progress = turned + 0.2 * turned.sum() / len(path) + 1e-9
    travelled = np.concatenate([[0.0], np.cumsum(progress)])
    # The iterates nearest to marks at equal distances.
    marks = np.linspace(0.0, travelled[-1], min(frames, len(path)))
    nearest = {int(abs(travelled - mark).argmin()) for mark in marks}
    return sorted(nearest | {0, len(path) - 1})


def pose_of_iterate(iterate: NDArray) -> Pose:
    """A row (camera centre, theta) [4] of the solver's path as a pose."""
    azimuth, elevation, distance = spherical_from_centre(iterate[:3])
    return Pose(float(azimuth), float(elevation), float(iterate[3]), float(distance))


def save_film(path: Path, frames: Sequence[NDArray[np.uint8]], seconds: float = SECONDS) -> None:
    """Write pictures [H, W, 3] of one size as an animated GIF that repeats; the last stays for
    `LAST_SECONDS`.

    All frames share one palette, made from the first, a middle and the last one. Raises ValueError
    without frames.
    """
    if not len(frames):
        raise ValueError("a film needs at least one picture")
    # A palette for all, so that colours do not flicker.
    montage = Image.fromarray(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]]))
    palette = montage.quantize(256, Image.Quantize.MEDIANCUT)
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame)
        pictures.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))
    # In milliseconds.
    durations = [round(1000 * seconds / len(frames))] * len(frames)
    durations[-1] = round(1000 * LAST_SECONDS)
    animation = dict(save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pictures[0].save(file, "GIF", optimize=False, **animation)


# ---- frames --------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """One picture of a film: what stands above it, the overlay and the occluder map [H, W, 3], how
    far each of the three angles is from the final one [3] in radians, and the loss.
    """

    caption: str
    overlay: NDArray[np.uint8]
    occluders: NDArray[np.uint8]
    offsets: Sequence[float]
    loss: float


@dataclass(frozen=True)
class _Layout:
    """Where the four parts of a frame stand, in inches: two rows of two, or one row of four for
    tall images.
    """

    wide: bool
    slot: float
    height: float  # of a picture

    @classmethod
    def of(cls, image: NDArray) -> _Layout:
        wide = image.shape[1] >= image.shape[0]
        slot = 4.6 if wide else 2.5
        return cls(wide, slot, slot * image.shape[0] / image.shape[1])

    @property
    def lower(self) -> float:
        """Height of the lower row, or of the only one."""
        return max(self.height, 1.9)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the frame."""
        if self.wide:
            return 2 * self.slot + 0.6, self.height + (self.lower + 0.3) + 1.6
        return 4 * self.slot + 1.5, self.height + 1.6

    @property
    def corners(self) -> list[tuple[float, float]]:
        """Lower left corners of the three pictures."""
        if not self.wide:
            return [(0.2 + k * (self.slot + 0.1), 0.65) for k in range(3)]
        above = self.lower + 0.95
        below = 0.65 + self.lower - self.height
        return [(0.2, above), (0.3 + self.slot, above), (0.2, below)]

    @property
    def landscape_left(self) -> float:
        """Left edge of the axes of the loss."""
        return 0.75 + (self.slot if self.wide else 3 * (self.slot + 0.1))


def film_frames(
    heading: str, image: NDArray[np.uint8], scans: Sequence[Scan], moments: Sequence[Moment]
) -> Iterator[NDArray[np.uint8]]:
    """Pictures [h, w, 3] of the optimisation of one image: input, mesh, occluder map, and the loss
    landscape around the final pose, on which three points show where the three angles are.
    """
    # What stands still: texts, axes, curves and legends.
    layout = _Layout.of(image)
    sheet = canvas.new_sheet(*layout.size, dpi=FRAME_DPI)
    sheet.heading(heading, 0.2, 0.12, fontsize=12, fontweight="bold")
    caption = sheet.heading("", 0.2, 0.36, fontsize=10.5, color="0.25")
    first = moments[0]
    _, overlay, occluders = _show_pictures(sheet, layout, (image, first.overlay, first.occluders))
    highest = max(moment.loss for moment in moments)
    points = _show_landscape(sheet, layout, scans, highest)
    style: dict[str, Any] = dict(fontsize=9, borderpad=0)
    sheet.left_legend(label_keys(), 0.2, 0.12, **style)
    keys = [*curve_keys(), annotation_key()]
    sheet.right_legend(keys, 0.1, 0.12, **style, columnspacing=1.0)
    # What moves is changed in place, which is faster than a figure for each frame.
    for moment in moments:
        caption.set_text(moment.caption)
        overlay.set_data(moment.overlay)
        occluders.set_data(moment.occluders)
        for point, offset in zip(points, moment.offsets, strict=True):
            point.set_data([np.rad2deg(offset)], [moment.loss])
        yield canvas.picture_of(sheet.figure)


def _show_pictures(
    sheet: Sheet, layout: _Layout, pictures: Sequence[NDArray[np.uint8]]
) -> list[AxesImage]:
    """Show the input, the pose and the occluder map; returns what their data can be set in."""
    shown = []
    titles = ("input", "pose", OCCLUDER_TITLE)
    for title, picture, corner in zip(titles, pictures, layout.corners, strict=True):
        axes = sheet.axes(*corner, layout.slot, layout.height)
        shown.append(axes.imshow(picture))
        axes.set_title(title, fontsize=10, pad=3)
        axes.set_axis_off()
    return shown


def _show_landscape(
    sheet: Sheet, layout: _Layout, scans: Sequence[Scan], highest: float
) -> list[Line2D]:
    """Show the loss landscape, up to the highest loss of the film; returns one point for each
    angle.
    """
    left = layout.landscape_left
    axes = sheet.axes(left, 0.8, sheet.width - left - 0.2, layout.lower - 0.15)
    plot_landscape(axes, scans)
    axes.set_title(LANDSCAPE_TITLE, fontsize=10, pad=3)
    # Room for the film's highest loss, which may lie above all curves.
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, highest + 0.02))
    points = []
    for scan in scans:
        look: dict[str, Any] = dict(color=scan_colour(scan.name), mec="black", ms=8, zorder=6)
        points += axes.plot([], [], "o", **look)
    return points
