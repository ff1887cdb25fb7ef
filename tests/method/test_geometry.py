"""Cuboids, crops and visibility, against the reference and against exact geometry."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.project import golden_path
from neural_mesh.categories import category_settings
from neural_mesh.geometry import boxes, cameras
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh
from neural_mesh.geometry.visibility import _segments_blocked, visible_vertices
from neural_mesh.storage.mesh_files import read_off, write_off

CORNERS = np.array(np.meshgrid([0.0, 1.0], [0.0, 1.0], [0.0, 1.0])).reshape(3, -1).T
UNIT_CUBE = CORNERS.repeat(50, 0)
POSE_KEYS = ("azimuth", "elevation", "theta", "distance")


# ---- cuboids ----


def test_unit_cube_has_the_counts_of_the_reference():
    mesh = cuboid_mesh(cuboid_grid(UNIT_CUBE))
    assert len(mesh.vertices) == 1014
    assert len(np.unique(mesh.vertices, axis=0)) == 866
    assert len(mesh.faces) == 1728


def test_cuboids_of_made_up_points_equal_the_reference(golden):
    d = golden("cuboids_synth.npz")
    keys = [key for key in d.files if key.endswith("/vertices") and not key.startswith("cad/")]
    assert len(keys) == 22
    for key in keys:
        number, kind, name, *cad = key.split("/")
        sources = sorted(k for k in d.files if k.startswith(f"cad/{name}/"))
        if kind != "single":
            sources = [f"cad/{name}/{cad[0]}/vertices"]
        points = np.concatenate([d[k] for k in sources])
        mesh = cuboid_mesh(cuboid_grid(points, int(number[1:])))
        np.testing.assert_allclose(mesh.vertices, d[key], atol=1e-7)
        np.testing.assert_array_equal(mesh.faces, d[key.replace("vertices", "faces")])


def test_minimum_thickness_mends_a_flat_axis():
    flat = UNIT_CUBE * [1, 0, 1]
    assert cuboid_grid(flat).samples[1] == 1
    assert cuboid_grid(flat, minimum_thickness=0.1).samples[1] > 1


def test_points_in_one_place_are_refused():
    with pytest.raises(ValueError, match="no cuboid"):
        cuboid_grid(np.zeros((100, 3)))


# ---- their files ----


def test_off_files_survive_a_round_trip(tmp_path):
    mesh = cuboid_mesh(cuboid_grid(UNIT_CUBE, 60))
    write_off(tmp_path / "01.off", mesh)
    again = read_off(tmp_path / "01.off")
    np.testing.assert_array_equal(again.vertices, mesh.vertices)
    np.testing.assert_array_equal(again.faces, mesh.faces)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("PLY\n1 2 3", "not an OFF file"),
        ("OFF\n3 1000000000 0\n0 0 0\n", "has only"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "does not exist"),
        ("OFF\n3 1 0\n0 0 0\n1 0 nan\n0 1 0\n3 0 1 2\n", "not finite"),
        ("OFF\nx y z\n", "not numbers"),
        ("", "is empty"),
    ],
)
def test_broken_off_files_are_refused_with_their_name(tmp_path, text, complaint):
    path = tmp_path / "broken.off"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_off(path)
    assert "broken.off" in str(caught.value)


def test_off_polygons_comments_and_merged_header(tmp_path):
    path = tmp_path / "quad.off"
    path.write_text("OFF4 1 0 # a quad\n\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n")
    assert read_off(path).faces.tolist() == [[0, 1, 2], [0, 2, 3]]


# ---- crops ----


def check_crop(d, name, image, crop_hw):
    def value(key):
        return d[f"{name}/{key}"]

    placement = boxes.place_crop(
        "paper",
        image.shape[:2],
        crop_hw,
        value("anno/bbox"),
        value("anno/principal"),
        float(value("anno/distance")),
    )
    difference = np.abs(boxes.crop_image(image, placement).astype(int) - value("crop"))
    assert difference.max() <= 1
    for key in ("box", "box_ori", "box_obj"):
        np.testing.assert_array_equal(np.float32(getattr(placement, key)), value(f"anno/{key}"))
    np.testing.assert_allclose(
        placement.map_points([[0, 0], [100, 100]]),
        [value("mid/interp_lo"), value("mid/interp_100")],
        atol=1e-9,
    )
    seen = value("kp_status") == 1
    points = np.where(seen[:, None], placement.map_points(value("kp_xy")[:, ::-1]), 0)
    np.testing.assert_allclose(points, value("anno/cropped_kp_list"), atol=1e-9)


def test_paper_crops_of_procedural_images_equal_the_reference(golden):
    d = golden("crops_synth.npz")
    for case in json.loads(golden_path("crops_synth.json").read_text()):
        crop_hw = category_settings(case["category"]).crop_hw
        check_crop(d, case["name"], d[f"{case['name']}/image"], crop_hw)


def test_paper_crops_of_photographs_equal_the_reference(golden):
    d = golden("crops.npz")
    for name in d["names"]:
        image = np.array(Image.open(io.BytesIO(d[f"{name}/src_jpeg"].tobytes())))
        if hashlib.sha256(image.tobytes()).hexdigest() != str(d[f"{name}/decoded_sha256"]):
            pytest.skip("this JPEG decoder gives other pixels than the golden file's")
        check_crop(d, name, image, category_settings("car").crop_hw)


@pytest.mark.parametrize("distance", [3.1, 5.0, 11.3])
def test_exact_crops_put_a_painted_point_where_the_map_says(distance):
    image = np.zeros((300, 400, 3), np.uint8)
    image[116:125, 206:215] = 255  # centred on (120.5, 210.5) in continuous pixel coordinates
    placement = boxes.place_crop(
        "exact", (300, 400), (256, 672), [150, 80, 260, 180], [200.3, 130.7], distance
    )
    crop = boxes.crop_image(image, placement)[..., 0].astype(float)
    rows, cols = np.mgrid[: crop.shape[0], : crop.shape[1]] + 0.5
    found = np.array([(rows * crop).sum(), (cols * crop).sum()]) / crop.sum()
    np.testing.assert_allclose(found, placement.map_points([120.5, 210.5]), atol=0.05)


# ---- visibility ----


def visibility_items(d) -> list[str]:
    return [f"{kind}/{name}" for kind in ("real", "synth") for name in d[f"{kind}_names"]]


def cuboid_of(d, cuboids, item: str, mesh_d: str) -> Mesh:
    """The car's cuboid that an item of the golden file was computed with."""
    key = "single/car"
    if mesh_d == "multi":
        key = f"multi/car/{int(d[f'{item}/multi/cad']):02d}"
    vertices = np.float32(cuboids[f"{key}/vertices"]).astype(float)
    return Mesh(vertices, cuboids[f"{key}/faces"].astype(np.int32))


