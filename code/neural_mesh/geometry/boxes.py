"""Where a crop lies in its image: the reference's integer boxes, and the exact affine map.

A box is stored as (row0, row1, col0, col1, height, width): half-open pixel ranges, and the size of
the image it lies in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

# Pixels of the original under a crop at most; more would need gigabytes. They come from distances
# below about 0.5.
MOST_WINDOW_PIXELS = 2**26
# Pixels of the crop that the shorter side of the box gets where the distance is not positive
# (reference).
FALLBACK_SIDE = 224


@dataclass(frozen=True)
class CropPlacement:
    """Where a crop lies in its original image, and at which scale.

    geometry: the setting GEOMETRY, `paper` or `exact`. scale: pixels of the crop per pixel of the
    original. offset_rc: the true map of points is crop = scale * original + offset. resized_hw:
    size of the whole image at the crop's scale. crop_hw: size of the crop. corner_rc: the crop's
    first pixel in the resized image. box, box_ori, box_obj: the window in the padded image, the
    annotated box in the original, and that box in the crop, all as the reference stores them.
    """

    geometry: str
    scale: float
    offset_rc: NDArray[np.float64]
    resized_hw: tuple[int, int]
    crop_hw: tuple[int, int]
    corner_rc: NDArray[np.float64]
    box: NDArray[np.float64]
    box_ori: NDArray[np.float64]
    box_obj: NDArray[np.float64]

    def map_points(self, points_rc: ArrayLike) -> NDArray:
        """Map points of the original (row, col) [..., 2] to the crop.

        GEOMETRY=paper stretches `box_ori` onto `box_obj`, which is the true map only where neither
        box was clipped.
        """
        points_rc = np.asarray(points_rc, dtype=np.float64)
        if self.geometry == "exact":
            return self.map_points_exactly(points_rc)
        low = self.box_ori[[0, 2]]
        high = self.box_ori[[1, 3]]
        low_obj = self.box_obj[[0, 2]]
        high_obj = self.box_obj[[1, 3]]
        stretched = (points_rc - low) * (high_obj - low_obj) / np.maximum(high - low, 1e-9)
        return stretched + low_obj

    def map_points_exactly(self, points_rc: ArrayLike) -> NDArray:
        """Map points of the original (row, col) [..., 2] to the crop as its pixels are mapped."""
        return np.asarray(points_rc, dtype=np.float64) * self.scale + self.offset_rc


# ---- placing a crop ----


def object_scale(distance: float, bbox_xyxy: ArrayLike) -> float:
    """Crop pixels per original pixel: distance / 5, so that the object looks 5 CAD units away.

    Where the distance is not positive, the box decides (reference). Raises ValueError where that
    box is empty.
    """
    if distance > 0:
        # The reference multiplies and divides; distance / 5 may differ in the last bit, which is
        # enough to move a truncated box by a pixel.
        return 200.0 * distance / 1000.0
    x0, y0, x1, y1 = (int(v) for v in bbox_xyxy)
    shorter = min(x1 - x0, y1 - y0)
    if shorter <= 0:
        raise ValueError(
            f"distance {distance} and an empty box {tuple(bbox_xyxy)}: no scale can be found"
        )
    return FALLBACK_SIDE / shorter


def place_crop(
    geometry: str,
    image_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    bbox_xyxy: ArrayLike,
    principal_xy: ArrayLike,
    distance: float,
) -> CropPlacement:
    """Place the crop around the principal point, at the scale that puts the object at distance 5.

    geometry: `paper` truncates the resized size, the principal point and the boxes to whole pixels
    as the reference does; `exact` keeps all digits. image_hw, bbox_xyxy (x0, y0, x1, y1) and
    principal_xy: in pixels of the original. crop_hw: in pixels of the crop. distance: CAD units.
    Raises ValueError for another geometry, or where nothing or too much of the image is left.
    """
    if geometry not in ("paper", "exact"):
        raise ValueError(f"GEOMETRY is {geometry!r}, it can be paper or exact")
    scale = object_scale(distance, bbox_xyxy)
    principal_rc = np.asarray(principal_xy, dtype=np.float64)[::-1]
    bbox_rc = np.asarray(bbox_xyxy, dtype=np.float64)[[1, 3, 0, 2]]
    place = _place_as_paper if geometry == "paper" else _place_exactly
    return place(scale, image_hw, crop_hw, bbox_rc, principal_rc)


def _place_exactly(
    scale: float,
    image_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    bbox_rc: NDArray,
    principal_rc: NDArray,
) -> CropPlacement:
    """Place a crop with all digits. bbox_rc: (row0, row1, col0, col1)."""
    crop = np.array(crop_hw)
    window_pixels = crop.prod() / scale**2
    if window_pixels > MOST_WINDOW_PIXELS:
        raise ValueError(
            f"at scale {scale:.4g} a crop would cover {window_pixels:.0f} pixels of the original"
        )
    corner = principal_rc * scale - crop / 2
    resized = tuple(max(1, round(side * scale)) for side in image_hw)
    window = np.stack([corner, corner + crop], axis=1).ravel()
    bbox_in_crop = bbox_rc * scale - np.repeat(corner, 2)
    return CropPlacement(
        geometry="exact",
        scale=scale,
        offset_rc=-corner,
        resized_hw=resized,
        crop_hw=tuple(crop_hw),
        corner_rc=corner,
        box=np.concatenate([window, resized]),
        box_ori=_clipped_box(bbox_rc, image_hw),
        box_obj=_clipped_box(bbox_in_crop, crop),
    )


def _place_as_paper(
    scale: float,
    image_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    bbox_rc: NDArray,
    principal_rc: NDArray,
) -> CropPlacement:
    """Place a crop as the reference does. bbox_rc: (row0, row1, col0, col1)."""
    crop = np.array(crop_hw)
    resized = np.array([int(side * scale) for side in image_hw])
    if (resized < 1).any():
        height, width = image_hw
        raise ValueError(
            f"at scale {scale:.4g} nothing is left of an image of {height} x {width} pixels"
        )
    # The reference pads the resized image until it contains the crop around the principal point.
    centre = np.trunc(principal_rc * scale)
    half = crop // 2
    padding_before = np.maximum(half - centre, 0)
    padding_after = np.maximum(half + centre - resized, 0)
    padded = resized + padding_before + padding_after
    first = centre + padding_before - half
    window = np.stack([first, first + crop], axis=1).ravel()

    # The reference truncates boxes before and after it scales them.
    box_int = np.trunc(bbox_rc)
    box_scaled = np.trunc(box_int * scale) + np.repeat(padding_before, 2)
    corner = centre - half
    return CropPlacement(
        geometry="paper",
        scale=scale,
        offset_rc=-corner,
        resized_hw=tuple(int(v) for v in resized),
        crop_hw=tuple(int(v) for v in crop),
        corner_rc=corner,
        box=np.concatenate([window, padded]),
        box_ori=_clipped_box(box_int, image_hw),
        box_obj=_clipped_box(box_scaled - np.repeat(first, 2), crop),
    )


def _clipped_box(box_rc: NDArray, size_hw: ArrayLike) -> NDArray[np.float64]:
    """A box (row0, row1, col0, col1) clipped to an image, followed by the image's size: [6]."""
    return np.concatenate([np.clip(box_rc, 0, np.repeat(size_hw, 2)), size_hw])


