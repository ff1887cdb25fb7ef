"""A training of two small meshes on noise pictures: its settings, data on disk and outcome."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from neural_mesh.categories import CATEGORIES
from neural_mesh.data.dataset import TrainingImages
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh
from neural_mesh.machine.devices import Placement
from neural_mesh.machine.distributed import Group
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.checkpoints import Checkpoint
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import VertexAnnotation, save_annotation
from neural_mesh.training.setup import Hardware, TrainingData
from neural_mesh.training.trainer import Trainer

SMALL_HW = (128, 336)  # of crops with a quarter of a car's pixels
# Of two meshes. Batches of 4 are 4, 3 and 4, 1 images, of which two processes get 2 + 2, 1 + 2 and
# 2 + 2, 0 + 1.
IMAGES = (7, 5)
CONFIG = TrainConfig(
    mesh_d="multi",
    backbone="resnet18fpn",
    pretrained="none",
    image_scale=0.5,
    batch_size=4,
    total_epochs=2,
    accumulate=3,
    num_clutter_group=4,
    augment=("flip", "color", "occlude"),
)


def box_corners() -> NDArray[np.float64]:
    """The corners of a box like a car, each many times [N, 3]."""
    axes = np.meshgrid([-0.2, 0.2], [-0.45, 0.45], [-0.13, 0.13])
    return np.array(axes).reshape(3, -1).T.repeat(50, 0)


def meshes() -> list[Mesh]:
    """Two cuboids of about 60 vertices."""
    corners = box_corners()
    return [cuboid_mesh(cuboid_grid(corners * scale, 60)) for scale in (1.0, [1, 0.8, 1.2])]


def tiny_checkpoint() -> Checkpoint:
    """An untrained network with a bank of three vertices and five rows of clutter."""
    mesh = Mesh(np.eye(3), np.array([[0, 1, 2]], np.int32))
    config = TrainConfig(backbone="resnet18fpn", num_clutter_group=1, augment=("flip",))
    memory = torch.nn.functional.normalize(torch.randn(3 + 5, 128), dim=1)
    return Checkpoint(FeatureNet("resnet18fpn").state_dict(), [memory], [mesh], config, 7)


def names_of(mesh: int) -> list[str]:
    """Image names of a mesh, counted from 0."""
    return [f"mesh{mesh}_{i}" for i in range(IMAGES[mesh])]


def write_prepared(root: Path, crop_hw: tuple[int, int] = CATEGORIES["car"].crop_hw) -> None:
    """Noise pictures with vertices at random; the first of a mesh shows none."""
    random = np.random.default_rng(0)
    prepared = PreparedSet(root)
    height, width = crop_hw
    for mesh, model in enumerate(meshes()):
        for i, name in enumerate(names_of(mesh)):
            image = prepared.image("car", name)
            image.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (32, 84, 3), np.uint8)
            Image.fromarray(pixels).resize((width, height)).save(image)
            vertices = len(model.vertices)
            annotation = VertexAnnotation(
                name=name,
                box=np.zeros(6),
                box_ori=np.array([60, 280, 40, 340, 300, 400]),
                box_obj=np.array([0, 1, 0, 1, height, width]),
                cropped_kp_list=random.uniform(0, [height - 1, width - 1], (vertices, 2)),
                visible=(random.random(vertices) < 0.4) & (i > 0),
                pose=Pose(0.7, 0.2, 0.1, 6.0, np.array([188.0, 170.0])),
                focal=1.0,
                viewport=3000.0,
                height=300,
                width=400,
                cad_index=mesh + 1,
                bbox=np.array([40.0, 60.0, 340.0, 280.0]),
                geometry="exact",
                crop_scale=1.2,
                crop_offset=np.zeros(2),
                kp_weights=np.ones(vertices),
            )
            save_annotation(prepared.vertex_annotation("multi", "car", name), annotation)


def small_data(
    root: Path, config: TrainConfig, cache: str = "memory", images: tuple[int, int] = IMAGES
) -> TrainingData:
    """The pictures of `write_prepared`, ready to be trained on. images: how many of each mesh."""
    prepared = PreparedSet(root)
    datasets = [
        TrainingImages(prepared, names_of(i)[: images[i]], mesh, config, cache=cache)
        for i, mesh in enumerate(meshes())
    ]
    return TrainingData(meshes(), datasets)


def make_trainer(group: Group, root: Path, folder: Path, config: TrainConfig) -> Trainer:
    """A trainer whose batch norm stays in evaluation mode.

    Its state after the first of two epochs is copied to <folder>/../../kept.
    """
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    hardware = Hardware(Placement((cpu,), cpu, "test"), group)
    trainer = Trainer(config, small_data(root, config, "disk"), hardware, folder)
    save = trainer.state_file.save

    def save_and_keep(*arguments: object) -> None:
        save(*arguments)
        if group.first:
            (folder.parents[1] / "kept").mkdir()
            shutil.copy(trainer.state_file.path, folder.parents[1] / "kept")

    trainer.state_file.save = save_and_keep
    network = trainer.learner.network
    network.train = lambda mode=True: torch.nn.Module.train(network, False)
    return trainer


def outcome(trainer: Trainer) -> dict:
    """What a training ends with: losses, banks, gradients and weights."""
    learner = trainer.learner
    return {
        "log": trainer.log.rows,
        "banks": [bank.memory for bank in learner.banks],
        "slots": [bank.slot for bank in learner.banks],
        "gradients": [p.grad for p in learner.network.parameters()],
        "weights": [p.detach() for p in learner.network.parameters()],
    }
