"""The material of the paper, from raw data: cuboids, records, splits, protocols."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from helpers.project import PYTHONPATH, ROOT
from neural_mesh.categories import CATEGORIES
from neural_mesh.data.kitti import KittiObject, viewpoint
from neural_mesh.data.pascal3d import read_record
from neural_mesh.data.splits import read_split
from neural_mesh.geometry.meshes import cuboid_grid, cuboid_mesh, published_cuboid
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.settings import EXACT_MINIMUM_THICKNESS, Azimuths, TrainConfig
from neural_mesh.solve.model import load_model
from neural_mesh.storage.checkpoints import Checkpoint, save_checkpoint
from neural_mesh.storage.layout import PreparedSet, RawOccluded, RawPascal3D
from neural_mesh.storage.mesh_files import read_off, write_off
from neural_mesh.storage.records import VertexAnnotation, load_annotation

FLAT = np.array(np.meshgrid([0, 1], [0.2], [0, 1])).reshape(3, -1).T.repeat(50, 0).astype(float)


@pytest.fixture(scope="module")
def pascal_cads(shared, tmp_path_factory) -> Path:
    """A PASCAL3D+ root that holds the real CAD models and nothing else."""
    root = tmp_path_factory.mktemp("cads")
    with tarfile.open(shared("data/pascal3d_cad.tar.xz")) as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture
def flat_raw(tmp_path) -> Path:
    """A PASCAL3D+ root with one category whose CAD model is flat."""
    folder = RawPascal3D(tmp_path / "raw").cad_folder("sign")
    folder.mkdir(parents=True)
    lines = ["OFF", f"{len(FLAT)} 0 0", *(" ".join(map(str, p)) for p in FLAT)]
    (folder / "01.off").write_text("\n".join(lines) + "\n")
    return tmp_path / "raw"


def test_cuboids_of_all_cad_models_equal_the_reference(golden, pascal_cads, code):
    """All 12 single and 79 multi cuboids, made by the script."""
    expected, raw, compared = golden("cuboids.npz"), RawPascal3D(pascal_cads), 0
    for mesh_d in ("single", "multi"):
        code("make_cuboids", "--raw", raw.root, "--mesh-d", mesh_d)
        for category in CATEGORIES:
            for path in raw.cuboids(mesh_d, category):
                key = (
                    f"single/{category}" if mesh_d == "single" else f"multi/{category}/{path.stem}"
                )
                mesh = read_off(path)
                np.testing.assert_allclose(
                    mesh.vertices, expected[f"{key}/vertices"], rtol=0, atol=1e-7, err_msg=key
                )
                np.testing.assert_array_equal(mesh.faces, expected[f"{key}/faces"], err_msg=key)
                compared += 1
    assert compared == 12 + 79


def test_the_authors_single_cuboids_follow_from_their_corners(golden):
    expected = golden("cuboids.npz")
    for category in CATEGORIES:
        key = "authors/single/car" if category == "car" else f"single/{category}"
        mesh = published_cuboid(category)
        np.testing.assert_allclose(mesh.vertices, expected[f"{key}/vertices"], rtol=0, atol=1e-7)
        np.testing.assert_array_equal(mesh.faces, expected[f"{key}/faces"])
    assert len(published_cuboid("car").vertices) == 1024 and published_cuboid("sign") is None


def test_a_flat_axis_collapses_as_in_the_paper_or_gets_the_documented_thickness(flat_raw, code):
    arguments = ("make_cuboids", "--raw", flat_raw, "--categories", "sign", "--mesh-d")
    code(*arguments, "single")
    code(*arguments, "multi", "--geometry", "exact")
    paper, exact = (
        read_off(flat_raw / f"CAD_{mesh_d}/sign/01.off").vertices for mesh_d in ("single", "multi")
    )
    assert np.ptp(paper[:, 1]) == 0 and np.ptp(exact[:, 1]) == pytest.approx(
        EXACT_MINIMUM_THICKNESS
    )


def test_a_cuboid_put_there_by_hand_is_kept(flat_raw, code, tmp_path):
    """A checkpoint of the authors may need one that the CAD models at hand do not give."""
    shutil.copytree(flat_raw / "CAD", tmp_path / "CAD")
    arguments = ("make_cuboids", "--raw", tmp_path, "--categories", "sign", "--mesh-d", "single")
    path = tmp_path / "CAD_single/sign/01.off"
    path.parent.mkdir(parents=True)
    path.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    before = path.read_bytes()
    assert "kept, since it was put there by hand" in code(*arguments).stderr
    code(*arguments)
    assert path.read_bytes() == before
    code(*arguments, "--overwrite", "true")
    assert path.read_bytes() != before


def test_cuboids_made_with_other_settings_are_not_mixed_in(flat_raw, code):
    arguments = ("make_cuboids", "--raw", flat_raw, "--categories", "sign", "--mesh-d", "single")
    code(*arguments)
    path = flat_raw / "CAD_single/sign/01.off"
    before = path.read_bytes()
    code(*arguments)
    refused = code(*arguments, "--number-vertices", 200, check=False)
    assert (
        refused.returncode == 1
        and "01.off was made from other CAD models or with other settings" in refused.stderr
    )
    assert path.read_bytes() == before
    code(*arguments, "--number-vertices", 200, "--overwrite", "true")
    assert path.read_bytes() != before
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "01.off"
    ]  # the reference counts directory entries


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_cuboids_of_a_killed_run_are_not_mixed_with_those_of_other_settings(
    pascal_cads, golden, code, tmp_path, overwrite
):
    """Killed after the first of ten cuboids, when nothing was there and when all is made again."""
    root, folder = tmp_path / "raw", tmp_path / "raw/CAD_multi/car"
    shutil.copytree(pascal_cads / "CAD/car", root / "CAD/car")
    arguments = ("--raw", root, "--categories", "car", "--mesh-d", "multi")
    if overwrite == "true":
        code("make_cuboids", *arguments, "--number-vertices", 300)
    program = (
        "import os, runpy, sys; import neural_mesh.storage.mesh_files as m; write, done = m.write_off, []\n"
        "def killed(*mesh):\n"
        "    write(*mesh) if not done else os.kill(os.getpid(), 9)\n"
        "    done.append(mesh)\n"
        "m.write_off = killed; runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    command = [
        sys.executable,
        "-c",
        program,
        ROOT / "code/make_cuboids.py",
        *arguments,
        "--overwrite",
        overwrite,
    ]
    done = subprocess.run(
        [*map(str, command)],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -9 and [path.name for path in folder.glob("*.off")] == ["01.off"]
    refused = code("make_cuboids", *arguments, "--number-vertices", 300, check=False)
    assert (
        refused.returncode == 1
        and "01.off was made from other CAD models or with other settings" in refused.stderr
    )
    code("make_cuboids", *arguments)
    expected = golden("cuboids.npz")
    for i in range(1, 11):
        np.testing.assert_allclose(
            read_off(folder / f"{i:02d}.off").vertices,
            expected[f"multi/car/{i:02d}/vertices"],
            rtol=0,
            atol=1e-7,
        )


@pytest.fixture(scope="module")
def reference_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint in the reference's layout, without meshes: a car bank of 1,024 vertices."""
    path = tmp_path_factory.mktemp("reference") / "saved_model_car_799.pth"
    config = TrainConfig(backbone="resnet18fpn")
    mesh = published_cuboid("car")
    memory = [torch.zeros(len(mesh.vertices) + config.num_clutter, 128)]
    save_checkpoint(
        path, Checkpoint(FeatureNet(config.backbone).state_dict(), memory, [mesh], config, 799)
    )
    content = torch.load(path, weights_only=True)
    del content["meshes"]
    torch.save(content, path)
    return path


