"""Comparison of saved poses with annotations: the errors of every category at a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.pose_error import Accuracy, accuracy, pose_errors
from neural_mesh.settings import Azimuths
from neural_mesh.storage.files import read_text
from neural_mesh.storage.layout import Experiment, PreparedSet
from neural_mesh.storage.records import load_annotation
from neural_mesh.storage.results import PoseSet, load_poses

# Keys of SOURCE.json, and of the settings, that may differ between the categories of a table.
PER_CATEGORY_SOURCE = ("images", "names_sha256")
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
class EvaluationSets:
    """The prepared test sets; the annotations of the clean one are the truth for both."""

    clean: PreparedSet
    occluded: PreparedSet

    def tested(self, level: str) -> PreparedSet:
        """Return the set that holds the images of a level."""
        return self.occluded if level else self.clean


@dataclass(frozen=True)
class CategoryScore:
    """The poses of one category and their errors.

    truth [B, 3]: azimuth, elevation and theta in radians. errors [B]: radians. missing: names of
    test images without a pose. unusable: number of images that preparation left out, see
    SKIPPED.txt. made_from: content of the images' SOURCE.json, empty without such a file.
    """

    category: str
    poses: PoseSet
    truth: NDArray
    errors: NDArray
    missing: tuple[str, ...] = ()
    unusable: int = 0
    made_from: dict = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The images that have a pose."""
        return self.poses.names.tolist()

    @property
    def config(self) -> dict:
        """The settings that the poses depend on."""
        return self.poses.config

    @property
    def not_finite(self) -> int:
        """The number of predictions that are not finite."""
        return int((~np.isfinite(self.poses.pose.angles).all(-1)).sum())

    @property
    def accuracy(self) -> Accuracy:
        return accuracy(self.errors, self.not_finite)


@dataclass(frozen=True)
class LevelScore:
    """The categories at one occlusion level.

    mesh_d: which cuboids, single or multi. azimuths: the protocol. absent: requested categories
    that have no poses.
    """

    level: str
    mesh_d: str
    azimuths: Azimuths
    categories: list[CategoryScore]
    absent: list[str]

    @property
    def accuracies(self) -> list[Accuracy]:
        return [score.accuracy for score in self.categories]

    @property
    def images(self) -> int:
        """The number of images that have a pose."""
        return sum(len(score.names) for score in self.categories)


def true_poses(prepared: PreparedSet, category: str, names: Sequence[str]) -> NDArray[np.float64]:
    """Read annotated poses [B, 3] (azimuth, elevation, theta) in radians.

    An occluded image has the pose of the clean one.
    """
    annotations = [load_annotation(prepared.annotation(category, name)) for name in names]
    return np.array([annotation.pose.angles for annotation in annotations]).reshape(-1, 3)


def score_level(
    experiment: Experiment,
    clean: PreparedSet,
    tested: PreparedSet,
    categories: Sequence[str],
    level: str,
) -> LevelScore:
    """Compare the saved poses of a level with the annotations. Raises as `score_category`.

    clean: the set whose annotations are the truth. tested: the set that was solved.
    """
    # A category without poses is reported as absent; the caller decides whether any must have some.
    present = [name for name in categories if experiment.poses(name, level).is_file()]
    scores = [score_category(experiment, clean, tested, name, level) for name in present]
    absent = [name for name in categories if name not in present]
    return LevelScore(level, experiment.mesh_d, experiment.azimuths, scores, absent)


def score_category(
    experiment: Experiment, clean: PreparedSet, tested: PreparedSet, category: str, level: str
) -> CategoryScore:
    """Compare the saved poses of a category with the annotations.

    Raises ValueError for poses of another image set.
    """
    path = experiment.poses(category, level)
    poses = load_poses(path)
    names = poses.names.tolist()
    subset = category + level
    expected = tested.image_names(experiment.mesh_d, subset)

    # The poses must belong to these images.
    strangers = set(names) - expected
    if strangers:
        raise ValueError(
            f"{path} has {len(strangers)} poses of images that {tested.root} lacks; "
            "run InferenceNeMo.sh again"
        )
    # Without a fingerprint it is not known which data were solved, and names have to do.
    solved_data = poses.config.get("data", "")
    data = tested.fingerprint(subset)
    if solved_data and solved_data != data:
        raise ValueError(
            f"{path} has poses of other data (fingerprint {solved_data}) than {tested.root} holds "
            f"({data or 'none'}); run InferenceNeMo.sh again"
        )

    # Count the images that preparation left out; the others without a pose are missing.
    skipped = tested.skipped(subset)
    unusable = len(read_text(skipped).splitlines()) if skipped.is_file() else 0
    truth = true_poses(clean, category, names)
    return CategoryScore(
        category,
        poses,
        truth,
        pose_errors(poses.pose.angles, truth),
        missing=tuple(sorted(expected - set(names))),
        unusable=unusable,
        made_from=tested.made_from(subset),
    )


def check_same_settings(scores: Sequence[CategoryScore]) -> None:
    """Raise ValueError for categories that a table must not mix.

    Such categories were solved with different settings, or their images prepared differently.
    """
    first = scores[0]
    for score in scores[1:]:
        keys = _differing(first.config, score.config, PER_CATEGORY_SETTINGS)
        if keys:
            raise ValueError(
                f"{first.category} and {score.category} were solved with different "
                f"{', '.join(keys)}; run InferenceNeMo.sh for both again"
            )
    # Third-party images have no SOURCE.json, and may be mixed.
    with_source = [score for score in scores if score.made_from]
    for score in with_source[1:]:
        first = with_source[0]
        keys = _differing(_preparation(first), _preparation(score), PER_CATEGORY_SOURCE)
        if keys:
            raise ValueError(
                f"the images of {first.category} and {score.category} were prepared with different "
                f"{', '.join(keys)} (see SOURCE.json of each), which a table does not mix; "
                "prepare them again alike, or set CATEGORIES to those that are"
            )


def _preparation(score: CategoryScore) -> dict:
    """Return SOURCE.json without the category's name, which is part of the names of lists."""
    split = str(score.made_from.get("split", ""))
    return score.made_from | {"split": split.replace(score.category, "<category>")}


def _differing(first: dict, other: dict, but: Sequence[str]) -> list[str]:
    """Find the keys with different values, except those in `but`; nested as `occluded.seed`."""
    first = _flat(first, but)
    other = _flat(other, but)
    return sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))


def _flat(values: dict, but: Sequence[str]) -> dict:
    """Flatten a dictionary without the keys in `but`; nested keys become `occluded.seed`."""
    flat = {}
    for key, value in values.items():
        if key in but:
            continue
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat
