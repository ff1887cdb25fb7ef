"""Raw sets as people have them: endings, lists, encodings, annotations by Python, odd folders."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from helpers.raw_cars import an_object, prepare_cars, write_cars, write_mat
from neural_mesh.data.pascal3d import UnusableRecord, read_record
from neural_mesh.data.splits import read_image_set, read_split
from neural_mesh.settings import Azimuths
from neural_mesh.stages.annotate_vertices import VertexOptions, annotate_vertices
from neural_mesh.stages.download_data import download_data
from neural_mesh.stages.make_cuboids import CuboidOptions, make_cuboids
from neural_mesh.stages.make_occluded import OcclusionOptions, make_occluded
from neural_mesh.stages.select_azimuths import select_azimuths
from neural_mesh.storage.files import read_json, read_text
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D, read_list
from neural_mesh.storage.pictures import read_picture

# ---- endings and lists ----

ENDINGS = {
    "jpg": "JPEG",
    "JpG": "JPEG",
    "jpeg": "JPEG",
    "jfif": "JPEG",
    "jpe": "JPEG",
    "png": "PNG",
    "PNG": "PNG",
    "webp": "WEBP",
    "Bmp": "BMP",
    "tif": "TIFF",
}


def test_pictures_are_found_whatever_their_ending(tmp_path, capsys):
    raw = write_cars(tmp_path / "raw", tuple(ENDINGS))
    for name, kind in ENDINGS.items():
        path = raw.image("car", name)
        if kind != "JPEG":
            Image.open(path).save(path, kind)
        path.rename(path.with_suffix(f".{name}"))
        path.with_suffix(".txt").write_text("a text beside it")
        annotation = raw.annotation("car", name)
        annotation.rename(annotation.with_suffix(".MAT"))
    prepare_cars(raw.root, tmp_path / "out")
    assert f"val: {len(ENDINGS)} images of 1 category" in capsys.readouterr().out


def test_sixteen_bits_become_eight(tmp_path):
    grey = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(grey * 257).save(tmp_path / name)
        pixels = read_picture(tmp_path / name, "RGB")
        assert np.abs(pixels.astype(int) - grey[..., None]).max() <= 1


def test_a_missing_picture_is_listed_with_the_path_that_was_tried(tmp_path):
    raw = write_cars(tmp_path / "raw")
    raw.image("car", "b").unlink()
    prepare_cars(raw.root, tmp_path / "out")
    expected = f"b: no such image ({raw.image('car', 'b')}, nor with another ending)\n"
    assert PreparedSet(tmp_path / "out").skipped("car").read_text() == expected
    for name in "ac":
        raw.image("car", name).unlink()
    with pytest.raises(ValueError, match=r"no image could be prepared; the first is a: .*a\.JPEG"):
        prepare_cars(raw.root, tmp_path / "nothing")


LISTS = {
    "endings": b"a.jpeg\nb.JPG\nc.png\n",
    "flags": b"a 1\nb  0\nc +1\nd -1\n",
    "endings, flags, semicolons": b"a.jpg;1\r\nb.jpg;1\r\nc.jpg;0\r\nd.jpg;-1\r\n",
    "tabs": b"a\t1\nb\t1\nc\t0\n",
    "a byte order mark": b"\xef\xbb\xbfa\r\nb\r\nc\r\n",
    "UTF-16": "a\r\nb\r\nc\r\n".encode("utf-16"),
    "UTF-32": "a\nb\nc\n".encode("utf-32"),
    "old Mac": b"a\rb\rc\r",
    "blanks": b"\n  a \n\n\tb\t\nc",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_lists_are_read_as_people_write_them(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    assert read_image_set(path) == ["a", "b", "c"]


def test_numbers_at_the_end_of_names_are_no_flags(tmp_path):
    path = tmp_path / "list.txt"
    for names in (["car 1", "bus"], ["car 1", "car 0"], ["car 1", "car 2"]):
        path.write_text("\n".join(names))
        assert read_image_set(path) == names


def test_names_of_a_subset_pickle_may_have_endings(tmp_path):
    raw = RawPascal3D(tmp_path)
    raw.subset_pickle("car", "val").parent.mkdir()
    raw.subset_pickle("car", "val").write_bytes(pickle.dumps([["a.JPEG", "b.jpg"], ["c"]]))
    assert read_split(raw, "car", "val").names == ["a", "b", "c"]


def test_a_text_in_windows_encoding_is_read_and_named_and_noise_is_refused(tmp_path, capsys):
    path = tmp_path / "list.txt"
    path.write_bytes("café\n".encode("cp1252"))
    assert read_list(path) == read_list(path) == ["café"]
    note = f"note: {path} is not UTF-8, it is read as Windows-1252\n"
    assert capsys.readouterr().err == note, "not said once"
    for content in (b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\xe9\x01", b"caf\x81", b"\xff\xfea"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"list\.txt: not a text file"):
            read_text(path)
    path.write_bytes('\ufeff{"a": 1}'.encode("utf-16-le"))
    assert read_json(path) == {"a": 1}


# ---- folders ----


def deepen(folder: Path) -> None:
    """Put a folder into one of its own name, as some file managers unpack."""
    beside = folder.with_name("beside")
    folder.rename(beside)
    folder.mkdir()
    beside.rename(folder / folder.name)


@pytest.fixture
def with_subsets(tmp_path) -> RawPascal3D:
    """A raw set whose paper's selection is smaller than the official one."""
    raw = write_cars(tmp_path / "PASCAL3D+_release1.1")
    raw.subset_pickle("car", "val").parent.mkdir()
    raw.subset_pickle("car", "val").write_bytes(pickle.dumps([["a", "b"]]))
    return raw


