"""The choice of what to draw of a set of poses: the images, the camera, and the mesh over them."""

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
NUM_PICTURES = 6  # default number of images of each category


def finite_poses(poses: PoseSet) -> NDArray[np.int64]:
    """Find the poses that can be drawn; returns their indices."""
    pose = poses.pose
    return np.flatnonzero(np.isfinite(pose.angles).all(1) & np.isfinite(pose.distance))


def camera_of(poses: PoseSet, i: int) -> MapCamera:
    """Return the camera in which the pose of image i was found, in cells of the feature map."""
    config = poses.config
    # 6D poses have a principal point for each image.
    principal_xy = config["principal_xy_cells"]
    if poses.pose.principal_xy is not None:
        principal_xy = poses.pose.principal_xy[i].tolist()
    return MapCamera(config["focal_cells"], tuple(principal_xy), tuple(config["map_hw"]))


# ---- images --------------------------------------------------------------------------------------


def ranks_at(place: str, number: int, total: int) -> range:
    """Return the ranks of the `number` best, median or worst of `total` images.

    Rank 0 is the smallest error. The median images are those nearest in rank to the median. All
    ranks are returned if there are fewer than `number`.
    """
    number = min(number, total)
    first = {"best": 0, "median": (total - number) // 2, "worst": total - number}[place]
    return range(first, first + number)


def select_images(errors: NDArray, number: int, how: str, seed: int) -> list[int]:
    """Choose `number` images, or all if there are fewer, by their errors [B].

    how: best, median or worst (see `ranks_at`); spread, which is evenly over the ranks of the
    errors, the best and the worst included; or random, which draws by the seed. Returns indices,
    the smallest error first.
    """
    # Choose ranks, then look up their images.
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

    images: number of images; None for `NUM_PICTURES`, or for all in landscapes. select, seed: see
    `select_images`. films: number of films, about the images nearest to the median error. overlay:
    `cad` for the CAD model if its file exists, or `cuboid`.
    """

    images: int | None = None
    select: str = "spread"
    seed: int = 0
    films: int = 0
    overlay: str = "cad"

    @property
    def pictures(self) -> int:
        """The number of images that get pictures."""
        return self.images or NUM_PICTURES

    @property
    def words(self) -> str:
        """The rule by which the images are chosen, for a title."""
        if self.select == "spread":
            return "images spread evenly over the errors"
        if self.select == "random":
            return f"images drawn with seed {self.seed}"
        return f"the {self.select} by error"


# ---- meshes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverlayMeshes:
    """The meshes that can be drawn over an image. mesh_d: which cuboids, single or multi."""

    raw: RawPascal3D
    mesh_d: str

    def cad_model(self, poses: PoseSet, i: int, annotation: Annotation | None) -> Path:
        """Return the path of the CAD model of image i's annotated subtype, which may not exist.

        If the poses predict the subtype, or nothing is annotated, it is the predicted subtype.
        """
        number = int(poses.mesh[i])
        if annotation is not None and not poses.predicts_subtype:
            number = annotation.cad_index
        return self.raw.cad_folder(poses.category) / f"{number:02d}.off"

    def cuboid(self, poses: PoseSet, i: int) -> Path:
        """Return the path of the cuboid that was matched; FileNotFoundError if it is missing."""
        return self.raw.cuboids(self.mesh_d, poses.category)[int(poses.mesh[i]) - 1]
