"""Hostile files, broken downloads, two runs at once, full disks, too little memory: one sentence each, and nothing lost."""

from __future__ import annotations

import errno
import http.server
import multiprocessing
import os
import pickle
import re
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_fuzz import in_child, valid_files

from helpers.project import PYTHONPATH, Trap
from neural_mesh.data import downloads
from neural_mesh.data.archives import half_unpacked, unpack
from neural_mesh.data.dataset import TrainingImages
from neural_mesh.data.decoded_crops import DecodedCrops
from neural_mesh.data.downloads import download
from neural_mesh.data.loading import batches
from neural_mesh.data.pascal3d import UnusableRecord, read_record
from neural_mesh.data.splits import read_subset_pickle
from neural_mesh.geometry.cameras import Pose
from neural_mesh.machine import resources
from neural_mesh.machine.resources import require_disk, require_memory
from neural_mesh.machine.workers import WorkerPool, in_pool
from neural_mesh.settings import TrainConfig
from neural_mesh.solve.batches import read_batches
from neural_mesh.solve.halving import in_halves
from neural_mesh.storage import files
from neural_mesh.storage.checkpoints import load_checkpoint
from neural_mesh.storage.files import BusyError, WriteError, atomic_path, lock, write_bytes
from neural_mesh.storage.layout import Experiment, PreparedSet, read_list
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.npz_files import load_npz
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.results import PoseSet, save_poses

LITTLE = 2**28  # bytes that reading a hostile file may add


# ---- files of strangers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> dict[str, Path]:
    """A valid file of every kind."""
    return {
        kind: path for kind, (path, _, _) in valid_files(tmp_path_factory.mktemp("valid")).items()
    }


def refused(read, path: Path, complaint: str, memory: int = LITTLE) -> None:
    """`read(path)` ends with a ValueError that names the file and says `complaint`, in a process with little memory."""

    def work() -> str:
        try:
            read(path)
        except ValueError as error:
            return str(error)
        return "it was read"

    message = in_child(work, memory)
    assert path.name in message and re.search(complaint, message), message


def test_pickles_in_every_kind_of_file_are_refused_and_nothing_runs(tmp_path, valid):
    ran = tmp_path / "ran"
    (tmp_path / "subset.pkl").write_bytes(pickle.dumps([[Trap(ran)]]))
    torch.save({"state": {}, "memory": [], "extra": Trap(ran)}, tmp_path / "zip.pth")
    torch.save(
        {"state": {}, "memory": [], "extra": Trap(ran)},
        tmp_path / "old.pth",
        _use_new_zipfile_serialization=False,
    )
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
    memo = b"\x80\x02]r\xff\xff\xff\x7f."  # would make room for two thousand million remembered objects
    shared = (
        b"\x80\x02](X\x01\x00\x00\x00aq\x00"
        + b"]q\x01("
        + b"h\x00" * 2000
        + b"e"
        + b"h\x01" * 1000
        + b"e."
    )
    for content in (deep, memo, shared, b"\x80\x02]X\xff\xff\xff\x7f" + b"a."):
        path.write_bytes(content)
        refused(read_subset_pickle, path, "not a")


def test_headers_that_claim_the_world_are_refused_before_anything_is_allocated(tmp_path):
    (tmp_path / "large.off").write_text("OFF\n1000000000 1 0\n0 0 0\n")
    refused(read_off, tmp_path / "large.off", "says 1000000000 vertices")
    Image.new("L", (16, 16)).save(tmp_path / "large.JPEG")
    content = (tmp_path / "large.JPEG").read_bytes()
    at = content.index(b"\xff\xc0") + 5
    (tmp_path / "large.JPEG").write_bytes(
        content[:at] + struct.pack(">HH", 60000, 60000) + content[at + 4 :]
    )
    refused(read_picture, tmp_path / "large.JPEG", "60,000 x 60,000|exceeds limit")
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        archive.writestr(
            "x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
        )
    refused(lambda path: load_npz(path, []), tmp_path / "large.npz", "'x'.*claims float64")
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as member,
    ):
        np.lib.format.write_array(member, np.zeros(2**26))
    refused(lambda path: load_npz(path, []), tmp_path / "bomb.npz", "unpacks to more than")


