"""Saved poses, their images and the checkpoint -> one figure per chosen image, films, and a contact sheet of all of them.

A figure shows the crop, the mesh in the predicted pose over it, which cells of the feature map are background, object
or occluded, and the loss along azimuth, elevation and theta around the prediction; a film shows the same from the
start pose to the final one. Four other drawings, each in place of these:

  --landscape AROUND  mean and spread of the loss over a set, around the annotated poses (truth) or the predicted ones
  --viewpoints        how annotated and predicted poses are distributed
  --poses FILE        the poses of any file over their images; needs no checkpoint
  --compare EXP       which images got better or worse than in another folder of results; needs no checkpoint
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray

from neural_mesh.compare.rendering import Scene, Target, make_scene, make_target
from neural_mesh.data.dataset import read_crop
from neural_mesh.geometry.cameras import Pose, consistent_camera, in_degrees
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.pose_error import THRESHOLDS, pose_errors
from neural_mesh.machine import arguments, console
from neural_mesh.machine.devices import first_device, gpus_of
from neural_mesh.pictures import drawing, plots
from neural_mesh.pictures.drawing import camera_of, short_angles
from neural_mesh.pictures.plots import OCCLUDER_TITLE, Panel, Row
from neural_mesh.settings import FEATURE_STRIDE, NORMALISED_DISTANCE, SolveConfig
from neural_mesh.solve.model import Model, load_model
from neural_mesh.solve.pose import solve
from neural_mesh.storage.files import csv_text, lock, read_json, read_text, write_text
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D, checkpoint_path
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.npz_files import save_npz
from neural_mesh.storage.records import Annotation, load_annotation
from neural_mesh.storage.results import PoseSet, load_poses
from neural_mesh.storage.timings import record_seconds

MANIFEST = "pictures.json"  # what was drawn, and from what
SELECTIONS = ("spread", "best", "median", "worst", "random")
OVERLAYS = ("cad", "cuboid")
NUM_PICTURES = 6  # of each category, unless told
PICTURE_WIDTH = (
    1344  # pixels that smaller crops are enlarged towards, so that overlays have fine lines
)
LOSS_TOLERANCE = (
    0.01  # between the saved loss and the one found here; half precision on a GPU stays below
)


@dataclass(frozen=True)
class Solved:
    """Everything about the images of one category that the pictures need. errors [B] radians, pi if not finite.

    annotations: empty where there is no truth, errors are nan then. model: only where the features are needed.
    """

    poses: PoseSet
    annotations: list[Annotation]
    errors: NDArray
    model: Model | None = None

    def pose(self, i: int) -> Pose:
        """The prediction of image i."""
        return replace(self.poses.pose[i], principal_xy=None)

    def truth(self, i: int) -> tuple[float, float, float]:
        """The annotated azimuth, elevation and theta of image i."""
        pose = self.annotations[i].pose
        return pose.azimuth, pose.elevation, pose.theta


def select_images(errors: NDArray, number: int, how: str, seed: int) -> list[int]:
    """Indices of `number` images (or all, where there are fewer) by their errors [B], from the smallest error up.

    spread: evenly over the ranks of the errors, the best and the worst included. median: those nearest in rank to the
    median. random: drawn by the seed, without looking at the errors.
    """
    order = np.argsort(errors, kind="stable")
    number = min(number, len(order))
    if how == "random":
        return [
            int(i)
            for i in order[np.sort(np.random.default_rng(seed).permutation(len(order))[:number])]
        ]
    first = {"best": 0, "median": (len(order) - number) // 2, "worst": len(order) - number}
    if how == "spread":
        return [int(i) for i in order[np.linspace(0, len(order) - 1, number).round().astype(int)]]
    return [int(i) for i in order[first[how] : first[how] + number]]


def load_solved(args: argparse.Namespace, category: str, device: torch.device) -> Solved:
    """Poses, truth and model of a category; ValueError when the poses were found with another checkpoint."""
    experiment, raw = Experiment(args.exp, args.mesh_d, args.azimuths), RawPascal3D(args.raw)
    path = experiment.poses(category, args.level)
    solved = with_truth(load_poses(path), path, args.clean)
    checkpoint = checkpoint_path(
        args.save_dir or experiment.network_folder, args.load_file_name, category
    )
    model = load_model(checkpoint, category, raw.cuboid_folder(args.mesh_d, category), device)
    found = model.checkpoint.fingerprint
    if solved.poses.config["checkpoint"] != found:
        raise ValueError(
            f"{path} was solved with checkpoint {solved.poses.config['checkpoint']}, but {checkpoint} is {found}; "
            "name the one that was used (--save-dir, --load-file-name) or run InferenceNeMo.sh again"
        )
    return replace(solved, model=model)


def with_truth(poses: PoseSet, path: Path, clean: Path) -> Solved:
    """Poses, read from `path`, with the annotations and errors of their images."""
    if not len(poses):
        raise ValueError(f"{path} holds no poses; run InferenceNeMo.sh again")
    annotations = [
        load_annotation(PreparedSet(clean).annotation(poses.category, name))
        for name in poses.names.tolist()
    ]
    truth = np.array([a.pose.angles for a in annotations])
    return Solved(poses, annotations, pose_errors(poses.pose.angles, truth))


def overlay_mesh(solved: Solved, i: int, args: argparse.Namespace) -> tuple[Mesh, str]:
    """What to draw over image i and what to call it: the CAD model of its subtype, or the cuboid that was matched."""
    raw, category, number = RawPascal3D(args.raw), solved.poses.category, int(solved.poses.mesh[i])
    index = (
        solved.annotations[i].cad_index
        if solved.annotations and not solved.poses.predicts_subtype
        else number
    )
    path = raw.cad_folder(category) / f"{index:02d}.off"
    if args.overlay == "cad" and path.is_file():
        return read_off(
            path
        ), f"CAD model {index:02d} in the predicted pose (the cuboid was matched)"
    mesh = (
        solved.model.mesh(number)
        if solved.model
        else read_off(raw.cuboids(args.mesh_d, category)[number - 1])
    )
    return mesh, "cuboid in the predicted pose, front side orange"


def read_image(path: Path, config: dict) -> NDArray[np.uint8]:
    """A crop at full resolution; ValueError when it is not of the size that the poses were found on."""
    if not path.is_file():
        raise FileNotFoundError(f"image not found: {path}; run PrepareData.sh first")
    crop = read_crop(path, 1)
    expected = tuple(
        round(cells * FEATURE_STRIDE / config["image_scale"]) for cells in config["map_hw"]
    )
    if crop.shape[:2] != expected:
        raise ValueError(
            f"{path}: {crop.shape[:2]} pixels, but the poses were found on crops of {expected}"
        )
    return crop


def degrees(angles: Sequence[float]) -> str:
    """`azimuth 92.3°, elevation 6.8°, theta -0.3°`."""
    named = zip(drawing.SCAN_NAMES, in_degrees(angles).tolist(), strict=True)
    return ", ".join(f"{name} {round(value, 1) + 0.0:.1f}°" for name, value in named)


@dataclass(frozen=True)
class Match:
    """What the solver compared for one image. target: with the clutter; compared: as the solver's settings have it.

    features [1, C, H, W], bank [V, C], clutter [C]: what the scores were computed from.
    """

    scene: Scene
    target: Target
    compared: Target
    features: torch.Tensor
    bank: torch.Tensor
    clutter: torch.Tensor


def match_of(solved: Solved, i: int, path: Path) -> Match:
    """The neural mesh of image i and the image's scores, computed again from the crop at `path`, on the CPU."""
    config, model, mesh = solved.poses.config, solved.model, int(solved.poses.mesh[i])
    crop = read_crop(path, config["image_scale"])
    features = model.features(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]).cpu()
    bank, clutter = (part.cpu() for part in model.banks(mesh))
    target = make_target(features, bank, clutter)
    compared = target if config["solve"]["clutter"] else replace(target, clutter=None)
    return Match(
        make_scene(model.mesh(mesh), camera_of(solved.poses, i)),
        target,
        compared,
        features,
        bank,
        clutter,
    )


