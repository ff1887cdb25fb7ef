"""Saved poses and annotations -> the accuracy table, printed in the reference's format and written as Markdown and CSV."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from neural_mesh.machine import arguments, console
from neural_mesh.report.tables import (
    baseline_rows,
    check_same_settings,
    error_list,
    is_full_test_set,
    markdown,
    missing_list,
    notes_of,
    published_rows,
    reference_format,
    score_category,
    table_rows,
)
from neural_mesh.settings import MESH_DIMENSIONS
from neural_mesh.storage.files import csv_text, write_text
from neural_mesh.storage.layout import Experiment, PreparedSet


def main() -> None:
    """Print and write the table of one occlusion level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--clean", type=Path, required=True, help="clean test set, whose annotations are the truth"
    )
    parser.add_argument(
        "--prepared", type=Path, help="the set that was solved, if not the clean one"
    )
    parser.add_argument(
        "--train", type=Path, help="training set: adds the two baselines that know only its poses"
    )
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, default="single")
    parser.add_argument(
        "--level", type=arguments.level, default="", help="occlusion level such as FGL1_BGL1"
    )
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    args = parser.parse_args()
    experiment, clean = Experiment(args.exp, args.mesh_d, args.azimuths), PreparedSet(args.clean)
    present = [c for c in args.categories if experiment.poses(c, args.level).is_file()]
    absent = [c for c in args.categories if c not in present]
    if not present:
        raise FileNotFoundError(
            f"no poses in {experiment.poses('<category>', args.level).parent}; run InferenceNeMo.sh first"
        )
    tested = PreparedSet(args.prepared or args.clean, args.azimuths.test_pattern)
    rows = [score_category(experiment, clean, tested, c, args.level) for c in present]
    check_same_settings(rows)
    lines, notes = table_rows(rows), notes_of(rows, absent, args.level, args.azimuths)
    if is_full_test_set(rows, args.level, args.azimuths):
        lines += published_rows(args.mesh_d, args.level, args.azimuths)
    if args.train is not None:
        lines += baseline_rows(rows, clean, PreparedSet(args.train, args.azimuths.pattern))
    folder = experiment.accuracy_folder(args.level)
    partial = [note for note in notes if note.startswith("PARTIAL")]
    rows_of_csv = [[cell.strip() for cell in line] for line in lines] + [
        note.split(": ", 1) for note in partial
    ]
    write_text(folder / "table.csv", csv_text(rows_of_csv))
    title = f"{'PARTIAL: ' if partial else ''}Accuracy, {args.mesh_d} cuboid, {args.level or 'unoccluded'}"
    write_text(folder / "table.md", markdown(lines, title, notes))
    write_text(folder / "missing.csv", missing_list(rows))
    write_text(folder / "errors.csv", error_list(rows))
    print("\n".join([reference_format(lines), *partial]))
    for note in notes:
        if note.startswith("PARTIAL") or "not finite" in note:
            print(note, file=sys.stderr)
    images = sum(len(row.names) for row in rows)
    print(
        f"{args.level or 'clean'}: table of {console.count(images, 'image')} of {console.count(len(rows), 'category')} in {folder}"
    )


if __name__ == "__main__":
    console.run_main(main)
