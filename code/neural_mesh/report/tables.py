"""The accuracy table: poses and annotations to rows, the published numbers beside them, and what a reader must know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neural_mesh.categories import SHORT_NAMES, category_settings
from neural_mesh.geometry.pose_error import (
    LABELS,
    Accuracy,
    accuracy,
    category_mean,
    constant_pose_baseline,
    image_weighted_mean,
    pose_errors,
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
from neural_mesh.settings import ALL_AZIMUTHS, Azimuths
from neural_mesh.storage.files import csv_text, read_text
from neural_mesh.storage.layout import Experiment, PreparedSet
from neural_mesh.storage.records import load_annotation
from neural_mesh.storage.results import PoseSet, load_poses

METRICS = ("pi/6", "pi/18", "median")
MISSING_SHOWN = 10  # names of images without a pose in the notes; all are in missing.csv
PER_CATEGORY_SOURCE = ("images", "names_sha256")  # of SOURCE.json
PER_CATEGORY_SETTINGS = (
    "category",
    "checkpoint",
    "data",
    "map_hw",
    "focal_cells",
    "principal_xy_cells",
    "start_distance",
)


@dataclass(frozen=True)
class Row:
    """Results of one category. errors [B] radians, missing: test images without a pose.

    truth [B, 3]: azimuth, elevation and theta in radians. poses: what was scored.
    """

    category: str
    names: list[str]
    errors: NDArray
    not_finite: int
    missing: int
    config: dict
    unusable: int = 0  # images that preparation left out, see SKIPPED.txt
    missing_names: tuple[str, ...] = ()
    truth: NDArray | None = None
    poses: PoseSet | None = None
    made_from: dict = field(
        default_factory=dict
    )  # SOURCE.json of the images; empty where there is none

    @property
    def accuracy(self) -> Accuracy:
        return accuracy(self.errors, self.not_finite)


def true_poses(prepared: PreparedSet, category: str, names: list[str]) -> NDArray[np.float64]:
    """Annotated poses [B, 3] (azimuth, elevation, theta) in radians. Those of occluded images are the clean ones'."""
    annotations = [load_annotation(prepared.annotation(category, name)) for name in names]
    return np.array([a.pose.angles for a in annotations]).reshape(-1, 3)


def score_category(
    experiment: Experiment, clean: PreparedSet, tested: PreparedSet, category: str, level: str
) -> Row:
    """Compare the saved poses of a category with the annotations; ValueError for poses of another image set."""
    poses = load_poses(experiment.poses(category, level))
    names = poses.names.tolist()
    subset = category + level
    expected = tested.wanted(experiment.mesh_d, subset)
    skipped = tested.skipped(subset)
    unusable = len(read_text(skipped).splitlines()) if skipped.is_file() else 0
    if strangers := set(names) - expected:
        raise ValueError(
            f"{experiment.poses(category, level)} has {len(strangers)} poses of images that {tested.root} lacks; run InferenceNeMo.sh again"
        )
    solved, there = poses.config.get("data", ""), tested.fingerprint(subset)
    if solved and solved != there:
        raise ValueError(
            f"{experiment.poses(category, level)} has poses of other data (fingerprint {solved}) than {tested.root} holds "
            f"({there or 'none'}); run InferenceNeMo.sh again"
        )
    not_finite = int((~np.isfinite(poses.pose.angles).all(-1)).sum())
    truth, missing = true_poses(clean, category, names), tuple(sorted(expected - set(names)))
    return Row(
        category,
        names,
        pose_errors(poses.pose.angles, truth),
        not_finite,
        len(missing),
        poses.config,
        unusable,
        missing,
        truth,
        poses,
        tested.made_from(subset),
    )