def image_path(solved: Solved, i: int, args: argparse.Namespace) -> Path:
    """The crop of image i."""
    return PreparedSet(args.prepared).image(
        solved.poses.category + args.level, str(solved.poses.names[i])
    )


def draw_image(solved: Solved, i: int, args: argparse.Namespace) -> Row:
    """Write the figure of image i; returns its row of the contact sheet."""
    name, subset = str(solved.poses.names[i]), solved.poses.category + args.level
    pose, truth = solved.pose(i), solved.truth(i)
    path = image_path(solved, i, args)
    crop = read_image(path, solved.poses.config)
    match = match_of(solved, i, path)
    warn_if_changed(
        name,
        float(solved.poses.loss[i]),
        float(drawing.losses_of(match.scene, match.compared, [pose])[0]),
    )

    factor = max(1, round(PICTURE_WIDTH / crop.shape[1]))
    picture = drawing.enlarge(crop, factor)
    mesh, kind = overlay_mesh(solved, i, args)
    camera = match.scene.camera
    overlay = drawing.draw_mesh(
        picture, mesh, pose, drawing.scale_camera(camera, picture.shape[0] / camera.map_hw[0])
    )
    labels = drawing.occluder_map(
        match.scene, match.target.scores[0].numpy(), match.target.clutter[0].numpy(), pose
    )
    occluders = drawing.colour_occluder_map(picture, labels)

    panels = [Panel("input", picture), Panel(kind, overlay), Panel(OCCLUDER_TITLE, occluders)]
    scans = drawing.loss_scans(match.scene, match.compared, pose, truth)
    at_truth = float(
        drawing.losses_of(match.scene, match.compared, [Pose(*truth, pose.distance)])[0]
    )
    heading = f"{subset}  {name}    error {np.rad2deg(solved.errors[i]):.1f}°"
    details = f"predicted   {degrees(pose.angles)}\nannotated  {degrees(truth)}"
    figure = plots.result_figure(heading, details, remark_of(solved, i), panels, scans, at_truth)
    folder, file_name = (
        Experiment(args.exp, args.mesh_d, args.azimuths).report_folder(args.level),
        f"{solved.poses.category}_{name}.png",
    )
    plots.save_figure(folder / file_name, figure)

    small = [
        Panel("input", crop),
        Panel("predicted pose", drawing.shrink(overlay, factor)),
        Panel(OCCLUDER_TITLE, drawing.shrink(occluders, factor)),
    ]
    return Row(
        heading,
        f"azimuth, elevation, theta: {short_angles(pose.angles)}; annotated {short_angles(truth)}",
        small,
        file_name,
        scans,
    )


