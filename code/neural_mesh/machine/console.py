"""What a user sees of a run: errors in one sentence, progress bars, counts with their nouns."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point.

    What a user can cause is told in one sentence on stderr, with exit status 1.
    """
    # Names of files may hold what a terminal or a log cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except (ValueError, OSError, MemoryError) as error:
        sentence = str(error) or "this machine has not enough memory for it"
        # tqdm writes on a line below the bars that are open.
        tqdm.write(f"error: {sentence}", file=sys.stderr)
        if os.environ.get("NEMO_TRACEBACK"):
            raise
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; finished work is kept, run the same command to go on", file=sys.stderr)
        sys.exit(130)


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """What is iterated over, with a bar as `progress_bar` makes it."""
    return progress_bar(description, total, iterable=iterable)


def progress_bar(description: str, total: int | None, **options: Any) -> tqdm:
    """A tqdm bar on stderr, in images, moved by its `update`; quiet lines where stderr is a file.

    options: of tqdm.
    """
    interactive = sys.stderr.isatty()
    # A terminal gets a bar that moves, a log file a line every half minute.
    return tqdm(
        desc=description,
        total=total,
        mininterval=0.5 if interactive else 30.0,
        dynamic_ncols=interactive,
        file=sys.stderr,
        unit=" images",
        **options,
    )


def count(n: int, noun: str) -> str:
    """`1 image`, `2 images`, `2 categories`, `2 boxes`."""
    if n == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{n:,} {noun[:-1]}ies"
    return f"{n:,} {noun}es" if noun.endswith("x") else f"{n:,} {noun}s"


def reason_counts(reasons: Iterable[str] | Counter[str], verb: str) -> str:
    """`; 2 skipped: too small; 1 skipped: truncated`, by reason; empty where there is none.

    reasons: one by one, or counted.
    """
    counts = sorted(Counter(reasons).items())
    return "".join(f"; {number} {verb}: {reason}" for reason, number in counts)


def as_json(value: object) -> str:
    """JSON text with sorted keys, two spaces and a last newline."""
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"


def require_folder(path: Path, what: str, remedy: str) -> Path:
    """`path` if it is a folder, else FileNotFoundError with what was expected and what to do."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{what} not found: {path} is not a folder; {remedy}")
    return path
