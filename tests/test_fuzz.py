"""Broken files: valid ones changed at random, and made-up ones. Every reader answers with a value or with a documented error."""

from __future__ import annotations

import io
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

from nemo.checkpoints import Checkpoint, export_checkpoint, load_checkpoint, save_checkpoint
from nemo.files import read_picture
from nemo.layout import read_list
from nemo.meshes import Mesh, cuboid_grid, cuboid_mesh, read_off, write_off
from nemo.pascal3d import read_record, read_subset_pickle
from nemo.records import (
    FeatureSet,
    PoseSet,
    VertexAnnotation,
    load_annotation,
    load_features,
    load_poses,
    save_annotation,
    save_features,
    save_poses,
)
from nemo.settings import TrainConfig

FAST, SLOW = 240, 6000  # files per kind; there are twelve kinds
MEMORY = 3 * 2**30  # bytes of address space that reading may add
SECONDS = 20  # for one file
EXTREMES = [
    b"\x00" * 4, b"\xff" * 4, struct.pack("<i", 2**31 - 1), struct.pack("<i", -(2**31)), struct.pack("<q", 2**62), b"nan", b"1e999", b"-1",
]  # fmt: skip


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
            new.writestr(member.filename, mutated(old.read(member), random) if i == victim else old.read(member))
    return out.getvalue()


def mutated_mat(content: bytes, random: np.random.Generator) -> bytes:
    """Half of the time the compressed file, else what is inside, compressed again."""
    if random.random() < 0.5:
        return mutated(content, random)
    inner = mutated(zlib.decompress(content[136:]), random)
    packed = zlib.compress(inner)
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed


def valid_files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object], Callable]]:
    """Kind -> a valid file, its reader, how it is changed."""
    mesh = cuboid_mesh(cuboid_grid(np.random.default_rng(0).normal(size=(200, 3)), 40))
    write_off(folder / "a.off", mesh)
    (folder / "b.off").write_text("OFF\n# polygons\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 1\n4 0 1 2 3\n3 0 1 2\n")
    (folder / "a.txt").write_text("n02814533_10002.JPEG\nn02814533_10003\n" * 5)
    (folder / "a.pkl").write_bytes(pickle.dumps([["n02814533_10002", "n02814533_10003"], ["n02814533_1"]], protocol=2))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    picture.save(folder / "a.JPEG", "JPEG")
    picture.save(folder / "a.png")
    anchor = {"status": 1.0, "location": np.array([[3.0, 4.0]])}
    view = dict.fromkeys(("azimuth", "elevation", "theta", "distance", "focal", "viewport", "px", "py"), 1.0)
    found = {"class": "car", "bbox": np.array([1.0, 1, 60, 40]), "cad_index": 1, "viewpoint": view, "anchors": {"left_front_wheel": anchor}}
    savemat(folder / "a.mat", {"record": {"imgsize": np.array([64.0, 48, 3]), "objects": found}}, do_compression=True)
    six, two = np.arange(6.0), np.arange(2.0)
    save_annotation(folder / "a.npz", VertexAnnotation(
        "a", six, six, six, np.ones((5, 2)), np.ones(5), 1.0, 1.0, 1.0, 5.0, 1.0, 3000.0, two, 48, 64, 1, np.arange(4.0), "exact", 1.0, two,
        np.ones((48, 64), bool), kp_weights=np.ones(5)))  # fmt: skip
    column, whole = np.array([0.5, 1.0]), np.array([1, 2])
    numbers = [column] * 5 + [whole] * 2
    save_poses(folder / "poses.npz", PoseSet("car", "", np.array(["a", "b"]), *numbers, config={"k": 1}))
    maps = {name: np.ones((8, 3, 4), np.float32) for name in "ab"}
    save_features(folder / "features.npz", FeatureSet(maps, {1: np.ones((5, 8))}, {1: np.ones((4, 8))}, {1: ["a", "b"]}, {"k": 1}))
    config = TrainConfig(num_clutter_image=1, num_clutter_group=4)
    small = Mesh(np.ones((5, 3)), np.array([[0, 1, 2], [2, 3, 4]], np.int32))
    weights = {"net.weight": torch.ones(4, 3), "net.bias": torch.ones(4)}
    for path, save in ((folder / "a.pth", save_checkpoint), (folder / "a.safetensors", export_checkpoint)):
        save(path, Checkpoint(weights, [torch.ones(9, 8)], [small], config, 3))
    return {
        "off": (folder / "a.off", read_off, mutated),
        "off of polygons": (folder / "b.off", read_off, mutated),
        "list": (folder / "a.txt", read_list, mutated),
        "subset pickle": (folder / "a.pkl", read_subset_pickle, mutated),
        "JPEG": (folder / "a.JPEG", read_picture, mutated),
        "PNG": (folder / "a.png", read_picture, mutated),
        "mat": (folder / "a.mat", lambda path: read_record(path, "car"), mutated_mat),
        "annotation": (folder / "a.npz", lambda path: load_annotation(path, VertexAnnotation), mutated_zip),
        "poses": (folder / "poses.npz", load_poses, mutated_zip),
        "features": (folder / "features.npz", load_features, mutated_zip),
        "checkpoint": (folder / "a.pth", load_checkpoint, mutated_zip),
        "safetensors": (folder / "a.safetensors", load_checkpoint, mutated),
    }


KINDS = (
    "off", "off of polygons", "list", "subset pickle", "JPEG", "PNG", "mat", "annotation", "poses", "features", "checkpoint", "safetensors",
)  # fmt: skip


def fuzz(folder: Path, kind: str, files: int, seed: int) -> tuple[int, int]:
    """Read so many changed files; returns how many were refused and how many were still good. Raises on anything else."""
    path, read, change = valid_files(folder)[kind]
    read(path)
    content, victim, refused = path.read_bytes(), folder / f"victim{path.suffix}", 0
    random = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    for _ in range(files):
        victim.write_bytes(change(content, random))
        signal.alarm(SECONDS)
        try:
            read(victim)
        except ValueError as error:
            refused += 1
            assert str(victim) in str(error), f"the error does not name the file: {error}"
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
        pytest.fail(f"the reader ended with status {child.exitcode} (-14: it hung, -11: it crashed)")
    child.join()
    assert fine, result
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_read_or_refused_by_name(tmp_path, kind):
    refused, good = in_child(lambda: fuzz(tmp_path, kind, FAST, seed=1))
    assert refused + good == FAST and refused > FAST // 10, (refused, good)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_files_are_read_or_refused_by_name(tmp_path, kind):
    refused, good = in_child(lambda: fuzz(tmp_path, kind, SLOW, seed=2))
    print(f"{kind}: {refused} refused, {good} still good")


BRIEF = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from(["OFF", "#", "3", "\n", "1e999", "٣"])).map(str)


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
        assert np.isfinite(mesh.vertices).all() and ((mesh.faces >= 0) & (mesh.faces < len(mesh.vertices))).all()


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
