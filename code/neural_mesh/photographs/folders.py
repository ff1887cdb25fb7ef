"""Which files of a folder are photographs; all others are counted and told, none is just left out.

Skipped are hidden files and folders, the thumbnails and bins that phones, network drives and file
managers keep, and the pictures of results. What is no file (a pipe, a link to nothing) but is
called like a picture is taken, and fails later with its own reason.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from neural_mesh.machine.console import count
from neural_mesh.storage.files import one_line
from neural_mesh.storage.pictures import PHOTOGRAPH_SUFFIXES

POSES = "poses.jsonl"  # beside the folders of pictures in a run's results
RESULT_FOLDERS = ("overlays", "films")
# In small letters; those that begin with a dot are hidden, and need not be here.
FOLDERS_OF_MACHINES = (
    *("@eadir", "@recycle", "@__thumb", "#recycle", "#snapshot", "$recycle.bin", "__macosx"),
    *("lost+found", "system volume information", "thumbnails"),
)
# Pictures that can be converted, most of them raw files of cameras.
OTHER_PICTURES = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf"),
    *(".raf", ".rw2", ".pef", ".srw", ".psd", ".xcf", ".svg", ".eps", ".pdf", ".ico", ".exr"),
)
MOST_ENDINGS_TOLD = 6


@dataclass
class PhotographFolder:
    """What is below a folder.

    pictures: files by their names, relative to the folder. others: endings of files that are no
    pictures. hidden: pictures. skipped, linked, unreadable: folders, by their names.
    """

    root: Path
    pictures: dict[str, Path] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def left_out(self) -> str:
        """What was left out in words, with the next step; empty where that is nothing."""
        said = []
        if self.others:
            told = sorted(self.others.items(), key=lambda each: (-each[1], each[0]))
            told = told[:MOST_ENDINGS_TOLD]
            kinds = ", ".join(f"{number:,} {ending}" for ending, number in told)
            more = ", ..." if len(self.others) > len(told) else ""
            said.append(f"{count(self.others.total(), 'other file')} ({kinds}{more})")
        for names, noun in (
            (self.hidden, "hidden picture"),
            (self.skipped, "hidden, thumbnail or result folder"),
            (self.linked, "linked folder"),
            (self.unreadable, "unreadable folder"),
        ):
            if names:
                more = ", ..." if len(names) > 1 else ""
                said.append(f"{count(len(names), noun)} ({one_line(sorted(names)[0])}{more})")
        if not said:
            return ""
        convert = any(ending in OTHER_PICTURES for ending in self.others)
        advice = "; convert pictures of other kinds to JPEG or PNG first" if convert else ""
        return f"{'; '.join(said)}{advice}"


def search_folder(root: Path, out: Path) -> PhotographFolder:
    """The photographs in and below a folder. out: folder of this run's results, with no links."""
    found = PhotographFolder(root)

    def unreadable(error: OSError) -> None:
        found.unreadable.append(os.path.relpath(os.fsdecode(error.filename), root))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        # Overlays of earlier runs look like photographs, but must not be searched again.
        has_results = POSES in files or os.path.realpath(folder) == str(out)
        kept = []
        for name in sorted(folders):
            path = here / name
            if _is_skipped(name) or (has_results and name in RESULT_FOLDERS):
                found.skipped.append(str(path.relative_to(root)))
            elif path.is_symlink():
                # A link may point to a folder above, and everything would be found twice.
                found.linked.append(str(path.relative_to(root)))
            else:
                kept.append(name)
        # What is left in the list is walked into.
        folders[:] = kept
        for name in files:
            _sort_in(found, here / name, has_results)
    return found


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in FOLDERS_OF_MACHINES


def _sort_in(found: PhotographFolder, path: Path, has_results: bool) -> None:
    """Add a file to what it is."""
    name = path.relative_to(found.root).as_posix()
    ending = path.suffix.lower()
    is_picture = ending in PHOTOGRAPH_SUFFIXES
    if path.name.startswith("."):
        # A Mac keeps what it knows of a file in another one, `._` and its name.
        if is_picture and not path.name.startswith("._"):
            found.hidden.append(name)
    elif is_picture:
        found.pictures[name] = path
    elif not has_results:
        found.others[ending or "without ending"] += 1


def tell_left_out(found: PhotographFolder) -> list[str]:
    """Say on stderr what of a folder is not looked at; returns it, if there is anything."""
    left_out = found.left_out()
    if left_out:
        print(f"note: not looked at in {one_line(str(found.root))}: {left_out}", file=sys.stderr)
    return [left_out] if left_out else []
