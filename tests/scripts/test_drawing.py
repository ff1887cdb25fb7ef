"""Pictures: overlays against the PASCAL3D+ projection, planted occluder maps, scans, and files that
repeat bit by bit.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.small_results import CUBOID
from neural_mesh.compare.rasteriser import rasterise_poses
from neural_mesh.compare.scene import Scene, Target, make_scene
from neural_mesh.compare.specification import TorchRenderer
from neural_mesh.geometry.cameras import MapCamera, Pose, project
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.pictures.canvas import DPI, save_figure
from neural_mesh.pictures.captions import ANGLE_NAMES
from neural_mesh.pictures.contact_sheet import Strip, contact_sheet
from neural_mesh.pictures.figures import Panel, ResultTexts, result_figure
from neural_mesh.pictures.film import LAST_SECONDS, film_steps, pose_of_iterate, save_film
from neural_mesh.pictures.landscape import SET_SCANS, Scan, loss_scans, losses_of, scans_around
from neural_mesh.pictures.loss_curves import landscape_lines
from neural_mesh.pictures.mesh_overlay import camera_of_pose, draw_mesh, scale_camera
from neural_mesh.pictures.occluder_map import (
    BACKGROUND,
    LABEL_COLOURS,
    OBJECT,
    OCCLUDED,
    colour_occluder_map,
    occluder_map,
)
from neural_mesh.pictures.selection import SELECTIONS, select_images

POSES = (Pose(0.7, 0.3, 0.2, 5.0), Pose(3.9, -0.2, -0.6, 4.0), Pose(5.5, 1.2, 0.0, 6.0))
CAMERA = MapCamera(40.0, (10.5, 5.5), (12, 20))


def test_the_overlay_covers_the_projected_object_and_nothing_else():
    camera = scale_camera(CAMERA, 16)
    image = np.full((192, 320, 3), 90, np.uint8)
    for pose in POSES:
        placed = replace(pose, principal_xy=camera.principal_xy)
        xy = project(CUBOID.vertices, placed, camera.focal)
        drawn = (draw_mesh(image, CUBOID, pose, camera) != image).any(-1)
        rows, cols = np.nonzero(drawn)
        box = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, [*xy.min(0), *xy.max(0)], atol=1.0)
        # Pixels just inside of the projected vertices.
        inward = (xy + 0.04 * (xy.mean(0) - xy)).astype(int)
        assert drawn[inward[:, 1], inward[:, 0]].all()


def test_the_front_is_orange_and_the_back_is_not():
    camera = scale_camera(CAMERA, 16)
    image = np.zeros((192, 320, 3), np.uint8)
    red, blue = 0, 2
    overlay = draw_mesh(image, CUBOID, Pose(0.0, 0.0, 0.0, 5.0), camera, opacity=1.0)
    front = overlay[80, 160].astype(int)
    assert front[red] > front[blue] + 50
    overlay = draw_mesh(image, CUBOID, Pose(np.pi, 0.0, 0.0, 5.0), camera, opacity=1.0)
    back = overlay[80, 160].astype(int)
    assert back[blue] > back[red] + 50


def test_an_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match="camera is for pictures"):
        draw_mesh(np.zeros((10, 10, 3), np.uint8), CUBOID, POSES[0], CAMERA)


def test_a_picture_without_any_mesh_in_view_is_the_image():
    image = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    camera = MapCamera(40.0, (900.0, 5.5), (12, 20))
    np.testing.assert_array_equal(draw_mesh(image, CUBOID, POSES[0], camera), image)


def planted() -> tuple[Scene, np.ndarray, np.ndarray, np.ndarray]:
    """A scene, scores [P, V], clutter [P] and the labels that they must give: every third row of
    the map is occluded.
    """
    scene = make_scene(CUBOID, CAMERA)
    pose = POSES[0]
    centre, rotation = camera_of_pose(pose)
    on_mesh = rasterise_poses(scene, centre[None], rotation[None])[0][0] >= 0
    occluded = np.broadcast_to(np.arange(12)[:, None] % 3 == 0, (12, 20))
    scores = np.full((240, len(CUBOID.vertices)), 0.5)
    clutter = np.where(occluded, 0.6, 0.4).ravel()
    labels = np.where(on_mesh, np.where(occluded, OCCLUDED, OBJECT), BACKGROUND)
    return scene, scores, clutter, labels


def test_an_occluder_map_is_as_planted():
    scene, scores, clutter, expected = planted()
    labels = occluder_map(scene, scores, clutter, POSES[0])
    np.testing.assert_array_equal(labels, expected)
    assert all((expected == label).sum() > 5 for label in (BACKGROUND, OBJECT, OCCLUDED))


def test_occluder_scores_are_interpolated_between_the_vertices_of_a_triangle():
    """One triangle whose scores grow linearly along x: OBJECT exactly where x lies beyond the
    clutter's level.
    """
    mesh = Mesh(
        np.array([[-9.0, 0.0, -9.0], [9.0, 0.0, -9.0], [0.0, 0.0, 9.0]]),
        np.array([[0, 1, 2]], np.int32),
    )
    scene = make_scene(mesh, MapCamera(20.0, (10.0, 6.0), (12, 20)))
    scores = np.broadcast_to(mesh.vertices[:, 0], (240, 3))
    labels = occluder_map(scene, scores, np.full(240, 0.1), Pose(0.0, 0.0, 0.0, 5.0))
    at_x = (np.arange(20) + 0.5 - 10) / 20 * 5.0  # the plane lies at depth 5
    row = np.where(at_x > 0.1, OBJECT, OCCLUDED)
    np.testing.assert_array_equal(labels, np.broadcast_to(row, (12, 20)))


def test_colours_of_an_occluder_map_follow_its_labels():
    labels = planted()[3]
    picture = colour_occluder_map(np.full((192, 320, 3), 128, np.uint8), labels).astype(int)
    # Inside of the cells, off the hatching.
    centre = picture.reshape(12, 16, 20, 16, 3)[:, 8:10, :, 4:6].mean((1, 3))
    red, green, blue = np.moveaxis(centre, -1, 0)
    assert (green[labels == OBJECT] > red[labels == OBJECT] + 30).all()
    assert (red[labels == OCCLUDED] > green[labels == OCCLUDED] + 30).all()
    assert (np.minimum(red, green)[labels == BACKGROUND] > blue[labels == BACKGROUND] + 20).all()
    with pytest.raises(ValueError, match="does not divide"):
        colour_occluder_map(np.zeros((190, 320, 3), np.uint8), labels)


def test_scans_have_their_minimum_at_a_planted_pose_and_their_value_is_the_loss():
    """A target in which only the cells of the planted picture score: other poses cover others."""
    scene = make_scene(CUBOID, CAMERA)
    pose = POSES[0]
    centre, rotation = camera_of_pose(pose)
    face, _, bary = rasterise_poses(scene, centre[None], rotation[None])
    scores = np.full((240, len(CUBOID.vertices)), -0.5)
    for p, f in enumerate(face.ravel()):
        if f >= 0:
            distance = np.linalg.norm(
                CUBOID.vertices - bary.reshape(-1, 3)[p] @ CUBOID.vertices[CUBOID.faces[f]], axis=1
            )
            scores[p] = np.exp(-((distance / 0.1) ** 2))
    target = Target(torch.as_tensor(scores)[None].float(), torch.zeros(1, 240))
    scans = loss_scans(scene, target, pose, (pose.azimuth + 2 * np.pi - 0.3, 0.5, -2.0), points=61)
    loss, _, _ = TorchRenderer(torch.device("cpu")).compare(
        scene, target, torch.as_tensor(centre)[None], torch.as_tensor(rotation)[None]
    )
    for scan in scans:
        assert scan.loss == pytest.approx(float(loss[0]), abs=1e-6)
        assert abs(scan.angles[scan.losses.argmin()] - scan.at) < 0.1
        assert scan.angles[0] < scan.truth < scan.angles[-1]
    assert [scan.truth for scan in scans] == pytest.approx([pose.azimuth - 0.3, 0.5, -2.0])


def panels(hw: tuple[int, int]) -> list[Panel]:
    image = np.random.default_rng(1).integers(0, 255, (*hw, 3), dtype=np.uint8)
    return [Panel(title, image) for title in ("input", "predicted pose", "occluder map")]


def a_figure():
    angles = np.linspace(-1, 1, 21)
    scans = [Scan(name, angles, angles**2, 0.0, 0.0, 0.3) for name in ANGLE_NAMES]
    texts = ResultTexts("car  a    error 1.0°", "predicted\nannotated", "loss")
    return result_figure(texts, panels((64, 168)), scans, 0.5)


def test_figures_have_the_expected_size_and_repeat_bit_by_bit(tmp_path):
    for name in ("a.png", "b.png"):
        save_figure(tmp_path / name, a_figure())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    height = 4.6 * 64 / 168
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_allclose(
            picture.size, np.array([3 * 4.6 + 1.1, height + 3.6]) * DPI, atol=1
        )
        assert np.asarray(picture).std() > 10
    assert "matplotlib.pyplot" not in sys.modules


def test_a_contact_sheet_grows_by_strips_and_then_by_blocks():
    strip = Strip("car  a    error 1.0°", "details", panels((64, 168)))
    sizes = {n: contact_sheet([strip] * n, "title").get_size_inches() for n in (1, 6, 12)}
    assert sizes[6][0] == sizes[1][0] and sizes[6][1] > sizes[1][1] + 5
    assert sizes[12][0] > 1.9 * sizes[6][0] and sizes[12][1] == pytest.approx(sizes[6][1])


def test_no_strip_of_a_contact_sheet_of_mixed_shapes_is_lost():
    strips = [
        Strip(f"{k}", "", panels(hw)) for k, hw in enumerate([(64, 48)] * 4 + [(32, 100)] * 9)
    ]
    texts = {text.get_text() for text in contact_sheet(strips, "title").texts}
    assert {str(k) for k in range(13)} <= texts


@pytest.mark.parametrize(
    ("how", "expected"),
    [("best", [4, 0]), ("worst", [1, 2]), ("median", [0, 3]), ("spread", [4, 2])],
)
def test_images_are_selected_by_error(how, expected):
    errors = np.array([0.2, 0.4, 0.9, 0.3, 0.1])
    assert select_images(errors, 2, how, 0) == expected


def test_selection_takes_all_when_there_are_fewer_and_random_depends_on_the_seed():
    errors = np.random.default_rng(0).random(50)
    for how in SELECTIONS:
        assert sorted(select_images(errors[:3], 7, how, 0)) == [0, 1, 2]
        assert len(set(select_images(errors, 7, how, 0))) == 7
    first, again, other = (select_images(errors, 7, "random", seed) for seed in (0, 0, 1))
    assert first == again != other


def test_the_three_labels_differ_in_lightness():
    """Contrast as WCAG has it, at least 1.8 between neighbours: told apart in print and by
    colour-blind readers.
    """
    shade = LABEL_COLOURS / 255
    linear = np.where(shade <= 0.04045, shade / 12.92, ((shade + 0.055) / 1.055) ** 2.4)
    light = np.sort(linear @ [0.2126, 0.7152, 0.0722])
    assert ((light[1:] + 0.05) / (light[:-1] + 0.05) > 1.8).all()


# ---- films ----


def test_a_film_takes_more_pictures_where_the_camera_moves_more():
    azimuth = np.concatenate([np.linspace(0, 1.5, 20), np.full(280, 1.5)])
    path = np.stack([5 * np.sin(azimuth), -5 * np.cos(azimuth), np.zeros(300), np.zeros(300)], 1)
    steps = film_steps(path, 24)
    assert steps[0] == 0 and steps[-1] == 299 and steps == sorted(set(steps)) and len(steps) <= 25
    assert sum(step < 20 for step in steps) > 0.5 * len(steps)
    assert film_steps(path[:1]) == [0] and film_steps(path[:3]) == [0, 1, 2]
    pose = pose_of_iterate(np.array([*(5 * np.array([np.sin(0.4), -np.cos(0.4), 0.0])), 0.2]))
    found = [*pose.angles, pose.distance]
    np.testing.assert_allclose(found, (0.4, 0.0, 0.2, 5.0), atol=1e-12)


def test_a_film_keeps_its_pictures_in_order_and_stays_on_the_last(tmp_path):
    frames = [np.full((20, 30, 3), shade, np.uint8) for shade in (10, 120, 240)]
    save_film(tmp_path / "film.gif", frames, seconds=3.0)
    shades = []
    durations = []
    with Image.open(tmp_path / "film.gif") as film:
        assert film.info["loop"] == 0
        for k in range(film.n_frames):
            film.seek(k)
            shades.append(int(np.asarray(film.convert("RGB")).mean()))
            durations.append(film.info["duration"])
    np.testing.assert_allclose(shades, [10, 120, 240], atol=4)
    assert durations == [1000, 1000, 1000 * LAST_SECONDS]
    with pytest.raises(ValueError, match="at least one picture"):
        save_film(tmp_path / "none.gif", [])


# ---- scans over a set ----


def test_scans_around_a_pose_pass_through_it_and_stop_at_the_poles():
    scene, scores, clutter, _ = planted()
    target = Target(torch.as_tensor(scores)[None].float(), torch.as_tensor(clutter)[None].float())
    loss = float(losses_of(scene, target, [POSES[0]])[0])
    for name, (offsets, losses) in scans_around(scene, target, POSES[0]).items():
        reach, points = SET_SCANS[name]
        assert offsets[0] == -reach and offsets[-1] == reach and len(losses) == points
        assert losses[points // 2] == pytest.approx(loss, abs=1e-6), name
        gone = np.zeros(points, bool)
        if name == "elevation":
            gone = abs(POSES[0].elevation + offsets) > np.pi / 2
        np.testing.assert_array_equal(np.isnan(losses), gone)
    near = scans_around(scene, target, replace(POSES[0], distance=1.0))["distance"]
    assert np.isnan(near[1][near[0] <= -1]).all() and np.isfinite(near[1][near[0] > -0.9]).all()


def test_landscape_lines_are_the_moments_of_the_curves():
    losses = np.array([[1.0, 2.0], [3.0, np.nan]])
    lines = landscape_lines({"azimuth": (np.array([0.0, np.pi / 2]), losses)})
    assert lines[1] == [
        "azimuth",
        "0.000",
        2,
        "2.000000",
        "1.000000",
        "1.200000",
        "2.000000",
        "2.800000",
    ]
    assert lines[2][:5] == ["azimuth", "90.000", 1, "2.000000", "0.000000"]
