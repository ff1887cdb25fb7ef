"""One image of a raw set -> its crop and annotation, or the reason why there is none."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.categories import category_settings
from neural_mesh.data.crops import JPEG_QUALITY, is_prepared, placement_fields, write_crop
from neural_mesh.data.occluded_pascal3d import read_occluder_mask
from neural_mesh.data.pascal3d import Record, UnusableRecord, read_record
from neural_mesh.geometry.boxes import CropPlacement, crop_image, place_crop
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D
from neural_mesh.storage.npz_files import load_numbers
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.records import Annotation

MAX_DETAIL = 500  # letters of what is told about an image that is left out


@dataclass(frozen=True)
class CroppedSubset:
    """One category of a set at one occlusion level (empty: none), and how it is cropped.

    cads: how many CAD models the category has. rules: for records, see `read_record`.
    """

    raw: RawPascal3D
    prepared: PreparedSet
    category: str
    geometry: str
    cads: int
    level: str = ""
    occluded: RawOccluded | None = None
    rules: str = "strict"

    @property
    def name(self) -> str:
        """What it is called among the folders of the prepared set."""
        return self.category + self.level

    @property
    def crop_hw(self) -> tuple[int, int]:
        return category_settings(self.category).crop_hw

    @property
    def jpeg_quality(self) -> int:
        return JPEG_QUALITY[self.geometry]

    def source_image(self, name: str) -> Path:
        """The whole picture of an image."""
        if self.occluded is not None:
            return self.occluded.image(self.category, self.level, name)
        return self.raw.image(self.category, name)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: `new`, `kept`, or why it was skipped.

    detail: of a skipped one, what was found. class_name: of a new one, as the annotation writes it.
    """

    name: str
    what: str
    cad_index: int = 0
    objects: int = 1
    detail: str = ""
    class_name: str = ""

    @property
    def is_usable(self) -> bool:
        return self.what in ("new", "kept")

    @property
    def line(self) -> str:
        """For SKIPPED.txt: one line, whatever names and messages of others hold."""
        detail = " ".join(self.detail.split())[:MAX_DETAIL]
        line = f"{self.name}: {self.what}" + (f" ({detail})" if detail else "")
        # Names that are not UTF-8 hold surrogates, which cannot be written to a text file.
        return line.encode("utf-8", "backslashreplace").decode()


def prepare_image(subset: CroppedSubset, name: str) -> Outcome:
    """Crop one image and write its annotation."""
    annotation_path = subset.prepared.annotation(subset.name, name)
    if is_prepared(subset.prepared, subset.name, name):
        # One that something else has broken is made again.
        with suppress(ValueError):
            stored = load_numbers(annotation_path, ["cad_index"], ["objects"])
            return Outcome(name, "kept", int(stored["cad_index"]), int(stored.get("objects", 1)))
    # It may be of another crop; a kill below then leaves nothing that looks finished.
    annotation_path.unlink(missing_ok=True)
    try:
        crop, annotation, class_name = cropped(subset, name)
    except UnusableRecord as error:
        # One unusable image is counted with its reason; the others are still prepared.
        return Outcome(name, error.reason, detail=error.detail)
    write_crop(subset.prepared, subset.name, annotation, crop, subset.jpeg_quality)
    return Outcome(
        name, "new", annotation.cad_index, annotation.objects or 1, class_name=class_name
    )


def cropped(subset: CroppedSubset, name: str) -> tuple[NDArray[np.uint8], Annotation, str]:
    """The crop of one image, its annotation, and the class that the raw annotation gives.

    Raises UnusableRecord with the reason when there is none to be had.
    """
    source = subset.source_image(name)
    if not source.is_file():
        raise UnusableRecord("no such image", f"{source}, nor with another ending")
    # The annotation is read before the picture, which takes far longer to decode.
    record = _read_usable_record(subset, name)
    image = _read_image(source, record)
    mask = _read_occluder_mask(subset, name, record)
    try:
        # At a distance near 0 nothing is left of the image, or the crop covers gigabytes of it.
        placement = place_crop(
            subset.geometry,
            record.image_hw,
            subset.crop_hw,
            record.bbox_xyxy,
            record.pose.principal_xy,
            record.pose.distance,
        )
        crop = crop_image(image, placement)
        return crop, annotation_of(record, placement, mask), record.class_name
    except (ValueError, Image.DecompressionBombError, OverflowError) as error:
        raise UnusableRecord("no crop at that distance", f"{name}: {error}") from error


def _read_usable_record(subset: CroppedSubset, name: str) -> Record:
    path = subset.raw.annotation(subset.category, name)
    try:
        record = read_record(path, subset.category, subset.rules)
    except FileNotFoundError as error:
        raise UnusableRecord("no annotation", str(error)) from None
    # Later stages pick the mesh by this number.
    if not 1 <= record.cad_index <= subset.cads:
        detail = f"{name} has cad_index {record.cad_index} of {subset.cads}"
        raise UnusableRecord("no such CAD model", detail)
    return record


def _read_image(source: Path, record: Record) -> NDArray[np.uint8]:
    try:
        image = read_picture(source)
    except (ValueError, OSError) as error:
        raise UnusableRecord("unreadable image", str(error)) from error
    # In a picture of another size, boxes and key points would be in the wrong places.
    if image.shape[:2] != record.image_hw:
        detail = f"{source} is {image.shape[:2]}, not {record.image_hw}"
        raise UnusableRecord("image and annotation differ in size", detail)
    return image


def _read_occluder_mask(
    subset: CroppedSubset, name: str, record: Record
) -> NDArray[np.bool_] | None:
    if subset.occluded is None:
        return None
    try:
        mask = read_occluder_mask(subset.occluded, subset.category, subset.level, name)
    except (FileNotFoundError, ValueError) as error:
        raise UnusableRecord("no readable occluder mask", str(error)) from error
    if mask.shape != record.image_hw:
        path = subset.occluded.annotation(subset.category, subset.level, name)
        raise UnusableRecord("occluder mask of another size", f"{path} has {mask.shape}")
    return mask


def annotation_of(
    record: Record, placement: CropPlacement, occ_mask: NDArray[np.bool_] | None
) -> Annotation:
    """The annotation of a crop; key points hidden by the occluder count as not visible."""
    status = record.keypoint_status.copy()
    seen = status == 1
    if occ_mask is not None:
        covered = _covered(record.keypoints_xy, occ_mask)
        status[seen & covered] = 0
        seen &= ~covered
    # Points that are not seen are 0.
    points = placement.map_points(record.keypoints_xy[:, ::-1])
    height, width = record.image_hw
    return Annotation(
        name=record.name,
        cropped_kp_list=np.where(seen[:, None], points, 0.0),
        visible=status,
        pose=record.pose,
        focal=record.focal,
        viewport=record.viewport,
        height=height,
        width=width,
        cad_index=record.cad_index,
        bbox=record.bbox_xyxy,
        occ_mask=occ_mask,
        objects=record.objects if record.objects > 1 else None,
        **placement_fields(placement),
    )


def _covered(points_xy: NDArray, occ_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which points [K] of the original image lie under the occluder; none outside of the image."""
    cells = points_xy.astype(int)
    # A key point may lie beyond the border, where an index would wrap around or fail.
    inside = ((cells >= 0) & (cells < occ_mask.shape[::-1])).all(1)
    cols, rows = cells[inside].T
    covered = np.zeros(len(cells), bool)
    covered[inside] = occ_mask[rows, cols]
    return covered
