"""Reading PASCAL3D+: the nested MATLAB records, and which images belong to which split. The only module with SciPy."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from neural_mesh.categories import category_settings
from neural_mesh.storage.files import plain_name, read_text
from neural_mesh.storage.layout import RawPascal3D, read_list

MAX_SUBSET_BYTES = 16 * 2**20
MAX_NAMES = 1_000_000  # of a subset pickle, in all of its lists
LIST_OPCODES = {  # what pickles of lists of strings consist of, in all protocols
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "EMPTY_LIST",
    "LIST",
    "APPEND",
    "APPENDS",
    "MEMOIZE",
    "PUT",
    "BINPUT",
    "LONG_BINPUT",
    "GET",
    "BINGET",
    "LONG_BINGET",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
}

MAX_MAT_BYTES = 64 * 2**20  # of an annotation, on disk and decompressed; real ones have some 10 kB
MAX_MAT_DEPTH = 16  # of records in records; the reader in SciPy would overflow the stack
MAX_BLANKS = 4096  # of a text without content
MAX_NUMBER = 1e7  # an annotation's numbers are degrees, pixels and distances
MAT_COMPRESSED, MAT_MATRIX = 15, 14
MAT_INT8, MAT_INT32, MAT_UINT32 = 1, 5, 6
MAT_DATA, MAT_TEXT = (
    (1, 2, 3, 4, 5, 6, 7, 9, 12, 13),
    (16, 17, 18),
)  # SciPy has nothing for other kinds of data, and crashes
MAT_CELL, MAT_STRUCT, MAT_CHAR, MAT_NUMBERS = 1, 2, 4, range(6, 16)


class UnusableRecord(ValueError):
    """An annotation that cannot be used; `reason` is short and the same for all records of its kind."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """One object of one image. Angles in radians; pixels are of the original image."""

    name: str
    category: str
    image_hw: tuple[int, int]
    bbox_xyxy: NDArray[np.float64]  # [4]
    cad_index: int  # 1-based
    azimuth: float
    elevation: float
    theta: float
    distance: float
    focal: float
    viewport: float
    principal_xy: NDArray[np.float64]  # [2]
    keypoints_xy: NDArray[np.float64]  # [K, 2], 0 where not visible
    keypoint_status: NDArray[np.int64]  # [K], 1 = visible
    objects: int  # how many the image has


def read_record(path: Path, category: str, rules: str = "strict") -> Record:
    """Read the object of a PASCAL3D+ annotation that stands for its image.

    rules: `strict` takes the first object of the category that has a fine viewpoint, a positive distance and a box;
    `reference` takes the first object whatever its class, also when its distance is 0 or its box is empty. Neither
    guesses a number that is missing. Raises UnusableRecord with the reason when there is no such object,
    FileNotFoundError when there is no such file.
    """
    if rules not in ("strict", "reference"):
        raise ValueError(f"RECORD_RULES is {rules!r} here, it can be strict or reference")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation not found: {path}")
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_MAT_BYTES else b""
        check_mat(content)
        record = loadmat(io.BytesIO(content))["record"]
        objects = record["objects"][0, 0].reshape(-1)
        width, height = (int(v) for v in np.asarray(record["imgsize"][0, 0]).reshape(-1)[:2])
        classes = (
            [str(found["class"].reshape(-1)[0]) for found in objects] if rules == "strict" else []
        )
    except Exception as error:  # on broken bytes SciPy raises nearly anything
        raise UnusableRecord(
            "unreadable annotation", f"{path} ({type(error).__name__}: {error})"
        ) from error
    if not 0 < min(width, height) <= max(width, height) <= MAX_NUMBER:
        raise UnusableRecord("no image size", f"{path} says {width} x {height}")
    if rules == "reference":
        candidates = list(objects[:1])
    else:
        candidates = [
            found for found, name in zip(objects, classes, strict=True) if name == category
        ]
    if not candidates:
        raise UnusableRecord(
            "no object of the category", f"{path} has {', '.join(classes) or 'no object'}"
        )
    problems = []
    for candidate in candidates:
        try:
            return _record_of(path, category, (height, width), candidate, len(objects), rules)
        except UnusableRecord as error:
            problems.append(error)
    raise problems[0]


def check_mat(content: bytes) -> None:
    """Check that a MATLAB 5 file is what it claims, before SciPy allocates what it claims.

    Every element must fill exactly the place that it says it takes, arrays must hold as many items as their sizes say,
    and records may lie in records to MAX_MAT_DEPTH. Raises ValueError.
    """
    if len(content) < 136 or content[126:128] not in (b"IM", b"MI"):
        raise ValueError(f"not a MATLAB 5 file, or larger than {MAX_MAT_BYTES:,} bytes")
    order, at, room = "<" if content[126:128] == b"IM" else ">", 128, MAX_MAT_BYTES
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        body = content[at + 8 : at + 8 + size]
        if len(body) != size or kind not in (MAT_COMPRESSED, MAT_MATRIX):
            raise ValueError(
                f"element of kind {kind} with {size} bytes at byte {at} of {len(content)}"
            )
        if kind == MAT_COMPRESSED:
            unpacked = zlib.decompressobj().decompress(body, room)
            room -= len(unpacked)
            if room <= 0:
                raise ValueError(f"decompresses to more than {MAX_MAT_BYTES:,} bytes")
            (kind, body), *rest = _mat_elements(unpacked, order)
            if kind != MAT_MATRIX or rest:
                raise ValueError("a compressed element is not one array")
        _check_mat_array(body, order, 0)
        at += 8 + size


def _mat_elements(content: bytes, order: str) -> list[tuple[int, bytes]]:
    """The (kind, bytes) that follow each other and fill `content`."""
    found, at = [], 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start, step = at + 8, 8 + size + -size % 8
        if kind >> 16:  # up to four bytes in the tag itself
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        if start + size > len(content) or (step == 8 and size > 4):
            raise ValueError(f"an element of {size} bytes does not fit where it stands")
        found.append((kind, content[start : start + size]))
        at += step
    return found


def _check_mat_array(content: bytes, order: str, depth: int) -> None:
    if not content:
        return  # an empty array, as MATLAB writes it inside of records
    if depth > MAX_MAT_DEPTH:
        raise ValueError(f"records in records, more than {MAX_MAT_DEPTH} deep")
    (flags_kind, flags), (sizes_kind, sizes), (name_kind, _), *parts = _mat_elements(content, order)
    if (
        flags_kind != MAT_UINT32
        or len(flags) != 8
        or sizes_kind not in (MAT_INT32, MAT_UINT32)
        or name_kind not in (MAT_INT8, *MAT_TEXT)
    ):
        raise ValueError("an array without flags, size and name")
    flag_bits = struct.unpack_from(f"{order}I", flags)[0]
    kind, is_complex = flag_bits & 0xFF, bool(flag_bits & 0x800)
    dimensions = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if not 2 <= len(dimensions) <= 8 or min(dimensions) < 0:
        raise ValueError(f"an array of size {dimensions}")
    items, held = math.prod(dimensions), [part for _, part in parts]
    if kind == MAT_STRUCT:
        (length,) = struct.unpack(f"{order}i", held[0])
        if (
            length <= 0
            or len(held[1]) % length
            or [part_kind for part_kind, _ in parts[:2]] != [MAT_INT32, MAT_INT8]
        ):
            raise ValueError("a record's field names are broken")
        items, held, parts = items * (len(held[1]) // length), held[2:], parts[2:]
    if kind in (MAT_CELL, MAT_STRUCT):
        if len(held) != items or any(part_kind != MAT_MATRIX for part_kind, _ in parts):
            raise ValueError(f"an array claims {items} items and has {len(held)}")
        for part in held:
            _check_mat_array(part, order, depth + 1)
    elif kind == MAT_CHAR and held == [b""] and items <= MAX_BLANKS:
        return  # blanks, which MATLAB may leave out
    elif kind == MAT_CHAR or kind in MAT_NUMBERS:
        if any(
            part_kind not in (*MAT_DATA, *(MAT_TEXT if kind == MAT_CHAR else ()))
            for part_kind, _ in parts
        ):
            raise ValueError(f"data of kinds {[part_kind for part_kind, _ in parts]}")
        if len(held) != 1 + is_complex or any(items > len(part) for part in held):
            raise ValueError(f"an array claims {items} items and has {sum(map(len, held))} bytes")
    else:
        raise ValueError(f"an array of class {kind}, which no annotation has")


def _record_of(
    path: Path, category: str, image_hw: tuple[int, int], found: np.void, objects: int, rules: str
) -> Record:
    """One object as a Record; UnusableRecord when a value is missing, not finite, or cannot be."""

    def number(holder: np.void, field: str) -> float:
        try:
            value = float(np.asarray(holder[field]).reshape(-1)[0])
        except (IndexError, ValueError, TypeError, KeyError, OverflowError):
            raise UnusableRecord(f"no {field}", f"{path} has no number there") from None
        if not np.isfinite(value):
            raise UnusableRecord(f"{field} is not finite", str(path))
        if abs(value) > MAX_NUMBER:
            raise UnusableRecord(f"{field} is out of range", f"{path} has {value:g}")
        return value

    def positive(holder: np.void, field: str) -> float:
        value = number(holder, field)
        if value <= 0:
            raise UnusableRecord(f"{field} not positive", f"{path} has {value}")
        return value

    try:
        viewpoint = found["viewpoint"][0, 0]
        bbox = np.asarray(found["bbox"], dtype=np.float64).reshape(-1)
    except (IndexError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise UnusableRecord("no fine viewpoint or box", f"{path} ({error})") from None
    if bbox.shape != (4,) or not (np.abs(bbox) <= MAX_NUMBER).all():
        raise UnusableRecord("broken box", f"{path} has {bbox}")
    strict = rules == "strict"
    if strict and not (bbox[2] > bbox[0] and bbox[3] > bbox[1]):
        raise UnusableRecord("empty box", f"{path} has {bbox}")
    keypoints, status = _keypoints(found, category)
    return Record(
        name=path.stem,
        category=category,
        image_hw=image_hw,
        bbox_xyxy=bbox,
        cad_index=int(number(found, "cad_index")),
        azimuth=np.deg2rad(number(viewpoint, "azimuth")).item(),
        elevation=np.deg2rad(number(viewpoint, "elevation")).item(),
        theta=np.deg2rad(number(viewpoint, "theta")).item(),
        distance=(positive if strict else number)(viewpoint, "distance"),
        focal=positive(viewpoint, "focal"),
        viewport=positive(viewpoint, "viewport"),
        principal_xy=np.array([number(viewpoint, "px"), number(viewpoint, "py")]),
        keypoints_xy=keypoints,
        keypoint_status=status,
        objects=objects,
    )


def _keypoints(found: np.void, category: str) -> tuple[NDArray, NDArray]:
    """Key points in the order of the settings. They are stored but play no role in NeMo, so a broken one is status 0."""
    names = category_settings(category).keypoints
    points, status = np.zeros((len(names), 2)), np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        try:
            anchor = found["anchors"][0, 0][name][0, 0]
            status[i] = int(anchor["status"].reshape(-1)[0])
            if status[i] == 1:
                points[i] = anchor["location"].reshape(-1)[:2]
        except (IndexError, KeyError, ValueError, TypeError, OverflowError):
            status[i] = 0
        if not np.isfinite(points[i]).all():
            points[i], status[i] = 0, 0
    return points, status


class _ListsOnly(pickle.Unpickler):
    """Reads lists and strings; anything that would have to be imported, and so could run, is refused."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")


