"""Saved poses, their images and the checkpoint -> one figure per chosen image, and a contact sheet of all of them.

A figure shows the crop, the mesh in the predicted pose over it, which cells of the feature map are background, object
or occluded, and the loss along azimuth, elevation and theta around the prediction.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nemo import cli, drawing
from nemo.dataset import read_crop
from nemo.devices import first_device, gpus_of
from nemo.drawing import Panel, Pose, Row
from nemo.files import write_text
from nemo.inference import Model, load_model
from nemo.layout import Experiment, PreparedSet, RawPascal3D, checkpoint_path
from nemo.meshes import Mesh, read_off
from nemo.metrics import pose_errors
from nemo.records import Annotation, PoseSet, load_annotation, load_poses
from nemo.rendering import MapCamera, Scene, Target, make_scene, make_target
from nemo.settings import FEATURE_STRIDE

MANIFEST = "pictures.json"  # what was drawn, and from what
SELECTIONS = ("spread", "best", "median", "worst", "random")
OVERLAYS = ("cad", "cuboid")
PICTURE_WIDTH = 1344  # pixels that smaller crops are enlarged towards, so that overlays have fine lines
LOSS_TOLERANCE = 0.01  # between the saved loss and the one found here; half precision on a GPU stays below


@dataclass(frozen=True)
class Solved:
    """Everything about the images of one category that the pictures need. errors [B] radians, pi if not finite."""

    poses: PoseSet
    annotations: list[Annotation]
    errors: NDArray
    model: Model

    def pose(self, i: int) -> Pose:
        """The prediction of image i."""
        return Pose(*(float(getattr(self.poses, key)[i]) for key in Pose._fields))

    def truth(self, i: int) -> tuple[float, float, float]:
        """The annotated azimuth, elevation and theta of image i."""
        annotation = self.annotations[i]
        return annotation.azimuth, annotation.elevation, annotation.theta


def camera_of(poses: PoseSet, i: int) -> MapCamera:
    """The camera in which the pose of image i was found, in cells of the feature map."""
    config = poses.config
    principal_xy = config["principal_xy_cells"] if poses.principal_xy is None else poses.principal_xy[i].tolist()
    return MapCamera(config["focal_cells"], tuple(principal_xy), tuple(config["map_hw"]))


def select_images(errors: NDArray, number: int, how: str, seed: int) -> list[int]:
    """Indices of `number` images (or all, where there are fewer) by their errors [B], from the smallest error up.

    spread: evenly over the ranks of the errors, the best and the worst included. median: those nearest in rank to the
    median. random: drawn by the seed, without looking at the errors.
    """
    order = np.argsort(errors, kind="stable")
    number = min(number, len(order))
    if how == "random":
        return [int(i) for i in order[np.sort(np.random.default_rng(seed).permutation(len(order))[:number])]]
    first = {"best": 0, "median": (len(order) - number) // 2, "worst": len(order) - number}
    if how == "spread":
        return [int(i) for i in order[np.linspace(0, len(order) - 1, number).round().astype(int)]]
    return [int(i) for i in order[first[how] : first[how] + number]]


def load_solved(args: argparse.Namespace, category: str, device: torch.device) -> Solved:
    """Poses, truth and model of a category; ValueError when the poses were found with another checkpoint."""
    experiment, raw = Experiment(args.exp, args.mesh_d, args.azimuths), RawPascal3D(args.raw)
    path = experiment.poses(category, args.level)
    poses = load_poses(path)
    if not len(poses):
        raise ValueError(f"{path} holds no poses; run InferenceNeMo.sh again")
    checkpoint = checkpoint_path(args.save_dir or experiment.network_folder, args.load_file_name, category)
    model = load_model(checkpoint, category, raw.cuboid_folder(args.mesh_d, category), device)
    found = model.checkpoint.fingerprint
    if poses.config["checkpoint"] != found:
        raise ValueError(
            f"{path} was solved with checkpoint {poses.config['checkpoint']}, but {checkpoint} is {found}; "
            "name the one that was used (--save-dir, --load-file-name) or run InferenceNeMo.sh again"
        )
    clean = PreparedSet(args.clean)
    annotations = [load_annotation(clean.annotation(category, name)) for name in poses.names.tolist()]
    truth = np.array([[a.azimuth, a.elevation, a.theta] for a in annotations])
    return Solved(poses, annotations, pose_errors(poses.angles, truth), model)


def overlay_mesh(solved: Solved, i: int, raw: RawPascal3D, overlay: str) -> tuple[Mesh, str]:
    """What to draw over image i and what to call it: the CAD model of its subtype, or the cuboid that was matched."""
    category, index = solved.poses.category, solved.annotations[i].cad_index
    path = raw.cad_folder(category) / f"{index:02d}.off"
    if overlay == "cad" and path.is_file():
        return read_off(path), f"CAD model {index:02d} in the predicted pose (the cuboid was matched)"
    number = int(solved.poses.mesh[i])
    return solved.model.mesh(number), "cuboid in the predicted pose, front side orange"


def read_image(path: Path, config: dict) -> NDArray[np.uint8]:
    """A crop at full resolution; ValueError when it is not of the size that the poses were found on."""
    if not path.is_file():
        raise FileNotFoundError(f"image not found: {path}; run PrepareData.sh first")
    crop = read_crop(path, 1)
    expected = tuple(round(cells * FEATURE_STRIDE / config["image_scale"]) for cells in config["map_hw"])
    if crop.shape[:2] != expected:
        raise ValueError(f"{path}: {crop.shape[:2]} pixels, but the poses were found on crops of {expected}")
    return crop


def in_degrees(angles: Sequence[float]) -> list[float]:
    """Azimuth in [0, 360), elevation and theta in [-180, 180)."""
    azimuth, elevation, theta = np.rad2deg(angles).tolist()
    return [azimuth % 360, (elevation + 180) % 360 - 180, (theta + 180) % 360 - 180]


def degrees(angles: Sequence[float]) -> str:
    """`azimuth 92.3°, elevation 6.8°, theta -0.3°`."""
    named = zip(drawing.SCAN_NAMES, in_degrees(angles), strict=True)
    return ", ".join(f"{name} {round(value, 1) + 0.0:.1f}°" for name, value in named)


def short(angles: Sequence[float]) -> str:
    """`92°, 7°, 0°`."""
    return ", ".join(f"{round(value)}°" for value in in_degrees(angles))


@dataclass(frozen=True)
class Match:
    """What the solver compared for one image. target: with the clutter; compared: as the solver's settings have it."""

    scene: Scene
    target: Target
    compared: Target


