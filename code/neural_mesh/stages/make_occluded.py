"""An occluded twin of the test images of any set in PASCAL3D+'s raw layout, or of any set that
PrepareData.sh made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from neural_mesh.categories import CATEGORIES
from neural_mesh.data.donor_pictures import OCCLUDER_SUFFIXES, occluder_files
from neural_mesh.data.occlusion import level_bounds
from neural_mesh.data.splits import read_split, record_rules
from neural_mesh.machine import console
from neural_mesh.machine.workers import WorkerPool, in_pool, worker_count
from neural_mesh.settings import OCC_LEVELS
from neural_mesh.stages.occluded_levels import (
    OccludedCrops,
    OccludedLevel,
    OccludedOriginals,
    check_cutout,
)
from neural_mesh.storage.files import lock
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D
from neural_mesh.storage.mesh_files import read_off


@dataclass(frozen=True)
class OcclusionOptions:
    """Which images are occluded, and how.

    raw: PASCAL3D+_release1.1, or a set in its layout. prepared: the set whose crops are occluded,
    in place of the raw images. out: folder of the occluded set. occluders: folder of cut-out
    pictures, None for procedural ones. record_rules: as in `PreparationOptions`. workers: a number
    of processes, or auto.
    """

    raw: Path
    out: Path
    categories: tuple[str, ...] = tuple(CATEGORIES)
    levels: tuple[str, ...] = OCC_LEVELS
    prepared: Path | None = None
    occluders: Path | None = None
    record_rules: str = "auto"
    seed: int = 0
    workers: str = "auto"


def make_occluded(options: OcclusionOptions) -> None:
    """Occlude the test images of all categories to all levels."""
    console.require_folder(options.raw, "PASCAL3D+", "set --raw")
    # Everything that the user named is checked before the first picture is drawn.
    for level in options.levels:
        level_bounds(level)
    if options.occluders is not None:
        console.require_folder(options.occluders, "occluders", "set --occluders")
    if options.prepared is not None:
        console.require_folder(options.prepared, "prepared set", "run PrepareData.sh first")
    # Category by category, since each has CAD models of its own.
    occluders = _occluder_files(options.occluders)
    counts: Counter[str] = Counter()
    with (
        lock(options.out, "make-occluded", "occluded images"),
        WorkerPool(worker_count(options.workers)) as pool,
    ):
        if occluders:
            # Before any picture is made with the others.
            in_pool(pool, check_cutout, [str(path) for path in occluders], "occluders")
        for category in options.categories:
            names, levels = _plan(options, category, occluders)
            for level in levels:
                level.check_source()
                counts.update(in_pool(pool, level.draw, names, level.subset))
                level.write_lists()
    # What was not made, by the reason.
    done = counts.pop("new", 0) + counts.pop("kept", 0)
    skipped = console.reason_counts(counts, "not made")
    print(
        f"{console.count(done, 'occluded image')} "
        f"of {console.count(len(options.categories), 'category')} in {options.out}{skipped}"
    )


def _occluder_files(folder: Path | None) -> tuple[Path, ...]:
    """The cut-out pictures of a folder."""
    if folder is None:
        return ()
    pictures = occluder_files(folder)
    if not pictures:
        raise ValueError(
            f"{folder} holds no occluders (files ending in {' '.join(OCCLUDER_SUFFIXES)}); "
            "leave out --occluders for procedural ones"
        )
    return pictures


def _plan(
    options: OcclusionOptions, category: str, occluders: tuple[Path, ...]
) -> tuple[list[str], list[OccludedLevel]]:
    """The images of a category, and the levels that are made of them."""
    raw = RawPascal3D(options.raw)
    meshes = tuple(read_off(path) for path in raw.cads(category))
    every = [(category, level, options.seed, meshes, occluders) for level in options.levels]
    # Crops are taken from the prepared set; the raw one only gives their CAD models.
    if options.prepared is not None:
        clean = PreparedSet(options.prepared)
        target = PreparedSet(options.out)
        names = sorted(clean.image_names("single", category))
        return names, [OccludedCrops(*level, clean, target) for level in every]
    # Of a raw set, the images are those that preparation would take for testing.
    split = read_split(raw, category, "val")
    rules = record_rules(options.record_rules, split)
    target = RawOccluded(options.out)
    return split.names, [OccludedOriginals(*level, raw, target, rules) for level in every]
