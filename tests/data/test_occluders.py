"""Occluders of RECIPE=robust, the folder that they are made of, and small shifts of an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from neural_mesh.data import augmentation
from neural_mesh.data.donor_pictures import digest_of, donor_files, read_donors
from neural_mesh.data.occluders import Donors, paste_occluders, strip_beside

POINTS = np.argwhere(np.ones((40, 60), bool)) + 20.5  # (row, col) of an object


def test_only_covered_pixels_change_but_for_a_soft_edge():
    image = np.full((80, 120, 3), 90, np.uint8)
    shares = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        pasted, covered = paste_occluders(image, POINTS, [], [], random)
        far = torch.nn.functional.max_pool2d(torch.from_numpy(covered)[None].float(), 9, 1, 4)
        assert (pasted[far[0].numpy() == 0] == 90).all()
        shares.append(covered[20:60, 20:80].mean())
    assert (image == 90).all()
    # Some images stay free, and of some objects a good part is hidden.
    assert 0.1 < np.mean(np.array(shares) == 0) < 0.4
    assert max(shares) > 0.3


def test_the_same_seed_gives_the_same_occluders():
    image = np.zeros((80, 120, 3), np.uint8)
    donors = Donors(pictures=(np.full((50, 50, 3), 200, np.uint8),))
    once, again = (
        paste_occluders(image, POINTS, donors.pieces, [], np.random.default_rng(4))[0]
        for _ in range(2)
    )
    assert once.any()
    assert (once == again).all()


def test_the_strip_beside_an_object_does_not_show_it():
    image = np.zeros((80, 120, 3), np.uint8)
    image[20:60, 20:80] = 255
    strip = strip_beside(image, POINTS)
    assert strip.shape == (80, 40, 3)
    assert not strip.any()
    assert strip_beside(image[18:62, 18:82], POINTS - 18) is None


def test_pictures_are_read_as_pieces_or_as_cutouts(tmp_path):
    Image.new("RGB", (800, 100), "red").save(tmp_path / "b.png")
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    files = donor_files(tmp_path)
    donors = read_donors(files)
    assert [picture.shape for picture in donors.pictures] == [(50, 400, 3)]
    assert [cutout.shape for cutout in donors.cutouts] == [(20, 30, 4)]
    before = digest_of(files)
    Image.new("RGB", (800, 100), "blue").save(tmp_path / "b.png")
    assert digest_of(files) != before


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        donor_files(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        donor_files(tmp_path / "none")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_donors(donor_files(tmp_path))


def test_a_shifted_image_and_its_points_move_together():
    rows, cols = 30, 70
    image = torch.zeros(3, 80, 120, dtype=torch.uint8)
    image[:, rows - 2 : rows + 2, cols - 2 : cols + 2] = 255
    points = torch.tensor([[float(rows), float(cols)], [0.0, 0.0]])
    for seed in range(10):
        moved, positions, on_image = augmentation.shift(image, points, np.random.default_rng(seed))
        weight = moved[0].float()
        centre = torch.stack(
            [
                (weight.sum(1) * (torch.arange(80) + 0.5)).sum(),
                (weight.sum(0) * (torch.arange(120) + 0.5)).sum(),
            ]
        )
        assert torch.allclose(centre / weight.sum(), positions[0], atol=0.15)
        assert on_image[0]
        assert on_image[1] == bool((positions[1] >= 0).all())
