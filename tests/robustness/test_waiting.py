"""Nothing waits for ever: decoding processes, other processes of a training, locks of others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from helpers.name_spaces import SMALL_SHARED_MEMORY, apart
from helpers.options import SMALL_TRAINING, options
from helpers.project import PYTHONPATH, ROOT
from helpers.small_training import meshes, names_of, write_prepared
from neural_mesh.data import loading
from neural_mesh.data.loading import decoded, decoding_loader
from neural_mesh.machine import resources
from neural_mesh.machine.resources import workers_with_room
from neural_mesh.settings import TrainConfig
from neural_mesh.solve.batches import read_batches
from neural_mesh.storage import files
from neural_mesh.storage.files import BusyError, lock
from neural_mesh.storage.layout import PreparedSet, RawPascal3D, write_list
from neural_mesh.storage.mesh_files import write_off

# ---- room for batches on their way ----


@pytest.mark.parametrize("free, fitting", [(64e6, 4), (10e6, 2), (3e6, 0), (0, 0)])
def test_fewer_processes_decode_where_shared_memory_is_small(monkeypatch, capsys, free, fitting):
    monkeypatch.setattr(resources, "_free_shared_memory", lambda: int(free))
    assert workers_with_room(4, batch=1_500_000) == fitting
    note = capsys.readouterr().err
    assert ("note: going on with WORKERS=%d: /dev/shm has " % fitting in note) == (fitting < 4)
    assert ("--shm-size" in note) == (fitting < 4)


def test_what_is_taken_otherwise_and_by_other_processes_counts(monkeypatch):
    monkeypatch.setattr(resources, "_free_shared_memory", lambda: 2 * 10**7)
    assert workers_with_room(8, batch=10**6) == 8
    assert workers_with_room(8, batch=10**6, processes=2) == 3
    assert workers_with_room(8, batch=10**6, taken=10**7) == 3


def test_fewer_processes_decode_where_few_files_may_be_open(monkeypatch, capsys):
    monkeypatch.setattr(resources, "_free_shared_memory", lambda: 10**12)
    monkeypatch.setattr(resources, "_most_open_files", lambda: 256)
    assert workers_with_room(8, batch=1) == 4
    assert "a process may open 256 files; `ulimit -n` gives more" in capsys.readouterr().err


class Blank(Dataset):
    """Four pictures of a megabyte, each of which takes some seconds."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(self.seconds)
        return torch.zeros(3, 600, 600, dtype=torch.uint8), index


def read_blank(seconds: float = 0.0) -> int:
    """The number of batches that two processes hand over."""
    loader = decoding_loader(Blank(seconds), [[0, 1], [2, 3]], default_collate, workers=2)
    return len(list(decoded(loader, lambda: "at a.JPEG")))


def test_processes_that_hand_over_nothing_are_told(monkeypatch):
    assert read_blank() == 2
    monkeypatch.setattr(loading, "SECONDS_TO_WAIT", 1)
    sentence = r"handed over nothing for 1 seconds, at a\.JPEG: .* or set WORKERS=0"
    with pytest.raises(ValueError, match=sentence):
        read_blank(seconds=2.5)


# Runs where shared memory is full before it is asked for.
WITHOUT_ROOM = """
from robustness.test_waiting import read_blank
try:
    read_blank()
except ValueError as error:
    print(error)
"""