def mat_of(matrix: bytes) -> bytes:
    packed = zlib.compress(matrix)
    return (
        b"MATLAB 5.0 MAT-file".ljust(124)
        + b"\x00\x01IM"
        + struct.pack("<II", 15, len(packed))
        + packed
    )


def mat_array(kind: int, dimensions: tuple[int, int], body: bytes, name: bytes = b"") -> bytes:
    head = struct.pack("<IIII", 6, 8, kind, 0) + struct.pack("<IIii", 5, 8, *dimensions)
    head += struct.pack("<II", 1, len(name)) + name + b"\0" * (-len(name) % 8)
    return struct.pack("<II", 14, len(head + body)) + head + body


def test_annotations_that_would_exhaust_scipy_are_unusable(tmp_path):
    path, nested = tmp_path / "x.mat", mat_array(6, (1, 1), struct.pack("<IId", 9, 8, 1.0))
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
        refused(lambda file: read_record(file, "car"), path, f"unreadable annotation.*{complaint}")
    path.write_bytes(mat_of(bytes(2**28)))
    refused(lambda file: read_record(file, "car"), path, "decompresses to more than")
    assert issubclass(UnusableRecord, ValueError)


def test_checkpoints_that_unpack_to_more_than_they_hold_are_refused(tmp_path, valid):
    bomb = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(valid["checkpoint"]) as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(
                member.filename, bytes(2**27) if "/data/" in member.filename else old.read(member)
            )
    refused(load_checkpoint, bomb, "unpacks to more than it holds", memory=2**29)
    content = torch.load(valid["checkpoint"], weights_only=True)
    for change, complaint in (
        ({"memory": torch.ones(1).expand(10**9, 128)}, "memory holds no feature banks"),
        ({"memory": "abc"}, "memory"),
        ({"state": {"w": "abc"}}, "state"),
        ({"args": content["args"] | {"seed": "abc"}}, "seed of its settings is 'abc'"),
        (
            {"meshes": [{"vertices": torch.ones(5, 3), "faces": torch.full((1, 3), 99)}]},
            "names a vertex that does not exist",
        ),
        (
            {
                "meshes": [
                    {"vertices": torch.ones(4, 3), "faces": torch.zeros(1, 3, dtype=torch.int32)}
                ]
            },
            "bank 1 has 9 rows",
        ),
    ):
        torch.save(content | change, tmp_path / "odd.pth")
        refused(load_checkpoint, tmp_path / "odd.pth", complaint)


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "a\\b", ".hidden", "a\0b", "x" * 300]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    (tmp_path / "list.txt").write_text(f"fine.JPEG\n{name}.JPEG\n")
    refused(read_list, tmp_path / "list.txt", "not a file name")
    (tmp_path / "subset.pkl").write_bytes(pickle.dumps([["fine", name]]))
    refused(read_subset_pickle, tmp_path / "subset.pkl", "not a file name")


def test_a_category_that_leads_elsewhere_is_refused_before_anything_is_deleted(
    tmp_path, code, sample_raw
):
    (tmp_path / "precious.txt").write_text("kept")
    arguments = (
        "--raw",
        sample_raw / "PASCAL3D+_release1.1",
        "--out",
        tmp_path / "out/put",
        "--split",
        "val",
        "--overwrite",
        "true",
    )
    for extra in (
        ("--categories", "../.."),
        ("--categories", "car", "--level", "/../..", "--occluded", sample_raw),
    ):
        done = code("prepare_images", *arguments, *extra, check=False)
        assert (
            done.returncode != 0
            and "not a file name" in done.stderr
            and "Traceback" not in done.stderr
        )
    assert (tmp_path / "precious.txt").is_file()


def test_pictures_of_formats_that_start_programs_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.JPEG")
    refused(read_picture, tmp_path / "a.JPEG", "not a picture of the kinds JPEG, PNG")


