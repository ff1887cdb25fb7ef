"""Pictures: overlays against the PASCAL3D+ projection, planted occluder maps, scans, and files that repeat bit by bit."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import draw_results
from neural_mesh.compare import rendering
from neural_mesh.compare.rendering import Target, make_scene
from neural_mesh.geometry.cameras import MapCamera, Pose, project
from neural_mesh.geometry.meshes import CuboidGrid, Mesh, cuboid_mesh
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.pictures import drawing, plots
from neural_mesh.pictures.drawing import BACKGROUND, OBJECT, OCCLUDED
from neural_mesh.pictures.plots import Panel, Row
from neural_mesh.settings import SolveConfig, TrainConfig
from neural_mesh.solve.model import load_model
from neural_mesh.solve.shards import run_config
from neural_mesh.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from neural_mesh.storage.layout import Experiment, PreparedSet
from neural_mesh.storage.mesh_files import write_off
from neural_mesh.storage.records import Annotation, save_annotation
from neural_mesh.storage.results import PoseSet, load_poses, save_poses

CUBOID = cuboid_mesh(
    CuboidGrid(np.array([-0.2, -0.5, -0.15]), np.array([0.25, 0.4, 0.2]), (5, 10, 4))
)
POSES = (Pose(0.7, 0.3, 0.2, 5.0), Pose(3.9, -0.2, -0.6, 4.0), Pose(5.5, 1.2, 0.0, 6.0))
CAMERA = MapCamera(40.0, (10.5, 5.5), (12, 20))


def test_the_overlay_covers_the_projected_object_and_nothing_else():
    camera = drawing.scale_camera(CAMERA, 16)
    image = np.full((192, 320, 3), 90, np.uint8)
    for pose in POSES:
        placed = replace(pose, principal_xy=camera.principal_xy)
        xy = project(CUBOID.vertices, placed, camera.focal)
        drawn = (drawing.draw_mesh(image, CUBOID, pose, camera) != image).any(-1)
        rows, cols = np.nonzero(drawn)
        box = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, [*xy.min(0), *xy.max(0)], atol=1.0)
        inward = (xy + 0.04 * (xy.mean(0) - xy)).astype(
            int
        )  # pixels just inside of the projected vertices
        assert drawn[inward[:, 1], inward[:, 0]].all()


def test_the_front_is_orange_and_the_back_is_not():
    camera, image = drawing.scale_camera(CAMERA, 16), np.zeros((192, 320, 3), np.uint8)
    front, back = (
        drawing.draw_mesh(image, CUBOID, Pose(azimuth, 0.0, 0.0, 5.0), camera, opacity=1.0)[
            80, 160
        ].astype(int)
        for azimuth in (0.0, np.pi)
    )
    assert front[0] > front[2] + 50 and back[2] > back[0] + 50  # red over blue, and the reverse


def test_an_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match="camera is for pictures"):
        drawing.draw_mesh(np.zeros((10, 10, 3), np.uint8), CUBOID, POSES[0], CAMERA)


def test_a_picture_without_any_mesh_in_view_is_the_image():
    image = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    camera = MapCamera(40.0, (900.0, 5.5), (12, 20))
    np.testing.assert_array_equal(drawing.draw_mesh(image, CUBOID, POSES[0], camera), image)


def planted() -> tuple[rendering.Scene, np.ndarray, np.ndarray, np.ndarray]:
    """A scene, scores [P, V], clutter [P] and the labels that they must give: every third row of the map is occluded."""
    scene, pose = make_scene(CUBOID, CAMERA), POSES[0]
    centre, rotation = drawing.camera_of_pose(pose)
    on_mesh = rendering.rasterise_poses(scene, centre[None], rotation[None])[0][0] >= 0
    occluded = np.broadcast_to(np.arange(12)[:, None] % 3 == 0, (12, 20))
    scores = np.full((240, len(CUBOID.vertices)), 0.5)
    clutter = np.where(occluded, 0.6, 0.4).ravel()
    return (
        scene,
        scores,
        clutter,
        np.where(on_mesh, np.where(occluded, OCCLUDED, OBJECT), BACKGROUND),
    )


def test_an_occluder_map_is_as_planted():
    scene, scores, clutter, expected = planted()
    labels = drawing.occluder_map(scene, scores, clutter, POSES[0])
    np.testing.assert_array_equal(labels, expected)
    assert all((expected == label).sum() > 5 for label in (BACKGROUND, OBJECT, OCCLUDED))


def test_occluder_scores_are_interpolated_between_the_vertices_of_a_triangle():
    """One triangle whose scores grow linearly along x: OBJECT exactly where x lies beyond the clutter's level."""
    mesh = Mesh(
        np.array([[-9.0, 0.0, -9.0], [9.0, 0.0, -9.0], [0.0, 0.0, 9.0]]),
        np.array([[0, 1, 2]], np.int32),
    )
    scene = make_scene(mesh, MapCamera(20.0, (10.0, 6.0), (12, 20)))
    scores = np.broadcast_to(mesh.vertices[:, 0], (240, 3))
    labels = drawing.occluder_map(scene, scores, np.full(240, 0.1), Pose(0.0, 0.0, 0.0, 5.0))
    at_x = (np.arange(20) + 0.5 - 10) / 20 * 5.0  # the plane lies at depth 5
    np.testing.assert_array_equal(
        labels, np.broadcast_to(np.where(at_x > 0.1, OBJECT, OCCLUDED), (12, 20))
    )


