"""The report page: what it says, and that it needs nothing else."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from helpers.small_report import a_card, a_level, a_page, jpeg
from helpers.small_results import CUBOID, make_annotation
from neural_mesh.geometry.cameras import Pose
from neural_mesh.pictures.selection import OverlayMeshes
from neural_mesh.published import FULL_TEST_IMAGES
from neural_mesh.report import cards, charts
from neural_mesh.report.gallery import Gallery
from neural_mesh.report.scores import CategoryScore, EvaluationSets
from neural_mesh.report.timings import duration
from neural_mesh.settings import ALL_AZIMUTHS, Azimuths
from neural_mesh.stages.write_report import write_report
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import write_off
from neural_mesh.storage.records import save_annotation
from neural_mesh.storage.results import PoseSet, load_poses, save_poses
from neural_mesh.storage.timings import load_seconds, record_seconds

CONFIG = {
    "solve": {"solver": "paper", "total_epochs": 300},
    "mesh_d": "single",
    "backbone": "resnet18fpn",
    "recipe": "fixed",
    "image_scale": 0.5,
    "renderer": "numba",
    "checkpoint": "0123",
    "focal_cells": 187.5,
    "principal_xy_cells": [21.0, 8.0],
    "map_hw": [16, 42],
}


# ---- what it says ----


def test_a_page_needs_nothing_else():
    html = a_page()
    assert not re.search(r"https?://|@import|<link(?![^>]*data:,)|src=(?!\"data:)", html)
    assert html.count("data:image/jpeg;base64,") == 12
    assert base64.b64decode(re.search(r"base64,([^\"]+)", html)[1]) == jpeg()


def test_what_is_partial_stands_on_top():
    html = a_page(left_out=["FGL2_BGL2 left out: its images are gone"])
    top = html[: html.index("Accuracy by occlusion")]
    assert "FGL1_BGL1: PARTIAL: no poses of boat." in top and "PARTIAL: FGL2_BGL2 left out" in top
    assert "role=alert" not in a_page(levels=[a_level("")])


def test_texts_are_escaped():
    evil = '<script>alert(1)</script>"'
    level = a_level("", notes=[evil], categories=[evil, "b"])
    html = a_page(
        title=evil, cards=[a_card(evil, "", 1.0, "best", evil)], left_out=[evil], levels=[level]
    )
    assert "<script>alert" not in html and "&lt;script&gt;" in html


def test_charts_show_the_numbers():
    chart = charts.histogram_chart(np.array([0.0, 1.0, 6.0, 179.99, 180.0]))
    assert "0 to 5 degrees: 2 images" in chart
    assert "5 to 10 degrees: 1 images" in chart
    assert "175 to 180 degrees: 2 images" in chart
    errors = np.array([10.0, 20.0, 30.0, 5.0])
    chart = charts.azimuth_chart(errors, np.array([350.0, 0.0, 14.9, 180.0]))
    assert "azimuth 0: median 20.0, 3 images" in chart
    assert "azimuth 180: median 5.0, 1 images" in chart
    chart = charts.accuracy_chart(a_level(""))
    assert "car: 90.0 %" in chart
    assert "chair: 50.0 %" in chart
    levels = [a_level(""), a_level("FGL1_BGL1", mean=(70.0, 40.0))]
    chart = charts.level_chart(levels)
    assert "70.0" in chart
    assert "dashed: the paper" not in chart
    chart = charts.level_chart([replace(level, published=(80.0, 50.0)) for level in levels])
    assert "dashed: the paper" in chart


def test_durations_are_written_for_people():
    assert [duration(s) for s in (0.04, 59.9, 60, 245.2, 3599.6, 7380)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "4 min 05 s",
        "1 h 00 min",
        "2 h 03 min",
    ]


@pytest.mark.parametrize("images", [1, 2, 5, 17, 200])
def test_the_gallery_takes_the_best_those_around_the_median_and_the_worst(images):
    errors = np.random.default_rng(images).permutation(images).astype(float)
    for number in (3, 6, 36):
        places = cards.gallery_places(errors, number)
        ranks = [place.rank for place in places]
        assert ranks == sorted(set(ranks))
        assert len(ranks) == min(number, images, len(ranks))
        assert all(errors[place.index] == place.rank - 1 for place in places)
        assert places[-1].place == "worst"
        assert places[-1].rank == images
        if images >= number:
            assert places[0][1:] == ("best", 1)
            assert sum(place.place == "median" for place in places) >= 1
            assert len(places) == number


def test_the_gallery_is_bounded():
    assert cards.group_size(1) == cards.LARGEST_GROUP
    assert all(groups * cards.group_size(groups) <= 300 for groups in range(1, 49))


# ---- times ----


def test_a_time_is_replaced_by_a_new_run_and_grows_with_a_resumed_one(tmp_path):
    path = tmp_path / "Timings_single" / "solve_poses_car.json"
    record_seconds(path, 10.0, 5, "images")
    record_seconds(path, 2.5, 3, "images", resumed=True)
    assert load_seconds(path) == {
        "seconds": 12.5,
        "items": 8,
        "unit": "images",
        "resumed": True,
        "settings": "",
    }
    record_seconds(path, 3.0, 1, "images", resumed=True, settings="others")
    assert load_seconds(path)["seconds"] == 3.0
    record_seconds(path, 4.0, 8, "images")
    assert load_seconds(path)["seconds"] == 4.0
    path.write_text("{")
    assert load_seconds(path) == {}
    record_seconds(path, 1.0, 1, "images", resumed=True)
    assert load_seconds(path)["seconds"] == 1.0


# ---- the stage ----


@pytest.fixture
def results(tmp_path):
    """Images, clean and occluded, with annotations, and poses of cars that are 0.1 rad off."""
    clean = PreparedSet(tmp_path / "clean")
    occluded = PreparedSet(tmp_path / "occluded")
    experiment = Experiment(tmp_path / "exp", "single")
    write_off(tmp_path / "raw" / "CAD_single" / "car" / "01.off", CUBOID)
    names = [f"n{i}" for i in range(8)]
    for i, name in enumerate(names):
        save_annotation(clean.annotation("car", name), make_annotation(name, 0.4 * i))
        noise = np.random.default_rng(i).integers(0, 255, (256, 672, 3), dtype=np.uint8)
        for prepared, subset in ((clean, "car"), (occluded, "carFGL1_BGL1")):
            path = prepared.image(subset, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(path)
    for prepared, subset in ((clean, "car"), (occluded, "carFGL1_BGL1")):
        prepared.lists(subset).mkdir(parents=True, exist_ok=True)
        listed = "".join(f"{name}.JPEG\n" for name in names)
        (prepared.lists(subset) / "mesh01.txt").write_text(listed)
    azimuth = 0.4 * np.arange(8) + 0.1
    pose = Pose(azimuth, np.full(8, 0.1), np.zeros(8), np.full(8, 5.0))
    ones = np.ones(8, np.int64)
    for level in ("", "FGL1_BGL1"):
        poses = PoseSet("car", level, np.array(names), pose, ones * 0.5, ones, ones, CONFIG)
        save_poses(experiment.poses("car", level), poses)
    record_seconds(experiment.timing("solve_poses", "car"), 65.0, 8, "images")
    return tmp_path


def write(results, *categories: str, azimuths: Azimuths = ALL_AZIMUTHS) -> str:
    """Run the stage, and read its page."""
    experiment = Experiment(results / "exp", "single", azimuths)
    sets = EvaluationSets(PreparedSet(results / "clean"), PreparedSet(results / "occluded"))
    write_report(experiment, RawPascal3D(results / "raw"), sets, categories or ("car",))
    return experiment.report_page.read_text()


def test_the_page_covers_all_levels_and_is_kept_until_something_changes(results, capsys):
    html = write(results)
    assert "2 levels, 16 pictures" in capsys.readouterr().out
    for words in (
        "FGL1_BGL1",
        "1 min 05 s",
        "solver: total_epochs",
        "Pi/6",
        "Not the full test set",
    ):
        assert words in html
    assert "class=published" not in html
    assert "role=alert" not in html
    assert html.count("<article") == 16
    assert "5.7°" in html
    assert write(results) == html
    assert "kept" in capsys.readouterr().out
    record_seconds(results / "exp" / "Timings_single" / "solve_poses_car.json", 5.0, 8, "images")
    assert "5.0 s" in write(results)


def test_what_is_missing_is_said_and_the_page_is_made_again_when_it_is_there(results, capsys):
    image = results / "clean" / "images" / "car" / "n3.JPEG"
    image.rename(results / "away.JPEG")
    shutil.move(results / "occluded", results / "elsewhere")
    html = write(results, "car", "chair")
    assert "PARTIAL: no poses of chair" in html
    assert "PARTIAL: FGL1_BGL1 left out" in html
    assert "1 picture of the gallery could not be made: car n3" in html
    assert "left out" in capsys.readouterr().err
    (results / "away.JPEG").rename(image)
    shutil.move(results / "elsewhere", results / "occluded")
    assert "left out" not in write(results, "car", "chair")


def test_the_published_numbers_stand_beside_the_full_test_set_only(results, monkeypatch):
    published = {("single", ""): {"pi/6": (91.0, 92.0)}}
    monkeypatch.setitem(FULL_TEST_IMAGES, "", 8)
    monkeypatch.setattr("neural_mesh.report.tables.SHORT_NAMES", ("car",))
    monkeypatch.setattr("neural_mesh.report.tables.PUBLISHED", published)
    html = write(results)
    assert html.count("class=published") == 3
    assert "91.0" in html
    assert "dashed: the paper" in html


def test_results_of_different_settings_are_called_mixed(results):
    experiment = Experiment(results / "exp", "single")
    clean = results / "clean"
    shutil.copytree(clean / "annotations" / "car", clean / "annotations" / "chair")
    shutil.copytree(clean / "lists" / "car", clean / "lists" / "chair")
    names = np.array([f"n{i}" for i in range(8)])
    zeros = np.zeros(8)
    pose = Pose(zeros, zeros, zeros, zeros + 5)
    whole = np.zeros(8, int)
    config = json.loads(json.dumps(CONFIG)) | {"recipe": "paper"}
    poses = PoseSet("chair", "", names, pose, zeros, whole, whole + 1, config)
    save_poses(experiment.poses("chair"), poses)
    html = write(results, "car", "chair")
    assert "MIXED: car and chair were solved with different recipe" in html


def test_a_choice_of_azimuths_has_a_page_and_times_of_its_own(results):
    whole = write(results)
    azimuths = Azimuths("TFFTTFFT", "unseen")
    for folder in ("clean", "occluded"):
        prepared = PreparedSet(results / folder, azimuths.test_pattern)
        for subset in ("car", "carFGL1_BGL1"):
            path = prepared.mesh_list("single", subset, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("n0.JPEG\nn1.JPEG\n")
    experiment = Experiment(results / "exp", "single", azimuths)
    poses = load_poses(Experiment(results / "exp", "single").poses("car"))
    columns = {field.name: getattr(poses, field.name) for field in fields(poses)}
    few = {key: v[:2] for key, v in columns.items() if isinstance(v, (np.ndarray, Pose))}
    save_poses(experiment.poses("car"), replace(poses, **few))
    record_seconds(experiment.timing("solve_poses", "car"), 7.25, 2, "images")
    record_seconds(experiment.timing("train", "car"), 3605.0, 2, "epochs")
    html = write(results, azimuths=azimuths)
    assert (results / "exp/Report_single_azum_TFFTTFFT_unseen/index.html").read_text() == html
    assert "trained on the azimuths TFFTTFFT, tested on unseen ones" in html
    assert html.count("<article") == 2
    assert "7.2 s" in html
    assert "1 h 00 min" in html
    assert "1 min 05 s" not in html
    assert write(results) == whole


def test_a_predicted_subtype_is_drawn_with_its_own_cad_model(results, tmp_path):
    poses = load_poses(Experiment(results / "exp", "single").poses("car"))
    for number, size in ((1, 1.0), (2, 2.0)):
        scaled = replace(CUBOID, vertices=size * CUBOID.vertices)
        write_off(tmp_path / f"raw/CAD/car/{number:02d}.off", scaled)
    sets = EvaluationSets(PreparedSet(results / "clean"), PreparedSet(results / "occluded"))
    gallery = Gallery(sets, OverlayMeshes(RawPascal3D(results / "raw"), "multi"))
    for subtype, size in (("annotated", 1.0), ("predicted", 2.0)):
        solver_settings = poses.config["solve"] | {"subtype": subtype}
        config = poses.config | {"mesh_d": "multi", "solve": solver_settings}
        of_second_mesh = replace(poses, mesh=poses.mesh + 1, config=config)
        score = CategoryScore("car", of_second_mesh, np.zeros((8, 3)), np.zeros(8))
        vertices = gallery.mesh(score, 0).vertices
        np.testing.assert_allclose(vertices, size * CUBOID.vertices, atol=1e-5)


def test_without_poses_the_next_command_is_told(results):
    with pytest.raises(FileNotFoundError, match=r"run InferenceNeMo.sh first"):
        write(results, "boat")
