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

# Smaller crops are enlarged to about this width in pixels, so that overlays have fine lines.
PICTURE_WIDTH = 1344


def draw_image(solved: SolvedSet, i: int, folder: Path) -> Strip:
    """Write the figure of image i, and return its strip of the contact sheet."""
    name = solved.name(i)
    pose = solved.pose(i)
    truth = solved.truth(i)
    crop = solved.crop(i)
    match = match_image(solved, i)
    warn_if_changed(name, float(solved.poses.loss[i]), match.loss(pose))

    # Pictures: large ones for the figure, small ones for the contact sheet.
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

    # Losses around the prediction, and in the annotated rotation.
    scans = loss_scans(match.scene, match.compared, pose, truth)
    azimuth, elevation, theta = truth.tolist()
    loss_at_truth = match.loss(Pose(azimuth, elevation, theta, pose.distance))

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
    """Describe how the pose of image i was found, in two lines."""
    config = solved.poses.config
    return (
        f"loss {float(solved.poses.loss[i]):.3f}, distance {solved.pose(i).distance:.2f}\n"
        f"{config['mesh_d']} cuboid, backbone {config['backbone']}, "
        f"image scale {config['image_scale']:g}, solver {config['solve']['solver']}"
    )


# ---- films ---------------------------------------------------------------------------------------


def draw_film(solved: SolvedSet, i: int, folder: Path) -> str:
    """Solve image i once more, write the film of it, and return the film's file name."""
    name = solved.name(i)
    # Films are small; crops are multiples of 32 pixels, so that halves are whole.
    crop = shrink(solved.crop(i), 2)
    # Iterates of the solver, from the start to the result.
    match = match_image(solved, i)
    iterates = solve_again(solved, i, match)
    final = iterates[-1].pose
    warn_if_changed(name, float(solved.poses.loss[i]), iterates[-1].loss)
    # Frames and film.
    mesh, _ = solved.mesh(i)
    filmed = _Filmed(match, crop, mesh, final, solved.truth(i))
    moments = [filmed.moment(iterate) for iterate in iterates]
    scans = loss_scans(match.scene, match.compared, final, filmed.truth)
    file_name = f"{solved.poses.category}_{name}.gif"
    frames = list(film_frames(f"{solved.subset}  {name}", crop, scans, moments))
    save_film(folder / file_name, frames)
    return file_name


@dataclass(frozen=True)
class Iterate:
    """A pose of the solver's path. principal_xy [2]: image of the object's origin, in cells."""

    label: str
    pose: Pose
    principal_xy: NDArray
    loss: float


def solve_again(solved: SolvedSet, i: int, match: Match) -> list[Iterate]:
    """Solve image i with the same solver on the CPU.

    Returns the iterates that a film shows, from the start to the result.
    """
    config = solved.poses.config
    # JSON has turned the tuples among the solver's settings into lists.
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["solve"].items()
    }
    camera = replace(match.scene.camera, principal_xy=tuple(config["principal_xy_cells"]))
    solution = solve(
        solved.network.mesh(int(solved.poses.mesh[i])),
        match.features,
        match.bank,
        match.clutter,
        make_setup(SolveConfig(**settings), camera, config["start_distance"], NumbaRenderer()),
        trace=True,
    )
    # A traced solution has its path, whose iterates the film shows before the result.
    assert solution.path is not None
    assert solution.path_losses is not None
    assert solution.path_principal_xy is not None
    path = solution.path[0]
    losses = solution.path_losses[0]
    principal_xy = solution.path_principal_xy[0]
    iterates = []
    for k in film_steps(path):
        label = f"step {k} of {len(path) - 1}"
        pose = pose_of_iterate(path[k])
        iterates.append(Iterate(label, pose, principal_xy[k], float(losses[k])))
    result = solution.pose[0]
    iterates.append(Iterate("result", result, result.principal_xy, float(solution.loss[0])))
    return iterates


@dataclass(frozen=True)
class _Filmed:
    """The content that all frames of a film share.

    crop [H, W, 3]: the filmed image. final: the solver's result. truth [3]: the annotated angles in
    radians.
    """

    match: Match
    crop: NDArray[np.uint8]
    mesh: Mesh
    final: Pose
    truth: NDArray

    def moment(self, iterate: Iterate) -> Moment:
        """Draw one iterate."""
        match = self.match.moved_to(iterate.principal_xy)
        angles = iterate.pose.angles
        camera = fit_camera(match.scene.camera, self.crop)
        overlay = draw_mesh(self.crop, self.mesh, iterate.pose, camera)
        occluders = colour_occluder_map(self.crop, match.occluder_map(iterate.pose))
        # Distance of each angle from the final one, for the points on the curves.
        final = self.final.angles
        offsets = [near_turn(now, then) - then for now, then in zip(angles, final, strict=True)]
        error = float(np.rad2deg(pose_errors([angles], [self.truth])[0]))
        caption = (
            f"{iterate.label}:  loss {iterate.loss:.3f},  error {error:.1f}°,  "
            f"azimuth, elevation, theta {short_angles(angles)}"
        )
        return Moment(caption, overlay, occluders, offsets, iterate.loss)
