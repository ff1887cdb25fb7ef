"""Training images: what is decoded, kept, mirrored and covered."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from helpers.small_training import CONFIG, box_corners, meshes, names_of
from neural_mesh.data.augmentation import mirror, paste_patches
from neural_mesh.data.dataset import TrainingImages
from neural_mesh.data.loading import batches, make_loader
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import cuboid_grid, cuboid_mesh
from neural_mesh.machine.distributed import Group
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import Annotation


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_training_image_is_named_in_one_sentence(noise_pictures, workers):
    dataset = TrainingImages(PreparedSet(noise_pictures), names_of(0), meshes()[0], CONFIG)
    dataset.paths[3] = dataset.paths[3].with_name("gone.JPEG")
    with pytest.raises(ValueError) as caught:
        list(batches(make_loader(dataset, Group(), workers, False)))
    assert str(caught.value) == f"picture not found: {dataset.paths[3]}"


def test_decoded_crops_on_disk_serve_the_next_training(noise_pictures, tmp_path):
    shutil.copytree(noise_pictures, tmp_path / "set")
    prepared = PreparedSet(tmp_path / "set")
    mesh = meshes()[0]
    first = TrainingImages(prepared, names_of(0), mesh, CONFIG, cache="disk")
    samples = [first[0, index] for index in range(len(first))]
    shutil.rmtree(tmp_path / "set/images")
    again = TrainingImages(prepared, names_of(0), mesh, CONFIG, cache="disk")
    for index, sample in enumerate(samples):
        assert torch.equal(again[0, index].image, sample.image)
        assert torch.equal(again[0, index].noise_cells, sample.noise_cells)
    assert not torch.equal(again[1, 0].noise_cells, samples[0].noise_cells)
    prepared.remove("car")
    assert not (tmp_path / "set/decoded/car").exists()


def annotation_of(azimuth: float, elevation: float, theta: float) -> Annotation:
    """An annotation of a car's crop, without vertices."""
    return Annotation(
        name="x",
        box=np.zeros(6),
        box_ori=np.array([60, 280, 40, 340, 300, 400]),
        box_obj=np.array([0, 1, 0, 1, 256, 672]),
        cropped_kp_list=np.zeros((0, 2)),
        visible=np.zeros(0),
        pose=Pose(azimuth, elevation, theta, 6.0, np.array([188.0, 170.0])),
        focal=1.0,
        viewport=3000.0,
        height=300,
        width=400,
        cad_index=1,
        bbox=np.array([40.0, 60.0, 340.0, 280.0]),
        geometry="exact",
        crop_scale=1.2,
        crop_offset=np.zeros(2),
    )


def test_mirroring_an_annotation_mirrors_its_vertices():
    mesh = cuboid_mesh(cuboid_grid(box_corners(), 200))
    partner = []
    for vertex in mesh.vertices:
        distances = np.abs(mesh.vertices - vertex * [-1, 1, 1]).sum(1)
        partner.append(int(distances.argmin()))
    annotation = annotation_of(0.7, 0.3, 0.2)
    points, _ = annotation.vertices_in_crop(mesh)
    mirrored, _ = mirror(annotation).vertices_in_crop(mesh)
    inside = (points[:, 1] > 1) & (points[:, 1] < 670)
    expected = np.stack([points[:, 0], 672 - points[:, 1]], axis=1)
    np.testing.assert_allclose(mirrored[partner][inside], expected[inside], atol=1e-6)


def test_patches_cover_what_they_say_and_nothing_else():
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    donor = torch.full((3, 64, 96), 9, dtype=torch.uint8)
    points = np.random.default_rng(0).uniform([10, 20], [50, 80], (40, 2))
    shares = []
    for seed in range(20):
        changed, covered = paste_patches(image, donor, points, np.random.default_rng(seed))
        assert torch.equal(changed == 9, covered.expand(3, -1, -1))
        shares.append(covered.float().mean().item())
    assert min(shares) == 0
    assert 0.05 < max(shares) < 0.6