def check_same_settings(rows: list[Row]) -> None:
    """ValueError for categories that were solved with different settings, or on images that were prepared differently."""
    for row in rows[1:]:
        if keys := _differing(rows[0].config, row.config, PER_CATEGORY_SETTINGS):
            raise ValueError(
                f"{rows[0].category} and {row.category} were solved with different {', '.join(keys)}; run InferenceNeMo.sh for both again"
            )
    known = [row for row in rows if row.made_from]
    for row in known[1:]:
        if keys := _differing(_preparation(known[0]), _preparation(row), PER_CATEGORY_SOURCE):
            raise ValueError(
                f"the images of {known[0].category} and {row.category} were prepared with different {', '.join(keys)} (see SOURCE.json of "
                "each), which a table does not mix; prepare them again alike, or set CATEGORIES to those that are"
            )


def _preparation(row: Row) -> dict:
    return row.made_from | {
        "split": str(row.made_from.get("split", "")).replace(row.category, "<category>")
    }


def _differing(first: dict, other: dict, but: Sequence[str]) -> list[str]:
    """Keys with different values, without those named `but`; of values with names of their own as `occluded.seed`."""
    first, other = (_flat(values, but) for values in (first, other))
    return sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))


def _flat(values: dict, but: Sequence[str]) -> dict:
    flat = {}
    for key, value in values.items():
        if key not in but:
            flat |= (
                {f"{key}.{name}": part for name, part in value.items()}
                if isinstance(value, dict)
                else {key: value}
            )
    return flat


def table_rows(rows: list[Row]) -> list[list[str]]:
    """Header and one line per metric: categories, image-weighted mean, category mean."""
    accuracies = [row.accuracy for row in rows]
    lines = [
        ["Metric", *(category_settings(row.category).short for row in rows), "Mean", "CatMean"]
    ]
    for metric in METRICS:
        values = [a.value(metric) for a in accuracies]
        values += [image_weighted_mean(accuracies, metric), category_mean(accuracies, metric)]
        lines.append([LABELS[metric], *(f"{value:.1f}" for value in values)])
    lines.append(
        ["Images", *(str(a.images) for a in accuracies), str(sum(a.images for a in accuracies)), ""]
    )
    return lines


def is_full_test_set(rows: list[Row], level: str, azimuths: Azimuths = ALL_AZIMUTHS) -> bool:
    """Whether the table covers all 12 categories and all images of the published one, by the same protocol."""
    names = tuple(category_settings(row.category).short for row in rows)
    if rows[0].config.get("solve", {}).get("subtype", "annotated") != "annotated":
        return False
    if azimuths.pattern:
        full = (
            FULL_AZIMUTH_TEST_IMAGES[azimuths.tested]
            if azimuths.pattern == PUBLISHED_AZIMUTHS and not level
            else None
        )
        return names == SHORT_NAMES and sum(len(row.names) for row in rows) == full
    return names == SHORT_NAMES and sum(
        len(row.names) + row.unusable for row in rows
    ) == FULL_TEST_IMAGES.get(level)


def published_rows(mesh_d: str, level: str, azimuths: Azimuths = ALL_AZIMUTHS) -> list[list[str]]:
    """The published numbers of the same protocol, as table lines."""
    if azimuths.pattern:
        pi6, pi18 = PUBLISHED_AZIMUTH_MEANS[mesh_d][azimuths.tested]
        blank = [""] * len(SHORT_NAMES)
        return [
            ["Pi/6 paper", *blank, f"{pi6:.1f}", ""],
            ["Pi/18 paper", *blank, f"{pi18:.1f}", ""],
        ]
    table, blank = PUBLISHED.get((mesh_d, level), {}), [""] * len(SHORT_NAMES)
    lines = [
        [f"{LABELS[metric].strip()} reference", *(f"{v:.1f}" for v in values), ""]
        for metric, values in table.items()
    ]
    if level in PUBLISHED_MEANS[mesh_d]:
        pi6, pi18 = PUBLISHED_MEANS[mesh_d][level]
        lines += [
            ["Pi/6 paper", *blank, f"{pi6:.1f}", ""],
            ["Pi/18 paper", *blank, f"{pi18:.1f}", ""],
        ]
    return lines


