"""Every renderer against the plain PyTorch one, and that one against stored PyTorch3D fragments and closed forms."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.project import ROOT
from neural_mesh.compare import kernels_numba, rendering
from neural_mesh.compare.rendering import Target, make_scene
from neural_mesh.geometry.cameras import (
    PT3D_FROM_OBJECT,
    MapCamera,
    camera_centre,
    consistent_camera,
    paper_camera,
    pascal_cam_from_object,
)
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh

GRID = CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (3, 6, 4))
INTERPRETED = bool(
    os.environ.get("TRITON_INTERPRET")
)  # the CUDA kernel on the CPU, in a process of its own
FAST = ["numba", "triton"] if INTERPRETED or torch.cuda.is_available() else ["numba"]

pytestmark = pytest.mark.usefixtures("one_thread")


def octahedron() -> Mesh:
    """Eight faces, subdivided once and pushed onto an ellipsoid: a closed mesh that is no cuboid."""
    vertices = np.concatenate([np.eye(3), -np.eye(3)])
    faces = [(a, b, c) for a in (0, 3) for b in (1, 4) for c in (2, 5)]
    points, triangles = list(vertices), []
    for a, b, c in faces:
        ab, bc, ca = len(points), len(points) + 1, len(points) + 2
        points += [vertices[a] + vertices[b], vertices[b] + vertices[c], vertices[c] + vertices[a]]
        triangles += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    points = np.array(points)
    return Mesh(
        points / np.linalg.norm(points, axis=1, keepdims=True) * [0.3, 0.5, 0.2],
        np.array(triangles),
    )


def triangle_soup() -> Mesh:
    """Sixty random triangles that cut through each other."""
    generator = np.random.default_rng(3)
    corners = generator.uniform(-0.5, 0.5, (60, 1, 3)) + 0.25 * generator.standard_normal(
        (60, 3, 3)
    )
    return Mesh(corners.reshape(-1, 3), np.arange(180).reshape(60, 3))


MESHES = {"cuboid": cuboid_mesh(GRID), "octahedron": octahedron(), "soup": triangle_soup()}
VIEWS = {  # low and high end of the camera's distance, and how far it looks past the object
    "usual": (1.5, 4.0, 0.0),
    "out of the map": (1.5, 3.0, 0.2),
    "close": (0.55, 0.8, 0.3),
    "inside and behind": (0.0, 0.5, 3.0),
}


def random_poses(view: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Camera centres [count, 3] and world_from_cam rotations [count, 3, 3]."""
    near, far, turn = VIEWS[view]
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    distance = near + (far - near) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    centre = centre / centre.norm(dim=1, keepdim=True) * distance
    theta = 6.28 * torch.rand(count, generator=generator, dtype=torch.float64)
    skew = turn * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    zero = torch.zeros(count, dtype=torch.float64)
    spin = torch.stack(
        [
            zero,
            -skew[:, 2],
            skew[:, 1],
            skew[:, 2],
            zero,
            -skew[:, 0],
            -skew[:, 1],
            skew[:, 0],
            zero,
        ],
        1,
    )
    return centre, rendering.look_at(centre, theta) @ torch.matrix_exp(spin.view(-1, 3, 3))


def random_target(
    scene: rendering.Scene, count: int, seed: int, use_clutter: bool = True
) -> Target:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, scene.camera.pixels, len(scene.vertices))
    scores = torch.randn(
        shape, generator=generator
    ).double()  # float32 values, as the fast kernels read them
    clutter = 0.5 * torch.randn(shape[:2], generator=generator).double()
    return Target(scores, clutter if use_clutter else None)


def run(scene, target, centre, rotation, renderer, principal_xy=None) -> tuple[torch.Tensor, ...]:
    """`rendering.compare` where the renderer lives; the result on the CPU."""
    device = "cuda" if renderer == "triton" and not INTERPRETED else "cpu"
    target = Target(
        *(
            None if x is None else x.to(device)
            for x in (target.scores, target.clutter, target.features, target.bank)
        )
    )
    found = rendering.compare(
        scene, target, centre.to(device), rotation.to(device), renderer, principal_xy
    )
    return tuple(x.cpu() for x in found)


