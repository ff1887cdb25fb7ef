"""How well poses are found in whole photographs: accuracy, time and confidence of every route, on the same photographs.

    python benchmarks/photographs.py --checkpoint exp/NeMo_single/saved_model_car_last.pth --raw data/PASCAL3D+_release1.1 \
        --out photographs                                                        # the photographs of the test split
    ... --occluded data/OccludedPASCAL3D --levels "" FGL1_BGL1 FGL2_BGL2         # and their occluded twins

Routes: `crop`: cut as a prepared image is, by the annotated distance and principal point; `box`: predict.py with the
annotated box; `whole`: predict.py without a box; `unlabelled`: predict.py --unlabelled, the reference's single crop.
Confidence (Brier score, calibration error, and how many of the poses given with more than 0.8 are right) takes the
calibration beside the checkpoint, which predict.py --calibrate makes; without one those columns stay empty. "ms" is
processor time of a photograph without reading its file, on one core, of photographs taken eight at a time. "box IoU":
overlap of the annotated box with the mesh's, which is 0.7 to 0.8 where all is right, since cuboids are larger than cars.
--out gets the table (table.md) and all poses and confidences (poses_<route>_<level>.npz), from which it can be made again.
"""

from __future__ import annotations

import argparse
import sys
import time
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
from neural_mesh.photographs.calibration import brier_score, calibration_error
from neural_mesh.photographs.finder import Framing, PhotographPose, PoseFinder, calibration_path
from neural_mesh.settings import PhotographConfig
from neural_mesh.solve.model import load_model
from neural_mesh.storage.files import write_text
from neural_mesh.storage.layout import RawOccluded, RawPascal3D
from neural_mesh.storage.npz_files import save_npz
from neural_mesh.storage.pictures import Photograph, read_photograph

ROUTES = ("crop", "box", "whole", "unlabelled")
SURE = 0.8  # a confidence above this counts as sure
HEADING = [
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
]


def records_of(raw: RawPascal3D, category: str, split: str, images: int | None) -> list[Record]:
    """Annotations of the photographs of a split, by name; those that cannot be used are left out."""
    names, records = sorted(read_split(raw, category, split).names), []
    if images is not None and images < len(names):
        names = [
            names[i] for i in np.sort(np.random.default_rng(0).permutation(len(names))[:images])
        ]
    for name in names:
        try:
            records.append(read_record(raw.annotation(category, name), category))
        except UnusableRecord as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not records:
        raise ValueError(f"{raw.root} has no usable annotation of {category} in its {split} split")
    return records


def solve_route(
    route: str, finder: PoseFinder, photographs: list[Photograph], records: list[Record]
) -> list[tuple]:
    """(azimuth, elevation, theta, confidence, x0, y0, x1, y1 of the mesh) of each photograph by one route, nan where unknown."""
    if route == "crop":
        framings = [
            Framing(object_scale(r.pose.distance, r.bbox_xyxy), tuple(r.pose.principal_xy)) for r in records
        ]
        found = finder.solve(photographs, framings, finder.solve_config)
        return [
            (*angles, *[np.nan] * 5)
            for angles in zip(found.azimuth, found.elevation, found.theta, strict=True)
        ]
    if route == "unlabelled":
        poses = finder.find_as_reference(photographs)
    else:
        poses = finder.find_all(
            [
                (p, r.bbox_xyxy if route == "box" else None)
                for p, r in zip(photographs, records, strict=True)
            ]
        )
    scored = finder.calibration is not None and route != "unlabelled"
    return [
        (p.azimuth, p.elevation, p.theta, p.confidence if scored else np.nan, *box_of(finder, p))
        for p in poses
    ]


def box_of(finder: PoseFinder, pose: PhotographPose) -> NDArray[np.float64]:
    """The box x0, y0, x1, y1 around the mesh in a pose, in pixels of its photograph."""
    vertices = finder.model.mesh(pose.mesh).vertices
    u, v, w = pose.camera_matrix @ np.column_stack([vertices, np.ones(len(vertices))]).T
    return np.array([(u / w).min(), (v / w).min(), (u / w).max(), (v / w).max()])


def overlap(box_a: NDArray, box_b: NDArray) -> NDArray[np.float64]:
    """Intersection over union of boxes [B, 4]."""
    sides = np.minimum(box_a[:, 2:], box_b[:, 2:]) - np.maximum(box_a[:, :2], box_b[:, :2])
    shared, areas = (
        np.maximum(sides, 0).prod(1),
        [(box[:, 2:] - box[:, :2]).prod(1) for box in (box_a, box_b)],
    )
    return shared / (sum(areas) - shared)