@pytest.mark.parametrize("names", [["Image_subsets"], ["Images", "CAD"], ["."], [".", "Images"]])
def test_folders_that_were_unpacked_one_level_too_deep_are_read(
    with_subsets, tmp_path, capsys, names
):
    root = with_subsets.root
    for name in names:
        deepen(root if name == "." else root / name)
        if name == ".":
            root = root / root.name
    raw = with_subsets
    download_data(raw.root, categories=("car",), other_addresses={"Image_subsets": "file:///none"})
    told = capsys.readouterr()
    folders = 5 if "." in names else len(names)
    assert told.err.count("was unpacked one folder too deep; it is read") == folders
    assert "0 downloaded" in told.out
    prepare_cars(raw.root, tmp_path / "out")
    make_cuboids(CuboidOptions(raw.root, "single", ("car",)))
    made_from = PreparedSet(tmp_path / "out").made_from("car")
    assert made_from["split"] == "Image_subsets/car_imagenet_val.pkl"
    assert made_from["records"] == "reference"
    assert "note" not in capsys.readouterr().err


def test_another_split_than_the_paper_s_is_said(with_subsets, tmp_path, capsys):
    with_subsets.subset_pickle("car", "val").unlink()
    prepare_cars(with_subsets.root, tmp_path / "out")
    told = capsys.readouterr().err
    assert re.search("note: .*Image_subsets has no car_imagenet_val.pkl; the val images", told)
    assert "RECORD_RULES=auto is strict" in told


@pytest.mark.parametrize("parent", ["images", "OccludedPASCAL3D_FGL1_BGL1/images", "images/images"])
def test_occluded_pictures_are_found_where_their_archive_was_unpacked(tmp_path, parent):
    raw = RawOccluded(tmp_path)
    folder = tmp_path / parent / "carFGL1_BGL1"
    folder.mkdir(parents=True)
    for name in ("a.JPEG", "b.png", "b.txt", "._a.JPEG"):
        (folder / name).touch()
    assert raw.names("car", "FGL1_BGL1") == ["a", "b"]
    assert raw.image("car", "FGL1_BGL1", "b") == folder / "b.png"


def test_a_part_that_is_named_twice_counts_once(tmp_path, capsys):
    raw = write_cars(tmp_path / "raw")
    prepare_cars(raw.root, tmp_path / "out", parts=("imagenet", "imagenet"))
    assert "val: 3 images" in capsys.readouterr().out
    source = PreparedSet(tmp_path / "out").made_from("car")["split"]
    assert source == "Image_sets/car_imagenet_val.txt"


@pytest.mark.parametrize("there, missing", [("val", "train"), ("train", "val")])
def test_a_set_with_images_of_one_split_alone_is_prepared_as_it_is(
    tmp_path, capsys, there, missing
):
    raw = write_cars(tmp_path / "raw", split=there)
    for split in (missing, there):
        prepare_cars(raw.root, tmp_path / split, split)
    told = capsys.readouterr()
    assert f"note: car has no list of {missing} images" in told.err
    assert f"{missing}: 0 images" in told.out
    assert f"{there}: 3 images" in told.out
    make_cuboids(CuboidOptions(raw.root, "single", ("car",)))
    for split in (missing, there):
        annotate_vertices(
            VertexOptions(raw.root, tmp_path / split, "single", ("car",), workers="1")
        )
        select_azimuths(tmp_path / split, "single", Azimuths("TFFTTFFT"), ("car",))
    told = capsys.readouterr()
    assert "single: vertices of 3 images annotated" in told.out
    assert f"{missing} has no images of car to choose from" in told.err
    assert len(PreparedSet(tmp_path / there).image_names("single", "car")) == 3


def test_a_set_without_any_list_says_where_to_write_one(tmp_path):
    raw = write_cars(tmp_path / "raw")
    raw.image_set("car", "val").unlink()
    with pytest.raises(FileNotFoundError, match="no split for car.*write the names of the images"):
        prepare_cars(raw.root, tmp_path / "out")


