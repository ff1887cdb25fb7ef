"""All results of an experiment -> one page, Report_<mesh>/index.html, that a browser opens without a server or network.

It covers every occlusion level that has poses: the table, accuracy by category, errors, errors against azimuth, accuracy
against occlusion, time by stage, settings, and a gallery of the best, median and worst images.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.pose_error import image_weighted_mean
from neural_mesh.machine import arguments, console
from neural_mesh.pictures import drawing
from neural_mesh.pictures.drawing import short_angles
from neural_mesh.published import PUBLISHED_MEANS
from neural_mesh.report import page as report_page
from neural_mesh.report.page import Card, LevelReport, Timing
from neural_mesh.report.tables import (
    Row,
    check_same_settings,
    is_full_test_set,
    notes_of,
    published_rows,
    score_category,
    table_rows,
)
from neural_mesh.settings import ALL_OCC_LEVELS, MESH_DIMENSIONS
from neural_mesh.storage.files import write_text
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import load_annotation
from neural_mesh.storage.timings import load_seconds

VERSION = 1  # of the page's making; another number makes every page again
GALLERY_IMAGES, LARGEST_GROUP, SMALLEST_GROUP = 240, 36, 6  # in all, and of a category at a level
CARD_WIDTH = 336  # pixels of a picture
PLACES = ("best", "median", "worst")
STAGES = ("train", "extract_features", "solve_poses", "draw_results")  # in the order of the work


def found_levels(experiment: Experiment, categories: Sequence[str]) -> list[str]:
    """Occlusion levels, the unoccluded one first, that have poses of any of the categories."""
    return [
        level
        for level in ("", *ALL_OCC_LEVELS)
        if any(experiment.poses(c, level).is_file() for c in categories)
    ]


def load_level(args: argparse.Namespace, level: str) -> tuple[LevelReport, list[Row]]:
    """What the page says of a level, and its rows. Raises as `score_category` where poses and images do not fit."""
    experiment = Experiment(args.exp, args.mesh_d, args.azimuths)
    tested = PreparedSet(args.occluded if level else args.clean, args.azimuths.test_pattern)
    present = [c for c in args.categories if experiment.poses(c, level).is_file()]
    rows = [score_category(experiment, PreparedSet(args.clean), tested, c, level) for c in present]
    notes = notes_of(rows, [c for c in args.categories if c not in present], level, args.azimuths)
    full = is_full_test_set(rows, level, args.azimuths)
    try:
        check_same_settings(rows)
    except ValueError as error:
        notes.insert(0, f"MIXED: {error}")
    lines = table_rows(rows) + (published_rows(args.mesh_d, level, args.azimuths) if full else [])
    accuracies = [row.accuracy for row in rows]
    report = LevelReport(
        level,
        lines,
        notes,
        present,
        [a.within_pi6 for a in accuracies],
        [a.within_pi18 for a in accuracies],
        np.rad2deg(np.concatenate([row.errors for row in rows])),
        np.rad2deg(np.concatenate([row.truth[:, 0] for row in rows])),
        (image_weighted_mean(accuracies, "pi/6"), image_weighted_mean(accuracies, "pi/18")),
        PUBLISHED_MEANS[args.mesh_d].get(level) if full and not args.azimuths.pattern else None,
        settings_of(rows),
    )
    return report, rows


def settings_of(rows: Sequence[Row]) -> dict[str, str]:
    """The settings of the first category, one name per line, and what belongs to each category by its name."""
    config = rows[0].config
    plain = {
        key: config[key]
        for key in ("mesh_d", "backbone", "image_scale", "recipe", "renderer")
        if key in config
    }
    own = {f"checkpoint of {row.category}": row.config["checkpoint"] for row in rows}
    return {
        key: str(value)
        for key, value in (
            plain | {f"solver: {k}": v for k, v in config["solve"].items()} | own
        ).items()
    }


# ---- gallery ----


def gallery_places(errors: NDArray, number: int) -> list[tuple[int, str, int]]:
    """(index, place, rank from 1) of about `number` images [B]: a third each of the best, those around the median, and
    the worst, none of them twice."""
    order, third = np.argsort(errors, kind="stable"), max(1, number // 3)
    middle = max(0, (len(order) - third) // 2)
    ranks = {
        "best": range(third),
        "median": range(middle, middle + third),
        "worst": range(len(order) - third, len(order)),
    }
    chosen: dict[int, str] = {}
    for place in ("worst", "best", "median"):  # where they meet, a small set rather shows its worst
        for rank in ranks[place]:
            if 0 <= rank < len(order):
                chosen.setdefault(rank, place)
    return [(int(order[rank]), chosen[rank], rank + 1) for rank in sorted(chosen)]


def group_size(groups: int) -> int:
    """How many images of a category at a level, when there are so many of these."""
    return min(LARGEST_GROUP, max(SMALLEST_GROUP, GALLERY_IMAGES // groups))


class Gallery:
    """Makes the cards; meshes are read once. missing: pictures that could not be made, and why."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.raw, self.meshes = args, RawPascal3D(args.raw), {}
        self.missing: list[str] = []

    def cards(self, level: str, rows: Sequence[Row], size: int) -> list[Card]:
        """Cards of every category at a level."""
        cards = []
        for row in rows:
            finite = np.flatnonzero(
                np.isfinite(row.poses.pose.angles).all(1) & np.isfinite(row.poses.pose.distance)
            )
            places = gallery_places(row.errors[finite], size)
            for k, place, rank in console.progress(places, f"{row.category}{level} gallery"):
                i = int(finite[k])
                try:
                    jpeg = self.picture(row, level, i)
                except (OSError, ValueError) as reason:
                    self.missing.append(f"{row.category}{level} {row.names[i]}: {reason}")
                    continue
                told = [short_angles(angles[i]) for angles in (row.poses.pose.angles, row.truth)]
                error = float(np.rad2deg(row.errors[i]))
                cards.append(
                    Card(
                        row.category,
                        level,
                        row.names[i],
                        error,
                        place,
                        rank,
                        len(finite),
                        *told,
                        jpeg,
                    )
                )
        return cards

    def picture(self, row: Row, level: str, i: int) -> bytes:
        """Input above, mesh in the predicted pose below, as a small JPEG."""
        path = PreparedSet(self.args.occluded if level else self.args.clean).image(
            row.category + level, row.names[i]
        )
        crop = read_crop(path, 0.5)  # half the size is twice what a card shows of the larger crops
        camera = drawing.camera_of(row.poses, i)
        camera = drawing.scale_camera(camera, crop.shape[0] / camera.map_hw[0])
        overlay = drawing.draw_mesh(
            crop, self.mesh(row, i), Pose(*row.poses.pose.angles[i], row.poses.pose.distance[i]), camera
        )
        gap = np.full((4, crop.shape[1], 3), 255, np.uint8)
        return drawing.as_jpeg(np.concatenate([crop, gap, overlay]), CARD_WIDTH)

    def mesh(self, row: Row, i: int) -> Mesh:
        """The CAD model of the subtype, annotated or predicted, or the cuboid where there is none."""
        index = number = int(row.poses.mesh[i])
        if not row.poses.predicts_subtype:
            index = load_annotation(
                PreparedSet(self.args.clean).annotation(row.category, row.names[i])
            ).cad_index
        path = self.raw.cad_folder(row.category) / f"{index:02d}.off"
        if not path.is_file():
            path = self.raw.cuboids(self.args.mesh_d, row.category)[number - 1]
        if path not in self.meshes:
            self.meshes[path] = read_off(path)
        return self.meshes[path]


