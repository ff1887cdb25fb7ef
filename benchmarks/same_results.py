"""Whether two checkouts make the same files, byte for byte, and print the same lines.

    python benchmarks/same_results.py ../before .            # both run the whole road
    python benchmarks/same_results.py ../before . --reuse    # ../before has run it earlier
    python benchmarks/same_results.py ../before . --reuse --steps infer draw

The road is every stage on a tiny sample, the steps in same_results.txt. What each step prints and
every file that it makes, changes or removes is compared. With --steps the second checkout runs
these steps alone, from the files that the first one has there. Both work in one folder, one after
the other, since paths stand in some files. What is measured anew by every run is taken out of the
few files that hold it, see MEASURED. All runs on the CPU, on one thread.
Exit status 1: something differs.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from time import monotonic

import numpy as np
from PIL import Image

STEPS = Path(__file__).with_suffix(".txt")
PRINTED = "(what it prints)"  # the name that a step's printed lines have among its files
PHOTOGRAPHS_CHANGED = 1_600_000_000  # seconds; results depend on when a photograph was changed
LONGEST_STEP = 1800  # seconds
MOST_SHOWN = 12  # differing files of a step


@dataclass(frozen=True)
class Step:
    """A command of the road: its name, the settings of a script, the program and its arguments."""

    name: str
    settings: tuple[str, ...]
    program: str
    arguments: tuple[str, ...]


# ---- the road ----


def read_steps(text: str, road: Path) -> list[Step]:
    """The steps of same_results.txt, {road} and $NAME put in."""
    lines = re.sub(r"\n[ \t]+", " ", text).splitlines()
    words = {}
    steps = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        line = re.sub(r"\$([A-Z]+)", lambda match: words[match[1]], line)
        if definition := re.match(r"([A-Z]+) = (.*)", line):
            words[definition[1]] = definition[2]
            continue
        name, _, command = line.partition(": ")
        parts = [word.replace("{road}", str(road)) for word in shlex.split(command)]
        settings = tuple(word for word in parts if re.match(r"[A-Z_]+=", word))
        program, *arguments = parts[len(settings) :]
        steps.append(Step(name, settings, program, tuple(arguments)))
    return steps


def run_step(step: Step, tree: Path, road: Path, python: str) -> str:
    """Run one step by the programs of a checkout; returns what it printed."""
    if step.program == "lay-out":
        LAY_OUT[step.arguments[0]](road)
        return ""
    environment = {
        key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ
    }
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment |= dict.fromkeys(threads, "1")
    environment |= {"PYTHON": python, "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": ""}
    environment |= dict(word.split("=", 1) for word in step.settings)
    command = [str(tree / step.program)]
    if not step.program.endswith(".sh"):
        command = [python, str(tree / "code" / f"{step.program}.py")]
    done = subprocess.run(
        [*command, *step.arguments],
        cwd=road,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LONGEST_STEP,
        check=False,
    )
    printed = f"{done.stdout}---- stderr\n{done.stderr}---- exit status {done.returncode}\n"
    return printed.replace(str(tree), "<checkout>")


# ---- what the sample data lacks ----


def lay_out_paper(road: Path) -> None:
    """The raw data once more: cuboids lie in it, and those of GEOMETRY=paper are others."""
    for name in ("PASCAL3D+_release1.1", "OccludedPASCAL3D"):
        made_here = shutil.ignore_patterns("CAD_*")
        shutil.copytree(road / "exact" / name, road / "paper" / name, ignore=made_here)


def lay_out_export(road: Path) -> None:
    """A checkpoint in a folder of its own, since the converted one will lie beside it."""
    source = road / "exp/NeMo_single/saved_model_car_last.safetensors"
    (road / "export").mkdir()
    shutil.copyfile(source, road / "export/car.safetensors")


def lay_out_kitti(road: Path) -> None:
    """KITTI's layout: two frames, with objects that are kept and objects that are not."""
    objects = (
        "Car 0 0 0.1 400 150 640 300 1.5 1.6 3.9 1.0 1.65 8.0 1.2",
        "Car 0 1 0.1 420 150 640 310 1.5 1.6 3.9 -3.0 1.65 9.0 0.4",
        "Car 0 2 0.1 10 150 240 300 1.4 1.6 3.6 0.5 1.6 6.4 -2.0",
        "Car 0.3 0 0.1 400 150 640 300 1.5 1.6 3.9 1.0 1.65 8.0 1.2",
        "Pedestrian 0 0 0.1 400 150 640 300 1.7 0.6 0.6 1.0 1.65 8.0 1.2",
    )
    root = road / "kitti"
    for folder in ("label_2", "image_2", "calib"):
        (root / folder).mkdir(parents=True)
    for number, lines in enumerate((objects, objects[:1])):
        frame = f"{number:06d}"
        (root / f"label_2/{frame}.txt").write_text("\n".join(lines) + "\n")
        camera = "P0: 0\nP2: 700 0 600 40 0 700 170 0.2 0 0 1 0.003\n"
        (root / f"calib/{frame}.txt").write_text(camera)
        noise = np.random.default_rng(number).integers(0, 255, (25, 83, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((1242, 375), Image.Resampling.BICUBIC)
        image.save(root / f"image_2/{frame}.png")


def lay_out_photographs(road: Path) -> None:
    """Photographs: plain, turned in a folder below, large, with a palette, broken; and boxes."""
    folder = road / "photographs"
    (folder / "below").mkdir(parents=True)
    images = sorted((road / "exact/PASCAL3D+_release1.1/Images/car_imagenet").glob("*.JPEG"))
    shutil.copyfile(images[0], folder / "a.jpg")
    (folder / "broken.jpg").write_bytes(images[2].read_bytes()[:900])
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    with Image.open(images[1]) as image:
        upright = image.transpose(Image.Transpose.ROTATE_90)
        upright.save(folder / "below/turned.jpg", exif=turned)
        image.resize((3 * image.width, 3 * image.height)).save(folder / "large.png")
        image.convert("P").save(folder / "palette.png")
    rows = (
        "file,x0,y0,x1,y1",
        "a.jpg,30,40,300,200",
        "a.jpg,100,20,260,180",
        "large.png,200,150,900,700",
    )
    (road / "boxes.csv").write_text("\n".join(rows) + "\n")
    boxes = {"a.jpg": [30, 40, 300, 200], "palette.png": [[20, 30, 250, 190]]}
    (road / "boxes.json").write_text(json.dumps(boxes))
    for path in folder.rglob("*.*"):
        os.utime(path, (PHOTOGRAPHS_CHANGED, PHOTOGRAPHS_CHANGED))


LAY_OUT: dict[str, Callable[[Path], None]] = {
    "paper": lay_out_paper,
    "export": lay_out_export,
    "kitti": lay_out_kitti,
    "photographs": lay_out_photographs,
}


# ---- what is measured anew by every run ----


def plain_output(text: str) -> str:
    """Printed lines without progress bars, which show times."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    bar = re.compile(r"\d+%\|.*\||\b\d+ ?images? \[|\?images?/s|\bimages/s\]")
    return "".join(f"{line}\n" for line in lines if not bar.search(line))


def without_seconds(content: bytes) -> bytes:
    """A file of Timings_*/ without its seconds."""
    kept = json.loads(content)
    kept.pop("seconds")
    return json.dumps(kept).encode()


def without_wall_time(content: bytes) -> bytes:
    """The events of a TensorBoard log as text, without their times and images_per_second."""
    from tensorboard.compat.proto.event_pb2 import Event

    events = []
    at = 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4  # each record: length, its checksum, content, its checksum
        event.ClearField("wall_time")
        tags = [value.tag for value in event.summary.value]
        if tags != ["images_per_second"]:
            events.append(str(event))
    return "".join(events).encode()


def without_times_of_page(content: bytes) -> bytes:
    """The report page without its section on time and without the mark that digests the times."""
    text = re.sub(r"<!-- made from [0-9a-f]* -->", "", content.decode())
    return re.sub(r"<table class=stages>.*?</details>", "", text, flags=re.DOTALL).encode()


# what is taken out, in which files, and why it cannot repeat
MEASURED: tuple[tuple[str, str, Callable[[bytes], bytes], str], ...] = (
    ("*Timings_*/*.json", "seconds", without_seconds, "how long a stage took"),
    ("*/tensorboard/*", "wall_time, images_per_second", without_wall_time, "when, and how fast"),
    (
        "*Report_*/index.html",
        "table of times, mark",
        without_times_of_page,
        "shows and digests times",
    ),
)


def plain_name(path: str) -> str:
    """The name of a file without the time and the process that are part of a TensorBoard log's."""
    return re.sub(r"(events\.out\.tfevents)\.\d+\.\d+$", r"\1", path)


def plain_content(path: str, content: bytes) -> bytes:
    """A file's content without what is measured."""
    for pattern, _, take_out, _ in MEASURED:
        if fnmatch(path, pattern):
            return take_out(content)
    return content


# ---- what a step made ----


def scan(road: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder: when it was changed, its size, which file it is."""
    found = {}
    for path in road.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[str(path.relative_to(road))] = status.st_mtime_ns, status.st_size, status.st_ino
    return found


def keep_step(
    step: Step, folder: Path, road: Path, before: dict, after: dict, printed: str
) -> None:
    """Store what a step printed, the files that it made or changed, the names of removed ones."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    for name, status in after.items():
        if before.get(name) != status:
            target = folder / "files" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(road / name, target)
    (folder / "printed.txt").write_text(printed)
    (folder / "removed.json").write_text(json.dumps(sorted(before.keys() - after.keys())))
    (folder / "step.txt").write_text(repr(step))


def replay_step(folder: Path, road: Path) -> None:
    """Bring a road to where a stored step left it."""
    shutil.copytree(folder / "files", road, dirs_exist_ok=True)
    for name in json.loads((folder / "removed.json").read_text()):
        (road / name).unlink(missing_ok=True)


def step_contents(folder: Path) -> dict[str, bytes]:
    """What a stored step made, by name, without what is measured; removed files are marked so."""
    contents = {PRINTED: plain_output((folder / "printed.txt").read_text()).encode()}
    for name in json.loads((folder / "removed.json").read_text()):
        contents[plain_name(name)] = b"removed"
    for path in sorted((folder / "files").rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder / "files"))
            contents[plain_name(name)] = plain_content(name, path.read_bytes())
    return contents


def is_stored(step: Step, folder: Path) -> bool:
    """Whether a folder holds what this very step made."""
    path = folder / "step.txt"
    return path.is_file() and path.read_text() == repr(step)


@dataclass(frozen=True)
class Checkout:
    """A checkout, the folder that keeps what its steps made, the road, and its Python."""

    tree: Path
    store: Path
    road: Path
    python: str

    def run(self, steps: Sequence[Step], chosen: set[str], earlier: Path) -> Iterator[Step]:
        """Run the chosen steps, store what they made, and yield each when it is done.

        The other steps before the last chosen one are replayed from the folder `earlier`.
        """
        shutil.rmtree(self.road, ignore_errors=True)
        self.road.mkdir(parents=True)
        for number, step in enumerate(up_to_last(steps, chosen), start=1):
            if step.name not in chosen:
                replay_step(earlier / step.name, self.road)
                continue
            started = monotonic()
            before = scan(self.road)
            printed = run_step(step, self.tree, self.road, self.python)
            keep_step(step, self.store / step.name, self.road, before, scan(self.road), printed)
            status = printed.rpartition("exit status ")[2].strip() or "0"
            place = f"{number:3}/{len(steps)} {step.name}"
            print(f"{place}: {monotonic() - started:.1f} s, exit status {status}", flush=True)
            yield step
        shutil.rmtree(self.road)


def up_to_last(steps: Sequence[Step], chosen: set[str]) -> Sequence[Step]:
    """The steps up to the last chosen one."""
    numbers = [number for number, step in enumerate(steps, start=1) if step.name in chosen]
    return steps[: max(numbers)]


# ---- comparison ----


def compare_step(
    name: str, before: dict[str, bytes], after: dict[str, bytes]
) -> tuple[int, list[str]]:
    """How many files of a step are equal, and a line for each that is not."""
    complaints = []
    equal = 0
    for file in sorted(before.keys() | after.keys()):
        if file not in after:
            complaints.append(f"{name}: missing {file}")
        elif file not in before:
            complaints.append(f"{name}: extra {file}")
        elif before[file] == after[file]:
            equal += 1
        else:
            complaints.append(
                f"{name}: differs {file}{first_difference(before[file], after[file])}"
            )
    return equal, complaints


def shortened(complaints: Sequence[str]) -> list[str]:
    """The first complaints about a step, and how many more there are."""
    left_out = len(complaints) - MOST_SHOWN
    more = [f"    ... and {left_out} more"] if left_out > 0 else []
    return [*complaints[:MOST_SHOWN], *more]


def first_difference(before: bytes, after: bytes) -> str:
    """The first line that differs, of texts; of other files their sizes."""
    try:
        lines = before.decode().splitlines(), after.decode().splitlines()
    except UnicodeDecodeError:
        return f" ({len(before):,} and {len(after):,} bytes)"
    longest = max(map(len, lines))
    padded = [side + ["(no line)"] * (longest - len(side)) for side in lines]
    for one, other in zip(*padded, strict=True):
        if one != other:
            return f"\n    before: {one[:300]}\n    after:  {other[:300]}"
    return " (line ends)"


def select(steps: Iterable[Step], prefixes: Sequence[str]) -> set[str]:
    """Names of the steps that begin with one of the prefixes; all steps without any.

    Raises ValueError for a prefix that fits no step.
    """
    names = [step.name for step in steps]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"no step begins with {prefix}; steps are {' '.join(names)}")
    return {name for name in names if not prefixes or name.startswith(tuple(prefixes))}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other comparison works in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another comparison works in {folder}, waiting for its end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compare_checkouts(args: argparse.Namespace) -> int:
    """Run what has to be run, print what differs and the counts; returns how many differences."""
    road = args.work / "road"
    steps = read_steps(STEPS.read_text(), road)
    chosen = select(steps, args.steps)
    before = Checkout(args.before.resolve(), args.work / "before", road, args.python)
    after = Checkout(args.after.resolve(), args.work / "after", road, args.python)

    # the first checkout runs what leads to the chosen steps, from the first one that is not stored
    needed = list(up_to_last(steps, chosen))
    while args.reuse and needed and is_stored(needed[0], before.store / needed[0].name):
        del needed[0]
    if needed:
        print(f"before: {args.before}, {len(needed)} steps", flush=True)
        for _ in before.run(steps, {step.name for step in needed}, before.store):
            pass

    shutil.rmtree(after.store, ignore_errors=True)
    print(f"after: {args.after}, {len(chosen)} steps", flush=True)
    equal = 0
    complaints = []
    for step in after.run(steps, chosen, before.store):
        contents = [step_contents(side.store / step.name) for side in (before, after)]
        same, differing = compare_step(step.name, *contents)
        print("".join(f"{line}\n" for line in shortened(differing)), end="", flush=True)
        equal += same
        complaints += differing
    for pattern, what, _, why in MEASURED:
        print(f"not compared in {pattern}: {what} ({why})")
    kinds = ("differs", "missing", "extra")
    counts = [sum(f": {kind} " in line for line in complaints) for kind in kinds]
    counted = ", ".join(f"{n} {kind}" for n, kind in zip(counts, kinds, strict=True))
    print(f"{len(chosen)} steps: {equal} files and outputs equal, {counted}")
    if not args.keep and not complaints:
        shutil.rmtree(after.store)
    return len(complaints)


def main() -> None:
    """Read the arguments, compare, exit with 1 on a difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="checkout that is right")
    parser.add_argument("after", type=Path, help="checkout that is compared with it")
    parser.add_argument(
        "--steps", nargs="+", default=(), help="beginnings of the names of steps; default: all"
    )
    parser.add_argument(
        "--reuse", action="store_true", help="take from an earlier comparison what BEFORE made"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep what AFTER made even where all is equal"
    )
    parser.add_argument("--python", default=sys.executable, help="that runs both checkouts")
    work = Path(tempfile.gettempdir()) / "same_results"
    parser.add_argument(
        "--work", type=Path, default=work, help=f"folder of the runs (default: {work})"
    )
    args = parser.parse_args()
    try:
        with alone_in(args.work):
            differences = compare_checkouts(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