def measure(
    route: str, finder: PoseFinder, paths: list[Path], records: list[Record], batch: int = 8
) -> dict[str, NDArray]:
    """Poses, confidences, truth and seconds of all photographs by one route."""
    rows, seconds = [], 0.0
    with console.progress_bar(route, len(paths)) as bar:
        for first in range(0, len(paths), batch):
            photographs = [read_photograph(path) for path in paths[first : first + batch]]
            begin = time.process_time()
            rows += solve_route(route, finder, photographs, records[first : first + batch])
            seconds += time.process_time() - begin
            bar.update(len(photographs))
    truth = np.array([r.pose.angles for r in records])
    return {
        "names": np.array([r.name for r in records]),
        "poses": np.array(rows)[:, :3],
        "confidence": np.array(rows)[:, 3],
        "boxes": np.array(rows)[:, 4:],
        "truth": truth,
        "true_boxes": np.array([r.bbox_xyxy for r in records]),
        "seconds": np.array(seconds),
    }


def table_row(level: str, route: str, found: dict[str, NDArray]) -> list[str]:
    """The numbers of a route at a level."""
    errors = pose_errors(found["poses"], found["truth"])
    reached, said, right = accuracy(errors), found["confidence"], errors < THRESHOLDS["pi/6"]
    row = [
        level or "clean",
        route,
        *(f"{x:.1f}" for x in (reached.within_pi6, reached.within_pi18, reached.median_deg)),
    ]
    shared = overlap(found["boxes"], found["true_boxes"]).mean()
    row.append("" if np.isnan(shared) else f"{shared:.2f}")
    row.append(f"{1e3 * float(found['seconds']) / len(errors):.0f}")
    if np.isnan(said).any():
        return [*row, "", "", ""]
    sure = said > SURE
    share = f"{100 * right[sure].mean():.0f} % of {sure.sum()}" if sure.any() else "none"
    return [*row, f"{brier_score(said, right):.3f}", f"{calibration_error(said, right):.3f}", share]


def main() -> None:
    """Measure, save and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="what TrainNeMo.sh saved")
    parser.add_argument(
        "--raw",
        type=Path,
        required=True,
        help="PASCAL3D+_release1.1, with the photographs and their annotations",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val"),
        default="val",
        help="which photographs (default: val, those to test)",
    )
    parser.add_argument(
        "--images",
        type=arguments.positive,
        help="take so many of them, drawn by a fixed seed (default: all)",
    )
    parser.add_argument("--occluded", type=Path, help="OccludedPASCAL3D, for --levels")
    parser.add_argument(
        "--levels",
        nargs="+",
        type=arguments.level,
        default=[""],
        help='occlusion levels, "" is the photographs as they are (default: those alone)',
    )
    parser.add_argument(
        "--routes", nargs="*", choices=ROUTES, default=ROUTES, help="which routes (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the table and the poses"
    )
    args = parser.parse_args()
    if any(args.levels) and args.occluded is None:
        raise ValueError("--levels needs --occluded, the folder of the occluded photographs")
    torch.set_num_threads(1)
    model = load_model(args.checkpoint, None, args.checkpoint.parent)
    finder, reference = (
        PoseFinder(model, replace(PhotographConfig(), solver=solver))
        for solver in ("best", "paper")
    )
    if not finder.use_calibration(calibration_path(args.checkpoint)):
        print(
            "note: no calibration for these settings, confidence is left out; see predict.py --calibrate",
            file=sys.stderr,
        )
    category, raw = model.checkpoint.config.category, RawPascal3D(args.raw)
    records = records_of(raw, category, args.split, args.images)
    lines = [HEADING]
    for level in args.levels:
        images = RawOccluded(args.occluded) if level else raw
        paths = [
            images.image(category, level, r.name) if level else images.image(category, r.name)
            for r in records
        ]
        there = [path.is_file() for path in paths]
        paths, mine = (
            [each for each, good in zip(all_, there, strict=True) if good]
            for all_ in (paths, records)
        )
        if not paths:
            raise ValueError(
                f"{images.root} has none of the photographs of {category} at {level or 'all'}"
            )
        for route in args.routes:
            found = measure(route, reference if route == "unlabelled" else finder, paths, mine)
            save_npz(args.out / f"poses_{route}_{level or 'clean'}.npz", found)
            lines.append(table_row(level, route, found))
            print(
                f"{len(paths)} photographs:",
                ", ".join(f"{a} {b}" for a, b in zip(HEADING, lines[-1], strict=True) if b),
                flush=True,
            )
    table = "\n".join(
        "| " + " | ".join(cells) + " |" for cells in [HEADING, ["---"] * len(HEADING), *lines[1:]]
    )
    write_text(args.out / "table.md", table + "\n")
    print(f"\n{table}\n\nin {args.out}")


if __name__ == "__main__":
    console.run_main(main)
