"""Confidence: calibrated where evidence is logistic, kept in a file, fitted on a prepared set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.photographs import MESH, TRUTH, make_colour_finder, planted
from neural_mesh.photographs import calibration_images
from neural_mesh.photographs.calibration import (
    brier_score,
    calibrate,
    calibration_error,
    load_calibration,
    reliability,
    save_calibration,
)
from neural_mesh.photographs.calibration_images import (
    CalibrationOptions,
    calibrate_finder,
    calibration_names,
    disturbed,
)
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.settings import TrainConfig
from neural_mesh.stages.predict import describe_calibration
from neural_mesh.storage.checkpoints import Checkpoint
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import Annotation, save_annotation
from neural_mesh.training.validation import hold_out

CROP_HW = (256, 672)
MIDDLE_XY = (336.0, 128.0)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_confidence_is_calibrated_where_the_evidence_is_logistic():
    random = np.random.default_rng(0)
    evidence = random.standard_normal((4000, 2)) * [3.0, 0.1] + [10.0, 0.0]
    chance = 1 / (1 + np.exp(-(1.2 * (evidence[:, 0] - 10) / 3 + 0.4)))
    right = random.random(4000) < chance
    calibration = calibrate(evidence[:2000], right[:2000], ("a", "b"), {}, {})
    confidence = calibration.confidence(evidence[2000:])
    assert np.abs(confidence - chance[2000:]).mean() < 0.03
    assert calibration_error(confidence, right[2000:]) < 0.05
    assert calibration.calibration_error < 0.06
    constant = np.full(2000, right.mean())
    brier_of_constant = brier_score(constant, right[2000:])
    assert brier_score(confidence, right[2000:]) < brier_of_constant - 0.02


def test_scores_of_confidences_by_hand():
    assert brier_score([0.9, 0.2], [1, 0]) == pytest.approx((0.01 + 0.04) / 2)
    confidence = [0.95, 0.95, 0.15]
    right = [1, 0, 0]
    assert calibration_error(confidence, right) == pytest.approx((2 * 0.45 + 0.15) / 3)
    assert reliability(confidence, right) == [(0.15, 0.0, 1), (pytest.approx(0.95), 0.5, 2)]


def test_a_calibration_survives_its_file_and_says_what_is_missing(tmp_path):
    file = tmp_path / "c.json"
    names = ("a", "b", "c")
    random = np.random.default_rng(1)
    evidence = random.standard_normal((60, 3))
    right = evidence[:, 0] + random.standard_normal(60) > 0
    calibration = calibrate(evidence, right, names, {"checkpoint": "x"}, {"seed": 0})
    save_calibration(file, calibration)
    assert load_calibration(file) == calibration
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json: not a calibration"):
        load_calibration(file)
    with pytest.raises(ValueError, match="all of 60 poses are right"):
        calibrate(evidence, np.ones(60), names, {}, {})
    with pytest.raises(ValueError, match="at least 20"):
        calibrate(evidence[:5], np.ones(5), names, {}, {})


def write_prepared(prepared: PreparedSet, images: int) -> None:
    """Crops that show the annotated pose, and every third one noise instead."""
    names = [f"image{i:02d}" for i in range(images)]
    for i, name in enumerate(names):
        truth = replace(TRUTH, azimuth=0.25 * i)
        crop, box = planted(truth, 3000.0, MIDDLE_XY, CROP_HW)
        if i % 3 == 0:
            crop = np.random.default_rng(i).integers(60, 160, crop.shape).astype(np.uint8)
        annotation = Annotation(
            name=name,
            box=np.zeros(6),
            box_ori=np.zeros(6),
            box_obj=np.array([box[1], box[3], box[0], box[2], *CROP_HW]),
            cropped_kp_list=np.zeros((0, 2)),
            visible=np.zeros(0),
            pose=replace(truth, principal_xy=np.array(MIDDLE_XY)),
            focal=1.0,
            viewport=3000.0,
            height=CROP_HW[0],
            width=CROP_HW[1],
            cad_index=1,
            bbox=box,
            geometry="exact",
            crop_scale=1.0,
            crop_offset=np.zeros(2),
        )
        save_annotation(prepared.annotation("car", name), annotation)
        prepared.image("car", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(prepared.image("car", name), quality=95)
    names_file = prepared.mesh_list("single", "car", 1)
    names_file.parent.mkdir(parents=True)
    names_file.write_text("".join(f"{name}.JPEG\n" for name in names))
    prepared.source("car").parent.mkdir(parents=True)
    prepared.source("car").write_text("{}")


def test_calibration_on_a_prepared_set_tells_right_from_wrong(tmp_path):
    prepared = PreparedSet(tmp_path / "set")
    write_prepared(prepared, images=24)
    file = tmp_path / "car.confidence.json"
    other_finder = make_colour_finder()
    config = replace(other_finder.config, picture_zooms=(1.0,))
    finder = PoseFinder(other_finder.model, config)
    calibration = calibrate_finder(finder, prepared, CalibrationOptions(images=100))
    expected = "calibrated on 24 images of a set not trained on (66.7% right within pi/6)"
    assert expected in describe_calibration(calibration)
    save_calibration(file, calibration)
    # made with other settings
    assert not other_finder.use_calibration(file)
    assert other_finder.calibration is None
    assert finder.use_calibration(file)
    image, box = planted(TRUTH, 1500.0, (310.0, 200.0), (400, 640))
    noise = np.random.default_rng(5).integers(60, 160, image.shape).astype(np.uint8)
    assert finder.find(image, box).confidence > 0.8
    assert finder.find(noise, box).confidence < 0.4


@pytest.mark.parametrize("covered", [0.0, 0.5])
def test_a_calibration_hides_as_much_of_an_object_as_the_occlusion_levels(covered, monkeypatch):
    monkeypatch.setattr(calibration_images, "CALIBRATION_NOISE", 0.0)
    monkeypatch.setattr(calibration_images, "change_colour", lambda image, random: image)
    crop = np.full((*CROP_HW, 3), 90, np.uint8)
    donor = np.full((*CROP_HW, 3), 200, np.uint8)
    box = np.array([100.0, 60, 500, 200])
    picture = disturbed(crop, donor, box, covered, np.random.default_rng(0))
    hidden = (picture == 200)[60:200, 100:500].mean()
    assert covered <= hidden <= covered + 0.45
    assert covered > 0 or hidden == 0


def test_a_calibration_uses_what_training_held_out():
    names = [f"n{i:02d}" for i in range(20)]
    config = TrainConfig(validate_every=5, validation_share=0.2)
    validated = Checkpoint({}, [], [MESH], config, 1, data="d")
    _, held_out = hold_out([names[:7], names[7:]], 0.2, config.seed)
    expected = sorted(sum(held_out, []))
    assert len(expected) == 4
    used = calibration_names(names, validated, "d")
    assert used == (expected, calibration_images.HELD_OUT)
    unvalidated = replace(validated, config=replace(config, validate_every=0))
    for checkpoint, data, origin in (
        (unvalidated, "d", calibration_images.TRAINED),
        (validated, "e", calibration_images.OTHERS),
        (validated, "", calibration_images.UNKNOWN),
    ):
        assert calibration_names(names, checkpoint, data) == (names, origin)
