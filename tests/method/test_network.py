"""Backbone, bank and losses against the reference; what must hold of them for any numbers."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from helpers.project import ROOT
from neural_mesh.network import losses
from neural_mesh.network.backbone import FeatureNet, cells_of
from neural_mesh.network.bank import Bank, vertex_sums
from neural_mesh.network.losses import clutter_loss, contrastive_loss, dense_clutter_loss
from neural_mesh.network.pretrained import build_network
from neural_mesh.settings import FIXED_RECIPE, TrainConfig

# ---- backbone ------------------------------------------------------------------------------------


def made_up_weights(network: FeatureNet) -> dict[str, torch.Tensor]:
    """The recipe of tests/golden/backbone.npz: a seed for each entry, the checksum of its name."""
    state = {}
    for name, value in network.state_dict().items():
        random = np.random.RandomState(zlib.crc32(name.encode()))
        shape = tuple(value.shape)
        if name.endswith("num_batches_tracked"):
            drawn = np.zeros(shape)
        elif name.endswith("running_var"):
            drawn = random.uniform(0.8, 1.2, shape)
        elif name.endswith(("running_mean", "bias")):
            drawn = 0.1 * random.standard_normal(shape)
        elif len(shape) == 4:
            drawn = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            drawn = random.standard_normal(shape) / np.sqrt(shape[1])
        else:
            drawn = random.uniform(0.4, 0.6, shape)
        state[name] = torch.tensor(drawn).to(value.dtype)
    return state


@pytest.fixture(scope="module")
def resnetext() -> FeatureNet:
    network = FeatureNet("resnetext")
    network.load_state_dict(made_up_weights(network))
    return network.eval()


def test_state_dict_names_equal_the_reference(resnetext):
    text = (ROOT / "tests/golden/backbone_state.json").read_text()
    names = {entry["name"] for entry in json.loads(text)["entries"]}
    assert names == set(resnetext.state_dict())


@torch.no_grad()
def test_backbone_equals_the_reference(resnetext, golden):
    d = {key: torch.tensor(value) for key, value in golden("backbone.npz").items()}
    close = {"atol": 2e-5, "rtol": 0}
    trunk = resnetext.net(d["image"])
    torch.testing.assert_close(trunk, d["trunk"], **close)
    features = resnetext.feature_map(d["image"], bias=False)
    torch.testing.assert_close(features, d["forward_test"], **close)
    features = resnetext.feature_map(d["odd_image"], bias=False)
    torch.testing.assert_close(features, d["odd_forward_test"], **close)
    at_keypoints = resnetext(d["image"], cells_of(d["keypoints_rc"], (8, 12)))
    torch.testing.assert_close(at_keypoints, d["forward_keypoints"], **close)


@torch.no_grad()
def test_backbone_in_training_mode_equals_the_reference(golden):
    d = {key: torch.tensor(value) for key, value in golden("backbone.npz").items()}
    network = FeatureNet("resnetext")
    network.load_state_dict(made_up_weights(network))
    cells = cells_of(d["train_keypoints_rc"], (8, 12))
    features = network.train()(d["train_images"], cells)
    torch.testing.assert_close(features, d["train_forward_keypoints"], atol=1e-3, rtol=0)
    mean = network.net.extractor[1].running_mean
    expected = d["train_bn1_running_mean_after"]
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_training_and_test_features_agree_when_the_bias_is_kept():
    network = FeatureNet("resnet18fpn").eval()
    image = torch.randn(1, 3, 64, 96)
    cells = torch.arange(96)[None]
    with_bias = network.feature_map(image, bias=True).flatten(2).transpose(1, 2)
    without = network.feature_map(image, bias=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network(image, cells), with_bias, atol=1e-5, rtol=0)
    assert (with_bias - without).abs().max() > 1e-3


def test_pretrained_weights_that_do_not_exist_or_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="PRETRAINED is 'imagenets'"):
        build_network("resnet18fpn", "imagenets")
    torch.save(FeatureNet("resnet18fpn").net.stem.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="pretrained weights lack"):
        build_network("resnetext", str(tmp_path / "other.pth"))


def test_pretrained_weights_come_from_a_file(tmp_path):
    import torchvision

    trunk = torchvision.models.resnet18(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "weights.pth")
    network = build_network("resnet18fpn", str(tmp_path / "weights.pth"))
    assert torch.equal(network.net.layer3[0].conv1.weight, trunk.layer3[0].conv1.weight)
    torch.save({"conv1.weight": trunk.conv1.weight}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="pretrained weights lack"):
        build_network("resnet18fpn", str(tmp_path / "part.pth"))


# ---- bank and losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["small_a", "small_b", "small_c", "real"])
def test_bank_and_loss_equal_the_reference(golden, case):
    d = golden("bank.npz")
    vertices, channels, noise, groups, momentum, temperature, near, weight = d[f"{case}/params"]
    vertices = int(vertices)
    config = TrainConfig(
        num_clutter_image=int(noise),
        num_clutter_group=int(groups),
        bank_momentum=momentum,
        temperature=temperature,
        near_distance_px=near,
        weight_clutter=weight,
    )
    bank = Bank.create(vertices, config, torch.Generator(), channels=int(channels))
    bank.memory = torch.tensor(d[f"{case}/memory0"])
    for call in range(3):
        prefix = f"{case}/call{call}/"
        value = {
            key.removeprefix(prefix): torch.tensor(d[key])
            for key in d.files
            if key.startswith(prefix)
        }
        features = value["features"].requires_grad_()
        at_vertices = features[:, :vertices]
        at_noise = features[:, vertices:]
        visible = value["visible"] > 0
        main = contrastive_loss(at_vertices, value["keypoints_rc"], visible, bank.memory, config)
        clutter = config.weight_regularisation * clutter_loss(at_noise, bank.mesh_rows)
        (main + clutter).backward()
        bank.update(*vertex_sums(at_vertices.detach(), visible), at_noise.detach())
        assert main.item() == pytest.approx(value["loss_main"].item(), rel=2e-6)
        assert clutter.item() == pytest.approx(value["loss_reg"].item(), abs=1e-7)
        expected = value["grad_features"]
        assert (features.grad - expected).abs().max() <= 2e-6 * expected.abs().max()
        torch.testing.assert_close(bank.memory, value["memory_after"], atol=1e-6, rtol=0)
        assert bank.slot == int(value["lru_after"])


def test_blocks_and_parts_of_a_batch_add_up(monkeypatch):
    """The loss does not depend on the rows held at once.

    Parts with the whole's count sum to the whole, and so do the sums for the bank.
    """
    config = TrainConfig(num_clutter_group=8)
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(5, 30, 16, generator=generator), dim=-1)
    positions = torch.rand(5, 30, 2, generator=generator) * 200
    visible = torch.rand(5, 30, generator=generator) < 0.4
    memory = normalize(torch.randn(70, 16, generator=generator), dim=-1)

    def loss_and_gradient(images: slice, count: int | None = None) -> tuple[float, torch.Tensor]:
        leaf = features[images].clone().requires_grad_()
        loss = contrastive_loss(leaf, positions[images], visible[images], memory, config, count)
        (3 * loss).backward()
        return 3 * loss.item(), leaf.grad

    every, halves = slice(None), (slice(0, 2), slice(2, 5))
    whole, gradient = loss_and_gradient(every)
    monkeypatch.setitem(losses.ROWS_AT_ONCE, "cpu", 7)
    in_blocks, same = loss_and_gradient(every)
    assert in_blocks == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(gradient, same, atol=1e-7)

    parts = [loss_and_gradient(images, int(visible.sum())) for images in halves]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(torch.cat([part for _, part in parts]), gradient, atol=1e-7)

    sums = [vertex_sums(features[images], visible[images]) for images in (*halves, every)]
    for first, second, together in zip(*sums, strict=True):
        assert torch.allclose(first + second, together, atol=1e-6)

    noise = features[:, :5]
    clutter = sum(clutter_loss(noise[images], memory, 5).item() for images in halves)
    assert clutter == pytest.approx(clutter_loss(noise, memory).item(), abs=1e-7)


def test_a_visible_mean_divides_by_how_often_a_vertex_was_seen():
    features = torch.eye(4)[None, :2].repeat(4, 1, 1)
    visible = torch.tensor([[1, 1], [0, 1], [0, 1], [0, 1]], dtype=torch.bool)
    noise = torch.eye(4)[None, 3:].repeat(4, 1, 1)
    for mean, weights in (("batch", (0.1 / 4, 0.1)), ("visible", (0.1, 0.1))):
        bank = Bank(torch.eye(4)[[2, 2, 3]], vertices=2, ring="full", mean=mean, momentum=0.9)
        bank.update(*vertex_sums(features, visible), noise)
        for row, weight in enumerate(weights):
            moved = weight * torch.eye(4)[row] + 0.9 * torch.eye(4)[2]
            torch.testing.assert_close(bank.memory[row], normalize(moved, dim=0))


def test_loss_without_a_visible_vertex_is_zero_and_finite():
    config = TrainConfig(num_clutter_group=2)
    features = normalize(torch.randn(2, 7, 16), dim=-1).requires_grad_()
    memory = normalize(torch.randn(17, 16), dim=-1)
    nothing = torch.zeros(2, 7, dtype=torch.bool)
    loss = contrastive_loss(features, torch.rand(2, 7, 2), nothing, memory, config)
    loss.backward()
    assert loss.item() == 0
    assert features.grad.abs().max() == 0


def test_clutter_without_weight_is_left_out_of_the_loss():
    config = TrainConfig(num_clutter_group=2, weight_clutter=0.0)
    features = normalize(torch.randn(2, 7, 16), dim=-1)
    memory = normalize(torch.randn(17, 16), dim=-1)
    positions = torch.rand(2, 7, 2) * 500
    visible = torch.rand(2, 7) < 0.7
    results = []
    for rows in (memory, memory[:7]):
        leaf = features.clone().requires_grad_()
        loss = contrastive_loss(leaf, positions, visible, rows, config)
        loss.backward()
        results.append((loss, leaf.grad))
    with_clutter, without = results
    assert all(value.isfinite().all() for value in with_clutter)
    torch.testing.assert_close(with_clutter, without)


def test_reference_ring_leaves_400_clutter_rows_untouched_and_the_full_ring_none():
    for recipe, untouched in (({}, 400), (FIXED_RECIPE, 0)):
        config = replace(TrainConfig(), **recipe)
        bank = Bank.create(3, config, torch.Generator().manual_seed(0), channels=8)
        before = bank.clutter_rows.clone()
        nothing = torch.zeros(108, 3, dtype=torch.bool)
        for _ in range(6):
            noise = normalize(torch.randn(108, 5, 8), dim=-1)
            bank.update(*vertex_sums(torch.randn(108, 3, 8), nothing), noise)
        same = torch.isclose(bank.clutter_rows, before, atol=1e-6).all(1)
        assert same.sum().item() == untouched


@pytest.mark.parametrize(
    "name",
    [
        "lite0",
        "timm:convnext_atto",
        "timm:vit_tiny_patch16_224",
        "timm:swin_tiny_patch4_window7_224",
    ],
)
def test_networks_of_timm_give_a_unit_feature_for_each_cell(name):
    network = FeatureNet(name).eval()
    with torch.no_grad():
        features = network.feature_map(torch.zeros(1, 3, 48, 72), bias=True)
    assert features.shape == (1, 128, 6, 9)
    assert torch.allclose(features.norm(dim=1), torch.ones(1, 6, 9), atol=1e-5)


def test_the_package_of_weights_fills_the_small_backbone():
    random = FeatureNet("lite0").net.body.conv_stem.weight
    network = build_network("lite0", "imagenet")
    again = build_network("lite0", "imagenet")
    assert not torch.equal(random, network.net.body.conv_stem.weight)
    assert torch.equal(network.net.body.conv_stem.weight, again.net.body.conv_stem.weight)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("timm:tf_efficientnet_lite", "did you mean"),
        ("timm:mixer_b16_224", "does not take images of any size"),
        ("timm:hf-hub:someone/something", "has no network"),
    ],
)
def test_networks_that_cannot_be_backbones_are_refused(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        FeatureNet(name)


def test_a_frozen_trunk_keeps_weights_and_statistics_while_the_rest_learns():
    network = FeatureNet("lite0")
    network.freeze()
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    network(torch.randn(2, 3, 32, 32), torch.arange(4).expand(2, -1))[..., 0].sum().backward()
    optimiser.step()
    moved = {key for key, value in network.state_dict().items() if not value.equal(before[key])}
    assert not {key for key in moved if key.startswith("net.body.")}
    assert {"net.lateral.0.weight", "net.smooth.1.running_mean", "out_layer.weight"} <= moved


# ---- dense clutter loss --------------------------------------------------------------------------


def test_dense_clutter_loss_is_the_log_loss_of_vertices_against_clutter():
    random = torch.Generator().manual_seed(0)
    noise = normalize(torch.randn(2, 3, 8, generator=random), dim=-1)
    memory = normalize(torch.randn(7, 8, generator=random), dim=-1)
    # The probability of clutter in a softmax over all rows, written down.
    shares = torch.softmax(noise.flatten(0, 1) @ memory.T / 0.07, 1)
    written = -shares[:, 5:].sum(1).log().mean()
    assert torch.isclose(dense_clutter_loss(noise, memory, 5, 0.07), written, atol=1e-5)
    halves = [dense_clutter_loss(part, memory, 5, 0.07, images=2) for part in noise.split(1)]
    assert torch.isclose(sum(halves), written, atol=1e-5)
