"""Films of a pose optimisation: the choice of iterates, the frames, and the file."""

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

# Frames and length of a film, and how long its last frame stays, in seconds.
FRAMES = 30
SECONDS = 4.0
LAST_SECONDS = 1.5
FRAME_DPI = 80


def film_steps(path: NDArray, frames: int = FRAMES) -> list[int]:
    """Choose the iterates that a film shows, the first and the last among them.

    path [S, 4]: camera centre and theta of every iterate. The chosen ones are about evenly spaced
    in how far the camera has turned, so that the fast beginning gets enough pictures.
    """
    # Rotation of the camera from one iterate to the next.
    azimuth, elevation, _ = spherical_from_centre(path[:, :3])
    rotation = pascal_cam_from_object(azimuth, elevation, path[:, 3])
    turned = geodesic_distance(rotation[1:], rotation[:-1])
    # Steps without any rotation also take a little of the film.
    progress = turned + 0.2 * turned.sum() / len(path) + 1e-9
    travelled = np.concatenate([[0.0], np.cumsum(progress)])
    # Iterates nearest to marks at equal distances.
    marks = np.linspace(0.0, travelled[-1], min(frames, len(path)))
    nearest = {int(abs(travelled - mark).argmin()) for mark in marks}
    return sorted(nearest | {0, len(path) - 1})


def pose_of_iterate(iterate: NDArray) -> Pose:
    """Convert a row [4] of the solver's path, camera centre and theta, to a pose."""
    azimuth, elevation, distance = spherical_from_centre(iterate[:3])
    return Pose(float(azimuth), float(elevation), float(iterate[3]), float(distance))


def save_film(path: Path, frames: Sequence[NDArray[np.uint8]], seconds: float = SECONDS) -> None:
    """Write pictures [H, W, 3] of one size as an animated GIF that repeats.

    The last picture stays for `LAST_SECONDS`. Raises ValueError when there are no frames.
    """
    if not len(frames):
        raise ValueError("a film needs at least one picture")
    # All frames share the palette of the first, a middle and the last one, or colours would
    # flicker.
    montage = Image.fromarray(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]]))
    palette = montage.quantize(256, Image.Quantize.MEDIANCUT)
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame)
        pictures.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))
    # GIF counts in milliseconds.
    durations = [round(1000 * seconds / len(frames))] * len(frames)
    durations[-1] = round(1000 * LAST_SECONDS)
    animation = dict(save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pictures[0].save(file, "GIF", optimize=False, **animation)


# ---- frames --------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """The content of one frame.

    overlay, occluders [H, W, 3]: the mesh over the image, and the occluder map. offsets [3]: how
    far azimuth, elevation and theta are from their final values, in radians.
    """

    caption: str
    overlay: NDArray[np.uint8]
    occluders: NDArray[np.uint8]
    offsets: Sequence[float]
    loss: float


@dataclass(frozen=True)
class _Layout:
    """The places of the four parts of a frame, in inches.

    They are two rows of two for wide images, and one row of four for tall ones. slot, height: width
    and height of a picture.
    """

    wide: bool
    slot: float
    height: float

    @classmethod
    def of(cls, image: NDArray) -> _Layout:
        """Lay out the frames of a film about an image [H, W, 3]."""
        wide = image.shape[1] >= image.shape[0]
        slot = 4.6 if wide else 2.5
        return cls(wide, slot, slot * image.shape[0] / image.shape[1])

    @property
    def lower(self) -> float:
        """The height of the lower row, or of the only one."""
        return max(self.height, 1.9)

    @property
    def size(self) -> tuple[float, float]:
        """The width and the height of the frame."""
        if self.wide:
            return 2 * self.slot + 0.6, self.height + (self.lower + 0.3) + 1.6
        return 4 * self.slot + 1.5, self.height + 1.6

    @property
    def corners(self) -> list[tuple[float, float]]:
        """The lower left corners of the three pictures."""
        if not self.wide:
            return [(0.2 + k * (self.slot + 0.1), 0.65) for k in range(3)]
        above = self.lower + 0.95
        below = 0.65 + self.lower - self.height
        return [(0.2, above), (0.3 + self.slot, above), (0.2, below)]

    @property
    def landscape_left(self) -> float:
        """The left edge of the axes of the loss."""
        return 0.75 + (self.slot if self.wide else 3 * (self.slot + 0.1))


def film_frames(
    heading: str, image: NDArray[np.uint8], scans: Sequence[Scan], moments: Sequence[Moment]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [h, w, 3] of the optimisation of one image [H, W, 3].

    A frame shows the input, the mesh, the occluder map, and the loss landscape around the final
    pose, on which three points mark the current angles.
    """
    # Texts, axes, curves and legends, which are the same in all frames.
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
    # The rest is changed in place, which is faster than a new figure for each frame.
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
    """Show the input, the pose and the occluder map; later frames set the data of the results."""
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
    """Show the loss landscape up to the highest loss of the film; returns a point per angle."""
    left = layout.landscape_left
    axes = sheet.axes(left, 0.8, sheet.width - left - 0.2, layout.lower - 0.15)
    plot_landscape(axes, scans)
    axes.set_title(LANDSCAPE_TITLE, fontsize=10, pad=3)
    # The film's highest loss may lie above all curves.
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, highest + 0.02))
    points = []
    for scan in scans:
        look: dict[str, Any] = dict(color=scan_colour(scan.name), mec="black", ms=8, zorder=6)
        points += axes.plot([], [], "o", **look)
    return points
