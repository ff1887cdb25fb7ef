"""Protocols beside the clean one: occluded test sets, and unseen azimuths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_mesh.settings import Azimuths
from neural_mesh.stages.annotate_vertices import VertexOptions, annotate_vertices
from neural_mesh.stages.make_cuboids import CuboidOptions, make_cuboids
from neural_mesh.stages.prepare_images import PreparationOptions, prepare_images
from neural_mesh.storage.layout import PreparedSet, RawOccluded
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import VertexAnnotation, load_annotation

CARS = ("car",)


def test_a_pattern_of_azimuths_and_its_complement_share_out_the_circle():
    azimuths = Azimuths("TFFTTFFT")
    seen_degrees = [0, 44.99, 135, 180, 224.99, 315, 359.99, 360, -1]
    unseen_degrees = [45, 90, 134.99, 225]
    assert azimuths.seen(np.deg2rad(seen_degrees)).all()
    assert not azimuths.seen(np.deg2rad(unseen_degrees)).any()
    complement = Azimuths(azimuths.complement)
    assert complement.seen(np.deg2rad(unseen_degrees)).all()
    assert not complement.seen(np.deg2rad(seen_degrees)).any()
    assert azimuths.test_pattern == "FTTFFTTF"
    assert Azimuths("TF", "seen").test_pattern == "TF"
    for broken in ("TFX", "TTTT", "F"):
        with pytest.raises(ValueError, match="AZIMUTH_SELECTION"):
            Azimuths(broken)


def prepare_cars(raw: Path, out: Path, **options: object) -> None:
    """Prepare the test images of cars in one process."""
    options = {"geometry": "exact", "workers": "1"} | options
    prepare_images(PreparationOptions(raw, out, "val", CARS, **options))


def annotate_cars(raw: Path, out: Path, **options: object) -> None:
    """Annotate the test images of cars in one process."""
    annotate_vertices(VertexOptions(raw, out, "single", CARS, workers="1", **options))


def make_sample(out: Path, seed: int, code) -> Path:
    """One training image and two test images of cars, with their cuboid."""
    arguments = ("--categories", "car", "--train-images", 1, "--val-images", 2, "--seed", seed)
    code("make_sample_data", "--out", out, *arguments)
    raw = out / "PASCAL3D+_release1.1"
    make_cuboids(CuboidOptions(raw, "single", CARS))
    return raw


@pytest.fixture(scope="module")
def sample(tmp_path_factory, code) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample"), 5, code)


def test_an_occluder_that_cannot_be_used_and_another_seed_are_refused(sample, code, tmp_path):
    common = ("make_occluded", "--raw", sample, "--workers", 1)
    (tmp_path / "cutouts").mkdir()
    (tmp_path / "cutouts/tree.png").write_bytes(b"no picture")
    options = ("--out", tmp_path / "x", "--occluders", tmp_path / "cutouts")
    broken = code(*common, *options, check=False)
    assert broken.returncode == 1
    assert "an occluder cannot be used" in broken.stderr
    assert "tree.png" in broken.stderr
    options = ("--out", tmp_path / "y", "--categories", "car", "--levels", "FGL3_BGL1")
    code(*common, *options)
    other = code(*common, *options, "--seed", 1, check=False)
    assert other.returncode == 1
    assert "another seed or other occluders" in other.stderr


def test_a_set_says_how_its_occluded_pictures_were_made(sample, code, tmp_path):
    level = "FGL3_BGL1"
    occluded = tmp_path / "occluded"
    arguments = ("--raw", sample, "--out", occluded, "--categories", "car", "--workers", 1)
    code("make_occluded", *arguments, "--levels", level)
    clean = PreparedSet(tmp_path / "clean")
    tested = PreparedSet(tmp_path / "tested")
    prepare_cars(sample, clean.root)
    prepare_cars(sample, tested.root, occluded=occluded, level=level)
    record = RawOccluded(occluded).source("car", level)
    made = record.read_text()
    assert json.loads(tested.source(f"car{level}").read_text())["occluded"] == json.loads(made)
    assert "occluded" not in json.loads(clean.source("car").read_text())
    name = sorted(clean.image_names("single", "car"))[0]
    assert "occ_mask" not in np.load(clean.annotation("car", name), allow_pickle=False).files
    record.write_text(made.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="prepared from other images or occluders"):
        prepare_cars(sample, tested.root, occluded=occluded, level=level)


def test_occluders_may_be_subtracted_and_put_back(sample, code, tmp_path):
    """The vertices of an occluded image are the clean one's, or those that no occluder covers."""
    level = "FGL3_BGL1"
    occluded = tmp_path / "occluded"
    arguments = ("--raw", sample, "--out", occluded, "--categories", "car", "--workers", 1)
    code("make_occluded", *arguments, "--levels", level)
    clean = PreparedSet(tmp_path / "clean")
    tested = PreparedSet(tmp_path / "tested")
    prepare_cars(sample, clean.root)
    annotate_cars(sample, clean.root)
    prepare_cars(sample, tested.root, occluded=occluded, level=level)
    mesh = read_off(sample / "CAD_single/car/01.off")
    name = sorted(clean.image_names("single", "car"))[0]
    clean_path = clean.vertex_annotation("single", "car", name)
    without = load_annotation(clean_path, VertexAnnotation)
    tested_path = tested.vertex_annotation("single", f"car{level}", name)
    for visibility in ("clean", "subtract", "subtract", "clean"):
        options = {"clean": clean.root, "level": level, "occluded_visibility": visibility}
        annotate_cars(sample, tested.root, **options)
        stored = load_annotation(tested_path, VertexAnnotation)
        if visibility == "clean":
            np.testing.assert_array_equal(stored.visible, without.visible)
            continue
        assert len(mesh.vertices) == len(stored.visible)
        assert (stored.visible < without.visible).sum() > 20

        # What the mask covers at the vertices' pixels is what is hidden, away from the border.
        mask = load_annotation(tested.annotation(f"car{level}", name)).occ_mask
        points_rc = stored.cropped_kp_list
        pixels_rc = np.floor((points_rc - without.crop_offset) / without.crop_scale).astype(int)
        rows, cols = pixels_rc.clip(0, np.array(mask.shape) - 1).T
        expected = without.visible & ~mask[rows, cols]
        inner_rc = np.clip(points_rc, 1, np.array(without.crop_hw) - 2)
        is_inner = (points_rc == inner_rc).all(1)
        np.testing.assert_array_equal(stored.visible[is_inner], expected[is_inner])


