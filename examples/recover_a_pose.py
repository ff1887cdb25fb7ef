"""The method in one page, without data: plant a pose, hide half of the object, find the pose again.

    python examples/recover_a_pose.py [--hidden 0.5] [--seed 0] [--picture pose.png]

A cuboid gets a random unit feature for every vertex, as training would learn them. Rendered in a
pose, it gives the feature map that a perfect network would see; a part of the map is then painted
over with clutter. The solver compares the mesh with the map and prints how far off it is.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from neural_mesh.compare.scene import Scene, Target, look_at, make_scene
from neural_mesh.compare.specification import visible
from neural_mesh.geometry.cameras import Pose, geodesic_distance
from neural_mesh.geometry.meshes import Mesh, published_cuboid
from neural_mesh.pictures.mesh_overlay import draw_mesh, scale_camera
from neural_mesh.pictures.occluder_map import colour_occluder_map, occluder_map
from neural_mesh.settings import FEATURE_CHANNELS, FEATURE_STRIDE, SolveConfig
from neural_mesh.solve.choose_renderer import choose_renderer
from neural_mesh.solve.plan import choose_camera
from neural_mesh.solve.solver import make_setup, solve

CATEGORY = "car"
MAP_HW = (32, 84)  # a car's crop of 256 x 672 pixels, in cells of 8
NOISE = 0.5  # added to every feature, whose length is 1


def random_features(*shape: int) -> Tensor:
    """Unit vectors along the last axis."""
    return functional.normalize(torch.randn(shape), dim=-1)


def feature_map(scene: Scene, pose: Pose, bank: Tensor, clutter: Tensor) -> Tensor:
    """What a perfect network would see of a pose: unit features [1, C, H, W]."""
    centre = torch.as_tensor(pose.centre)[None]
    rotation = look_at(centre, torch.tensor([pose.theta], dtype=torch.float64))
    corners, bary = visible(scene, centre, rotation)
    on_mesh = (bary[..., None].float() * bank[corners]).sum(2)[0]  # [P, C]
    covered = (bary[0].sum(-1) > 0)[:, None]
    features = torch.where(covered, on_mesh, clutter)
    features = features + NOISE * random_features(*features.shape)
    height, width = scene.camera.map_hw
    return functional.normalize(features, dim=1).T.reshape(1, -1, height, width)


def hide(features: Tensor, clutter: Tensor, share: float) -> Tensor:
    """The left `share` of the map painted over with noisy clutter."""
    columns = round(share * features.shape[3])
    noise = NOISE * random_features(features.shape[2], columns, features.shape[1])
    painted = functional.normalize(clutter + noise, dim=-1)
    hidden = features.clone()
    hidden[0, :, :, :columns] = painted.permute(2, 0, 1)
    return hidden


def save_picture(path: Path, scene: Scene, target: Target, pose: Pose) -> None:
    """The pose over the occluder map: green where the object is seen, red where it is hidden."""
    height, width = scene.camera.map_hw
    labels = occluder_map(scene, target.scores[0].numpy(), target.clutter[0].numpy(), pose)
    paper = np.full((height * FEATURE_STRIDE, width * FEATURE_STRIDE, 3), 255, np.uint8)
    picture = colour_occluder_map(paper, labels)
    camera = scale_camera(scene.camera, FEATURE_STRIDE)
    Image.fromarray(
        draw_mesh(picture, Mesh(scene.vertices, scene.faces), pose, camera, opacity=0.3)
    ).save(path)


def main() -> None:
    """Plant, hide, solve, and print the error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=float, default=0.5, help="share of the map that is hidden")
    parser.add_argument("--seed", type=int, default=0, help="of features and pose")
    parser.add_argument("--picture", type=Path, help="where to draw the result, a PNG")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)

    # The object: the authors' car cuboid, one feature per vertex, one for clutter.
    mesh = published_cuboid(CATEGORY)
    bank = random_features(len(mesh.vertices), FEATURE_CHANNELS)
    clutter = random_features(FEATURE_CHANNELS)

    # The solver: its camera, its start grid, and what compares mesh and map on this machine.
    config = SolveConfig(solver="best")
    camera, start_distance = choose_camera(config, CATEGORY, MAP_HW)
    renderer = choose_renderer("auto", torch.device("cpu"))
    setup = make_setup(config, camera, start_distance, renderer)

    # The picture: a pose, and what a network would make of it.
    true = Pose(
        azimuth=random.uniform(0, 2 * math.pi),
        elevation=random.uniform(0, 0.4),
        theta=random.uniform(-0.2, 0.2),
        distance=start_distance,
        principal_xy=camera.principal_xy,
    )
    scene = make_scene(mesh, camera)
    features = hide(feature_map(scene, true, bank, clutter), clutter, args.hidden)

    solved = solve(mesh, features, bank, clutter, setup)
    pose = solved.pose[0]
    error = geodesic_distance(pose.pascal_cam_from_object, true.pascal_cam_from_object)
    print(f"planted: {np.rad2deg(true.angles).round(1).tolist()} degrees")
    print(f"found:   {np.rad2deg(pose.angles).round(1).tolist()} degrees")
    print(f"error:   {np.rad2deg(error):.2f} degrees, with {args.hidden:.0%} of the map hidden")
    if args.picture is not None:
        save_picture(args.picture, scene, renderer.target(features, bank, clutter), pose)
        print(f"drawn:   {args.picture}")


if __name__ == "__main__":
    main()