def test_a_batch_that_cannot_be_handed_over_is_told_at_once():
    done = subprocess.run(
        [*apart(SMALL_SHARED_MEMORY), sys.executable, "-c", WITHOUT_ROOM],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "cannot hand over a batch (unable to allocate shared memory): " in done.stdout
    assert "set WORKERS=0" in done.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_inference_gets_one_tensor_a_batch(tmp_path, workers):
    """One for each picture would need as many open files as there are pictures on their way."""
    prepared = PreparedSet(tmp_path)
    folder = prepared.image("car", "x").parent
    folder.mkdir(parents=True)
    for name in ("a", "c", "d"):
        Image.new("RGB", (672, 256), "red").save(prepared.image("car", name))
    prepared.image("car", "b").write_bytes(b"no picture")
    model = SimpleNamespace(map_hw=(32, 84), checkpoint=SimpleNamespace(config=TrainConfig()))
    names = [(1, ["a", "b", "c"]), (2, ["b"]), (2, ["d"])]
    first, second, third = read_batches(prepared, "car", names, model, workers)
    assert (first.names, second.names, third.names) == (["a", "c"], [], ["d"])
    assert first.images.shape == (2, 3, 256, 672)
    assert first.images.dtype == torch.uint8
    assert second.images is None
    assert len(first.messages) == len(second.messages) == 1
    assert "b.JPEG" in first.messages[0]
    assert third.images.is_shared() == (workers > 0)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_training_does_not_wait_in_a_small_container(tmp_path, cache):
    """What IMAGE_CACHE=memory recommends works, and with it all is as without such processes."""
    write_prepared(tmp_path)
    for number, mesh in enumerate(meshes(), start=1):
        write_off(RawPascal3D(tmp_path).cuboid_folder("multi", "car") / f"{number:02d}.off", mesh)
        names = names_of(number - 1)
        write_list(PreparedSet(tmp_path).mesh_list("multi", "car", number), names)
    arguments = (
        *options(raw=tmp_path, prepared=tmp_path, save_dir=tmp_path / "new", mesh_d="multi"),
        *SMALL_TRAINING,
        *options(categories="car", image_cache=cache, workers=2, batch_size=2, total_epochs=1),
    )
    done = subprocess.run(
        [*apart(SMALL_SHARED_MEMORY), sys.executable, str(ROOT / "code/train.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if cache == "memory":
        assert "of shared memory, /dev/shm has 262 kB free; give the container more" in done.stderr
        assert "set IMAGE_CACHE=disk" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "note: going on with WORKERS=0: /dev/shm has 262 kB free" in done.stderr


# ---- processes that train together ----

# sys.argv: what becomes of rank 1.
RANK = """
import datetime, os, sys
import torch
from neural_mesh.machine import distributed

distributed.LONGEST_WAIT = datetime.timedelta(seconds=float(sys.argv[1]))
try:
    with distributed.process_group(cuda=False) as group:
        if group.rank:
            os._exit(1)
        for _ in range(1000):
            group.sum(torch.ones(1000))
except ValueError as error:
    print(error)
"""


def ranks(number: int, seconds: float) -> str:
    """What rank 0 of 2 prints, where so many ranks come."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in map(str, range(number)):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": PYTHONPATH}
        command = [sys.executable, "-c", RANK, str(seconds)]
        pipes = {"stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=os.environ | environment, **pipes))
    printed, _ = processes[0].communicate(timeout=120)
    for process in processes[1:]:
        process.communicate(timeout=120)
    return printed


def test_a_process_that_meets_no_other_says_so():
    assert "process 0 of 2 has not met the others at 127.0.0.1:" in ranks(1, seconds=2)


def test_a_process_whose_partner_died_says_so():
    printed = ranks(2, seconds=30)
    assert "process 0 of 2 no longer hears from another one" in printed
    assert "run the same command again to go on" in printed


# ---- locks of another user ----


def refuse(monkeypatch, *refused: int) -> None:
    """Lock files that exist cannot be opened in these ways, as those of another user."""
    real = os.open

    def open_file(path: Path, flags: int, *rest: int) -> int:
        is_lock = str(path).endswith(".lock") and os.path.exists(path)
        if is_lock and flags & os.O_ACCMODE in refused:
            raise PermissionError(13, os.strerror(13), str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_file)


def test_what_a_killed_run_of_another_user_left_locks_nothing(tmp_path, monkeypatch):
    (tmp_path / ".x.lock").touch()
    refuse(monkeypatch, os.O_RDWR)
    monkeypatch.setattr(files, "SECONDS_TO_WAIT", 0.1)
    with lock(tmp_path, "x", "it"):
        complaint = "another run is writing it"
        with pytest.raises(BusyError, match=complaint), lock(tmp_path, "x", "it"):
            pass


def test_a_lock_that_cannot_be_read_is_told_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / ".x.lock").touch()
    refuse(monkeypatch, os.O_RDWR, os.O_RDONLY)
    complaint = r"\.x\.lock belongs to another user and cannot be locked; delete it"
    with pytest.raises(BusyError, match=complaint), lock(tmp_path, "x", "it"):
        pass
