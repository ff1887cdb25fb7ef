"""What several answers about one object agree on, and what tells right from wrong poses.

A mesh's loss hardly tells which of several crops shows it as it was trained on, so all answers
vote. How they vote, how much of the object is recognised, and how much worse other views explain
it are the evidence that `calibration` makes a confidence of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neural_mesh.compare.rasteriser import rasterise_poses
from neural_mesh.compare.scene import make_scene
from neural_mesh.geometry.cameras import MapCamera, Pose, geodesic_distance, mean_rotation
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.photographs.poses import Candidates
from neural_mesh.pictures.mesh_overlay import camera_of_pose

EVIDENCE = ("similarity", "margin", "agreement")
VOTES_WITHIN = math.radians(40.0)  # answers vote for those nearer than this, the more the nearer
AGREES_WITHIN = math.radians(30.0)  # of the answer with the most votes; nearer ones enter the mean
SCORE_WEIGHT = 8.0  # a vote weighs exp(this times its score)
RIVAL = math.radians(60.0)  # views whose rotation is further than this from the pose's are others
OPPOSED = math.pi / 2  # answers further than this from the mean do not agree with it at all


@dataclass(frozen=True)
class Election:
    """The outcome of a vote of K answers.

    rotation: the mean [3, 3] of the `agreeing` [K] ones. agreement: 0 (none) to 1 (all the same).
    """

    rotation: NDArray[np.float64]
    agreeing: NDArray[np.bool_]
    agreement: float


def elect(candidates: Candidates) -> Election:
    """The mean rotation of the candidates near the one with most votes."""
    # Answers near each other support each other, those that fit well the more.
    rotation = candidates.pose.pascal_cam_from_object
    weight = np.exp(SCORE_WEIGHT * (1 - candidates.loss))
    apart = geodesic_distance(rotation[:, None], rotation[None])
    votes = np.maximum(1 - apart / VOTES_WITHIN, 0) @ weight
    agreeing = apart[int(votes.argmax())] <= AGREES_WITHIN
    # The one with most support is not the best: neighbours average their errors out.
    mean = mean_rotation(rotation[agreeing], weight[agreeing])
    disagreement = np.minimum(geodesic_distance(rotation, mean), OPPOSED) / OPPOSED
    agreement = 1 - float(weight @ disagreement / weight.sum())
    return Election(mean, agreeing, agreement)


def similarity(loss: float, coverage: float) -> float:
    """What the object has before the clutter, per cell of it. coverage: see `mesh_coverage`."""
    return max(1 - loss, 0.0) / coverage


def margin(
    rotation: NDArray[np.float64], views: NDArray[np.float64], view_losses: NDArray[np.float64]
) -> float:
    """How much worse the best of the views [N, 3, 3] far from a rotation [3, 3] explains a crop.

    view_losses: [N]. In units of the score of the best view.
    """
    far = geodesic_distance(views, rotation) > RIVAL
    lead = view_losses[far].min() - view_losses[~far].min()
    best_score = max(1 - float(view_losses.min()), 1e-6)
    return float(lead / best_score)


def mesh_coverage(mesh: Mesh, camera: MapCamera, pose: Pose) -> float:
    """Share of a crop's cells that see the mesh, at least one cell.

    camera: of the feature map; the principal point is that of the pose, in cells.
    """
    # The object lies where the optical axis of its own camera falls.
    x, y = pose.principal_xy
    scene = make_scene(mesh, replace(camera, principal_xy=(float(x), float(y))))
    centre, rotation = camera_of_pose(pose)
    face, _, _ = rasterise_poses(scene, centre[None], rotation[None])
    return max(float((face >= 0).mean()), 1 / camera.pixels)
