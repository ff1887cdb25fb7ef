"""A disk that is full at every file that the stages write: one sentence each time, nothing half-written, the same result in the end.

The stages run through their entry points, forked from a process that has loaded the libraries: this file as a program.
"""

from __future__ import annotations

import json
import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.project import PYTHONPATH, ROOT

DISK, PLENTY = 2**30, 10**15  # bytes
PAGE = 4096  # bytes that a file takes at least
MOST_ATTEMPTS = 60  # of a command
CAR = ("--categories", "car")
SMALL = (
    *CAR,
    "--gpus",
    "",
    "--backbone",
    "resnet18fpn",
    "--pretrained",
    "none",
    "--image-scale",
    "0.5",
    "--recipe",
    "fixed",
    "--batch-size",
    "3",
    "--learning-rate",
    "1e-3",
    "--num-clutter-group",
    "8",
    "--workers",
    "0",
)
GROWING = (
    "found/poses.jsonl",
)  # a line for each photograph, in the order of the work until the run ends
WHEN = re.compile(r"Timings_|tfevents|index\.html")  # files that say when or how long
MUST_MEET = {  # a full disk, among others
    "SOURCE.json",
    "mesh01.txt",
    "01.off",
    "training_state_car.pth",
    "events",
    "training_log_car.csv",
    "training_summary_car.json",
    "saved_model_car_last.pth",
    "car.npz",
    "car.csv",
    "saved_feature_car_single.npz",
    "table.csv",
    "table.md",
    "errors.csv",
    "overview.png",
    "index.html",
    "poses.jsonl",
}
SENTENCE = re.compile(
    r"error: cannot write (.*): the disk is full; make space and run the same command again, finished work is kept"
)


class Stages:
    """Runs entry points in forks of one process, which sees a small disk in a folder.

    The disk is a tmpfs in a name space of that process, which needs no rights. Where the system allows no name space, no
    file of a run may grow larger than the room that is left.
    """

    def __init__(self, folder: Path):
        environment = os.environ | {
            "PYTHONPATH": PYTHONPATH,
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
        }
        mount = 'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"'
        apart = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            mount,
            "sh",
            str(DISK),
            str(folder),
        ]
        self.real = (
            bool(shutil.which("unshare"))
            and not subprocess.run([*apart, "true"], capture_output=True, check=False).returncode
        )
        program, pipe = [*(apart if self.real else []), sys.executable, __file__], subprocess.PIPE
        self.process = subprocess.Popen(
            program, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        assert self.process.stdout.readline() == "ready\n"
        self.folder, self.from_here = (
            folder,
            Path(f"/proc/{self.process.pid}/root{folder}") if self.real else folder,
        )
        self.room = PLENTY

    def leave(self, room: int) -> None:
        """Fill the disk up to so many bytes."""
        self.room = room
        if self.real:
            with open(self.from_here / "ballast", "ab") as ballast:
                free = os.statvfs(self.from_here).f_bavail * PAGE + ballast.tell()
                ballast.truncate(min(ballast.tell(), free - room))
                os.posix_fallocate(ballast.fileno(), 0, free - room)

    def run(
        self, name: str, *arguments: object, disk: int = PLENTY, memory: int = PLENTY
    ) -> tuple[int, str, dict[str, int]]:
        """Exit status, output, and the bytes of every file that was put in place.

        disk, memory: bytes that the run believes to be free, of which nothing is true.
        """
        largest = PLENTY if self.real else self.room
        self.process.stdin.write(
            json.dumps([name, [str(a) for a in arguments], disk, memory, largest]) + "\n"
        )
        self.process.stdin.flush()
        status, output, replaced = json.loads(self.process.stdout.readline())
        return status, output, replaced

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Iterator[Stages]:
    stages = Stages(tmp_path_factory.mktemp("small disk"))
    yield stages
    stages.close()


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file but those that say when or how long."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not WHEN.search(str(p))
    }


