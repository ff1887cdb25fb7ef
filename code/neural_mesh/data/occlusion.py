"""Occluders put over an object until a level of OccludedPASCAL3D is reached, and the textures that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.settings import BACKGROUND_RATIO, FOREGROUND_RATIO
from neural_mesh.storage.files import atomic_path, write_text
from neural_mesh.storage.layout import RawOccluded
from neural_mesh.storage.pictures import write_jpeg

MARGIN = (
    0.02  # ratios are aimed at this far inside their bounds, so that rounding cannot leave them
)
JPEG_QUALITY = 92
ROUNDS = 24  # fresh starts before giving up
MOST_OCCLUDERS = 8
CUTOUT_SIZE = 160  # side of a procedural cut-out in pixels
SMALLEST_SIDE = 8  # of a placed occluder, in pixels
BISECTIONS = 7  # of its size


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
        foreground, background = (
            int(parts[0].removeprefix("FGL")),
            int(parts[1].removeprefix("BGL")),
        )
        return FOREGROUND_RATIO[foreground], BACKGROUND_RATIO[background]
    except (IndexError, ValueError, KeyError):
        raise ValueError(
            f"{level!r} is not an occlusion level; levels are FGLi_BGLj with i, j = 1, 2, 3"
        ) from None


def covered_ratios(occluder_mask: NDArray, object_mask: NDArray) -> tuple[float, float]:
    """Share of the object that is covered, and share of the rest of the image; masks are boolean [H, W]."""
    on_object = int(np.count_nonzero(occluder_mask & object_mask))
    object_size = int(np.count_nonzero(object_mask))
    elsewhere = int(np.count_nonzero(occluder_mask)) - on_object
    return on_object / max(object_size, 1), elsewhere / max(object_mask.size - object_size, 1)


def occlude(
    image: NDArray,
    object_mask: NDArray,
    level: str,
    generator: Generator,
    cutouts: Sequence[NDArray] = (),
) -> Occluded:
    """Cover an object and its surroundings to the degree that `level` asks for (Occluded PASCAL3D+, Wang et al. 2020).

    First one or two occluders centred on the object, scaled until the wanted share of it is covered; then occluders
    beside it until the background is covered too. Both shares are measured on the object mask, where the published
    generator measures some on the bounding box.

    image: uint8 [H, W, 3]. object_mask: bool [H, W]. cutouts: RGBA uint8 [h, w, 4] to use half of the time, e.g.
    other objects; the rest are textured shapes. Raises ValueError when the mask is empty, its shape is not the
    image's, or the shares cannot be reached.
    """
    object_mask = np.asarray(object_mask, bool)
    if object_mask.shape != image.shape[:2]:
        raise ValueError(
            f"object mask {object_mask.shape} and image {image.shape[:2]} differ in (height, width)"
        )
    if not object_mask.any():
        raise ValueError("the object mask is empty, there is nothing to occlude")
    bounds, best = level_bounds(level), (np.inf, (0.0, 0.0))
    for _ in range(ROUNDS):
        canvas = _Canvas(object_mask, generator, cutouts)
        wanted = tuple(generator.uniform(low + MARGIN, high - MARGIN) for low, high in bounds)
        canvas.cover_object(wanted[0], most_background=bounds[1][1] - MARGIN)
        canvas.cover_background(wanted[1], most_foreground=bounds[0][1] - MARGIN / 2)
        result = canvas.composite(image)
        ratios = covered_ratios(result.occluder_mask, object_mask)
        if all(low <= ratio < high for ratio, (low, high) in zip(ratios, bounds)):
            return result
        best = min(best, (sum(abs(r - w) for r, w in zip(ratios, wanted)), ratios))
    foreground, background = best[1]
    raise ValueError(
        f"occlusion level {level} not reached in {ROUNDS} attempts: "
        f"object {foreground:.0%} covered, wanted {_percent(bounds[0])}; "
        f"background {background:.0%} covered, wanted {_percent(bounds[1])}; "
        f"the object fills {object_mask.mean():.0%} of the image"
    )


def write_image(path: Path, image: NDArray) -> None:
    """Write an occluded picture, uint8 [H, W, 3]."""
    write_jpeg(path, image, JPEG_QUALITY)


def write_occluded(
    raw: RawOccluded,
    category: str,
    level: str,
    name: str,
    result: Occluded,
    object_mask: NDArray,
    bbox_xyxy: Sequence[float],
    source: str,
) -> None:
    """Write an occluded picture and its annotation with the keys of OccludedPASCAL3D; boxes are y0 y1 x0 x1 H W.

    object_mask: uint8 [H, W], above 10 is object. source: which clean picture it was made from.
    """
    x0, y0, x1, y1 = bbox_xyxy
    write_image(raw.image(category, level, name), result.image)
    with (
        atomic_path(raw.annotation(category, level, name)) as temporary,
        temporary.open("wb") as file,
    ):
        np.savez_compressed(
            file,
            source=np.array(source),
            mask=object_mask,
            occluder_mask=result.occluder_mask,
            box=np.array([y0, y1, x0, x1, *object_mask.shape]),
            occluder_box=result.occluder_boxes,
            category=np.array(category),
            occluder_level=np.array(level),
        )


def is_written(raw: RawOccluded, category: str, level: str, name: str) -> bool:
    """Whether an occluded picture and its annotation are there."""
    return (
        raw.image(category, level, name).is_file()
        and raw.annotation(category, level, name).is_file()
    )


def write_occluded_lists(raw: RawOccluded, category: str, levels: Sequence[str]) -> int:
    """Write the lists of the occluded pictures that there are. Returns how many that is."""
    total = 0
    for level in levels:
        names = raw.names(category, level)
        write_text(
            raw.root / "lists" / f"{category}{level}.txt",
            "".join(f"{name}.JPEG\n" for name in names),
        )
        total += len(names)
    return total


def _percent(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.0%} to {bounds[1]:.0%}"


class _Canvas:
    """Occluders placed so far; `covered` is what they hide."""

    def __init__(self, object_mask: NDArray, generator: Generator, cutouts: Sequence[NDArray]):
        self.object_mask, self.generator, self.cutouts = object_mask, generator, cutouts
        self.covered = np.zeros_like(object_mask)
        self.object_size = int(np.count_nonzero(object_mask))
        self.shares = (0.0, 0.0)  # covered_ratios before the occluder that is being placed
        self.placed: list[
            tuple[NDArray, tuple[int, int]]
        ] = []  # RGBA patch, (row, column) of its upper left corner

    def cover_object(self, wanted: float, most_background: float) -> None:
        """Put occluders on the object until the share `wanted` of it is covered."""
        pieces = int(self.generator.integers(1, 3))
        for piece in range(1, MOST_OCCLUDERS):
            now = self._measure()[0]
            if now >= wanted - MARGIN / 2:
                return
            goal = (
                wanted
                if piece >= pieces
                else now + (wanted - now) * self.generator.uniform(0.4, 0.7)
            )
            self._place(self.object_mask & ~self.covered, goal, 0, most_background)

    def cover_background(self, wanted: float, most_foreground: float) -> None:
        """Put occluders beside the object until the share `wanted` of the background is covered."""
        for _ in range(MOST_OCCLUDERS):
            now = self._measure()[1]
            if now >= wanted - MARGIN / 2:
                return
            goal = now + (wanted - now) * self.generator.uniform(0.5, 1.3)
            self._place(~self.object_mask & ~self.covered, min(goal, wanted), 1, most_foreground)

    def _measure(self) -> tuple[float, float]:
        self.shares = covered_ratios(self.covered, self.object_mask)
        return self.shares

    def _place(self, where: NDArray, goal: float, which: int, most_other: float) -> None:
        """Add one occluder centred in `where`, as large as ratio number `which` needs and the other ratio allows."""
        cutout = self._next_cutout()
        spots = np.flatnonzero(where)
        if not len(spots):
            return
        centre_rc = divmod(int(spots[self.generator.integers(len(spots))]), where.shape[1])
        low, high = SMALLEST_SIDE, 1.6 * max(where.shape)
        for _ in range(BISECTIONS):
            size = np.sqrt(low * high)
            ratios = self._ratios_with(cutout, size, centre_rc)
            low, high = (
                (low, size)
                if ratios[which] > goal or ratios[1 - which] > most_other
                else (size, high)
            )
        if low > SMALLEST_SIDE:
            patch = _resized(cutout, low)
            corner_rc = _corner(patch, centre_rc)
            there, here = _overlap(self.covered.shape, patch.shape, corner_rc)
            self.covered[there] |= patch[here][..., 3] > 127
            self.placed.append((patch, corner_rc))

    def _ratios_with(
        self, cutout: NDArray, size: float, centre_rc: tuple[int, int]
    ) -> tuple[float, float]:
        """`covered_ratios` after adding `cutout` with its longer side at `size` pixels; looks only where it falls."""
        alpha = _resized(cutout[..., 3], size)
        there, here = _overlap(self.covered.shape, alpha.shape, _corner(alpha, centre_rc))
        new, target = (alpha[here] > 127) & ~self.covered[there], self.object_mask[there]
        on_object = int(np.count_nonzero(new & target))
        elsewhere = int(np.count_nonzero(new)) - on_object
        return self.shares[0] + on_object / self.object_size, self.shares[1] + elsewhere / max(
            self.covered.size - self.object_size, 1
        )

    def _next_cutout(self) -> NDArray:
        if len(self.cutouts) and self.generator.random() < 0.5:
            return self.cutouts[int(self.generator.integers(len(self.cutouts)))]
        return procedural_cutout(self.generator)

    def composite(self, image: NDArray) -> Occluded:
        """Paste everything over `image`; later occluders are on top."""
        result = image.copy()
        size, boxes = self.object_mask.shape, []
        for patch, corner_rc in self.placed:
            there, here = _overlap(size, patch.shape, corner_rc)
            alpha = patch[here][..., 3:].astype(np.float32) / 255
            alpha = np.clip(
                (alpha - 0.3) / 0.4, 0, 1
            )  # a soft edge of about a pixel around alpha = 0.5
            result[there] = np.rint(
                result[there] * (1 - alpha) + patch[here][..., :3] * alpha
            ).astype(np.uint8)
            boxes.append((there[0].start, there[0].stop, there[1].start, there[1].stop, *size))
        return Occluded(result, self.covered, np.array(boxes, dtype=np.float64).reshape(-1, 6))


def _resized(cutout: NDArray, size: float) -> NDArray[np.uint8]:
    """A cut-out [h, w] or [h, w, 4] with its longer side at `size` pixels."""
    scale = size / max(cutout.shape[:2])
    h, w = (max(1, int(round(n * scale))) for n in cutout.shape[:2])
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(cutout)).resize((w, h), Image.Resampling.BILINEAR)
    )


def _corner(patch: NDArray, centre_rc: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the upper left corner of a patch around a centre."""
    return centre_rc[0] - patch.shape[0] // 2, centre_rc[1] - patch.shape[1] // 2


