"""Annotations of the sample data in PASCAL3D+'s format, MATLAB's nested `record` struct."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neural_mesh.categories import category_settings
from neural_mesh.data.mat_files import write_mat
from neural_mesh.sample.drawing import VISIBLE, Sample
from neural_mesh.sample.viewpoints import FOCAL, VIEWPORT, Viewpoint

DATABASE = "SamplePASCAL3D+"
DESCRIPTION = b"MATLAB 5.0 MAT-file, SamplePASCAL3D+ (procedural)"
NOTHING = np.zeros((0, 0))


def write_record(path: Path, sample: Sample, category: str, name: str) -> None:
    """Write the annotation of a picture; the same picture gives the same bytes."""
    write_mat(path, {"record": record_of(sample, category, name)}, DESCRIPTION)


def record_of(sample: Sample, category: str, name: str) -> dict:
    """Make the `record` struct of a picture."""
    height, width, channels = sample.image.shape
    return {
        "folder": DATABASE,
        "filename": f"{name}.JPEG",
        "source": {"database": "", "annotation": "", "image": ""},
        "database": f"{DATABASE} (procedural)",
        "imgsize": np.array([width, height, channels], dtype=np.float64),
        "size": {"width": width, "height": height, "depth": channels},
        "segmented": 0,
        "imgname": f"{name}.JPEG",
        "objects": _object_of(sample, category),
    }


def _object_of(sample: Sample, category: str) -> dict:
    """Make the struct of the object in the picture."""
    x0, y0, x1, y1 = sample.bbox_xyxy
    # Only visible key points have a location.
    anchors = {}
    for keypoint in category_settings(category).keypoints:
        status, xy = sample.keypoints[keypoint]
        location = np.array([xy]) if status == VISIBLE else NOTHING
        anchors[keypoint] = {"location": location, "status": status}
    visible = sum(status == VISIBLE for status, _ in sample.keypoints.values())
    return {
        "class": category,
        "view": "",
        "truncated": int(sample.truncated),
        "occluded": 0,
        "difficult": 0,
        "label": category,
        "orglabel": category,
        "bbox": np.array([x0, y0, x1, y1]),
        "bndbox": {"xmin": x0, "ymin": y0, "xmax": x1, "ymax": y1},
        "polygon": NOTHING,
        "mask": NOTHING,
        "hasparts": 0,
        "part": NOTHING,
        "point": NOTHING,
        "hasactions": 0,
        "actions": NOTHING,
        "anchors": anchors,
        "viewpoint": _viewpoint_of(sample.viewpoint, visible),
        "cad_index": sample.cad_index,
        "subtype": sample.subtype,
        "sublabel": sample.cad_index,
        "subindex": sample.cad_index,
    }


def _viewpoint_of(view: Viewpoint, visible: int) -> dict:
    """Make the struct of a viewpoint, in degrees. visible: number of visible key points."""
    return {
        "azimuth_coarse": float(round(view.azimuth_deg / 45) * 45 % 360),
        "elevation_coarse": float(round(view.elevation_deg / 30) * 30),
        "azimuth": view.azimuth_deg,
        "elevation": view.elevation_deg,
        "distance": view.distance,
        "focal": FOCAL,
        "px": view.px,
        "py": view.py,
        "theta": view.theta_deg,
        "error": 0.0,
        "interval_azimuth": 0.0,
        "interval_elevation": 0.0,
        "num_anchor": float(visible),
        "viewport": VIEWPORT,
    }
