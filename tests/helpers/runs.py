"""What a run printed, and what files it left."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path


def printed_by(done: subprocess.CompletedProcess) -> str:
    """The printed text of a process that must have succeeded."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of the last change and content of every file below a folder."""
    files = contents(folder)
    return {name: ((folder / name).stat().st_mtime_ns, files[name]) for name in files}


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names of their columns."""
    with open(path) as file:
        return list(csv.DictReader(file))


def read_summary(folder: Path) -> dict:
    """What training noted about the car's network."""
    return json.loads((folder / "training_summary_car.json").read_text())