def read_subset_pickle(path: Path) -> list[list[str]]:
    """A pickled list of lists of names, one list per subtype, read without executing anything.

    Raises ValueError when the file holds anything else.
    """
    path = Path(path)
    if path.stat().st_size > MAX_SUBSET_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes is too large for a list of names")
    try:
        content = path.read_bytes()
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in LIST_OPCODES:
                raise ValueError(
                    f"it holds {opcode.name} {argument if argument is not None else ''}".rstrip()
                )
            if "PUT" in opcode.name and int(argument) > len(content):
                raise ValueError("it claims more than it holds")
        value = _ListsOnly(io.BytesIO(content)).load()
    except Exception as error:  # a broken pickle may raise nearly anything
        raise ValueError(f"{path}: not a plain list of image names ({str(error)[:200]})") from error
    if not isinstance(value, list) or not all(isinstance(group, list) for group in value):
        raise ValueError(f"{path}: not a list of lists of image names")
    if sum(map(len, value)) > MAX_NAMES:
        raise ValueError(f"{path}: not a list of image names but {sum(map(len, value)):,} entries")
    if not all(isinstance(name, str) for group in value for name in group):
        raise ValueError(f"{path}: not a list of lists of image names")
    return [[plain_name(name, path) for name in group] for group in value]