def test_a_folder_without_occluders_does_not_stand_for_procedural_ones(tmp_path):
    raw = write_cars(tmp_path / "raw")
    folder = tmp_path / "occluders"
    folder.mkdir()
    (folder / "tree.psd").touch()
    with pytest.raises(ValueError, match="holds no occluders"):
        make_occluded(OcclusionOptions(raw.root, tmp_path / "out", ("car",), occluders=folder))


# ---- annotations ----


def plain_object(name: object = "car", **changes: object) -> dict:
    return an_object(**changes) | {"class": name}


def record_of(*objects: dict, **changes: object) -> dict:
    """Variables for `savemat`, which makes a cell array of the list."""
    record = {"imgsize": np.array([100, 80, 3]), "objects": list(objects)}
    return {"record": record | changes}


READ = {
    "a cell array": record_of(plain_object("bus"), plain_object(azimuth=77.0)),
    "a struct": record_of(objects=plain_object(azimuth=77.0)),
    "cells in cells": record_of(
        plain_object(["car"], azimuth=77.0), imgsize=[np.array([100, 80, 3])]
    ),
    "a list of one record": {"record": [record_of(plain_object(azimuth=77.0))["record"]]},
    "another name": {"rec": record_of(plain_object(azimuth=77.0))["record"], "version": 2},
    "a sparse mask": record_of(plain_object(azimuth=77.0), mask=csc_matrix(np.eye(9))),
    "a class in capitals": record_of(plain_object("Car", azimuth=77.0)),
    "another word": record_of(plain_object("automobile", azimuth=77.0)),
    "the very word first": record_of(plain_object("Car"), plain_object(azimuth=77.0)),
}


@pytest.mark.parametrize("variables", READ.values(), ids=READ)
def test_annotations_that_python_wrote_are_read(tmp_path, variables):
    savemat(tmp_path / "a.mat", variables)
    record = read_record(tmp_path / "a.mat", "car")
    assert np.rad2deg(record.pose.azimuth) == pytest.approx(77)
    assert record.image_hw == (80, 100)
    assert record.bbox_xyxy.tolist() == [20, 20, 80, 60]


def without_size() -> dict:
    record = record_of(plain_object())["record"]
    return {"record": {"size": record.pop("imgsize")} | record}


REFUSED = {
    "its record has no imgsize, it has size, objects": without_size(),
    "it holds a, b, but no struct called record": {"a": 1, "b": {"n": 1}},
    "has bus, one without a class": record_of(plain_object("bus"), {"bbox": 1}),
    "has no object": record_of(),
    "a MATLAB 7.3 file, which is HDF5; save it with -v7": b"MATLAB 7.3 MAT-file, Platform: GLNX",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(200),
    "an empty file": b"",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "JSON; save it": b'{"record": 1}',
    "not a MATLAB 5 file; save it": b"car 20 20 280 150",
}


@pytest.mark.parametrize("detail", REFUSED)
def test_annotations_that_cannot_be_read_say_what_they_are(tmp_path, detail):
    raw = write_cars(tmp_path / "raw")
    path = raw.annotation("car", "b")
    content = REFUSED[detail]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        savemat(path, content)
    with pytest.raises(UnusableRecord, match=re.escape(detail)):
        read_record(path, "car")
    prepare_cars(raw.root, tmp_path / "out")
    skipped = PreparedSet(tmp_path / "out").skipped("car").read_text()
    assert skipped.startswith("b: ")
    assert detail in skipped
    assert skipped.count("\n") == 1


def test_a_class_that_is_taken_for_the_category_is_said_once(tmp_path, capsys):
    raw = write_cars(tmp_path / "raw")
    for name in "ab":
        write_mat(raw.annotation("car", name), an_object("Car"))
    prepare_cars(raw.root, tmp_path / "strict")
    note = "note: class Car in the annotations of 2 images is taken for car\n"
    assert capsys.readouterr().err.count(note) == 1
    write_mat(raw.annotation("car", "a"), an_object("bus"))
    prepare_cars(raw.root, tmp_path / "reference", record_rules="reference")
    told = capsys.readouterr().err
    assert "the first object in the annotations of 1 image is of class bus; it is used" in told


def test_what_strangers_say_is_one_line_of_skipped_txt(tmp_path):
    raw = write_cars(tmp_path / "raw")
    name = "bus\u2028\x85\nx: kept" + "y" * 10_000
    write_mat(raw.annotation("car", "b"), an_object(name))
    prepare_cars(raw.root, tmp_path / "out")
    (line,) = PreparedSet(tmp_path / "out").skipped("car").read_text().splitlines()
    assert line.startswith("b: no object of the category (")
    assert len(line) < 600
