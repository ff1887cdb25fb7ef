"""The files that pass between stages: Annotation -> VertexAnnotation, FeatureSet, PoseSet. No file holds pickled objects."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_mesh.storage.files import atomic_path, csv_text, plain_name, read_json, write_text

MAX_UNPACKED_BYTES = 2**28  # of a compressed npz file; an occluder mask of 12 megapixels has 2**24


def load_npz(
    path: Path, required: Sequence[str], only: Sequence[str] | None = None
) -> dict[str, NDArray]:
    """All arrays of an npz file, or those named in `only`.

    Raises ValueError, naming file and key, when it is broken, pickled, lacks a required one, or claims more than it
    holds (compressed members may grow to MAX_UNPACKED_BYTES).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"not found: {path}")
    key, room = "", max(MAX_UNPACKED_BYTES, path.stat().st_size)
    arrays: dict[str, NDArray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if only is None or key in only:
                    room -= member.file_size
                    arrays[key] = _read_member(archive, member, room)
    except Exception as error:  # a broken archive may raise nearly anything
        at = f" at {key[:60]!r}" if key else ""
        raise ValueError(
            f"{path}: cannot be read as npz without pickled objects{at} ({str(error)[:200]})"
        ) from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}")
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, room: int) -> NDArray:
    """One array, whose header is checked before anything is allocated for it."""
    if room < 0:
        raise ValueError(f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    content = archive.read(member)
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, by_columns, dtype = read_header(file, max_header_size=10_000)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    if (
        dtype.kind not in "biufUS"
        or min(shape, default=0) < 0
        or math.prod(shape) * max(dtype.itemsize, 1) > len(content)
    ):
        raise ValueError(f"claims {dtype} {shape}, which {len(content):,} bytes cannot hold")
    array = np.ndarray(shape, dtype, content, file.tell(), order="F" if by_columns else "C").copy(
        order="K"
    )
    if dtype.kind == "U" and array.size and dtype.itemsize:
        codes = np.ascontiguousarray(array).reshape(-1).view(np.dtype(f"{dtype.byteorder}u4"))
        if codes.max() > sys.maxunicode:
            raise ValueError("a text of characters that do not exist")
    return array


def load_config(path: Path) -> dict:
    """Only the settings of a file of poses or feature maps."""
    return _config(path, load_npz(path, ["config"], only=("config",))["config"])


def load_numbers(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, float]:
    """Only these numbers of an annotation; ValueError, naming file and key, when one is none."""
    arrays = load_npz(path, required, only=(*required, *optional))
    for key, value in arrays.items():
        if value.shape or value.dtype.kind not in "biuf" or not np.isfinite(value):
            raise ValueError(f"{path}: {key} is {value.dtype} {value.shape}, not a number")
    return {key: value.item() for key, value in arrays.items()}


def save_npz(path: Path, arrays: Mapping[str, object]) -> None:
    """Write arrays as npz, whole or not at all, with the same bytes for the same content."""
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for key, value in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(
                buffer, np.ascontiguousarray(value).reshape(np.shape(value)), allow_pickle=False
            )
            archive.writestr(
                zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue()
            )


@dataclass(frozen=True)
class Annotation:
    """The pose of one object and its crop, with the reference's keys. Angles in radians.

    box, box_ori, box_obj: (row0, row1, col0, col1, height, width), see neural_mesh.geometry.boxes. principal (x, y), height, width,
    bbox (x0, y0, x1, y1) and distance belong to the original image. crop = crop_scale * original + crop_offset, on
    (row, col), is the map that the pixels follow; both and `geometry` are additions to the reference's keys.
    occ_mask, bool [height, width] in the original image, is there only for occluded images; objects, how many the
    image has, only where it has several.
    """

    name: str
    box: NDArray
    box_ori: NDArray
    box_obj: NDArray
    cropped_kp_list: NDArray  # [K, 2] (row, col) in the crop
    visible: NDArray  # [K]
    azimuth: float
    elevation: float
    theta: float
    distance: float
    focal: float
    viewport: float
    principal: NDArray
    height: int
    width: int
    cad_index: int
    bbox: NDArray
    geometry: str
    crop_scale: float
    crop_offset: NDArray
    occ_mask: NDArray | None = None
    objects: int | None = None

    @property
    def crop_hw(self) -> tuple[int, int]:
        return int(self.box_obj[4]), int(self.box_obj[5])


@dataclass(frozen=True)
class VertexAnnotation(Annotation):
    """An annotation whose key points are the vertices of a mesh: positions in the crop [V, 2], seen or not [V].

    occluder_subtracted: 1, only where vertices behind the occluder count as hidden.
    """

    kp_weights: NDArray | None = None  # [V]
    occluder_subtracted: int | None = None


_TEXT = ("name", "geometry")
_WHOLE = ("height", "width", "cad_index", "objects", "occluder_subtracted")
_OPTIONAL = ("occ_mask", "objects", "occluder_subtracted")
_SHAPES = {
    "box": (6,),
    "box_ori": (6,),
    "box_obj": (6,),
    "principal": (2,),
    "bbox": (4,),
    "crop_offset": (2,),
}
_RANKS = dict.fromkeys(_SHAPES, 1) | {
    "cropped_kp_list": 2,
    "visible": 1,
    "kp_weights": 1,
    "occ_mask": 2,
}


def save_annotation(path: Path, annotation: Annotation) -> None:
    """Write an annotation of either kind."""
    values = {field.name: getattr(annotation, field.name) for field in fields(annotation)}
    save_npz(path, {key: value for key, value in values.items() if value is not None})


def load_annotation(path: Path, kind: type[Annotation] = Annotation) -> Annotation:
    """Read an annotation; ValueError, naming file and key, when a value is missing or of the wrong shape."""
    names = [field.name for field in fields(kind)]
    arrays = load_npz(path, [name for name in names if name not in _OPTIONAL])
    values: dict[str, object] = {}
    for name in names:
        value = arrays.get(name)
        if value is not None:
            values[name] = _annotation_value(path, name, value)
    if values["cropped_kp_list"].shape != (*values["visible"].shape, 2):
        raise ValueError(
            f"{path}: cropped_kp_list has shape {values['cropped_kp_list'].shape} but visible {values['visible'].shape}"
        )
    return kind(**values)


def _annotation_value(path: Path, name: str, value: NDArray) -> object:
    kinds = "US" if name in _TEXT else "biuf"
    if value.dtype.kind not in kinds:
        raise ValueError(f"{path}: {name} is of type {value.dtype}")
    rank, expected = _RANKS.get(name, 0), _SHAPES.get(name)
    if value.ndim != rank or (expected and value.shape != expected):
        raise ValueError(
            f"{path}: {name} has shape {value.shape}, expected {expected or f'{rank} axes'}"
        )
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{path}: {name} is not finite")
    if rank:
        return value
    return str(value) if name in _TEXT else int(value) if name in _WHOLE else float(value)


@dataclass(frozen=True)
class PoseSet:
    """Predicted poses of one category: names [B] and, per image, radians, distance, loss and chosen start.

    config: everything that led to them (solver settings, checkpoint fingerprint), as plain JSON values.
    principal_xy [B, 2]: where the object's origin falls on the feature map, in cells; None where the solver kept it at
    the config's `principal_xy_cells` (all but 6D).
    """

    category: str
    level: str
    names: NDArray  # [B] str
    azimuth: NDArray
    elevation: NDArray
    theta: NDArray
    distance: NDArray
    loss: NDArray
    start: NDArray  # [B] index into the start grid
    mesh: NDArray  # [B] 1-based
    config: dict
    principal_xy: NDArray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def angles(self) -> NDArray:
        """Azimuth, elevation and theta [B, 3] in radians."""
        return np.stack([self.azimuth, self.elevation, self.theta], axis=-1)

    @property
    def predicts_subtype(self) -> bool:
        """Whether `mesh` was found by the solver among one cuboid per CAD model, rather than annotated."""
        return (
            self.config.get("mesh_d") == "multi"
            and self.config.get("solve", {}).get("subtype") == "predicted"
        )

    def rows(self) -> Iterator[dict[str, object]]:
        """One mapping per image, angles in degrees."""
        for i in range(len(self)):
            yield {
                "name": str(self.names[i]),
                "azimuth_deg": round(float(np.rad2deg(self.azimuth[i])), 4),
                "elevation_deg": round(float(np.rad2deg(self.elevation[i])), 4),
                "theta_deg": round(float(np.rad2deg(self.theta[i])), 4),
                "distance": round(float(self.distance[i]), 5),
                "loss": round(float(self.loss[i]), 6),
                "start": int(self.start[i]),
                "mesh": int(self.mesh[i]),
            } | self._place(i)

    def _place(self, i: int) -> dict[str, object]:
        if self.principal_xy is None:
            return {}
        x, y = self.principal_xy[i].tolist()
        return {"principal_x": round(x, 3), "principal_y": round(y, 3)}


_POSE_ARRAYS = ("names", "azimuth", "elevation", "theta", "distance", "loss", "start", "mesh")


def save_poses(path: Path, poses: PoseSet, with_csv: bool = True) -> None:
    """Write poses as npz and, for reading by eye, as csv (degrees) beside it: before it, since the npz says that all is done."""
    arrays = {key: getattr(poses, key) for key in _POSE_ARRAYS}
    header = {
        "category": poses.category,
        "level": poses.level,
        "config": json.dumps(poses.config, sort_keys=True),
    }
    if poses.principal_xy is not None:
        arrays["principal_xy"] = poses.principal_xy
    if with_csv:
        columns = [
            "name",
            "azimuth_deg",
            "elevation_deg",
            "theta_deg",
            "distance",
            "loss",
            "start",
            "mesh",
        ]
        columns += [] if poses.principal_xy is None else ["principal_x", "principal_y"]
        lines = [[row[column] for column in columns] for row in poses.rows()]
        write_text(Path(path).with_suffix(".csv"), csv_text([columns, *lines]))
    save_npz(path, {**header, **arrays})


def load_poses(path: Path) -> PoseSet:
    """Read poses; ValueError when the arrays do not belong together."""
    arrays = load_npz(path, ["category", "level", "config", *_POSE_ARRAYS])
    shapes = {key: arrays[key].shape for key in _POSE_ARRAYS}
    if set(shapes.values()) != {(len(arrays["names"]) if arrays["names"].ndim else 0,)}:
        raise ValueError(f"{path}: arrays of different lengths {shapes}")
    principal = arrays.get("principal_xy")
    if principal is not None and (
        principal.shape != (len(arrays["names"]), 2) or principal.dtype.kind != "f"
    ):
        raise ValueError(f"{path}: principal_xy is {principal.dtype} {principal.shape}")
    for key in _POSE_ARRAYS:
        if arrays[key].dtype.kind not in (
            "U" if key == "names" else "iu" if key in ("start", "mesh") else "f"
        ):
            raise ValueError(f"{path}: {key} is of type {arrays[key].dtype}")
    for name in arrays["names"].tolist():
        plain_name(name, path)
    return PoseSet(
        str(arrays["category"]),
        str(arrays["level"]),
        *(arrays[key] for key in _POSE_ARRAYS),
        config=_config(path, arrays["config"]),
        principal_xy=principal,
    )


@dataclass(frozen=True)
class FeatureSet:
    """Feature maps of one category with the bank that they are compared with, in the reference's keys.

    maps: name -> [C, H, W]. vertex_banks and clutter_banks: mesh number -> [V, C] and [N, C]. names: mesh number ->
    the images that are compared with it.
    """

    maps: dict[str, NDArray]
    vertex_banks: dict[int, NDArray]
    clutter_banks: dict[int, NDArray]
    names: dict[int, list[str]]
    config: dict


def save_features(path: Path, features: FeatureSet) -> None:
    """Write feature maps with the reference's keys, and `config`."""
    arrays: dict[str, object] = {"config": json.dumps(features.config, sort_keys=True)}
    for mesh, bank in features.vertex_banks.items():
        arrays[f"memory_mesh{mesh:02d}"] = bank
        arrays[f"clutter_mesh{mesh:02d}"] = features.clutter_banks[mesh]
        arrays[f"names_mesh{mesh:02d}"] = np.array(features.names[mesh], dtype=str)
    save_npz(path, {**arrays, **features.maps})


def load_features(path: Path) -> FeatureSet:
    """Read feature maps, ours or the reference's."""
    arrays = load_npz(path, [])
    numbers = [key.removeprefix("memory_mesh") for key in arrays if key.startswith("memory_mesh")]
    meshes = sorted(int(number) for number in numbers if re.fullmatch("[0-9]{2}", number))
    if not meshes:
        raise ValueError(f"{path}: holds no memory_mesh01, it is not a feature file")
    lacking = [
        key
        for mesh in meshes
        for key in (f"clutter_mesh{mesh:02d}", f"names_mesh{mesh:02d}")
        if key not in arrays
    ]
    if lacking:
        raise ValueError(f"{path}: lacks {lacking[0]}")
    names = {mesh: [str(n) for n in arrays[f"names_mesh{mesh:02d}"].reshape(-1)] for mesh in meshes}
    missing = [n for group in names.values() for n in group if n not in arrays]
    if missing:
        raise ValueError(
            f"{path}: names {len(missing)} images without a feature map, {missing[0]} first"
        )
    ranks = {f"{kind}_mesh{mesh:02d}": 2 for mesh in meshes for kind in ("memory", "clutter")}
    for key, rank in (ranks | {n: 3 for group in names.values() for n in group}).items():
        if arrays[key].ndim != rank or arrays[key].dtype.kind != "f":
            raise ValueError(
                f"{path}: {key} is {arrays[key].dtype} {arrays[key].shape}, expected numbers along {rank} axes"
            )
    return FeatureSet(
        {n: arrays[n] for group in names.values() for n in group},
        {mesh: arrays[f"memory_mesh{mesh:02d}"] for mesh in meshes},
        {mesh: arrays[f"clutter_mesh{mesh:02d}"] for mesh in meshes},
        names,
        _config(path, arrays["config"]) if "config" in arrays else {},
    )


def record_seconds(
    path: Path, seconds: float, items: int, unit: str, resumed: bool = False, settings: str = ""
) -> None:
    """Note how long a stage took, beside the results and no part of them. `items` of `unit` were worked on.

    Called only when there was work, so that a finished stage keeps its time. resumed: the run went on with an earlier
    one, whose noted time and items are added. settings: a digest of what the results depend on; the time of a run with
    others is not added.
    """
    path = Path(path)
    if (
        resumed
        and path.is_file()
        and (earlier := load_seconds(path))
        and earlier["settings"] == settings
    ):
        seconds, items = seconds + earlier["seconds"], items + earlier["items"]
    content = {
        "seconds": round(seconds, 2),
        "items": items,
        "unit": unit,
        "resumed": resumed,
        "settings": settings,
    }
    write_text(path, json.dumps(content, sort_keys=True) + "\n")


def load_seconds(path: Path) -> dict:
    """What `record_seconds` noted; empty when the file is broken."""
    try:
        found = read_json(path)
        kinds = {"seconds": float, "items": int, "unit": str, "resumed": bool}
        return {key: kind(found[key]) for key, kind in kinds.items()} | {
            "settings": str(found.get("settings", ""))
        }
    except (ValueError, KeyError, TypeError, OverflowError):
        return {}


def _config(path: Path, stored: NDArray) -> dict:
    try:
        config = json.loads(str(stored))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: config is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: config is not a set of named values")
    return config
