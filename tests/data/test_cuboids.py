"""CAD models -> cuboids: the reference's numbers, and none mixed with those of other settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.project import PYTHONPATH, ROOT
from neural_mesh.categories import CATEGORIES
from neural_mesh.geometry.meshes import cuboid_grid, cuboid_mesh, published_cuboid
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.settings import EXACT_MINIMUM_THICKNESS, TrainConfig
from neural_mesh.solve.model import load_model
from neural_mesh.stages.make_cuboids import CuboidOptions, make_cuboids
from neural_mesh.storage.checkpoints import Checkpoint, save_checkpoint
from neural_mesh.storage.layout import RawPascal3D
from neural_mesh.storage.mesh_files import read_off, write_off

FLAT = np.array(np.meshgrid([0, 1], [0.2], [0, 1])).reshape(3, -1).T.repeat(50, 0).astype(float)
OTHER_SETTINGS = "01.off was made from other CAD models or with other settings"


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
    lines = ["OFF", f"{len(FLAT)} 0 0"]
    lines += [" ".join(map(str, point)) for point in FLAT]
    (folder / "01.off").write_text("\n".join(lines) + "\n")
    return tmp_path / "raw"


def make_sign(raw: Path, mesh_d: str = "single", **options: object) -> None:
    """Make the cuboids of the flat category."""
    make_cuboids(CuboidOptions(raw, mesh_d, categories=("sign",), **options))


def assert_mesh_equals(path: Path, expected: np.lib.npyio.NpzFile, key: str) -> None:
    mesh = read_off(path)
    vertices = expected[f"{key}/vertices"]
    np.testing.assert_allclose(mesh.vertices, vertices, rtol=0, atol=1e-7, err_msg=key)
    np.testing.assert_array_equal(mesh.faces, expected[f"{key}/faces"], err_msg=key)


def test_cuboids_of_all_cad_models_equal_the_reference(golden, pascal_cads, code):
    """All 12 single and 79 multi cuboids, made by the script."""
    expected = golden("cuboids.npz")
    raw = RawPascal3D(pascal_cads)
    code("make_cuboids", "--raw", raw.root, "--mesh-d", "single")
    code("make_cuboids", "--raw", raw.root, "--mesh-d", "multi")
    compared = 0
    for category in CATEGORIES:
        (single,) = raw.cuboids("single", category)
        assert_mesh_equals(single, expected, f"single/{category}")
        for path in raw.cuboids("multi", category):
            assert_mesh_equals(path, expected, f"multi/{category}/{path.stem}")
            compared += 1
        compared += 1
    assert compared == 12 + 79


def test_the_authors_single_cuboids_follow_from_their_corners(golden):
    expected = golden("cuboids.npz")
    for category in CATEGORIES:
        key = "authors/single/car" if category == "car" else f"single/{category}"
        mesh = published_cuboid(category)
        np.testing.assert_allclose(mesh.vertices, expected[f"{key}/vertices"], rtol=0, atol=1e-7)
        np.testing.assert_array_equal(mesh.faces, expected[f"{key}/faces"])
    assert len(published_cuboid("car").vertices) == 1024
    assert published_cuboid("sign") is None


def test_a_flat_axis_collapses_as_in_the_paper_or_gets_the_documented_thickness(flat_raw):
    make_sign(flat_raw, "single")
    make_sign(flat_raw, "multi", geometry="exact")
    paper = read_off(flat_raw / "CAD_single/sign/01.off")
    exact = read_off(flat_raw / "CAD_multi/sign/01.off")
    assert np.ptp(paper.vertices[:, 1]) == 0
    assert np.ptp(exact.vertices[:, 1]) == pytest.approx(EXACT_MINIMUM_THICKNESS)


def test_a_cuboid_put_there_by_hand_is_kept(flat_raw, capsys, tmp_path):
    """A checkpoint of the authors may need one that the CAD models at hand do not give."""
    shutil.copytree(flat_raw / "CAD", tmp_path / "CAD")
    path = tmp_path / "CAD_single/sign/01.off"
    path.parent.mkdir(parents=True)
    path.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    before = path.read_bytes()
    make_sign(tmp_path)
    assert "kept, since it was put there by hand" in capsys.readouterr().err
    make_sign(tmp_path)
    assert path.read_bytes() == before
    make_sign(tmp_path, overwrite=True)
    assert path.read_bytes() != before


def test_cuboids_made_with_other_settings_are_not_mixed_in(flat_raw, code):
    arguments = ("make_cuboids", "--raw", flat_raw, "--categories", "sign", "--mesh-d", "single")
    code(*arguments)
    path = flat_raw / "CAD_single/sign/01.off"
    before = path.read_bytes()
    code(*arguments)
    refused = code(*arguments, "--number-vertices", 200, check=False)
    assert refused.returncode == 1
    assert OTHER_SETTINGS in refused.stderr
    assert path.read_bytes() == before
    code(*arguments, "--number-vertices", 200, "--overwrite", "true")
    assert path.read_bytes() != before
    # The reference counts directory entries.
    assert [p.name for p in path.parent.iterdir()] == ["01.off"]


KILLED_AFTER_ONE = """
import os, runpy, sys
from neural_mesh.storage import mesh_files

