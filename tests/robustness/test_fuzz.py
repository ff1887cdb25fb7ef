"""Broken files: valid ones changed at random, and made-up ones. Every reader answers with a value or with a documented error."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import resource
import signal
import struct
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from neural_mesh.data.downloads import read_origin
from neural_mesh.data.kitti import read_labels, read_projection
from neural_mesh.data.pascal3d import read_record
from neural_mesh.data.splits import read_split, read_subset_pickle
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh
from neural_mesh.photographs.calibration import Calibration, load_calibration, save_calibration
from neural_mesh.photographs.evidence import EVIDENCE
from neural_mesh.photographs.jobs import read_boxes
from neural_mesh.photographs.results import Results
from neural_mesh.pictures.manifest import read_manifest
from neural_mesh.pictures.pose_files import read_any_poses
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.checkpoints import (
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from neural_mesh.storage.layout import PreparedSet, RawPascal3D, read_list
from neural_mesh.storage.mesh_files import read_off, write_off
from neural_mesh.storage.npz_files import load_numbers
from neural_mesh.storage.pictures import read_photograph, read_picture
from neural_mesh.storage.records import VertexAnnotation, load_annotation, save_annotation
from neural_mesh.storage.results import (
    FeatureSet,
    PoseSet,
    load_config,
    load_features,
    load_poses,
    save_features,
    save_poses,
)
from neural_mesh.storage.timings import load_seconds, record_seconds

FAST, SLOW = 120, 4000  # files per kind
MEMORY = 3 * 2**30  # bytes of address space that reading may add
SECONDS = 20  # for one file
EXTREMES = [
    b"\x00" * 4,
    b"\xff" * 4,
    struct.pack("<i", 2**31 - 1),
    struct.pack("<i", -(2**31)),
    struct.pack("<q", 2**62),
    b"nan",
    b"1e999",
    b"-1",
]


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """One to four random changes: bits, bytes, cuts, repetitions, and numbers that are as large as they get."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        if not data:
            break
        at, length = int(random.integers(len(data))), int(random.integers(1, 65))
        kind = int(random.integers(7))
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = int(random.integers(256))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            extreme = EXTREMES[int(random.integers(len(EXTREMES)))]
            data[at : at + len(extreme)] = extreme
        elif kind == 5:
            del data[at:]
        else:
            data[at : at + length] = random.bytes(length)
    return bytes(data)


def mutated_zip(content: bytes, random: np.random.Generator) -> bytes:
    """Half of the time the archive itself, else one of its members, so that checksums do not hide what lies deeper."""
    if random.random() < 0.5:
        return mutated(content, random)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        victim = int(random.integers(len(old.infolist())))
        for i, member in enumerate(old.infolist()):
            new.writestr(
                member.filename,
                mutated(old.read(member), random) if i == victim else old.read(member),
            )
    return out.getvalue()


def mutated_mat(content: bytes, random: np.random.Generator) -> bytes:
    """Half of the time the compressed file, else what is inside, compressed again."""
    if random.random() < 0.5:
        return mutated(content, random)
    inner = mutated(zlib.decompress(content[136:]), random)
    packed = zlib.compress(inner)
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed


PREDICTION = {
    "photo": "a.jpg",
    "object": 0,
    "width": 64,
    "height": 48,
    "box": None,
    "azimuth": 1.0,
    "elevation": 0.1,
    "theta": 0.0,
    "azimuth_deg": 57.3,
    "elevation_deg": 5.7,
    "theta_deg": 0.0,
    "distance": 5.0,
    "focal_px": 3000.0,
    "principal_xy": [30.0, 20.0],
    "pascal3d_distance": 6.0,
    "camera_matrix": np.eye(3, 4).tolist(),
    "mesh": 1,
    "score": 0.5,
    "evidence": dict.fromkeys(EVIDENCE, 0.5),
    "confidence": None,
    "pictures": ["a.png"],
    "source": {"bytes": 1, "modified": 2, "boxes": []},
}


def read_predictions(path: Path) -> list[dict]:
    """What predict.py does with the results of an earlier run."""
    return Results(path.parent, {"checkpoint": "1"}, overwrite=False).finish(None, [])


def read_voc_list(path: Path) -> list[str]:
    """An image set of PASCAL VOC, where a raw set has it."""
    raw = RawPascal3D(path.parent / "voc", ("pascal",))
    place = raw.voc_image_set("car", "val")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(path)
    try:
        return read_split(raw, "car", "val").names
    except ValueError as error:
        raise ValueError(str(error).replace(str(place), str(path))) from error


