"""Every renderer against the plain PyTorch one, and that one against closed forms."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers.project import ROOT
from helpers.renderers import (
    CPU,
    FAST,
    INTERPRETED,
    OTHERS,
    SPECIFICATION,
    TESTED,
    compare,
    renderer_named,
)
from helpers.scenes import GRID, MESHES, VIEWS, random_mesh, random_poses, random_target
from neural_mesh.compare import kernels_numba, scene, specification
from neural_mesh.compare.scene import (
    Target,
    bytes_per_image,
    images_that_fit,
    look_at,
    make_scene,
    principal_gradient,
    score_target,
)
from neural_mesh.compare.with_pytorch3d import Pytorch3dFeatureRenderer
from neural_mesh.geometry.cameras import (
    MapCamera,
    camera_centre,
    consistent_camera,
    cv_from_pascal_cam,
    paper_camera,
    pascal_cam_from_object,
)
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh, find_cuboid
from neural_mesh.solve.choose_renderer import RENDERERS, check_renderer

CAMERA = MapCamera(21.0, (9.3, 5.1), (11, 17))
# Tests that use triton, which also run in its interpreter.
FILES_WITH_TRITON = (
    *("method/test_rendering.py", "method/test_rasteriser.py", "method/test_solver.py"),
    "emulation/test_gpus.py",
)

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(scene, target, centre, rotation, renderer, tolerance=1e-9) -> None:
    """Loss and both gradients equal the specification's, at least to the renderer's tolerance."""
    expected = compare("torch", scene, target, centre, rotation)
    found = compare(renderer, scene, target, centre, rotation)
    tolerance = max(tolerance, TESTED[renderer].tolerance)
    exempt = int(len(centre) * TESTED[renderer].exempt)
    for name, e, f in zip(expected._fields, expected, found, strict=True):
        assert torch.isfinite(f).all(), name
        scale = e.abs().reshape(len(e), -1).max(1).values
        wrong = (e - f).abs().reshape(len(e), -1).max(1).values > tolerance * (1 + scale)
        assert wrong.sum() <= exempt, (name, wrong.nonzero().flatten().tolist())


# ---- against the specification ----


def test_every_renderer_has_a_row_by_which_it_is_tested():
    """Without it no test here compares the renderer: add a row to `helpers.renderers.TESTED`."""
    assert TESTED.keys() == RENDERERS.keys()
    for name in RENDERERS:
        if TESTED[name].runs_here:
            assert renderer_named(name).name == name


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", MESHES)
def test_fast_renderers_equal_the_specification(shape, view, renderer):
    scene = make_scene(MESHES[shape], CAMERA)
    assert (scene.cuboid is not None) == (shape == "cuboid")
    count = 2 if INTERPRETED else 24
    centre, rotation = random_poses(view, count, seed=1)
    for use_clutter in (True, False):
        target = random_target(scene, count, 2, use_clutter)
        assert_same(scene, target, centre, rotation, renderer)


@pytest.mark.parametrize("renderer", FAST)
@pytest.mark.parametrize("seed", range(2 if INTERPRETED else 12))
def test_random_meshes_sizes_and_cameras(seed, renderer):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 24, 2).tolist()
    principal_xy = tuple(generator.uniform(-0.2, 1.2, 2) * [width, height])
    focal = generator.uniform(0.5, 4) * max(height, width)
    camera = MapCamera(focal, principal_xy, (height, width))
    scene = make_scene(random_mesh(generator), camera)
    for n, view in enumerate(VIEWS):
        centre, rotation = random_poses(view, 2 if INTERPRETED else 6, seed=10 * seed + n)
        target = random_target(scene, len(centre), seed)
        assert_same(scene, target, centre, rotation, renderer)


@pytest.mark.parametrize("renderer", FAST)
def test_a_cad_model_in_every_renderer(golden, renderer):
    """The paper's plain NeMo row: a raw CAD model, on a small map for the slow renderers' sake."""
    data = golden("fragments.npz")
    mesh = Mesh(data["chair_cad/vertices"], data["chair_cad/faces"])
    scene = make_scene(mesh, paper_camera((12, 9)))
    assert scene.cuboid is None
    count = 1 if INTERPRETED else 6
    centre, rotation = random_poses("usual", count, seed=5)
    target = random_target(scene, count, 6)
    assert_same(scene, target, 1.8 * centre, rotation, renderer, tolerance=1e-7)


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
    # float32 cannot tell closer ones apart
    near = (1e-2,) if TESTED[renderer].tolerance > 1e-6 else (1e-2, 1e-4, 1e-6)
    heights = [0.2 + sign * offset for offset in near for sign in (-1, 1)]
    height = torch.tensor(heights, dtype=torch.float64)
    centre = torch.stack([torch.full_like(height, 1.7), torch.full_like(height, -1.1), height], 1)
    rotation = look_at(centre, torch.full_like(height, 0.1))
    target = random_target(scene, len(height), 6)
    assert_same(scene, target, centre, rotation, renderer, tolerance=1e-7)


@pytest.mark.parametrize("renderer", ["torch", *FAST])
@pytest.mark.parametrize("shape", MESHES)
def test_principal_point_of_each_image_and_its_gradient(shape, renderer):
    """Against autograd through the specification's rays, in float64."""
    scene = make_scene(MESHES[shape], CAMERA)
    count = 2 if INTERPRETED else 8
    centre, rotation = random_poses("out of the map", count, seed=3)
    generator = torch.Generator().manual_seed(4)
    offset = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    principal = torch.tensor([8.5, 5.5]).double() + 4 * offset
    target = random_target(scene, count, 5)
    leaf = principal.clone().requires_grad_()
    expected = SPECIFICATION.loss(scene, target, centre, rotation, leaf)
    expected.sum().backward()
    assert leaf.grad.abs().max() > 1e-3
    loss, _, grad_rotation = compare(renderer, scene, target, centre, rotation, principal)
    gradient = principal_gradient(scene.camera, rotation, grad_rotation)
    tolerance = TESTED[renderer].tolerance
    torch.testing.assert_close(loss, expected.detach(), atol=tolerance, rtol=0)
    of_gradient = tolerance * (1 + leaf.grad.abs().max().item())
    torch.testing.assert_close(gradient, leaf.grad, atol=of_gradient, rtol=0)