def assert_same(scene, target, centre, rotation, renderer, tolerance=1e-9) -> None:
    """Equal to the specification; float32 kernels to 2e-5, where one pose in 24 may see a cell on an edge differently."""
    expected, found = (run(scene, target, centre, rotation, name) for name in ("torch", renderer))
    tolerance, exempt = (
        (tolerance, 0) if renderer == "numba" else (max(tolerance, 2e-5), len(centre) // 24)
    )
    for name, e, f in zip(("loss", "grad_centre", "grad_rotation"), expected, found, strict=True):
        assert torch.isfinite(f).all(), name
        scale = e.abs().reshape(len(e), -1).max(1).values
        wrong = (e - f).abs().reshape(len(e), -1).max(1).values > tolerance * (1 + scale)
        assert wrong.sum() <= exempt, (name, wrong.nonzero().flatten().tolist())


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", MESHES)
def test_fast_renderers_equal_the_specification(shape, view, renderer):
    camera = MapCamera(21.0, (9.3, 5.1), (11, 17))
    scene = make_scene(MESHES[shape], camera)
    assert (scene.cuboid is not None) == (shape == "cuboid")
    count = 2 if INTERPRETED else 24
    centre, rotation = random_poses(view, count, seed=1)
    for use_clutter in (True, False):
        assert_same(scene, random_target(scene, count, 2, use_clutter), centre, rotation, renderer)


def random_mesh(generator: np.random.Generator) -> Mesh:
    """A cuboid with random sides and cells, or triangles at random, some of which share corners."""
    if generator.random() < 0.5:
        size = generator.uniform(0.05, 0.6, 3)
        return cuboid_mesh(
            CuboidGrid(
                -size * generator.uniform(0.3, 0.7, 3),
                size / 2,
                tuple(generator.integers(2, 7, 3).tolist()),
            )
        )
    vertices = generator.uniform(-0.5, 0.5, (int(generator.integers(3, 40)), 3))
    count = int(generator.integers(1, 50))
    return Mesh(
        vertices, np.array([generator.permutation(len(vertices))[:3] for _ in range(count)])
    )


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("seed", range(2 if INTERPRETED else 12))
def test_random_meshes_sizes_and_cameras(seed, renderer):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 24, 2).tolist()
    principal_xy = tuple(generator.uniform(-0.2, 1.2, 2) * [width, height])
    camera = MapCamera(
        generator.uniform(0.5, 4) * max(height, width), principal_xy, (height, width)
    )
    scene = make_scene(random_mesh(generator), camera)
    for n, view in enumerate(VIEWS):
        centre, rotation = random_poses(view, 2 if INTERPRETED else 6, seed=10 * seed + n)
        assert_same(scene, random_target(scene, len(centre), seed), centre, rotation, renderer)


@pytest.mark.parametrize("renderer", FAST)
def test_a_cad_model_in_every_renderer(golden, renderer):
    """The paper's plain NeMo row: a raw CAD model, here on a small map for the specification's and the interpreter's sake."""
    data = golden("fragments.npz")
    mesh = Mesh(data["chair_cad/vertices"], data["chair_cad/faces"])
    scene = make_scene(mesh, paper_camera((12, 9)))
    assert scene.cuboid is None
    count = 1 if INTERPRETED else 6
    centre, rotation = random_poses("usual", count, seed=5)
    assert_same(
        scene, random_target(scene, count, 6), 1.8 * centre, rotation, renderer, tolerance=1e-7
    )


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("map_hw", [(1, 1), (2, 31), (17, 3)])
def test_odd_map_sizes(map_hw, renderer):
    scene = make_scene(MESHES["cuboid"], paper_camera(map_hw))
    count = 2 if INTERPRETED else 8
    centre, rotation = random_poses("usual", count, seed=4)
    assert_same(scene, random_target(scene, count, 5), centre * 5, rotation, renderer)