@pytest.mark.parametrize("other_cuboid_there", [False, True])
def test_a_checkpoint_with_the_authors_car_bank_finds_its_mesh(
    reference_checkpoint, tmp_path, capsys, other_cuboid_there
):
    folder = tmp_path / "CAD_single/car"
    if other_cuboid_there:
        write_off(
            folder / "01.off",
            cuboid_mesh(cuboid_grid(np.random.default_rng(0).uniform(0, 1, (999, 3)))),
        )
    model = load_model(reference_checkpoint, "car", folder)
    np.testing.assert_array_equal(model.mesh(1).vertices, published_cuboid("car").vertices)
    assert "Its 1024 vertices are those of the authors' cuboid" in capsys.readouterr().err


def test_a_bank_that_fits_neither_the_folder_nor_the_authors_cuboid_says_what_to_do(
    reference_checkpoint, tmp_path
):
    content = torch.load(reference_checkpoint, weights_only=True)
    content["memory"] = [content["memory"][0][:-7]]
    torch.save(content, tmp_path / "cut.pth")
    write_off(tmp_path / "01.off", published_cuboid("car"))
    with pytest.raises(
        ValueError, match="bank 1 of the checkpoint has 1017 vertices.*or put its mesh there"
    ):
        load_model(tmp_path / "cut.pth", "car", tmp_path)


