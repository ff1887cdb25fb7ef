"""Lists of the images whose azimuth lies in chosen bins, and of those whose azimuth does not: the unseen-pose protocol."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from neural_mesh.machine import arguments, console
from neural_mesh.settings import MESH_DIMENSIONS, Azimuths
from neural_mesh.storage.files import lock, write_text
from neural_mesh.storage.layout import PreparedSet, read_list
from neural_mesh.storage.npz_files import load_numbers


def write_selections(
    prepared: PreparedSet, mesh_d: str, subset: str, azimuths: Azimuths
) -> dict[str, int]:
    """Write the lists of a subset for the pattern and for its complement; returns how many images each has."""
    folder = prepared.vertex_lists(mesh_d, subset)
    lists = {path.name: read_list(path) for path in sorted(folder.glob("*.txt"))}
    if not lists:
        raise FileNotFoundError(f"no lists to choose from: {folder}; run PrepareData.sh first")
    names = sorted({name for group in lists.values() for name in group})
    angles = np.array(
        [load_numbers(prepared.annotation(subset, n), ["azimuth"])["azimuth"] for n in names]
    )
    inside = dict(zip(names, azimuths.seen(angles).tolist(), strict=True))
    for pattern, wanted in ((azimuths.pattern, True), (azimuths.complement, False)):
        target = PreparedSet(prepared.root, pattern).vertex_lists(mesh_d, subset)
        for file_name, group in lists.items():
            write_text(
                target / file_name,
                "".join(f"{name}.JPEG\n" for name in group if inside[name] is wanted),
            )
    return {
        azimuths.pattern: sum(inside.values()),
        azimuths.complement: len(inside) - sum(inside.values()),
    }


def main() -> None:
    """Write the lists of all categories of one set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prepared", type=Path, required=True, help="folder of a set with vertex annotations"
    )
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    parser.add_argument(
        "--level", type=arguments.level, default="", help="occlusion level such as FGL1_BGL1"
    )
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    args = parser.parse_args()
    if not args.azimuths.pattern:
        raise ValueError("--azimuths is empty, it is a pattern such as TFFTTFFT")
    prepared = PreparedSet(
        console.require_folder(args.prepared, "prepared set", "run PrepareData.sh first")
    )
    counts = []
    for category in args.categories:
        subset = category + args.level
        with lock(
            args.prepared, f"annotate-{args.mesh_d}-{subset}", f"the lists of {subset}"
        ):  # which annotate_vertices.py writes too
            counts.append(write_selections(prepared, args.mesh_d, subset, args.azimuths))
    totals = ", ".join(
        f"{sum(count[pattern] for count in counts):,} in {pattern}" for pattern in counts[0]
    )
    print(
        f"{args.mesh_d}{' ' + args.level if args.level else ''}: {totals} of {console.count(len(counts), 'category')} in {args.prepared}"
    )


if __name__ == "__main__":
    console.run_main(main)