def commands(root: Path) -> dict[str, list[tuple]]:
    """What the three scripts run, on a set of a few images that is trained on and tested on."""
    prepared, exp = (
        ("--raw", root / "raw", "--prepared", root / "data"),
        ("--exp", root / "exp", *CAR),
    )
    network = (*prepared, *exp, "--gpus", "")
    photo = (root / "raw/Images/car_imagenet/n00000001_500000.JPEG", "--out", root / "found")
    return {
        "prepare": [
            (
                "prepare_images",
                "--raw",
                root / "raw",
                "--out",
                root / "data",
                "--split",
                "val",
                "--workers",
                1,
                *CAR,
            ),
            ("make_cuboids", "--raw", root / "raw", "--mesh-d", "single", *CAR),
            ("annotate_vertices", *prepared, "--mesh-d", "single", "--workers", 1, *CAR),
        ],
        "train": [
            (
                "train",
                *prepared,
                "--save-dir",
                root / "exp/NeMo_single",
                *SMALL,
                "--total-epochs",
                2,
                "--image-cache",
                "disk",
            ),
            (
                "train",
                *prepared,
                "--save-dir",
                root / "plain/NeMo_single",
                *SMALL,
                "--total-epochs",
                1,
                "--tensorboard",
                "false",
            ),
        ],
        "infer": [
            ("solve_poses", *network, "--batch-size", 2, "--total-epochs", 20, "--workers", 0),
            ("extract_features", *network, "--workers", 0),
            ("report_accuracy", *exp, "--clean", root / "data"),
            ("draw_results", *network, "--clean", root / "data", "--images", 1),
            (
                "write_report",
                *exp,
                "--clean",
                root / "data",
                "--occluded",
                root / "none",
                "--raw",
                root / "raw",
            ),
            (
                "predict",
                "--checkpoint",
                root / "exp/NeMo_single/saved_model_car_last.pth",
                *photo,
                "--gpus",
                "",
            ),
        ],
    }


def start(raw: Path, root: Path) -> None:
    """A raw set whose cuboids are written below `root`."""
    (root / "raw").mkdir(parents=True)
    for folder in raw.iterdir():
        if not folder.name.startswith("CAD_"):
            (root / "raw" / folder.name).symlink_to(folder)


