"""Two runs at once, killed runs, full disks: one sentence each, and nothing lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from helpers.project import PYTHONPATH
from neural_mesh.storage import files
from neural_mesh.storage.files import BusyError, WriteError, atomic_path, lock, write_bytes

# ---- two runs at once ----


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
    complaint = f"another run is writing the poses of car in {tmp_path}; wait"
    with pytest.raises(BusyError, match=complaint), lock(tmp_path, "x", "the poses of car"):
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


# Writes down the numbers of its worker processes.
PARENT = """
import multiprocessing, os, sys, time
from pathlib import Path
from neural_mesh.machine.workers import WorkerPool
from neural_mesh.storage import files

folder = Path(sys.argv[1])
multiprocessing.set_start_method(sys.argv[2])
with files.lock(folder, "x", "it"), WorkerPool(2) as pool:
    pids = {pool.submit(os.getpid).result() for _ in range(8)}
    files.write_text(folder / "pids.txt", " ".join(map(str, pids)))
    time.sleep(60)
"""


def are_alive(pids: list[int]) -> bool:
    return any(Path(f"/proc/{pid}/stat").exists() for pid in pids)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_worker_processes_neither_hold_locks_nor_outlive_their_parent(tmp_path, method):
    # The fork server's socket, which a killed one leaves, wants a short path.
    with tempfile.TemporaryDirectory() as short:
        environment = os.environ | {"PYTHONPATH": PYTHONPATH, "TMPDIR": short}
        command = [sys.executable, "-c", PARENT, str(tmp_path), method]
        process = subprocess.Popen(command, env=environment)
        while not (tmp_path / "pids.txt").is_file() and process.poll() is None:
            time.sleep(0.02)
        workers = [int(pid) for pid in (tmp_path / "pids.txt").read_text().split()]
        process.kill()
        process.wait()
    with lock(tmp_path, "x", "it"):
        pass
    deadline = time.monotonic() + 10
    while are_alive(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not are_alive(workers)


# ---- full disks ----


@pytest.mark.parametrize("way", ["system", "torch", "wrapped"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, way):
    path = tmp_path / "a.txt"
    path.write_text("old")
    sentence = r"cannot write .*a\.txt: the disk is full; make space and run the same command again"
    with pytest.raises(WriteError, match=sentence), atomic_path(path) as temporary:
        temporary.write_text("half of the ne")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if way == "wrapped":
                raise RuntimeError("the writer failed") from error
            if way == "torch":
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
            raise
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