def pose_of(d, item: str) -> cameras.Pose:
    angles_and_distance = [float(d[f"{item}/{key}"]) for key in POSE_KEYS]
    return cameras.Pose(*angles_and_distance, d[f"{item}/principal"])


def test_visibility_equals_the_analytic_truth_and_projection_the_reference(golden):
    d, cuboids = golden("visibility.npz"), golden("cuboids.npz")
    vertices_checked = 0
    for item in visibility_items(d):
        for mesh_d in ("single", "multi"):
            cell = f"{item}/{mesh_d}"
            if f"{cell}/exact_visible" not in d:
                continue
            mesh = cuboid_of(d, cuboids, item, mesh_d)
            pose = pose_of(d, item)
            visible = visible_vertices(mesh, pose.centre)
            np.testing.assert_array_equal(visible, d[f"{cell}/exact_visible"])
            focal_px = d[f"{item}/focal"] * d[f"{item}/viewport"]
            pixels = cameras.project(mesh.vertices, pose, focal_px)
            safe = (np.abs(pixels - np.rint(pixels)) > 1e-6).all(1)
            expected = d[f"{cell}/pixels_original_rc"][safe]
            np.testing.assert_array_equal(np.trunc(pixels)[safe, ::-1], expected)
            vertices_checked += len(visible)
    assert vertices_checked > 60_000


def test_ray_test_agrees_with_the_rule_for_cuboids():
    mesh = cuboid_mesh(cuboid_grid((UNIT_CUBE - 0.5) * [0.4, 0.9, 0.3], 300))
    for azimuth, elevation in [(0.3, 0.2), (2.0, -0.4), (4.4, 1.2)]:
        centre = cameras.camera_centre(azimuth, elevation, 4.0)
        by_rays = ~_segments_blocked(mesh, centre)
        np.testing.assert_array_equal(by_rays, visible_vertices(mesh, centre))


def test_a_sphere_hides_its_far_side():
    """Not a cuboid: the ray test decides."""
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    u, v = np.meshgrid(around, np.linspace(0.1, np.pi - 0.1, 16))
    points = np.stack([np.sin(v) * np.cos(u), np.sin(v) * np.sin(u), np.cos(v)], -1)
    vertices = points.reshape(-1, 3)
    index = np.arange(len(vertices)).reshape(16, 24)
    beside = np.roll(index, -1, 1)
    a, b, c, e = index[:-1], beside[:-1], index[1:], beside[1:]
    triangles = [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([e, b, c], -1).reshape(-1, 3)]
    mesh = Mesh(vertices, np.concatenate(triangles).astype(np.int32))
    visible = visible_vertices(mesh, np.array([0.0, -6.0, 0.0]))
    height = vertices @ [0, -1, 0]  # towards the camera; the horizon is at 1/6
    assert visible[height > 0.3].all()
    assert not visible[height < 0.0].any()


def test_vertex_annotations_equal_the_reference_where_its_visibility_is_right(golden):
    """Positions, and which vertices are seen inside the annotated box; and the exact map."""
    d, cuboids = golden("visibility.npz"), golden("cuboids.npz")
    compared = 0
    for item in visibility_items(d):
        size_hw = (int(d[f"{item}/height"]), int(d[f"{item}/width"]))
        box_ori = d[f"{item}/box_ori"]
        pose = pose_of(d, item)
        bbox_xyxy = box_ori[[2, 0, 3, 1]]
        true = boxes.place_crop(
            "paper", size_hw, (256, 672), bbox_xyxy, pose.principal_xy, pose.distance
        )
        # The stored boxes come from an unclipped box.
        stored = replace(true, box_ori=box_ori, box_obj=d[f"{item}/box_obj"])
        for mesh_d in ("single", "multi"):
            cell = f"{item}/{mesh_d}"
            mesh = cuboid_of(d, cuboids, item, mesh_d)
            pixels = d[f"{cell}/pixels_original_rc"]
            crop = np.clip(stored.map_points(pixels), 0, [255, 671])
            np.testing.assert_allclose(crop, d[f"{cell}/crop_rc"], atol=1e-9)
            inside = ((pixels >= box_ori[[0, 2]]) & (pixels < box_ori[[1, 3]])).all(1)
            seen = visible_vertices(mesh, pose.centre) & inside
            right = d[f"{cell}/zbuffer_visible"] == d[f"{cell}/exact_visible"]
            np.testing.assert_array_equal(seen[right], d[f"{cell}/visible"][right])
            exact = true.map_points_exactly(d[f"{cell}/exact_original_uv"][:, ::-1])
            np.testing.assert_allclose(exact, d[f"{cell}/exact_crop_rc"], atol=1e-9)
            compared += right.sum()
    assert compared > 60_000
