"""One small valid file of every kind that is read, with its reader and a way to change it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from helpers.mutation import mutated, mutated_mat, mutated_zip
from neural_mesh.data.downloads import read_origin
from neural_mesh.data.kitti import read_labels, read_projection
from neural_mesh.data.pascal3d import read_record
from neural_mesh.data.splits import read_split, read_subset_pickle
from neural_mesh.geometry.cameras import Pose
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh
from neural_mesh.photographs.box_files import read_boxes
from neural_mesh.photographs.calibration import Calibration, load_calibration, save_calibration
from neural_mesh.photographs.evidence import EVIDENCE
from neural_mesh.photographs.results import Results
from neural_mesh.pictures.manifest import read_manifest
from neural_mesh.pictures.pose_files import read_any_poses
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.checkpoints import (
    Checkpoint,
    export_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from neural_mesh.storage.layout import PreparedSet, RawPascal3D, read_list
from neural_mesh.storage.mesh_files import read_off, write_off
from neural_mesh.storage.npz_files import load_numbers
from neural_mesh.storage.pictures import read_photograph, read_picture
from neural_mesh.storage.records import VertexAnnotation, load_annotation, save_annotation
from neural_mesh.storage.results import (
    FeatureSet,
    PoseSet,
    load_config,
    load_features,
    load_poses,
    save_features,
    save_poses,
)
from neural_mesh.storage.timings import load_seconds, record_seconds

PREDICTION = {
    "photo": "a.jpg",
    "object": 0,
    "width": 64,
    "height": 48,
    "box": None,
    "azimuth": 1.0,
    "elevation": 0.1,
    "theta": 0.0,
    "azimuth_deg": 57.3,
    "elevation_deg": 5.7,
    "theta_deg": 0.0,
    "distance": 5.0,
    "focal_px": 3000.0,
    "principal_xy": [30.0, 20.0],
    "pascal3d_distance": 6.0,
    "camera_matrix": np.eye(3, 4).tolist(),
    "mesh": 1,
    "score": 0.5,
    "evidence": dict.fromkeys(EVIDENCE, 0.5),
    "confidence": None,
    "pictures": ["a.png"],
    "source": {"bytes": 1, "modified": 2, "boxes": []},
}
VIEWPOINT = ("azimuth", "elevation", "theta", "distance", "focal", "viewport", "px", "py")


class SampleFile(NamedTuple):
    """A valid file, its reader, and how its bytes are changed."""

    path: Path
    read: Callable[[Path], object]
    change: Callable[[bytes, np.random.Generator], bytes] = mutated


# Kind -> a function that writes the file into a folder.
SAMPLES: dict[str, Callable[[Path], SampleFile]] = {}
# Written for ourselves: broken is as good as absent.
FORGIVEN = ("times", "manifest of pictures", "origin of a download", "predictions")
# Read by the name that they have in their folder.
IN_PLACE = (*FORGIVEN, "SOURCE.json", "settings of predictions")


def kind(name: str) -> Callable:
    """Decorator: the function writes the file of this kind."""

    def register(write: Callable[[Path], SampleFile]) -> Callable[[Path], SampleFile]:
        SAMPLES[name] = write
        return write

    return register


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- data sets of others ----


@kind("KITTI label")
def kitti_label(folder: Path) -> SampleFile:
    car = "Car 0.0 1 0.1 400 150 640 300 1.5 1.6 3.9 1.0 1.65 8.0 1.2"
    nothing = "DontCare -1 -1 -10 5 5 9 9 -1 -1 -1 -1 -1 -1 -1"
    return SampleFile(written(folder / "label.txt", f"{car}\n{nothing}\n"), read_labels)


@kind("KITTI calibration")
def kitti_calibration(folder: Path) -> SampleFile:
    matrices = "P0: 1 0 0 0 0 1 0 0 0 0 1 0\nP2: 700 0 600 40 0 700 170 0.2 0 0 1 0.003\n"
    return SampleFile(written(folder / "calib.txt", matrices), read_projection)


def read_voc_list(path: Path) -> list[str]:
    """An image set of PASCAL VOC, where a raw set has it."""
    raw = RawPascal3D(path.parent / "voc", ("pascal",))
    place = raw.voc_image_set("car", "val")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(path)
    try:
        return read_split(raw, "car", "val").names
    except ValueError as error:
        raise ValueError(str(error).replace(str(place), str(path))) from error


@kind("VOC list")
def voc_list(folder: Path) -> SampleFile:
    names = "2008_000001  1\n2008_000002 -1\n2008_000003  0\n"
    return SampleFile(written(folder / "voc.txt", names), read_voc_list)


@kind("subset pickle")
def subset_pickle(folder: Path) -> SampleFile:
    names = [["n02814533_10002", "n02814533_10003"], ["n02814533_1"]]
    path = written(folder / "a.pkl", pickle.dumps(names, protocol=2))
    return SampleFile(path, read_subset_pickle)


@kind("list")
def list_of_images(folder: Path) -> SampleFile:
    names = "n02814533_10002.JPEG\nn02814533_10003\n" * 5
    return SampleFile(written(folder / "a.txt", names), read_list)


@kind("mat")
def mat(folder: Path) -> SampleFile:
    anchor = {"status": 1.0, "location": np.array([[3.0, 4.0]])}
    car = {
        "class": "car",
        "bbox": np.array([1.0, 1, 60, 40]),
        "cad_index": 1,
        "viewpoint": dict.fromkeys(VIEWPOINT, 1.0),
        "anchors": {"left_front_wheel": anchor},
    }
    record = {"imgsize": np.array([64.0, 48, 3]), "objects": car}
    savemat(folder / "a.mat", {"record": record}, do_compression=True)
    return SampleFile(folder / "a.mat", lambda path: read_record(path, "car"), mutated_mat)


@kind("mat of Python")
def mat_of_python(folder: Path) -> SampleFile:
    view = dict.fromkeys(VIEWPOINT, 1.0)
    car = {"class": "Car", "bbox": [1.0, 1, 60, 40], "cad_index": 1, "viewpoint": [view]}
    record = {"imgsize": [64.0, 48, 3], "objects": [car, car], "mask": csc_matrix(np.eye(5))}
    savemat(folder / "a.mat", {"record": [record]}, do_compression=True)
    return SampleFile(folder / "a.mat", lambda path: read_record(path, "car"), mutated_mat)


@kind("off")
def off(folder: Path) -> SampleFile:
    mesh = cuboid_mesh(cuboid_grid(np.random.default_rng(0).normal(size=(200, 3)), 40))
    write_off(folder / "a.off", mesh)
    return SampleFile(folder / "a.off", read_off)


@kind("off of polygons")
def off_of_polygons(folder: Path) -> SampleFile:
    mesh = "OFF\n# polygons\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 1\n4 0 1 2 3\n3 0 1 2\n"
    return SampleFile(written(folder / "b.off", mesh), read_off)


@kind("off with colours")
def off_with_colours(folder: Path) -> SampleFile:
    vertices = "0 0 0 9 9 9 9\n1 0 0 9 9 9 9\n1 1 0 9 9 9 9\n0 1 1 9 9 9 9\n"
    mesh = f"COFF\n4 2 0\n{vertices}4 0 1 2 3 255 0 0\n3 0 1 2 0.1 0.2 0.3 1\n"
    return SampleFile(written(folder / "c.off", mesh), read_off)


# ---- pictures ----


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@kind("JPEG")
def jpeg(folder: Path) -> SampleFile:
    picture().save(folder / "a.JPEG", "JPEG")
    return SampleFile(folder / "a.JPEG", read_picture)


@kind("PNG")
def png(folder: Path) -> SampleFile:
    picture().save(folder / "a.png")
    return SampleFile(folder / "a.png", read_picture)


@kind("photograph JPEG")
def photograph_jpeg(folder: Path) -> SampleFile:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    picture().save(folder / "photo.jpg", exif=exif)
    return SampleFile(folder / "photo.jpg", read_photograph)


@kind("photograph TIFF")
def photograph_tiff(folder: Path) -> SampleFile:
    picture().save(folder / "photo.tif", compression="tiff_lzw")
    return SampleFile(folder / "photo.tif", read_photograph)


@kind("photograph WEBP")
def photograph_webp(folder: Path) -> SampleFile:
    picture().save(folder / "photo.webp")
    return SampleFile(folder / "photo.webp", read_photograph)


# ---- arrays ----


def saved_annotation(folder: Path) -> Path:
    six, two = np.arange(6.0), np.arange(2.0)
    annotation = VertexAnnotation(
        name="a",
        box=six,
        box_ori=six,
        box_obj=six,
        cropped_kp_list=np.ones((5, 2)),
        visible=np.ones(5),
        pose=Pose(1.0, 1.0, 1.0, 5.0, two),
        focal=1.0,
        viewport=3000.0,
        height=48,
        width=64,
        cad_index=1,
        bbox=np.arange(4.0),
        geometry="exact",
        crop_scale=1.0,
        crop_offset=two,
        occ_mask=np.ones((48, 64), bool),
        kp_weights=np.ones(5),
    )
    save_annotation(folder / "a.npz", annotation)
    return folder / "a.npz"


@kind("annotation")
def annotation(folder: Path) -> SampleFile:
    path = saved_annotation(folder)
    return SampleFile(path, lambda path: load_annotation(path, VertexAnnotation), mutated_zip)


@kind("numbers of an annotation")
def numbers_of_an_annotation(folder: Path) -> SampleFile:
    path = saved_annotation(folder)
    return SampleFile(
        path, lambda path: load_numbers(path, ["cad_index"], ["objects"]), mutated_zip
    )


@kind("poses")
def poses(folder: Path) -> SampleFile:
    column, whole = np.array([0.5, 1.0]), np.array([1, 2])
    pose = Pose(column, column, column, column)
    content = PoseSet("car", "", np.array(["a", "b"]), pose, column, whole, whole, {"k": 1})
    save_poses(folder / "poses.npz", content)
    return SampleFile(folder / "poses.npz", load_poses, mutated_zip)


def saved_features(folder: Path) -> Path:
    maps = {name: np.ones((8, 3, 4), np.float32) for name in "ab"}
    banks, clutter = {1: np.ones((5, 8))}, {1: np.ones((4, 8))}
    save_features(
        folder / "features.npz", FeatureSet(maps, banks, clutter, {1: ["a", "b"]}, {"k": 1})
    )
    return folder / "features.npz"


@kind("features")
def features(folder: Path) -> SampleFile:
    return SampleFile(saved_features(folder), load_features, mutated_zip)


@kind("settings of features")
def settings_of_features(folder: Path) -> SampleFile:
    return SampleFile(saved_features(folder), load_config, mutated_zip)


def small_checkpoint() -> Checkpoint:
    config = TrainConfig(num_clutter_image=1, num_clutter_group=4)
    mesh = Mesh(np.ones((5, 3)), np.array([[0, 1, 2], [2, 3, 4]], np.int32))
    weights = {"net.weight": torch.ones(4, 3), "net.bias": torch.ones(4)}
    return Checkpoint(weights, [torch.ones(9, 8)], [mesh], config, 3)


@kind("checkpoint")
def checkpoint(folder: Path) -> SampleFile:
    save_checkpoint(folder / "a.pth", small_checkpoint())
    return SampleFile(folder / "a.pth", load_checkpoint, mutated_zip)


@kind("safetensors")
def safetensors(folder: Path) -> SampleFile:
    export_checkpoint(folder / "a.safetensors", small_checkpoint())
    return SampleFile(folder / "a.safetensors", load_checkpoint)


# ---- tables and JSON ----


@kind("boxes csv")
def boxes_csv(folder: Path) -> SampleFile:
    boxes = "file,x0,y0,x1,y1\na.jpg,1,2,3,4\nb.jpg,5.5,6,7,8\n"
    return SampleFile(written(folder / "boxes.csv", boxes), read_boxes)


@kind("boxes json")
def boxes_json(folder: Path) -> SampleFile:
    boxes = {"a.jpg": [1, 2, 3, 4], "b.jpg": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    return SampleFile(written(folder / "boxes.json", json.dumps(boxes)), read_boxes)


@kind("poses csv")
def poses_csv(folder: Path) -> SampleFile:
    table = "name,azimuth_deg,elevation_deg,theta_deg,distance,mesh\na,1,2,3,5,1\nb,4,5,6,,2\n"
    path = written(folder / "poses.csv", table)
    return SampleFile(path, lambda path: read_any_poses(path, "car", ""))


@kind("confidence")
def confidence(folder: Path) -> SampleFile:
    numbers = (0.5, 1.0), (1.0, 2.0), (0.1, 0.2, 0.3), 40, 0.5, 0.2, 0.05
    made_from = {"checkpoint": "1"}, {"images": "all"}
    path = folder / "confidence.json"
    save_calibration(path, Calibration(("a", "b"), *numbers, *made_from))
    return SampleFile(path, lambda path: load_calibration(path).confidence(np.ones((3, 2))))


@kind("SOURCE.json")
def source_json(folder: Path) -> SampleFile:
    source = {
        "split": "Image_sets/car_imagenet_val.txt",
        "geometry": "paper",
        "images": 2,
        "occluded": {"seed": 1, "level": "FGL1_BGL1"},
    }
    path = written(folder / "lists/car/SOURCE.json", json.dumps(source))
    return SampleFile(path, lambda path: PreparedSet(path.parents[2]).made_from("car"))


@kind("times")
def times(folder: Path) -> SampleFile:
    record_seconds(folder / "seconds.json", 1.5, 3, "images")
    return SampleFile(folder / "seconds.json", load_seconds)


@kind("manifest of pictures")
def manifest_of_pictures(folder: Path) -> SampleFile:
    manifest = {"pictures": ["a.png"], "of": "1"}
    path = written(folder / "manifest.json", json.dumps(manifest))
    return SampleFile(path, lambda path: read_manifest(path.parent))


@kind("origin of a download")
def origin_of_a_download(folder: Path) -> SampleFile:
    origin = {"address": "http://a", "validator": "1", "total": 10}
    path = written(folder / ".a.zip.fetched.json", json.dumps(origin))
    return SampleFile(path, lambda path: read_origin(path.with_suffix(""), "http://a"))


def read_predictions(path: Path) -> list[dict]:
    """What predict.py does with the results of an earlier run."""
    return Results(path.parent, {"checkpoint": "1"}, overwrite=False).finish(None, [])


def saved_predictions(folder: Path) -> Path:
    written(folder / "found/poses.jsonl", (json.dumps(PREDICTION) + "\n") * 2)
    written(folder / "found/settings.json", json.dumps({"checkpoint": "1"}))
    return folder / "found"


@kind("predictions")
def predictions(folder: Path) -> SampleFile:
    return SampleFile(saved_predictions(folder) / "poses.jsonl", read_predictions)


@kind("settings of predictions")
def settings_of_predictions(folder: Path) -> SampleFile:
    return SampleFile(saved_predictions(folder) / "settings.json", read_predictions)
