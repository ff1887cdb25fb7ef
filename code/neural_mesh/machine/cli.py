"""What all entry points share: arguments that are checked, errors in one sentence, progress bars."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar

from tqdm import tqdm

from neural_mesh.settings import ALL_AZIMUTHS, CATEGORIES, MESH_DIMENSIONS, Azimuths
from neural_mesh.storage.files import plain_name

T = TypeVar("T")


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point; what a user can cause is told in one sentence on stderr, with exit status 1."""
    try:
        main()
    except (ValueError, OSError, MemoryError) as error:
        tqdm.write(
            f"error: {error or 'this machine has not enough memory for it'}", file=sys.stderr
        )  # on a line below open bars
        if os.environ.get("NEMO_TRACEBACK"):
            raise
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; finished work is kept, run the same command to go on", file=sys.stderr)
        sys.exit(130)


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """What is iterated over, with a bar as `progress_bar` makes it."""
    return progress_bar(description, total, iterable=iterable)


def progress_bar(description: str, total: int | None, **options: object) -> tqdm:
    """A tqdm bar on stderr, in images, moved by its `update`; quiet lines where stderr is a file. options: of tqdm."""
    interactive = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        mininterval=0.5 if interactive else 30.0,
        dynamic_ncols=interactive,
        file=sys.stderr,
        unit=" images",
        **options,
    )


class WorkerPool(ProcessPoolExecutor):
    """Processes that end when the one that started them is killed, and that note, in shared memory, what each is at."""

    def __init__(self, workers: int):
        self.notes = multiprocessing.Array(
            "q", workers, lock=False
        )  # per process 1 + index of its name; 0: nothing
        super().__init__(
            workers, initializer=_enter_pool, initargs=(self.notes, multiprocessing.Value("q", 0))
        )


def _enter_pool(notes: Sequence[int], entered: object) -> None:
    def watch() -> None:
        multiprocessing.parent_process().join()  # with a fork server, os.getppid() is the server
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    with entered.get_lock():
        _note.update(notes=notes, place=entered.value)
        entered.value += 1


_note: dict = {}  # of a process of a pool: the notes of all, and its own place among them


def in_pool(
    pool: WorkerPool, work: Callable[[str], T], names: Sequence[str], description: str
) -> list[T]:
    """[work(name) for name in names], spread over processes, with a bar.

    Raises ValueError when a process dies, with the names that were being worked on.
    """
    try:
        noted = pool.map(partial(_noted, work), range(1, len(names) + 1), names, chunksize=4)
        return list(progress(noted, description, total=len(names)))
    except BrokenProcessPool as error:
        at = " or ".join(sorted(names[number - 1] for number in pool.notes if number))
        raise process_died(
            "a process", f"while working on {at or 'nothing'} of {description}"
        ) from error


def _noted(work: Callable[[str], T], number: int, name: str) -> T:
    """Keeps a note of what this process is at."""
    notes, place = _note["notes"], _note["place"]
    notes[place] = number
    try:
        return work(name)
    finally:
        notes[place] = 0


def process_died(what: str, at: str, remedy: str = "") -> ValueError:
    """The error of a process that ended by itself: what it was, what it was at, and what else can be done about it."""
    return ValueError(
        f"{what} died (killed, out of memory, or by a file that crashes the decoder) {at}; "
        f"finished work is kept, run the same command again to go on{remedy}"
    )


def boolean(text: str) -> bool:
    """argparse type of true/false, so that "False" is not true."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no", ""):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def positive(text: str) -> int:
    """argparse type of an integer > 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def count_or_none(text: str) -> int:
    """argparse type of an integer >= 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def words(text: str) -> tuple[str, ...]:
    """argparse type of a list with spaces or commas in it."""
    return tuple(text.replace(",", " ").split())


def names(text: str) -> tuple[str, ...]:
    """argparse type of a list of names that become parts of paths."""
    try:
        return tuple(plain_name(name, "a name on the command line") for name in words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def level(text: str) -> str:
    """argparse type of an occlusion level, or of none: it becomes part of paths."""
    return names(text)[0] if text else ""


def add_categories(parser: argparse.ArgumentParser) -> None:
    """Add --categories, the 12 of PASCAL3D+ unless told."""
    parser.add_argument(
        "--categories", type=names, default=tuple(CATEGORIES), help="names, separated by spaces"
    )


def azimuths(text: str) -> Azimuths:
    """argparse type of PATTERN or PATTERN:seen, such as TFFTTFFT:unseen; empty: all azimuths."""
    pattern, _, tested = text.partition(":")
    try:
        return Azimuths(pattern, tested or "unseen")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_azimuths(parser: argparse.ArgumentParser) -> None:
    """Add --azimuths, all unless told."""
    parser.add_argument(
        "--azimuths",
        type=azimuths,
        default=ALL_AZIMUTHS,
        metavar="PATTERN[:seen]",
        help="azimuths trained on, such as TFFTTFFT; tested on the others, or with :seen on the same",
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add what names a trained network, the images that it is used on, and where its results lie."""
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1")
    parser.add_argument(
        "--prepared", type=Path, required=True, help="test set made by PrepareData.sh"
    )
    parser.add_argument("--exp", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--save-dir", type=Path, help="folder of the checkpoints, if not <exp>/NeMo_<mesh>"
    )
    parser.add_argument(
        "--load-file-name",
        default="saved_model_%s_last.pth",
        help="checkpoint; %%s stands for the category",
    )
    parser.add_argument(
        "--mesh-d",
        choices=MESH_DIMENSIONS,
        default="single",
        help="one cuboid per category or per CAD model",
    )
    parser.add_argument("--level", type=level, default="", help="occlusion level such as FGL1_BGL1")
    parser.add_argument(
        "--gpus", default="all", help="all or indices, the first is used; empty: CPU"
    )
    add_azimuths(parser)
    add_categories(parser)


def require_folder(path: Path, what: str, remedy: str) -> Path:
    """`path` if it is a folder, else FileNotFoundError with what was expected there and what to do."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{what} not found: {path} is not a folder; {remedy}")
    return Path(path)


def count(n: int, noun: str) -> str:
    """`1 image`, `2 images`, `2 categories`."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def worker_count(text: str) -> int:
    """WORKERS as set by the user -> processes: `auto` is one for each core that this process may use."""
    if text == "auto":
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f'WORKERS is "{text}", it can be auto or a number of processes above 0')
    return int(text)


def as_json(value: object) -> str:
    """JSON text with sorted keys, two spaces and a last newline."""
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"