def valid_files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object], Callable]]:
    """Kind -> a valid file, its reader, how it is changed."""
    mesh = cuboid_mesh(cuboid_grid(np.random.default_rng(0).normal(size=(200, 3)), 40))
    write_off(folder / "a.off", mesh)
    (folder / "b.off").write_text(
        "OFF\n# polygons\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 1\n4 0 1 2 3\n3 0 1 2\n"
    )
    (folder / "a.txt").write_text("n02814533_10002.JPEG\nn02814533_10003\n" * 5)
    (folder / "a.pkl").write_bytes(
        pickle.dumps([["n02814533_10002", "n02814533_10003"], ["n02814533_1"]], protocol=2)
    )
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    )
    picture.save(folder / "a.JPEG", "JPEG")
    picture.save(folder / "a.png")
    anchor = {"status": 1.0, "location": np.array([[3.0, 4.0]])}
    view = dict.fromkeys(
        ("azimuth", "elevation", "theta", "distance", "focal", "viewport", "px", "py"), 1.0
    )
    found = {
        "class": "car",
        "bbox": np.array([1.0, 1, 60, 40]),
        "cad_index": 1,
        "viewpoint": view,
        "anchors": {"left_front_wheel": anchor},
    }
    savemat(
        folder / "a.mat",
        {"record": {"imgsize": np.array([64.0, 48, 3]), "objects": found}},
        do_compression=True,
    )
    six, two = np.arange(6.0), np.arange(2.0)
    save_annotation(
        folder / "a.npz",
        VertexAnnotation(
            "a",
            six,
            six,
            six,
            np.ones((5, 2)),
            np.ones(5),
            Pose(1.0, 1.0, 1.0, 5.0, two),
            1.0,
            3000.0,
            48,
            64,
            1,
            np.arange(4.0),
            "exact",
            1.0,
            two,
            np.ones((48, 64), bool),
            kp_weights=np.ones(5),
        ),
    )
    column, whole = np.array([0.5, 1.0]), np.array([1, 2])
    names, pose = np.array(["a", "b"]), Pose(column, column, column, column)
    poses = PoseSet("car", "", names, pose, column, whole, whole, {"k": 1})
    save_poses(folder / "poses.npz", poses)
    maps = {name: np.ones((8, 3, 4), np.float32) for name in "ab"}
    save_features(
        folder / "features.npz",
        FeatureSet(maps, {1: np.ones((5, 8))}, {1: np.ones((4, 8))}, {1: ["a", "b"]}, {"k": 1}),
    )
    config = TrainConfig(num_clutter_image=1, num_clutter_group=4)
    small = Mesh(np.ones((5, 3)), np.array([[0, 1, 2], [2, 3, 4]], np.int32))
    weights = {"net.weight": torch.ones(4, 3), "net.bias": torch.ones(4)}
    for path, save in (
        (folder / "a.pth", save_checkpoint),
        (folder / "a.safetensors", export_checkpoint),
    ):
        save(path, Checkpoint(weights, [torch.ones(9, 8)], [small], config, 3))
    numbers = (0.5, 1.0), (1.0, 2.0), (0.1, 0.2, 0.3), 40, 0.5, 0.2, 0.05
    save_calibration(
        folder / "confidence.json",
        Calibration(("a", "b"), *numbers, {"checkpoint": "1"}, {"images": "all"}),
    )
    labels = (
        "Car 0.0 1 0.1 400 150 640 300 1.5 1.6 3.9 1.0 1.65 8.0 1.2",
        "DontCare -1 -1 -10 5 5 9 9 -1 -1 -1 -1 -1 -1 -1",
    )
    (folder / "label.txt").write_text("\n".join(labels) + "\n")
    (folder / "calib.txt").write_text(
        "P0: 1 0 0 0 0 1 0 0 0 0 1 0\nP2: 700 0 600 40 0 700 170 0.2 0 0 1 0.003\n"
    )
    (folder / "voc.txt").write_text("2008_000001  1\n2008_000002 -1\n2008_000003  0\n")
    (folder / "boxes.csv").write_text("file,x0,y0,x1,y1\na.jpg,1,2,3,4\nb.jpg,5.5,6,7,8\n")
    (folder / "boxes.json").write_text(
        json.dumps({"a.jpg": [1, 2, 3, 4], "b.jpg": [[1, 2, 3, 4], [5, 6, 7, 8]]})
    )
    (folder / "poses.csv").write_text(
        "name,azimuth_deg,elevation_deg,theta_deg,distance,mesh\na,1,2,3,5,1\nb,4,5,6,,2\n"
    )
    source = {
        "split": "Image_sets/car_imagenet_val.txt",
        "geometry": "paper",
        "images": 2,
        "occluded": {"seed": 1, "level": "FGL1_BGL1"},
    }
    (folder / "lists/car").mkdir(parents=True)
    (folder / "lists/car/SOURCE.json").write_text(json.dumps(source))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "photo.jpg", exif=exif)
    picture.save(folder / "photo.tif", compression="tiff_lzw")
    picture.save(folder / "photo.webp")
    record_seconds(folder / "seconds.json", 1.5, 3, "images")
    (folder / "manifest.json").write_text(json.dumps({"pictures": ["a.png"], "of": "1"}))
    (folder / ".a.zip.fetched.json").write_text(
        json.dumps({"address": "http://a", "validator": "1", "total": 10})
    )
    (folder / "found").mkdir()
    (folder / "found/poses.jsonl").write_text((json.dumps(PREDICTION) + "\n") * 2)
    (folder / "found/settings.json").write_text(json.dumps({"checkpoint": "1"}))
    return {
        "KITTI label": (folder / "label.txt", read_labels, mutated),
        "KITTI calibration": (folder / "calib.txt", read_projection, mutated),
        "VOC list": (folder / "voc.txt", read_voc_list, mutated),
        "boxes csv": (folder / "boxes.csv", read_boxes, mutated),
        "boxes json": (folder / "boxes.json", read_boxes, mutated),
        "poses csv": (
            folder / "poses.csv",
            lambda path: read_any_poses(path, "car", ""),
            mutated,
        ),
        "confidence": (
            folder / "confidence.json",
            lambda path: load_calibration(path).confidence(np.ones((3, 2))),
            mutated,
        ),
        "SOURCE.json": (
            folder / "lists/car/SOURCE.json",
            lambda path: PreparedSet(path.parents[2]).made_from("car"),
            mutated,
        ),
        "photograph JPEG": (folder / "photo.jpg", read_photograph, mutated),
        "photograph TIFF": (folder / "photo.tif", read_photograph, mutated),
        "photograph WEBP": (folder / "photo.webp", read_photograph, mutated),
        "numbers of an annotation": (
            folder / "a.npz",
            lambda path: load_numbers(path, ["cad_index"], ["objects"]),
            mutated_zip,
        ),
        "settings of features": (folder / "features.npz", load_config, mutated_zip),
        "times": (folder / "seconds.json", load_seconds, mutated),
        "manifest of pictures": (
            folder / "manifest.json",
            lambda path: read_manifest(path.parent),
            mutated,
        ),
        "origin of a download": (
            folder / ".a.zip.fetched.json",
            lambda path: read_origin(path.with_suffix(""), "http://a"),
            mutated,
        ),
        "predictions": (folder / "found/poses.jsonl", read_predictions, mutated),
        "settings of predictions": (folder / "found/settings.json", read_predictions, mutated),
        "off": (folder / "a.off", read_off, mutated),
        "off of polygons": (folder / "b.off", read_off, mutated),
        "list": (folder / "a.txt", read_list, mutated),
        "subset pickle": (folder / "a.pkl", read_subset_pickle, mutated),
        "JPEG": (folder / "a.JPEG", read_picture, mutated),
        "PNG": (folder / "a.png", read_picture, mutated),
        "mat": (folder / "a.mat", lambda path: read_record(path, "car"), mutated_mat),
        "annotation": (
            folder / "a.npz",
            lambda path: load_annotation(path, VertexAnnotation),
            mutated_zip,
        ),
        "poses": (folder / "poses.npz", load_poses, mutated_zip),
        "features": (folder / "features.npz", load_features, mutated_zip),
        "checkpoint": (folder / "a.pth", load_checkpoint, mutated_zip),
        "safetensors": (folder / "a.safetensors", load_checkpoint, mutated),
    }


