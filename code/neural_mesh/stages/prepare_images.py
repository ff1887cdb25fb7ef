"""Raw PASCAL3D+ (or its occluded twin) -> crops, annotations and lists of one set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.categories import CATEGORIES, category_settings
from neural_mesh.data.crops import (
    JPEG_QUALITY,
    crops_size,
    placement_fields,
    is_prepared,
    remove_half_written,
    write_crop,
)
from neural_mesh.data.occluded_pascal3d import read_occluder_mask
from neural_mesh.data.pascal3d import Record, UnusableRecord, read_record
from neural_mesh.data.splits import Split, read_split, record_rules
from neural_mesh.geometry.boxes import CropPlacement, place_crop, crop_image
from neural_mesh.machine import console
from neural_mesh.machine.resources import require_disk
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.storage.files import holds, lock, read_json, write_text
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D, write_list
from neural_mesh.storage.npz_files import load_numbers
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.records import Annotation

PARTS = ("imagenet", "pascal")
BYTES_PER_MASK = 250_000  # of an occluder mask, which is stored in the size of its image


@dataclass(frozen=True)
class PreparationOptions:
    """Which images are prepared, and how.

    raw: PASCAL3D+_release1.1. out: folder of the prepared set. split: train or val. parts: of
    PASCAL3D+, any of PARTS. record_rules: auto, strict or reference, see `read_record`. occluded:
    OccludedPASCAL3D, with its level. overwrite: delete what is there of the categories first.
    workers: a number of processes, or auto.
    """

    raw: Path
    out: Path
    split: str
    categories: tuple[str, ...] = tuple(CATEGORIES)
    geometry: str = "paper"
    parts: tuple[str, ...] = ("imagenet",)
    record_rules: str = "auto"
    occluded: Path | None = None
    level: str = ""
    overwrite: bool = False
    workers: str = "auto"


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
    """What became of one image: `new`, `kept`, or why it was skipped."""

    name: str
    what: str
    cad_index: int = 0
    objects: int = 1

    @property
    def is_usable(self) -> bool:
        return self.what in ("new", "kept")


def prepare_images(options: PreparationOptions) -> None:
    """Prepare the training set, the test set, or an occluded test set, and say how many images.

    Raises ValueError when no image can be prepared.
    """
    if bool(options.level) != (options.occluded is not None):
        raise ValueError("--level and --occluded go together")
    if not options.parts or set(options.parts) - set(PARTS):
        given = " ".join(options.parts)
        raise ValueError(f"--parts is '{given}', it can be imagenet, pascal or both")
    # What there is to prepare from.
    root = console.require_folder(options.raw, "PASCAL3D+", "set PATH_PASCAL3DP")
    raw = RawPascal3D(root, options.parts)
    occluded = None
    if options.occluded is not None:
        remedy = "set PATH_OCCLUDED_PASCAL3DP"
        occluded = RawOccluded(console.require_folder(options.occluded, "OccludedPASCAL3D", remedy))

    # One category after another, each with a lock of its own.
    outcomes: list[Outcome] = []
    with WorkerPool(worker_count(options.workers)) as pool:
        for category in options.categories:
            split = read_split(raw, category, options.split)
            subset = CroppedSubset(
                raw=raw,
                prepared=PreparedSet(options.out),
                category=category,
                geometry=options.geometry,
                cads=len(raw.cads(category)),
                level=options.level,
                occluded=occluded,
                rules=record_rules(options.record_rules, split),
            )
            with lock(options.out, f"prepare-{subset.name}", f"the crops of {subset.name}"):
                if options.overwrite:
                    subset.prepared.remove(subset.name)
                remove_half_written(subset.prepared, subset.name)
                outcomes += prepare_subset(subset, split, pool)
    print(closing_line(options, outcomes))
    if not any(outcome.is_usable for outcome in outcomes):
        raise ValueError("no image could be prepared")


def closing_line(options: PreparationOptions, outcomes: Sequence[Outcome]) -> str:
    """Counts of one run: images used, those with several objects, and those skipped by reason."""
    usable = [outcome for outcome in outcomes if outcome.is_usable]
    images = console.count(len(usable), "image")
    categories = console.count(len(options.categories), "category")
    line = f"{options.split} {options.level}".strip()
    line += f": {images} of {categories} in {options.out}"
    several = sum(outcome.objects > 1 for outcome in usable)
    if several:
        line += f"; {several} with several objects, of which one is used"
    # How many were left out for each reason, and where they are named.
    reasons = [outcome.what for outcome in outcomes if not outcome.is_usable]
    if reasons:
        line += console.reason_counts(reasons, "skipped")
        line += f", listed in {options.out}/lists/<category>/SKIPPED.txt"
    return line


def prepare_subset(subset: CroppedSubset, split: Split, pool: WorkerPool) -> list[Outcome]:
    """Prepare one subset and its lists; returns what became of each image."""
    names = split.names
    # The occluded set has fewer images; those it has decide.
    if subset.occluded is not None:
        present = set(subset.occluded.names(subset.category, subset.level))
        names = [name for name in names if name in present]
    _check_source(subset, split)
    # Is there room for what is still to be made?
    missing = [
        name for name in names if not subset.prepared.annotation(subset.name, name).is_file()
    ]
    require_disk(
        subset.prepared.root,
        disk_for_crops(subset, len(missing)),
        f"the crops of {subset.name}",
        "make space, or set DATAROOT to another disk",
    )
    # Crops and annotations, then what tells which of them are there.
    outcomes = in_pool(pool, partial(prepare_image, subset), names, subset.name)
    cad_of_name = {outcome.name: outcome.cad_index for outcome in outcomes if outcome.is_usable}
    _write_lists(subset, split, cad_of_name)
    skipped = [f"{outcome.name}: {outcome.what}\n" for outcome in outcomes if not outcome.is_usable]
    write_text(subset.prepared.skipped(subset.name), "".join(sorted(skipped)))
    return outcomes


def disk_for_crops(subset: CroppedSubset, images: int) -> int:
    """Bytes that crops, annotations and, if any, occluder masks of so many images take."""
    masks = 0 if subset.occluded is None else images * BYTES_PER_MASK
    return crops_size(images, subset.crop_hw, subset.jpeg_quality) + masks


# ---- one image -----------------------------------------------------------------------------------


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
        crop, annotation = cropped(subset, name)
    except UnusableRecord as error:
        return Outcome(name, error.reason)
    write_crop(subset.prepared, subset.name, annotation, crop, subset.jpeg_quality)
    return Outcome(name, "new", annotation.cad_index, annotation.objects or 1)


def cropped(subset: CroppedSubset, name: str) -> tuple[NDArray[np.uint8], Annotation]:
    """The crop of one image and its annotation.

    Raises UnusableRecord with the reason when there is none to be had.
    """
    source = subset.source_image(name)
    if not source.is_file():
        raise UnusableRecord("no such image", str(source))
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
        return crop_image(image, placement), annotation_of(record, placement, mask)
    except (ValueError, Image.DecompressionBombError, OverflowError) as error:
        raise UnusableRecord("no crop at that distance", f"{name}: {error}") from error


def _read_usable_record(subset: CroppedSubset, name: str) -> Record:
    path = subset.raw.annotation(subset.category, name)
    try:
        record = read_record(path, subset.category, subset.rules)
    except FileNotFoundError as error:
        raise UnusableRecord("no annotation", str(error)) from None
    if not 1 <= record.cad_index <= subset.cads:
        detail = f"{name} has cad_index {record.cad_index} of {subset.cads}"
        raise UnusableRecord("no such CAD model", detail)
    return record


def _read_image(source: Path, record: Record) -> NDArray[np.uint8]:
    try:
        image = read_picture(source)
    except ValueError as error:
        raise UnusableRecord("unreadable image", f"{source} ({error})") from error
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
    inside = ((cells >= 0) & (cells < occ_mask.shape[::-1])).all(1)
    cols, rows = cells[inside].T
    covered = np.zeros(len(cells), bool)
    covered[inside] = occ_mask[rows, cols]
    return covered


# ---- what lies beside the crops ------------------------------------------------------------------


def _check_source(subset: CroppedSubset, split: Split) -> None:
    """Write where the subset comes from; refuse to mix it with one that was prepared otherwise."""
    # The digest tells two selections of as many images apart.
    names = "\n".join(sorted(split.names))
    source = {
        "split": split.source,
        "geometry": subset.geometry,
        "records": subset.rules,
        "images": len(split.names),
        "names_sha256": hashlib.sha256(names.encode()).hexdigest(),
    }
    text = console.as_json(source | _source_of_occluders(subset))
    path = subset.prepared.source(subset.name)
    if path.is_file() and not holds(path, text):
        raise ValueError(
            f"{path.parent} was prepared from other images or occluders, "
            "or with another GEOMETRY or RECORD_RULES; "
            "set OVERWRITE=true to prepare it again, or prepare into another folder"
        )
    write_text(path, text)


def _source_of_occluders(subset: CroppedSubset) -> dict[str, object]:
    """How the occluded pictures were made, where make_occluded.py made them."""
    if subset.occluded is None:
        return {}
    path = subset.occluded.source(subset.category, subset.level)
    if not path.is_file():
        return {}
    try:
        return {"occluded": read_json(path)}
    except ValueError as error:
        raise ValueError(f"{error}; it is not what make_occluded.py writes there") from None


def _write_lists(subset: CroppedSubset, split: Split, cad_of_name: dict[str, int]) -> None:
    """Lists of the usable images, by subtype and by CAD model."""
    folder = subset.prepared.lists(subset.name)
    # Subtypes are what the paper selects images by, CAD models what `multi` trains on.
    lists = {}
    for subtype, names in split.subtypes.items():
        lists[subtype] = [name for name in names if name in cad_of_name]
    for cad in range(1, subset.cads + 1):
        lists[f"mesh{cad:02d}"] = sorted(n for n, index in cad_of_name.items() if index == cad)
    for stem, names in lists.items():
        write_list(folder / f"{stem}.txt", names)