@pytest.mark.parametrize("renderer", OTHERS)
@pytest.mark.parametrize("shape", MESHES)
def test_a_renderer_computes_from_features_what_its_interface_promises(shape, renderer):
    """Loss, and the gradients by centre, by turning the camera and by the principal point."""
    if not TESTED[renderer].runs_here:
        pytest.skip(f"{renderer} does not run here")
    scene = make_scene(MESHES[shape], CAMERA)
    count = 2 if INTERPRETED else 8
    centre, rotation = random_poses("usual", count, seed=1)
    generator = torch.Generator().manual_seed(4)
    features = unit_noise(generator, (count, 16, 11, 17), 1)
    bank = unit_noise(generator, (len(scene.vertices), 16), 1)
    clutter = unit_noise(generator, (16,), 0)
    losses = []
    turnings = []
    principals = []
    for name in ("torch", renderer):
        there = [x.to(TESTED[name].device) for x in (features, bank, clutter)]
        target = renderer_named(name).target(*there)
        loss, grad_centre, grad_rotation = compare(name, scene, target, centre, rotation)
        losses.append((loss, grad_centre))
        in_cam = rotation.mT @ grad_rotation
        turnings.append(in_cam - in_cam.mT)
        principals.append(principal_gradient(scene.camera, rotation, grad_rotation))
    # Scores of compiled renderers are float32.
    tolerance = max(TESTED[renderer].tolerance, 1e-6)
    torch.testing.assert_close(losses[1], losses[0], atol=tolerance, rtol=1e-3)
    torch.testing.assert_close(turnings[1], turnings[0], atol=tolerance, rtol=1e-3)
    torch.testing.assert_close(principals[1], principals[0], atol=tolerance / 10, rtol=1e-3)
    assert turnings[0].abs().max() > 1e-3
    assert principals[0].abs().max() > 1e-5


def unit_noise(generator, shape, axis) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(noise, dim=axis)


