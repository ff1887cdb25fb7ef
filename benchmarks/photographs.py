"""How well poses are found in whole photographs: accuracy, time and confidence of every route.

    python benchmarks/photographs.py --checkpoint exp/NeMo_single/saved_model_car_last.pth \\
        --raw data/PASCAL3D+_release1.1 --out photographs      # the photographs of the test split
    ... --occluded data/OccludedPASCAL3D --levels "" FGL1_BGL1 FGL2_BGL2     # and occluded twins

Routes, all on the same photographs: `crop`: cut as a prepared image is, by the annotated distance
and principal point; `box`: predict.py with the annotated box; `whole`: predict.py without a box;
`unlabelled`: predict.py --unlabelled, the reference's single crop.

Confidence (Brier score, calibration error, and how many of the poses given with more than 0.8 are
right) takes the calibration beside the checkpoint, which predict.py --calibrate makes; without one
those columns stay empty. "ms" is processor time of a photograph without reading its file, on one
core, of photographs taken eight at a time. "box IoU": overlap of the annotated box with the mesh's,
which is 0.7 to 0.8 where all is right, since cuboids are larger than cars. --out gets the table
(table.md) and all poses and confidences (poses_<route>_<level>.npz), from which it can be made
again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neural_mesh.data.pascal3d import Record, UnusableRecord, read_record
from neural_mesh.data.splits import read_split
from neural_mesh.geometry.boxes import object_scale
from neural_mesh.geometry.pose_error import THRESHOLDS, accuracy, pose_errors
from neural_mesh.machine import arguments, console
from neural_mesh.photographs.calibration import brier_score, calibration_error, calibration_path
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.photographs.framing import Framing
from neural_mesh.photographs.poses import PhotographPose
from neural_mesh.settings import PhotographConfig
from neural_mesh.solve.model import load_model
from neural_mesh.storage.files import write_text
from neural_mesh.storage.layout import RawOccluded, RawPascal3D
from neural_mesh.storage.npz_files import save_npz
from neural_mesh.storage.pictures import Photograph, read_photograph

ROUTES = ("crop", "box", "whole", "unlabelled")
SURE = 0.8  # a confidence above this counts as sure
HEADING = (
    "level",
    "route",
    "pi/6",
    "pi/18",
    "median",
    "box IoU",
    "ms",
    "Brier",
    "calibration error",
    f"right above {SURE}",
)
BATCH_SIZE = 8


def records_of(raw: RawPascal3D, category: str, split: str, images: int | None) -> list[Record]:
    """Annotations of the photographs of a split, by name, without those that cannot be used."""
    names = sorted(read_split(raw, category, split).names)
    if images is not None and images < len(names):
        drawn = np.random.default_rng(0).permutation(len(names))[:images]
        names = [names[i] for i in np.sort(drawn)]
    records = []
    for name in names:
        try:
            records.append(read_record(raw.annotation(category, name), category))
        except UnusableRecord as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not records:
        raise ValueError(f"{raw.root} has no usable annotation of {category} in its {split} split")
    return records


def solve_route(
    route: str,
    finder: PoseFinder,
    photographs: Sequence[Photograph],
    records: Sequence[Record],
) -> NDArray[np.float64]:
    """Poses by one route [B, 8], nan where something is unknown.

    A row is azimuth, elevation, theta, confidence, and the box x0, y0, x1, y1 of the mesh.
    """
    rows = np.full((len(records), 8), np.nan)
    if route == "crop":
        framings = []
        for record in records:
            scale = object_scale(record.pose.distance, record.bbox_xyxy)
            framings.append(Framing(scale, tuple(record.pose.principal_xy)))
        features = finder.crops.features(photographs, framings)
        rows[:, :3] = finder.crops.solve(features, finder.solve_config).pose.angles
        return rows
    if route == "unlabelled":
        poses = finder.find_as_reference(photographs)
    else:
        boxes = [record.bbox_xyxy if route == "box" else None for record in records]
        poses = finder.find_all(list(zip(photographs, boxes, strict=True)))
    for row, pose in zip(rows, poses, strict=True):
        row[:3] = pose.pose.angles
        if finder.calibration is not None and route != "unlabelled":
            row[3] = pose.confidence
        row[4:] = box_of(finder, pose)
    return rows


def box_of(finder: PoseFinder, pose: PhotographPose) -> NDArray[np.float64]:
    """The box x0, y0, x1, y1 around the mesh in a pose, in pixels of its photograph."""
    vertices = finder.model.mesh(pose.mesh).vertices
    u, v, w = pose.camera_matrix @ np.column_stack([vertices, np.ones(len(vertices))]).T
    return np.array([(u / w).min(), (v / w).min(), (u / w).max(), (v / w).max()])


def overlap(box_a: NDArray, box_b: NDArray) -> NDArray[np.float64]:
    """Intersection over union of boxes [B, 4]."""
    sides = np.minimum(box_a[:, 2:], box_b[:, 2:]) - np.maximum(box_a[:, :2], box_b[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    areas = [(box[:, 2:] - box[:, :2]).prod(1) for box in (box_a, box_b)]
    return shared / (sum(areas) - shared)


def measure(
    route: str, finder: PoseFinder, paths: Sequence[Path], records: Sequence[Record]
) -> dict[str, NDArray]:
    """Poses, confidences, truth and seconds of all photographs by one route."""
    batches = []
    seconds = 0.0
    with console.progress_bar(route, len(paths)) as bar:
        for first in range(0, len(paths), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            photographs = [read_photograph(path) for path in paths[batch]]
            begin = time.process_time()
            batches.append(solve_route(route, finder, photographs, records[batch]))
            seconds += time.process_time() - begin
            bar.update(len(photographs))
    rows = np.concatenate(batches)
    return {
        "names": np.array([record.name for record in records]),
        "poses": rows[:, :3],
        "confidence": rows[:, 3],
        "boxes": rows[:, 4:],
        "truth": np.array([record.pose.angles for record in records]),
        "true_boxes": np.array([record.bbox_xyxy for record in records]),
        "seconds": np.array(seconds),
    }


def table_row(level: str, route: str, measured: dict[str, NDArray]) -> list[str]:
    """The numbers of a route at a level."""
    errors = pose_errors(measured["poses"], measured["truth"])
    reached = accuracy(errors)
    shared = overlap(measured["boxes"], measured["true_boxes"]).mean()
    row = [
        level or "clean",
        route,
        f"{reached.within_pi6:.1f}",
        f"{reached.within_pi18:.1f}",
        f"{reached.median_deg:.1f}",
        "" if np.isnan(shared) else f"{shared:.2f}",
        f"{1e3 * float(measured['seconds']) / len(errors):.0f}",
    ]
    # Columns of confidence stay empty without a calibration.
    confidence = measured["confidence"]
    if np.isnan(confidence).any():
        return [*row, "", "", ""]
    right = errors < THRESHOLDS["pi/6"]
    row.append(f"{brier_score(confidence, right):.3f}")
    row.append(f"{calibration_error(confidence, right):.3f}")
    sure = confidence > SURE
    row.append(f"{100 * right[sure].mean():.0f} % of {sure.sum()}" if sure.any() else "none")
    return row


def photographs_at(
    level: str, raw: RawPascal3D, occluded: Path | None, category: str, records: Sequence[Record]
) -> tuple[list[Path], list[Record]]:
    """The photographs at an occlusion level that are there, and their annotations."""
    paths = []
    present = []
    root = occluded if level else raw.root
    for record in records:
        if level:
            path = RawOccluded(occluded).image(category, level, record.name)
        else:
            path = raw.image(category, record.name)
        if path.is_file():
            paths.append(path)
            present.append(record)
    if not paths:
        raise ValueError(f"{root} has none of the photographs of {category} at {level or 'all'}")
    return paths, present


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under the heading, in Markdown."""
    lines = (HEADING, ["---"] * len(HEADING), *rows)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def parse() -> argparse.Namespace:
    """The arguments; ValueError where they do not go together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--checkpoint", type=Path, required=True, help="what TrainNeMo.sh saved")
    option(
        "--raw",
        type=Path,
        required=True,
        help="PASCAL3D+_release1.1, with the photographs and their annotations",
    )
    option(
        "--split",
        choices=("train", "val"),
        default="val",
        help="which photographs (default: val, those to test)",
    )
    option(
        "--images",
        type=arguments.positive,
        help="take so many of them, drawn by a fixed seed (default: all)",
    )
    option("--occluded", type=Path, help="OccludedPASCAL3D, for --levels")
    option(
        "--levels",
        nargs="+",
        type=arguments.level,
        default=[""],
        help='occlusion levels, "" is the photographs as they are (default: those alone)',
    )
    option(
        "--routes", nargs="*", choices=ROUTES, default=ROUTES, help="which routes (default: all)"
    )
    option("--out", type=Path, required=True, help="folder for the table and the poses")
    args = parser.parse_args()
    if any(args.levels) and args.occluded is None:
        raise ValueError("--levels needs --occluded, the folder of the occluded photographs")
    return args


def main() -> None:
    """Measure, save and print the table."""
    args = parse()
    torch.set_num_threads(1)
    model = load_model(args.checkpoint, None, args.checkpoint.parent)
    finder = PoseFinder(model, replace(PhotographConfig(), solver="best"))
    reference = PoseFinder(model, replace(PhotographConfig(), solver="paper"))
    if not finder.use_calibration(calibration_path(args.checkpoint)):
        print(
            "note: no calibration for these settings, confidence is left out; "
            "see predict.py --calibrate",
            file=sys.stderr,
        )
    category = model.checkpoint.config.category
    raw = RawPascal3D(args.raw)
    records = records_of(raw, category, args.split, args.images)
    rows = []
    for level in args.levels:
        paths, present = photographs_at(level, raw, args.occluded, category, records)
        for route in args.routes:
            route_finder = reference if route == "unlabelled" else finder
            measured = measure(route, route_finder, paths, present)
            save_npz(args.out / f"poses_{route}_{level or 'clean'}.npz", measured)
            row = table_row(level, route, measured)
            rows.append(row)
            cells = [f"{name} {cell}" for name, cell in zip(HEADING, row, strict=True) if cell]
            print(f"{len(paths)} photographs:", ", ".join(cells), flush=True)
    table = as_table(rows)
    write_text(args.out / "table.md", table + "\n")
    print(f"\n{table}\n\nin {args.out}")


if __name__ == "__main__":
    console.run_main(main)
