"""The saved poses of an experiment as sets of solved images, with annotations and networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neural_mesh.machine.devices import first_device, gpus_of
from neural_mesh.pictures.selection import OverlayMeshes
from neural_mesh.pictures.solved import SolvedSet
from neural_mesh.stages.networks import TrainedNetworks
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.results import PoseSet, load_poses


@dataclass(frozen=True)
class SavedResults:
    """The results of some categories at one level.

    clean: the test set whose annotations are the truth. overlay: which mesh pictures show, see
    `SolvedSet`. gpus: the first of them computes the feature maps.
    """

    networks: TrainedNetworks
    clean: PreparedSet
    overlay: str = "cad"
    gpus: str = "all"

    @property
    def level(self) -> str:
        """The occlusion level, or `clean`."""
        return self.networks.level or "clean"

    @property
    def device(self) -> torch.device:
        """The device that computes the feature maps."""
        return first_device(gpus_of(self.gpus))

    @property
    def folder(self) -> Path:
        """The folder that gets the pictures of these results."""
        return self.networks.experiment.report_folder(self.networks.level)

    def poses_file(self, category: str) -> Path:
        """Return the path of the saved poses of a category."""
        return self.networks.experiment.poses(category, self.networks.level)

    def require_categories(self) -> list[str]:
        """List the categories that have poses; FileNotFoundError if there are none."""
        categories = self.networks.categories
        present = [category for category in categories if self.poses_file(category).is_file()]
        if not present:
            raise FileNotFoundError(
                f"no poses of {', '.join(categories)} in {self.poses_file('').parent}; "
                "run InferenceNeMo.sh first"
            )
        return present

    def load(self, category: str) -> SolvedSet:
        """Load poses and annotations of a category."""
        path = self.poses_file(category)
        # The file's name says its level.
        poses = replace(load_poses(path), level=self.networks.level)
        return self.solved_set(poses, path).with_truth(self.clean)

    def load_with_network(self, category: str, device: torch.device) -> SolvedSet:
        """Load poses, annotations and network; ValueError if another checkpoint gave the poses."""
        solved = self.load(category)
        model = self.networks.load(category, device)
        # The losses around a pose only make sense with the features that it was found with.
        solved_with = solved.poses.config["checkpoint"]
        if solved_with != model.checkpoint.fingerprint:
            raise ValueError(
                f"{self.poses_file(category)} was solved with checkpoint {solved_with}, "
                f"but {self.networks.checkpoint(category)} is {model.checkpoint.fingerprint}; "
                "name the one that was used (--save-dir, --load-file-name) "
                "or run InferenceNeMo.sh again"
            )
        return replace(solved, model=model)

    def solved_set(self, poses: PoseSet, path: Path) -> SolvedSet:
        """Make a set without annotations of poses read from `path`; ValueError if it is empty."""
        if not len(poses):
            raise ValueError(f"{path} holds no poses; run InferenceNeMo.sh again")
        return SolvedSet(
            poses=poses,
            prepared=PreparedSet(self.networks.prepared),
            meshes=OverlayMeshes(self.networks.raw_set, self.networks.mesh_d),
            annotations=[],
            errors=np.full(len(poses), np.nan),
            overlay=self.overlay,
        )

    def is_annotated(self, poses: PoseSet) -> bool:
        """Tell whether all images of the poses are annotated."""
        files = [self.clean.annotation(poses.category, name) for name in poses.names.tolist()]
        return all(file.is_file() for file in files)
