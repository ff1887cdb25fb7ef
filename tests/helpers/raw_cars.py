"""Small raw sets of cars in the layout of PASCAL3D+, with annotations of any content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from neural_mesh.geometry.meshes import published_cuboid
from neural_mesh.stages.prepare_images import PreparationOptions, prepare_images
from neural_mesh.storage.layout import RawPascal3D
from neural_mesh.storage.mesh_files import write_off

VIEW = {
    "azimuth": 30.0,
    "elevation": 10.0,
    "theta": 2.0,
    "distance": 6.0,
    "focal": 1.0,
    "viewport": 3000.0,
    "px": 50.0,
    "py": 40.0,
}


def an_object(name: str = "car", **changes: object) -> dict:
    """An object of a record; changes to its viewpoint, or to itself. None deletes a field."""
    view = VIEW | {key: value for key, value in changes.items() if key in VIEW}
    whole = {
        "class": name,
        "bbox": np.array([20.0, 20.0, 80.0, 60.0]),
        "cad_index": 1,
        "anchors": {"wheel": {"status": 2}},
        "viewpoint": {key: value for key, value in view.items() if value is not None},
    }
    whole |= {key: value for key, value in changes.items() if key not in VIEW}
    return {key: value for key, value in whole.items() if value is not None}


def write_mat(path: Path, *objects: dict, size: tuple = (100, 80, 3)) -> Path:
    """A PASCAL3D+ annotation with any number of objects."""
    keys = sorted({key for an_object in objects for key in an_object})
    stacked = np.empty((1, len(objects)), dtype=[(key, object) for key in keys])
    for i, an_object in enumerate(objects):
        for key in keys:
            stacked[0, i][key] = an_object.get(key, np.zeros((0, 0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"record": {"imgsize": np.array(size, float), "objects": stacked}})
    return path


def write_cars(
    root: Path, names: tuple[str, ...] = ("a", "b", "c"), split: str = "val"
) -> RawPascal3D:
    """A raw set of good cars whose list is an official image set; pictures of 100 x 80 pixels."""
    raw = RawPascal3D(root)
    picture = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    write_off(raw.cad_folder("car") / "01.off", published_cuboid("car"))
    raw.image("car", "x").parent.mkdir(parents=True)
    for name in names:
        write_mat(raw.annotation("car", name), an_object())
        Image.fromarray(picture).save(raw.image("car", name), "JPEG")
    raw.image_set("car", split).parent.mkdir()
    raw.image_set("car", split).write_text("".join(f"{name}\n" for name in names))
    return raw


def prepare_cars(raw: Path, out: Path, split: str = "val", **options: object) -> None:
    """Prepare a set of cars in one process."""
    prepare_images(PreparationOptions(raw, out, split, ("car",), workers="1", **options))