@pytest.mark.parametrize("renderer", FAST)
def test_grazing_views(renderer):
    """The camera almost in the plane of a side, on either side of it."""
    scene = make_scene(MESHES["cuboid"], MapCamera(60.0, (20.0, 8.0), (16, 40)))
    near = (
        (1e-2,) if renderer == "triton" else (1e-2, 1e-4, 1e-6)
    )  # float32 cannot tell closer ones apart
    height = torch.tensor([0.2 + sign * d for d in near for sign in (-1, 1)], dtype=torch.float64)
    centre = torch.stack([torch.full_like(height, 1.7), torch.full_like(height, -1.1), height], 1)
    rotation = rendering.look_at(centre, torch.full_like(height, 0.1))
    assert_same(
        scene, random_target(scene, len(height), 6), centre, rotation, renderer, tolerance=1e-7
    )


@pytest.mark.parametrize("renderer", ["torch", *FAST])
@pytest.mark.parametrize(
    "centre",
    [(0.0, 0.0, 0.0), (0.0, 0.0, 3.0), (1e-12, 0.0, 3.0), (0.25, 0.1, 0.1), (9e9, 0.0, 0.0)],
)
def test_extreme_cameras_give_finite_numbers(centre, renderer):
    scene = make_scene(MESHES["cuboid"], paper_camera((8, 12)))
    position = torch.tensor([centre], dtype=torch.float64)
    rotation = rendering.look_at(position, torch.zeros(1, dtype=torch.float64))
    result = run(scene, random_target(scene, 1, 0), position, rotation, renderer)
    assert all(torch.isfinite(x).all() for x in result)


@pytest.mark.parametrize("renderer", ["torch", *FAST])
def test_a_score_linear_in_position_renders_as_the_point_seen(renderer):
    """With S[p, v] = w . X_v the object score must be w . X at the ray's hit with the box, whatever the cell."""
    camera = MapCamera(30.0, (8.0, 6.0), (12, 16))
    scene = make_scene(MESHES["cuboid"], camera)
    centre, rotation = random_poses("usual", 5, seed=7)
    w = torch.tensor([0.3, -0.5, 0.7], dtype=torch.float32)
    scores = (torch.as_tensor(scene.vertices, dtype=torch.float32) @ w).expand(5, camera.pixels, -1)
    loss, _, _ = run(scene, Target(scores.double(), None), centre, rotation, renderer)
    rays = (rotation[:, None] @ rendering.cam_rays(camera)[None, :, :, None])[..., 0]
    low, high = (torch.as_tensor(x) for x in (GRID.low, GRID.high))
    ends = torch.stack([(low - centre[:, None]) / rays, (high - centre[:, None]) / rays])
    enter, leave = ends.min(0).values.max(-1).values, ends.max(0).values.min(-1).values
    score = (centre[:, None] + enter[..., None] * rays) @ w.double()
    expected = 1 - torch.where(enter < leave, score, 0).mean(1)
    np.testing.assert_allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("renderer", ["torch", *FAST])
def test_an_empty_picture_scores_the_negative_clutter(renderer):
    scene = make_scene(MESHES["cuboid"], MapCamera(30.0, (8.0, 6.0), (12, 16)))
    target = random_target(scene, 1, 8)
    centre = torch.tensor([[0.0, -2.0, 0.0]], dtype=torch.float64)
    away = rendering.look_at(-centre, torch.zeros(1, dtype=torch.float64))
    loss, grad_centre, grad_rotation = run(scene, target, centre, away, renderer)
    assert loss.item() == pytest.approx(1 - torch.relu(-target.clutter).mean().item(), abs=1e-6)
    assert not grad_centre.any() and not grad_rotation.any()


