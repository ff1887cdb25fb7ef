"""The material of the paper, from raw data: cuboids, records, splits, protocols."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo.backbone import FeatureNet
from nemo.checkpoints import Checkpoint, save_checkpoint
from nemo.inference import load_model
from nemo.layout import RawPascal3D
from nemo.meshes import cuboid_grid, cuboid_mesh, published_cuboid, read_off, write_off
from nemo.settings import CATEGORIES, EXACT_MINIMUM_THICKNESS, TrainConfig

FLAT = np.array(np.meshgrid([0, 1], [0.2], [0, 1])).reshape(3, -1).T.repeat(50, 0).astype(float)


@pytest.fixture(scope="module")
def pascal_cads(shared, tmp_path_factory) -> Path:
    """A PASCAL3D+ root that holds the real CAD models and nothing else."""
    root = tmp_path_factory.mktemp("cads")
    with tarfile.open(shared("data/pascal3d_cad.tar.xz")) as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture
def flat_raw(tmp_path) -> Path:
    """A PASCAL3D+ root with one category whose CAD model is flat."""
    folder = RawPascal3D(tmp_path / "raw").cad_folder("sign")
    folder.mkdir(parents=True)
    lines = ["OFF", f"{len(FLAT)} 0 0", *(" ".join(map(str, p)) for p in FLAT)]
    (folder / "01.off").write_text("\n".join(lines) + "\n")
    return tmp_path / "raw"


def test_cuboids_of_all_cad_models_equal_the_reference(golden, pascal_cads, code):
    """All 12 single and 79 multi cuboids, made by the script."""
    expected, raw, compared = golden("cuboids.npz"), RawPascal3D(pascal_cads), 0
    for mesh_d in ("single", "multi"):
        code("make_cuboids", "--raw", raw.root, "--mesh-d", mesh_d)
        for category in CATEGORIES:
            for path in raw.cuboids(mesh_d, category):
                key = f"single/{category}" if mesh_d == "single" else f"multi/{category}/{path.stem}"
                mesh = read_off(path)
                np.testing.assert_allclose(mesh.vertices, expected[f"{key}/vertices"], rtol=0, atol=1e-7, err_msg=key)
                np.testing.assert_array_equal(mesh.faces, expected[f"{key}/faces"], err_msg=key)
                compared += 1
    assert compared == 12 + 79


def test_the_authors_single_cuboids_follow_from_their_corners(golden):
    expected = golden("cuboids.npz")
    for category in CATEGORIES:
        key = "authors/single/car" if category == "car" else f"single/{category}"
        mesh = published_cuboid(category)
        np.testing.assert_allclose(mesh.vertices, expected[f"{key}/vertices"], rtol=0, atol=1e-7)
        np.testing.assert_array_equal(mesh.faces, expected[f"{key}/faces"])
    assert len(published_cuboid("car").vertices) == 1024 and published_cuboid("sign") is None


def test_a_flat_axis_collapses_as_in_the_paper_or_gets_the_documented_thickness(flat_raw, code):
    arguments = ("make_cuboids", "--raw", flat_raw, "--categories", "sign", "--mesh-d")
    code(*arguments, "single")
    code(*arguments, "multi", "--geometry", "exact")
    paper, exact = (read_off(flat_raw / f"CAD_{mesh_d}/sign/01.off").vertices for mesh_d in ("single", "multi"))
    assert np.ptp(paper[:, 1]) == 0 and np.ptp(exact[:, 1]) == pytest.approx(EXACT_MINIMUM_THICKNESS)


def test_cuboids_made_with_other_settings_are_not_mixed_in(flat_raw, code):
    arguments = ("make_cuboids", "--raw", flat_raw, "--categories", "sign", "--mesh-d", "single")
    code(*arguments)
    path = flat_raw / "CAD_single/sign/01.off"
    before = path.read_bytes()
    code(*arguments)
    refused = code(*arguments, "--number-vertices", 200, check=False)
    assert refused.returncode == 1 and "01.off was made from other CAD models or with other settings" in refused.stderr
    assert path.read_bytes() == before
    code(*arguments, "--number-vertices", 200, "--overwrite", "true")
    assert path.read_bytes() != before
    assert sorted(p.name for p in path.parent.iterdir()) == ["01.off"]  # the reference counts directory entries


@pytest.fixture(scope="module")
def reference_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint in the reference's layout, without meshes: a car bank of 1,024 vertices."""
    path = tmp_path_factory.mktemp("reference") / "saved_model_car_799.pth"
    config = TrainConfig(backbone="resnet18fpn")
    mesh = published_cuboid("car")
    memory = [torch.zeros(len(mesh.vertices) + config.num_clutter, 128)]
    save_checkpoint(path, Checkpoint(FeatureNet(config.backbone).state_dict(), memory, [mesh], config, 799))
    content = torch.load(path, weights_only=True)
    del content["meshes"]
    torch.save(content, path)
    return path


@pytest.mark.parametrize("other_cuboid_there", [False, True])
def test_a_checkpoint_with_the_authors_car_bank_finds_its_mesh(reference_checkpoint, tmp_path, capsys, other_cuboid_there):
    folder = tmp_path / "CAD_single/car"
    if other_cuboid_there:
        write_off(folder / "01.off", cuboid_mesh(cuboid_grid(np.random.default_rng(0).uniform(0, 1, (999, 3)))))
    model = load_model(reference_checkpoint, "car", folder)
    np.testing.assert_array_equal(model.mesh(1).vertices, published_cuboid("car").vertices)
    assert "Its 1024 vertices are those of the authors' cuboid" in capsys.readouterr().err


def test_a_bank_that_fits_neither_the_folder_nor_the_authors_cuboid_says_what_to_do(reference_checkpoint, tmp_path):
    content = torch.load(reference_checkpoint, weights_only=True)
    content["memory"] = [content["memory"][0][:-7]]
    torch.save(content, tmp_path / "cut.pth")
    write_off(tmp_path / "01.off", published_cuboid("car"))
    with pytest.raises(ValueError, match="bank 1 of the checkpoint has 1017 vertices.*or put its mesh there"):
        load_model(tmp_path / "cut.pth", "car", tmp_path)
