"""Records, splits and downloads.

What is written is read back; what is broken or hostile is refused by name.
"""

from __future__ import annotations

import http.server
import pickle
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.project import Trap
from neural_mesh.data.archives import unpack
from neural_mesh.data.downloads import download
from neural_mesh.data.pascal3d import UnusableRecord, read_record
from neural_mesh.data.splits import read_split, read_subset_pickle
from neural_mesh.geometry.cameras import Pose
from neural_mesh.storage.files import atomic_path
from neural_mesh.storage.layout import RawPascal3D, numbered_meshes
from neural_mesh.storage.npz_files import load_npz, save_npz
from neural_mesh.storage.records import (
    Annotation,
    VertexAnnotation,
    load_annotation,
    save_annotation,
)
from neural_mesh.storage.results import PoseSet, load_poses, save_poses


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_npz_files_are_equal_byte_for_byte_and_hold_no_pickles(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_npz(tmp_path / name, {"x": np.arange(3.0), "name": "car"})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert str(load_npz(tmp_path / "a.npz", ["x"])["name"]) == "car"
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"pickled\.npz"):
        load_npz(tmp_path / "pickled.npz", [])
    (tmp_path / "broken.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"broken\.npz"):
        load_npz(tmp_path / "broken.npz", [])


def test_poses_survive_a_round_trip_and_their_csv_is_in_degrees(tmp_path):
    column = np.array([0.5, 1.0])
    pose = Pose(column, column, column, column)
    names, starts, meshes = np.array(["a", "b"]), np.array([1, 2]), np.array([1, 1])
    poses = PoseSet("car", "", names, pose, column, starts, meshes, {"k": [1]})
    save_poses(tmp_path / "car.npz", poses)
    again = load_poses(tmp_path / "car.npz")
    assert again.config == {"k": [1]}
    assert again.names.tolist() == ["a", "b"]
    assert np.array_equal(again.pose.azimuth, column)
    assert again.pose.principal_xy is None
    assert (tmp_path / "car.csv").read_text().splitlines()[1].startswith("a,28.6479,")

    principal_xy = np.array([[40.5, 16.0], [42.0, 12.25]])
    save_poses(tmp_path / "car.npz", replace(poses, pose=replace(pose, principal_xy=principal_xy)))
    again = load_poses(tmp_path / "car.npz")
    assert np.array_equal(again.pose.principal_xy, principal_xy)
    header, _, second = (tmp_path / "car.csv").read_text().splitlines()
    assert header.endswith(",mesh,principal_x,principal_y")
    assert second.endswith(",42.0,12.25")


def test_an_annotation_survives_a_round_trip_under_the_keys_of_the_reference(tmp_path):
    pose = Pose(0.5, 0.25, 0.125, 6.0, np.array([40.0, 30.0]))
    six, two = np.arange(6.0), np.arange(2.0)
    annotation = Annotation(
        name="a",
        box=six,
        box_ori=six,
        box_obj=six,
        cropped_kp_list=np.ones((5, 2)),
        visible=np.ones(5),
        pose=pose,
        focal=1.0,
        viewport=3000.0,
        height=48,
        width=64,
        cad_index=1,
        bbox=np.arange(4.0),
        geometry="exact",
        crop_scale=1.2,
        crop_offset=two,
    )
    save_annotation(tmp_path / "a.npz", annotation)
    stored = load_npz(tmp_path / "a.npz", [])
    keys = "name box box_ori box_obj cropped_kp_list visible azimuth elevation theta distance focal"
    keys += " viewport principal height width cad_index bbox geometry crop_scale crop_offset"
    assert list(stored) == keys.split()
    assert stored["principal"].tolist() == [40.0, 30.0]
    again = load_annotation(tmp_path / "a.npz")
    assert again.pose.angles.tolist() == pose.angles.tolist()
    assert again.pose.distance == 6.0
    assert again.pose.principal_xy.tolist() == [40.0, 30.0]
    assert again.focal_px == 3000.0
    with pytest.raises(ValueError, match=r"a\.npz: lacks kp_weights"):
        load_annotation(tmp_path / "a.npz", VertexAnnotation)


def test_subset_pickles_hold_lists_of_names_and_nothing_else(tmp_path):
    path = tmp_path / "car_imagenet_val.pkl"
    path.write_bytes(pickle.dumps([["a", "b"], ["c"]]))
    assert read_subset_pickle(path) == [["a", "b"], ["c"]]
    for content in (
        pickle.dumps([[Trap(tmp_path / "ran")]]),
        pickle.dumps([[1]]),
        pickle.dumps({"a": 1}),
        b"\x80",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"car_imagenet_val\.pkl: not a"):
            read_subset_pickle(path)
    assert not (tmp_path / "ran").exists()


def test_without_a_pickle_the_official_image_set_is_used(tmp_path):
    (tmp_path / "Image_sets").mkdir()
    (tmp_path / "Image_sets" / "car_imagenet_val.txt").write_text("a\nb\n")
    split = read_split(RawPascal3D(tmp_path), "car", "val")
    assert split.names == ["a", "b"]
    assert split.source == "Image_sets/car_imagenet_val.txt"
    with pytest.raises(FileNotFoundError, match="no split for boat"):
        read_split(RawPascal3D(tmp_path), "boat", "val")


def test_a_broken_annotation_is_unusable_and_says_so(tmp_path):
    path = tmp_path / "x.mat"
    path.write_bytes(b"not matlab")
    with pytest.raises(UnusableRecord, match="unreadable annotation"):
        read_record(path, "car")


def test_a_gap_in_the_mesh_numbers_is_an_error_and_stray_files_are_not(tmp_path):
    for name in ("01.off", "02.off", ".DS_Store", "notes.txt", "old_01.off"):
        (tmp_path / name).write_text("OFF\n0 0 0\n")
    assert [p.name for p in numbered_meshes(tmp_path)] == ["01.off", "02.off"]
    (tmp_path / "04.off").write_text("")
    with pytest.raises(ValueError, match=r"03\.off is missing"):
        numbered_meshes(tmp_path)


def make_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


@pytest.fixture
def server(tmp_path):
    """A web server of a folder, at an address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_archive_is_downloaded_and_unpacked(server, tmp_path):
    folder, address = server
    make_zip(folder / "a.zip", ["images/car/x.JPEG", "lists/car.txt"])
    download(f"{address}/a.zip", tmp_path / "a.zip", "do it by hand")
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/images/car/x.JPEG").read_text() == "images/car/x.JPEG"
    make_zip(tmp_path / "b.zip", ["images/bus/y.JPEG"])
    unpack(tmp_path / "b.zip", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == ["bus", "car"]


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("page.zip", b"<!DOCTYPE html><title>Quota exceeded</title>", "web page"),
        ("cut.zip", b"PK\x03\x04 cut", "not a zip"),
        (None, b"", "404"),
    ],
)
def test_a_download_that_is_not_the_archive_says_so_and_leaves_nothing(
    server, tmp_path, name, content, complaint
):
    folder, address = server
    if name:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{complaint}.*by hand"):
        download(f"{address}/{name or 'absent.zip'}", tmp_path / "got.zip", "do it by hand")
    assert not list(tmp_path.glob("*got*"))


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp_evil.txt", "a/../../evil.txt"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, name):
    archive = make_zip(tmp_path / "evil.zip", ["fine.txt", name])
    with pytest.raises(ValueError, match="would leave the folder"):
        unpack(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("*.txt"))