# ---- downloads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A web server with ranges whose one file may change and whose connections may break off."""

    class Serve(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state = self.server.state
            content, start = state["content"], 0
            tag = f'"{zlib.crc32(content):x}"'
            wanted = self.headers.get("Range")
            state["asked"].append(wanted)
            if wanted and self.headers.get("If-Range") == tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            if state["marked"]:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            self.wfile.write(content[start : start + state["most"]])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve) as running:
        running.state = {"content": b"", "most": 10**9, "asked": [], "marked": True}
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.state, f"http://127.0.0.1:{running.server_port}/a.zip"
        running.shutdown()


def archive_bytes(tmp_path: Path, seed: int) -> bytes:
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("images/a.JPEG", np.random.default_rng(seed).bytes(300_000))
    return (tmp_path / "made.zip").read_bytes()


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path, monkeypatch):
    state, address = server
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000}
    with pytest.raises(ValueError, match=r"240,000 bytes arrived and are kept.*by hand"):
        download(address, tmp_path / "a.zip", "do it by hand")
    assert not (tmp_path / "a.zip").exists()
    download(address, tmp_path / "a.zip", "do it by hand")
    assert (tmp_path / "a.zip").read_bytes() == state["content"]
    assert state["asked"] == [
        None,
        *(f"bytes={n}-" for n in (60000, 120000, 180000, 240000, 300000)),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "made.zip"]


@pytest.fixture
def ftp_server():
    """An FTP server with one file; `lacks` names commands that it does not know."""

    class Serve(socketserver.StreamRequestHandler):
        def handle(self):
            state, start = self.server.state, 0
            self.say("220 ready")
            while line := self.rfile.readline().decode().strip():
                command, _, argument = line.partition(" ")
                if command in state["lacks"]:
                    self.say("502 no such command")
                elif command == "USER":
                    self.say("331 password?")
                elif command in ("PASS", "TYPE"):
                    self.say("230 fine")
                elif command in ("SIZE", "MDTM"):
                    value = len(state["content"]) if command == "SIZE" else state["changed"]
                    self.say(f"213 {value}" if argument == "a b.zip" else "550 no such file")
                elif command == "PASV":
                    data = socketserver.TCPServer(("127.0.0.1", 0), None)
                    self.say("227 at (127,0,0,1,%d,%d)" % divmod(data.server_address[1], 256))
                elif command == "REST":
                    start = int(argument)
                    self.say("350 from there")
                elif command == "RETR" and argument == "a b.zip":
                    state["asked"].append(start)
                    connection, _ = data.get_request()
                    self.say("150 it comes")
                    connection.sendall(state["content"][start : start + state["most"]])
                    connection.close()
                    data.server_close()
                else:
                    self.say("550 no such file")

        def say(self, text):
            self.wfile.write(f"{text}\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Serve) as running:
        running.state = {
            "content": b"",
            "most": 10**9,
            "changed": "20200101000000",
            "asked": [],
            "lacks": (),
        }
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running.state, f"ftp://127.0.0.1:{running.server_address[1]}/a%20b.zip"
        running.shutdown()


@pytest.mark.parametrize("lacks", [(), ("MDTM",), ("REST",), ("SIZE",)])
def test_a_download_from_an_ftp_server_goes_on_where_that_can_be(
    ftp_server, tmp_path, monkeypatch, lacks
):
    state, address = ftp_server
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000, "lacks": lacks}
    if "SIZE" in lacks:  # then nothing says that it broke off but the archive itself
        with pytest.raises(ValueError, match="not a zip archive"):
            download(address, tmp_path / "a.zip", "do it by hand")
        return
    told = (
        "60,000 bytes arrived, but this server"
        if "REST" in lacks
        else "240,000 bytes arrived and are kept, the same command"
    )
    with pytest.raises(ValueError, match=f"broke off 4 times; {told}.*by hand"):
        download(address, tmp_path / "a.zip", "do it by hand")
    assert state["asked"] == ([0] * 4 if "REST" in lacks else [0, 60_000, 120_000, 180_000])
    state["most"] = 10**9
    download(address, tmp_path / "a.zip", "do it by hand")
    assert (tmp_path / "a.zip").read_bytes() == state["content"] and state["asked"][-1] == (
        0 if "REST" in lacks else 240_000
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "made.zip"]
    with pytest.raises(ValueError, match="550 no such file"):
        download(address.replace("a%20b", "b"), tmp_path / "b.zip", "do it by hand")