def test_a_prepared_set_can_be_occluded_without_its_raw_pictures(code, capsys, tmp_path):
    level = "FGL2_BGL2"
    raw = make_sample(tmp_path, 6, code)
    clean = PreparedSet(tmp_path / "clean")
    out = PreparedSet(tmp_path / "occluded crops")
    prepare_cars(raw, clean.root)
    annotate_cars(raw, clean.root)
    arguments = ("--raw", raw, "--categories", "car", "--workers", 1, "--prepared", clean.root)
    make = ("make_occluded", *arguments, "--out", out.root, "--levels", level)
    assert "2 occluded images of 1 category" in code(*make).stdout
    folder = out.image(f"car{level}", "x").parent
    pictures = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    annotate_cars(raw, out.root, clean=clean.root, level=level)
    assert "vertices of 2 images linked" in capsys.readouterr().out
    assert len(out.mesh_list("single", f"car{level}", 1).read_text().split()) == 2
    assert '"seed": 0' in out.source(f"car{level}").read_text()
    for name in sorted(clean.image_names("single", "car")):
        assert_pixels_change_under_the_mask(clean, out, f"car{level}", name)

    other = code(*make, "--seed", 1, check=False)
    assert other.returncode == 1
    assert "another seed or other occluders" in other.stderr
    for path in folder.iterdir():
        path.unlink()
    code(*make)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == pictures


def assert_pixels_change_under_the_mask(
    clean: PreparedSet, occluded: PreparedSet, subset: str, name: str
) -> None:
    """The mask of the original image says which pixels of the crop an occluder has changed."""
    before = np.array(Image.open(clean.image("car", name))).astype(int)
    after = np.array(Image.open(occluded.image(subset, name))).astype(int)
    stored = load_annotation(occluded.annotation(subset, name))
    rows, cols = np.mgrid[: before.shape[0], : before.shape[1]]
    crop_rc = np.stack([rows, cols], -1) + 0.5
    original_rc = (crop_rc - stored.crop_offset) / stored.crop_scale
    inside = ((original_rc >= 1) & (original_rc < np.array(stored.occ_mask.shape) - 1)).all(-1)
    mask_rows, mask_cols = original_rc[inside].astype(int).T
    covered = stored.occ_mask[mask_rows, mask_cols]
    changed = (abs(after - before).max(-1) > 40)[inside]
    assert changed[covered].mean() > 0.6
    assert changed[~covered].mean() < 0.02