# ---- records and splits ---------------------------------------------------------------------------------------------


VIEW = {
    "azimuth": 30.0,
    "elevation": 10.0,
    "theta": 2.0,
    "distance": 6.0,
    "focal": 1.0,
    "viewport": 3000.0,
    "px": 50.0,
    "py": 40.0,
}


def an_object(name: str = "car", **changes: object) -> dict:
    """An object of a record; changes to its viewpoint, or to itself. None deletes a field."""
    view = {
        k: v
        for k, v in (VIEW | {k: v for k, v in changes.items() if k in VIEW}).items()
        if v is not None
    }
    whole = {
        "class": name,
        "bbox": np.array([20.0, 20.0, 80.0, 60.0]),
        "cad_index": 1,
        "anchors": {"wheel": {"status": 2}},
    }
    whole["viewpoint"] = view
    return {
        k: v
        for k, v in (whole | {k: v for k, v in changes.items() if k not in VIEW}).items()
        if v is not None
    }


def write_mat(path: Path, *objects: dict, size: tuple = (100, 80, 3)) -> Path:
    """A PASCAL3D+ annotation with any number of objects."""
    keys = sorted({key for found in objects for key in found})
    stacked = np.empty((1, len(objects)), dtype=[(key, object) for key in keys])
    for i, found in enumerate(objects):
        for key in keys:
            stacked[0, i][key] = found.get(key, np.zeros((0, 0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"record": {"imgsize": np.array(size, float), "objects": stacked}})
    return path


RECORDS = {  # name: (objects, outcome when strict, outcome of the reference's rule); None = used
    "good": ([an_object()], None, None),
    "other_first": ([an_object("bus"), an_object(azimuth=77.0)], None, None),
    "two_cars": ([an_object(distance=0.0), an_object(azimuth=77.0)], None, None),
    "a_bus": ([an_object("bus")], "no object of the category", None),
    "far_zero": ([an_object(distance=0.0)], "distance not positive", None),
    "coarse_only": ([an_object(azimuth=None)], "no azimuth", "no azimuth"),
    "not_a_number": ([an_object(theta=np.nan)], "theta is not finite", "theta is not finite"),
    "no_camera": ([an_object(viewport=0.0)], "viewport not positive", "viewport not positive"),
    "no_view": (
        [an_object(viewpoint=None)],
        "no fine viewpoint or box",
        "no fine viewpoint or box",
    ),
    "no_box": ([an_object(bbox=np.array([1.0, 2.0]))], "broken box", "broken box"),
    "flat_box": ([an_object(bbox=np.array([20.0, 20.0, 20.0, 60.0]))], "empty box", None),
    "wrong_cad": ([an_object(cad_index=7)], "no such CAD model", "no such CAD model"),
    "other_size": (
        [an_object()],
        "image and annotation differ in size",
        "image and annotation differ in size",
    ),
    "no_image": ([an_object()], "no such image", "no such image"),
    "no_annotation": ([], "no annotation", "no annotation"),
    "broken_image": ([an_object()], "unreadable image", "unreadable image"),
    "near_zero": (
        [an_object(distance=1e-3)],
        "no crop at that distance",
        "no crop at that distance",
    ),
}


@pytest.fixture
def broken_raw(tmp_path) -> Path:
    """A PASCAL3D+ root of cars with every kind of record that there may be, and the paper's subset file."""
    raw = RawPascal3D(tmp_path / "raw")
    picture = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    write_off(raw.cad_folder("car") / "01.off", published_cuboid("car"))
    for name, (objects, _, _) in RECORDS.items():
        raw.image("car", name).parent.mkdir(parents=True, exist_ok=True)
        if objects:
            write_mat(
                raw.annotation("car", name),
                *objects,
                size=(90, 80, 3) if name == "other_size" else (100, 80, 3),
            )
        if name == "broken_image":
            raw.image("car", name).write_bytes(b"no picture")
        elif name != "no_image":
            Image.fromarray(picture).save(raw.image("car", name), "JPEG")
    raw.subset_pickle("car", "val").parent.mkdir()
    raw.subset_pickle("car", "val").write_bytes(
        pickle.dumps([list(RECORDS)[:5], list(RECORDS)[5:]])
    )
    return raw.root


@pytest.mark.parametrize("rules", ["strict", "reference"])
def test_every_record_follows_one_rule_and_is_counted_by_reason(broken_raw, code, tmp_path, rules):
    expected = {name: outcomes[rules == "reference"] for name, (_, *outcomes) in RECORDS.items()}
    reasons = [reason for reason in expected.values() if reason]
    prepared = PreparedSet(tmp_path / rules)
    arguments = (
        "prepare_images",
        "--raw",
        broken_raw,
        "--out",
        prepared.root,
        "--split",
        "val",
        "--categories",
        "car",
        "--workers",
        1,
        "--record-rules",
        rules,
    )
    done = code(*arguments)
    assert prepared.skipped("car").read_text().splitlines() == sorted(
        f"{name}: {reason}" for name, reason in expected.items() if reason
    )
    line = done.stdout.splitlines()[-1]
    assert (
        f"val: {len(RECORDS) - len(reasons)} images of 1 category" in line
        and "2 with several objects, of which one is used" in line
    )
    for reason in set(reasons):
        assert f"; {reasons.count(reason)} skipped: {reason}" in line
    listed = {name for group in prepared.listed("car").values() for name in group}
    assert listed == {name for name, reason in expected.items() if reason is None}
    azimuths = {
        name: np.rad2deg(load_annotation(prepared.annotation("car", name)).pose.azimuth)
        for name in ("other_first", "two_cars")
    }
    assert azimuths == pytest.approx(
        {"other_first": 77, "two_cars": 77}
        if rules == "strict"
        else {"other_first": 30, "two_cars": 30}
    )
    assert code(*arguments).stdout.splitlines()[-1] == line, "a second run says something else"
    again = code(*arguments[:-1], "reference" if rules == "strict" else "strict", check=False)
    assert again.returncode == 1 and "RECORD_RULES" in again.stderr


def test_auto_rules_are_the_reference_s_for_the_paper_s_own_selection(broken_raw, code, tmp_path):
    for subsets in (True, False):
        if not subsets:
            raw = RawPascal3D(broken_raw)
            raw.subset_pickle("car", "val").unlink()
            raw.image_set("car", "val").parent.mkdir()
            raw.image_set("car", "val").write_text("\n".join(RECORDS))
        out = tmp_path / str(subsets)
        code(
            "prepare_images",
            "--raw",
            broken_raw,
            "--out",
            out,
            "--split",
            "val",
            "--categories",
            "car",
            "--workers",
            1,
        )
        source = PreparedSet(out).source("car").read_text()
        assert f'"records": "{"reference" if subsets else "strict"}"' in source
        assert (out / "images/car/far_zero.JPEG").is_file() == subsets


def test_key_points_that_are_not_numbers_are_not_visible(tmp_path):
    names = CATEGORIES["car"].keypoints
    anchors = {
        name: {"status": 1, "location": np.array([np.nan, 3.0] if i == 0 else [4.0, 5.0])}
        for i, name in enumerate(names)
    }
    record = read_record(write_mat(tmp_path / "x.mat", an_object(anchors=anchors)), "car")
    assert record.keypoint_status.tolist() == [0] + [1] * (len(names) - 1) and record.keypoints_xy[
        :2
    ].tolist() == [[0, 0], [4, 5]]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ""])