# ---- by property and closed form ----


@pytest.mark.parametrize("renderer", ["torch", *FAST])
@pytest.mark.parametrize(
    "centre",
    [(0.0, 0.0, 0.0), (0.0, 0.0, 3.0), (1e-12, 0.0, 3.0), (0.25, 0.1, 0.1), (9e9, 0.0, 0.0)],
)
def test_extreme_cameras_give_finite_numbers(centre, renderer):
    scene = make_scene(MESHES["cuboid"], paper_camera((8, 12)))
    position = torch.tensor([centre], dtype=torch.float64)
    rotation = look_at(position, torch.zeros(1, dtype=torch.float64))
    result = compare(renderer, scene, random_target(scene, 1, 0), position, rotation)
    assert all(torch.isfinite(x).all() for x in result)


@pytest.mark.parametrize("renderer", ["torch", *FAST])
def test_a_score_linear_in_position_renders_as_the_point_seen(renderer):
    """With S[p, v] = w . X_v the object score must be w . X where the ray meets the box."""
    camera = MapCamera(30.0, (8.0, 6.0), (12, 16))
    scene = make_scene(MESHES["cuboid"], camera)
    centre, rotation = random_poses("usual", 5, seed=7)
    w = torch.tensor([0.3, -0.5, 0.7], dtype=torch.float32)
    scores = (torch.as_tensor(scene.vertices, dtype=torch.float32) @ w).expand(5, camera.pixels, -1)
    loss, _, _ = compare(renderer, scene, Target(scores.double(), None), centre, rotation)
    rays = (rotation[:, None] @ specification.cam_rays(camera)[None, :, :, None])[..., 0]
    to_low = (torch.as_tensor(GRID.low) - centre[:, None]) / rays
    to_high = (torch.as_tensor(GRID.high) - centre[:, None]) / rays
    enter = torch.minimum(to_low, to_high).max(-1).values
    leave = torch.maximum(to_low, to_high).min(-1).values
    score = (centre[:, None] + enter[..., None] * rays) @ w.double()
    expected = 1 - torch.where(enter < leave, score, 0).mean(1)
    np.testing.assert_allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize("renderer", ["torch", *FAST])
def test_an_empty_picture_scores_the_negative_clutter(renderer):
    scene = make_scene(MESHES["cuboid"], MapCamera(30.0, (8.0, 6.0), (12, 16)))
    target = random_target(scene, 1, 8)
    centre = torch.tensor([[0.0, -2.0, 0.0]], dtype=torch.float64)
    away = look_at(-centre, torch.zeros(1, dtype=torch.float64))
    loss, grad_centre, grad_rotation = compare(renderer, scene, target, centre, away)
    expected = 1 - torch.relu(-target.clutter).mean().item()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert not grad_centre.any()
    assert not grad_rotation.any()


def test_near_rule_drops_a_triangle_with_one_corner_behind():
    """Of two triangles ahead of the camera only the one wholly in front is drawn."""
    in_front = [[-1.0, 2, -1], [1, 2, -1], [0, 2, 1]]
    reaching_behind = [[-1, 1, -1], [1, 1, -1], [0, -0.5, 1]]
    mesh = Mesh(np.array(in_front + reaching_behind), np.array([[0, 1, 2], [3, 4, 5]]))
    scene = make_scene(mesh, MapCamera(4.0, (4.0, 4.0), (8, 8)))
    rotation = look_at(torch.tensor([[0.0, -1.0, 0.0]]).double(), torch.zeros(1).double())
    centre = torch.zeros(1, 3, dtype=torch.float64)
    corners, bary = specification.visible(scene, centre, rotation)
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
    scored = SPECIFICATION.target(features, bank, clutter)
    rendered = Pytorch3dFeatureRenderer(CPU).target(features, bank, clutter)
    assert scored.features is None
    assert rendered.scores is None
    expected = SPECIFICATION.compare(scene, scored, centre, rotation)
    found = SPECIFICATION.compare(scene, rendered, centre, rotation)
    torch.testing.assert_close(found, expected)


# ---- cameras, cuboids, targets ----