# ---- the page ----


def timing_files(experiment: Experiment) -> list[Path]:
    """What the stages noted of their time, in the order of the work."""
    found = [
        p
        for stage in STAGES
        for p in sorted(experiment.timing(stage, "x").parent.glob(f"{stage}_*.json"))
    ]
    return [path for path in found if load_seconds(path)]


def timings_of(paths: Sequence[Path]) -> list[Timing]:
    """The noted times. `draw_results_clean` is stage draw_results of clean."""
    parts = []
    for path in paths:
        stage = next(stage for stage in STAGES if path.stem.startswith(f"{stage}_"))
        noted = load_seconds(path)
        parts.append(
            Timing(
                stage,
                path.stem.removeprefix(f"{stage}_"),
                *(noted[key] for key in Timing._fields[2:]),
            )
        )
    return parts


def digest(args: argparse.Namespace, levels: Sequence[str]) -> str:
    """What the page depends on: poses, times, the prepared images that they belong to, and the choice of categories."""
    experiment = Experiment(args.exp, args.mesh_d, args.azimuths)
    found = hashlib.sha256(f"{VERSION};{args.mesh_d};{args.azimuths};{args.categories}".encode())
    for level in levels:
        for category in args.categories:
            path = experiment.poses(category, level)
            if path.is_file():
                prepared = PreparedSet(args.occluded if level else args.clean)
                found.update(
                    f"{category}{level};{prepared.fingerprint(category + level)};".encode()
                    + path.read_bytes()
                )
    for path in timing_files(experiment):
        found.update(f"{path.name};".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def load_levels(
    args: argparse.Namespace, levels: Sequence[str]
) -> tuple[list[tuple[LevelReport, list[Row]]], list[str]]:
    """The levels that can be reported, and what is left out and why; ValueError when there is none."""
    found, left_out = [], []
    for level in levels:
        try:
            found.append(load_level(args, level))
        except (ValueError, FileNotFoundError) as error:
            left_out.append(f"{level or 'unoccluded'} left out: {error}")
    if not found:
        raise ValueError(f"no level can be reported; {left_out[0]}")
    return found, left_out


def write_page(args: argparse.Namespace, target: Path, levels: Sequence[str], mark: str) -> None:
    """Make the page of these levels. One that lacks something gets no mark, so that the next run makes it again."""
    found, left_out = load_levels(args, levels)
    maker, size = Gallery(args), group_size(sum(len(rows) for _, rows in found))
    cards = [card for report, rows in found for card in maker.cards(report.level, rows, size)]
    if maker.missing:
        left_out.append(
            f"{console.count(len(maker.missing), 'picture')} of the gallery could not be made: {maker.missing[0]}"
        )
    for sentence in left_out:
        print(f"report: {sentence}", file=sys.stderr)
    subject = (
        ", ".join(args.categories)
        if len(args.categories) < 5
        else console.count(len(args.categories), "category")
    )
    timings = timings_of(timing_files(Experiment(args.exp, args.mesh_d, args.azimuths)))
    protocol = (
        f", trained on the azimuths {args.azimuths.pattern}, tested on {args.azimuths.tested} ones"
        if args.azimuths.pattern
        else ""
    )
    title = f"NeMo, {args.mesh_d} cuboid: {subject}{protocol}"
    html = report_page.page(
        title, [report for report, _ in found], cards, timings, left_out, "" if left_out else mark
    )
    write_text(target, html)
    size_mb = target.stat().st_size / 1e6
    print(
        f"report: {console.count(len(found), 'level')}, {console.count(len(cards), 'picture')}, {size_mb:.1f} MB in {target}"
    )


def main() -> None:
    """Write the page, unless the one that is there was made from the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--clean", type=Path, required=True, help="clean test set, whose annotations are the truth"
    )
    parser.add_argument(
        "--occluded",
        type=Path,
        required=True,
        help="occluded test set; need not exist where no level was solved",
    )
    parser.add_argument(
        "--raw", type=Path, required=True, help="PASCAL3D+_release1.1, for the meshes"
    )
    parser.add_argument(
        "--mesh-d",
        choices=MESH_DIMENSIONS,
        default="single",
        help="one cuboid per category or per CAD model",
    )
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    args = parser.parse_args()
    experiment = Experiment(args.exp, args.mesh_d, args.azimuths)
    target, levels = experiment.report_page, found_levels(experiment, args.categories)
    if not levels:
        raise FileNotFoundError(
            f"no poses in {experiment.poses('<category>').parent}; run InferenceNeMo.sh first"
        )
    mark = digest(args, levels)
    if target.is_file() and f"<!-- made from {mark} -->" in target.read_text()[:400]:
        print(f"report: {target} kept")
        return
    write_page(args, target, levels, mark)


if __name__ == "__main__":
    console.run_main(main)
