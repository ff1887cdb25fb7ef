"""Raw PASCAL3D+ (or its occluded twin) -> crops, annotations and lists of one set."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from neural_mesh.categories import CATEGORIES, is_same_category
from neural_mesh.data.crops import (
    crops_size,
    prepared_names,
    remove_half_written,
)
from neural_mesh.data.foreign_sets import REMEDY, annotation_of_others, others_prepared
from neural_mesh.data.splits import Split, has_split, read_split, record_rules
from neural_mesh.machine import console
from neural_mesh.machine.resources import require_disk
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.stages.cropped_images import CroppedSubset, Outcome, prepare_image
from neural_mesh.storage.files import holds, lock, read_json, write_text
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D, write_list

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


def prepare_images(options: PreparationOptions) -> None:
    """Prepare the training set, the test set, or an occluded test set, and say how many images.

    A category that has only images of the other split is left out, with a note. Raises ValueError
    when no image can be prepared.
    """
    if bool(options.level) != (options.occluded is not None):
        raise ValueError("--level and --occluded go together")
    if not options.parts or set(options.parts) - set(PARTS):
        given = " ".join(options.parts)
        raise ValueError(f"--parts is '{given}', it can be imagenet, pascal or both")
    # What there is to prepare from. A part that is named twice counts once.
    root = console.require_folder(options.raw, "PASCAL3D+", "set PATH_PASCAL3DP")
    raw = RawPascal3D(root, tuple(dict.fromkeys(options.parts)))
    occluded = None
    if options.occluded is not None:
        remedy = "set PATH_OCCLUDED_PASCAL3DP"
        occluded = RawOccluded(console.require_folder(options.occluded, "OccludedPASCAL3D", remedy))
    splits = _splits(raw, options)
    # Later stages find an empty set where all is left out.
    options.out.mkdir(parents=True, exist_ok=True)

    # One category after another, each with a lock of its own.
    outcomes: list[Outcome] = []
    with WorkerPool(worker_count(options.workers)) as pool:
        for category, split in splits.items():
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
                # Crops that another program made are never mixed with ours.
                if others_prepared(subset.prepared, subset.name):
                    outcomes += keep_of_others(subset, pool)
                else:
                    outcomes += prepare_subset(subset, split, pool)
    print(closing_line(options, outcomes))
    # Where no category has this split, notes have said so, and that is no error.
    if splits and not any(outcome.is_usable for outcome in outcomes):
        lines = sorted(outcome.line for outcome in outcomes)
        first = f"; the first is {lines[0]}" if lines else ""
        raise ValueError(f"no image could be prepared{first}")


def keep_of_others(subset: CroppedSubset, pool: WorkerPool) -> list[Outcome]:
    """Leave a subset as another program prepared it, once all of it has been read."""
    # Other programs crop as the reference does.
    if subset.geometry != "paper":
        raise ValueError(
            f"another program prepared {subset.name} in {subset.prepared.root}, "
            f"not with GEOMETRY={subset.geometry}; {REMEDY}"
        )
    names = prepared_names(subset.prepared, subset.name)
    outcomes = in_pool(pool, partial(_kept_of_others, subset), names, subset.name)
    _note(
        f"another program prepared the {console.count(len(names), 'image')} of {subset.name} in "
        f"{subset.prepared.root}, which are kept as they are; OVERWRITE=true prepares them again"
    )
    return outcomes


def _kept_of_others(subset: CroppedSubset, name: str) -> Outcome:
    annotation = annotation_of_others(subset.prepared, subset.category, subset.level, name)
    return Outcome(name, "kept", annotation.cad_index)


def _splits(raw: RawPascal3D, options: PreparationOptions) -> dict[str, Split]:
    """The split of each category that has one, with notes of what is odd.

    Raises NoSplit when a category has neither training nor test images.
    """
    splits = {}
    other = "val" if options.split == "train" else "train"
    for category in options.categories:
        # A data set may have training or test images alone; one with neither is refused.
        is_there = has_split(raw, category, options.split)
        if not is_there and has_split(RawPascal3D(raw.root, PARTS), category, other):
            _note(
                f"{category} has no list of {options.split} images in {raw.root}, "
                f"only of {other} images; nothing of it is prepared for {options.split}"
            )
            continue
        splits[category] = read_split(raw, category, options.split)
        if splits[category].note:
            _note(splits[category].note)
    return splits


def _note(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)


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
    # Crops of other settings must be found before the first new one is written.
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
    skipped = [f"{outcome.line}\n" for outcome in outcomes if not outcome.is_usable]
    write_text(subset.prepared.skipped(subset.name), "".join(sorted(skipped)))
    _tell_other_names(subset, outcomes)
    return outcomes


def _tell_other_names(subset: CroppedSubset, outcomes: Sequence[Outcome]) -> None:
    """Say what classes of annotations were taken for the category."""
    # Images that are kept were told of by the run that made them.
    names = Counter(outcome.class_name for outcome in outcomes if outcome.what == "new")
    del names[subset.category]
    for name, images in sorted(names.items()):
        of_images = f"in the annotations of {console.count(images, 'image')}"
        if is_same_category(name, subset.category):
            _note(f"class {name} {of_images} is taken for {subset.category}")
        else:
            _note(
                f"the first object {of_images} is of class {name or 'unknown'}; "
                f"it is used for {subset.category}, as RECORD_RULES=reference says"
            )


def disk_for_crops(subset: CroppedSubset, images: int) -> int:
    """Bytes that crops, annotations and, if any, occluder masks of so many images take."""
    masks = 0 if subset.occluded is None else images * BYTES_PER_MASK
    return crops_size(images, subset.crop_hw, subset.jpeg_quality) + masks


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
    # The published occluded sets have no such file.
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
