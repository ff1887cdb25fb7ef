"""Records and splits of PASCAL3D+: which object stands for an image, and which images are used."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.raw_cars import an_object, prepare_cars, write_mat
from neural_mesh.categories import CATEGORIES
from neural_mesh.data.pascal3d import read_record
from neural_mesh.data.splits import read_split
from neural_mesh.geometry.meshes import published_cuboid
from neural_mesh.storage.layout import PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import write_off
from neural_mesh.storage.records import load_annotation

# name: (objects, outcome when strict, outcome of the reference's rule); None = used
RECORDS = {
    "good": ([an_object()], None, None),
    "other_first": ([an_object("bus"), an_object(azimuth=77.0)], None, None),
    "two_cars": ([an_object(distance=0.0), an_object(azimuth=77.0)], None, None),
    "a_bus": ([an_object("bus")], "no object of the category", None),
    "far_zero": ([an_object(distance=0.0)], "distance not positive", None),
    "flat_box": ([an_object(bbox=np.array([20.0, 20.0, 20.0, 60.0]))], "empty box", None),
}
BROKEN_RECORDS = {
    "coarse_only": ([an_object(azimuth=None)], "no azimuth"),
    "not_a_number": ([an_object(theta=np.nan)], "theta is not finite"),
    "no_camera": ([an_object(viewport=0.0)], "viewport not positive"),
    "no_view": ([an_object(viewpoint=None)], "no fine viewpoint or box"),
    "no_box": ([an_object(bbox=np.array([1.0, 2.0]))], "broken box"),
    "wrong_cad": ([an_object(cad_index=7)], "no such CAD model"),
    "other_size": ([an_object()], "image and annotation differ in size"),
    "no_image": ([an_object()], "no such image"),
    "no_annotation": ([], "no annotation"),
    "broken_image": ([an_object()], "unreadable image"),
    "near_zero": ([an_object(distance=1e-3)], "no crop at that distance"),
}
RECORDS |= {name: (objects, reason, reason) for name, (objects, reason) in BROKEN_RECORDS.items()}
NAMES = list(RECORDS)


@pytest.fixture
def broken_raw(tmp_path) -> Path:
    """Cars with every kind of record that there may be, and the paper's subset file."""
    raw = RawPascal3D(tmp_path / "raw")
    picture = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    write_off(raw.cad_folder("car") / "01.off", published_cuboid("car"))
    raw.image("car", "x").parent.mkdir(parents=True)
    for name, (objects, _, _) in RECORDS.items():
        if objects:
            size = (90, 80, 3) if name == "other_size" else (100, 80, 3)
            write_mat(raw.annotation("car", name), *objects, size=size)
        if name == "broken_image":
            raw.image("car", name).write_bytes(b"no picture")
        elif name != "no_image":
            Image.fromarray(picture).save(raw.image("car", name), "JPEG")
    raw.subset_pickle("car", "val").parent.mkdir()
    raw.subset_pickle("car", "val").write_bytes(pickle.dumps([NAMES[:5], NAMES[5:]]))
    return raw.root


@pytest.mark.parametrize("rules", ["strict", "reference"])
def test_every_record_follows_one_rule_and_is_counted_by_reason(
    broken_raw, capsys, tmp_path, rules
):
    reason_of = {name: outcomes[rules == "reference"] for name, (_, *outcomes) in RECORDS.items()}
    reasons = [reason for reason in reason_of.values() if reason]
    prepared = PreparedSet(tmp_path / rules)
    prepare_cars(broken_raw, prepared.root, record_rules=rules)
    skipped = [f"{name}: {reason}" for name, reason in reason_of.items() if reason]
    lines = prepared.skipped("car").read_text().splitlines()
    assert [line.split(" (")[0] for line in lines] == sorted(skipped)
    assert all("(" in line for line in lines), "a reason without what was found"

    line = capsys.readouterr().out.splitlines()[-1]
    assert f"val: {len(RECORDS) - len(reasons)} images of 1 category" in line
    assert "2 with several objects, of which one is used" in line
    for reason in set(reasons):
        assert f"; {reasons.count(reason)} skipped: {reason}" in line
    listed = {name for group in prepared.listed("car").values() for name in group}
    assert listed == {name for name, reason in reason_of.items() if reason is None}

    for name in ("other_first", "two_cars"):
        pose = load_annotation(prepared.annotation("car", name)).pose
        expected_deg = 77 if rules == "strict" else 30
        assert np.rad2deg(pose.azimuth) == pytest.approx(expected_deg)

    prepare_cars(broken_raw, prepared.root, record_rules=rules)
    assert capsys.readouterr().out.splitlines()[-1] == line, "a second run says something else"
    other_rules = "reference" if rules == "strict" else "strict"
    with pytest.raises(ValueError, match="RECORD_RULES"):
        prepare_cars(broken_raw, prepared.root, record_rules=other_rules)


