"""Sets that another program prepared in the usual folders: kept as a whole, or refused at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.project import run_code
from helpers.runs import snapshot
from neural_mesh.report.scores import true_poses
from neural_mesh.stages.annotate_vertices import VertexOptions, annotate_vertices
from neural_mesh.stages.prepare_images import PreparationOptions, prepare_images
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import VertexAnnotation, is_of_others, load_annotation

OF_OURS = ("geometry", "crop_scale", "crop_offset", "objects")


def as_reference(path: Path, **changed: object) -> None:
    """Turn an annotation into what the reference's scripts write."""
    arrays = dict(np.load(path, allow_pickle=True).items())
    for key in OF_OURS:
        arrays.pop(key, None)
    arrays.setdefault("occ_mask", None)  # which numpy pickles
    np.savez(path, **(arrays | changed))


@pytest.fixture(scope="module")
def raw(sample_raw, tmp_path_factory) -> Path:
    """Raw images with cuboids."""
    copy = tmp_path_factory.mktemp("raw") / "PASCAL3D+_release1.1"
    shutil.copytree(sample_raw / copy.name, copy)
    run_code("make_cuboids", "--raw", copy, "--mesh-d", "single", "--categories", "car")
    return copy


@pytest.fixture(scope="module")
def ours(raw, tmp_path_factory) -> Path:
    """A test set of ours."""
    out = tmp_path_factory.mktemp("ours") / "PASCAL3D_NeMo"
    prepare(raw, out)
    return out


@pytest.fixture
def theirs(ours, tmp_path) -> Path:
    """The same test set as the reference would leave it."""
    copy = tmp_path / "PASCAL3D_NeMo"
    shutil.copytree(ours, copy)
    for path in [*copy.glob("annotations*/car/*.npz")]:
        as_reference(path)
    (copy / "lists/car/SOURCE.json").unlink()
    (copy / "lists/car/SKIPPED.txt").unlink()
    return copy


def prepare(raw: Path, out: Path, **options: object) -> None:
    """What PrepareData.sh does with one set."""
    images = PreparationOptions(raw, out, "val", ("car",), workers="1", **options)
    prepare_images(images)
    overwrite = bool(options.get("overwrite"))
    annotate_vertices(VertexOptions(raw, out, "single", ("car",), overwrite=overwrite, workers="1"))


def annotations(root: Path) -> list[Path]:
    return sorted(root.glob("annotations/car/*.npz"))


# ---- read ----


def test_an_annotation_of_the_reference_is_read_as_ours(ours, theirs):
    for kind, folder in ((None, "annotations"), (VertexAnnotation, "annotations3D_single")):
        for path in sorted(theirs.glob(f"{folder}/car/*.npz")):
            kinds = () if kind is None else (kind,)
            read = load_annotation(path, *kinds)
            expected = load_annotation(ours / path.relative_to(theirs), *kinds)
            assert read.occ_mask is None
            assert read.geometry == "paper"
            assert read.crop_scale == pytest.approx(expected.crop_scale)
            assert np.allclose(read.crop_offset, expected.crop_offset)
            assert np.array_equal(read.pose.angles, expected.pose.angles)
            assert np.array_equal(read.cropped_kp_list, expected.cropped_kp_list)
            assert is_of_others(path) and not is_of_others(ours / path.relative_to(theirs))


def test_weights_that_are_no_number_are_of_no_consequence(theirs):
    path = next(theirs.glob("annotations3D_single/car/*.npz"))
    weights = np.load(path)["kp_weights"]
    weights[3] = np.nan
    as_reference(path, kp_weights=weights)
    assert np.isfinite(load_annotation(path, VertexAnnotation).kp_weights).all()


