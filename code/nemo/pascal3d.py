"""Reading PASCAL3D+: the nested MATLAB records, and which images belong to which split. The only module with SciPy."""

from __future__ import annotations

import io
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from nemo.layout import RawPascal3D, read_list
from nemo.settings import category as category_settings

MAX_SUBSET_BYTES = 64 * 2**20


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
        record = loadmat(path)["record"]
        objects = record["objects"][0, 0].reshape(-1)
        width, height = (int(v) for v in np.asarray(record["imgsize"][0, 0]).reshape(-1)[:2])
        classes = [str(found["class"].reshape(-1)[0]) for found in objects] if rules == "strict" else []
    except _UNREADABLE as error:
        raise UnusableRecord("unreadable annotation", f"{path} ({error})") from error
    if min(width, height) <= 0:
        raise UnusableRecord("no image size", f"{path} says {width} x {height}")
    if rules == "reference":
        candidates = list(objects[:1])
    else:
        candidates = [found for found, name in zip(objects, classes, strict=True) if name == category]
    if not candidates:
        raise UnusableRecord("no object of the category", f"{path} has {', '.join(classes) or 'no object'}")
    problems = []
    for candidate in candidates:
        try:
            return _record_of(path, category, (height, width), candidate, len(objects), rules)
        except UnusableRecord as error:
            problems.append(error)
    raise problems[0]


_UNREADABLE = (
    KeyError, IndexError, ValueError, TypeError, OSError, OverflowError, AttributeError, MatReadError, NotImplementedError, zlib.error,
)  # fmt: skip


def _record_of(path: Path, category: str, image_hw: tuple[int, int], found: np.void, objects: int, rules: str) -> Record:
    """One object as a Record; UnusableRecord when a value is missing, not finite, or cannot be."""

    def number(holder: np.void, field: str) -> float:
        try:
            value = float(np.asarray(holder[field]).reshape(-1)[0])
        except (IndexError, ValueError, TypeError, KeyError):
            raise UnusableRecord(f"no {field}", f"{path} has no number there") from None
        if not np.isfinite(value):
            raise UnusableRecord(f"{field} is not finite", str(path))
        return value

    def positive(holder: np.void, field: str) -> float:
        value = number(holder, field)
        if value <= 0:
            raise UnusableRecord(f"{field} not positive", f"{path} has {value}")
        return value

    try:
        viewpoint = found["viewpoint"][0, 0]
        bbox = np.asarray(found["bbox"], dtype=np.float64).reshape(-1)
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise UnusableRecord("no fine viewpoint or box", f"{path} ({error})") from None
    if bbox.shape != (4,) or not np.isfinite(bbox).all():
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
        except (IndexError, KeyError, ValueError, TypeError):
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
        value = _ListsOnly(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a broken pickle may raise nearly anything
        raise ValueError(f"{path}: not a plain list of image names ({error})") from error
    if not isinstance(value, list) or not all(
        isinstance(group, list) and all(isinstance(name, str) for name in group) for group in value
    ):
        raise ValueError(f"{path}: not a list of lists of image names")
    return value


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
    parts = [_imagenet_split(raw, category, split) if part == "imagenet" else _voc_split(raw, category, split) for part in raw.parts]
    together = Split({subtype: names for part in parts for subtype, names in part.subtypes.items()}, " + ".join(p.source for p in parts))
    for name in together.names:
        if not name or Path(name).name != name:
            raise ValueError(f"{together.source} of {category} names {name!r}, which is not a file name")
    return together


def _imagenet_split(raw: RawPascal3D, category: str, split: str) -> Split:
    pickled, plain = raw.subset_pickle(category, split), raw.image_set(category, split)
    if pickled.is_file():
        groups = read_subset_pickle(pickled)
        subtype_file = raw.image_set(category, "subtype")
        subtypes = read_list(subtype_file) if subtype_file.is_file() else [f"subtype{i}" for i in range(1, len(groups) + 1)]
        if len(subtypes) != len(groups):
            raise ValueError(f"{pickled} has {len(groups)} lists but {subtype_file} names {len(subtypes)} subtypes")
        return Split(dict(zip(subtypes, groups, strict=True)), f"Image_subsets/{pickled.name}")
    if plain.is_file():
        return Split({category: read_list(plain)}, f"Image_sets/{plain.name}")
    raise FileNotFoundError(f"no split for {category}: neither {pickled} nor {plain} is there; set CATEGORIES to what the data hold")


def _voc_split(raw: RawPascal3D, category: str, split: str) -> Split:
    """Lines `name flag` of VOC's image sets; the flag is -1 where the image does not show the category."""
    path = raw.voc_image_set(category, split)
    if not path.is_file():
        raise FileNotFoundError(f"no PASCAL VOC split for {category}: {path} is not there; leave pascal out of TRAIN_PARTS and TEST_PARTS")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return Split({"pascal": [line[0] for line in lines if line[1:] != ["-1"]]}, f"PASCAL/{path.name}")


def record_rules(setting: str, split: Split) -> str:
    """RECORD_RULES -> strict or reference; auto: reference for the paper's own selection of images, else strict."""
    if setting == "auto":
        return "reference" if split.source.startswith("Image_subsets/") and " + " not in split.source else "strict"
    return setting
