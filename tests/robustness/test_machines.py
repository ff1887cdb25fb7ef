"""Machines as they are: folders that cannot be written, libraries that do not work, hidden GPUs."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
import torch

from helpers.name_spaces import apart, read_only
from helpers.project import ROOT
from neural_mesh.compare import kernels_numba
from neural_mesh.machine import arguments
from neural_mesh.machine.devices import gpus_of
from neural_mesh.settings import DOWNLOADS
from neural_mesh.solve import choose_renderer
from neural_mesh.solve.choose_renderer import check_renderer
from neural_mesh.stages import download_data
from neural_mesh.stages.make_cuboids import CuboidOptions, make_cuboids
from neural_mesh.storage import layout
from neural_mesh.storage.files import WriteError, can_be_written, disk_errors, write_text
from neural_mesh.storage.layout import RawPascal3D

CPU = torch.device("cpu")
TETRAHEDRON = "OFF\n4 4 0\n0 0 0\n.3 0 0\n0 .3 0\n0 0 .3\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"

# ---- folders that cannot be written ----


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_does_not_get_a_full_disks_advice(tmp_path, number):
    path = tmp_path / "a.txt"
    reason = os.strerror(number).lower()
    sentence = rf"cannot write .*a\.txt: {reason}; choose another folder for it"
    with pytest.raises(WriteError, match=sentence), disk_errors(path):
        raise OSError(number, os.strerror(number), str(path))
    # Of what is read meanwhile, nothing is said.
    if number == errno.EACCES:
        with pytest.raises(PermissionError), disk_errors(path):
            raise OSError(number, os.strerror(number), str(tmp_path / "elsewhere/b.txt"))


def test_where_a_folder_would_be_made_is_asked(tmp_path):
    assert can_be_written(tmp_path / "a/b")
    if os.geteuid():
        tmp_path.chmod(0o555)
        assert not can_be_written(tmp_path / "a/b")
        tmp_path.chmod(0o755)


@pytest.fixture
def share(tmp_path, monkeypatch) -> RawPascal3D:
    """A raw set that is taken for one that cannot be written, and where its cuboids are made."""
    raw = tmp_path / "share"
    write_text(raw / "CAD/car/01.off", TETRAHEDRON)

    def is_elsewhere(folder: Path) -> bool:
        return raw not in (folder, *folder.parents)

    monkeypatch.setattr(layout, "can_be_written", is_elsewhere)
    monkeypatch.setattr(download_data, "can_be_written", is_elsewhere)
    return RawPascal3D(raw, cuboid_root=tmp_path / "mine")


def make(share: RawPascal3D, **settings: object) -> None:
    make_cuboids(
        CuboidOptions(
            share.root, "single", categories=("car",), cuboids=share.cuboid_root, **settings
        )
    )


def test_cuboids_of_a_read_only_set_are_made_elsewhere(share, tmp_path, capsys):
    before = sorted(share.root.rglob("*"))
    make(share)
    assert sorted(share.root.rglob("*")) == before
    assert share.cuboids("single", "car") == [tmp_path / "mine/CAD_single/car/01.off"]
    assert f"1 cuboid of 1 category in {tmp_path}/mine/CAD_single" in capsys.readouterr().out
    # Nothing beside what belongs there.
    files = [path.name for path in (tmp_path / "mine").rglob("*") if path.is_file()]
    assert sorted(files) == ["01.off", "car.json"]


def test_cuboids_that_others_made_in_a_share_serve(share, tmp_path):
    make_cuboids(CuboidOptions(share.root, "single", categories=("car",)))
    in_share = share.root / "CAD_single/car/01.off"
    make(share)
    assert share.cuboids("single", "car") == [in_share]
    assert not (tmp_path / "mine").exists()
    # Made again, they get a place of one's own, which is then read.
    make(share, overwrite=True, number_vertices=50)
    assert share.cuboids("single", "car") == [tmp_path / "mine/CAD_single/car/01.off"]


def test_a_read_only_set_without_image_subsets_is_used_as_it_is(share, capsys):
    assert not download_data.fetch_subsets(share, DOWNLOADS)
    note = capsys.readouterr().err
    assert "cannot be written. Going on with Image_sets" in note
    assert not list(share.root.rglob("*.lock"))


@pytest.mark.slow
def test_the_scripts_work_on_a_read_only_set(sample_raw, script, tmp_path):
    import shutil
    import subprocess

    raw = tmp_path / "PASCAL3D+_release1.1"
    shutil.copytree(
        sample_raw / raw.name, raw, ignore=shutil.ignore_patterns("CAD_*", "Image_subsets")
    )
    settings = {
        "DATAROOT": tmp_path / "mine",
        "EXPROOT": tmp_path / "exp",
        "PATH_PASCAL3DP": raw,
        "CATEGORIES": "car",
        "MESH_DIMENSIONS": "single",
        "GPUS": "",
        "PYTHON": sys.executable,
        "BACKBONE": "resnet18fpn",
        "PRETRAINED": "none",
        "IMAGE_SCALE": 0.5,
        "BATCH_SIZE": 4,
        "TENSORBOARD": "false",
        "NUM_PICTURES": 0,
    }
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    for name, epochs in (("PrepareData.sh", ""), ("TrainNeMo.sh", "1"), ("InferenceNeMo.sh", "9")):
        done = subprocess.run(
            [*apart(read_only(raw)), str(ROOT / name)],
            env=environment | {"TOTAL_EPOCHS": epochs},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/CAD_single/car/01.off").is_file()


def test_numba_works_where_nothing_can_be_kept(monkeypatch, capsys):
    def refuse(function: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    assert kernels_numba._can_keep()
    monkeypatch.setattr(kernels_numba, "FunctionCache", refuse)
    assert not kernels_numba._can_keep()
    assert "set NUMBA_CACHE_DIR to a folder of your own" in capsys.readouterr().err


# ---- libraries that do not work ----

WAYS_TO_FAIL = {
    "ImportError: _C.so: undefined symbol": "raise ImportError('_C.so: undefined symbol')",
    "RuntimeError: Not compiled with GPU support": (
        "def rasterize_meshes(*_, **__): raise RuntimeError('Not compiled with GPU support')"
    ),
}


@pytest.mark.parametrize("complaint", WAYS_TO_FAIL)
@pytest.mark.parametrize("name", ["pytorch3d", "pytorch3d-features"])
def test_a_pytorch3d_that_does_not_work_is_told_first(tmp_path, monkeypatch, name, complaint):
    package = tmp_path / "pytorch3d"
    write_text(package / "__init__.py", "")
    write_text(package / "structures.py", "def Meshes(**_): pass\n")
    for folder in ("renderer", "renderer/mesh"):
        write_text(package / folder / "__init__.py", "")
    write_text(package / "renderer/mesh/rasterize_meshes.py", WAYS_TO_FAIL[complaint] + "\n")
    for module in [module for module in sys.modules if module.split(".")[0] == "pytorch3d"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    sentence = rf"RENDERER={name} needs PyTorch3D, .* does not work on cpu \({complaint}\)"
    try:
        with pytest.raises(ValueError, match=sentence) as caught:
            check_renderer(name, CPU)
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] == "pytorch3d"]:
            del sys.modules[module]
    assert "\n" not in str(caught.value)


def test_a_triton_that_does_not_work_is_told_first(monkeypatch):
    def refuse() -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("neural_mesh.compare.with_triton.kernels", refuse)
    monkeypatch.setattr(choose_renderer, "has_triton", lambda device: True)
    with pytest.raises(ValueError, match=r"cannot be imported \(ImportError: libcuda\.so\.1"):
        check_renderer("triton", torch.device("cuda"))


# ---- GPUs and homes ----


@pytest.mark.parametrize(
    "value, complaint",
    [
        ("3", "CUDA_VISIBLE_DEVICES=3 hides the others and numbers these from 0: GPUS=0 is"),
        ("", "CUDA_VISIBLE_DEVICES= hides all"),
        (None, 'can use none on this machine; GPUS="" uses the CPU'),
    ],
)
def test_what_hides_gpus_is_named(monkeypatch, value, complaint):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 if value else 0)
    with pytest.raises(ValueError, match=complaint):
        gpus_of("3")


def test_a_tilde_is_the_home_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arguments.path("~/data") == tmp_path / "data"
    assert arguments.path("~") == tmp_path
    assert arguments.path("~draft.jpg") == Path("~draft.jpg")
    assert arguments.at_home("imagenet") == "imagenet"