def test_near_rule_drops_a_triangle_with_one_corner_behind():
    """Of two triangles ahead of the camera only the one wholly in front is drawn."""
    vertices = np.array(
        [[-1.0, 2, -1], [1, 2, -1], [0, 2, 1], [-1, 1, -1], [1, 1, -1], [0, -0.5, 1]]
    )
    scene = make_scene(
        Mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]])), MapCamera(4.0, (4.0, 4.0), (8, 8))
    )
    rotation = rendering.look_at(torch.tensor([[0.0, -1.0, 0.0]]).double(), torch.zeros(1).double())
    centre = torch.zeros(1, 3, dtype=torch.float64)
    corners, bary = rendering.visible_torch(scene, centre, rotation)
    assert set(corners[bary.sum(-1) > 0].flatten().tolist()) == {0, 1, 2}
    assert_same(scene, random_target(scene, 1, 9), centre, rotation, "numba")


def test_scores_commute_with_rendering_features():
    """The paper renders features and multiplies; the score volume multiplies and interpolates."""
    scene = make_scene(MESHES["octahedron"], MapCamera(21.0, (9.0, 5.0), (10, 18)))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 7, 10, 18, generator=generator).double()
    bank = torch.randn(len(scene.vertices), 7, generator=generator).double()
    clutter = torch.randn(7, generator=generator).double()
    centre, rotation = random_poses("usual", 3, seed=1)
    both = [
        rendering.make_target(features, bank, clutter, name)
        for name in ("torch", "pytorch3d-features")
    ]
    assert both[0].features is None and both[1].scores is None
    a, b = (rendering.compare(scene, target, centre, rotation, "torch") for target in both)
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("renderer", ["torch", *FAST])
@pytest.mark.parametrize("shape", MESHES)
def test_principal_point_of_each_image_and_its_gradient(shape, renderer):
    """Against autograd through the specification's rays, in float64."""
    scene = make_scene(MESHES[shape], MapCamera(21.0, (9.3, 5.1), (11, 17)))
    count = 2 if INTERPRETED else 8
    centre, rotation = random_poses("out of the map", count, seed=3)
    generator = torch.Generator().manual_seed(4)
    principal = torch.tensor([8.5, 5.5]).double() + 4 * torch.randn(
        count, 2, generator=generator, dtype=torch.float64
    )
    target = random_target(scene, count, 5)
    leaf = principal.clone().requires_grad_()
    expected = rendering.differentiable_loss(scene, target, centre, rotation, "torch", leaf)
    expected.sum().backward()
    loss, _, grad_rotation = run(scene, target, centre, rotation, renderer, principal)
    gradient = rendering.principal_gradient(scene.camera, rotation, grad_rotation)
    tolerance = 2e-5 if renderer == "triton" else 1e-9
    torch.testing.assert_close(loss, expected.detach(), atol=tolerance, rtol=0)
    torch.testing.assert_close(
        gradient, leaf.grad, atol=tolerance * (1 + leaf.grad.abs().max().item()), rtol=0
    )
    assert leaf.grad.abs().max() > 1e-3


def test_look_at_is_the_pascal3d_rotation():
    generator = np.random.default_rng(0)
    azimuth, elevation, theta = generator.uniform(-1.4, 1.4, (3, 20)) * [[2.2], [1], [1]]
    rotation = rendering.look_at(
        torch.as_tensor(camera_centre(azimuth, elevation, 3.0)), torch.as_tensor(theta)
    )
    expected = np.diag([1.0, -1, -1]) @ pascal_cam_from_object(azimuth, elevation, theta)
    np.testing.assert_allclose(rotation.mT, expected, atol=1e-12)
    one = rendering.look_at(
        torch.as_tensor(camera_centre(azimuth[0], elevation[0], 3.0)), torch.as_tensor(theta[0])
    )
    np.testing.assert_allclose(one.mT, expected[0], atol=1e-12)
    upright = rendering.look_at(torch.tensor([0.0, 0.0, 3.0]), torch.tensor(0.0))
    torch.testing.assert_close(upright, torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]))


def test_cameras():
    camera = paper_camera((32, 84))
    assert camera.focal == pytest.approx(42 / np.tan(np.radians(6))) and camera.principal_xy == (
        42,
        16,
    )
    assert consistent_camera((16, 42), 0.5).focal == 187.5


