"""Files of strangers that want to run code, eat memory or lead elsewhere are refused by name."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.little_memory import refused
from helpers.project import Trap
from helpers.sample_files import SAMPLES
from neural_mesh.data.pascal3d import UnusableRecord, read_record
from neural_mesh.data.splits import read_subset_pickle
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.layout import read_list
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.npz_files import load_npz
from neural_mesh.storage.pictures import read_picture

# ---- pickles ----


def test_pickles_in_every_kind_of_file_are_refused_and_nothing_runs(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "subset.pkl").write_bytes(pickle.dumps([[Trap(ran)]]))
    content = {"state": {}, "memory": [], "extra": Trap(ran)}
    torch.save(content, tmp_path / "zip.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap(ran)))
    np.savez(tmp_path / "array.npz", x=np.array([Trap(ran)], dtype=object))
    refused(read_subset_pickle, tmp_path / "subset.pkl", "not a plain list of image names")
    for name in ("zip.pth", "old.pth", "bare.pth"):
        refused(load_checkpoint, tmp_path / name, "cannot|not a checkpoint that can be read safely")
    refused(lambda path: load_npz(path, []), tmp_path / "array.npz", "without pickled objects.*'x'")
    assert not ran.exists()
    torch.load(tmp_path / "zip.pth", weights_only=False)
    assert ran.exists(), "the trap is no trap"


def test_pickles_that_would_eat_memory_are_refused(tmp_path):
    path = tmp_path / "subset.pkl"
    deep = b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."
    # Would make room for two thousand million remembered objects.
    memo = b"\x80\x02]r\xff\xff\xff\x7f."
    two_thousand_names = b"]q\x01(" + b"h\x00" * 2000 + b"e"
    shared = b"\x80\x02](X\x01\x00\x00\x00aq\x00" + two_thousand_names + b"h\x01" * 1000 + b"e."
    long_text = b"\x80\x02]X\xff\xff\xff\x7f" + b"a."
    for content in (deep, memo, shared, long_text):
        path.write_bytes(content)
        refused(read_subset_pickle, path, "not a")


# ---- headers that claim the world ----


def test_a_mesh_that_claims_too_many_vertices_is_refused(tmp_path):
    (tmp_path / "large.off").write_text("OFF\n1000000000 1 0\n0 0 0\n")
    refused(read_off, tmp_path / "large.off", "says 1000000000 vertices")


def test_a_picture_that_claims_too_many_pixels_is_refused(tmp_path):
    path = tmp_path / "large.JPEG"
    Image.new("L", (16, 16)).save(path)
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 5  # height and width in the start of frame
    path.write_bytes(content[:at] + struct.pack(">HH", 60000, 60000) + content[at + 4 :])
    refused(read_picture, path, "60,000 x 60,000|exceeds limit")


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n"
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
        archive.writestr("x.npy", start + header)
    refused(lambda path: load_npz(path, []), tmp_path / "large.npz", "'x'.*claims float64")


def test_an_array_that_unpacks_to_too_much_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as member,
    ):
        np.lib.format.write_array(member, np.zeros(2**26))
    refused(lambda path: load_npz(path, []), tmp_path / "bomb.npz", "unpacks to more than")


# ---- annotations ----


def mat_of(matrix: bytes) -> bytes:
    packed = zlib.compress(matrix)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    return head + struct.pack("<II", 15, len(packed)) + packed


def mat_array(kind: int, dimensions: tuple[int, int], body: bytes, name: bytes = b"") -> bytes:
    head = struct.pack("<IIII", 6, 8, kind, 0) + struct.pack("<IIii", 5, 8, *dimensions)
    head += struct.pack("<II", 1, len(name)) + name + b"\0" * (-len(name) % 8)
    return struct.pack("<II", 14, len(head + body)) + head + body


def read_car(path: Path) -> object:
    return read_record(path, "car")


def test_annotations_that_would_exhaust_scipy_are_unusable(tmp_path):
    path = tmp_path / "x.mat"
    nested = mat_array(6, (1, 1), struct.pack("<IId", 9, 8, 1.0))
    for _ in range(3000):
        nested = mat_array(1, (1, 1), nested)
    hostile = {
        "more than 16 deep": nested,
        "claims 1000000000 items": mat_array(1, (10**9, 1), b"", b"record\0\0"),
        "claims 4000000000": mat_array(4, (2 * 10**9, 2), struct.pack("<II", 4, 0), b"record\0\0"),
        "array of class 17": mat_array(17, (1, 1), b"", b"record\0\0"),
    }
    for complaint, matrix in hostile.items():
        path.write_bytes(mat_of(matrix))
        refused(read_car, path, f"unreadable annotation.*{complaint}")
    path.write_bytes(mat_of(bytes(2**28)))
    refused(read_car, path, "decompresses to more than")
    assert issubclass(UnusableRecord, ValueError)


# ---- checkpoints ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A valid one."""
    return SAMPLES["checkpoint"](tmp_path_factory.mktemp("valid")).path


