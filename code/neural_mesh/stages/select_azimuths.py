"""Lists of the images whose azimuth lies in chosen bins, and of the others: unseen poses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from neural_mesh.categories import CATEGORIES
from neural_mesh.machine import console
from neural_mesh.settings import Azimuths
from neural_mesh.storage.files import lock
from neural_mesh.storage.layout import PreparedSet, read_list, write_list
from neural_mesh.storage.npz_files import load_numbers


def select_azimuths(
    prepared: Path,
    mesh_d: str,
    azimuths: Azimuths,
    categories: tuple[str, ...] = tuple(CATEGORIES),
    level: str = "",
) -> None:
    """Write the lists of a prepared set that has vertex annotations, and say how long they are."""
    if not azimuths.pattern:
        raise ValueError("--azimuths is empty, it is a pattern such as TFFTTFFT")
    root = console.require_folder(prepared, "prepared set", "run PrepareData.sh first")
    counts = []
    for category in categories:
        subset = category + level
        if not PreparedSet(root).lists(subset).is_dir():
            print(f"note: {root} has no images of {subset} to choose from", file=sys.stderr)
            continue
        # The lock of annotate_vertices.py, which writes these lists too.
        with lock(root, f"annotate-{mesh_d}-{subset}", f"the lists of {subset}"):
            counts.append(write_selections(PreparedSet(root), mesh_d, subset, azimuths))
    # Over all categories, for either pattern.
    totals = []
    for pattern in (azimuths.pattern, azimuths.complement):
        total = sum(count[pattern] for count in counts)
        totals.append(f"{total:,} in {pattern}")
    of_categories = console.count(len(counts), "category")
    print(f"{mesh_d} {level}".strip() + f": {', '.join(totals)} of {of_categories} in {prepared}")


def write_selections(
    prepared: PreparedSet, mesh_d: str, subset: str, azimuths: Azimuths
) -> dict[str, int]:
    """Write the lists of a subset for the pattern and for its complement.

    Returns how many images each of them has.
    """
    folder = prepared.vertex_lists(mesh_d, subset)
    lists = {path.name: read_list(path) for path in sorted(folder.glob("*.txt"))}
    if not lists:
        raise FileNotFoundError(f"no lists to choose from: {folder}; run PrepareData.sh first")
    names = sorted({name for group in lists.values() for name in group})
    is_inside = dict(zip(names, azimuths.seen(_azimuths(prepared, subset, names)), strict=True))
    # The pattern is what a network is trained on, its complement the unseen poses.
    counts = {}
    for pattern, inside in ((azimuths.pattern, True), (azimuths.complement, False)):
        selected = {name for name in names if is_inside[name] == inside}
        target = PreparedSet(prepared.root, pattern).vertex_lists(mesh_d, subset)
        for file_name, group in lists.items():
            write_list(target / file_name, [name for name in group if name in selected])
        counts[pattern] = len(selected)
    return counts


def _azimuths(prepared: PreparedSet, subset: str, names: list[str]) -> np.ndarray:
    """Annotated azimuths [B] in radians."""
    azimuths = []
    for name in names:
        numbers = load_numbers(prepared.annotation(subset, name), ["azimuth"])
        azimuths.append(numbers["azimuth"])
    return np.array(azimuths)