@dataclass(frozen=True)
class Split:
    """Image names per subtype, and the file that said so."""

    subtypes: dict[str, list[str]]
    source: str

    @property
    def names(self) -> list[str]:
        """All names once, in order."""
        return list(dict.fromkeys(name for group in self.subtypes.values() for name in group))


def read_split(raw: RawPascal3D, category: str, split: str) -> Split:
    """The images of a split (train, val) of all parts of the data that `raw` names.

    The ImageNet part follows `Image_subsets` if it is there, as the paper, else `Image_sets`; the PASCAL VOC part the
    image sets of VOC 2012. Raises ValueError when a name is not a plain file name.
    """
    parts = [
        _imagenet_split(raw, category, split)
        if part == "imagenet"
        else _voc_split(raw, category, split)
        for part in raw.parts
    ]
    return Split(
        {subtype: names for part in parts for subtype, names in part.subtypes.items()},
        " + ".join(p.source for p in parts),
    )


def _imagenet_split(raw: RawPascal3D, category: str, split: str) -> Split:
    pickled, plain = raw.subset_pickle(category, split), raw.image_set(category, split)
    if pickled.is_file():
        groups = read_subset_pickle(pickled)
        subtype_file = raw.image_set(category, "subtype")
        subtypes = (
            read_list(subtype_file)
            if subtype_file.is_file()
            else [f"subtype{i}" for i in range(1, len(groups) + 1)]
        )
        if len(subtypes) != len(groups):
            raise ValueError(
                f"{pickled} has {len(groups)} lists but {subtype_file} names {len(subtypes)} subtypes"
            )
        return Split(dict(zip(subtypes, groups, strict=True)), f"Image_subsets/{pickled.name}")
    if plain.is_file():
        return Split({category: read_list(plain)}, f"Image_sets/{plain.name}")
    raise FileNotFoundError(
        f"no split for {category}: neither {pickled} nor {plain} is there; set CATEGORIES to what the data hold"
    )


def _voc_split(raw: RawPascal3D, category: str, split: str) -> Split:
    """Lines `name flag` of VOC's image sets; the flag is -1 where the image does not show the category."""
    path = raw.voc_image_set(category, split)
    if not path.is_file():
        raise FileNotFoundError(
            f"no PASCAL VOC split for {category}: {path} is not there; leave pascal out of TRAIN_PARTS and TEST_PARTS"
        )
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    return Split(
        {"pascal": [plain_name(line[0], path) for line in lines if line[1:] != ["-1"]]},
        f"PASCAL/{path.name}",
    )


def record_rules(setting: str, split: Split) -> str:
    """RECORD_RULES -> strict or reference; auto: reference for the paper's own selection of images, else strict."""
    if setting == "auto":
        return (
            "reference"
            if split.source.startswith("Image_subsets/") and " + " not in split.source
            else "strict"
        )
    return setting
