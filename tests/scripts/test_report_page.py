"""The report page: what it says, that it needs nothing else, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from argparse import Namespace
from dataclasses import fields, replace
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image
from test_drawing import CUBOID, make_annotation

import write_report
from helpers.project import cannot_run
from neural_mesh.geometry.cameras import Pose
from neural_mesh.published import FULL_TEST_IMAGES
from neural_mesh.report import page as report_page
from neural_mesh.report.page import Card, LevelReport, Timing
from neural_mesh.settings import Azimuths
from neural_mesh.storage.layout import Experiment, PreparedSet
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
BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 20), (90, 120, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def a_level(level: str, **changes) -> LevelReport:
    errors = np.random.default_rng(0).exponential(12, 60) % 180
    table = [
        ["Metric", "car", "chair", "Mean", "CatMean"],
        ["Pi/6  ", "90.0", "80.0", "85.0", "85.0"],
        ["Pi/6 paper", "", "", "75.8", ""],
    ]
    made = LevelReport(
        level,
        table,
        ["A note."],
        ["car", "chair"],
        [90.0, 80.0],
        [60.0, 50.0],
        errors,
        errors * 2,
        (85.0, 55.0),
        settings={"solver: solver": "paper"},
    )
    return replace(made, **changes)


def a_card(category: str, level: str, error: float, place: str, name: str = "n1") -> Card:
    return Card(category, level, name, error, place, 1, 30, "1°, 2°, 3°", "1°, 2°, 4°", jpeg())


def a_page(**changes) -> str:
    levels = [a_level(""), a_level("FGL1_BGL1", notes=["PARTIAL: no poses of boat."])]
    cards = [
        a_card(c, level, error + 0.5 * (c == "car"), place)
        for c in ("car", "chair")
        for level in ("", "FGL1_BGL1")
        for place, error in (("best", 1.0), ("median", 8.0), ("worst", 90.0))
    ]
    timings = [
        Timing("solve_poses", "car", 75.0, 143, "images", False),
        Timing("draw_results", "clean", 3.25, 6, "pictures", True),
    ]
    content = {
        "title": "NeMo",
        "levels": levels,
        "cards": cards,
        "timings": timings,
        "left_out": [],
        "mark": "abc",
    }
    return report_page.page(**content | changes)


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
    chart = report_page.histogram_chart(np.array([0.0, 1.0, 6.0, 179.99, 180.0]))
    assert (
        "0 to 5 degrees: 2 images" in chart
        and "5 to 10 degrees: 1 images" in chart
        and "175 to 180 degrees: 2 images" in chart
    )
    chart = report_page.azimuth_chart(
        np.array([10.0, 20.0, 30.0, 5.0]), np.array([350.0, 0.0, 14.9, 180.0])
    )
    assert (
        "azimuth 0: median 20.0, 3 images" in chart and "azimuth 180: median 5.0, 1 images" in chart
    )
    chart = report_page.accuracy_chart(a_level(""))
    assert "car: 90.0 %" in chart and "chair: 50.0 %" in chart
    levels = [a_level(""), a_level("FGL1_BGL1", mean=(70.0, 40.0))]
    assert "70.0" in report_page.level_chart(
        levels
    ) and "dashed: the paper" not in report_page.level_chart(levels)
    assert "dashed: the paper" in report_page.level_chart(
        [replace(level, published=(80.0, 50.0)) for level in levels]
    )


def test_durations_are_written_for_people():
    assert [report_page.duration(s) for s in (0.04, 59.9, 60, 245.2, 3599.6, 7380)] == [
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
        places = write_report.gallery_places(errors, number)
        ranks = [rank for _, _, rank in places]
        assert ranks == sorted(set(ranks)) and len(ranks) == min(number, images, len(ranks))
        assert all(errors[i] == rank - 1 for i, _, rank in places)
        assert places[-1][1] == "worst" and places[-1][2] == images
        if images >= number:
            assert (
                places[0][1:] == ("best", 1)
                and sum(place == "median" for _, place, _ in places) >= 1
                and len(places) == number
            )


def test_the_gallery_is_bounded():
    assert write_report.group_size(1) == write_report.LARGEST_GROUP
    assert all(g * write_report.group_size(g) <= 300 for g in range(1, 49))


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


# ---- the entry point ----


@pytest.fixture
def results(tmp_path):
    """Prepared images, clean and occluded, with annotations, and poses of cars at both levels that are 0.1 rad off."""
    clean, occluded = PreparedSet(tmp_path / "clean"), PreparedSet(tmp_path / "occluded")
    experiment = Experiment(tmp_path / "exp", "single")
    write_off(tmp_path / "raw" / "CAD_single" / "car" / "01.off", CUBOID)
    names = [f"n{i}" for i in range(8)]
    for i, name in enumerate(names):
        save_annotation(clean.annotation("car", name), make_annotation(name, 0.4 * i))
        for prepared, subset in ((clean, "car"), (occluded, "carFGL1_BGL1")):
            path = prepared.image(subset, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(
                np.random.default_rng(i).integers(0, 255, (256, 672, 3), dtype=np.uint8)
            ).save(path)
            prepared.lists(subset).mkdir(parents=True, exist_ok=True)
            (prepared.lists(subset) / "mesh01.txt").write_text(
                "".join(f"{n}.JPEG\n" for n in names)
            )
    whole, azimuth = np.ones(8, np.int64), 0.4 * np.arange(8) + 0.1
    for level in ("", "FGL1_BGL1"):
        angles = azimuth, np.full(8, 0.1), np.zeros(8)
        poses = PoseSet(
            "car",
            level,
            np.array(names),
            Pose(*angles, np.full(8, 5.0)),
            whole * 0.5,
            whole,
            whole,
            CONFIG,
        )
        save_poses(experiment.poses("car", level), poses)
    record_seconds(experiment.timing("solve_poses", "car"), 65.0, 8, "images")
    return tmp_path


def write(results, monkeypatch, *options: str) -> str:
    folders = {"--raw": "raw", "--clean": "clean", "--occluded": "occluded", "--exp": "exp"}
    arguments = [word for key, folder in folders.items() for word in (key, str(results / folder))]
    monkeypatch.setattr(
        sys, "argv", ["write_report.py", *arguments, "--categories", "car", *options]
    )
    write_report.main()
    return (results / "exp" / "Report_single" / "index.html").read_text()


def test_the_page_covers_all_levels_and_is_kept_until_something_changes(
    results, monkeypatch, capsys
):
    html = write(results, monkeypatch)
    assert "2 levels, 16 pictures" in capsys.readouterr().out
    assert (
        "FGL1_BGL1" in html
        and "1 min 05 s" in html
        and "solver: total_epochs" in html
        and "Pi/6" in html
    )
    assert (
        "Not the full test set" in html
        and "class=published" not in html
        and "role=alert" not in html
    )
    assert html.count("<article") == 16 and "5.7°" in html
    assert write(results, monkeypatch) == html and "kept" in capsys.readouterr().out
    record_seconds(results / "exp" / "Timings_single" / "solve_poses_car.json", 5.0, 8, "images")
    assert "5.0 s" in write(results, monkeypatch)


def test_what_is_missing_is_said_and_the_page_is_made_again_when_it_is_there(
    results, monkeypatch, capsys
):
    image = results / "clean" / "images" / "car" / "n3.JPEG"
    image.rename(results / "away.JPEG")
    shutil.move(results / "occluded", results / "elsewhere")
    html = write(results, monkeypatch, "--categories", "car chair")
    assert "PARTIAL: no poses of chair" in html and "PARTIAL: FGL1_BGL1 left out" in html
    assert (
        "1 picture of the gallery could not be made: car n3" in html
        and "left out" in capsys.readouterr().err
    )
    (results / "away.JPEG").rename(image)
    shutil.move(results / "elsewhere", results / "occluded")
    assert "left out" not in write(results, monkeypatch, "--categories", "car chair")


def test_the_published_numbers_stand_beside_the_full_test_set_only(results, monkeypatch):
    monkeypatch.setitem(FULL_TEST_IMAGES, "", 8)
    monkeypatch.setattr("neural_mesh.report.tables.SHORT_NAMES", ("car",))
    monkeypatch.setattr(
        "neural_mesh.report.tables.PUBLISHED", {("single", ""): {"pi/6": (91.0, 92.0)}}
    )
    html = write(results, monkeypatch)
    assert html.count("class=published") == 3 and "91.0" in html and "dashed: the paper" in html


def test_results_of_different_settings_are_called_mixed(results, monkeypatch):
    experiment = Experiment(results / "exp", "single")
    shutil.copytree(
        results / "clean" / "annotations" / "car", results / "clean" / "annotations" / "chair"
    )
    shutil.copytree(results / "clean" / "lists" / "car", results / "clean" / "lists" / "chair")
    names = np.array([f"n{i}" for i in range(8)])
    zeros, whole, other = (
        np.zeros(8),
        np.zeros(8, int),
        json.loads(json.dumps(CONFIG)) | {"recipe": "paper"},
    )
    save_poses(
        experiment.poses("chair"),
        PoseSet(
            "chair", "", names, Pose(zeros, zeros, zeros, zeros + 5), zeros, whole, whole + 1, other
        ),
    )
    html = write(results, monkeypatch, "--categories", "car chair")
    assert "MIXED: car and chair were solved with different recipe" in html


def test_a_choice_of_azimuths_has_a_page_and_times_of_its_own(results, monkeypatch):
    whole, azimuths = write(results, monkeypatch), Azimuths("TFFTTFFT", "unseen")
    for prepared in (
        PreparedSet(results / "clean", azimuths.test_pattern),
        PreparedSet(results / "occluded", azimuths.test_pattern),
    ):
        for subset in ("car", "carFGL1_BGL1"):
            path = prepared.mesh_list("single", subset, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("n0.JPEG\nn1.JPEG\n")
    poses = load_poses(Experiment(results / "exp", "single").poses("car"))
    few = {
        field.name: getattr(poses, field.name)
        for field in fields(poses)
        if isinstance(getattr(poses, field.name), np.ndarray)
    }
    experiment = Experiment(results / "exp", "single", azimuths)
    save_poses(
        experiment.poses("car"),
        replace(poses, pose=poses.pose[:2], **{key: column[:2] for key, column in few.items()}),
    )
    record_seconds(experiment.timing("solve_poses", "car"), 7.25, 2, "images")
    record_seconds(experiment.timing("train", "car"), 3605.0, 2, "epochs")
    write(results, monkeypatch, "--azimuths", "TFFTTFFT")
    html = (results / "exp/Report_single_azum_TFFTTFFT_unseen/index.html").read_text()
    assert (
        "trained on the azimuths TFFTTFFT, tested on unseen ones" in html
        and html.count("<article") == 2
    )
    assert "7.2 s" in html and "1 h 00 min" in html and "1 min 05 s" not in html
    assert write(results, monkeypatch) == whole


def test_a_predicted_subtype_is_drawn_with_its_own_cad_model(results, tmp_path):
    poses = load_poses(Experiment(results / "exp", "single").poses("car"))
    for number, size in ((1, 1.0), (2, 2.0)):
        write_off(
            tmp_path / f"raw/CAD/car/{number:02d}.off",
            replace(CUBOID, vertices=size * CUBOID.vertices),
        )
    gallery = write_report.Gallery(
        Namespace(raw=results / "raw", clean=results / "clean", mesh_d="multi")
    )
    for subtype, size in (("annotated", 1.0), ("predicted", 2.0)):
        config = poses.config | {
            "mesh_d": "multi",
            "solve": poses.config["solve"] | {"subtype": subtype},
        }
        row = Namespace(
            category="car",
            names=poses.names.tolist(),
            poses=replace(poses, mesh=poses.mesh + 1, config=config),
        )
        np.testing.assert_allclose(gallery.mesh(row, 0).vertices, size * CUBOID.vertices, atol=1e-5)


def test_without_poses_the_next_command_is_told(results, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"run InferenceNeMo.sh first"):
        write(results, monkeypatch, "--categories", "boat")


# ---- in a browser ----


def unavailable(what: str) -> NoReturn:
    """Skip, or fail in .ci/run, which installs browser and driver."""
    cannot_run(f"needs {what}; .ci/run installs it", "REQUIRE_BROWSER")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that keeps its console's messages."""
    try:
        from selenium import webdriver
    except ImportError:
        unavailable("selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        unavailable("chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*BROWSER_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """The page of `a_page`, opened from a file."""
    path = tmp_path / "index.html"
    path.write_text(a_page())
    browser.get(path.as_uri())
    return browser


def shown(browser) -> list[str]:
    """`category|level|place|error` of the pictures that are visible, in their order."""
    return browser.execute_script(
        "return [...document.querySelectorAll('article')].filter(a => a.offsetParent !== null)"
        ".map(a => [a.dataset.category, a.dataset.level, a.dataset.place, a.dataset.error].join('|'))"
    )


def choose(browser, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", f"filter-{name}")).select_by_value(value)


def test_filters_and_sorting_work_and_the_console_stays_empty(opened):
    assert len(shown(opened)) == 12
    choose(opened, "category", "chair")
    choose(opened, "level", "FGL1_BGL1")
    assert [s.split("|")[2] for s in shown(opened)] == ["best", "median", "worst"]
    assert all(s.startswith("chair|FGL1_BGL1") for s in shown(opened))
    assert opened.find_element("id", "shown").text == "3 of 12 pictures"
    choose(opened, "order", "down")
    assert [s.split("|")[2] for s in shown(opened)] == ["worst", "median", "best"]
    choose(opened, "place", "median")
    assert shown(opened) == ["chair|FGL1_BGL1|median|8.000"]
    choose(opened, "category", "*")
    choose(opened, "level", "*")
    assert [s.split("|")[3] for s in shown(opened)] == ["8.500", "8.500", "8.000", "8.000"]
    decoded = (
        "Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }))"
    )
    finish = (
        "const done = arguments[0]; "
        + decoded
        + ".then(() => done(document.images.length), e => done(String(e)))"
    )
    assert opened.execute_async_script(finish) == 12
    assert opened.get_log("browser") == []


def test_one_level_is_shown_at_a_time(opened):
    def visible() -> list[str]:
        return [
            s.get_attribute("data-level")
            for s in opened.find_elements("css selector", "section.level")
            if s.is_displayed()
        ]

    assert visible() == [""]
    opened.find_element("css selector", "button[data-show=FGL1_BGL1]").click()
    assert visible() == ["FGL1_BGL1"]
    assert (
        opened.find_element("css selector", "button[data-show='']").get_attribute("aria-pressed")
        == "false"
    )


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_width_of_a_screen_scrolls_sideways(opened, width):
    long_table = [["Metric", *(f"category{i}" for i in range(12))], ["Pi/6", *["99.9"] * 12]]
    html = a_page(levels=[a_level("", table=long_table, notes=["x" * 200]), a_level("FGL1_BGL1")])
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=width, height=800, deviceScaleFactor=1, mobile=width < 600),
    )
    opened.execute_script("document.open(); document.write(arguments[0]); document.close();", html)
    wide, inner = opened.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert inner == width and wide <= width