def remark_of(solved: Solved, i: int) -> str:
    """How the pose of image i was found, in two lines."""
    config, pose = solved.poses.config, solved.pose(i)
    return (
        f"loss {float(solved.poses.loss[i]):.3f}, distance {pose.distance:.2f}\n"
        f"{config['mesh_d']} cuboid, backbone {config['backbone']}, image scale {config['image_scale']:g}, "
        f"solver {config['solve']['solver']}"
    )


def warn_if_changed(name: str, saved: float, found: float) -> None:
    """Tell when the saved pose does not have its saved loss here: features or camera then differ from the solver's."""
    if not abs(saved - found) <= LOSS_TOLERANCE:
        message = f"{name}: the saved loss is {saved:.4f}, here it is {found:.4f}; the pictures may not fit"
        print(message, file=sys.stderr)


def draw_film(solved: Solved, i: int, args: argparse.Namespace) -> str:
    """Write the film of image i, solved once more with every iterate kept; returns its file name."""
    name, config, truth = str(solved.poses.names[i]), solved.poses.config, solved.truth(i)
    crop, match = (
        read_image(image_path(solved, i, args), config),
        match_of(solved, i, image_path(solved, i, args)),
    )
    crop = drawing.shrink(
        crop, 2
    )  # to about what a film shows of it; crops are multiples of 32 pixels
    settings = SolveConfig(
        **{key: tuple(v) if isinstance(v, list) else v for key, v in config["solve"].items()}
    )
    camera = replace(match.scene.camera, principal_xy=tuple(config["principal_xy_cells"]))
    found = solve(
        solved.model.mesh(int(solved.poses.mesh[i])),
        match.features,
        match.bank,
        match.clutter,
        settings,
        camera,
        config["start_distance"],
        "numba",
        trace=True,
    )
    warn_if_changed(name, float(solved.poses.loss[i]), float(found.loss[0]))
    final = Pose(*(float(getattr(found, key)[0]) for key in ("azimuth", "elevation", "theta", "distance")))
    path, principals, losses = found.path[0], found.path_principal_xy[0], found.path_losses[0]
    steps = drawing.film_steps(path)
    way = [
        (f"step {k} of {len(path) - 1}", drawing.pose_of_iterate(path[k]), principals[k], losses[k])
        for k in steps
    ]
    way.append(("result", final, found.principal_xy[0], found.loss[0]))
    mesh, _ = overlay_mesh(solved, i, args)
    moments = [
        moment_of(placed(match, xy), crop, mesh, label, pose, float(loss), final, truth)
        for label, pose, xy, loss in way
    ]
    scans = drawing.loss_scans(match.scene, match.compared, final, truth)
    file_name = f"{solved.poses.category}_{name}.gif"
    frames = list(
        plots.film_frames(f"{solved.poses.category}{args.level}  {name}", crop, scans, moments)
    )
    drawing.save_film(
        Experiment(args.exp, args.mesh_d, args.azimuths).report_folder(args.level) / file_name,
        frames,
    )
    return file_name