def test_auto_rules_are_the_reference_s_for_the_paper_s_own_selection(broken_raw, tmp_path):
    prepare_cars(broken_raw, tmp_path / "subsets")
    raw = RawPascal3D(broken_raw)
    raw.subset_pickle("car", "val").unlink()
    raw.image_set("car", "val").parent.mkdir()
    raw.image_set("car", "val").write_text("\n".join(RECORDS))
    prepare_cars(broken_raw, tmp_path / "sets")
    for out, rules in (("subsets", "reference"), ("sets", "strict")):
        prepared = PreparedSet(tmp_path / out)
        assert f'"records": "{rules}"' in prepared.source("car").read_text()
        assert prepared.image("car", "far_zero").is_file() == (rules == "reference")


def test_key_points_that_are_not_numbers_are_not_visible(tmp_path):
    names = CATEGORIES["car"].keypoints
    anchors = {name: {"status": 1, "location": np.array([4.0, 5.0])} for name in names}
    anchors[names[0]] = {"status": 1, "location": np.array([np.nan, 3.0])}
    record = read_record(write_mat(tmp_path / "x.mat", an_object(anchors=anchors)), "car")
    assert record.keypoint_status.tolist() == [0] + [1] * (len(names) - 1)
    assert record.keypoints_xy[:2].tolist() == [[0, 0], [4, 5]]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ""])
def test_a_name_that_would_leave_its_folder_is_refused(tmp_path, name):
    raw = RawPascal3D(tmp_path)
    raw.subset_pickle("car", "val").parent.mkdir()
    raw.subset_pickle("car", "val").write_bytes(pickle.dumps([["fine", name]]))
    with pytest.raises(ValueError, match="not a file name"):
        read_split(raw, "car", "val")


def test_the_pascal_voc_part_is_an_option(tmp_path, capsys):
    raw = RawPascal3D(tmp_path / "raw", ("imagenet", "pascal"))
    write_off(raw.cad_folder("car") / "01.off", published_cuboid("car"))
    for part, name in (
        ("imagenet", "n1_1.JPEG"),
        ("pascal", "2008_000001.jpg"),
        ("pascal", "2008_000002.jpg"),
    ):
        annotation = raw.root / f"Annotations/car_{part}" / f"{Path(name).stem}.mat"
        write_mat(annotation, an_object("bus"), an_object())
        folder = raw.root / f"Images/car_{part}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80)).save(folder / name, "JPEG")
    raw.image_set("car", "train").parent.mkdir()
    raw.image_set("car", "train").write_text("n1_1\n")
    raw.voc_image_set("car", "train").parent.mkdir(parents=True)
    raw.voc_image_set("car", "train").write_text("2008_000001  1\n2008_000002  0\n2008_000003 -1\n")

    prepare_cars(raw.root, tmp_path / "paper", "train")
    assert "train: 1 image of" in capsys.readouterr().out
    both = PreparedSet(tmp_path / "both")
    prepare_cars(raw.root, both.root, "train", parts=("imagenet", "pascal"))
    assert "train: 3 images of" in capsys.readouterr().out
    listed = (both.lists("car") / "pascal.txt").read_text()
    assert listed == "2008_000001.JPEG\n2008_000002.JPEG\n"
    assert "PASCAL/car_train.txt" in both.source("car").read_text()
