"""Which images of PASCAL3D+ belong to which split, and the file that says so."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path

from neural_mesh.categories import did_you_mean
from neural_mesh.storage.files import plain_name, read_text
from neural_mesh.storage.foreign_files import refusal
from neural_mesh.storage.layout import RawPascal3D, read_list, without_ending

MAX_SUBSET_BYTES = 16 * 2**20
MAX_NAMES = 1_000_000  # of a subset pickle, in all of its lists
FLAG = re.compile(r"[\s,;](-1|0|\+?1)$")
# What pickles of lists of strings consist of, in all protocols.
FRAMES = {"PROTO", "FRAME", "STOP"}
LISTS = {"MARK", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"}
MEMORY = {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"}
TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
OLD_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
LIST_OPCODES = FRAMES | LISTS | MEMORY | TEXTS | OLD_TEXTS


class NoSplit(FileNotFoundError):
    """A data set has no list of a split of a category."""


@dataclass(frozen=True)
class Split:
    """Image names per subtype, and the file that said so.

    note: what is worth knowing about that choice, if anything.
    """

    subtypes: dict[str, list[str]]
    source: str
    note: str = ""

    @property
    def names(self) -> list[str]:
        """All names once, in order."""
        return list(dict.fromkeys(name for group in self.subtypes.values() for name in group))


def read_split(raw: RawPascal3D, category: str, split: str) -> Split:
    """The images of a split (train, val) of all parts of the data that `raw` names.

    The ImageNet part follows `Image_subsets` if it is there, as the paper, else `Image_sets`; the
    PASCAL VOC part the image sets of VOC 2012. Raises ValueError when a name is not a plain file
    name, NoSplit when there is no list.
    """
    # The parts follow each other, and so do the files that they come from.
    subtypes: dict[str, list[str]] = {}
    sources = []
    notes = []
    for part in raw.parts:
        read_part = _imagenet_split if part == "imagenet" else _voc_split
        of_part = read_part(raw, category, split)
        subtypes |= of_part.subtypes
        sources.append(of_part.source)
        notes.append(of_part.note)
    return Split(subtypes, " + ".join(sources), "".join(notes))


def has_split(raw: RawPascal3D, category: str, split: str) -> bool:
    """Whether any part of the data that `raw` names has a list of a split."""
    lists = []
    if "imagenet" in raw.parts:
        lists += [raw.subset_pickle(category, split), raw.image_set(category, split)]
    if "pascal" in raw.parts:
        lists.append(raw.voc_image_set(category, split))
    return any(path.is_file() for path in lists)


def record_rules(setting: str, split: Split) -> str:
    """RECORD_RULES -> strict or reference; auto.

    reference for the paper's own selection, else strict.
    """
    if setting != "auto":
        return setting
    papers_own = split.source.startswith("Image_subsets/") and " + " not in split.source
    return "reference" if papers_own else "strict"


def _imagenet_split(raw: RawPascal3D, category: str, split: str) -> Split:
    pickled = raw.subset_pickle(category, split)
    plain = raw.image_set(category, split)
    if pickled.is_file():
        return _pickled_split(pickled, raw.image_set(category, "subtype"))
    if plain.is_file():
        note = ""
        if pickled.parent.is_dir():
            note = (
                f"{pickled.parent} has no {pickled.name}; the {split} images of {category} are "
                f"those of Image_sets, not the paper's, and RECORD_RULES=auto is strict for them"
            )
        return Split({category: read_image_set(plain)}, f"Image_sets/{plain.name}", note)
    raise NoSplit(
        f"no split for {category}: neither {pickled} nor {plain} is there{_remedy(raw, category)}"
    )


def _remedy(raw: RawPascal3D, category: str) -> str:
    """What to do where a category has no list, as the end of a sentence."""
    there = raw.categories()
    if category in there:
        return "; write the names of the images into the latter, one a line"
    hint = did_you_mean(category, there)
    held = f", which are {', '.join(sorted(there))}" if there and not hint else ""
    return f"{hint}; set CATEGORIES to what the data hold{held}"


def _pickled_split(pickled: Path, subtype_file: Path) -> Split:
    """One list per subtype, whose names another file has."""
    groups = read_subset_pickle(pickled)
    # Without the file that names them, subtypes are numbered.
    subtypes = [f"subtype{i}" for i in range(1, len(groups) + 1)]
    if subtype_file.is_file():
        subtypes = read_list(subtype_file)
    if len(subtypes) != len(groups):
        raise ValueError(
            f"{pickled} has {len(groups)} lists but {subtype_file} names {len(subtypes)} subtypes"
        )
    groups = [list(map(without_ending, group)) for group in groups]
    return Split(dict(zip(subtypes, groups, strict=True)), f"Image_subsets/{pickled.name}")


def _voc_split(raw: RawPascal3D, category: str, split: str) -> Split:
    """Lines `name flag` of VOC's image sets; the flag is -1 where the image lacks the category."""
    path = raw.voc_image_set(category, split)
    if not path.is_file():
        raise NoSplit(
            f"no PASCAL VOC split for {category}: {path} is not there; "
            "leave pascal out of TRAIN_PARTS and TEST_PARTS"
        )
    names = []
    for line in read_text(path).splitlines():
        words = line.split()
        if words and words[1:] != ["-1"]:
            names.append(plain_name(without_ending(words[0]), path))
    return Split({"pascal": names}, f"PASCAL/{path.name}")