write, done = mesh_files.write_off, []

def killed(*mesh):
    write(*mesh) if not done else os.kill(os.getpid(), 9)
    done.append(mesh)

mesh_files.write_off = killed
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_cuboids_of_a_killed_run_are_not_mixed_with_those_of_other_settings(
    pascal_cads, golden, code, tmp_path, overwrite
):
    """Killed after the first of ten cuboids, when nothing was there and when all is made again."""
    root = tmp_path / "raw"
    folder = root / "CAD_multi/car"
    shutil.copytree(pascal_cads / "CAD/car", root / "CAD/car")
    arguments = ("--raw", root, "--categories", "car", "--mesh-d", "multi")
    if overwrite == "true":
        code("make_cuboids", *arguments, "--number-vertices", 300)
    script = ROOT / "code/make_cuboids.py"
    command = [sys.executable, "-c", KILLED_AFTER_ONE, script, *arguments, "--overwrite", overwrite]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    killed = subprocess.run([*map(str, command)], env=environment, capture_output=True, check=False)
    assert killed.returncode == -9
    assert [path.name for path in folder.glob("*.off")] == ["01.off"]
    refused = code("make_cuboids", *arguments, "--number-vertices", 300, check=False)
    assert refused.returncode == 1
    assert OTHER_SETTINGS in refused.stderr
    code("make_cuboids", *arguments)
    expected = golden("cuboids.npz")
    for i in range(1, 11):
        vertices = read_off(folder / f"{i:02d}.off").vertices
        expected_vertices = expected[f"multi/car/{i:02d}/vertices"]
        np.testing.assert_allclose(vertices, expected_vertices, rtol=0, atol=1e-7)


# ---- checkpoints that hold no mesh ---------------------------------------------------------------


@pytest.fixture(scope="module")
def reference_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint in the reference's layout, without meshes: a car bank of 1,024 vertices."""
    path = tmp_path_factory.mktemp("reference") / "saved_model_car_799.pth"
    config = TrainConfig(backbone="resnet18fpn")
    mesh = published_cuboid("car")
    memory = [torch.zeros(len(mesh.vertices) + config.num_clutter, 128)]
    weights = FeatureNet(config.backbone).state_dict()
    save_checkpoint(path, Checkpoint(weights, memory, [mesh], config, 799))
    content = torch.load(path, weights_only=True)
    del content["meshes"]
    torch.save(content, path)
    return path


@pytest.mark.parametrize("other_cuboid_there", [False, True])
def test_a_checkpoint_with_the_authors_car_bank_finds_its_mesh(
    reference_checkpoint, tmp_path, capsys, other_cuboid_there
):
    folder = tmp_path / "CAD_single/car"
    if other_cuboid_there:
        points = np.random.default_rng(0).uniform(0, 1, (999, 3))
        write_off(folder / "01.off", cuboid_mesh(cuboid_grid(points)))
    model = load_model(reference_checkpoint, "car", folder)
    np.testing.assert_array_equal(model.mesh(1).vertices, published_cuboid("car").vertices)
    assert "Its 1024 vertices are those of the authors' cuboid" in capsys.readouterr().err


def test_a_bank_that_fits_neither_the_folder_nor_the_authors_cuboid_says_what_to_do(
    reference_checkpoint, tmp_path
):
    content = torch.load(reference_checkpoint, weights_only=True)
    content["memory"] = [content["memory"][0][:-7]]
    torch.save(content, tmp_path / "cut.pth")
    write_off(tmp_path / "01.off", published_cuboid("car"))
    remedy = "bank 1 of the checkpoint has 1017 vertices.*or put its mesh there"
    with pytest.raises(ValueError, match=remedy):
        load_model(tmp_path / "cut.pth", "car", tmp_path)