@pytest.mark.parametrize("kind", ["server", "ftp_server"])
def test_a_download_whose_file_changed_meanwhile_starts_again(request, tmp_path, monkeypatch, kind):
    state, address = request.getfixturevalue(kind)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000}
    with pytest.raises(ValueError, match="60,000 bytes arrived and are kept"):
        download(address, tmp_path / "a.zip", "do it by hand")
    state |= {"content": archive_bytes(tmp_path, 1), "most": 10**9, "changed": "20210101000000"}
    download(address, tmp_path / "a.zip", "do it by hand")
    asked = {
        "server": [None, "bytes=60000-"],
        "ftp_server": [0, 0],
    }  # a web server then answers with all of it
    assert (tmp_path / "a.zip").read_bytes() == state["content"] and state["asked"] == asked[kind]


def test_a_server_without_a_mark_of_its_file_is_not_said_to_go_on(server, tmp_path, monkeypatch):
    state, address = server
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    state |= {"content": archive_bytes(tmp_path, 0), "most": 60_000, "marked": False}
    with pytest.raises(
        ValueError,
        match="60,000 bytes arrived, but .* does not let a download go on, the same command starts again",
    ):
        download(address, tmp_path / "a.zip", "do it by hand")


def test_an_unpacking_that_broke_off_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("Annotations/a.mat", "Images/a.JPEG"):
            opened.writestr(f"set/{name}", name)
    (tmp_path / "set").mkdir()
    move, moved = os.replace, []

    def once(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path)
    monkeypatch.undo()
    assert moved == [tmp_path / "set/Annotations"] and half_unpacked(archive, tmp_path)
    unpack(archive, tmp_path)
    assert (tmp_path / "set/Images/a.JPEG").is_file() and not half_unpacked(archive, tmp_path)


def test_archives_that_are_damaged_or_too_large_unpack_to_nothing(tmp_path):
    content = bytearray(archive_bytes(tmp_path, 0))
    content[1000] ^= 1
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.zip: broken archive"):
        unpack(tmp_path / "damaged.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        archive.writestr("a", b"")
        archive.infolist()[0].file_size = 2**31 - 2**20
        archive.infolist().extend([archive.infolist()[0]] * 2000)
    with pytest.raises(ValueError, match="needs about [0-9,.]+ GB of disk"):
        unpack(tmp_path / "large.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match="would leave the folder"):
        unpack(tmp_path / "link.zip", tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


# ---- two runs at once ---------------------------------------------------------------------------------------------


def hold(folder: Path, ready) -> None:
    with lock(folder, "x", "the poses of car"):
        ready.send(True)
        time.sleep(60)


def test_a_second_run_is_told_and_a_killed_one_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SECONDS_TO_WAIT", 0.2)
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, there))
    other.start()
    here.recv()
    told = f"another run is writing the poses of car in {tmp_path}; wait"
    with pytest.raises(BusyError, match=told), lock(tmp_path, "x", "the poses of car"):
        pass
    with lock(tmp_path, "y", "the poses of bus"):
        pass
    other.kill()
    other.join()
    assert (tmp_path / ".x.lock").exists(), "the killed run left its file"
    with lock(tmp_path, "x", "the poses of car"):
        pass
    assert not list(tmp_path.iterdir())


def count_up(folder: Path) -> int:
    """A read and a write that lose an update unless they are alone."""
    for _ in range(20):
        with lock(folder, "count", "a number"):
            value = int((folder / "count.txt").read_text())
            write_bytes(folder / "count.txt", str(value + 1).encode())
    return os.getpid()


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    (tmp_path / "count.txt").write_text("0")
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(count_up, [tmp_path] * 8))
    assert (tmp_path / "count.txt").read_text() == "160"


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_worker_processes_neither_hold_locks_nor_outlive_their_parent(tmp_path, method):
    program = (
        "import multiprocessing, os, sys, time; from pathlib import Path; from neural_mesh.machine.workers import WorkerPool; from neural_mesh.storage import files\n"
        "folder = Path(sys.argv[1])\n"
        "multiprocessing.set_start_method(sys.argv[2])\n"
        "with files.lock(folder, 'x', 'it'), WorkerPool(2) as pool:\n"
        "    pids = set(pool.map(os.getppid, [])) | {pool.submit(os.getpid).result() for _ in range(8)}\n"
        "    files.write_text(folder / 'pids.txt', ' '.join(map(str, pids)))\n"
        "    time.sleep(60)\n"
    )
    with (
        tempfile.TemporaryDirectory() as short
    ):  # for the fork server's socket, which a killed one leaves
        environment = os.environ | {"PYTHONPATH": PYTHONPATH, "TMPDIR": short}
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), method], env=environment
        )
        while not (tmp_path / "pids.txt").is_file() and process.poll() is None:
            time.sleep(0.02)
        workers = [int(pid) for pid in (tmp_path / "pids.txt").read_text().split()]
        process.kill()
        process.wait()
    with lock(tmp_path, "x", "it"):
        pass
    deadline = time.monotonic() + 10
    while (
        alive := [pid for pid in workers if Path(f"/proc/{pid}/stat").exists()]
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not alive


# ---- full disks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["system", "torch", "wrapped"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, way):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(
            WriteError,
            match=r"cannot write .*a\.txt: the disk is full; make space and run the same command again",
        ),
        atomic_path(path) as temporary,
    ):
        temporary.write_text("half of the ne")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if way == "wrapped":
                raise RuntimeError("the writer failed") from error
            if way == "torch":
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
            raise
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# ---- honest scoring -----------------------------------------------------------------------------------------------