def _overlap(
    size: tuple, patch: tuple, corner_rc: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of an image of `size` that a patch at `corner_rc` meets, and that part of the patch."""
    there, here = [], []
    for n, p, at in zip(size, patch, corner_rc):
        first, last = min(max(at, 0), n), min(max(at + p, 0), n)
        there.append(slice(first, last))
        here.append(slice(first - at, last - at))
    return tuple(there), tuple(here)


# ---- textures -------------------------------------------------------------------------------------------------------


def fractal_noise(
    generator: Generator, size_hw: tuple[int, int], coarsest: int = 3, octaves: int = 4
) -> NDArray[np.float32]:
    """Smooth noise [H, W] about 0 with standard deviation near 0.3; the coarsest octave has `coarsest` cells."""
    height, width = size_hw
    total = np.zeros(size_hw, np.float32)
    for octave in range(octaves):
        rows = coarsest * 2**octave
        columns = max(2, round(rows * width / height))
        cells = generator.standard_normal((rows + 1, columns + 1)).astype(np.float32)
        fine = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(fine) * 0.5 ** (octave + 1)
    return total


def random_colour(generator: Generator) -> NDArray[np.float32]:
    """An RGB colour in [0, 255], most often muted."""
    grey, tint = generator.uniform(30, 225), generator.uniform(-1, 1, 3)
    return np.clip(
        grey + tint * generator.choice([12.0, 35.0, 80.0], p=[0.45, 0.35, 0.2]), 5, 250
    ).astype(np.float32)


def procedural_texture(generator: Generator, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """A textured picture [H, W, 3] in [0, 255]: noise, stripes or checks between two or three colours."""
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
    angle, period = generator.uniform(0, np.pi), generator.uniform(0.05, 0.3) * size_hw[0]
    warp = fractal_noise(generator, size_hw, 2, 5)
    along = (rows * np.sin(angle) + columns * np.cos(angle)) / period + warp * generator.uniform(
        0, 0.5
    )
    across = (columns * np.sin(angle) - rows * np.cos(angle)) / period
    kind = generator.choice(["noise", "stripes", "checks", "noise"])
    if kind == "noise":
        weight = np.clip(
            0.5 + 1.3 * fractal_noise(generator, size_hw, int(generator.integers(2, 9)), 4), 0, 1
        )
    else:
        weight = np.sin(2 * np.pi * along) * (np.sin(2 * np.pi * across) if kind == "checks" else 1)
        weight = np.clip(0.5 + weight * generator.uniform(0.6, 4), 0, 1)
    first, second, third = (random_colour(generator) for _ in range(3))
    colour = first + (second - first) * weight[..., None]
    colour += (third - colour) * np.clip(warp * 0.8, 0, 0.6)[..., None]
    return np.clip(colour + 14 * generator.standard_normal(size_hw)[..., None], 0, 255).astype(
        np.float32
    )


def procedural_cutout(generator: Generator) -> NDArray[np.uint8]:
    """A shaded, textured shape (blob, polygon or bar) as RGBA [CUTOUT_SIZE, CUTOUT_SIZE, 4]."""
    size = CUTOUT_SIZE
    colour = procedural_texture(generator, (size, size))
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]
    turn = generator.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    kind = generator.choice(["blob", "blob", "polygon", "bar"])
    if kind == "bar":
        half, power = generator.uniform(0.22, 0.6), generator.uniform(4, 12)
        inside = 1 - ((np.abs(u) / 0.95) ** power + (np.abs(v) / half) ** power) ** (1 / power)
    else:
        angle = np.arctan2(v, u)
        inside = _radius(kind, angle, generator) - np.hypot(u, v / generator.uniform(0.55, 1))
    alpha = np.clip(0.5 + inside * size / 4, 0, 1)
    light = generator.uniform(-1, 1, 2)
    shade = 1 + 0.30 * (light[0] * x + light[1] * y) - 0.35 * np.clip(1 - inside / 0.35, 0, 1) ** 2
    rgb = np.clip(colour * shade[..., None], 0, 255)
    return np.concatenate([rgb, 255 * alpha[..., None]], -1).round().astype(np.uint8)


def _radius(kind: str, angle: NDArray, generator: Generator) -> NDArray:
    """Distance of the outline from the centre at each angle, in (0.2, 1)."""
    if kind == "polygon":
        corners = np.sort(generator.uniform(-np.pi, np.pi, int(generator.integers(4, 9))))
        radii = generator.uniform(0.55, 0.97, len(corners))
        return np.interp(angle, corners, radii, period=2 * np.pi)
    waves = sum(
        generator.normal(0, 0.16 / k) * np.cos(k * angle + generator.uniform(0, 2 * np.pi))
        for k in range(2, 7)
    )
    return np.clip(0.72 + waves, 0.25, 0.98)