def placed(match: Match, principal_xy: NDArray) -> Match:
    """The match with the object's origin at another place of the map, in cells; only 6D poses move it."""
    camera = replace(match.scene.camera, principal_xy=tuple(principal_xy.tolist()))
    return replace(match, scene=replace(match.scene, camera=camera))


def moment_of(
    match: Match,
    crop: NDArray,
    mesh: Mesh,
    label: str,
    pose: Pose,
    loss: float,
    final: Pose,
    truth: Sequence[float],
) -> plots.Moment:
    """One picture of a film: the pose that the solver had then."""
    camera = match.scene.camera
    overlay = drawing.draw_mesh(
        crop, mesh, pose, drawing.scale_camera(camera, crop.shape[0] / camera.map_hw[0])
    )
    labels = drawing.occluder_map(
        match.scene, match.target.scores[0].numpy(), match.target.clutter[0].numpy(), pose
    )
    offsets = [drawing.near_turn(a, b) - b for a, b in zip(pose.angles, final.angles, strict=True)]
    error = float(np.rad2deg(pose_errors([pose.angles], [truth])[0]))
    caption = f"{label}:  loss {loss:.3f},  error {error:.1f}°,  azimuth, elevation, theta {short_angles(pose.angles)}"
    return plots.Moment(caption, overlay, drawing.colour_occluder_map(crop, labels), offsets, loss)


def finite_poses(solved: Solved) -> NDArray:
    """Indices of the poses that can be drawn."""
    poses = [solved.pose(i) for i in range(len(solved.poses))]
    return np.flatnonzero(np.isfinite([[*pose.angles, pose.distance] for pose in poses]).all(1))


def draw_category(solved: Solved, args: argparse.Namespace) -> tuple[list[Row], list[str], int]:
    """Draw the chosen images of a category; returns rows of the contact sheet, films, and how many poses are not finite."""
    finite, number = finite_poses(solved), args.images or NUM_PICTURES
    chosen = finite[select_images(solved.errors[finite], number, args.select, args.seed)].tolist()
    filmed = finite[select_images(solved.errors[finite], args.film, "median", args.seed)].tolist()
    subset = f"{solved.poses.category}{args.level}"
    rows = [draw_image(solved, i, args) for i in console.progress(chosen, f"{subset} pictures")]
    films = (
        [draw_film(solved, i, args) for i in console.progress(filmed, f"{subset} films")]
        if filmed
        else []
    )
    return rows, films, len(solved.poses) - len(finite)


def draw_pictures(args: argparse.Namespace, present: list[str]) -> None:
    """Figures, films and the contact sheet; what an earlier run drew from the same is kept."""
    experiment, started = Experiment(args.exp, args.mesh_d, args.azimuths), monotonic()
    folder, wanted = (
        experiment.report_folder(args.level),
        fingerprint(args, [experiment.poses(c, args.level) for c in present]),
    )
    before = read_manifest(folder)
    if before.get("of") == wanted and all((folder / name).is_file() for name in before["pictures"]):
        print(
            f"{args.level or 'clean'}: {console.count(len(before['pictures']) - 1, 'picture')} and overview.png in {folder} kept"
        )
        return
    device, rows, films, not_finite = first_device(gpus_of(args.gpus)), [], [], 0
    for category in present:
        drawn, filmed, left_out = draw_category(load_solved(args, category, device), args)
        rows, films, not_finite = rows + drawn, films + filmed, not_finite + left_out
    if not rows:
        raise ValueError(f"no pose of {', '.join(present)} is finite; run InferenceNeMo.sh again")
    plots.save_figure(folder / "overview.png", plots.contact_sheet(rows, title_of(args)))
    pictures = sorted(["overview.png", *(row.file_name for row in rows), *films])
    for name in set(before.get("pictures", ())) - set(pictures):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / MANIFEST, console.as_json({"of": wanted, "pictures": pictures}))
    record_seconds(
        experiment.timing("draw_results", args.level or "clean"),
        monotonic() - started,
        len(pictures) - 1,
        "pictures",
    )
    absent = [c for c in args.categories if c not in present]
    notes = [f"; no poses of {', '.join(absent)}"] if absent else []
    notes += [f"; {console.count(not_finite, 'pose')} not finite, not drawn"] if not_finite else []
    drawn = console.count(len(rows), "figure") + (f", {console.count(len(films), 'film')}" if films else "")
    print(
        f"{args.level or 'clean'}: {drawn} of {console.count(len(present), 'category')} and overview.png in {folder}{''.join(notes)}"
    )