def test_cuboids_are_recognised(golden):
    cuboids = golden("cuboids.npz")
    names = [name.removesuffix("/vertices") for name in cuboids.files if name.endswith("/vertices")]
    camera = paper_camera((8, 8))
    found = [
        make_scene(
            Mesh(cuboids[f"{n}/vertices"].astype(np.float32), cuboids[f"{n}/faces"]), camera
        ).cuboid
        for n in names
    ]
    assert len(found) == 92 and all(g is not None for g in found)


def test_other_meshes_are_not_cuboids():
    mesh = MESHES["cuboid"]
    flipped = Mesh(mesh.vertices * [1, 1, -1], mesh.faces)  # a mirrored grid has other diagonals
    bent = Mesh(mesh.vertices + np.eye(len(mesh.vertices), 3) * 1e-3, mesh.faces)
    flat = cuboid_mesh(CuboidGrid(np.zeros(3), np.array([1.0, 1, 0]), (3, 3, 1)))
    for other in (flipped, bent, flat, MESHES["soup"], Mesh(mesh.vertices, mesh.faces[::-1])):
        assert rendering.find_cuboid(other) is None


FRAGMENT_TOLERANCE = {"car_single": 5e-4, "bicycle_multi": 5e-4, "chair_cad": 3e-3}  # barycentrics


def fragment_case(data, name):
    """Scene, centre [12, 3], theta [12] of one mesh of the stored PyTorch3D fragments."""
    height, width, _ = data[f"{name}/size_HWS"].tolist()
    scene = make_scene(
        Mesh(data[f"{name}/vertices"], data[f"{name}/faces"]),
        paper_camera((height, width)),
    )
    centre = torch.as_tensor(data[f"{name}/campos32"].astype(np.float64) @ PT3D_FROM_OBJECT)
    return scene, centre, torch.as_tensor(data[f"{name}/theta32"].astype(np.float64))


@pytest.mark.parametrize("name", FRAGMENT_TOLERANCE)
def test_rasteriser_reproduces_pytorch3d(golden, name):
    data = golden("fragments.npz")
    scene, centre, theta = fragment_case(data, name)
    face, depth, bary = rendering.rasterise_poses(
        scene, centre.numpy(), rendering.look_at(centre, theta).numpy()
    )
    stable = data[f"{name}/stable"]
    covered = stable & (face >= 0)
    np.testing.assert_array_equal(face[stable], data[f"{name}/pix_to_face"][stable])
    np.testing.assert_allclose(depth[covered], data[f"{name}/zbuf"][covered], atol=1e-5)
    np.testing.assert_allclose(
        bary[covered], data[f"{name}/bary"][covered], atol=FRAGMENT_TOLERANCE[name]
    )


@pytest.mark.skipif(INTERPRETED, reason="too slow in Triton's interpreter")
@pytest.mark.parametrize(
    "name, renderer",
    [("car_single", "torch"), *((name, fast) for name in FRAGMENT_TOLERANCE for fast in FAST)],
)
def test_loss_and_gradient_reproduce_pytorch3d(golden, name, renderer):
    data = golden("fragments.npz")
    scene, centre, theta = fragment_case(data, name)
    loss, grad_centre, grad_theta = golden_gradients(data, name, scene, centre, theta, renderer)
    unstable = (~data[f"{name}/stable"]).sum((1, 2)) if name == "chair_cad" else np.zeros(12)
    assert (
        np.abs(loss - data[f"{name}/loss"]) < 5e-7 + 5e-4 * unstable
    ).all()  # a tied cell may show another face
    settled = np.abs(loss - data[f"{name}/loss"]) < 5e-7
    assert settled.sum() >= 11
    for found, key in (
        (grad_centre @ PT3D_FROM_OBJECT.T, "grad_campos"),
        (grad_theta, "grad_theta"),
    ):
        expected = data[f"{name}/{key}"]
        np.testing.assert_allclose(
            found[settled], expected[settled], atol=5e-4 * np.abs(expected).max()
        )


