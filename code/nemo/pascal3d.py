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


def read_record(path: Path, category: str) -> Record:
    """Read the first object of a PASCAL3D+ annotation.

    The reference looks at the first object whatever its class; here its class must be the category, its fine
    viewpoint must be there and its distance must be positive. Raises UnusableRecord with the reason otherwise,
    FileNotFoundError when there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation not found: {path}")
    try:
        record = loadmat(path)["record"]
        objects = record["objects"][0, 0]
        first = objects[0, 0]
        found = str(first["class"][0])
    except (KeyError, IndexError, ValueError, TypeError, OSError, MatReadError, NotImplementedError, zlib.error) as error:
        raise UnusableRecord("unreadable annotation", f"{path} ({error})") from error
    if found != category:
        raise UnusableRecord("first object is of another class", f"{path} has a {found} first")
    return _record_of(path, category, record, first)


def _record_of(path: Path, category: str, record: NDArray, first: np.void) -> Record:
    def number(holder: np.void, field: str) -> float:
        try:
            value = float(np.asarray(holder[field]).reshape(-1)[0])
        except (IndexError, ValueError, TypeError, KeyError):
            raise UnusableRecord(f"no {field}", f"{path} has no number there") from None
        if not np.isfinite(value):
            raise UnusableRecord(f"{field} is not finite", str(path))
        return value

    try:
        viewpoint = first["viewpoint"][0, 0]
        size = [int(v) for v in record["imgsize"][0, 0].reshape(-1)[:2]]
        bbox = np.asarray(first["bbox"], dtype=np.float64).reshape(-1)
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise UnusableRecord("no fine viewpoint, box or size", f"{path} ({error})") from None
    if bbox.shape != (4,) or not np.isfinite(bbox).all():
        raise UnusableRecord("broken box", f"{path} has {bbox}")
    distance = number(viewpoint, "distance")
    if distance <= 0:
        raise UnusableRecord("distance not positive", f"{path} has {distance}")
    keypoints, status = _keypoints(first, category)
    return Record(
        name=path.stem,
        category=category,
        image_hw=(size[1], size[0]),
        bbox_xyxy=bbox,
        cad_index=int(number(first, "cad_index")),
        azimuth=np.deg2rad(number(viewpoint, "azimuth")).item(),
        elevation=np.deg2rad(number(viewpoint, "elevation")).item(),
        theta=np.deg2rad(number(viewpoint, "theta")).item(),
        distance=distance,
        focal=number(viewpoint, "focal"),
        viewport=number(viewpoint, "viewport"),
        principal_xy=np.array([number(viewpoint, "px"), number(viewpoint, "py")]),
        keypoints_xy=keypoints,
        keypoint_status=status,
    )


def _keypoints(first: np.void, category: str) -> tuple[NDArray, NDArray]:
    """Key points in the order of the settings. They are stored but play no role in NeMo, so a missing one is status 0."""
    names = category_settings(category).keypoints
    points, status = np.zeros((len(names), 2)), np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        try:
            anchor = first["anchors"][0, 0][name][0, 0]
            status[i] = int(anchor["status"][0, 0].reshape(-1)[0])
            if status[i] == 1:
                points[i] = anchor["location"][0, 0].reshape(-1)[:2]
        except (IndexError, KeyError, ValueError, TypeError):
            status[i] = 0
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
    """The images of a split (train, val): from `Image_subsets` if it is there, as the paper, else from `Image_sets`."""
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
