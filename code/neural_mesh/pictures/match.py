"""The solver's view of one image, computed again: the neural mesh and the features' scores."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_mesh.compare.scene import Scene, Target, make_scene, score_target
from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.cameras import Pose
from neural_mesh.pictures.landscape import losses_of
from neural_mesh.pictures.occluder_map import occluder_map
from neural_mesh.pictures.solved import SolvedSet

# The saved loss and the one computed again may differ by this much; half precision on a GPU stays
# below it.
LOSS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Match:
    """One image as the solver compared it with the mesh, on the CPU.

    compared: scores with or without the clutter, by the solver's settings. vertex_scores [P, V],
    clutter_scores [P]: similarity of each cell with each vertex and with the clutter. features
    [1, C, H, W], bank [V, C], clutter [C]: what the scores are computed from.
    """

    scene: Scene
    compared: Target
    vertex_scores: NDArray
    clutter_scores: NDArray
    features: Tensor
    bank: Tensor
    clutter: Tensor

    def occluder_map(self, pose: Pose) -> NDArray:
        """Label the cells [H, W] of the feature map in a pose."""
        return occluder_map(self.scene, self.vertex_scores, self.clutter_scores, pose)

    def loss(self, pose: Pose) -> float:
        """Compute the loss in a pose, by the solver's settings."""
        return float(losses_of(self.scene, self.compared, [pose])[0])

    def moved_to(self, principal_xy: NDArray) -> Match:
        """Copy the match with the object's origin at another place [2] of the map, in cells.

        Only 6D poses move the origin.
        """
        camera = replace(self.scene.camera, principal_xy=tuple(principal_xy.tolist()))
        return replace(self, scene=replace(self.scene, camera=camera))


def match_image(solved: SolvedSet, i: int) -> Match:
    """Compute the neural mesh and the scores of image i again from its crop."""
    config = solved.poses.config
    network = solved.network
    number = int(solved.poses.mesh[i])
    # The solver also had the features of the crop at the network's scale.
    crop = read_crop(solved.crop_file(i), config["image_scale"])
    images = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]
    features = network.features(images).cpu()
    bank, clutter = (tensor.cpu() for tensor in network.banks(number))
    target = score_target(features, bank, clutter)
    # Occluder maps need the clutter's scores, even where the solver ignored them.
    assert target.scores is not None and target.clutter is not None
    return Match(
        scene=make_scene(network.mesh(number), solved.camera(i)),
        compared=target if config["solve"]["clutter"] else replace(target, clutter=None),
        vertex_scores=target.scores[0].numpy(),
        clutter_scores=target.clutter[0].numpy(),
        features=features,
        bank=bank,
        clutter=clutter,
    )


def warn_if_changed(name: str, saved: float, now: float) -> None:
    """Warn when a pose no longer has its saved loss.

    The features or the camera then differ from the solver's.
    """
    if not abs(saved - now) <= LOSS_TOLERANCE:
        print(
            f"{name}: the saved loss is {saved:.4f}, here it is {now:.4f}; "
            "the pictures may not fit",
            file=sys.stderr,
        )