def match_of(solved: Solved, i: int, path: Path) -> Match:
    """The neural mesh of image i and the image's scores, computed again from the crop at `path`, on the CPU."""
    config, model, mesh = solved.poses.config, solved.model, int(solved.poses.mesh[i])
    crop = read_crop(path, config["image_scale"])
    features = model.features(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]).cpu()
    bank, clutter = (part.cpu() for part in model.banks(mesh))
    target = make_target(features, bank, clutter)
    compared = target if config["solve"]["clutter"] else replace(target, clutter=None)
    return Match(make_scene(model.mesh(mesh), camera_of(solved.poses, i)), target, compared)


def draw_image(solved: Solved, i: int, args: argparse.Namespace) -> Row:
    """Write the figure of image i; returns its row of the contact sheet."""
    name, subset = str(solved.poses.names[i]), solved.poses.category + args.level
    pose, truth = solved.pose(i), solved.truth(i)
    path = PreparedSet(args.prepared).image(subset, name)
    crop = read_image(path, solved.poses.config)
    match = match_of(solved, i, path)
    warn_if_changed(name, float(solved.poses.loss[i]), float(drawing.losses_of(match.scene, match.compared, [pose])[0]))

    factor = max(1, round(PICTURE_WIDTH / crop.shape[1]))
    picture = drawing.enlarge(crop, factor)
    mesh, kind = overlay_mesh(solved, i, RawPascal3D(args.raw), args.overlay)
    camera = match.scene.camera
    overlay = drawing.draw_mesh(picture, mesh, pose, drawing.scale_camera(camera, picture.shape[0] / camera.map_hw[0]))
    labels = drawing.occluder_map(match.scene, match.target.scores[0].numpy(), match.target.clutter[0].numpy(), pose)
    occluders = drawing.colour_occluder_map(picture, labels)

    panels = [Panel("input", picture), Panel(kind, overlay), Panel("occluder map", occluders)]
    scans = drawing.loss_scans(match.scene, match.compared, pose, truth)
    at_truth = float(drawing.losses_of(match.scene, match.compared, [Pose(*truth, pose.distance)])[0])
    heading = f"{subset}  {name}    error {np.rad2deg(solved.errors[i]):.1f}°"
    details = f"predicted   {degrees(pose[:3])}\nannotated  {degrees(truth)}"
    figure = drawing.result_figure(heading, details, remark_of(solved, i), panels, scans, at_truth)
    folder, file_name = Experiment(args.exp, args.mesh_d, args.azimuths).report_folder(args.level), f"{solved.poses.category}_{name}.png"
    drawing.save_figure(folder / file_name, figure)

    small = [Panel("input", crop), Panel("predicted pose", drawing.shrink(overlay, factor)),
             Panel("occluder map", drawing.shrink(occluders, factor))]  # fmt: skip
    return Row(heading, f"azimuth, elevation, theta: {short(pose[:3])}; annotated {short(truth)}", small, file_name)


