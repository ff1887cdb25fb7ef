"""Occluders of many families for training images: RECIPE=robust.

They are unlike those that accuracy under occlusion is measured on, `data.occlusion`'s: those are
blobs, polygons and bars of a two-coloured texture. Here the fillings are pieces of pictures, grids
of colours and plain colours; the outlines are straight, round or ragged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.settings import FEATURE_STRIDE

NONE = 0.2  # share of the images that stay without occluders
MOST_OCCLUDERS = 5
ON_OBJECT = 0.75  # share of the occluders that are centred on the object
SIDE = (0.12, 0.7)  # of an occluder, as a share of the object's extent, per axis
MAGNIFICATION = (0.4, 4.0)  # of a piece of a picture
SMALLEST_PIECE = 12  # side of a piece before it is magnified, pixels
# Shares of the fillings; a cut-out is asked for where there are any.
PICTURE_SHARE = 0.65
GRID_SHARE = 0.2


class Occluder(NamedTuple):
    """A filling and where it covers what is below."""

    colour: NDArray[np.float32]  # [h, w, 3] in [0, 255]
    alpha: NDArray[np.float32]  # [h, w] in [0, 1]


class Donors(NamedTuple):
    """Pictures of the user's that occluders are made of.

    pictures: uint8 [h, w, 3]. cutouts: RGBA uint8 [h, w, 4], objects cut out of pictures.
    """

    pictures: tuple[NDArray[np.uint8], ...] = ()
    cutouts: tuple[NDArray[np.uint8], ...] = ()

    def piece(self, random: Generator) -> NDArray[np.uint8]:
        """One of the pictures."""
        return self.pictures[int(random.integers(len(self.pictures)))]

    @property
    def pieces(self) -> list[PieceSource]:
        """Where pieces of pictures come from."""
        # Twice as often as from the training images, whose borders are alike.
        return [self.piece, self.piece] if self.pictures else []


NO_DONORS = Donors()


def strip_beside(image: NDArray[np.uint8], points_rc: NDArray) -> NDArray[np.uint8] | None:
    """The largest of the four strips of an image [H, W, 3] beside the extent of an object.

    points_rc [N, 2]: (row, col) of the object. Returns None where all are narrow.
    """
    height, width = image.shape[:2]
    top, left = np.clip(np.floor(points_rc.min(0)).astype(int), 0, (height, width))
    bottom, right = np.clip(np.ceil(points_rc.max(0)).astype(int), 0, (height, width))
    strips = [image[:top], image[bottom:], image[:, :left], image[:, right:]]
    strips = [strip for strip in strips if min(strip.shape[:2]) >= SMALLEST_PIECE]
    return max(strips, key=np.size, default=None)


# Gives a piece of a picture [h, w, 3] uint8, None where it has found none.
PieceSource = Callable[[Generator], "NDArray[np.uint8] | None"]


def paste_occluders(
    image: NDArray[np.uint8],
    around_rc: NDArray,
    pieces: Sequence[PieceSource],
    cutouts: Sequence[NDArray[np.uint8]],
    random: Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Cover parts of an image [H, W, 3] by up to MOST_OCCLUDERS occluders.

    around_rc [N, 2]: points (row, col) of the object. pieces: where pieces of pictures come from.
    cutouts: RGBA uint8 [h, w, 4], objects cut out of pictures. Returns the image, and which pixels
    are covered at least by half [H, W].
    """
    covered = np.zeros(image.shape[:2], bool)
    if random.random() < NONE:
        return image, covered
    image = image.copy()
    extent = np.maximum(around_rc.max(0) - around_rc.min(0), FEATURE_STRIDE)
    for _ in range(int(random.integers(1, MOST_OCCLUDERS + 1))):
        centre = around_rc[random.integers(len(around_rc))]
        if random.random() > ON_OBJECT:
            centre = random.uniform(size=2) * image.shape[:2]
        # Small ones are as likely as large ones.
        share = np.exp(random.uniform(np.log(SIDE[0]), np.log(SIDE[1]), 2))
        size_hw = np.maximum(extent * share, FEATURE_STRIDE).astype(int)
        occluder = _draw(size_hw, pieces, cutouts, random)
        _paste(image, covered, occluder, centre.astype(int) - size_hw // 2)
    return image, covered


def _paste(image: NDArray, covered: NDArray, occluder: Occluder, corner_rc: NDArray) -> None:
    """Blend an occluder into an image, its upper left corner at `corner_rc`; both change."""
    first = np.maximum(corner_rc, 0)
    last = np.minimum(corner_rc + occluder.alpha.shape, covered.shape)
    if (last <= first).any():
        return
    on_image = tuple(slice(a, b) for a, b in zip(first, last))
    on_occluder = tuple(slice(a, b) for a, b in zip(first - corner_rc, last - corner_rc))
    alpha = occluder.alpha[on_occluder]
    below = image[on_image].astype(np.float32)
    blended = below + (occluder.colour[on_occluder] - below) * alpha[..., None]
    image[on_image] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
    covered[on_image] |= alpha >= 0.5


def _draw(
    size_hw: NDArray,
    pieces: Sequence[PieceSource],
    cutouts: Sequence[NDArray[np.uint8]],
    random: Generator,
) -> Occluder:
    """An occluder of a size, of a family at random."""
    if len(cutouts) and random.random() < 0.4:
        return _cutout(size_hw, cutouts[int(random.integers(len(cutouts)))], random)
    return Occluder(_filling(size_hw, pieces, random), _outline(size_hw, random))


def _cutout(size_hw: NDArray, cutout: NDArray[np.uint8], random: Generator) -> Occluder:
    """An object cut out of a picture, mirrored half of the time."""
    if random.random() < 0.5:
        cutout = cutout[:, ::-1]
    resized = _resized(cutout, size_hw, Image.Resampling.BILINEAR).astype(np.float32)
    return Occluder(resized[..., :3], (resized[..., 3] / 255).astype(np.float32))


# ---- fillings ------------------------------------------------------------------------------------


def _filling(
    size_hw: NDArray, pieces: Sequence[PieceSource], random: Generator
) -> NDArray[np.float32]:
    """Colours [h, w, 3] in [0, 255]: of a picture, of a grid, or plain."""
    family = random.random()
    if pieces and family < PICTURE_SHARE:
        piece = pieces[int(random.integers(len(pieces)))](random)
        if piece is not None:
            return _magnified(piece, size_hw, random)
    if family < PICTURE_SHARE + GRID_SHARE:
        cells = random.uniform(0, 255, (*random.integers(1, 9, 2), 3)).astype(np.uint8)
        smooth = Image.Resampling.BICUBIC if random.random() < 0.6 else Image.Resampling.NEAREST
        colour = _resized(cells, size_hw, smooth).astype(np.float32)
    else:
        colour = np.empty((*size_hw, 3), np.float32)
        colour[:] = random.uniform(0, 255, 3)
        colour += random.uniform(-40, 40) * np.linspace(-1, 1, size_hw[0])[:, None, None]
    grain = random.choice([0.0, 4.0, 12.0])
    if grain:
        colour += random.normal(0, grain, (*size_hw, 1)).astype(np.float32)
    return colour


def _magnified(piece: NDArray[np.uint8], size_hw: NDArray, random: Generator) -> NDArray:
    """A part of a piece at a magnification at random, with brightness changed a little."""
    magnification = np.exp(random.uniform(*np.log(MAGNIFICATION)))
    wanted = np.maximum(size_hw / magnification, SMALLEST_PIECE)
    part_hw = np.minimum(wanted, piece.shape[:2]).astype(int)
    row, col = random.integers(0, np.array(piece.shape[:2]) - part_hw + 1)
    part = piece[row : row + part_hw[0], col : col + part_hw[1]]
    if random.random() < 0.5:
        part = part[:, ::-1]
    colour = _resized(part, size_hw, Image.Resampling.BILINEAR).astype(np.float32)
    return (colour - 128) * random.uniform(0.7, 1.2) + 128 + random.uniform(-25, 25)


def _resized(picture: NDArray, size_hw: NDArray, filter_: Image.Resampling) -> NDArray:
    height, width = (int(n) for n in size_hw)
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), filter_)
    return np.asarray(resized)


# ---- outlines ------------------------------------------------------------------------------------


def _outline(size_hw: NDArray, random: Generator) -> NDArray[np.float32]:
    """Alpha [h, w]: a turned box, a cut, an ellipse or a ragged patch, with an edge of a pixel."""
    height, width = size_hw
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    kind = random.choice(["box", "turned", "ellipse", "ragged", "ragged"])
    if kind == "box":
        distance = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.01)
    elif kind == "turned":
        angle = random.uniform(0, np.pi)
        u = x * np.cos(angle) + y * np.sin(angle)
        v = y * np.cos(angle) - x * np.sin(angle)
        sides = random.uniform(0.25, 1, 2)
        distance = np.maximum(np.abs(u) / sides[0], np.abs(v) / sides[1])
    else:
        power = random.choice([2.0, 3.0])
        distance = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
        if kind == "ragged":
            cells = random.normal(0, 1, random.integers(3, 12, 2)).astype(np.float32)
            noise = _resized(cells, size_hw, Image.Resampling.BICUBIC)
            distance = distance + random.uniform(0.15, 0.5) * noise
    steepness = min(height, width) / 2
    return np.clip(0.5 + (1 - distance) * steepness, 0, 1).astype(np.float32)
