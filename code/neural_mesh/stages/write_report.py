"""All results of an experiment -> one page, Report_<mesh>/index.html, for a browser."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from neural_mesh.machine import console
from neural_mesh.pictures.selection import OverlayMeshes
from neural_mesh.report.cards import Card, group_size
from neural_mesh.report.level_report import LevelReport, report_of
from neural_mesh.report.page import page
from neural_mesh.report.scores import EvaluationSets, LevelScore, score_level
from neural_mesh.report.timings import timing_files, timings_of
from neural_mesh.settings import ALL_OCC_LEVELS
from neural_mesh.storage.files import write_text
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D

VERSION = 1  # raising it makes every page again


class ScoredLevel(NamedTuple):
    """A level's scores, and the content of the page for it."""

    score: LevelScore
    report: LevelReport


def write_report(
    experiment: Experiment, raw: RawPascal3D, sets: EvaluationSets, categories: tuple[str, ...]
) -> None:
    """Write the page, unless an existing one was made from the same files.

    raw: the set whose meshes are drawn over the images. sets: the prepared test sets. Raises
    FileNotFoundError if there are no poses, ValueError if no level can be reported.
    """
    target = experiment.report_page
    levels = levels_with_poses(experiment, categories)
    if not levels:
        folder = experiment.poses("<category>").parent
        raise FileNotFoundError(f"no poses in {folder}; run InferenceNeMo.sh first")
    # A page that is up to date is kept.
    mark = digest(experiment, sets, categories, levels)
    if target.is_file() and f"<!-- made from {mark} -->" in target.read_text()[:400]:
        print(f"report: {target} kept")
        return
    # Levels and pictures that cannot be reported are listed on the page.
    scored, left_out = score_levels(experiment, sets, categories, levels)
    cards = make_cards(sets, OverlayMeshes(raw, experiment.mesh_d), scored, left_out)
    for sentence in left_out:
        print(f"report: {sentence}", file=sys.stderr)
    # An incomplete page gets no mark, so that the next run makes it again.
    html = page(
        title_of(experiment, categories),
        [report for _, report in scored],
        cards,
        timings_of(timing_files(experiment)),
        left_out,
        "" if left_out else mark,
    )
    write_text(target, html)
    size_mb = target.stat().st_size / 1e6
    print(
        f"report: {console.count(len(scored), 'level')}, {console.count(len(cards), 'picture')}, "
        f"{size_mb:.1f} MB in {target}"
    )


def levels_with_poses(experiment: Experiment, categories: Sequence[str]) -> list[str]:
    """List the levels that have poses of any of the categories, the unoccluded one first."""
    levels = []
    for level in ("", *ALL_OCC_LEVELS):
        if any(experiment.poses(category, level).is_file() for category in categories):
            levels.append(level)
    return levels


def digest(
    experiment: Experiment, sets: EvaluationSets, categories: tuple[str, ...], levels: Sequence[str]
) -> str:
    """Digest what the page depends on.

    That is poses, the prepared images that they belong to, times, and the choice of categories.
    """
    choices = f"{VERSION};{experiment.mesh_d};{experiment.azimuths};{categories}"
    content = hashlib.sha256(choices.encode())
    for level in levels:
        for category in categories:
            path = experiment.poses(category, level)
            if path.is_file():
                subset = category + level
                fingerprint = sets.tested(level).fingerprint(subset)
                content.update(f"{subset};{fingerprint};".encode() + path.read_bytes())
    # The page also shows the times.
    for path in timing_files(experiment):
        content.update(f"{path.name};".encode() + path.read_bytes())
    return content.hexdigest()[:16]


def score_levels(
    experiment: Experiment, sets: EvaluationSets, categories: Sequence[str], levels: Sequence[str]
) -> tuple[list[ScoredLevel], list[str]]:
    """Score the levels; returns those that can be reported, and a reason for each other one.

    Raises ValueError if no level can be reported.
    """
    scored = []
    left_out = []
    for level in levels:
        tested = PreparedSet(sets.tested(level).root, experiment.azimuths.test_pattern)
        # A level that cannot be scored does not keep the others from the page.
        try:
            score = score_level(experiment, sets.clean, tested, categories, level)
            scored.append(ScoredLevel(score, report_of(score)))
        except (ValueError, FileNotFoundError) as error:
            left_out.append(f"{level or 'unoccluded'} left out: {error}")
    if not scored:
        raise ValueError(f"no level can be reported; {left_out[0]}")
    return scored, left_out


def make_cards(
    sets: EvaluationSets,
    overlays: OverlayMeshes,
    scored: Sequence[ScoredLevel],
    left_out: list[str],
) -> list[Card]:
    """Draw the pictures of all levels, and add the number of failures to left_out."""
    # Drawing needs torch, which a page that is kept does not.
    from neural_mesh.report.gallery import Gallery

    gallery = Gallery(sets, overlays)
    # Pictures are part of the page, so a larger report shows fewer images of each category.
    size = group_size(sum(len(score.categories) for score, _ in scored))
    cards = []
    for score, _ in scored:
        cards += gallery.cards(score.level, score.categories, size)
    if gallery.missing:
        missing = console.count(len(gallery.missing), "picture")
        left_out.append(f"{missing} of the gallery could not be made: {gallery.missing[0]}")
    return cards


def title_of(experiment: Experiment, categories: Sequence[str]) -> str:
    """Write the page's title from categories and protocol."""
    subject = console.count(len(categories), "category")
    if len(categories) < 5:
        subject = ", ".join(categories)
    protocol = ""
    azimuths = experiment.azimuths
    if azimuths.pattern:
        protocol = f", trained on the azimuths {azimuths.pattern}, tested on {azimuths.tested} ones"
    return f"NeMo, {experiment.mesh_d} cuboid: {subject}{protocol}"
