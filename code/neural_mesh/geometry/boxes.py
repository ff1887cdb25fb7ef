"""Where the crop lies in the image: the reference's integer boxes, and the exact affine map.

A box is (row0, row1, col0, col1, height, width) as stored: half-open pixel ranges, and the size of the image it lies in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

MOST_WINDOW_PIXELS = (
    2**26
)  # of the original under a crop, larger ones would need gigabytes (a distance below 0.5, mostly)
FALLBACK_SIDE = (
    224  # px of the shorter side of the box where the distance is not positive (reference)
)


@dataclass(frozen=True)
class CropGeometry:
    """How one original image becomes its crop.

    scale_rc: pixels of the crop per pixel of the original, per axis. offset_rc: crop = scale * original + offset is
    the true map of points. box, box_ori, box_obj: as the reference stores them. resized_hw: size of the whole image
    at the crop's scale.
    """

    geometry: str  # paper, exact
    scale: float
    offset_rc: NDArray[np.float64]
    resized_hw: tuple[int, int]
    crop_hw: tuple[int, int]
    corner_rc: NDArray[np.float64]  # the crop's first pixel in the resized image
    box: NDArray[np.float64]
    box_ori: NDArray[np.float64]
    box_obj: NDArray[np.float64]

    def map_points(self, points_rc: ArrayLike) -> NDArray:
        """Original (row, col) [..., 2] -> crop (row, col).

        paper: stretches `box_ori` onto `box_obj`, which is the true map only where neither box was clipped.
        """
        points_rc = np.asarray(points_rc, dtype=np.float64)
        if self.geometry == "exact":
            return self.map_points_exactly(points_rc)
        low, high = self.box_ori[[0, 2]], self.box_ori[[1, 3]]
        low_obj, high_obj = self.box_obj[[0, 2]], self.box_obj[[1, 3]]
        return (points_rc - low) * (high_obj - low_obj) / np.maximum(high - low, 1e-9) + low_obj

    def map_points_exactly(self, points_rc: ArrayLike) -> NDArray:
        """Original (row, col) [..., 2] -> crop (row, col) by the affine map that the pixels follow."""
        return np.asarray(points_rc, dtype=np.float64) * self.scale + self.offset_rc


def object_scale(distance: float, bbox_xyxy: ArrayLike) -> float:
    """Crop pixels per original pixel: distance / 5, or by the box where the distance is not positive (reference)."""
    if distance > 0:
        return 200.0 * distance / 1000.0
    x0, y0, x1, y1 = (int(v) for v in bbox_xyxy)
    shorter = min(x1 - x0, y1 - y0)
    if shorter <= 0:
        raise ValueError(
            f"distance {distance} and an empty box {tuple(bbox_xyxy)}: no scale can be found"
        )
    return FALLBACK_SIDE / shorter


def crop_geometry(
    geometry: str,
    image_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    bbox_xyxy: ArrayLike,
    principal_xy: ArrayLike,
    distance: float,
) -> CropGeometry:
    """Place the crop around the principal point, at the scale that puts the object at distance 5.

    geometry: `paper` truncates the resized size, the principal point and the boxes to whole pixels as the reference
    does; `exact` keeps all digits. image_hw, bbox (x0, y0, x1, y1) and principal (x, y): original pixels.
    """
    if geometry not in ("paper", "exact"):
        raise ValueError(f"GEOMETRY is {geometry!r}, it can be paper or exact")
    scale = object_scale(distance, bbox_xyxy)
    crop = np.array(crop_hw)
    principal_rc = np.asarray(principal_xy, dtype=np.float64)[::-1]
    bbox_rc = np.asarray(bbox_xyxy, dtype=np.float64)[[1, 3, 0, 2]]
    if geometry == "paper":
        return _paper_geometry(scale, image_hw, crop, bbox_rc, principal_rc)
    if crop.prod() / scale**2 > MOST_WINDOW_PIXELS:
        raise ValueError(
            f"at scale {scale:.4g} a crop would cover {crop.prod() / scale**2:.0f} pixels of the original"
        )
    corner = principal_rc * scale - crop / 2
    box_ori = np.clip(bbox_rc, 0, np.repeat(image_hw, 2))
    box_obj = np.clip(bbox_rc * scale - np.repeat(corner, 2), 0, np.repeat(crop, 2))
    resized = tuple(max(1, round(side * scale)) for side in image_hw)
    window = np.stack([corner, corner + crop], axis=1).ravel()
    return CropGeometry(
        "exact",
        scale,
        -corner,
        resized,
        tuple(crop_hw),
        corner,
        np.concatenate([window, resized]),
        np.concatenate([box_ori, image_hw]),
        np.concatenate([box_obj, crop]),
    )


def _paper_geometry(
    scale: float, image_hw: tuple[int, int], crop: NDArray, bbox_rc: NDArray, principal_rc: NDArray
) -> CropGeometry:
    resized = np.array([int(side * scale) for side in image_hw])
    if (resized < 1).any():
        raise ValueError(
            f"at scale {scale:.4g} nothing is left of an image of {image_hw[0]} x {image_hw[1]} pixels"
        )
    box_int = np.trunc(bbox_rc)
    box_ori = np.clip(box_int, 0, np.repeat(image_hw, 2))
    centre = np.trunc(principal_rc * scale)
    half = crop // 2
    padding_before = np.maximum(half - centre, 0)
    padding_after = np.maximum(half + centre - resized, 0)
    box_scaled = np.trunc(box_int * scale) + np.repeat(padding_before, 2)
    first = centre + padding_before - half
    window = np.stack([first, first + crop], axis=1).ravel()
    box_obj = np.clip(box_scaled - np.repeat(first, 2), 0, np.repeat(crop, 2))
    corner = centre - half
    return CropGeometry(
        "paper",
        scale,
        -corner,
        tuple(int(v) for v in resized),
        tuple(int(v) for v in crop),
        corner,
        np.concatenate([window, resized + padding_before + padding_after]),
        np.concatenate([box_ori, image_hw]),
        np.concatenate([box_obj, crop]),
    )


def crop_image(image: NDArray[np.uint8], geometry: CropGeometry) -> NDArray[np.uint8]:
    """Cut the crop [H, W(, 3)] out of the original image [h, w(, 3)], black outside of it.

    paper: bilinear between pixel centres, no smoothing when shrinking (what the official checkpoints have seen).
    exact: the window keeps its fractions of a pixel, and shrinking averages.
    """
    if geometry.geometry == "exact":
        return _crop_exactly(image, geometry)
    rows, inside_rows = _sample_axis(geometry, image.shape[0], 0)
    cols, inside_cols = _sample_axis(geometry, image.shape[1], 1)
    out = np.zeros((*geometry.crop_hw, *image.shape[2:]), np.uint8)
    if inside_rows.any() and inside_cols.any():
        values = _interpolate(_interpolate(image.astype(np.float32), rows, 0), cols, 1)
        out[np.ix_(inside_rows, inside_cols)] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return out


def _crop_exactly(image: NDArray[np.uint8], geometry: CropGeometry) -> NDArray[np.uint8]:
    height, width = geometry.crop_hw
    top, left = geometry.corner_rc / geometry.scale
    window = np.array([left, top, left + width / geometry.scale, top + height / geometry.scale])
    outer = np.array([*np.floor(window[:2]), *np.ceil(window[2:])]).astype(int)
    padded = Image.fromarray(image).crop(tuple(outer))  # black outside the image
    inner = window - np.tile(outer[:2], 2)
    return np.array(padded.resize((width, height), Image.Resampling.BILINEAR, box=tuple(inner)))


def _sample_axis(geometry: CropGeometry, length: int, axis: int) -> tuple[NDArray, NDArray]:
    """Original coordinates (pixel centre = whole number) of the crop pixels inside the image, and which those are."""
    resized = geometry.resized_hw[axis]
    at = geometry.corner_rc[axis] + np.arange(geometry.crop_hw[axis])
    inside = (at >= 0) & (at < resized)
    return np.clip((at[inside] + 0.5) * length / resized - 0.5, 0, length - 1), inside


def _interpolate(values: NDArray, at: NDArray, axis: int) -> NDArray:
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    weight = (
        (at - low)
        .astype(values.dtype)
        .reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    )
    return values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
