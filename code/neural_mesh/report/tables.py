"""The accuracy table: its lines, the published numbers beside them, and the notes for its reader.

A line is a list of cells, of which the first names the metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from neural_mesh.categories import SHORT_NAMES, category_settings
from neural_mesh.geometry.pose_error import (
    Accuracy,
    category_mean,
    constant_pose_baseline,
    image_weighted_mean,
    random_pose_baseline,
)
from neural_mesh.machine import console
from neural_mesh.published import (
    FULL_AZIMUTH_TEST_IMAGES,
    FULL_TEST_IMAGES,
    PUBLISHED,
    PUBLISHED_AZIMUTH_MEANS,
    PUBLISHED_AZIMUTHS,
    PUBLISHED_MEANS,
)
from neural_mesh.report.scores import CategoryScore, LevelScore, true_poses
from neural_mesh.settings import ALL_AZIMUTHS, Azimuths
from neural_mesh.storage.files import csv_text
from neural_mesh.storage.layout import PreparedSet

# The metrics, and their names as the reference prints them.
METRIC_NAMES = {"pi/6": "Pi/6  ", "pi/18": "Pi/18 ", "median": "MedErr"}
# The notes name at most this many images without a pose; missing.csv lists all of them.
MISSING_SHOWN = 10
SETTINGS_SHOWN = ("mesh_d", "backbone", "recipe", "image_scale", "renderer")

# ---- lines ---------------------------------------------------------------------------------------


def table_lines(scores: Sequence[CategoryScore]) -> list[list[str]]:
    """Make the header and one line per metric: categories, image-weighted mean, category mean."""
    accuracies = [score.accuracy for score in scores]
    short_names = [category_settings(score.category).short for score in scores]
    lines = [["Metric", *short_names, "Mean", "CatMean"]]
    for metric, name in METRIC_NAMES.items():
        lines.append([name, *_cells(accuracies, metric)])
    images = [accuracy.images for accuracy in accuracies]
    lines.append(["Images", *(str(count) for count in images), str(sum(images)), ""])
    return lines


def published_lines(mesh_d: str, level: str, azimuths: Azimuths = ALL_AZIMUTHS) -> list[list[str]]:
    """Make the lines of the published numbers of the same protocol."""
    # The paper publishes means alone, the reference also numbers per category.
    if azimuths.pattern:
        return _published_means(*PUBLISHED_AZIMUTH_MEANS[mesh_d][azimuths.tested])
    lines = []
    for metric, values in PUBLISHED.get((mesh_d, level), {}).items():
        lines.append([f"{METRIC_NAMES[metric].strip()} reference", *_rounded(values), ""])
    if level in PUBLISHED_MEANS[mesh_d]:
        lines += _published_means(*PUBLISHED_MEANS[mesh_d][level])
    return lines


def _published_means(within_pi6: float, within_pi18: float) -> list[list[str]]:
    """Make the lines of the paper, which has no numbers per category."""
    blank = [""] * len(SHORT_NAMES)
    return [
        ["Pi/6 paper", *blank, f"{within_pi6:.1f}", ""],
        ["Pi/18 paper", *blank, f"{within_pi18:.1f}", ""],
    ]


def baseline_lines(
    scores: Sequence[CategoryScore], clean: PreparedSet, train: PreparedSet
) -> list[list[str]]:
    """Make the lines of the two baselines that know only the training poses.

    They are the best constant pose, and a pose drawn from the training set.
    """
    lines = []
    for name, baseline in (("constant", constant_pose_baseline), ("drawn", random_pose_baseline)):
        accuracies = []
        for score in scores:
            training_poses = true_poses(train, score.category, _training_names(score, train))
            test_poses = true_poses(clean, score.category, score.names)
            accuracies.append(baseline(training_poses, test_poses))
        for metric, label in METRIC_NAMES.items():
            lines.append([f"{label.strip()} {name}", *_cells(accuracies, metric)])
    return lines


def _training_names(score: CategoryScore, train: PreparedSet) -> list[str]:
    """List the images of a category whose poses the baselines know."""
    folder = train.root / "annotations" / score.category
    names = sorted(path.stem for path in folder.glob("*.npz"))
    if train.azimuths:
        selected = train.image_names(score.config["mesh_d"], score.category)
        names = [name for name in names if name in selected]
    if not names:
        raise FileNotFoundError(
            f"no training annotations of {score.category} in {train.root}; run PrepareData.sh first"
        )
    return names


def _cells(accuracies: Sequence[Accuracy], metric: str) -> list[str]:
    """Format a metric of every category, and both means."""
    values = [accuracy.value(metric) for accuracy in accuracies]
    values += [image_weighted_mean(accuracies, metric), category_mean(accuracies, metric)]
    return _rounded(values)


def _rounded(values: Iterable[float]) -> list[str]:
    return [f"{value:.1f}" for value in values]


# ---- notes ---------------------------------------------------------------------------------------


def is_full_test_set(score: LevelScore) -> bool:
    """Tell whether the table covers all categories and images of the published one.

    The protocol must also be the same.
    """
    scores = score.categories
    # The paper matches an image with the annotated mesh.
    if scores[0].config.get("solve", {}).get("subtype", "annotated") != "annotated":
        return False
    names = tuple(category_settings(category.category).short for category in scores)
    if names != SHORT_NAMES:
        return False
    azimuths = score.azimuths
    # Images that could not be prepared still belong to the test set.
    if not azimuths.pattern:
        unusable = sum(category.unusable for category in scores)
        return score.images + unusable == FULL_TEST_IMAGES.get(score.level)
    # The protocol of azimuths is published for one pattern, without occlusion.
    if azimuths.pattern != PUBLISHED_AZIMUTHS or score.level:
        return False
    return score.images == FULL_AZIMUTH_TEST_IMAGES[azimuths.tested]


def notes_of(score: LevelScore) -> list[str]:
    """Write the notes that a reader of the table must know."""
    scores = score.categories
    azimuths = score.azimuths
    unusable = sum(category.unusable for category in scores)
    not_finite = sum(category.not_finite for category in scores)
    # Whatever makes the table incomplete gets a note.
    notes = ["Mean weights categories by their images (as published), CatMean does not."]
    if score.absent:
        notes.append(f"PARTIAL: no poses of {', '.join(score.absent)}.")
    if any(category.missing for category in scores):
        notes.append(_missing_note(scores))
    if unusable:
        notes.append(
            f"{console.count(unusable, 'image')} of the test set could not be prepared, "
            "see SKIPPED.txt of each category."
        )
    if not_finite:
        notes.append(f"{console.count(not_finite, 'prediction')} not finite, counted as wrong.")
    if azimuths.pattern:
        notes.append(
            f"Trained on the azimuths {azimuths.pattern}, tested on {azimuths.tested} ones."
        )
    if not is_full_test_set(score):
        notes.append(
            "Not the full test set of the paper, so the published numbers are not shown beside it."
        )
    notes.append(_settings_note(scores[0].config))
    return notes


def _missing_note(scores: Sequence[CategoryScore]) -> str:
    """Count the test images without a pose, and name the first of them."""
    names = [f"{score.category} {name}" for score in scores for name in score.missing]
    shown = ", ".join(names[:MISSING_SHOWN])
    if len(names) > MISSING_SHOWN:
        shown += " ..."
    count = console.count(len(names), "test image")
    return f"PARTIAL: {count} without a pose (listed in missing.csv: {shown})."


def _settings_note(config: dict) -> str:
    """Name the settings by which the poses were found."""
    settings = {key: config[key] for key in SETTINGS_SHOWN}
    settings["solver"] = config["solve"]["solver"]
    if config["mesh_d"] == "multi":
        settings["subtype"] = config["solve"].get("subtype", "annotated")
    words = [f"{key} {value}" for key, value in settings.items()]
    return f"Settings: {', '.join(words)}."


# ---- formats -------------------------------------------------------------------------------------


def reference_format(lines: Sequence[Sequence[str]]) -> str:
    """Format the table as the reference does: a bar after the metric, tabs between the numbers."""
    return "\n".join(f"{line[0]} | " + "\t".join(line[1:]) for line in lines)


def table_csv(lines: Sequence[Sequence[str]], partial: Sequence[str]) -> str:
    """Format the table as CSV. partial: the notes that say PARTIAL, which are put below it."""
    return csv_text([*_stripped(lines), *(note.split(": ", 1) for note in partial)])


def markdown(lines: Sequence[Sequence[str]], title: str, notes: Sequence[str]) -> str:
    """Format the table as a Markdown page."""
    header, *rows = [f"| {' | '.join(cells)} |" for cells in _stripped(lines)]
    rule = "|" + "---|" * len(lines[0])
    listed = [f"- {note}" for note in notes]
    return "\n".join([f"# {title}", "", header, rule, *rows, "", *listed]) + "\n"


def _stripped(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Remove the blanks that align the lines in the reference's format."""
    stripped = []
    for line in lines:
        stripped.append([cell.strip() for cell in line])
    return stripped


def error_list(scores: Sequence[CategoryScore]) -> str:
    """Write the error of every image as CSV."""
    lines = [("category", "name", "error_deg")]
    for score in scores:
        for name, error in zip(score.names, score.errors, strict=True):
            lines.append((score.category, name, f"{np.rad2deg(error):.3f}"))
    return csv_text(lines)


def missing_list(scores: Sequence[CategoryScore]) -> str:
    """Write the test images that have no pose as CSV."""
    lines = [("category", "name")]
    for score in scores:
        lines += [(score.category, name) for name in score.missing]
    return csv_text(lines)
