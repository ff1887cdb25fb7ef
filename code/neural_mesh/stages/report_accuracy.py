"""Saved poses and annotations -> the accuracy table.

It is printed in the reference's format, and written as Markdown and CSV.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neural_mesh.machine import console
from neural_mesh.report.scores import LevelScore, check_same_settings, score_level
from neural_mesh.report.tables import (
    baseline_lines,
    error_list,
    is_full_test_set,
    markdown,
    missing_list,
    notes_of,
    published_lines,
    reference_format,
    table_csv,
    table_lines,
)
from neural_mesh.storage.files import write_text
from neural_mesh.storage.layout import Experiment, PreparedSet


def report_accuracy(
    experiment: Experiment,
    categories: Sequence[str],
    level: str,
    clean: Path,
    tested: Path | None = None,
    train: Path | None = None,
) -> None:
    """Print and write the table of one occlusion level.

    clean: prepared test set whose annotations are the truth. tested: the set that was solved, if it
    is another one. train: training set, which adds the two baselines that know only its poses.
    Raises ValueError for poses that do not belong together or to the images, FileNotFoundError if
    there are no poses.
    """
    azimuths = experiment.azimuths
    truth = PreparedSet(clean)
    solved = PreparedSet(tested or clean, azimuths.test_pattern)
    score = score_level(experiment, truth, solved, categories, level)
    if not score.categories:
        folder = experiment.poses("<category>", level).parent
        raise FileNotFoundError(f"no poses in {folder}; run InferenceNeMo.sh first")
    # A mean over categories that were solved differently would mean nothing.
    check_same_settings(score.categories)
    # Our lines, the published ones if they are comparable, and the baselines.
    lines = table_lines(score.categories)
    if is_full_test_set(score):
        lines += published_lines(experiment.mesh_d, level, azimuths)
    if train is not None:
        training_set = PreparedSet(train, azimuths.pattern)
        lines += baseline_lines(score.categories, truth, training_set)
    write_table(experiment.accuracy_folder(level), score, lines)


def write_table(folder: Path, score: LevelScore, lines: list[list[str]]) -> None:
    """Write the files of a table, print it, and report what it lacks."""
    notes = notes_of(score)
    # Whatever is incomplete says so in the title, in the files and on the screen.
    partial = [note for note in notes if note.startswith("PARTIAL")]
    title = f"Accuracy, {score.mesh_d} cuboid, {score.level or 'unoccluded'}"
    if partial:
        title = f"PARTIAL: {title}"
    write_text(folder / "table.csv", table_csv(lines, partial))
    write_text(folder / "table.md", markdown(lines, title, notes))
    write_text(folder / "missing.csv", missing_list(score.categories))
    write_text(folder / "errors.csv", error_list(score.categories))

    # Print the table, and its alarms once more on stderr, which a log may keep apart.
    print("\n".join([reference_format(lines), *partial]))
    for note in notes:
        if note.startswith("PARTIAL") or "not finite" in note:
            print(note, file=sys.stderr)
    images = console.count(score.images, "image")
    categories = console.count(len(score.categories), "category")
    print(f"{score.level or 'clean'}: table of {images} of {categories} in {folder}")