def test_boxes_elsewhere_are_not_the_reference(theirs):
    path = annotations(theirs)[0]
    as_reference(path, box_obj=np.load(path)["box_obj"] + [9, 9, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=f"{path.name}: box_obj is 9 pixels from where"):
        load_annotation(path)


def test_training_inference_and_table_read_the_same(theirs):
    """None of them asks for what only our annotations have."""
    prepared = PreparedSet(theirs)
    names = sorted(prepared.image_names("single", "car"))
    assert true_poses(prepared, "car", names).shape == (len(names), 3)
    for name in names:
        load_annotation(prepared.vertex_annotation("single", "car", name), VertexAnnotation)


# ---- prepared again ----


def test_a_set_of_the_reference_is_kept_with_a_note_and_not_claimed(raw, theirs, capsys):
    before = snapshot(theirs)
    prepare(raw, theirs)
    said = capsys.readouterr()
    images = len(annotations(theirs))
    assert f"another program prepared the {images} images of car in {theirs}" in said.err
    assert "OVERWRITE=true" in said.err
    assert f"val: {images} images of 1 category" in said.out
    assert "0 of them now" in said.out
    assert not (theirs / "lists/car/SOURCE.json").exists()
    assert snapshot(theirs) == before


def test_missing_vertices_are_added_to_it(raw, theirs, capsys):
    missing = next(theirs.glob("annotations3D_single/car/*.npz"))
    missing.unlink()
    prepare(raw, theirs)
    assert "1 of them now" in capsys.readouterr().out
    assert missing.is_file()


def test_with_overwrite_it_becomes_ours(raw, ours, theirs):
    (theirs / "lists/car/a_subtype_of_theirs.txt").write_text("of_theirs_alone.JPEG\n")
    prepare(raw, theirs, overwrite=True)
    assert not [path for path in annotations(theirs) if is_of_others(path)]
    assert PreparedSet(theirs).made_from("car") == PreparedSet(ours).made_from("car")
    assert not (theirs / "lists/car/a_subtype_of_theirs.txt").exists()


def test_it_is_not_taken_for_another_geometry(raw, theirs):
    before = snapshot(theirs)
    with pytest.raises(ValueError, match="not with GEOMETRY=exact; set OVERWRITE=true"):
        prepare(raw, theirs, geometry="exact")
    assert snapshot(theirs) == before


def mix(ours: Path, theirs: Path) -> str:
    path = annotations(theirs)[0]
    shutil.copyfile(ours / path.relative_to(theirs), path)
    return "5 of 6 annotations in .* were made by another program"


def break_one(ours: Path, theirs: Path) -> str:
    path = annotations(theirs)[0]
    path.write_bytes(path.read_bytes()[:-50])
    return "5 of 6 annotations in .* were made by another program"


def claim(ours: Path, theirs: Path) -> str:
    """An earlier version would do this."""
    shutil.copyfile(ours / "lists/car/SOURCE.json", theirs / "lists/car/SOURCE.json")
    return "6 of 6 annotations in .* were made by another program"


def leave_out_a_key(ours: Path, theirs: Path) -> str:
    path = annotations(theirs)[0]
    kept = {key: value for key, value in np.load(path, allow_pickle=True).items() if key != "bbox"}
    np.savez(path, **kept)
    return f"{path.name}: lacks bbox; another program made it: set OVERWRITE=true"


def crop_otherwise(ours: Path, theirs: Path) -> str:
    path = annotations(theirs)[0]
    boxes = {key: np.load(path)[key] for key in ("box", "box_obj")}
    boxes["box_obj"][4:] += 32
    as_reference(path, **boxes)
    return "another program made it: set OVERWRITE=true"


def lose_lists(ours: Path, theirs: Path) -> str:
    shutil.rmtree(theirs / "lists")
    return "and left no lists of it; set OVERWRITE=true"


@pytest.mark.parametrize(
    "change", [mix, break_one, claim, leave_out_a_key, crop_otherwise, lose_lists]
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(raw, ours, theirs, change):
    complaint = change(ours, theirs)
    before = snapshot(theirs)
    with pytest.raises(ValueError, match=complaint):
        prepare(raw, theirs)
    assert snapshot(theirs) == before
    prepare(raw, theirs, overwrite=True)
    assert not [path for path in annotations(theirs) if is_of_others(path)]


def test_vertices_of_another_program_do_not_stay_beside_crops_of_ours(raw, ours, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(ours, mixed)
    foreign = next(mixed.glob("annotations3D_single/car/*.npz"))
    as_reference(foreign)
    prepare(raw, mixed)
    assert "1 of them now" in capsys.readouterr().out
    assert not is_of_others(foreign)