def remark_of(solved: Solved, i: int) -> str:
    """How the pose of image i was found, in two lines."""
    config, pose = solved.poses.config, solved.pose(i)
    return (f"loss {float(solved.poses.loss[i]):.3f}, distance {pose.distance:.2f}\n"
            f"{config['mesh_d']} cuboid, backbone {config['backbone']}, image scale {config['image_scale']:g}, "
            f"solver {config['solve']['solver']}")  # fmt: skip


def warn_if_changed(name: str, saved: float, found: float) -> None:
    """Tell when the saved pose does not have its saved loss here: features or camera then differ from the solver's."""
    if not abs(saved - found) <= LOSS_TOLERANCE:
        message = f"{name}: the saved loss is {saved:.4f}, here it is {found:.4f}; the pictures may not fit"
        print(message, file=sys.stderr)


def draw_category(solved: Solved, args: argparse.Namespace) -> tuple[list[Row], int]:
    """Draw the chosen images of a category; returns rows of the contact sheet and how many poses were not finite."""
    finite = np.flatnonzero(np.isfinite([solved.pose(i) for i in range(len(solved.poses))]).all(1))
    chosen = finite[select_images(solved.errors[finite], args.images, args.select, args.seed)]
    rows = []
    for i in cli.progress(chosen.tolist(), f"{solved.poses.category}{args.level} pictures"):
        rows.append(draw_image(solved, i, args))
    return rows, len(solved.poses) - len(finite)


def main() -> None:
    """Draw the chosen images of every category and the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--clean", type=Path, required=True, help="clean test set, whose annotations are the truth")
    parser.add_argument("--images", type=cli.positive, default=6, help="images of each category")
    parser.add_argument("--select", choices=SELECTIONS, default="spread", help="evenly over the errors, or these")
    parser.add_argument("--overlay", choices=OVERLAYS, default="cad", help="cad: the annotated one if --raw has it")
    parser.add_argument("--seed", type=int, default=0, help="of --select random")
    cli.add_network(parser)
    args = parser.parse_args()
    for folder, what in ((args.prepared, "test set"), (args.clean, "clean test set")):
        cli.require_folder(folder, what, "run PrepareData.sh first")
    experiment = Experiment(args.exp, args.mesh_d, args.azimuths)
    present = [c for c in args.categories if experiment.poses(c, args.level).is_file()]
    if not present:
        folder = experiment.poses("", args.level).parent
        raise FileNotFoundError(f"no poses of {', '.join(args.categories)} in {folder}; run InferenceNeMo.sh first")
    folder, wanted = experiment.report_folder(args.level), fingerprint(args, [experiment.poses(c, args.level) for c in present])
    before = read_manifest(folder)
    if before.get("of") == wanted and all((folder / name).is_file() for name in before["pictures"]):
        print(f"{args.level or 'clean'}: {cli.count(len(before['pictures']) - 1, 'figure')} and overview.png in {folder} kept")
        return
    device, rows, not_finite = first_device(gpus_of(args.gpus)), [], 0
    for category in present:
        drawn, left_out = draw_category(load_solved(args, category, device), args)
        rows, not_finite = rows + drawn, not_finite + left_out
    if not rows:
        raise ValueError(f"no pose of {', '.join(present)} is finite; run InferenceNeMo.sh again")
    drawing.save_figure(folder / "overview.png", drawing.contact_sheet(rows, title_of(args)))
    pictures = sorted(["overview.png", *(row.file_name for row in rows)])
    for name in set(before.get("pictures", ())) - set(pictures):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / MANIFEST, cli.as_json({"of": wanted, "pictures": pictures}))
    absent = [c for c in args.categories if c not in present]
    notes = [f"; no poses of {', '.join(absent)}"] if absent else []
    notes += [f"; {cli.count(not_finite, 'pose')} not finite, not drawn"] if not_finite else []
    print(f"{args.level or 'clean'}: {cli.count(len(rows), 'figure')} of {cli.count(len(present), 'category')} "
          f"and overview.png in {folder}{''.join(notes)}")  # fmt: skip


def fingerprint(args: argparse.Namespace, poses: list[Path]) -> str:
    """What the pictures depend on: the poses, which name their checkpoint, and the choices of the command line."""
    digest = hashlib.sha256("".join(f"{getattr(args, key)};" for key in ("images", "select", "overlay", "seed")).encode())
    for path in poses:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict:
    """What an earlier run drew into a folder; empty when there is none."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) and isinstance(found.get("pictures"), list) else {}


def title_of(args: argparse.Namespace) -> str:
    """What the contact sheet shows and how its images were chosen."""
    ways = {"spread": "images spread evenly over the errors", "random": f"images drawn with seed {args.seed}"}
    ways |= {how: f"the {how} by error" for how in ("best", "median", "worst")}
    return f"{args.level or 'unoccluded'}, {args.mesh_d} cuboid: {ways[args.select]}"


if __name__ == "__main__":
    cli.run_main(main)
