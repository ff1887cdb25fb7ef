"""What to look at: which photographs, and which boxes in them."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neural_mesh.machine.console import count
from neural_mesh.photographs.box_files import Box, Boxes
from neural_mesh.photographs.folders import search_folder, tell_left_out
from neural_mesh.storage.files import one_line, readable
from neural_mesh.storage.pictures import PHOTOGRAPH_SUFFIXES


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


def collect_jobs(paths: Sequence[Path], boxes: Boxes | None, out: Path) -> list[PhotographJob]:
    """Photographs in the order of their names.

    paths: files, and folders with all pictures in and below them (see `search_folder`). boxes: in
    them, None for the whole pictures. out: folder of the results, whose pictures are not
    photographs. Says what is left out of folders, and how many boxes there are.
    Raises FileNotFoundError for a path that is not there, ValueError when a name comes twice or
    there is no picture.
    """
    files: dict[str, Path] = {}
    left_out = []
    for path in paths:
        pictures = {path.name: path}
        if path.is_dir():
            found = search_folder(path, out)
            pictures = found.pictures
            left_out += tell_left_out(found)
        elif not os.path.lexists(path):
            raise FileNotFoundError(f"photograph not found: {path}")
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
        but = f", but {'; '.join(left_out)}" if left_out else ""
        raise ValueError(f"no picture in {folders} (files ending in {suffixes}){but}")
    found_boxes = _of_photographs(boxes, files) if boxes else {}
    jobs = []
    for name in sorted(files):
        jobs.append(PhotographJob(name, files[name], tuple(found_boxes.get(name, ()))))
    return jobs


# ---- boxes ----


def _of_photographs(boxes: Boxes, files: Mapping[str, Path]) -> dict[str, list[Box]]:
    """The boxes by the names of the photographs, and a word on how many there are."""
    tails = _tails(files)
    found: dict[str, list[Box]] = {}
    unknown = []
    for written, several in boxes.by_name.items():
        name = _photograph_called(written, files, tails)
        if name:
            found.setdefault(name, []).extend(several)
        else:
            unknown.append(written)
    here = sum(map(len, found.values()))
    others = len(files) - len(found)
    print(
        f"{count(boxes.total, 'box')} in {boxes.path}, {here:,} of them in "
        f"{count(len(found), 'photograph')} of this run"
        + (f"; {count(others, 'other')} looked at as a whole" if others else "")
    )
    # Boxes may be of more photographs than this run's, but a misspelt name looks like that, too.
    if unknown:
        print(
            f"note: {count(len(unknown), 'file')} with boxes not among the photographs, "
            f"{one_line(min(unknown))} first",
            file=sys.stderr,
        )
    if boxes.without:
        print(
            f"note: {count(len(boxes.without), 'file')} without numbers in {boxes.path}, "
            f"{one_line(boxes.without[0])} first",
            file=sys.stderr,
        )
    return found


def _tails(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Names of photographs by all ends of their paths, as `_plain`."""
    tails: dict[str, set[str]] = {}
    for name, path in files.items():
        parts = _plain(os.path.abspath(path)).split("/")
        for start in range(len(parts)):
            tails.setdefault("/".join(parts[start:]), set()).add(name)
    return tails


def _photograph_called(
    written: str, files: Mapping[str, Path], tails: Mapping[str, set[str]]
) -> str | None:
    """The photograph that a table means: its name, or what only one path ends in."""
    if written in files:
        return written
    # Tables often come from other machines, where the same folders lie elsewhere.
    meant = tails.get(_plain(written), set())
    return next(iter(meant)) if len(meant) == 1 else None


def _plain(path: str) -> str:
    """A path as all systems write it: one kind of slashes, letters and accents."""
    parts = unicodedata.normalize("NFC", readable(path)).casefold().replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


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