def test_a_table_refuses_categories_that_were_prepared_differently(sample_raw, code, tmp_path):
    """Here: occluded by two runs of make_occluded.py with different seeds into one set."""
    raw, occluded, level = (
        sample_raw / "PASCAL3D+_release1.1",
        tmp_path / "raw occluded",
        "FGL1_BGL1",
    )
    both, prepare = (
        ("--categories", "car chair"),
        ("prepare_images", "--raw", raw, "--split", "val", "--workers", 1),
    )
    for category, seed in (("car", 0), ("chair", 1)):
        code(
            "make_occluded",
            "--raw",
            raw,
            "--out",
            occluded,
            "--levels",
            level,
            "--seed",
            seed,
            "--workers",
            1,
            "--categories",
            category,
        )
    code(*prepare, *both, "--out", tmp_path / "clean")
    code(*prepare, *both, "--out", tmp_path / "tested", "--occluded", occluded, "--level", level)
    tested, experiment = PreparedSet(tmp_path / "tested"), Experiment(tmp_path / "exp", "single")
    config = {
        "solve": {"solver": "paper"},
        "mesh_d": "single",
        "backbone": "b",
        "recipe": "r",
        "image_scale": 1.0,
        "renderer": "numba",
    }
    for category in ("car", "chair"):
        names = np.array(sorted(tested.wanted("single", category + level)))
        zeros, ones = np.zeros(len(names)), np.ones(len(names), int)
        pose = Pose(zeros, zeros, zeros, zeros)
        own = config | {"category": category, "data": tested.fingerprint(category + level)}
        save_poses(
            experiment.poses(category, level),
            PoseSet(category, level, names, pose, zeros, ones, ones, own),
        )
    score = (
        "report_accuracy",
        "--exp",
        tmp_path / "exp",
        "--clean",
        tmp_path / "clean",
        "--prepared",
        tested.root,
        "--level",
        level,
    )
    for category in ("car", "chair"):
        assert "table of" in code(*score, "--categories", category).stdout
    done = code(*score, *both, check=False)
    told = "error: the images of car and chair were prepared with different occluded.seed (see SOURCE.json of each), which a table does not"
    assert done.returncode == 1 and done.stderr.startswith(told) and done.stderr.count("\n") == 1, (
        done.stderr
    )
    tested.source(f"chair{level}").write_text("[")
    done = code(*score, "--categories", "chair", check=False)
    assert done.returncode == 1 and "poses of other data" in done.stderr, done.stderr