def test_checkpoints_that_unpack_to_more_than_they_hold_are_refused(tmp_path, checkpoint):
    bomb = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(checkpoint) as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            is_tensor = "/data/" in member.filename
            new.writestr(member.filename, bytes(2**27) if is_tensor else old.read(member))
    refused(load_checkpoint, bomb, "unpacks to more than it holds", memory=2**29)


FOUR_VERTICES = {"vertices": torch.ones(4, 3), "faces": torch.zeros(1, 3, dtype=torch.int32)}
NO_SUCH_VERTEX = {"vertices": torch.ones(5, 3), "faces": torch.full((1, 3), 99)}


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"memory": torch.ones(1).expand(10**9, 128)}, "memory holds no feature banks"),
        ({"memory": "abc"}, "memory"),
        ({"state": {"w": "abc"}}, "state"),
        ({"args": {"seed": "abc"}}, "seed of its settings is 'abc'"),
        ({"meshes": [NO_SUCH_VERTEX]}, "names a vertex that does not exist"),
        ({"meshes": [FOUR_VERTICES]}, "bank 1 has 9 rows"),
    ],
)
def test_checkpoints_with_an_odd_field_are_refused(tmp_path, checkpoint, change, complaint):
    content = torch.load(checkpoint, weights_only=True)
    if "args" in change:
        change = {"args": content["args"] | change["args"]}
    torch.save(content | change, tmp_path / "odd.pth")
    refused(load_checkpoint, tmp_path / "odd.pth", complaint)


# ---- names and formats ----

ODD_NAMES = ["../../evil", "/etc/passwd", "a\\b", ".hidden", "a\0b", "x" * 300]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    (tmp_path / "list.txt").write_text(f"fine.JPEG\n{name}.JPEG\n")
    refused(read_list, tmp_path / "list.txt", "not a file name")
    (tmp_path / "subset.pkl").write_bytes(pickle.dumps([["fine", name]]))
    refused(read_subset_pickle, tmp_path / "subset.pkl", "not a file name")


def test_a_category_that_leads_elsewhere_is_refused_before_anything_is_deleted(
    tmp_path, code, sample_raw
):
    (tmp_path / "precious.txt").write_text("kept")
    raw = sample_raw / "PASCAL3D+_release1.1"
    arguments = ("--raw", raw, "--out", tmp_path / "out/put", "--split", "val")
    elsewhere = ("--categories", "car", "--level", "/../..", "--occluded", sample_raw)
    for extra in (("--categories", "../.."), elsewhere):
        done = code("prepare_images", *arguments, "--overwrite", "true", *extra, check=False)
        assert done.returncode != 0
        assert "not a file name" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "precious.txt").is_file()


def test_pictures_of_formats_that_start_programs_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.JPEG")
    refused(read_picture, tmp_path / "a.JPEG", "not a picture of the kinds JPEG, PNG")