FORGIVEN = (
    "times",
    "manifest of pictures",
    "origin of a download",
    "predictions",
)  # written for ourselves: broken is as good as absent
IN_PLACE = (
    *FORGIVEN,
    "SOURCE.json",
    "settings of predictions",
)  # read by the name that they have in their folder
KINDS = (
    "KITTI label",
    "KITTI calibration",
    "VOC list",
    "boxes csv",
    "boxes json",
    "poses csv",
    "confidence",
    "SOURCE.json",
    "photograph JPEG",
    "photograph TIFF",
    "photograph WEBP",
    "numbers of an annotation",
    "settings of features",
    "settings of predictions",
    *FORGIVEN,
    "off",
    "off of polygons",
    "list",
    "subset pickle",
    "JPEG",
    "PNG",
    "mat",
    "annotation",
    "poses",
    "features",
    "checkpoint",
    "safetensors",
)


def fuzz(folder: Path, kind: str, files: int, seed: int) -> tuple[int, int]:
    """Read so many changed files; returns how many were refused and how many were still good. Raises on anything else."""
    path, read, change = valid_files(folder)[kind]
    read(path)
    content, refused = path.read_bytes(), 0
    victim = path if kind in IN_PLACE else folder / f"victim{path.suffix}"
    named = path.parent if kind == "settings of predictions" else victim
    random = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    for _ in range(files):
        victim.write_bytes(change(content, random))
        signal.alarm(SECONDS)
        try:
            read(victim)
        except ValueError as error:
            refused += 1
            assert str(named) in str(error), f"the error does not name the file: {error}"
            assert kind not in FORGIVEN, error
        signal.alarm(0)
    return refused, files - refused