# ---- memory and workers -------------------------------------------------------------------------------------------


def test_too_little_room_is_told_with_both_amounts(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"the crops needs about 1,000,000\.0 GB of disk in .*, which has .* free; make space",
    ):
        require_disk(tmp_path / "not yet there", 10**15, "the crops", "make space")
    with pytest.raises(
        ValueError, match=r"the cache needs about 1,000,000\.0 GB of memory, .* are free; buy some"
    ):
        require_memory(10**15, "the cache", "buy some")
    require_memory(10**6, "the cache", "buy some")
    monkeypatch.setattr(resources, "free_memory", lambda: None)
    require_memory(10**15, "the cache", "where it cannot be known, it is tried")


@pytest.mark.parametrize("droppable", [group.cached for group in resources.CGROUPS])
def test_cached_files_of_a_container_are_free_memory(tmp_path, droppable):
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("900\n")
    group = resources.MemoryGroup(str(tmp_path / "max"), str(tmp_path / "current"), droppable)
    assert resources._group_memory(group) == 100
    (tmp_path / "memory.stat").write_text(f"anon 200\n{droppable} 600\nactive_file 50\n")
    assert resources._group_memory(group) == 700
    (tmp_path / "max").write_text("max\n")
    assert resources._group_memory(group) is None


def test_out_of_gpu_memory_at_inference_halves_the_batch(capsys):
    seen = []

    def work(part: slice) -> list[int]:
        if part.stop - part.start > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        seen.append(part)
        return list(range(8))[part]

    assert (
        sum(in_halves(work, 8, "feature maps"), []) == list(range(8)) and len(seen) == 4
    )
    assert "out of GPU memory, going on with 2 images at a time" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not even the feature maps of one image fit"):
        in_halves(lambda part: work(slice(0, 8)), 8, "feature maps")


def crash(name: str) -> str:
    if name == "b":
        os.kill(os.getpid(), 9)
    return name


def test_a_dead_worker_is_reported_with_what_it_was_at():
    with (
        WorkerPool(1) as pool,
        pytest.raises(
            ValueError, match="a process died .* working on b of car; finished work is kept"
        ),
    ):
        in_pool(pool, crash, ["a", "b", "c"], "car")


class OnePicture(TrainingImages):
    """Two pictures without annotations, of which the loader below decodes the second."""

    def __init__(self, path: Path):
        paths = [path, path.with_name("second.JPEG")]
        crops = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        self.crops = DecodedCrops(paths, 1.0, crops, torch.zeros(2, dtype=torch.bool))

    def __getitem__(self, index: int):
        return self.crops[index]


@pytest.mark.parametrize("deadly", [True, False])
def test_a_failing_decoder_in_training_names_the_file(tmp_path, monkeypatch, deadly):
    Image.new("RGB", (8, 8)).save(tmp_path / "first.JPEG")
    (tmp_path / "second.JPEG").write_bytes(b"no picture")
    if deadly:
        monkeypatch.setattr(
            "neural_mesh.data.decoded_crops.read_crop", lambda path, scale: os.kill(os.getpid(), 9)
        )
    dataset = OnePicture(tmp_path / "first.JPEG")
    loader = torch.utils.data.DataLoader(
        dataset, 1, sampler=[1], num_workers=1, collate_fn=lambda items: items
    )
    with pytest.raises(ValueError, match=r"second\.JPEG") as caught:
        list(batches(loader))
    assert (
        "\n" not in str(caught.value) and ("a decoding process died" in str(caught.value)) == deadly
    )


def test_a_dead_decoder_at_inference_names_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "neural_mesh.data.dataset.read_crop", lambda path, scale: os.kill(os.getpid(), 9)
    )
    model = SimpleNamespace(map_hw=(32, 84), checkpoint=SimpleNamespace(config=TrainConfig()))
    told = r"a decoding process died .* among the 2 images from .*images/car/a\.JPEG on; finished work is kept"
    with pytest.raises(ValueError, match=told):
        list(read_batches(PreparedSet(tmp_path), "car", [(1, ["a", "b"])], model, 1))