# ---- the other drawings ----


def draw_landscapes(args: argparse.Namespace, present: list[str]) -> None:
    """Loss along each angle and the distance for many images of every category: figure, npz with every curve, csv."""
    folder, device, total = (
        Experiment(args.exp, args.mesh_d, args.azimuths).report_folder(args.level),
        first_device(gpus_of(args.gpus)),
        0,
    )
    for category in present:
        solved = load_solved(args, category, device)
        finite = finite_poses(solved)
        chosen = finite[
            select_images(solved.errors[finite], args.images or len(finite), args.select, args.seed)
        ].tolist()
        curves: dict[str, list[NDArray]] = {name: [] for name in drawing.SET_SCANS}
        for i in console.progress(chosen, f"{category}{args.level} landscape"):
            match = match_of(solved, i, image_path(solved, i, args))
            centre = (
                Pose(*solved.truth(i), solved.pose(i).distance)
                if args.landscape == "truth"
                else solved.pose(i)
            )
            for name, (offsets, losses) in drawing.scans_around(
                match.scene, match.compared, centre
            ).items():
                curves[name] = [*(curves[name] or [offsets]), losses]
        scans = {name: (found[0], np.stack(found[1:])) for name, found in curves.items()}
        around = {"truth": "annotation", "prediction": "prediction"}[args.landscape]
        stem = folder / f"landscape_{category}_{args.landscape}"
        title = (
            f"{category}{args.level}: loss around the {around}, {console.count(len(chosen), 'image')}"
        )
        plots.save_figure(stem.with_suffix(".png"), plots.set_landscape(title, scans, around))
        arrays = {
            f"{name}_{part}": value
            for name, scan in scans.items()
            for part, value in zip(("offsets", "losses"), scan, strict=True)
        }
        save_npz(stem.with_suffix(".npz"), {"names": solved.poses.names[chosen], **arrays})
        write_text(stem.with_suffix(".csv"), csv_text(landscape_lines(scans)))
        total += len(chosen)
    print(
        f"{args.level or 'clean'}: loss landscapes of {console.count(total, 'image')} of {console.count(len(present), 'category')} in {folder}"
    )


def landscape_lines(scans: dict[str, tuple[NDArray, NDArray]]) -> list[list[object]]:
    """Per scan and offset (degrees, or CAD units) the mean, deviation and quantiles of the loss over the images."""
    lines: list[list[object]] = [
        ["scan", "offset", "images", "mean", "deviation", "p10", "median", "p90"]
    ]
    for name, (offsets, losses) in scans.items():
        for k, offset in enumerate(offsets if name == "distance" else np.rad2deg(offsets)):
            known = losses[np.isfinite(losses[:, k]), k]
            if len(known):
                numbers = [known.mean(), known.std(), *np.percentile(known, (10, 50, 90))]
                lines.append(
                    [name, f"{offset:.3f}", len(known), *(f"{number:.6f}" for number in numbers)]
                )
    return lines


