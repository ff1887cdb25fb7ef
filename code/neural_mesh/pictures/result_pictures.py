"""The pictures of one solved image: its figure, its strip of the contact sheet, and its film."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_mesh.compare.with_numba import NumbaRenderer
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.pose_error import pose_errors
from neural_mesh.pictures.canvas import save_figure
from neural_mesh.pictures.captions import long_angles, short_angles
from neural_mesh.pictures.contact_sheet import Strip
from neural_mesh.pictures.figures import OCCLUDER_TITLE, Panel, ResultTexts, result_figure
from neural_mesh.pictures.film import (
    Moment,
    film_frames,
    film_steps,
    pose_of_iterate,
    save_film,
)
from neural_mesh.pictures.landscape import loss_scans, near_turn
from neural_mesh.pictures.match import Match, match_image, warn_if_changed
from neural_mesh.pictures.mesh_overlay import draw_mesh, fit_camera
from neural_mesh.pictures.occluder_map import colour_occluder_map
from neural_mesh.pictures.resizing import enlarge, shrink
from neural_mesh.pictures.solved import SolvedSet
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.solver import make_setup, solve

# Pixels that smaller crops are enlarged towards, so that overlays have fine lines.
PICTURE_WIDTH = 1344


def draw_image(solved: SolvedSet, i: int, folder: Path) -> Strip:
    """Write the figure of image i; returns its strip of the contact sheet."""
    name = solved.name(i)
    pose = solved.pose(i)
    truth = solved.truth(i)
    crop = solved.crop(i)
    match = match_image(solved, i)
    warn_if_changed(name, float(solved.poses.loss[i]), match.loss(pose))

    # Pictures.
    factor = max(1, round(PICTURE_WIDTH / crop.shape[1]))
    picture = enlarge(crop, factor)
    mesh, mesh_title = solved.mesh(i)
    overlay = draw_mesh(picture, mesh, pose, fit_camera(match.scene.camera, picture))
    occluders = colour_occluder_map(picture, match.occluder_map(pose))
    panels = [
        Panel("input", picture),
        Panel(mesh_title, overlay),
        Panel(OCCLUDER_TITLE, occluders),
    ]
    small_panels = [
        Panel("input", crop),
        Panel("predicted pose", shrink(overlay, factor)),
        Panel(OCCLUDER_TITLE, shrink(occluders, factor)),
    ]

    # Losses.
    scans = loss_scans(match.scene, match.compared, pose, truth)
    loss_at_truth = match.loss(Pose(*truth, pose.distance))

    # Texts and files.
    heading = f"{solved.subset}  {name}    error {solved.error_deg(i):.1f}°"
    details = f"predicted   {long_angles(pose.angles)}\nannotated  {long_angles(truth)}"
    texts = ResultTexts(heading, details, remark_on(solved, i))
    file_name = f"{solved.poses.category}_{name}.png"
    save_figure(folder / file_name, result_figure(texts, panels, scans, loss_at_truth))
    angles = f"{short_angles(pose.angles)}; annotated {short_angles(truth)}"
    details = f"azimuth, elevation, theta: {angles}"
    return Strip(heading, details, small_panels, file_name, scans)


def remark_on(solved: SolvedSet, i: int) -> str:
    """How the pose of image i was found, in two lines."""
    config = solved.poses.config
    return (
        f"loss {float(solved.poses.loss[i]):.3f}, distance {solved.pose(i).distance:.2f}\n"
        f"{config['mesh_d']} cuboid, backbone {config['backbone']}, "
        f"image scale {config['image_scale']:g}, solver {config['solve']['solver']}"
    )


# ---- films ---------------------------------------------------------------------------------------


def draw_film(solved: SolvedSet, i: int, folder: Path) -> str:
    """Write the film of image i, which is solved once more for it; returns its file name."""
    name = solved.name(i)
    # About what a film shows of it; crops are multiples of 32 pixels.
    crop = shrink(solved.crop(i), 2)
    # The solver's way, from the start to the result.
    match = match_image(solved, i)
    way = solve_again(solved, i, match)
    final = way[-1].pose
    warn_if_changed(name, float(solved.poses.loss[i]), way[-1].loss)
    # Its pictures.
    mesh, _ = solved.mesh(i)
    filmed = _Filmed(match, crop, mesh, final, solved.truth(i))
    moments = [filmed.moment(stop) for stop in way]
    scans = loss_scans(match.scene, match.compared, final, filmed.truth)
    file_name = f"{solved.poses.category}_{name}.gif"
    frames = list(film_frames(f"{solved.subset}  {name}", crop, scans, moments))
    save_film(folder / file_name, frames)
    return file_name


@dataclass(frozen=True)
class Stop:
    """A pose on the solver's way, where the object's origin falls [2] in cells, and its loss."""

    label: str
    pose: Pose
    principal_xy: NDArray
    loss: float


def solve_again(solved: SolvedSet, i: int, match: Match) -> list[Stop]:
    """The way of the same solver, on the CPU, from the start to the result, its last stop."""
    config = solved.poses.config
    # The solver's settings, in which JSON has turned tuples into lists.
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["solve"].items()
    }
    camera = replace(match.scene.camera, principal_xy=tuple(config["principal_xy_cells"]))
    solution = solve(
        solved.model.mesh(int(solved.poses.mesh[i])),
        match.features,
        match.bank,
        match.clutter,
        make_setup(SolveConfig(**settings), camera, config["start_distance"], NumbaRenderer()),
        trace=True,
    )
    # The iterates that the film shows, and the result.
    path = solution.path[0]
    way = []
    for k in film_steps(path):
        label = f"step {k} of {len(path) - 1}"
        loss = float(solution.path_losses[0, k])
        way.append(Stop(label, pose_of_iterate(path[k]), solution.path_principal_xy[0, k], loss))
    result = solution.pose[0]
    way.append(Stop("result", result, result.principal_xy, float(solution.loss[0])))
    return way


@dataclass(frozen=True)
class _Filmed:
    """What all pictures of a film show: the crop [H, W, 3], the mesh, the final pose and the
    annotated angles.
    """

    match: Match
    crop: NDArray[np.uint8]
    mesh: Mesh
    final: Pose
    truth: NDArray

    def moment(self, stop: Stop) -> Moment:
        """The picture of one pose on the way."""
        match = self.match.moved_to(stop.principal_xy)
        angles = stop.pose.angles
        camera = fit_camera(match.scene.camera, self.crop)
        overlay = draw_mesh(self.crop, self.mesh, stop.pose, camera)
        occluders = colour_occluder_map(self.crop, match.occluder_map(stop.pose))
        # How far each angle is from the final one, for the points on the curves.
        final = self.final.angles
        offsets = [near_turn(now, then) - then for now, then in zip(angles, final, strict=True)]
        error = float(np.rad2deg(pose_errors([angles], [self.truth])[0]))
        caption = (
            f"{stop.label}:  loss {stop.loss:.3f},  error {error:.1f}°,  "
            f"azimuth, elevation, theta {short_angles(angles)}"
        )
        return Moment(caption, overlay, occluders, offsets, stop.loss)