@pytest.fixture(scope="module")
def whole(stages, sample_raw, tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """The stages on a disk with room: their folder, and the bytes of each file that was put in place."""
    root, sizes = tmp_path_factory.mktemp("whole") / "work", {}
    start(sample_raw / "PASCAL3D+_release1.1", root)
    for of_stage in commands(root).values():
        for command in of_stage:
            status, output, replaced = stages.run(*command)
            assert status == 0, output
            sizes |= replaced
    return root, sizes


def fill_at_every_file(
    stages: Stages, whole: Path, sizes: dict[str, int], root: Path, command: Sequence
) -> list[str]:
    """Run a command until it ends well, each time with just the room for the file that it could not write before.

    root: what the command writes to, seen from here. Returns the names of the files that met a full disk.
    """
    room, met = 0, []
    for _ in range(MOST_ATTEMPTS):
        stages.leave(room)
        status, output, _ = stages.run(*command)
        if status == 0:
            return met
        told = [found[1] for found in map(SENTENCE.fullmatch, output.splitlines()) if found]
        assert status == 1 and len(told) == 1 and "Traceback" not in output, (
            command[0],
            room,
            status,
            output[-3000:],
        )
        assert not list(root.rglob("*.part"))
        found, expected = tree(root), tree(whole)
        assert not {
            name
            for name in found.keys() & expected.keys()
            if found[name] != expected[name] and name not in GROWING
        }
        file = "events" if "tfevents" in told[0] else Path(told[0]).name
        room = 8 * max(room, PAGE) if file in met else -(-sizes.get(file, 1) // PAGE) * PAGE
        met += [file] * (file not in met)
    pytest.fail(f"{command[0]} does not end well: {met}, {output}")


def test_stages_go_on_after_a_full_disk_at_every_file(stages, whole, sample_raw):
    (folder, sizes), root, met = whole, stages.from_here / "work", {}
    start(sample_raw / "PASCAL3D+_release1.1", root)
    for stage, of_stage in commands(stages.folder / "work").items():
        met[stage] = [
            file
            for command in of_stage
            for file in fill_at_every_file(stages, folder, sizes, root, command)
        ]
    assert tree(root) == tree(folder)
    scalars = (
        EventAccumulator(str(root / "exp/NeMo_single/tensorboard/car"), {"scalars": 0})
        .Reload()
        .Scalars("loss")
    )
    assert [event.step for event in scalars] == [1, 2], (
        "TensorBoard reads past what a full disk cut off"
    )
    assert {file for files in met.values() for file in files} >= MUST_MEET or not stages.real, met
    print({stage: len(files) for stage, files in met.items()})


def test_room_is_estimated_before_the_work_starts(stages, whole, tmp_path):
    root = whole[0]
    of_stage = commands(root)
    prepare, (train, _), extract = of_stage["prepare"][0], of_stage["train"], of_stage["infer"][1]
    elsewhere = {
        "--out": tmp_path / "data",
        "--save-dir": tmp_path / "network",
        "--exp": tmp_path / "exp",
        "--image-cache": "memory",
    }

    def moved(command: Sequence, *options: str) -> list[object]:
        return [
            elsewhere[command[i - 1]] if command[i - 1] in options else word
            for i, word in enumerate(command)
        ]

    extract = [*moved(extract, "--exp"), "--save-dir", root / "exp/NeMo_single"]
    for command, room, told in (
        (
            moved(prepare, "--out"),
            {"disk": 10**4},
            "the crops of car needs about .* of disk in .*; make space",
        ),
        (
            moved(train, "--save-dir"),
            {"disk": 10**6},
            "training car needs about .* of disk in .*; make space",
        ),
        (
            moved(train, "--save-dir", "--image-cache"),
            {"memory": 10**5},
            "6 decoded crops of car needs about .* of memory, .*; set IMAGE",
        ),
        (
            extract,
            {"disk": 10**5},
            "the feature maps of car needs about .* of disk in .*; make space, or set SAVE_FEATURES=false",
        ),
        (
            extract,
            {"memory": 10**5},
            "the feature maps of car needs about .* of memory, .*; set SAVE_FEATURES=false",
        ),
    ):
        status, output, replaced = stages.run(*command, **room)
        assert (
            status == 1 and re.search(f"error: .*{told}", output) and "Traceback" not in output
        ), output
        assert not [name for name in replaced if name.endswith((".JPEG", ".npz", ".pth"))]


def answer(request: str) -> tuple[str, list[str]] | None:
    """Fork: in the child, which entry point to run; in the parent nothing, once the child's end has been told."""
    name, arguments, *limits = json.loads(request)
    read, write = os.pipe()
    if not (child := os.fork()):
        os.dup2(write, 1)
        os.dup2(write, 2)
        limit(*limits)
        return name, arguments
    os.close(write)
    with open(read, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    replaced = dict(re.findall(r"^replaced (.*) ([0-9]+)$", output, re.M))
    print(
        json.dumps([status, output, {file: int(size) for file, size in replaced.items()}]),
        flush=True,
    )
    return None


def limit(disk: int, memory: int, largest: int) -> None:
    """Tell what is put in place; see `Stages.run`."""
    import neural_mesh.machine.resources

    def telling(source: Path, target: Path) -> None:
        size = os.path.getsize(source)
        replace(source, target)
        os.write(2, f"\nreplaced {Path(target).name} {size}\n".encode())

    replace, os.replace = os.replace, telling
    neural_mesh.machine.resources.free_disk, neural_mesh.machine.resources.free_memory = (
        lambda folder: disk,
        lambda: memory,
    )
    if largest < PLENTY:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def serve() -> tuple[str, list[str]] | None:
    """Answer requests; in a child, what it has to run."""
    import torch.utils.tensorboard.summary  # noqa: F401

    import neural_mesh.photographs.finder
    import neural_mesh.pictures.plots
    import neural_mesh.report.page
    import neural_mesh.report.tables
    import neural_mesh.solve.run
    import neural_mesh.training.trainer

    (
        neural_mesh.training.trainer.SECONDS_BETWEEN_STATES,
        neural_mesh.solve.run.SECONDS_BETWEEN_SAVES,
    ) = 0.0, 1e9  # whatever else the machine does
    print("ready", flush=True)
    for request in sys.stdin:
        if todo := answer(request):
            return todo
    return None


if __name__ == "__main__":
    if task := serve():
        sys.argv, status = [task[0], *task[1]], 0
        try:
            runpy.run_path(str(ROOT / "code" / f"{task[0]}.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 1
        for (
            thread
        ) in threading.enumerate():  # as Python does at its end, which takes seconds after a fork
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        os._exit(status)