# ---- cutting it out ----


def crop_image(image: NDArray[np.uint8], placement: CropPlacement) -> NDArray[np.uint8]:
    """Cut the crop [H, W(, 3)] out of the original image [h, w(, 3)]; it is black outside of it.

    GEOMETRY=paper interpolates bilinearly between pixel centres and does not smooth when it
    shrinks, as for the crops on which the official checkpoints were trained. GEOMETRY=exact keeps
    the window's fractions of a pixel, and averages when it shrinks.
    """
    if placement.geometry == "exact":
        return _crop_exactly(image, placement)
    rows, inside_rows = _sample_axis(placement, image.shape[0], 0)
    cols, inside_cols = _sample_axis(placement, image.shape[1], 1)
    crop = np.zeros((*placement.crop_hw, *image.shape[2:]), np.uint8)
    if inside_rows.any() and inside_cols.any():
        values = _interpolate(image.astype(np.float32), rows, 0)
        values = _interpolate(values, cols, 1)
        inside = np.ix_(inside_rows, inside_cols)
        crop[inside] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return crop


def _crop_exactly(image: NDArray[np.uint8], placement: CropPlacement) -> NDArray[np.uint8]:
    height, width = placement.crop_hw
    scale = placement.scale
    top, left = placement.corner_rc / scale
    window = np.array([left, top, left + width / scale, top + height / scale])
    # Pillow pads with black where the window reaches beyond the image.
    outer = np.array([*np.floor(window[:2]), *np.ceil(window[2:])]).astype(int)
    padded = Image.fromarray(image).crop(tuple(outer))
    inner = window - np.tile(outer[:2], 2)
    return np.array(padded.resize((width, height), Image.Resampling.BILINEAR, box=tuple(inner)))


def _sample_axis(placement: CropPlacement, length: int, axis: int) -> tuple[NDArray, NDArray]:
    """Positions in the original of a crop's pixels along an axis.

    length: size of the original along the axis. Returns the positions [m] of those pixels that lie
    in the image (a pixel's centre is a whole number), and a mask [n] that says which pixels those
    are.
    """
    resized = placement.resized_hw[axis]
    at = placement.corner_rc[axis] + np.arange(placement.crop_hw[axis])
    inside = (at >= 0) & (at < resized)
    positions = (at[inside] + 0.5) * length / resized - 0.5
    return np.clip(positions, 0, length - 1), inside


def _interpolate(values: NDArray, at: NDArray, axis: int) -> NDArray:
    """Interpolate along an axis at positions `at` [n]; a pixel's centre is a whole number."""
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    weight_shape = [1] * values.ndim
    weight_shape[axis] = -1
    weight = (at - low).astype(values.dtype).reshape(weight_shape)
    return values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