def golden_gradients(data, name, scene, centre, theta, renderer):
    """Loss [12] and its gradients with respect to centre [12, 3] and theta [12] of a stored case."""
    clutter = data[f"{name}/clutter_bank"].astype(np.float64).mean(0)
    target = rendering.make_target(
        torch.as_tensor(data[f"{name}/target"]).expand(12, -1, -1, -1).double(),
        torch.as_tensor(data[f"{name}/bank"]).double(),
        torch.as_tensor(clutter / np.linalg.norm(clutter)),
    )
    centre, theta = centre.clone().requires_grad_(), theta.clone().requires_grad_()
    rotation = rendering.look_at(centre, theta)
    loss, grad_centre, grad_rotation = run(
        scene, target, centre.detach(), rotation.detach(), renderer
    )
    rotation.backward(grad_rotation)
    return loss.numpy(), (centre.grad + grad_centre).numpy(), theta.grad.numpy()


def test_specification_reproduces_pytorch3d(golden):
    """Three poses of the raw CAD: the specification alone, without any kernel."""
    data = golden("fragments.npz")
    scene, centre, theta = fragment_case(data, "chair_cad")
    _, bary = rendering.visible_torch(scene, centre[:3], rendering.look_at(centre, theta)[:3])
    stable = torch.as_tensor(data["chair_cad/stable"][:3]).flatten(1)
    hit = torch.as_tensor(data["chair_cad/pix_to_face"][:3]).flatten(1) >= 0
    assert ((bary.sum(-1) > 0) == hit)[stable].all()
    expected = torch.as_tensor(data["chair_cad/bary"][:3]).flatten(1, 2).double()
    torch.testing.assert_close(bary[stable & hit], expected[stable & hit], atol=3e-3, rtol=0)


@pytest.mark.parametrize("lookups", [1, 11 * 17 * 3 * 2 * 4, 1 << 20])
@pytest.mark.parametrize("renderer", ["torch", "numba", *(["triton"] if INTERPRETED else [])])
def test_a_table_of_pictures_scores_like_its_pictures(renderer, lookups, monkeypatch):
    """Whether pictures are looked up one by one, four by four, or all at once."""
    monkeypatch.setattr(rendering, "CPU_LOOKUPS", lookups)
    scene = make_scene(MESHES["cuboid"], MapCamera(21.0, (9.3, 5.1), (11, 17)))
    centre, rotation = random_poses("usual", 6, seed=1)
    for use_clutter in (True, False):
        target = random_target(scene, 2, seed=2, use_clutter=use_clutter)
        table = rendering.render_table(scene, centre, rotation, renderer)
        losses = rendering.compare_table(table, target, renderer)
        for n in range(6):
            expected = rendering.compare(
                scene, target, centre[n].expand(2, 3), rotation[n].expand(2, 3, 3), "torch"
            )[0]
            np.testing.assert_allclose(losses[:, n], expected, atol=1e-6)


def test_a_table_of_rendered_features_scores_like_one_of_scores():
    scene = make_scene(MESHES["cuboid"], MapCamera(21.0, (9.3, 5.1), (11, 17)))
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 8, 11, 17), (len(scene.vertices), 8), (8,)
    arrays = [torch.randn(shape, generator=generator) for shape in shapes]
    table = rendering.render_table(scene, *random_poses("usual", 6, seed=1), "torch")
    targets = [rendering.make_target(*arrays, name) for name in ("torch", "pytorch3d-features")]
    scored, rendered = (rendering.compare_table(table, target, "torch") for target in targets)
    assert targets[1].scores is None
    torch.testing.assert_close(rendered, scored, atol=1e-5, rtol=1e-5)


