"""A set of solved images, with all that pictures of them need.

That is poses with their annotations and errors, the crops, and the meshes to draw over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.cameras import MapCamera, Pose
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.geometry.pose_error import pose_errors
from neural_mesh.pictures.selection import (
    OverlayMeshes,
    camera_of,
    finite_poses,
    select_images,
)
from neural_mesh.settings import FEATURE_STRIDE
from neural_mesh.solve.model import Model
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import Annotation, load_annotation
from neural_mesh.storage.results import PoseSet

CUBOID_TITLE = "cuboid in the predicted pose, front side orange"
CAD_TITLE = "CAD model %s in the predicted pose (the cuboid was matched)"


@dataclass(frozen=True)
class SolvedSet:
    """Everything about the images of one category that pictures need.

    prepared: the set that holds the crops. annotations: empty if the truth is unknown. errors [B]:
    radians, pi for poses that are not finite; nan without annotations. overlay: `cad` for CAD
    models whose files exist, or `cuboid`. model: the trained network, if features are needed.
    """

    poses: PoseSet
    prepared: PreparedSet
    meshes: OverlayMeshes
    annotations: list[Annotation]
    errors: NDArray
    overlay: str = "cad"
    model: Model | None = None

    @property
    def subset(self) -> str:
        """The category, followed by the occlusion level if there is one."""
        return self.poses.category + self.poses.level

    @property
    def network(self) -> Model:
        """The trained network; RuntimeError if the set was loaded without it."""
        if self.model is None:
            raise RuntimeError(f"the poses of {self.subset} were loaded without their network")
        return self.model

    @property
    def finite(self) -> NDArray[np.int64]:
        """The indices of the poses that can be drawn."""
        return finite_poses(self.poses)

    def choose(self, number: int, how: str, seed: int) -> list[int]:
        """Choose among the images whose poses can be drawn; see `select_images`."""
        finite = self.finite
        return finite[select_images(self.errors[finite], number, how, seed)].tolist()

    def name(self, i: int) -> str:
        """Return the name of image i."""
        return str(self.poses.names[i])

    def pose(self, i: int) -> Pose:
        """Return the predicted pose of image i."""
        return self.poses.pose[i]

    def truth(self, i: int) -> NDArray[np.float64]:
        """Return the annotated azimuth, elevation and theta [3] of image i in radians."""
        return self.annotations[i].pose.angles

    def error_deg(self, i: int) -> float:
        """Return the error of image i in degrees."""
        return float(np.rad2deg(self.errors[i]))

    def camera(self, i: int) -> MapCamera:
        """Return the camera in which the pose of image i was found, in cells of the feature map."""
        return camera_of(self.poses, i)

    def crop_file(self, i: int) -> Path:
        """Return the path of the crop of image i."""
        return self.prepared.image(self.subset, self.name(i))

    def crop(self, i: int) -> NDArray[np.uint8]:
        """Read the crop of image i at full resolution.

        Raises ValueError when the poses were found on crops of another size.
        """
        path = self.crop_file(i)
        if not path.is_file():
            raise FileNotFoundError(f"image not found: {path}; run PrepareData.sh first")
        # A crop of another size has another camera.
        config = self.poses.config
        crop = read_crop(path, 1)
        pixels_per_cell = FEATURE_STRIDE / config["image_scale"]
        expected = tuple(round(cells * pixels_per_cell) for cells in config["map_hw"])
        if crop.shape[:2] != expected:
            raise ValueError(
                f"{path}: {crop.shape[:2]} pixels, but the poses were found on crops of {expected}"
            )
        return crop

    def mesh(self, i: int) -> tuple[Mesh, str]:
        """Return the mesh to draw over image i, and a title for it.

        The mesh is the CAD model of the image's subtype, or the cuboid that was matched.
        """
        annotation = self.annotations[i] if self.annotations else None
        path = self.meshes.cad_model(self.poses, i, annotation)
        if self.overlay == "cad" and path.is_file():
            return read_off(path), CAD_TITLE % path.stem
        # Use the cuboid of the checkpoint if one is loaded, otherwise that of the files.
        if self.model is not None:
            return self.model.mesh(int(self.poses.mesh[i])), CUBOID_TITLE
        return read_off(self.meshes.cuboid(self.poses, i)), CUBOID_TITLE

    def with_truth(self, clean: PreparedSet) -> SolvedSet:
        """Add annotations and errors. clean: the prepared set whose annotations are the truth."""
        category = self.poses.category
        names = self.poses.names.tolist()
        annotations = [load_annotation(clean.annotation(category, name)) for name in names]
        truth = np.array([annotation.pose.angles for annotation in annotations])
        errors = pose_errors(self.poses.pose.angles, truth)
        return replace(self, annotations=annotations, errors=errors)
