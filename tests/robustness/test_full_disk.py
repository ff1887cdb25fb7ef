"""A disk that is full at every file that the stages write.

Each time there is one sentence, nothing half-written, and the same result in the end. The stages
run through their entry points, forked from a process that has loaded the libraries: this file as a
program.
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
from importlib import import_module
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.options import SMALL_TRAINING, options
from helpers.project import PYTHONPATH, ROOT

DISK, PLENTY = 2**30, 10**15  # bytes
PAGE = 4096  # bytes that a file takes at least
MOST_ATTEMPTS = 60  # of a command
CAR = options(categories="car")
SMALL = (*CAR, *SMALL_TRAINING, *options(batch_size=3, num_clutter_group=8))
# A line for each photograph, in the order of the work until the run ends.
GROWING = ("found/poses.jsonl",)
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
    r"error: cannot write (.*): the disk is full; "
    r"make space and run the same command again, finished work is kept"
)


# ---- a small disk ----


class Stages:
    """Runs entry points in forks of one process, which sees a small disk in a folder.

    The disk is a tmpfs in a name space of that process, which needs no rights. Where the system
    allows no name space, no file of a run may grow larger than the room that is left.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.room = PLENTY
        apart = in_name_space(folder)
        self.real = bool(apart)
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*apart, sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": PYTHONPATH} | threads,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"
        self.from_here = folder
        if self.real:
            self.from_here = Path(f"/proc/{self.process.pid}/root{folder}")

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
        request = [name, [str(argument) for argument in arguments], disk, memory, largest]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        status, output, replaced = json.loads(self.process.stdout.readline())
        return status, output, replaced

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def in_name_space(folder: Path) -> list[str]:
    """What starts a program that sees a small disk in a folder; empty where that is not allowed."""
    if not shutil.which("unshare"):
        return []
    mount = 'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"'
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    apart += ["sh", "-c", mount, "sh", str(DISK), str(folder)]
    tried = subprocess.run([*apart, "true"], capture_output=True, check=False)
    return [] if tried.returncode else apart


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Iterator[Stages]:
    stages = Stages(tmp_path_factory.mktemp("small disk"))
    yield stages
    stages.close()


# ---- what is run ----


def tree(folder: Path) -> dict[str, bytes]:
    """Content of every file but those that say when or how long."""
    contents = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not WHEN.search(str(path)):
            contents[str(path.relative_to(folder))] = path.read_bytes()
    return contents