def draw_viewpoints(args: argparse.Namespace, present: list[str]) -> None:
    """The distribution of annotated and predicted poses of every category."""
    experiment = Experiment(args.exp, args.mesh_d, args.azimuths)
    folder, total = experiment.report_folder(args.level), 0
    for category in present:
        path = experiment.poses(category, args.level)
        solved = with_truth(load_poses(path), path, args.clean)
        finite = finite_poses(solved)
        truth = np.array([solved.truth(i) for i in finite]).reshape(-1, 3)
        title = f"{category}{args.level}: viewpoints of {console.count(len(finite), 'image')}"
        plots.save_figure(
            folder / f"viewpoints_{category}.png",
            plots.viewpoint_figure(title, truth, solved.poses.pose.angles[finite]),
        )
        total += len(finite)
    print(
        f"{args.level or 'clean'}: viewpoints of {console.count(total, 'image')} of {console.count(len(present), 'category')} in {folder}"
    )


POSE_COLUMNS = ("name", "azimuth_deg", "elevation_deg", "theta_deg")


def read_any_poses(path: Path, category: str, level: str) -> PoseSet:
    """Poses of an npz file of this project, or of a csv with the columns name, azimuth_deg, elevation_deg, theta_deg
    and, where known, distance and mesh; a csv is taken to be of this category and level."""
    if path.suffix != ".csv":
        return load_poses(path)
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: not a table ({error})") from None
    if not rows or any(row.get(key) in (None, "") for row in rows for key in POSE_COLUMNS):
        raise ValueError(
            f"{path}: every line needs {', '.join(POSE_COLUMNS)} under a first line with these names"
        )
    try:
        angles = np.deg2rad([[float(row[key]) for key in POSE_COLUMNS[1:]] for row in rows])
        distance = np.array([float(row.get("distance") or NORMALISED_DISTANCE) for row in rows])
        mesh = np.array([int(row.get("mesh") or 1) for row in rows])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: a value is not a number ({error})") from None
    blank = np.full(len(rows), np.nan)
    return PoseSet(
        category,
        level,
        np.array([row["name"] for row in rows]),
        Pose(*angles.T, distance),
        blank,
        blank,
        mesh,
        config={},
    )


def draw_pose_file(args: argparse.Namespace) -> None:
    """The poses of any file over their images."""
    if args.poses.suffix == ".csv" and len(args.categories) != 1:
        raise ValueError(f"{args.poses} does not say its category; name one with --categories")
    poses = read_any_poses(args.poses, args.categories[0], args.level)
    args.level = poses.level
    annotated = all(
        PreparedSet(args.clean).annotation(poses.category, name).is_file()
        for name in poses.names.tolist()
    )
    solved = (
        with_truth(poses, args.poses, args.clean)
        if annotated
        else Solved(poses, [], np.full(len(poses), np.nan))
    )
    finite = finite_poses(solved)
    chosen = finite[
        select_images(solved.errors[finite], args.images or NUM_PICTURES, args.select, args.seed)
    ].tolist()
    if not chosen:
        raise ValueError(f"{args.poses} holds no finite pose")
    rows = []
    for i in console.progress(chosen, args.poses.name):
        crop, overlay = pose_over_image(solved, i, args)
        error = f"    error {np.rad2deg(solved.errors[i]):.1f}°" if annotated else ""
        told = short_angles(solved.pose(i)[:3]) + (
            f"; annotated {short_angles(solved.truth(i))}" if annotated else ""
        )
        panels = [Panel("input", crop), Panel("saved pose: azimuth, elevation, theta", overlay)]
        rows.append(Row(f"{poses.category}{poses.level}  {poses.names[i]}{error}", told, panels))
    target = (
        Experiment(args.exp, args.mesh_d, args.azimuths).report_folder(args.level)
        / f"poses_{args.poses.stem}.png"
    )
    plots.save_figure(target, plots.contact_sheet(rows, f"poses of {args.poses.name}", slot=4.0))
    print(
        f"{poses.category}{poses.level}: {console.count(len(rows), 'pose')} of {len(poses):,} drawn in {target}"
    )


