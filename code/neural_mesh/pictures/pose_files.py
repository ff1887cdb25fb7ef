"""Poses of a file over their images: an npz file of this project, or a third-party table."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.cameras import Pose, consistent_camera
from neural_mesh.pictures.captions import short_angles
from neural_mesh.pictures.contact_sheet import Strip
from neural_mesh.pictures.figures import Panel
from neural_mesh.pictures.mesh_overlay import draw_mesh, fit_camera
from neural_mesh.pictures.solved import SolvedSet
from neural_mesh.settings import FEATURE_STRIDE, NORMALISED_DISTANCE
from neural_mesh.storage.files import read_text
from neural_mesh.storage.results import PoseSet, load_poses

POSE_COLUMNS = ("name", "azimuth_deg", "elevation_deg", "theta_deg")


def read_any_poses(path: Path, category: str, level: str) -> PoseSet:
    """Read poses from an npz file of this project, or from a csv.

    The csv has the columns name, azimuth_deg, elevation_deg, theta_deg and optionally distance and
    mesh. category, level: those of a csv, which does not state them.
    """
    if path.suffix != ".csv":
        return load_poses(path)
    rows = _read_table(path)
    try:
        angles_deg = np.array([_angles_deg(row) for row in rows])
        distance = np.array([float(row.get("distance") or NORMALISED_DISTANCE) for row in rows])
        mesh = np.array([int(row.get("mesh") or 1) for row in rows])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: a value is not a number ({error})") from None
    azimuth, elevation, theta = np.deg2rad(angles_deg).T
    # A table does not say how its poses were solved.
    blank = np.full(len(rows), np.nan)
    return PoseSet(
        category,
        level,
        np.array([row["name"] for row in rows]),
        Pose(azimuth, elevation, theta, distance),
        loss=blank,
        start=blank,
        mesh=mesh,
        config={},
    )


def _angles_deg(row: dict[str, str]) -> list[float]:
    """Convert azimuth, elevation and theta of a line to numbers."""
    return [float(row[column]) for column in POSE_COLUMNS[1:]]


def _read_table(path: Path) -> list[dict[str, str]]:
    """Read the lines of a csv by the column names in its first line.

    Raises ValueError when a line lacks a name or an angle.
    """
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: not a table ({error})") from None
    if not rows or any(row.get(key) in (None, "") for row in rows for key in POSE_COLUMNS):
        columns = ", ".join(POSE_COLUMNS)
        raise ValueError(f"{path}: every line needs {columns} under a first line with these names")
    return rows


def pose_over_image(solved: SolvedSet, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the crop [H, W, 3] of image i, and the crop under the mesh in its pose.

    This needs no features. The camera is the one that the poses were found in, or that of the crops
    when the file does not state it.
    """
    path = solved.crop_file(i)
    if not path.is_file():
        raise FileNotFoundError(
            f"image not found: {path}; name the set that the poses belong to with --prepared"
        )
    # A third-party file does not state the camera.
    if solved.poses.config:
        crop = solved.crop(i)
        camera = solved.camera(i)
    else:
        crop = read_crop(path, 1)
        height, width = crop.shape[:2]
        camera = consistent_camera((height // FEATURE_STRIDE, width // FEATURE_STRIDE))
    mesh, _ = solved.mesh(i)
    return crop, draw_mesh(crop, mesh, solved.pose(i), fit_camera(camera, crop))


def pose_strip(solved: SolvedSet, i: int) -> Strip:
    """Draw the strip of image i, with its error if it is annotated."""
    crop, overlay = pose_over_image(solved, i)
    caption = f"{solved.subset}  {solved.name(i)}"
    details = short_angles(solved.pose(i).angles)
    if solved.annotations:
        caption += f"    error {solved.error_deg(i):.1f}°"
        details += f"; annotated {short_angles(solved.truth(i))}"
    panels = [Panel("input", crop), Panel("saved pose: azimuth, elevation, theta", overlay)]
    return Strip(caption, details, panels)
