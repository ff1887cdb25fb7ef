"""What is drawn of a set of poses: which images, in which camera, and which mesh over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.geometry.cameras import MapCamera
from neural_mesh.storage.layout import RawPascal3D
from neural_mesh.storage.records import Annotation
from neural_mesh.storage.results import PoseSet

SELECTIONS = ("spread", "best", "median", "worst", "random")
OVERLAYS = ("cad", "cuboid")
NUM_PICTURES = 6  # of each category, unless told


def finite_poses(poses: PoseSet) -> NDArray[np.int64]:
    """Indices of the poses that can be drawn."""
    pose = poses.pose
    return np.flatnonzero(np.isfinite(pose.angles).all(1) & np.isfinite(pose.distance))


def camera_of(poses: PoseSet, i: int) -> MapCamera:
    """The camera in which the pose of image i was found, in cells of the feature map."""
    config = poses.config
    principal_xy = config["principal_xy_cells"]
    if poses.pose.principal_xy is not None:
        principal_xy = poses.pose.principal_xy[i].tolist()
    return MapCamera(config["focal_cells"], tuple(principal_xy), tuple(config["map_hw"]))


# ---- images --------------------------------------------------------------------------------------


def ranks_at(place: str, number: int, total: int) -> range:
    """Ranks (from 0, the smallest error) of the `number` best, median or worst of `total` images.

    The median ones are those nearest in rank to the median. All where there are fewer than
    `number`.
    """
    number = min(number, total)
    first = {"best": 0, "median": (total - number) // 2, "worst": total - number}[place]
    return range(first, first + number)


def select_images(errors: NDArray, number: int, how: str, seed: int) -> list[int]:
    """Indices of `number` images (or all, where there are fewer) by their errors [B], the smallest
    first.

    how: best, median, worst (see `ranks_at`); spread: evenly over the ranks of the errors, the best
    and the worst included; random: drawn by the seed, without looking at the errors.
    """
    # Ranks of the chosen images, then the images of these ranks.
    order = np.argsort(errors, kind="stable")
    number = min(number, len(order))
    if how == "random":
        drawn = np.random.default_rng(seed).permutation(len(order))[:number]
        ranks = np.sort(drawn)
    elif how == "spread":
        ranks = np.linspace(0, len(order) - 1, number).round().astype(int)
    else:
        ranks = ranks_at(how, number, len(order))
    return [int(order[rank]) for rank in ranks]


@dataclass(frozen=True)
class Choice:
    """Which images of each category are drawn, and how.

    images: None for `NUM_PICTURES` (landscapes: for all). select, seed: see `select_images`. films:
    of the images nearest to the median error. overlay: `cad` for the CAD model where it is there,
    or `cuboid`.
    """

    images: int | None = None
    select: str = "spread"
    seed: int = 0
    films: int = 0
    overlay: str = "cad"

    @property
    def pictures(self) -> int:
        """How many images get pictures."""
        return self.images or NUM_PICTURES

    @property
    def words(self) -> str:
        """How the images are chosen."""
        if self.select == "spread":
            return "images spread evenly over the errors"
        if self.select == "random":
            return f"images drawn with seed {self.seed}"
        return f"the {self.select} by error"


# ---- meshes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverlayMeshes:
    """The meshes that can be drawn over an image. mesh_d: of the cuboids, single or multi."""

    raw: RawPascal3D
    mesh_d: str

    def cad_model(self, poses: PoseSet, i: int, annotation: Annotation | None) -> Path:
        """The CAD model of image i, be the file there or not: that of the annotated subtype.

        Where the poses predict the subtype, or nothing is annotated, it is that of the predicted
        one.
        """
        number = int(poses.mesh[i])
        if annotation is not None and not poses.predicts_subtype:
            number = annotation.cad_index
        return self.raw.cad_folder(poses.category) / f"{number:02d}.off"

    def cuboid(self, poses: PoseSet, i: int) -> Path:
        """The cuboid that was matched with image i; FileNotFoundError where there is none."""
        return self.raw.cuboids(self.mesh_d, poses.category)[int(poses.mesh[i]) - 1]