def test_a_name_that_would_leave_its_folder_is_refused(tmp_path, name):
    raw = RawPascal3D(tmp_path)
    raw.subset_pickle("car", "val").parent.mkdir()
    raw.subset_pickle("car", "val").write_bytes(pickle.dumps([["fine", name]]))
    with pytest.raises(ValueError, match="not a file name"):
        read_split(raw, "car", "val")


def test_the_pascal_voc_part_is_an_option(tmp_path, code):
    raw = RawPascal3D(tmp_path / "raw", ("imagenet", "pascal"))
    write_off(raw.cad_folder("car") / "01.off", published_cuboid("car"))
    for part, name in (
        ("imagenet", "n1_1.JPEG"),
        ("pascal", "2008_000001.jpg"),
        ("pascal", "2008_000002.jpg"),
    ):
        write_mat(
            raw.root / f"Annotations/car_{part}" / f"{Path(name).stem}.mat",
            an_object("bus"),
            an_object(),
        )
        (raw.root / f"Images/car_{part}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80)).save(raw.root / f"Images/car_{part}" / name, "JPEG")
    raw.image_set("car", "train").parent.mkdir()
    raw.image_set("car", "train").write_text("n1_1\n")
    raw.voc_image_set("car", "train").parent.mkdir(parents=True)
    raw.voc_image_set("car", "train").write_text("2008_000001  1\n2008_000002  0\n2008_000003 -1\n")
    arguments = (
        "prepare_images",
        "--raw",
        raw.root,
        "--split",
        "train",
        "--categories",
        "car",
        "--workers",
        1,
    )
    assert "train: 1 image of" in code(*arguments, "--out", tmp_path / "paper").stdout
    assert (
        "train: 3 images of"
        in code(*arguments, "--out", tmp_path / "both", "--parts", "imagenet pascal").stdout
    )
    assert (
        tmp_path / "both/lists/car/pascal.txt"
    ).read_text() == "2008_000001.JPEG\n2008_000002.JPEG\n"
    assert "PASCAL/car_train.txt" in (tmp_path / "both/lists/car/SOURCE.json").read_text()


# ---- protocols ------------------------------------------------------------------------------------------------------


def test_a_pattern_of_azimuths_and_its_complement_share_out_the_circle():
    azimuths = Azimuths("TFFTTFFT")
    degrees = np.array([0, 44.99, 45, 90, 134.99, 135, 180, 224.99, 225, 315, 359.99, 360, -1])
    seen = [True, True, False, False, False, True, True, True, False, True, True, True, True]
    assert azimuths.seen(np.deg2rad(degrees)).tolist() == seen
    assert Azimuths(azimuths.complement).seen(np.deg2rad(degrees)).tolist() == [not s for s in seen]
    assert (azimuths.test_pattern, Azimuths("TF", "seen").test_pattern) == ("FTTFFTTF", "TF")
    for broken in ("TFX", "TTTT", "F"):
        with pytest.raises(ValueError, match="AZIMUTH_SELECTION"):
            Azimuths(broken)


def test_occluders_may_be_subtracted_and_put_back(tmp_path, code):
    """The vertices of an occluded image are the clean one's, or those that no occluder covers."""
    code(
        "make_sample_data",
        "--out",
        tmp_path,
        "--categories",
        "car",
        "--train-images",
        1,
        "--val-images",
        2,
        "--seed",
        5,
    )
    raw, occluded = tmp_path / "PASCAL3D+_release1.1", tmp_path / "occluded"
    code(
        "make_occluded",
        "--raw",
        raw,
        "--out",
        occluded,
        "--categories",
        "car",
        "--levels",
        "FGL3_BGL1",
        "--workers",
        1,
    )
    (tmp_path / "cutouts").mkdir()
    (tmp_path / "cutouts/tree.png").write_bytes(b"no picture")
    broken = code(
        "make_occluded",
        "--raw",
        raw,
        "--out",
        tmp_path / "x",
        "--occluders",
        tmp_path / "cutouts",
        "--workers",
        1,
        check=False,
    )
    assert (
        broken.returncode == 1
        and "an occluder cannot be used" in broken.stderr
        and "tree.png" in broken.stderr
    )
    other = code(
        "make_occluded",
        "--raw",
        raw,
        "--out",
        occluded,
        "--categories",
        "car",
        "--levels",
        "FGL3_BGL1",
        "--seed",
        1,
        check=False,
    )
    assert other.returncode == 1 and "another seed or other occluders" in other.stderr
    code("make_cuboids", "--raw", raw, "--mesh-d", "single", "--categories", "car")
    common = ("--raw", raw, "--categories", "car", "--workers", 1)
    clean, tested, level = (
        PreparedSet(tmp_path / "clean"),
        PreparedSet(tmp_path / "tested"),
        "FGL3_BGL1",
    )
    code("prepare_images", *common, "--out", clean.root, "--split", "val", "--geometry", "exact")
    code("annotate_vertices", *common, "--prepared", clean.root, "--mesh-d", "single")
    crops = (
        "prepare_images",
        *common,
        "--out",
        tested.root,
        "--split",
        "val",
        "--geometry",
        "exact",
        "--occluded",
        occluded,
    )
    crops += ("--level", level)
    code(*crops)
    record = RawOccluded(occluded).source("car", level)
    made = record.read_text()
    assert json.loads(tested.source(f"car{level}").read_text())["occluded"] == json.loads(made)
    assert "occluded" not in json.loads(clean.source("car").read_text())
    record.write_text(made.replace('"seed": 0', '"seed": 1'))
    mixed = code(*crops, check=False)
    assert mixed.returncode == 1 and "prepared from other images or occluders" in mixed.stderr
    record.write_text(made)
    link = (
        "annotate_vertices",
        *common,
        "--prepared",
        tested.root,
        "--mesh-d",
        "single",
        "--clean",
        clean.root,
        "--level",
        level,
    )
    mesh = read_off(raw / "CAD_single/car/01.off")
    name = sorted(clean.image_names("single", "car"))[0]
    without = load_annotation(clean.vertex_annotation("single", "car", name), VertexAnnotation)
    assert "occ_mask" not in np.load(clean.annotation("car", name), allow_pickle=False).files
    for visibility in ("clean", "subtract", "subtract", "clean"):
        code(*link, "--occluded-visibility", visibility)
        stored = load_annotation(
            tested.vertex_annotation("single", f"car{level}", name), VertexAnnotation
        )
        if visibility == "clean":
            np.testing.assert_array_equal(stored.visible, without.visible)
            continue
        mask = load_annotation(tested.annotation(f"car{level}", name)).occ_mask
        pixels = np.floor(
            (stored.cropped_kp_list - without.crop_offset) / without.crop_scale
        ).astype(int)
        hidden = np.array([mask[r, c] for r, c in pixels.clip(0, np.array(mask.shape) - 1)])
        at_the_border = np.abs(
            stored.cropped_kp_list
            - np.clip(stored.cropped_kp_list, 1, np.array(without.crop_hw) - 2)
        ).any(1)
        assert (
            len(mesh.vertices) == len(stored.visible)
            and (stored.visible < without.visible).sum() > 20
        )
        np.testing.assert_array_equal(
            stored.visible[~at_the_border], (without.visible & ~hidden)[~at_the_border]
        )


# ---- KITTI3D --------------------------------------------------------------------------------------------------------


def reference_azimuth(x: float, z: float, rotation_y: float) -> float:
    """As published: rotation_y + atan(z / x), and half a turn more where that is positive."""
    slope = np.arctan(z / x)
    return (rotation_y + slope + (np.pi if slope > 0 else 0)) % (2 * np.pi)


def test_kitti_viewpoints_are_where_the_camera_stands():
    random = np.random.default_rng(0)
    for x, y, z, turn in random.uniform([-20, 0.5, 4, -np.pi], [20, 2.5, 60, np.pi], (50, 4)):
        found = KittiObject("Car", 0.0, 0, np.zeros(4), 1.5, np.array([x, y, z]), turn)
        azimuth, elevation = viewpoint(found)
        assert np.cos(azimuth - reference_azimuth(x, z, turn)) == pytest.approx(1, abs=1e-9)
        assert elevation == pytest.approx(np.arcsin(found.centre[1] / np.linalg.norm(found.centre)))
    coming = KittiObject("Car", 0.0, 0, np.zeros(4), 1.5, np.array([0.0, 1.7, 20.0]), np.pi / 2)
    assert (
        np.cos(viewpoint(coming)[0]) == pytest.approx(1) and viewpoint(coming)[1] > 0
    )  # its front, a little from above


@pytest.fixture
def kitti(tmp_path) -> Path:
    """KITTI's layout: two frames, with a car of each kind that is kept and each that is not."""
    root = tmp_path / "training"
    for folder in ("label_2", "image_2", "calib"):
        (root / folder).mkdir(parents=True)

    def line(
        kind="Car", truncation=0.0, occlusion=0, box="400 150 640 300", at="1.0 1.65 8.0", turn=1.2
    ):
        return f"{kind} {truncation} {occlusion} 0.1 {box} 1.5 1.6 3.9 {at} {turn}"

    first = [
        line("Pedestrian"),
        line(),
        line(occlusion=1),
        line(occlusion=3),
        line("DontCare", -1, -1),
    ]
    second = [
        line(truncation=0.2),
        line(box="10 150 640 250"),
        line(occlusion=2, at="-3.0 1.65 20.0"),
        line(at="0.5 1.6 6.4"),
    ]
    for frame, lines in (("000000", first), ("000001", second)):
        (root / f"label_2/{frame}.txt").write_text("\n".join(lines) + "\n")
        (root / f"calib/{frame}.txt").write_text(
            "P0: 0\nP2: 700 0 600 40 0 700 170 0.2 0 0 1 0.003\n"
        )
        image = np.full((375, 1242, 3), 90, np.uint8)
        image[300:320, 640:660] = 255
        Image.fromarray(image).save(root / f"image_2/{frame}.png")
    return root


def test_kitti_becomes_three_test_sets(kitti, code, tmp_path):
    arguments = (
        "prepare_kitti3d",
        "--kitti",
        kitti,
        "--out",
        tmp_path / "KITTI",
        "--workers",
        1,
        "--geometry",
        "exact",
    )
    line = code(*arguments).stdout.splitlines()[-1]
    assert "2 fully_visible, 1 partly_occluded, 1 largely_occluded of 2 frames" in line
    assert "1 skipped: occlusion unknown; 1 skipped: too small; 1 skipped: truncated" in line
    visible = PreparedSet(tmp_path / "KITTI/fully_visible")
    assert visible.mesh_list("single", "car", 1).read_text() == "000000_1.JPEG\n000001_3.JPEG\n"
    assert (visible.lists("car") / "car_fully_visible_folder1.txt").read_text() == "000001_3.JPEG\n"
    stored = load_annotation(visible.annotation("car", "000000_1"))
    centre = np.array([1.0, 1.65 - 0.75, 8.0])
    depth = centre[2] + 0.003
    pixel = np.array(
        [
            (700 * centre[0] + 600 * centre[2] + 40) / depth,
            (700 * centre[1] + 170 * centre[2] + 0.2) / depth,
        ]
    )
    np.testing.assert_allclose(stored.pose.principal_xy, pixel)
    distance = np.linalg.norm([1.0, 1.65, 8.0])
    assert stored.pose.distance == pytest.approx(distance) and stored.crop_scale == pytest.approx(
        distance / 6.4
    )
    crop = np.array(Image.open(visible.image("car", "000000_1")))
    assert crop.shape == (256, 672, 3)
    rows, cols = np.nonzero(crop[..., 0] > 170)
    found, expected = (
        [rows.mean() + 0.5, cols.mean() + 0.5],
        np.array([310, 650]) * stored.crop_scale + stored.crop_offset,
    )
    np.testing.assert_allclose(found, expected, atol=0.5)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "KITTI").rglob("*")}
    assert code(*arguments).stdout.splitlines()[-1] == line and before == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "KITTI").rglob("*")
    }
    assert "other options" in code(*arguments, "--minimum-side", 50, check=False).stderr


