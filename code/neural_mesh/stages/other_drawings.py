"""The other drawings of draw_results.py: landscapes, viewpoints, poses of a file, two runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.pose_error import THRESHOLDS
from neural_mesh.machine import console
from neural_mesh.pictures.canvas import save_figure
from neural_mesh.pictures.comparison import (
    ComparedRuns,
    comparison_figure,
    comparison_lines,
    run_names,
)
from neural_mesh.pictures.contact_sheet import contact_sheet
from neural_mesh.pictures.landscape import scans_around
from neural_mesh.pictures.loss_curves import landscape_lines, set_landscape
from neural_mesh.pictures.match import match_image
from neural_mesh.pictures.pose_files import pose_strip, read_any_poses
from neural_mesh.pictures.selection import Choice
from neural_mesh.pictures.solved import SolvedSet
from neural_mesh.pictures.viewpoints import viewpoint_figure
from neural_mesh.stages.saved_results import SavedResults
from neural_mesh.storage.files import csv_text, write_text
from neural_mesh.storage.npz_files import save_npz

AROUND = {"truth": "annotation", "prediction": "prediction"}  # of landscapes, in words


def draw_landscapes(
    results: SavedResults, choice: Choice, categories: list[str], around: str
) -> None:
    """Scan the loss along each angle and the distance for many images of every category.

    around: truth or prediction, the poses that the loss is scanned around. Writes a figure, an npz
    file with every curve, and a csv table.
    """
    device = results.device
    total = 0
    for category in categories:
        solved = results.load_with_network(category, device)
        chosen = solved.choose(choice.images or len(solved.finite), choice.select, choice.seed)
        scans = _set_scans(solved, chosen, around)
        # Figure, npz and csv of the category.
        stem = results.folder / f"landscape_{category}_{around}"
        title = (
            f"{category}{results.networks.level}: loss around the {AROUND[around]}, "
            f"{console.count(len(chosen), 'image')}"
        )
        save_figure(stem.with_suffix(".png"), set_landscape(title, scans, AROUND[around]))
        arrays = {"names": solved.poses.names[chosen]}
        for name, (offsets, losses) in scans.items():
            arrays[f"{name}_offsets"] = offsets
            arrays[f"{name}_losses"] = losses
        save_npz(stem.with_suffix(".npz"), arrays)
        write_text(stem.with_suffix(".csv"), csv_text(landscape_lines(scans)))
        total += len(chosen)
    print(
        f"{results.level}: loss landscapes of {console.count(total, 'image')} "
        f"of {console.count(len(categories), 'category')} in {results.folder}"
    )


def _set_scans(
    solved: SolvedSet, chosen: list[int], around: str
) -> dict[str, tuple[NDArray, NDArray]]:
    """Compute the offsets [N] of each scan, and the losses [B, N] of the chosen images."""
    offsets: dict[str, NDArray] = {}
    losses: dict[str, list[NDArray]] = {}
    for i in console.progress(chosen, f"{solved.subset} landscape"):
        match = match_image(solved, i)
        # The predicted distance is kept, since annotated ones belong to uncropped images.
        pose = solved.pose(i)
        if around == "truth":
            azimuth, elevation, theta = solved.truth(i).tolist()
            pose = Pose(azimuth, elevation, theta, pose.distance)
        for name, scan in scans_around(match.scene, match.compared, pose).items():
            offsets[name], scanned = scan
            losses.setdefault(name, []).append(scanned)
    return {name: (offsets[name], np.stack(losses[name])) for name in offsets}


def draw_viewpoints(results: SavedResults, categories: list[str]) -> None:
    """Draw the distribution of annotated and predicted poses of every category."""
    total = 0
    for category in categories:
        solved = results.load(category)
        finite = solved.finite
        # The array keeps its three columns when no pose is finite.
        truth = np.array([solved.truth(i) for i in finite]).reshape(-1, 3)
        images = console.count(len(finite), "image")
        title = f"{category}{results.networks.level}: viewpoints of {images}"
        figure = viewpoint_figure(title, truth, solved.poses.pose.angles[finite])
        save_figure(results.folder / f"viewpoints_{category}.png", figure)
        total += len(finite)
    print(
        f"{results.level}: viewpoints of {console.count(total, 'image')} "
        f"of {console.count(len(categories), 'category')} in {results.folder}"
    )


def draw_pose_file(results: SavedResults, choice: Choice, path: Path) -> None:
    """Draw the poses of a file over their images."""
    networks = results.networks
    if path.suffix == ".csv" and len(networks.categories) != 1:
        raise ValueError(f"{path} does not say its category; name one with --categories")
    # A file of this project states its own category and level.
    poses = read_any_poses(path, networks.categories[0], networks.level)
    results = replace(results, networks=replace(networks, level=poses.level))
    solved = results.solved_set(poses, path)
    # Without annotations the poses are still drawn, only without their errors.
    if results.is_annotated(poses):
        solved = solved.with_truth(results.clean)
    chosen = solved.choose(choice.pictures, choice.select, choice.seed)
    if not chosen:
        raise ValueError(f"{path} holds no finite pose")
    strips = [pose_strip(solved, i) for i in console.progress(chosen, path.name)]
    target = results.folder / f"poses_{path.stem}.png"
    save_figure(target, contact_sheet(strips, f"poses of {path.name}", slot=4.0))
    drawn = console.count(len(strips), "pose")
    print(f"{solved.subset}: {drawn} of {len(poses):,} drawn in {target}")


def draw_comparison(
    results: SavedResults, choice: Choice, categories: list[str], other: Path
) -> None:
    """Draw the errors of two runs against each other, and the images that changed most.

    other: folder of the other run's results.
    """
    networks = results.networks
    # The same categories of both runs.
    other_results = replace(results, networks=replace(networks, exp=other))
    pairs = []
    for category in categories:
        if other_results.poses_file(category).is_file():
            pairs.append(ComparedRuns.of(results.load(category), other_results.load(category)))
    # Even with poses of the same category, two runs may have no image in common.
    if not any(pair.first for pair in pairs):
        raise FileNotFoundError(
            f"{other} has no Poses_{networks.mesh_d} of the images "
            f"of {', '.join(categories)}{networks.level}"
        )
    # All errors in a figure and a table.
    names = run_names(networks.exp, other)
    errors = np.concatenate([pair.errors for pair in pairs])
    other_errors = np.concatenate([pair.other_errors for pair in pairs])
    images = console.count(len(errors), "image")
    title = f"{networks.level or 'unoccluded'}, {images}"
    stem = f"comparison_{names[1].replace('/', '_')}"
    figure = comparison_figure(title, errors, other_errors, names)
    save_figure(results.folder / f"{stem}.png", figure)
    write_text(results.folder / f"{stem}.csv", csv_text(comparison_lines(pairs)))

    # Pictures of the images that changed most.
    changed = [(pair, k) for pair in pairs for k in pair.most_changed(choice.pictures)]
    strips = []
    for pair, k in console.progress(changed, f"{stem} pictures"):
        strips.append(pair.strip(k, names))
    sheet = contact_sheet(strips, f"{title}: most improved and most worsened", slot=3.6)
    save_figure(results.folder / f"{stem}_pictures.png", sheet)
    print(
        f"{results.level}: {images} compared with {other}: {_changes(errors, other_errors)}; "
        f"in {results.folder / stem}.png, .csv and _pictures.png"
    )


def _changes(errors: NDArray, other_errors: NDArray) -> str:
    """Count the images [B] that got better and worse, and compare the accuracies."""
    better = int((errors < other_errors).sum())
    worse = int((errors > other_errors).sum())
    accuracies = []
    # The other run counts as the earlier one.
    for name, threshold in THRESHOLDS.items():
        before = 100 * (other_errors < threshold).mean()
        now = 100 * (errors < threshold).mean()
        accuracies.append(f"{name} {before:.1f} -> {now:.1f}")
    return f"{better:,} better, {worse:,} worse; {', '.join(accuracies)}"
