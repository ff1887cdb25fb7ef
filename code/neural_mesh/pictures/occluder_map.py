"""Occluder maps, which label the cells of a feature map as object, occluded or background.

The paper shows them in Figure 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neural_mesh.compare.rasteriser import rasterise_poses
from neural_mesh.compare.scene import Scene
from neural_mesh.geometry.cameras import Pose
from neural_mesh.pictures.edges import label_edges
from neural_mesh.pictures.mesh_overlay import camera_of_pose

# Labels of cells, which index the tables below.
BACKGROUND = 0
OBJECT = 1
OCCLUDED = 2
LABEL_NAMES = ("background", "object", "occluded")
# The paper's yellow, green and red. Their relative luminances (WCAG 2) are 0.76, 0.27 and 0.07,
# each less than half the one before, so that they differ in grey prints and for colour-blind
# readers.
LABEL_COLOURS = np.array([(255, 226, 92), (44, 160, 96), (150, 0, 34)], np.float64)
LABEL_OPACITY = np.array([0.62, 0.62, 0.72])
# Weights of red, green and blue in the grey version of an image (ITU-R BT.601).
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])


def occluder_map(scene: Scene, scores: NDArray, clutter: NDArray, pose: Pose) -> NDArray[np.int8]:
    """Label the cells [H, W] of a feature map in a pose (paper, qualitative results).

    scores [P, V]: similarity of each cell with each vertex. clutter [P]: similarity of each cell
    with the clutter. On the mesh a cell is OBJECT when its interpolated score exceeds that of
    the clutter, otherwise OCCLUDED; off the mesh it is BACKGROUND.
    """
    centre, object_from_cv_cam = camera_of_pose(pose)
    face, _, bary = rasterise_poses(scene, centre[None], object_from_cv_cam[None])
    # Scores of the three corners of the triangle that each cell sees, by their weights. Off the
    # mesh `face` is -1, which looks up the last triangle; those cells become BACKGROUND below.
    face = face.ravel()
    corner_scores = np.take_along_axis(np.asarray(scores), scene.faces[face], axis=1)
    object_score = (corner_scores * bary.reshape(-1, 3)).sum(-1)
    on_mesh = np.where(object_score > clutter, OBJECT, OCCLUDED)
    labels = np.where(face >= 0, on_mesh, BACKGROUND)
    return labels.reshape(scene.camera.map_hw).astype(np.int8)


def colour_occluder_map(image: NDArray[np.uint8], labels: NDArray) -> NDArray[np.uint8]:
    """Colour a grey version of the image [H, W, 3] by the labels [h, w] of its cells.

    Occluded cells are also hatched. Raises ValueError when the image is not a whole number of
    pixels per cell.
    """
    size_hw = tuple(image.shape[:2])
    cell = size_hw[0] // labels.shape[0]
    if (labels.shape[0] * cell, labels.shape[1] * cell) != size_hw:
        raise ValueError(
            f"an image of {size_hw} pixels does not divide into {labels.shape} square cells"
        )
    # Colours over a pale, grey image.
    label = labels.repeat(cell, 0).repeat(cell, 1)
    grey = (image @ GREY_WEIGHTS)[..., None]
    opacity = LABEL_OPACITY[label][..., None]
    picture = (1.0 - opacity) * (100.0 + 0.6 * grey) + opacity * LABEL_COLOURS[label]
    # Light diagonals over occluded cells, and dark lines between labels.
    row, col = np.indices(label.shape)
    hatch = (label == OCCLUDED) & ((row + col) % cell < max(1, cell // 8))
    picture[hatch] += 0.4 * (255.0 - picture[hatch])
    picture[label_edges(label)] *= 0.35
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)
