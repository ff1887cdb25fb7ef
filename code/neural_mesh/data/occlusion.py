"""Occluders put over an object, up to a level of Occluded PASCAL3D+ (Wang et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.data.textures import procedural_cutout
from neural_mesh.settings import BACKGROUND_RATIO, FOREGROUND_RATIO

# Ratios are aimed at this far inside their bounds, so that rounding cannot leave them.
MARGIN = 0.02
ROUNDS = 24  # fresh starts before giving up
MOST_OCCLUDERS = 8
SMALLEST_SIDE = 8  # of a placed occluder, in pixels
BISECTIONS = 7  # of its size

ON_OBJECT = 0  # index of the two ratios
ON_BACKGROUND = 1


@dataclass(frozen=True)
class Occluded:
    """An image with occluders."""

    image: NDArray[np.uint8]  # [H, W, 3]
    occluder_mask: NDArray[np.bool_]  # [H, W]
    occluder_boxes: NDArray[np.float64]  # [N, 6] as (y0, y1, x0, x1, H, W), one row per occluder


def level_bounds(level: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """`FGL2_BGL2` -> (low, high) of the covered share of the object, and of the rest of the image.

    Raises ValueError for a name that is not a level.
    """
    parts = level.split("_")
    try:
        foreground = int(parts[0].removeprefix("FGL"))
        background = int(parts[1].removeprefix("BGL"))
        return FOREGROUND_RATIO[foreground], BACKGROUND_RATIO[background]
    except (IndexError, ValueError, KeyError):
        raise ValueError(
            f"{level!r} is not an occlusion level; levels are FGLi_BGLj with i, j = 1, 2, 3"
        ) from None


def covered_ratios(occluder_mask: NDArray, object_mask: NDArray) -> tuple[float, float]:
    """Share of the object that is covered, and share of the rest of the image.

    Masks are boolean [H, W].
    """
    on_object = int(np.count_nonzero(occluder_mask & object_mask))
    object_size = int(np.count_nonzero(object_mask))
    elsewhere = int(np.count_nonzero(occluder_mask)) - on_object
    rest = object_mask.size - object_size
    return on_object / max(object_size, 1), elsewhere / max(rest, 1)


def occlude(
    image: NDArray,
    object_mask: NDArray,
    level: str,
    generator: Generator,
    cutouts: Sequence[NDArray] = (),
) -> Occluded:
    """Cover an object and its surroundings to the degree that `level` asks for.

    First one or two occluders centred on the object, scaled until the wanted share of it is
    covered; then occluders beside it until the background is covered too. Both shares are measured
    on the object mask, where the published generator measures some on the bounding box.

    image: uint8 [H, W, 3]. object_mask: bool [H, W]. cutouts: RGBA uint8 [h, w, 4] to use half of
    the time, e.g. other objects; the rest are textured shapes. Raises ValueError when the mask is
    empty, its shape is not the image's, or the shares cannot be reached.
    """
    object_mask = np.asarray(object_mask, bool)
    if object_mask.shape != image.shape[:2]:
        raise ValueError(
            f"object mask {object_mask.shape} and image {image.shape[:2]} differ in (height, width)"
        )
    if not object_mask.any():
        raise ValueError("the object mask is empty, there is nothing to occlude")
    bounds = level_bounds(level)
    (_, most_object), (_, most_background) = bounds
    best = (np.inf, (0.0, 0.0))  # distance from the goals, and the ratios
    for _ in range(ROUNDS):
        canvas = _Canvas(object_mask, generator, cutouts)
        goals = tuple(generator.uniform(low + MARGIN, high - MARGIN) for low, high in bounds)
        canvas.cover_object(goals[ON_OBJECT], most_background - MARGIN)
        canvas.cover_background(goals[ON_BACKGROUND], most_object - MARGIN / 2)
        result = canvas.composite(image)
        ratios = covered_ratios(result.occluder_mask, object_mask)
        if all(low <= ratio < high for ratio, (low, high) in zip(ratios, bounds)):
            return result
        distance = sum(abs(ratio - goal) for ratio, goal in zip(ratios, goals))
        best = min(best, (distance, ratios))
    foreground, background = best[1]
    raise ValueError(
        f"occlusion level {level} not reached in {ROUNDS} attempts: "
        f"object {foreground:.0%} covered, wanted {_percent(bounds[ON_OBJECT])}; "
        f"background {background:.0%} covered, wanted {_percent(bounds[ON_BACKGROUND])}; "
        f"the object fills {object_mask.mean():.0%} of the image"
    )


def _percent(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.0%} to {bounds[1]:.0%}"


class Overlap(NamedTuple):
    """Where an image and a patch meet: the rows and columns of either."""

    in_image: tuple[slice, slice]
    in_patch: tuple[slice, slice]


class _Canvas:
    """Occluders placed so far; `covered` is what they hide."""

    def __init__(self, object_mask: NDArray, generator: Generator, cutouts: Sequence[NDArray]):
        self.object_mask = object_mask
        self.generator = generator
        self.cutouts = cutouts
        self.covered = np.zeros_like(object_mask)
        self.object_size = int(np.count_nonzero(object_mask))
        # `covered_ratios` before the occluder that is being placed.
        self.ratios = (0.0, 0.0)
        # RGBA patch, and (row, column) of its upper left corner.
        self.placed: list[tuple[NDArray, tuple[int, int]]] = []

    def cover_object(self, goal: float, most_background: float) -> None:
        """Put occluders on the object until the share `goal` of it is covered."""
        pieces = int(self.generator.integers(1, 3))
        for piece in range(1, MOST_OCCLUDERS):
            now = self._measure()[ON_OBJECT]
            if now >= goal - MARGIN / 2:
                return
            next_goal = goal
            if piece < pieces:
                next_goal = now + (goal - now) * self.generator.uniform(0.4, 0.7)
            self._place(self.object_mask & ~self.covered, next_goal, ON_OBJECT, most_background)

    def cover_background(self, goal: float, most_object: float) -> None:
        """Put occluders beside the object until the share `goal` of the background is covered."""
        for _ in range(MOST_OCCLUDERS):
            now = self._measure()[ON_BACKGROUND]
            if now >= goal - MARGIN / 2:
                return
            next_goal = min(now + (goal - now) * self.generator.uniform(0.5, 1.3), goal)
            self._place(~self.object_mask & ~self.covered, next_goal, ON_BACKGROUND, most_object)

    def _measure(self) -> tuple[float, float]:
        self.ratios = covered_ratios(self.covered, self.object_mask)
        return self.ratios

    def _place(self, region: NDArray, goal: float, which: int, most_other: float) -> None:
        """Add one occluder centred in a region [H, W].

        It is as large as ratio number `which` needs to reach its goal and the other ratio allows.
        """
        cutout = self._next_cutout()
        spots = np.flatnonzero(region)
        if not len(spots):
            return
        spot = int(spots[self.generator.integers(len(spots))])
        centre_rc = divmod(spot, region.shape[1])
        low = SMALLEST_SIDE
        high = 1.6 * max(region.shape)
        for _ in range(BISECTIONS):
            side = np.sqrt(low * high)
            ratios = self._ratios_with(cutout, side, centre_rc)
            if ratios[which] > goal or ratios[1 - which] > most_other:
                high = side
            else:
                low = side
        if low > SMALLEST_SIDE:
            patch = _resized(cutout, low)
            corner_rc = _corner(patch, centre_rc)
            overlap = _overlap(self.covered.shape, patch.shape, corner_rc)
            self.covered[overlap.in_image] |= patch[overlap.in_patch][..., 3] > 127
            self.placed.append((patch, corner_rc))

    def _ratios_with(
        self, cutout: NDArray, side: float, centre_rc: tuple[int, int]
    ) -> tuple[float, float]:
        """`covered_ratios` after adding `cutout`, its longer side `side` pixels long.

        Looks only where the cut-out falls.
        """
        alpha = _resized(cutout[..., 3], side)
        overlap = _overlap(self.covered.shape, alpha.shape, _corner(alpha, centre_rc))
        new = (alpha[overlap.in_patch] > 127) & ~self.covered[overlap.in_image]
        new_on_object = int(np.count_nonzero(new & self.object_mask[overlap.in_image]))
        new_elsewhere = int(np.count_nonzero(new)) - new_on_object
        background_size = max(self.covered.size - self.object_size, 1)
        on_object, on_background = self.ratios
        return (
            on_object + new_on_object / self.object_size,
            on_background + new_elsewhere / background_size,
        )

    def _next_cutout(self) -> NDArray:
        if len(self.cutouts) and self.generator.random() < 0.5:
            return self.cutouts[int(self.generator.integers(len(self.cutouts)))]
        return procedural_cutout(self.generator)

    def composite(self, image: NDArray) -> Occluded:
        """Paste everything over `image`; later occluders are on top."""
        result = image.copy()
        size = self.object_mask.shape
        boxes = []
        for patch, corner_rc in self.placed:
            overlap = _overlap(size, patch.shape, corner_rc)
            alpha = patch[overlap.in_patch][..., 3:].astype(np.float32) / 255
            # A soft edge of about a pixel around alpha = 0.5.
            alpha = np.clip((alpha - 0.3) / 0.4, 0, 1)
            below = result[overlap.in_image] * (1 - alpha)
            blended = below + patch[overlap.in_patch][..., :3] * alpha
            result[overlap.in_image] = np.rint(blended).astype(np.uint8)
            rows, columns = overlap.in_image
            boxes.append((rows.start, rows.stop, columns.start, columns.stop, *size))
        boxes = np.array(boxes, dtype=np.float64).reshape(-1, 6)
        return Occluded(result, self.covered, boxes)


def _resized(cutout: NDArray, side: float) -> NDArray[np.uint8]:
    """A cut-out [h, w] or [h, w, 4] with its longer side at `side` pixels."""
    scale = side / max(cutout.shape[:2])
    height, width = (max(1, int(round(n * scale))) for n in cutout.shape[:2])
    picture = Image.fromarray(np.ascontiguousarray(cutout))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _corner(patch: NDArray, centre_rc: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the upper left corner of a patch around a centre."""
    return centre_rc[0] - patch.shape[0] // 2, centre_rc[1] - patch.shape[1] // 2


def _overlap(image_hw: tuple, patch_shape: tuple, corner_rc: tuple[int, int]) -> Overlap:
    """Where an image meets a patch [h, w, ...] whose upper left corner lies at `corner_rc`."""
    in_image = []
    in_patch = []
    for side, patch_side, corner in zip(image_hw, patch_shape, corner_rc):
        first = min(max(corner, 0), side)
        last = min(max(corner + patch_side, 0), side)
        in_image.append(slice(first, last))
        in_patch.append(slice(first - corner, last - corner))
    return Overlap(tuple(in_image), tuple(in_patch))
