"""What the solver compared for one image, computed again: the neural mesh, and the scores of the
image's features.
"""

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

# Between the saved loss and the one computed again; half precision on a GPU stays below.
LOSS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Match:
    """What the solver compared for one image, on the CPU.

    target: with the clutter; compared: as the solver's settings have it. features [1, C, H, W],
    bank [V, C], clutter [C]: what the scores were computed from.
    """

    scene: Scene
    target: Target
    compared: Target
    features: Tensor
    bank: Tensor
    clutter: Tensor

    def occluder_map(self, pose: Pose) -> NDArray:
        """The labels [H, W] of the cells of the feature map in a pose."""
        scores = self.target.scores[0].numpy()
        return occluder_map(self.scene, scores, self.target.clutter[0].numpy(), pose)

    def loss(self, pose: Pose) -> float:
        """The loss in a pose, as the solver's settings have it."""
        return float(losses_of(self.scene, self.compared, [pose])[0])

    def moved_to(self, principal_xy: NDArray) -> Match:
        """The match with the object's origin at another place [2] of the map, in cells; only 6D
        poses move it.
        """
        camera = replace(self.scene.camera, principal_xy=tuple(principal_xy.tolist()))
        return replace(self, scene=replace(self.scene, camera=camera))


def match_image(solved: SolvedSet, i: int) -> Match:
    """The neural mesh of image i and the image's scores, computed again from its crop."""
    config = solved.poses.config
    number = int(solved.poses.mesh[i])
    # Features as the solver had them: of the crop at the network's scale.
    crop = read_crop(solved.crop_file(i), config["image_scale"])
    images = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]
    features = solved.model.features(images).cpu()
    bank, clutter = (tensor.cpu() for tensor in solved.model.banks(number))
    # Occluder maps need the clutter, even where the solver ignored it.
    target = score_target(features, bank, clutter)
    compared = target if config["solve"]["clutter"] else replace(target, clutter=None)
    scene = make_scene(solved.model.mesh(number), solved.camera(i))
    return Match(scene, target, compared, features, bank, clutter)


def warn_if_changed(name: str, saved: float, now: float) -> None:
    """Tell when a pose does not have its saved loss now: features or camera then differ from the
    solver's.
    """
    if not abs(saved - now) <= LOSS_TOLERANCE:
        print(
            f"{name}: the saved loss is {saved:.4f}, here it is {now:.4f}; "
            "the pictures may not fit",
            file=sys.stderr,
        )