def baseline_rows(rows: list[Row], clean: PreparedSet, train: PreparedSet) -> list[list[str]]:
    """What knowing only the training poses gives: the best constant pose, and a pose drawn from the training set."""
    lines = []
    for name, baseline in (("constant", constant_pose_baseline), ("drawn", random_pose_baseline)):
        results = []
        for row in rows:
            train_names = sorted(
                p.stem for p in (train.root / "annotations" / row.category).glob("*.npz")
            )
            if train.azimuths:
                meant = train.wanted(row.config["mesh_d"], row.category)
                train_names = [name for name in train_names if name in meant]
            if not train_names:
                raise FileNotFoundError(
                    f"no training annotations of {row.category} in {train.root}; run PrepareData.sh first"
                )
            results.append(
                baseline(
                    true_poses(train, row.category, train_names),
                    true_poses(clean, row.category, row.names),
                )
            )
        for metric in METRICS:
            means = [image_weighted_mean(results, metric), category_mean(results, metric)]
            lines.append(
                [
                    f"{LABELS[metric].strip()} {name}",
                    *(f"{v:.1f}" for v in [a.value(metric) for a in results] + means),
                ]
            )
    return lines


def reference_format(lines: list[list[str]]) -> str:
    """The table as the reference prints it: a bar after the metric, tabs between the numbers."""
    return "\n".join(f"{line[0]} | " + "\t".join(line[1:]) for line in lines)


def markdown(lines: list[list[str]], title: str, notes: list[str]) -> str:
    """The table as a Markdown page."""
    rows = ["| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines]
    rule = "|" + "---|" * len(lines[0])
    return (
        "\n".join(
            [f"# {title}", "", rows[0], rule, *rows[1:], "", *(f"- {note}" for note in notes)]
        )
        + "\n"
    )


def error_list(rows: list[Row]) -> str:
    """CSV text with the error of every image."""
    errors = (
        (row.category, name, f"{np.rad2deg(error):.3f}")
        for row in rows
        for name, error in zip(row.names, row.errors, strict=True)
    )
    return csv_text([("category", "name", "error_deg"), *errors])


def missing_list(rows: list[Row]) -> str:
    """CSV text with the test images that have no pose."""
    return csv_text(
        [
            ("category", "name"),
            *((row.category, name) for row in rows for name in row.missing_names),
        ]
    )


def notes_of(
    rows: list[Row], absent: list[str], level: str, azimuths: Azimuths = ALL_AZIMUTHS
) -> list[str]:
    """What a reader of the table must know."""
    missing, not_finite = sum(row.missing for row in rows), sum(row.not_finite for row in rows)
    notes = ["Mean weights categories by their images (as published), CatMean does not."]
    if absent:
        notes.append(f"PARTIAL: no poses of {', '.join(absent)}.")
    if missing:
        some = [f"{row.category} {name}" for row in rows for name in row.missing_names][
            :MISSING_SHOWN
        ]
        listed = (
            f" (listed in missing.csv: {', '.join(some)}{' ...' if missing > len(some) else ''})"
            if some
            else ""
        )
        notes.append(f"PARTIAL: {console.count(missing, 'test image')} without a pose{listed}.")
    if unusable := sum(row.unusable for row in rows):
        notes.append(
            f"{console.count(unusable, 'image')} of the test set could not be prepared, see SKIPPED.txt of each category."
        )
    if not_finite:
        notes.append(f"{console.count(not_finite, 'prediction')} not finite, counted as wrong.")
    if azimuths.pattern:
        notes.append(
            f"Trained on the azimuths {azimuths.pattern}, tested on {azimuths.tested} ones."
        )
    if not is_full_test_set(rows, level, azimuths):
        notes.append(
            "Not the full test set of the paper, so the published numbers are not shown beside it."
        )
    config = rows[0].config
    settings = {
        key: config[key] for key in ("mesh_d", "backbone", "recipe", "image_scale", "renderer")
    }
    settings["solver"] = config["solve"]["solver"]
    if config["mesh_d"] == "multi":
        settings["subtype"] = config["solve"].get("subtype", "annotated")
    notes.append(
        "Settings: " + ", ".join(f"{key} {value}" for key, value in settings.items()) + "."
    )
    return notes