def test_look_at_is_the_pascal3d_rotation():
    generator = np.random.default_rng(0)
    azimuth, elevation, theta = generator.uniform(-1.4, 1.4, (3, 20)) * [[2.2], [1], [1]]
    centre = torch.as_tensor(camera_centre(azimuth, elevation, 3.0))
    rotation = look_at(centre, torch.as_tensor(theta))
    expected = cv_from_pascal_cam(pascal_cam_from_object(azimuth, elevation, theta))
    np.testing.assert_allclose(rotation.mT, expected, atol=1e-12)
    one = look_at(centre[0], torch.as_tensor(theta[0]))
    np.testing.assert_allclose(one.mT, expected[0], atol=1e-12)
    upright = look_at(torch.tensor([0.0, 0.0, 3.0]), torch.tensor(0.0))
    torch.testing.assert_close(upright, torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]))


def test_cameras():
    camera = paper_camera((32, 84))
    assert camera.focal == pytest.approx(42 / np.tan(np.radians(6)))
    assert camera.principal_xy == (42, 16)
    assert consistent_camera((16, 42), 0.5).focal == 187.5


def test_cuboids_are_recognised(golden):
    cuboids = golden("cuboids.npz")
    names = [name.removesuffix("/vertices") for name in cuboids.files if name.endswith("/vertices")]
    assert len(names) == 92
    camera = paper_camera((8, 8))
    for name in names:
        vertices = cuboids[f"{name}/vertices"].astype(np.float32)
        scene = make_scene(Mesh(vertices, cuboids[f"{name}/faces"]), camera)
        assert scene.cuboid is not None, name


def test_other_meshes_are_not_cuboids():
    mesh = MESHES["cuboid"]
    flipped = Mesh(mesh.vertices * [1, 1, -1], mesh.faces)  # a mirrored grid has other diagonals
    bent = Mesh(mesh.vertices + np.eye(len(mesh.vertices), 3) * 1e-3, mesh.faces)
    flat = cuboid_mesh(CuboidGrid(np.zeros(3), np.array([1.0, 1, 0]), (3, 3, 1)))
    for other in (flipped, bent, flat, MESHES["soup"], Mesh(mesh.vertices, mesh.faces[::-1])):
        assert find_cuboid(other) is None


def test_images_that_fit():
    scene = make_scene(MESHES["cuboid"], paper_camera((8, 12)))
    one = bytes_per_image(scene, 16)
    assert one >= 4 * 96 * len(scene.vertices)
    assert images_that_fit(scene, 16, 10 * one + 1) == 10
    assert images_that_fit(scene, 16, 1) == 1


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"same C, found \(1, 4, 2, 2\) and \(5, 3\)"):
        score_target(torch.zeros(1, 4, 2, 2), torch.zeros(5, 3), None)
    with pytest.raises(ValueError, match=r"clutter must be \[3\]"):
        score_target(torch.zeros(1, 3, 2, 2), torch.zeros(5, 3), torch.zeros(4))


# ---- names, constants, the interpreter ----


def test_names_and_devices_of_renderers():
    check_renderer("torch", CPU)
    if not INTERPRETED:
        missing = "RENDERER=triton needs a CUDA device and the triton package, found cpu"
        with pytest.raises(ValueError, match=missing):
            check_renderer("triton", CPU)
    with pytest.raises(ValueError, match="RENDERER must be one of auto, torch, numba"):
        check_renderer("opengl", CPU)
    if importlib.util.find_spec("pytorch3d") is None:
        with pytest.raises(ValueError, match="conda-forge.*RENDERER=auto works"):
            check_renderer("pytorch3d", CPU)


def test_the_kernels_constants_are_the_scenes():
    for name in ("NEAR", "TINY", "ADAM_EPSILON"):
        assert getattr(kernels_numba, name) == getattr(scene, name)


def test_cuda_kernel_in_the_interpreter():
    """The tests that ask for triton, in a process that runs it on the CPU."""
    pytest.importorskip("triton")
    files = [ROOT / "tests" / name for name in FILES_WITH_TRITON]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "triton", *files],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout, done.stdout[-3000:]
