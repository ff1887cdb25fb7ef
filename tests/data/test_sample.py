"""SamplePASCAL3D+: its files read as those of PASCAL3D+, its pictures show what is annotated."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree

from neural_mesh.categories import CATEGORIES
from neural_mesh.data.occlusion import covered_ratios, level_bounds, occlude
from neural_mesh.data.pascal3d import read_record
from neural_mesh.geometry import cameras
from neural_mesh.geometry.meshes import cuboid_grid
from neural_mesh.sample.drawing import VISIBLE, draw_sample, find_keypoints
from neural_mesh.sample.looks import random_looks
from neural_mesh.sample.models import models
from neural_mesh.sample.shading import draw_object
from neural_mesh.sample.viewpoints import Viewpoint, project
from neural_mesh.settings import ALL_OCC_LEVELS, OCC_LEVELS
from neural_mesh.stages.make_sample_data import MANIFEST, SampleOptions, make_sample_data
from neural_mesh.storage.mesh_files import read_off

OPTIONS = SampleOptions(
    categories=("car", "chair"), train_images=4, val_images=3, seed=7, image_width=160
)

VIEWPOINT_NUMBERS = (
    "azimuth",
    "elevation",
    "theta",
    "distance",
    "px",
    "py",
    "azimuth_coarse",
    "elevation_coarse",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    line = make_sample_data(out, OPTIONS, workers=1)
    assert line == f"14 images, 18 occluded images, 6 CAD models -> {out}"
    return out


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("category", OPTIONS.categories)
def test_raw_layout_and_every_field_of_the_records(made: Path, category: str) -> None:
    root = made / "PASCAL3D+_release1.1"
    subtypes = (root / f"Image_sets/{category}_imagenet_subtype.txt").read_text().split()
    assert len(subtypes) == 3
    for split, number in (("train", 4), ("val", 3)):
        lists = pickle.loads((root / f"Image_subsets/{category}_imagenet_{split}.pkl").read_bytes())
        assert type(lists) is list and len(lists) == len(subtypes)
        assert all(type(names) is list for names in lists)
        names = (root / f"Image_sets/{category}_imagenet_{split}.txt").read_text().split()
        assert len(names) == number and sorted(sum(lists, [])) == sorted(names)
        for subtype_number, subset in enumerate(lists, start=1):
            for name in subset:
                check_record(root, category, name, subtype_number)


def check_record(root: Path, category: str, name: str, subtype_number: int) -> None:
    """Check every field of an annotation against its picture."""
    image = Image.open(root / f"Images/{category}_imagenet/{name}.JPEG")
    path = root / f"Annotations/{category}_imagenet/{name}.mat"
    rec = loadmat(path)["record"]
    ob = rec["objects"][0, 0]
    vp = ob["viewpoint"][0, 0]
    size = rec["imgsize"][0, 0][0]
    assert (size[0], size[1]) == image.size and max(image.size) == 160
    assert rec["filename"][0, 0][0] == f"{name}.JPEG" and ob["class"][0, 0][0] == category
    x0, y0, x1, y1 = ob["bbox"][0, 0][0]
    assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
    assert ob["cad_index"][0, 0][0, 0] == subtype_number
    for key in VIEWPOINT_NUMBERS:
        assert np.isfinite(vp[key][0, 0][0, 0])
    assert vp["distance"][0, 0][0, 0] > 1
    assert vp["focal"][0, 0][0, 0] == 1 and vp["viewport"][0, 0][0, 0] == 3000
    visible = 0
    for keypoint in CATEGORIES[category].keypoints:
        anchor = ob["anchors"][0, 0][keypoint][0, 0]
        if anchor["status"][0, 0][0, 0] == 1:
            x, y = anchor["location"][0, 0][0]
            assert 0 <= x < size[0] and 0 <= y < size[1]
            visible += 1
        else:
            assert anchor["location"][0, 0].size == 0
    assert visible >= 1
    assert read_record(path, category).pose.distance == vp["distance"][0, 0][0, 0]


@pytest.mark.parametrize("category", OPTIONS.categories)
def test_cad_models_are_plain_symmetric_and_as_large_as_real_ones(
    made: Path, category: str
) -> None:
    for number in (1, 2, 3):
        path = made / f"PASCAL3D+_release1.1/CAD/{category}/{number:02d}.off"
        lines = path.read_text().splitlines()
        n_vertices, n_faces, zero = map(int, lines[1].split())
        assert lines[0] == "OFF" and zero == 0 and len(lines) == 2 + n_vertices + n_faces
        assert all(
            line.startswith("3 ") and len(line.split()) == 4 for line in lines[2 + n_vertices :]
        )
        vertices = read_off(path).vertices
        assert np.allclose(vertices.min(0), -vertices.max(0), atol=1e-9)
        assert cKDTree(vertices).query(vertices * [-1, 1, 1])[0].max() < 1e-9
        grid = cuboid_grid(vertices)
        low, high = {
            "car": ((0.30, 0.85, 0.24), (0.42, 0.95, 0.35)),
            "chair": ((0.36, 0.36, 0.70), (0.50, 0.52, 0.82)),
        }[category]
        assert (grid.high - grid.low > low).all() and (grid.high - grid.low < high).all()
        assert (vertices.max(0) - grid.high < 0.03).all() and (
            grid.low - vertices.min(0) < 0.03
        ).all()


def test_the_same_bytes_from_two_processes(made: Path, tmp_path: Path) -> None:
    make_sample_data(tmp_path, OPTIONS, workers=2)
    assert tree(tmp_path) == tree(made)


def test_a_rerun_writes_nothing_and_mends_what_is_missing(made: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*") if p.is_file()}
    assert make_sample_data(made, OPTIONS).endswith("(14 were there already)")
    assert before == {p: p.stat().st_mtime_ns for p in made.rglob("*") if p.is_file()}
    victim = next((made / "OccludedPASCAL3D").rglob("*.npz"))
    content = victim.read_bytes()
    victim.unlink()
    unfinished = victim.with_name(f".{victim.name}.1.part")
    unfinished.write_bytes(content[:100])
    assert make_sample_data(made, OPTIONS).endswith("(13 were there already)")
    assert victim.read_bytes() == content
    unfinished.unlink()


def test_another_set_in_the_folder_is_refused_and_replaced_only_on_demand(tmp_path: Path) -> None:
    small = SampleOptions(("chair",), 1, 1, 0, 96)
    make_sample_data(tmp_path, small)
    first = tree(tmp_path)
    other = SampleOptions(("chair",), 1, 1, 1, 96)
    with pytest.raises(ValueError, match="made with seed 0 instead of 1"):
        make_sample_data(tmp_path, other)
    assert tree(tmp_path) == first
    make_sample_data(tmp_path, other, overwrite=True)
    assert set(tree(tmp_path)) == set(first) and tree(tmp_path) != first
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="not made by make_sample_data"):
        make_sample_data(tmp_path, other, overwrite=True)
    with pytest.raises(ValueError, match="no sample models of 'dragon'"):
        make_sample_data(tmp_path / "new", SampleOptions(("dragon",), 1, 1, 0, 96))


@pytest.mark.parametrize("level", OCC_LEVELS)
@pytest.mark.parametrize("category", OPTIONS.categories)
def test_occluded_twins_cover_what_their_level_says(made: Path, category: str, level: str) -> None:
    root = made / "OccludedPASCAL3D"
    raw = made / "PASCAL3D+_release1.1"
    names = (root / f"lists/{category}{level}.txt").read_text().split()
    assert len(names) == 3
    for name in names:
        stem = name.removesuffix(".JPEG")
        with np.load(
            root / f"annotations/{category}{level}/{stem}.npz", allow_pickle=False
        ) as data:
            data = dict(data)
        assert set(data) == {
            "source",
            "mask",
            "occluder_mask",
            "box",
            "occluder_box",
            "category",
            "occluder_level",
        }
        mask = data["mask"]
        occluder = data["occluder_mask"]
        assert mask.dtype == np.uint8 and occluder.dtype == bool and mask.shape == occluder.shape
        for ratio, (low, high) in zip(covered_ratios(occluder, mask > 10), level_bounds(level)):
            assert low <= ratio < high
        rows, columns = np.nonzero(mask > 10)
        y0, y1, x0, x1, height, width = data["box"]
        assert (y0, y1, x0, x1) == (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
        assert mask.shape == (height, width) and data["occluder_box"].shape[1] == 6
        record = loadmat(raw / f"Annotations/{category}_imagenet/{stem}.mat")["record"]
        assert tuple(record["objects"][0, 0]["bbox"][0, 0][0]) == (x0, y0, x1, y1)
        clean = np.asarray(Image.open(made / str(data["source"])), dtype=int)
        changed = (
            np.abs(clean - np.asarray(Image.open(root / f"images/{category}{level}/{name}"))).max(
                -1
            )
            > 60
        )
        assert (
            clean.shape[:2] == mask.shape
            and (changed & ~binary_dilation(occluder, iterations=9)).mean() < 0.002
        )


def test_projection_is_the_one_of_cameras() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(-0.5, 0.5, (50, 3))
    for _ in range(20):
        view = Viewpoint(
            *generator.uniform([0, -90, -180, 1.5, 0, 0], [360, 90, 180, 15, 500, 400])
        )
        expected = cameras.project(points, view.pose)
        assert np.allclose(project(points, view)[0], expected, atol=1e-8)


@pytest.mark.parametrize("category", OPTIONS.categories)
def test_silhouettes_agree_with_the_vertices_that_cameras_projects(category: str) -> None:
    for index in range(4):
        drawn = draw_sample(category, 1 + index % 3, 240, np.random.default_rng([3, index]))
        mask = drawn.mask > 10
        view = drawn.viewpoint
        vertices = models(category)[drawn.cad_index - 1].vertices
        pixels = cameras.project(vertices, view.pose)
        inside = ((pixels >= 0) & (pixels < mask.shape[::-1])).all(1)
        at = np.floor(pixels[inside]).astype(int)
        assert binary_dilation(mask, iterations=1)[at[:, 1], at[:, 0]].mean() > 0.995
        expected = np.concatenate(
            [np.clip(pixels.min(0), 0, None), np.clip(pixels.max(0), None, mask.shape[::-1])]
        )
        assert np.abs(expected - drawn.bbox_xyxy).max() <= 2.0


def seen(category: str, azimuth_deg: float) -> set[str]:
    view = Viewpoint(azimuth_deg, 8.0, 0.0, 8.0, 200.0, 150.0)
    model = models(category)[0]
    looks = random_looks(np.random.default_rng(0), view)
    _, _, depths = draw_object(model, view, looks, (300, 400))
    found = find_keypoints(model, view, depths, (300, 400))
    return {name for name, (status, _) in found.items() if status == VISIBLE}


def test_azimuths_show_the_sides_that_pascal3d_says() -> None:
    """0: the front (-y); 90: the side at +x, whose key points PASCAL3D+ calls right; 180: the back;
    270: the left.
    """
    assert {"left_front_light", "right_front_light"} <= seen("car", 0)
    assert {"right_front_wheel", "right_back_wheel"} <= seen("car", 90)
    assert not {"left_front_wheel", "left_back_wheel"} & seen("car", 90)
    assert {"left_back_trunk", "right_back_trunk"} <= seen("car", 180)
    assert not {"left_front_light", "right_front_light"} & seen("car", 180)
    assert {"left_front_wheel", "left_back_wheel"} <= seen("car", 270)
    for model in models("car"):
        assert model.keypoints["right_front_wheel"][0] > 0 > model.keypoints["right_front_wheel"][1]


@pytest.mark.parametrize("category", OPTIONS.categories)
def test_front_back_and_sides_look_different(category: str) -> None:
    model = models(category)[0]
    pictures = []
    looks = random_looks(np.random.default_rng(1), Viewpoint(0, 10, 0, 8, 0, 0))
    for azimuth in (0, 90, 180, 270):
        rgb, coverage, _ = draw_object(
            model, Viewpoint(azimuth, 10, 0, 8.0, 150, 150), looks, (300, 300)
        )
        assert 0.02 < coverage.mean() < 0.6
        pictures.append(rgb)
    for i in range(4):
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).sum() > 0.1 * pictures[i].sum()


def test_occlude_reaches_all_nine_levels_and_repeats_itself() -> None:
    image = np.full((120, 160, 3), 90, np.uint8)
    mask = np.zeros((120, 160), bool)
    mask[40:85, 30:120] = True
    for level in ALL_OCC_LEVELS:
        first = occlude(image, mask, level, np.random.default_rng(5))
        for ratio, (low, high) in zip(
            covered_ratios(first.occluder_mask, mask), level_bounds(level)
        ):
            assert low <= ratio < high
        assert first.image.dtype == np.uint8 and len(first.occluder_boxes) >= 1
        again = occlude(image, mask, level, np.random.default_rng(5))
        assert (first.image == again.image).all() and (
            first.occluder_mask == again.occluder_mask
        ).all()
    assert (image == 90).all()


def test_occlude_says_what_is_wrong() -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="empty"):
        occlude(image, np.zeros((40, 50), bool), "FGL1_BGL1", generator)
    with pytest.raises(ValueError, match="differ"):
        occlude(image, np.ones((50, 40), bool), "FGL1_BGL1", generator)
    with pytest.raises(ValueError, match="not an occlusion level"):
        occlude(image, np.ones((40, 50), bool), "FGL4_BGL1", generator)
    with pytest.raises(ValueError, match="FGL1_BGL3 not reached .* wanted 40% to 60%"):
        occlude(image[:12, :12], np.ones((12, 12), bool), "FGL1_BGL3", generator)