def in_child(work: Callable[[], object], memory: int = MEMORY) -> object:
    """The result of `work` in a process with little memory; fails when it dies, hangs or raises."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        try:
            there.send((True, work()))
        except BaseException:
            there.send((False, traceback.format_exc()[-3000:]))

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    there.close()
    try:
        fine, result = here.recv()
    except EOFError:
        child.join()
        pytest.fail(
            f"the reader ended with status {child.exitcode} (-14: it hung, -11: it crashed)"
        )
    child.join()
    assert fine, result
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused_by_name(tmp_path, kind):
    refused, good = in_child(lambda: fuzz(tmp_path, kind, FAST, seed=1))
    assert refused + good == FAST and (refused > FAST // 10) != (kind in FORGIVEN), (refused, good)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_files_are_read_or_refused_by_name(tmp_path, kind):
    refused, good = in_child(lambda: fuzz(tmp_path, kind, SLOW, seed=2))
    print(f"{kind}: {refused} refused, {good} still good")


JSON = (
    "boxes json",
    "confidence",
    "SOURCE.json",
    "times",
    "manifest of pictures",
    "origin of a download",
    "settings of predictions",
)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "[1]", "1" * 10_000, '"a"', "\ufeff{", "{}"]
)
def test_json_that_is_odd_is_refused_by_name_or_forgiven(tmp_path, content):
    files = valid_files(tmp_path)
    for kind in JSON:
        path, read, _ = files[kind]
        path.write_text(content)
        try:
            read(path)
        except ValueError as error:
            assert str(path.parent) in str(error) and kind not in FORGIVEN, error


BRIEF = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from(["OFF", "#", "3", "\n", "1e999", "٣"])
).map(str)


@BRIEF
@given(st.lists(NUMBERS, max_size=40))
def test_made_up_meshes_are_meshes_or_refused(tmp_path, words):
    path = tmp_path / "x.off"
    path.write_text("OFF\n" + " ".join(words))
    try:
        mesh = read_off(path)
    except ValueError as error:
        assert "x.off" in str(error)
    else:
        assert (
            np.isfinite(mesh.vertices).all()
            and ((mesh.faces >= 0) & (mesh.faces < len(mesh.vertices))).all()
        )


@BRIEF
@given(st.text())
def test_made_up_lists_name_files_of_one_folder(tmp_path, text):
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        names = read_list(path)
    except ValueError as error:
        assert "x.txt" in str(error)
    else:
        assert all((tmp_path / f"{name}.JPEG").parent == tmp_path for name in names)


@BRIEF
@given(st.binary(max_size=300), st.sampled_from(["mat", "npz", "pth", "pkl", "JPEG"]))
def test_noise_is_refused_by_name(tmp_path, noise, ending):
    start, read = {
        "mat": (b"MATLAB 5.0".ljust(124) + b"\x00\x01IM", lambda path: read_record(path, "car")),
        "npz": (b"PK\x03\x04", load_poses),
        "pth": (b"\x80\x02", load_checkpoint),
        "pkl": (b"\x80\x02]", read_subset_pickle),
        "JPEG": (b"\xff\xd8\xff", read_picture),
    }[ending]
    path = tmp_path / f"x.{ending}"
    path.write_bytes(start + noise)
    with pytest.raises(ValueError, match=rf"x\.{ending}"):
        read(path)
