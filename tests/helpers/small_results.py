"""A cuboid, an annotation, and a small experiment of one category with an untrained network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import CuboidGrid, cuboid_mesh
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.settings import SolveConfig, TrainConfig
from neural_mesh.solve.model import load_model
from neural_mesh.solve.shards import run_config
from neural_mesh.storage.checkpoints import Checkpoint, save_checkpoint
from neural_mesh.storage.layout import Experiment, PreparedSet
from neural_mesh.storage.mesh_files import write_off
from neural_mesh.storage.records import Annotation, save_annotation
from neural_mesh.storage.results import PoseSet, save_poses

CUBOID = cuboid_mesh(
    CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (5, 10, 4))
)
NAMES = ("a", "b", "c")


def make_annotation(name: str, azimuth: float) -> Annotation:
    """An annotation of a car seen from an azimuth, in a crop of 256 x 672 pixels."""
    return Annotation(
        name=name,
        box=np.zeros(6),
        box_ori=np.zeros(6),
        box_obj=np.array([0, 256, 0, 672, 256, 672]),
        cropped_kp_list=np.zeros((2, 2)),
        visible=np.zeros(2),
        pose=Pose(azimuth, 0.1, 0.0, 5.0, np.array([350.0, 150.0])),
        focal=1.0,
        viewport=3000.0,
        height=300,
        width=700,
        cad_index=1,
        bbox=np.array([50, 30, 600, 250]),
        geometry="exact",
        crop_scale=1.0,
        crop_offset=np.zeros(2),
    )


def make_small_results(root: Path) -> None:
    """A raw folder with a CAD model, three prepared crops with annotations, a checkpoint, and poses
    found with it.

    The last pose is not finite.
    """
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    prepared = PreparedSet(root / "prepared")
    experiment = Experiment(root / "exp", "single")
    write_off(root / "raw" / "CAD" / "car" / "01.off", CUBOID)
    for i, name in enumerate(NAMES):
        path = prepared.image("car", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = generator.integers(0, 255, (256, 672, 3), dtype=np.uint8)
        Image.fromarray(image).save(path)
        save_annotation(prepared.annotation("car", name), make_annotation(name, 0.2 * i))

    config = TrainConfig(backbone="resnet18fpn", image_scale=0.5, num_clutter_group=1)
    memory = torch.nn.functional.normalize(torch.randn(len(CUBOID.vertices) + 5, 128), dim=1)
    network = FeatureNet("resnet18fpn").state_dict()
    path = experiment.network_folder / "saved_model_car_last.pth"
    save_checkpoint(path, Checkpoint(network, [memory], [CUBOID], config, 1))

    angles = np.array([0.1, 0.3, np.nan])
    poses = PoseSet(
        category="car",
        level="",
        names=np.array(NAMES),
        pose=Pose(angles, angles, angles, 5 + angles),
        loss=np.full(3, 0.9),
        start=np.ones(3, np.int64),
        mesh=np.ones(3, np.int64),
        config=run_config(load_model(path, "car", root), SolveConfig(), "", ""),
    )
    save_poses(experiment.poses("car"), poses)