def pose_over_image(solved: Solved, i: int, args: argparse.Namespace) -> tuple[NDArray, NDArray]:
    """The crop of image i, and the mesh in its pose over it, in the camera that the poses were found in (that of the
    crops, where the file does not tell). Needs no features."""
    config = solved.poses.config
    path = image_path(solved, i, args)
    if not path.is_file():
        raise FileNotFoundError(
            f"image not found: {path}; name the set that the poses belong to with --prepared"
        )
    crop = read_image(path, config) if config else read_crop(path, 1)
    camera = (
        camera_of(solved.poses, i)
        if config
        else consistent_camera(tuple(n // FEATURE_STRIDE for n in crop.shape[:2]))
    )
    mesh, _ = overlay_mesh(solved, i, args)
    return crop, drawing.draw_mesh(
        crop, mesh, solved.pose(i), drawing.scale_camera(camera, crop.shape[0] / camera.map_hw[0])
    )


@dataclass(frozen=True)
class Compared:
    """Two runs on the images that both have. here, there: index into each run's poses; errors [B] in radians."""

    ours: Solved
    others: Solved
    here: list[int]
    there: list[int]

    @property
    def errors(self) -> tuple[NDArray, NDArray]:
        return self.ours.errors[self.here], self.others.errors[self.there]


def load_compared(args: argparse.Namespace, category: str) -> Compared | None:
    """The two runs of a category; None where the other has none of it."""
    paths = [
        Experiment(root, args.mesh_d, args.azimuths).poses(category, args.level)
        for root in (args.exp, args.compare)
    ]
    if not paths[1].is_file():
        return None
    ours, others = (with_truth(load_poses(path), path, args.clean) for path in paths)
    place = {name: k for k, name in enumerate(others.poses.names.tolist())}
    here = [k for k, name in enumerate(ours.poses.names.tolist()) if name in place]
    return Compared(ours, others, here, [place[ours.poses.names[k]] for k in here])


def run_names(first: Path, second: Path) -> tuple[str, str]:
    """Names that tell two folders of results apart."""
    first, second = first.resolve(), second.resolve()
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"


def draw_comparison(args: argparse.Namespace, present: list[str]) -> None:
    """Errors of two runs against each other, and pictures of the images that changed most."""
    pairs = [pair for category in present if (pair := load_compared(args, category)) is not None]
    if not pairs or not sum(len(pair.here) for pair in pairs):
        raise FileNotFoundError(
            f"{args.compare} has no Poses_{args.mesh_d} of the images of {', '.join(present)}{args.level}"
        )
    names = run_names(args.exp, args.compare)
    ours, others = (np.concatenate([pair.errors[k] for pair in pairs]) for k in (0, 1))
    folder = Experiment(args.exp, args.mesh_d, args.azimuths).report_folder(args.level)
    stem = f"comparison_{names[1].replace('/', '_')}"
    title = f"{args.level or 'unoccluded'}, {console.count(len(ours), 'image')}"
    plots.save_figure(folder / f"{stem}.png", plots.comparison_figure(title, ours, others, names))
    write_text(folder / f"{stem}.csv", csv_text(comparison_lines(pairs)))
    changed = [(pair, k) for pair in pairs for k in most_changed(pair, args)]
    rows = [
        changed_row(pair, k, args, names) for pair, k in console.progress(changed, f"{stem} pictures")
    ]
    plots.save_figure(
        folder / f"{stem}_pictures.png",
        plots.contact_sheet(rows, f"{title}: most improved and most worsened", slot=3.6),
    )
    within = {
        key: [100 * (errors < limit).mean() for errors in (others, ours)]
        for key, limit in THRESHOLDS.items()
    }
    shares = ", ".join(f"{key} {before:.1f} -> {now:.1f}" for key, (before, now) in within.items())
    better, worse = int((ours < others).sum()), int((ours > others).sum())
    print(
        f"{args.level or 'clean'}: {console.count(len(ours), 'image')} compared with {args.compare}: {better:,} better, {worse:,} worse; "
        f"{shares}; in {folder / stem}.png, .csv and _pictures.png"
    )


def most_changed(pair: Compared, args: argparse.Namespace) -> list[int]:
    """Positions of the images whose errors changed most, half of them for the better, the most improved first."""
    change = pair.errors[0] - pair.errors[1]
    drawable = [
        k
        for k in np.argsort(change, kind="stable").tolist()
        if np.isfinite([*pair.ours.pose(pair.here[k]), *pair.others.pose(pair.there[k])]).all()
    ]
    half = max(1, (args.images or NUM_PICTURES) // 2)
    better, worse = ([k for k in drawable if sign * change[k] > 0] for sign in (-1, 1))
    return better[:half] + worse[-half:]


def changed_row(pair: Compared, k: int, args: argparse.Namespace, names: tuple[str, str]) -> Row:
    """One image with the poses of both runs."""
    crop, ours = pose_over_image(pair.ours, pair.here[k], args)
    _, others = pose_over_image(pair.others, pair.there[k], args)
    now, before = (np.rad2deg(errors[k]) for errors in pair.errors)
    word = "better" if now < before else "worse"
    told = f"{names[1]}: error {before:.1f}°    {names[0]}: error {now:.1f}°"
    panels = [Panel("input", crop), Panel(names[1], others), Panel(names[0], ours)]
    return Row(
        f"{pair.ours.poses.category}  {pair.ours.poses.names[pair.here[k]]}    {word} by {abs(now - before):.1f}°",
        told,
        panels,
    )


def comparison_lines(pairs: Sequence[Compared]) -> list[list[object]]:
    """Every image with both errors in degrees, the most improved first."""
    rows = []
    for pair in pairs:
        names = pair.ours.poses.names[pair.here].tolist()
        for name, now, before in zip(names, *np.rad2deg(pair.errors), strict=True):
            rows.append((now - before, pair.ours.poses.category, name, now, before))
    lines: list[list[object]] = [["category", "name", "error_deg", "other_error_deg", "change_deg"]]
    return lines + [
        [c, name, f"{now:.3f}", f"{before:.3f}", f"{change:.3f}"]
        for change, c, name, now, before in sorted(rows)
    ]


def main() -> None:
    """Draw the chosen images of every category and the contact sheet, or one of the other drawings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clean", type=Path, required=True, help="clean test set, whose annotations are the truth"
    )
    parser.add_argument(
        "--images",
        type=arguments.positive,
        help=f"images of each category (default {NUM_PICTURES}; --landscape: all)",
    )
    parser.add_argument(
        "--select",
        choices=SELECTIONS,
        default="spread",
        help="evenly over the errors (default), or these",
    )
    parser.add_argument(
        "--film",
        type=arguments.count_or_none,
        default=0,
        help="films of each category, of the images nearest to the median error (default 0)",
    )
    parser.add_argument(
        "--overlay",
        choices=OVERLAYS,
        default="cad",
        help="cad (default): the annotated one if --raw has it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --select random (default 0)")
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--landscape", choices=("truth", "prediction"), help="loss over a set, around these poses"
    )
    others.add_argument("--viewpoints", action="store_true", help="distribution of the poses")
    others.add_argument("--poses", type=Path, help="npz or csv file of poses to draw")
    others.add_argument("--compare", type=Path, help="folder of the results to compare with")
    arguments.add_network(parser)
    args = parser.parse_args()
    for folder, what in ((args.prepared, "test set"), (args.clean, "clean test set")):
        console.require_folder(folder, what, "run PrepareData.sh first")
    if args.poses is not None:
        draw_pose_file(args)
        return
    experiment = Experiment(args.exp, args.mesh_d, args.azimuths)
    present = [c for c in args.categories if experiment.poses(c, args.level).is_file()]
    if not present:
        folder = experiment.poses("", args.level).parent
        raise FileNotFoundError(
            f"no poses of {', '.join(args.categories)} in {folder}; run InferenceNeMo.sh first"
        )
    if args.landscape:
        draw_landscapes(args, present)
    elif args.viewpoints:
        draw_viewpoints(args, present)
    elif args.compare is not None:
        draw_comparison(args, present)
    else:
        with lock(experiment.report_folder(args.level), "draw", "pictures"):
            draw_pictures(args, present)


def fingerprint(args: argparse.Namespace, poses: list[Path]) -> str:
    """What the pictures depend on: the poses, which name their checkpoint, and the choices of the command line."""
    digest = hashlib.sha256(
        "".join(
            f"{getattr(args, key)};" for key in ("images", "select", "overlay", "seed", "film")
        ).encode()
    )
    for path in poses:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict:
    """What an earlier run drew into a folder; empty when there is none."""
    path = folder / MANIFEST
    try:
        found = read_json(path) if path.is_file() else {}
    except ValueError:
        found = {}
    return found if isinstance(found.get("pictures"), list) else {}


def title_of(args: argparse.Namespace) -> str:
    """What the contact sheet shows and how its images were chosen."""
    ways = {
        "spread": "images spread evenly over the errors",
        "random": f"images drawn with seed {args.seed}",
    }
    ways |= {how: f"the {how} by error" for how in ("best", "median", "worst")}
    return f"{args.level or 'unoccluded'}, {args.mesh_d} cuboid: {ways[args.select]}"


if __name__ == "__main__":
    console.run_main(main)
