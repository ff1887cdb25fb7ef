"""What to look at: which photographs, and which boxes in them."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_mesh.machine.console import count
from neural_mesh.storage.files import read_json, read_text
from neural_mesh.storage.pictures import PHOTOGRAPH_SUFFIXES

Box = tuple[float, ...]  # x0, y0, x1, y1


@dataclass(frozen=True)
class PhotographJob:
    """A photograph to look at: its name in the results, its file, and the boxes in it.

    Without boxes, all of the picture is looked at.
    """

    name: str
    path: Path
    boxes: tuple[Box, ...]

    @property
    def source(self) -> dict:
        """What a result depends on beside the settings; a photograph that changed is redone."""
        # Reading all of the file to know it again would take as long as decoding it.
        status = self.path.stat()
        return {
            "bytes": status.st_size,
            "modified": status.st_mtime_ns,
            "boxes": [list(box) for box in self.boxes],
        }

    @property
    def regions(self) -> list[np.ndarray | None]:
        """What to search, one for each object: its box [4], or None for the whole picture."""
        return [np.array(box) for box in self.boxes] or [None]


def collect_jobs(
    paths: Sequence[Path], boxes: Mapping[str, Sequence[Box]], out: Path
) -> list[PhotographJob]:
    """Photographs in the order of their names.

    paths: files, and folders with all pictures in and below them. boxes: by name. out: folder of
    the results, whose pictures are not photographs.
    Raises FileNotFoundError for a path that is not there, ValueError when a name comes twice or
    there is no picture.
    """
    files: dict[str, Path] = {}
    for path in paths:
        pictures = _pictures_at(path, out)
        # Names tell photographs apart in the results, so each stands for one file.
        for name in sorted(pictures):
            if files.get(name, pictures[name]) != pictures[name]:
                raise ValueError(
                    f"two photographs are called {name}: {files[name]} and {pictures[name]}; "
                    "use one run for each folder"
                )
        files |= pictures
    if not files:
        folders = ", ".join(map(str, paths))
        suffixes = " ".join(PHOTOGRAPH_SUFFIXES)
        raise ValueError(f"no picture in {folders} (files ending in {suffixes})")
    # Boxes may be of more photographs than this run's, but a misspelt name looks like that, too.
    unknown = sorted(set(boxes) - set(files))
    if unknown:
        print(
            f"note: {count(len(unknown), 'file')} with boxes not among the photographs, "
            f"{unknown[0]} first",
            file=sys.stderr,
        )
    return [PhotographJob(name, files[name], tuple(boxes.get(name, ()))) for name in sorted(files)]


def _pictures_at(path: Path, out: Path) -> dict[str, Path]:
    """Picture files by their names in the results."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"photograph not found: {path}")
        return {path.name: path}
    pictures = {}
    for file in sorted(path.rglob("*")):
        is_picture = file.suffix.lower() in PHOTOGRAPH_SUFFIXES and file.is_file()
        is_hidden = file.name.startswith(".")
        if is_picture and not is_hidden and out not in file.resolve().parents:
            pictures[file.relative_to(path).as_posix()] = file
    return pictures


def with_box(jobs: Sequence[PhotographJob], box: Box) -> list[PhotographJob]:
    """The one photograph with this box in it; ValueError when there are several."""
    if len(jobs) != 1:
        raise ValueError(
            f"--box is for one photograph, there are {len(jobs)}; name a file of boxes with --boxes"
        )
    return [replace(jobs[0], boxes=(tuple(box),))]


def check_unlabelled(jobs: Sequence[PhotographJob]) -> None:
    """ValueError unless the reference's route suits these photographs.

    It has no boxes, and names photographs without folder and ending.
    """
    if any(job.boxes for job in jobs):
        raise ValueError(
            "--unlabelled is the reference's route, which has no boxes; "
            "leave out --box and --boxes, or --unlabelled"
        )
    for stem, photographs in Counter(Path(job.name).stem for job in jobs).items():
        if photographs > 1:
            raise ValueError(
                "--unlabelled names photographs without folder and ending; "
                f"two are called {stem}, give them one run each"
            )


# ---- files of boxes ----


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Boxes by file name; a file may have several.

    path: csv with rows `file,x0,y0,x1,y1` (a heading is skipped), or json with
    {file: box or list of boxes}. Raises ValueError, naming the row, for anything that is no box.
    """
    if not path.is_file():
        raise FileNotFoundError(f"boxes not found: {path}")
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    boxes: dict[str, list[Box]] = {}
    for name, values in rows:
        is_box = isinstance(values, list) and len(values) == 4 and all(map(_is_number, values))
        if not is_box:
            raise ValueError(f"{path}: {name} has {values}, expected four numbers x0, y0, x1, y1")
        boxes.setdefault(name, []).append(tuple(map(float, values)))
    return boxes


def _json_rows(path: Path) -> list[tuple[str, Any]]:
    rows = []
    for name, value in read_json(path).items():
        # A file has one box or a list of boxes.
        several = isinstance(value, list) and value and isinstance(value[0], list)
        rows += [(name, box) for box in (value if several else [value])]
    return rows


def _csv_rows(path: Path) -> list[tuple[str, Any]]:
    # Spreadsheets write a byte order mark.
    text = io.StringIO(read_text(path).removeprefix("\ufeff"))
    try:
        lines = [row for row in csv.reader(text) if "".join(row).strip()]
    except csv.Error as error:
        raise ValueError(f"{path}: not a table ({error})") from None
    # A heading does not end in a number.
    if lines and not _is_number(lines[0][-1]):
        lines = lines[1:]
    return [(row[0].strip(), row[1:]) for row in lines]


def _is_number(value: object) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False