def test_colours_of_an_occluder_map_follow_its_labels():
    labels = planted()[3]
    picture = drawing.colour_occluder_map(np.full((192, 320, 3), 128, np.uint8), labels).astype(int)
    centre = picture.reshape(12, 16, 20, 16, 3)[:, 8:10, :, 4:6].mean(
        (1, 3)
    )  # inside of the cells, off the hatching
    red, green, blue = np.moveaxis(centre, -1, 0)
    assert (green[labels == OBJECT] > red[labels == OBJECT] + 30).all()
    assert (red[labels == OCCLUDED] > green[labels == OCCLUDED] + 30).all()
    assert (np.minimum(red, green)[labels == BACKGROUND] > blue[labels == BACKGROUND] + 20).all()
    with pytest.raises(ValueError, match="does not divide"):
        drawing.colour_occluder_map(np.zeros((190, 320, 3), np.uint8), labels)


def test_scans_have_their_minimum_at_a_planted_pose_and_their_value_is_the_loss():
    """A target that only the cells of the planted picture score in: any other pose covers others."""
    scene, pose = make_scene(CUBOID, CAMERA), POSES[0]
    centre, rotation = drawing.camera_of_pose(pose)
    face, _, bary = rendering.rasterise_poses(scene, centre[None], rotation[None])
    scores = np.full((240, len(CUBOID.vertices)), -0.5)
    for p, f in enumerate(face.ravel()):
        if f >= 0:
            distance = np.linalg.norm(
                CUBOID.vertices - bary.reshape(-1, 3)[p] @ CUBOID.vertices[CUBOID.faces[f]], axis=1
            )
            scores[p] = np.exp(-((distance / 0.1) ** 2))
    target = Target(torch.as_tensor(scores)[None].float(), torch.zeros(1, 240))
    scans = drawing.loss_scans(
        scene, target, pose, (pose.azimuth + 2 * np.pi - 0.3, 0.5, -2.0), points=61
    )
    loss, _, _ = rendering.compare(
        scene, target, torch.as_tensor(centre)[None], torch.as_tensor(rotation)[None], "torch"
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
    scans = [drawing.Scan(name, angles, angles**2, 0.0, 0.0, 0.3) for name in drawing.SCAN_NAMES]
    return plots.result_figure(
        "car  a    error 1.0°", "predicted\nannotated", "loss", panels((64, 168)), scans, 0.5
    )


def test_figures_have_the_expected_size_and_repeat_bit_by_bit(tmp_path):
    for name in ("a.png", "b.png"):
        plots.save_figure(tmp_path / name, a_figure())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    height = 4.6 * 64 / 168
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_allclose(
            picture.size, np.array([3 * 4.6 + 1.1, height + 3.6]) * plots.DPI, atol=1
        )
        assert np.asarray(picture).std() > 10
    assert "matplotlib.pyplot" not in sys.modules


def test_a_contact_sheet_grows_by_rows_and_then_by_blocks():
    row = Row("car  a    error 1.0°", "details", panels((64, 168)))
    sizes = {n: plots.contact_sheet([row] * n, "title").get_size_inches() for n in (1, 6, 12)}
    assert sizes[6][0] == sizes[1][0] and sizes[6][1] > sizes[1][1] + 5
    assert sizes[12][0] > 1.9 * sizes[6][0] and sizes[12][1] == pytest.approx(sizes[6][1])


def test_no_row_of_a_contact_sheet_of_mixed_shapes_is_lost():
    rows = [Row(f"{k}", "", panels(hw)) for k, hw in enumerate([(64, 48)] * 4 + [(32, 100)] * 9)]
    texts = {text.get_text() for text in plots.contact_sheet(rows, "title").texts}
    assert {str(k) for k in range(13)} <= texts


@pytest.mark.parametrize(
    ("how", "expected"),
    [("best", [4, 0]), ("worst", [1, 2]), ("median", [0, 3]), ("spread", [4, 2])],
)
def test_images_are_selected_by_error(how, expected):
    errors = np.array([0.2, 0.4, 0.9, 0.3, 0.1])
    assert draw_results.select_images(errors, 2, how, 0) == expected


def test_selection_takes_all_when_there_are_fewer_and_random_depends_on_the_seed():
    errors = np.random.default_rng(0).random(50)
    for how in draw_results.SELECTIONS:
        assert sorted(draw_results.select_images(errors[:3], 7, how, 0)) == [0, 1, 2]
        assert len(set(draw_results.select_images(errors, 7, how, 0))) == 7
    first, again, other = (
        draw_results.select_images(errors, 7, "random", seed) for seed in (0, 0, 1)
    )
    assert first == again != other


# ---- the entry point, with an untrained network ----


def make_annotation(name: str, azimuth: float) -> Annotation:
    bbox, principal = np.array([50, 30, 600, 250]), np.array([350.0, 150.0])
    return Annotation(
        name,
        np.zeros(6),
        np.zeros(6),
        np.array([0, 256, 0, 672, 256, 672]),
        np.zeros((2, 2)),
        np.zeros(2),
        Pose(azimuth, 0.1, 0.0, 5.0, principal),
        1.0,
        3000.0,
        300,
        700,
        1,
        bbox,
        "exact",
        1.0,
        np.zeros(2),
    )


@pytest.fixture
def world(tmp_path):
    """A raw folder with a CAD model, two prepared crops with annotations, a checkpoint, and poses found with it."""
    torch.manual_seed(0)
    prepared, experiment = (
        PreparedSet(tmp_path / "prepared"),
        Experiment(tmp_path / "exp", "single"),
    )
    write_off(tmp_path / "raw" / "CAD" / "car" / "01.off", CUBOID)
    names, generator = ["a", "b", "c"], np.random.default_rng(0)
    for i, name in enumerate(names):
        prepared.image("car", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (256, 672, 3), dtype=np.uint8)).save(
            prepared.image("car", name)
        )
        save_annotation(prepared.annotation("car", name), make_annotation(name, 0.2 * i))
    config = TrainConfig(backbone="resnet18fpn", image_scale=0.5, num_clutter_group=1)
    memory = torch.nn.functional.normalize(torch.randn(len(CUBOID.vertices) + 5, 128), dim=1)
    path = experiment.network_folder / "saved_model_car_last.pth"
    save_checkpoint(
        path, Checkpoint(FeatureNet("resnet18fpn").state_dict(), [memory], [CUBOID], config, 1)
    )
    settings = run_config(load_model(path, "car", tmp_path), SolveConfig(), "", "")
    angles = np.array([0.1, 0.3, np.nan])
    loss, whole = np.full(3, 0.9), np.ones(3, np.int64)
    pose = Pose(angles, angles, angles, 5 + angles)
    poses = PoseSet("car", "", np.array(names), pose, loss, whole, whole, settings)
    save_poses(experiment.poses("car"), poses)
    return tmp_path