def test_rasterize_keeps_the_nearest_triangle():
    uv = np.array([[0, 0], [4, 0], [0, 4], [0, 0], [4, 0], [0, 4.0]])
    depth = np.array([1.9, 1.9, 1.9, 1, 3, 3])
    face, z, bary = kernels_numba.rasterize(uv, depth, np.array([[0, 1, 2], [3, 4, 5]]), 4, 4)
    assert face[0].tolist() == [1, 1, 0, 0] and face[3].tolist() == [0, -1, -1, -1]
    assert z[0, 0] == pytest.approx(1 / (0.75 / 1 + 0.25 / 3))
    np.testing.assert_allclose(bary.sum(-1), face >= 0)


def test_cuda_kernel_in_the_interpreter():
    """The tests that ask for triton, in a process that runs it on the CPU."""
    pytest.importorskip("triton")
    files = [
        ROOT / "tests" / name
        for name in ("method/test_rendering.py", "method/test_pose.py", "emulation/test_gpus.py")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "triton", *files]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-3000:]


def test_names_and_devices_of_renderers():
    cpu = torch.device("cpu")
    rendering.check_renderer("torch", cpu)
    if not INTERPRETED:
        with pytest.raises(
            ValueError,
            match="RENDERER=triton needs a CUDA device and the triton package, found cpu",
        ):
            rendering.check_renderer("triton", cpu)
    with pytest.raises(ValueError, match="RENDERER must be one of auto, torch, numba"):
        rendering.check_renderer("opengl", cpu)
    if importlib.util.find_spec("pytorch3d") is None:
        with pytest.raises(ValueError, match="conda-forge.*RENDERER=auto works"):
            rendering.check_renderer("pytorch3d", cpu)


@pytest.mark.parametrize("renderer", ["pytorch3d", "pytorch3d-features"])
@pytest.mark.parametrize("shape", MESHES)
def test_pytorch3d_equals_the_specification(shape, renderer):
    """In loss, and in the gradients by centre, by turning the camera and by the principal point."""
    pytest.importorskip("pytorch3d")
    scene = make_scene(MESHES[shape], MapCamera(21.0, (9.3, 5.1), (11, 17)))
    centre, rotation = random_poses("usual", 8, seed=1)
    generator = torch.Generator().manual_seed(4)
    features, bank, clutter = (
        torch.nn.functional.normalize(
            torch.randn(size, generator=generator, dtype=torch.float64), dim=axis
        )
        for size, axis in (((8, 16, 11, 17), 1), ((len(scene.vertices), 16), 1), ((16,), 0))
    )
    expected, found = (
        run(scene, rendering.make_target(features, bank, clutter, name), centre, rotation, name)
        for name in ("torch", renderer)
    )
    for value, other in zip(expected[:2], found[:2], strict=True):
        torch.testing.assert_close(other, value, atol=1e-4, rtol=1e-3)
    turning = [rotation.mT @ grads[2] - (rotation.mT @ grads[2]).mT for grads in (expected, found)]
    torch.testing.assert_close(turning[1], turning[0], atol=1e-4, rtol=1e-3)
    principal = [
        rendering.principal_gradient(scene.camera, rotation, grads[2])
        for grads in (expected, found)
    ]
    torch.testing.assert_close(principal[1], principal[0], atol=1e-5, rtol=1e-3)
    assert turning[0].abs().max() > 1e-3 and principal[0].abs().max() > 1e-5


def test_images_that_fit():
    scene = make_scene(MESHES["cuboid"], paper_camera((8, 12)))
    one = rendering.bytes_per_image(scene, 16)
    assert one >= 4 * 96 * len(scene.vertices)
    assert rendering.images_that_fit(scene, 16, 10 * one + 1) == 10
    assert rendering.images_that_fit(scene, 16, 1) == 1


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"same C, found \(1, 4, 2, 2\) and \(5, 3\)"):
        rendering.make_target(torch.zeros(1, 4, 2, 2), torch.zeros(5, 3), None)
    with pytest.raises(ValueError, match=r"clutter must be \[3\]"):
        rendering.make_target(torch.zeros(1, 3, 2, 2), torch.zeros(5, 3), torch.zeros(4))
