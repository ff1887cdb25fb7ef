"""Trained networks, the test images they are used on, and where the results lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from neural_mesh.settings import ALL_AZIMUTHS, Azimuths
from neural_mesh.solve.model import Model, load_model
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D, checkpoint_path


@dataclass(frozen=True)
class TrainedNetworks:
    """The networks of some categories, one occlusion level of their test images, and an experiment.

    Fields are named as the options of entry points. raw: PASCAL3D+_release1.1, whose cuboids
    checkpoints of the reference need. prepared: the test set. exp: the experiment. save_dir: folder
    of the checkpoints, None for the experiment's own. load_file_name: of a checkpoint, with %s for
    the category. level: empty for images without occluders. cuboids: where they lie if not in raw.
    """

    raw: Path
    prepared: Path
    exp: Path
    categories: tuple[str, ...]
    save_dir: Path | None = None
    load_file_name: str = "saved_model_%s_last.pth"
    mesh_d: str = "single"
    level: str = ""
    azimuths: Azimuths = ALL_AZIMUTHS
    cuboids: Path | None = None

    @property
    def raw_set(self) -> RawPascal3D:
        """Of which the meshes are needed."""
        return RawPascal3D(self.raw, cuboid_root=self.cuboids)

    @property
    def experiment(self) -> Experiment:
        """Where the results lie."""
        return Experiment(self.exp, self.mesh_d, self.azimuths)

    @property
    def test_set(self) -> PreparedSet:
        """The test set, with the azimuths that are tested on."""
        return PreparedSet(self.prepared, self.azimuths.test_pattern)

    def checkpoint(self, category: str) -> Path:
        """The checkpoint of a category."""
        folder = self.save_dir or self.experiment.network_folder
        return checkpoint_path(folder, self.load_file_name, category)

    def load(self, category: str, device: torch.device, precision: str = "float32") -> Model:
        """The network of a category. Raises as `load_model`."""
        # Checkpoints of the reference hold no meshes.
        cuboids = self.raw_set.cuboid_folder(self.mesh_d, category)
        return load_model(self.checkpoint(category), category, cuboids, device, precision)