def commands(root: Path) -> dict[str, list[tuple]]:
    """What the three scripts run, on a set of a few images that is trained on and tested on."""
    raw = root / "raw"
    data = root / "data"
    prepared = options(raw=raw, prepared=data)
    exp = (*options(exp=root / "exp"), *CAR)
    network = (*prepared, *exp, *options(gpus=""))
    preparing = options(raw=raw, out=data, split="val", workers=1)
    annotating = options(mesh_d="single", workers=1)
    cached = options(save_dir=root / "exp/NeMo_single", total_epochs=2, image_cache="disk")
    plain = options(save_dir=root / "plain/NeMo_single", total_epochs=1, tensorboard="false")
    solving = options(batch_size=2, total_epochs=20, workers=0)
    reporting = options(clean=data, occluded=root / "none", raw=raw)
    checkpoint = root / "exp/NeMo_single/saved_model_car_last.pth"
    photo = raw / "Images/car_imagenet/n00000001_500000.JPEG"
    predicting = options(checkpoint=checkpoint, out=root / "found", gpus="")
    return {
        "prepare": [
            ("prepare_images", *preparing, *CAR),
            ("make_cuboids", *options(raw=raw, mesh_d="single"), *CAR),
            ("annotate_vertices", *prepared, *annotating, *CAR),
        ],
        "train": [
            ("train", *prepared, *SMALL, *cached),
            ("train", *prepared, *SMALL, *plain),
        ],
        "infer": [
            ("solve_poses", *network, *solving),
            ("extract_features", *network, *options(workers=0)),
            ("report_accuracy", *exp, *options(clean=data)),
            ("draw_results", *network, *options(clean=data, images=1)),
            ("write_report", *exp, *reporting),
            ("predict", *predicting, str(photo)),
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
    """The stages on a disk with room: their folder, and the bytes of each file put in place."""
    root = tmp_path_factory.mktemp("whole") / "work"
    start(sample_raw / "PASCAL3D+_release1.1", root)
    sizes = {}
    for of_script in commands(root).values():
        for command in of_script:
            status, output, replaced = stages.run(*command)
            assert status == 0, output
            sizes |= replaced
    return root, sizes


# ---- tests ----


def fill_at_every_file(
    stages: Stages, whole: Path, sizes: dict[str, int], root: Path, command: Sequence
) -> list[str]:
    """Run a command until it ends well, with just the room for the file that failed before.

    root: what the command writes to, seen from here. Returns the names of the files that met a full
    disk.
    """
    room = 0
    met: list[str] = []
    for _ in range(MOST_ATTEMPTS):
        stages.leave(room)
        status, output, _ = stages.run(*command)
        if status == 0:
            return met
        sentences = [SENTENCE.fullmatch(line) for line in output.splitlines()]
        failed = [sentence[1] for sentence in sentences if sentence]
        context = (command[0], room, status, output[-3000:])
        assert status == 1 and len(failed) == 1, context
        assert "Traceback" not in output, context
        check_nothing_is_half_written(root, whole)
        file = "events" if "tfevents" in failed[0] else Path(failed[0]).name
        if file in met:
            room = 8 * max(room, PAGE)
        else:
            room = -(-sizes.get(file, 1) // PAGE) * PAGE  # whole pages
            met.append(file)
    pytest.fail(f"{command[0]} does not end well: {met}, {output}")


def check_nothing_is_half_written(root: Path, whole: Path) -> None:
    """Whatever is there is as it must be in the end."""
    assert not list(root.rglob("*.part"))
    contents = tree(root)
    expected = tree(whole)
    common = contents.keys() & expected.keys() - set(GROWING)
    assert not [name for name in common if contents[name] != expected[name]]


def test_stages_go_on_after_a_full_disk_at_every_file(stages, whole, sample_raw):
    folder, sizes = whole
    root = stages.from_here / "work"
    start(sample_raw / "PASCAL3D+_release1.1", root)
    met: dict[str, list[str]] = {}
    for script, of_script in commands(stages.folder / "work").items():
        met[script] = []
        for command in of_script:
            met[script] += fill_at_every_file(stages, folder, sizes, root, command)
    assert tree(root) == tree(folder)
    # TensorBoard reads past what a full disk cut off.
    events = EventAccumulator(str(root / "exp/NeMo_single/tensorboard/car"), {"scalars": 0})
    assert [event.step for event in events.Reload().Scalars("loss")] == [1, 2]
    files = {file for of_script in met.values() for file in of_script}
    assert files >= MUST_MEET or not stages.real, met
    print({script: len(files) for script, files in met.items()})


def test_room_is_estimated_before_the_work_starts(stages, whole, tmp_path):
    root, _ = whole
    of_script = commands(root)
    preparing = (*of_script["prepare"][0], *options(out=tmp_path / "data"))
    training = (*of_script["train"][0], *options(save_dir=tmp_path / "network"))
    in_memory = (*training, *options(image_cache="memory"))
    extracting = of_script["infer"][1]
    elsewhere = options(exp=tmp_path / "exp", save_dir=root / "exp/NeMo_single")
    extracting = (*extracting, *elsewhere)  # of an option that is given twice the last one counts
    for command, room, sentence in (
        (preparing, {"disk": 10**4}, "the crops of car needs about .* of disk in .*; make space"),
        (training, {"disk": 10**6}, "training car needs about .* of disk in .*; make space"),
        (
            in_memory,
            {"memory": 10**5},
            "6 decoded crops of car needs about .* of memory, .*; set IMAGE",
        ),
        (
            extracting,
            {"disk": 10**5},
            "the feature maps of car needs about .* of disk in .*; "
            "make space, or set SAVE_FEATURES=false",
        ),
        (
            extracting,
            {"memory": 10**5},
            "the feature maps of car needs about .* of memory, .*; set SAVE_FEATURES=false",
        ),
    ):
        status, output, replaced = stages.run(*command, **room)
        assert status == 1, output
        assert re.search(f"error: .*{sentence}", output), output
        assert "Traceback" not in output
        assert not [name for name in replaced if name.endswith((".JPEG", ".npz", ".pth"))]


# ---- this file as a program ----

# What takes long to import.
LOADED = (
    "torch.utils.tensorboard.summary",
    "neural_mesh.photographs.finder",
    "neural_mesh.pictures.canvas",
    "neural_mesh.report.gallery",
    "neural_mesh.training.trainer",
)


def answer(request: str) -> tuple[str, list[str]] | None:
    """Fork: in the child, what to run; in the parent nothing, once the child's end is told."""
    name, arguments, *limits = json.loads(request)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        os.dup2(write, 2)
        limit(*limits)
        return name, arguments
    os.close(write)
    with open(read, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = re.findall(r"^replaced (.*) ([0-9]+)$", output, re.M)
    replaced = {file: int(size) for file, size in lines}
    print(json.dumps([status, output, replaced]), flush=True)
    return None


def limit(disk: int, memory: int, largest: int) -> None:
    """Tell what is put in place; see `Stages.run`."""
    from neural_mesh.machine import resources

    def telling(source: Path, target: Path) -> None:
        size = os.path.getsize(source)
        replace(source, target)
        os.write(2, f"\nreplaced {Path(target).name} {size}\n".encode())

    replace = os.replace
    os.replace = telling
    resources.free_disk = lambda folder: disk
    resources.free_memory = lambda: memory
    if largest < PLENTY:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def serve() -> tuple[str, list[str]] | None:
    """Answer requests; in a child, what it has to run."""
    for name in LOADED:
        import_module(name)
    from neural_mesh.solve import run
    from neural_mesh.training import state

    # Whatever else the machine does.
    state.SECONDS_BETWEEN_STATES = 0.0
    run.SECONDS_BETWEEN_SAVES = 1e9
    print("ready", flush=True)
    for request in sys.stdin:
        task = answer(request)
        if task:
            return task
    return None


def run_task(name: str, arguments: list[str]) -> int:
    """Run an entry point; returns its exit status."""
    sys.argv = [name, *arguments]
    try:
        runpy.run_path(str(ROOT / "code" / f"{name}.py"), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    task = serve()
    if task:
        status = run_task(*task)
        # As Python does at its end, which takes seconds after a fork.
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        os._exit(status)