@pytest.mark.parametrize(
    "text", ["Car 0 0 1 2 3\n", "Car x 0 0.1 400 150 640 300 1.5 1.6 3.9 1 1.65 8 1.2\n"]
)
def test_a_line_that_is_not_a_kitti_label_is_named(kitti, code, tmp_path, text):
    (kitti / "label_2/000000.txt").write_text(text)
    done = code(
        "prepare_kitti3d", "--kitti", kitti, "--out", tmp_path / "out", "--workers", 1, check=False
    )
    assert (
        done.returncode == 1
        and "000000.txt, line 1: not a KITTI label" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_crops_of_kitti_that_broke_off_are_not_mixed_with_those_of_other_settings(
    kitti, code, tmp_path
):
    path = kitti / "calib/000001.txt"
    whole, arguments = (
        path.read_text(),
        ("prepare_kitti3d", "--kitti", kitti, "--out", tmp_path / "out", "--workers", 1),
    )
    path.write_text("P0: 0\nP2: 700 0 600 40 0 700 170 0.2 0 0 1\n")
    done = code(*arguments, check=False)
    assert (
        done.returncode == 1
        and "000001.txt, line 2: P2 is not 12 numbers" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert list(tmp_path.glob("out/fully_visible/images/car/*.JPEG"))
    path.write_text(whole)
    done = code(*arguments, "--geometry", "exact", check=False)
    assert done.returncode == 1 and "fully_visible was prepared with other options" in done.stderr
    assert "2 fully_visible, 1 partly_occluded, 1 largely_occluded" in code(*arguments).stdout


def test_a_prepared_set_can_be_occluded_without_its_raw_pictures(tmp_path, code):
    code(
        "make_sample_data",
        "--out",
        tmp_path,
        "--categories",
        "car",
        "--train-images",
        1,
        "--val-images",
        2,
        "--seed",
        6,
    )
    raw, clean, out = (
        tmp_path / "PASCAL3D+_release1.1",
        PreparedSet(tmp_path / "clean"),
        PreparedSet(tmp_path / "occluded crops"),
    )
    common, level = ("--raw", raw, "--categories", "car", "--workers", 1), "FGL2_BGL2"
    code("prepare_images", *common, "--out", clean.root, "--split", "val", "--geometry", "exact")
    code("make_cuboids", "--raw", raw, "--mesh-d", "single", "--categories", "car")
    code("annotate_vertices", *common, "--prepared", clean.root, "--mesh-d", "single")
    make = (
        "make_occluded",
        *common,
        "--prepared",
        clean.root,
        "--out",
        out.root,
        "--levels",
        level,
    )
    assert "2 occluded images of 1 category" in code(*make).stdout
    pictures = {p.name: p.read_bytes() for p in (out.root / f"images/car{level}").iterdir()}
    link = (
        "annotate_vertices",
        *common,
        "--prepared",
        out.root,
        "--mesh-d",
        "single",
        "--clean",
        clean.root,
        "--level",
        level,
    )
    assert "vertices of 2 images linked" in code(*link).stdout
    assert (
        len(out.mesh_list("single", f"car{level}", 1).read_text().split()) == 2
        and '"seed": 0' in out.source(f"car{level}").read_text()
    )
    for name in sorted(clean.image_names("single", "car")):
        before, after = (
            np.array(Image.open(path)).astype(int)
            for path in (clean.image("car", name), out.image(f"car{level}", name))
        )
        stored = load_annotation(out.annotation(f"car{level}", name))
        rows, cols = np.mgrid[: before.shape[0], : before.shape[1]]
        original = (np.stack([rows, cols], -1) + 0.5 - stored.crop_offset) / stored.crop_scale
        inside = ((original >= 1) & (original < np.array(stored.occ_mask.shape) - 1)).all(-1)
        covered = stored.occ_mask[tuple(original[inside].astype(int).T)]
        changed = (abs(after - before).max(-1) > 40)[inside]
        assert changed[covered].mean() > 0.6 and changed[~covered].mean() < 0.02
    other = code(*make, "--seed", 1, check=False)
    assert other.returncode == 1 and "another seed or other occluders" in other.stderr
    for path in out.root.glob("images/*/*"):
        path.unlink()
    code(*make)
    assert {p.name: p.read_bytes() for p in (out.root / f"images/car{level}").iterdir()} == pictures