def draw(world, monkeypatch, *options: str) -> None:
    folders = {"--raw": "raw", "--prepared": "prepared", "--clean": "prepared", "--exp": "exp"}
    arguments = [word for key, folder in folders.items() for word in (key, str(world / folder))]
    monkeypatch.setattr(
        sys, "argv", ["draw_results.py", *arguments, "--gpus", "", "--categories", "car", *options]
    )
    draw_results.main()


def test_the_entry_point_draws_once_and_repeats_itself(world, monkeypatch, capsys):
    folder = world / "exp" / "Report_single" / "clean"
    draw(world, monkeypatch, "--images", "1")
    first = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert list(first) == ["car_a.png", "overview.png", "pictures.json"]
    printed = capsys.readouterr().out
    assert "1 figure of 1 category" in printed and "1 pose not finite" in printed
    draw(world, monkeypatch, "--images", "1")
    assert "kept" in capsys.readouterr().out
    (folder / "pictures.json").unlink()
    draw(world, monkeypatch, "--images", "1")
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == first


def test_the_entry_point_tells_what_is_wrong(world, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no poses of car"):
        draw(world, monkeypatch, "--level", "FGL1_BGL1")
    (world / "prepared" / "images" / "car" / "a.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match="image not found"):
        draw(world, monkeypatch)
    path = world / "exp" / "NeMo_single" / "saved_model_car_last.pth"
    save_checkpoint(path, Checkpoint(**{**vars(load_checkpoint(path)), "epoch": 2}))
    with pytest.raises(ValueError, match="solved with checkpoint"):
        draw(world, monkeypatch)


def test_the_three_labels_differ_in_lightness():
    """Contrast as WCAG has it, at least 1.8 between neighbours: told apart in print and by colour-blind readers."""
    shade = drawing.LABEL_COLOURS / 255
    linear = np.where(shade <= 0.04045, shade / 12.92, ((shade + 0.055) / 1.055) ** 2.4)
    light = np.sort(linear @ [0.2126, 0.7152, 0.0722])
    assert ((light[1:] + 0.05) / (light[:-1] + 0.05) > 1.8).all()


# ---- films ----


def test_a_film_takes_more_pictures_where_the_camera_moves_more():
    azimuth = np.concatenate([np.linspace(0, 1.5, 20), np.full(280, 1.5)])
    path = np.stack([5 * np.sin(azimuth), -5 * np.cos(azimuth), np.zeros(300), np.zeros(300)], 1)
    steps = drawing.film_steps(path, 24)
    assert steps[0] == 0 and steps[-1] == 299 and steps == sorted(set(steps)) and len(steps) <= 25
    assert sum(step < 20 for step in steps) > 0.5 * len(steps)
    assert drawing.film_steps(path[:1]) == [0] and drawing.film_steps(path[:3]) == [0, 1, 2]
    pose = drawing.pose_of_iterate(
        np.array([*(5 * np.array([np.sin(0.4), -np.cos(0.4), 0.0])), 0.2])
    )
    found = [*pose.angles, pose.distance]
    np.testing.assert_allclose(found, (0.4, 0.0, 0.2, 5.0), atol=1e-12)


def test_a_film_keeps_its_pictures_in_order_and_stays_on_the_last(tmp_path):
    frames = [np.full((20, 30, 3), shade, np.uint8) for shade in (10, 120, 240)]
    drawing.save_film(tmp_path / "film.gif", frames, seconds=3.0)
    shades, durations = [], []
    with Image.open(tmp_path / "film.gif") as film:
        assert film.info["loop"] == 0
        for k in range(film.n_frames):
            film.seek(k)
            shades.append(int(np.asarray(film.convert("RGB")).mean()))
            durations.append(film.info["duration"])
    np.testing.assert_allclose(shades, [10, 120, 240], atol=4)
    assert durations == [1000, 1000, 1000 * drawing.LAST_SECONDS]
    with pytest.raises(ValueError, match="at least one picture"):
        drawing.save_film(tmp_path / "none.gif", [])


# ---- scans over a set ----


def test_scans_around_a_pose_pass_through_it_and_stop_at_the_poles():
    scene, scores, clutter, _ = planted()
    target = Target(torch.as_tensor(scores)[None].float(), torch.as_tensor(clutter)[None].float())
    loss = float(drawing.losses_of(scene, target, [POSES[0]])[0])
    for name, (offsets, losses) in drawing.scans_around(scene, target, POSES[0]).items():
        reach, points = drawing.SET_SCANS[name]
        assert offsets[0] == -reach and offsets[-1] == reach and len(losses) == points
        assert losses[points // 2] == pytest.approx(loss, abs=1e-6), name
        gone = (
            abs(POSES[0].elevation + offsets) > np.pi / 2
            if name == "elevation"
            else np.zeros(points, bool)
        )
        np.testing.assert_array_equal(np.isnan(losses), gone)
    near = drawing.scans_around(scene, target, replace(POSES[0], distance=1.0))["distance"]
    assert np.isnan(near[1][near[0] <= -1]).all() and np.isfinite(near[1][near[0] > -0.9]).all()


def test_landscape_lines_are_the_moments_of_the_curves():
    losses = np.array([[1.0, 2.0], [3.0, np.nan]])
    lines = draw_results.landscape_lines({"azimuth": (np.array([0.0, np.pi / 2]), losses)})
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


# ---- the other drawings of the entry point ----


def pictures_in(folder) -> set[str]:
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10, path
    return {path.name for path in folder.iterdir()}


def test_a_film_ends_in_the_solved_pose(world, monkeypatch, capsys):
    draw(world, monkeypatch, "--images", "1", "--film", "1")
    folder = world / "exp" / "Report_single" / "clean"
    assert "1 figure, 1 film of 1 category" in capsys.readouterr().out
    (film,) = folder.glob("*.gif")
    with Image.open(film) as opened:
        assert opened.n_frames > 5 and opened.width < 900
        first = np.asarray(opened.convert("RGB")).astype(int)
        opened.seek(opened.n_frames - 1)
        assert (abs(np.asarray(opened.convert("RGB")) - first).max(-1) > 40).mean() > 0.002


def test_a_loss_landscape_over_a_set(world, monkeypatch, capsys):
    draw(world, monkeypatch, "--landscape", "prediction")
    folder = world / "exp" / "Report_single" / "clean"
    assert "loss landscapes of 2 images of 1 category" in capsys.readouterr().out
    assert pictures_in(folder) == {
        f"landscape_car_prediction.{end}" for end in ("csv", "npz", "png")
    }
    stored = np.load(folder / "landscape_car_prediction.npz", allow_pickle=False)
    assert stored["names"].tolist() == ["a", "b"] and stored["azimuth_losses"].shape == (2, 121)
    np.testing.assert_allclose(
        stored["azimuth_losses"][:, 60], stored["distance_losses"][:, 20], atol=1e-6
    )


def test_viewpoints_of_annotated_and_predicted_poses(world, monkeypatch, capsys):
    draw(world, monkeypatch, "--viewpoints")
    assert "viewpoints of 2 images" in capsys.readouterr().out
    assert pictures_in(world / "exp" / "Report_single" / "clean") == {"viewpoints_car.png"}


def test_any_pose_file_can_be_drawn_without_a_checkpoint(world, monkeypatch, capsys):
    (world / "exp" / "NeMo_single" / "saved_model_car_last.pth").unlink()
    draw(world, monkeypatch, "--poses", str(world / "exp" / "Poses_single" / "car.npz"))
    mine = world / "mine.csv"
    mine.write_text("name,azimuth_deg,elevation_deg,theta_deg\na,0,5.73,0\n")
    draw(world, monkeypatch, "--poses", str(mine))
    printed = capsys.readouterr().out
    assert "car: 2 poses of 3 drawn" in printed and "car: 1 pose of 1 drawn" in printed
    assert pictures_in(world / "exp" / "Report_single" / "clean") == {
        "poses_car.png",
        "poses_mine.png",
    }
    mine.write_text("name,azimuth_deg\na,0\n")
    with pytest.raises(ValueError, match="every line needs name, azimuth_deg"):
        draw(world, monkeypatch, "--poses", str(mine))
    mine.write_text("name,azimuth_deg,elevation_deg,theta_deg\nzebra,0,0,0\n")
    with pytest.raises(FileNotFoundError, match="name the set that the poses belong to"):
        draw(world, monkeypatch, "--poses", str(mine))


def test_two_runs_are_compared(world, monkeypatch, capsys):
    """The other run is 0.5 rad off in image a and right in image b; this one is 0.1 rad off in both."""
    ours = load_poses(world / "exp" / "Poses_single" / "car.npz")
    truth = np.array([0.0, 0.2, 0.4])
    flat = dict(elevation=np.full(3, 0.1), theta=np.zeros(3), distance=np.full(3, 5.0))
    save_poses(
        world / "exp" / "Poses_single" / "car.npz", replace(ours, azimuth=truth + 0.1, **flat)
    )
    other = replace(ours, azimuth=truth + [0.5, 0.0, 0.1], **flat)
    save_poses(world / "other" / "Poses_single" / "car.npz", other)
    draw(world, monkeypatch, "--compare", str(world / "other"))
    assert (
        "3 images compared with" in (printed := capsys.readouterr().out)
        and "1 better, 1 worse; pi/6 100.0 -> 100.0" in printed
    )
    folder = world / "exp" / "Report_single" / "clean"
    assert pictures_in(folder) == {
        "comparison_other.csv",
        "comparison_other.png",
        "comparison_other_pictures.png",
    }
    lines = [line.split(",") for line in (folder / "comparison_other.csv").read_text().splitlines()]
    assert [line[1] for line in lines] == ["name", "a", "c", "b"]
    np.testing.assert_allclose(
        [float(line[4]) for line in lines[1:]], np.rad2deg([-0.4, 0.0, 0.1]), atol=0.01
    )
    with pytest.raises(FileNotFoundError, match="has no Poses_single"):
        draw(world, monkeypatch, "--compare", str(world / "nothing"))