def read_image_set(path: Path) -> list[str]:
    """Image names of a list, one a line; the lines may have VOC's flags, as in `_voc_split`.

    Raises ValueError, naming the file, when a line is not a plain name.
    """
    lines = list(dict.fromkeys(filter(None, map(str.strip, read_text(path).splitlines()))))
    flags = [FLAG.search(line) for line in lines]
    flag_of = {
        line[: flag.start()]: flag[1] for line, flag in zip(lines, flags, strict=True) if flag
    }
    # If some lines have none, or names would be the same without, these are no flags.
    if len(flag_of) < len(lines):
        return read_list(path)
    names = [name.rstrip(" \t,;") for name, flag in flag_of.items() if flag != "-1"]
    return [plain_name(without_ending(name), path) for name in names]


# ---- pickled lists -------------------------------------------------------------------------------


class _ListsOnly(pickle.Unpickler):
    """Reads lists and strings.

    Anything that would have to be imported, and so could run, is refused.
    """

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")


def read_subset_pickle(path: Path) -> list[list[str]]:
    """A pickled list of lists of names, one list per subtype, read without executing anything.

    Raises ValueError when the file holds anything else.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_SUBSET_BYTES:
        raise ValueError(f"{path}: {size} bytes is too large for a list of names")
    try:
        groups = _unpickle_lists(path.read_bytes())
    except Exception as error:  # a broken pickle may raise nearly anything
        reason = f"not a plain list of image names ({str(error)[:200]})"
        raise ValueError(refusal(path, reason)) from error
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise ValueError(f"{path}: not a list of lists of image names")
    entries = sum(map(len, groups))
    if entries > MAX_NAMES:
        raise ValueError(f"{path}: not a list of image names but {entries:,} entries")
    if not all(isinstance(name, str) for group in groups for name in group):
        raise ValueError(f"{path}: not a list of lists of image names")
    for group in groups:
        for name in group:
            plain_name(name, path)
    return groups


def _unpickle_lists(content: bytes) -> object:
    """What a pickle holds, once all of its opcodes are those of lists and strings."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in LIST_OPCODES:
            operand = "" if argument is None else argument
            raise ValueError(f"it holds {opcode.name} {operand}".rstrip())
        # A memo number above the length makes the unpickler allocate that much.
        if "PUT" in opcode.name and int(argument) > len(content):
            raise ValueError("it claims more than it holds")
    return _ListsOnly(io.BytesIO(content)).load()
