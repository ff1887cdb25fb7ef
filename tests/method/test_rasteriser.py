"""The rasteriser and the renderers against stored PyTorch3D fragments, and tables of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.renderers import (
    CPU,
    FAST,
    INTERPRETED,
    ON_CPU,
    SPECIFICATION,
    compare,
    renderer_named,
)
from helpers.scenes import MESHES, random_poses, random_target
from neural_mesh.compare import kernels_numba, specification
from neural_mesh.compare.rasteriser import rasterise_poses
from neural_mesh.compare.scene import Scene, look_at, make_scene, score_target
from neural_mesh.compare.with_pytorch3d import Pytorch3dFeatureRenderer
from neural_mesh.geometry.cameras import PT3D_FROM_OBJECT, MapCamera, paper_camera
from neural_mesh.geometry.meshes import Mesh

CAMERA = MapCamera(21.0, (9.3, 5.1), (11, 17))
FRAGMENT_TOLERANCE = {"car_single": 5e-4, "bicycle_multi": 5e-4, "chair_cad": 3e-3}  # barycentrics

pytestmark = pytest.mark.usefixtures("one_thread")


def fragment_case(data, name) -> tuple[Scene, torch.Tensor, torch.Tensor]:
    """Scene, centre [12, 3], theta [12] of one mesh of the stored PyTorch3D fragments."""
    height, width, _ = data[f"{name}/size_HWS"].tolist()
    mesh = Mesh(data[f"{name}/vertices"], data[f"{name}/faces"])
    scene = make_scene(mesh, paper_camera((height, width)))
    centre = torch.as_tensor(data[f"{name}/campos32"].astype(np.float64) @ PT3D_FROM_OBJECT)
    return scene, centre, torch.as_tensor(data[f"{name}/theta32"].astype(np.float64))


@pytest.mark.parametrize("name", FRAGMENT_TOLERANCE)
def test_rasteriser_reproduces_pytorch3d(golden, name):
    data = golden("fragments.npz")
    scene, centre, theta = fragment_case(data, name)
    face, depth, bary = rasterise_poses(scene, centre.numpy(), look_at(centre, theta).numpy())
    stable = data[f"{name}/stable"]
    covered = stable & (face >= 0)
    tolerance = FRAGMENT_TOLERANCE[name]
    np.testing.assert_array_equal(face[stable], data[f"{name}/pix_to_face"][stable])
    np.testing.assert_allclose(depth[covered], data[f"{name}/zbuf"][covered], atol=1e-5)
    np.testing.assert_allclose(bary[covered], data[f"{name}/bary"][covered], atol=tolerance)


@pytest.mark.skipif(INTERPRETED, reason="too slow in Triton's interpreter")
@pytest.mark.parametrize(
    "name, renderer",
    [("car_single", "torch"), *((name, fast) for name in FRAGMENT_TOLERANCE for fast in FAST)],
)
def test_loss_and_gradient_reproduce_pytorch3d(golden, name, renderer):
    data = golden("fragments.npz")
    scene, centre, theta = fragment_case(data, name)
    loss, grad_centre, grad_theta = golden_gradients(data, name, scene, centre, theta, renderer)
    unstable = np.zeros(12)
    if name == "chair_cad":
        unstable = (~data[f"{name}/stable"]).sum((1, 2))
    # a tied cell may show another face
    difference = np.abs(loss - data[f"{name}/loss"])
    assert (difference < 5e-7 + 5e-4 * unstable).all()
    settled = difference < 5e-7
    assert settled.sum() >= 11
    gradients = {"grad_campos": grad_centre @ PT3D_FROM_OBJECT.T, "grad_theta": grad_theta}
    for key, found in gradients.items():
        expected = data[f"{name}/{key}"]
        tolerance = 5e-4 * np.abs(expected).max()
        np.testing.assert_allclose(found[settled], expected[settled], atol=tolerance)


def golden_gradients(data, name, scene, centre, theta, renderer):
    """Loss [12] and its gradients by centre [12, 3] and theta [12] of a stored case."""
    clutter = data[f"{name}/clutter_bank"].astype(np.float64).mean(0)
    target = score_target(
        torch.as_tensor(data[f"{name}/target"]).expand(12, -1, -1, -1).double(),
        torch.as_tensor(data[f"{name}/bank"]).double(),
        torch.as_tensor(clutter / np.linalg.norm(clutter)),
    )
    centre = centre.clone().requires_grad_()
    theta = theta.clone().requires_grad_()
    rotation = look_at(centre, theta)
    found = compare(renderer, scene, target, centre.detach(), rotation.detach())
    rotation.backward(found.grad_rotation)
    grad_centre = centre.grad + found.grad_centre
    return found.loss.numpy(), grad_centre.numpy(), theta.grad.numpy()


def test_specification_reproduces_pytorch3d(golden):
    """Three poses of the raw CAD: the specification alone, without any kernel."""
    data = golden("fragments.npz")
    scene, centre, theta = fragment_case(data, "chair_cad")
    _, bary = specification.visible(scene, centre[:3], look_at(centre, theta)[:3])
    stable = torch.as_tensor(data["chair_cad/stable"][:3]).flatten(1)
    hit = torch.as_tensor(data["chair_cad/pix_to_face"][:3]).flatten(1) >= 0
    assert ((bary.sum(-1) > 0) == hit)[stable].all()
    expected = torch.as_tensor(data["chair_cad/bary"][:3]).flatten(1, 2).double()
    torch.testing.assert_close(bary[stable & hit], expected[stable & hit], atol=3e-3, rtol=0)


def test_the_nearest_triangle_is_kept():
    uv = np.array([[0, 0], [4, 0], [0, 4], [0, 0], [4, 0], [0, 4.0]])
    depth = np.array([1.9, 1.9, 1.9, 1, 3, 3])
    face, z, bary = kernels_numba.rasterise(uv, depth, np.array([[0, 1, 2], [3, 4, 5]]), 4, 4)
    assert face[0].tolist() == [1, 1, 0, 0]
    assert face[3].tolist() == [0, -1, -1, -1]
    assert z[0, 0] == pytest.approx(1 / (0.75 / 1 + 0.25 / 3))
    np.testing.assert_allclose(bary.sum(-1), face >= 0)


# ---- tables of pictures ----


@pytest.mark.parametrize("lookups", [1, 11 * 17 * 3 * 2 * 4, 1 << 20])
@pytest.mark.parametrize("renderer", ON_CPU)
def test_a_table_of_pictures_scores_like_its_pictures(renderer, lookups, monkeypatch):
    """Whether pictures are looked up one by one, four by four, or all at once."""
    monkeypatch.setattr(specification, "CPU_LOOKUPS", lookups)
    scene = make_scene(MESHES["cuboid"], CAMERA)
    renderer = renderer_named(renderer)
    centre, rotation = random_poses("usual", 6, seed=1)
    for use_clutter in (True, False):
        target = random_target(scene, 2, seed=2, use_clutter=use_clutter)
        losses = renderer.compare_table(renderer.table(scene, centre, rotation), target)
        for n in range(6):
            pose = centre[n].expand(2, 3), rotation[n].expand(2, 3, 3)
            expected = SPECIFICATION.compare(scene, target, *pose).loss
            np.testing.assert_allclose(losses[:, n], expected, atol=1e-6)


def test_a_table_of_rendered_features_scores_like_one_of_scores():
    scene = make_scene(MESHES["cuboid"], CAMERA)
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 8, 11, 17), (len(scene.vertices), 8), (8,)
    arrays = [torch.randn(shape, generator=generator) for shape in shapes]
    table = SPECIFICATION.table(scene, *random_poses("usual", 6, seed=1))
    scored = SPECIFICATION.compare_table(table, SPECIFICATION.target(*arrays))
    rendered_target = Pytorch3dFeatureRenderer(CPU).target(*arrays)
    assert rendered_target.scores is None
    rendered = SPECIFICATION.compare_table(table, rendered_target)
    torch.testing.assert_close(rendered, scored, atol=1e-5, rtol=1e-5)
