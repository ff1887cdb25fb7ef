"""How long data preparation takes, and how the visibility of vertices agrees with the reference's and with the truth.

    python benchmarks/prepare_data.py [--images 60] [--pascal PASCAL3D+_release1.1]

Vertex annotation of one image and one mesh, on one core: ours against the published method, written here from its
description: a z-buffer filled triangle by triangle in Python, and a sphere fitted to every three neighbours of every
vertex for weights that nothing uses. Then crops and vertex annotations of whole images as PrepareData.sh makes them,
extrapolated to the 21,857 images of the paper. Poses, and what the reference found, come from ../shared/golden where it
is there, otherwise poses are drawn; photographs from --pascal, otherwise they are noise.
Times are those that the processor spends on it, so that other work on the machine hardly changes them.
Predictions were written down before measuring, for one quiet core of a 2 GHz server.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate_vertices import Job as VertexJob
from annotate_vertices import annotate_image
from neural_mesh.categories import category_settings
from neural_mesh.data.pascal3d import Record
from neural_mesh.data.splits import read_split
from neural_mesh.geometry.boxes import crop_geometry
from neural_mesh.geometry.cameras import project
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh, published_cuboid
from neural_mesh.geometry.visibility import facing_weights, visible_vertices
from neural_mesh.settings import FOCAL_PX
from neural_mesh.storage.layout import PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import Annotation
from prepare_images import Job as ImageJob
from prepare_images import annotation_of, prepare_image

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
PAPER_IMAGES = 21_857  # 11,045 to train on and 10,812 to test on
PREDICTED = {  # ms, per image and mesh
    "ours": 1.0,
    "published: z-buffer": 250.0,
    "published: weights": 2_000.0,
}
PREDICTED_IMAGE_MS = 30.0  # one crop and its two vertex annotations, files included


# ---- the published method, from its description -------------------------------------------------------------------------


def published_visibility(
    mesh: Mesh, pixels_rc: NDArray, centre: NDArray, image_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Vertices [V] whose normalised camera distance is within 1e-3 of a z-buffer at their truncated pixel [V, 2].

    The z-buffer takes, per triangle, every pixel of the half-open bounding box whose three partial areas add up to the
    triangle's within 3 square pixels, and interpolates distance affinely; points outside the image are clamped first.
    """
    depth = np.linalg.norm(centre - mesh.vertices, axis=1)
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    at = np.clip(pixels_rc, 0, np.array(image_hw) - 1).astype(float)
    buffer = np.full(image_hw, 1e10)
    for face in mesh.faces:
        corners, depths = at[face], depth[face]
        low, high = corners.min(0).astype(int), corners.max(0).astype(int)
        area = _area(*corners)
        if (high - low).prod() < 3 or area < 0.01:
            continue
        rows, cols = np.mgrid[low[0] : high[0], low[1] : high[1]]
        points = np.stack([rows, cols], axis=-1).astype(float)
        parts = [
            _area(points, corners[1], corners[2]),
            _area(corners[0], points, corners[2]),
            _area(corners[0], corners[1], points),
        ]
        inside = abs(sum(parts) - area) < 3
        plane = np.linalg.solve(np.column_stack([corners, np.ones(3)]), depths)
        values = points @ plane[:2] + plane[2]
        window = buffer[low[0] : high[0], low[1] : high[1]]
        window[inside] = np.minimum(window, values)[inside]
    buffer[buffer == 1e10] = 0
    cells = at.astype(int)
    return abs(depth - buffer[cells[:, 0], cells[:, 1]]) < 1e-3


def _area(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """Area of triangles of points [..., 2]."""
    return (
        abs(
            (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1])
            - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
        )
        / 2
    )


def published_weights(mesh: Mesh, centre: NDArray) -> NDArray[np.float64]:
    """|cosine| [V] between the line of sight and the centre of the best sphere through a vertex and three neighbours."""
    neighbours: list[set[int]] = [set() for _ in mesh.vertices]
    for face in mesh.faces:
        for corner in face:
            neighbours[corner] |= set(face.tolist()) - {int(corner)}
    weights = np.zeros(len(mesh.vertices))
    for k, around in enumerate(neighbours):
        direction, best, ring = np.array([1.0, 0, 0]), np.inf, mesh.vertices[sorted(around)]
        for triple in combinations(range(len(ring)), 3):
            offsets = ring[list(triple)] - mesh.vertices[k]
            if np.linalg.det(offsets) == 0:
                continue
            middle = np.linalg.solve(2 * offsets, (offsets**2).sum(1))
            radius = np.linalg.norm(middle)
            cost = np.exp(
                abs(np.linalg.norm(ring - mesh.vertices[k] - middle, axis=1) - radius)
            ).sum()
            if cost < best:
                direction, best = middle / radius, cost
        sight = centre - mesh.vertices[k]
        weights[k] = abs(direction @ sight) / np.linalg.norm(sight)
    return weights


# ---- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One pose of one mesh, and what the reference and exact geometry found, where that is known."""

    mesh: Mesh
    annotation: Annotation
    reference: NDArray | None = None  # its z-buffer's visible vertices
    truth: NDArray | None = None

    @property
    def centre(self) -> NDArray:
        return self.annotation.pose.centre

    @property
    def pixels_rc(self) -> NDArray:
        return np.trunc(project(self.mesh.vertices, self.annotation.pose, FOCAL_PX)[:, ::-1])


def make_case(
    mesh: Mesh,
    pose: list[float],
    principal: NDArray,
    image_hw: tuple[int, int],
    bbox: NDArray,
    **found: NDArray,
) -> Case:
    """A case in GEOMETRY=paper, as the reference."""
    record = Record(
        "case",
        "car",
        image_hw,
        bbox,
        1,
        *pose,
        1.0,
        FOCAL_PX,
        principal,
        np.zeros((0, 2)),
        np.zeros(0, np.int64),
        1,
    )
    geometry = crop_geometry("paper", image_hw, category_settings("car").crop_hw, bbox, principal, pose[3])
    return Case(mesh, annotation_of(record, geometry, None), **found)


def golden_cases(folder: Path) -> list[Case]:
    """The poses of golden/visibility.npz."""
    stored, cuboids, cases = np.load(folder / "visibility.npz"), np.load(folder / "cuboids.npz"), []
    for item in [
        f"{kind}/{name}" for kind in ("real", "synth") for name in stored[f"{kind}_names"]
    ]:
        for mesh_d in ("single", "multi"):
            key = (
                "single/car"
                if mesh_d == "single"
                else f"multi/car/{int(stored[f'{item}/multi/cad']):02d}"
            )
            mesh = Mesh(
                np.float32(cuboids[f"{key}/vertices"]).astype(float),
                cuboids[f"{key}/faces"].astype(np.int32),
            )
            pose = [
                float(stored[f"{item}/{k}"]) for k in ("azimuth", "elevation", "theta", "distance")
            ]
            size, box = (
                (int(stored[f"{item}/height"]), int(stored[f"{item}/width"])),
                stored[f"{item}/box_ori"],
            )
            cases.append(
                make_case(
                    mesh,
                    pose,
                    stored[f"{item}/principal"],
                    size,
                    box[[2, 0, 3, 1]].astype(float),
                    reference=stored[f"{item}/{mesh_d}/zbuffer_visible"],
                    truth=stored[f"{item}/{mesh_d}/exact_visible"],
                )
            )
    return cases


def drawn_cases(count: int) -> list[Case]:
    """Random poses of the authors' car cuboid in a picture of 375 x 500 pixels."""
    random, mesh = np.random.default_rng(0), published_cuboid("car")
    cases = []
    for _ in range(count):
        pose = [*random.uniform([0, -0.2, -0.1, 5], [2 * np.pi, 0.6, 0.1, 12]).tolist()]
        cases.append(
            make_case(
                mesh,
                pose,
                np.array([250.0, 187.0]),
                (375, 500),
                np.array([50.0, 80.0, 450.0, 300.0]),
            )
        )
    return cases


def published(case: Case) -> NDArray[np.bool_]:
    """Visibility by the published method."""
    return published_visibility(
        case.mesh, case.pixels_rc, case.centre, (case.annotation.height, case.annotation.width)
    )


def ours(case: Case) -> object:
    """All that a vertex annotation holds."""
    return case.annotation.vertices_in_crop(case.mesh), facing_weights(case.mesh, case.centre)


def milliseconds(work: Callable[[Case], object], cases: list[Case], repeats: int = 3) -> float:
    """Processor time per case: the least of some runs over all of them."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for case in cases:
            work(case)
        times.append((time.process_time() - start) / len(cases) * 1e3)
    return min(times)


def print_annotation(cases: list[Case]) -> None:
    """Time per image and mesh of ours and of the published method."""
    measured = {
        "ours": milliseconds(ours, cases),
        "published: z-buffer": milliseconds(published, cases[:8], 2),
        "published: weights": milliseconds(
            lambda c: published_weights(c.mesh, c.centre), cases[:2], 1
        ),
    }
    print("vertex annotation of one image and mesh, one core\n")
    print("| method | ms (predicted) | ratio |\n|---|---|---|")
    for name, value in measured.items():
        print(
            f"| {name} | {value:,.2f} ({PREDICTED[name]:,.2f}) | {value / measured['ours']:,.0f} |"
        )


def print_agreement(cases: list[Case]) -> None:
    """How visibility by the object itself compares, over all vertices of all cases."""
    mine = np.concatenate([visible_vertices(c.mesh, c.centre) for c in cases])
    truth, reference = (
        np.concatenate([getattr(c, key) for c in cases]) for key in ("truth", "reference")
    )
    copy = np.concatenate([published(c) for c in cases])
    print(f"\nvisibility of {len(truth):,} vertices of {len(cases)} poses and meshes\n")
    print("| | equal | visible ones missed | hidden ones taken |\n|---|---|---|---|")
    for name, found, of in (
        ("ours, against the truth", mine, truth),
        ("the reference, against the truth", reference, truth),
        ("ours, against the reference", mine, reference),
        ("its method as written here, against the reference", copy, reference),
    ):
        missed, taken = (of & ~found).sum() / of.sum(), (~of & found).sum() / (~of).sum()
        print(f"| {name} | {(found == of).mean():.2%} | {missed:.2%} | {taken:.2%} |")


def noise_photographs(root: Path, count: int) -> Path:
    """A raw set of `count` pictures of noise, for where there are no photographs."""
    from scipy.io import savemat

    raw, random = RawPascal3D(root), np.random.default_rng(0)
    names = [f"noise_{i}" for i in range(count)]
    for name in names:
        for path in (raw.image("car", name), raw.annotation("car", name)):
            path.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 255, (47, 63, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(
            raw.image("car", name), "JPEG"
        )
        view = {
            "azimuth": random.uniform(0, 360),
            "elevation": 10.0,
            "theta": 0.0,
            "distance": random.uniform(5, 12),
            "focal": 1.0,
            "viewport": FOCAL_PX,
            "px": 250.0,
            "py": 187.0,
        }
        thing = {
            "class": "car",
            "bbox": np.array([50.0, 80.0, 450.0, 300.0]),
            "cad_index": 1,
            "viewpoint": view,
        }
        savemat(
            raw.annotation("car", name),
            {"record": {"imgsize": np.array([500.0, 375.0, 3.0]), "objects": thing}},
            oned_as="row",
        )
    raw.image_set("car", "train").parent.mkdir(parents=True)
    raw.image_set("car", "train").write_text("\n".join(names))
    return root


def print_whole(root: Path, count: int, what: str, out: Path) -> None:
    """Time of a crop with its two vertex annotations, files included, and what it means for the paper's images."""
    raw = RawPascal3D(root)
    names = read_split(raw, "car", "train").names[:count]
    job = ImageJob(raw, PreparedSet(out), "car", "paper", 10)
    start = time.process_time()
    used = [
        outcome.name for outcome in (prepare_image(job, name) for name in names) if outcome.usable
    ]
    cropped = time.process_time()
    meshes = (
        tuple(cuboid_mesh(cuboid_grid(read_off(p).vertices)) for p in raw.cads("car"))
        if raw.cad_folder("car").is_dir()
        else ()
    )
    vertices = time.process_time()
    for mesh_d, of in (
        ("single", (published_cuboid("car"),)),
        ("multi", meshes or (published_cuboid("car"),) * 10),
    ):
        for name in used:
            annotate_image(VertexJob(PreparedSet(out), mesh_d, "car", of), name)
    end = time.process_time()
    crop, annotation = (cropped - start) / len(used) * 1e3, (end - vertices) / len(used) * 1e3
    total = crop + annotation
    print(f"\nwhole preparation of {len(used)} {what}, one core, files included\n")
    print("| | ms an image (predicted) | images/s |\n|---|---|---|")
    print(
        f"| crop | {crop:.1f} | {1e3 / crop:.0f} |\n| vertices of two meshes | {annotation:.1f} | {1e3 / annotation:.0f} |"
    )
    print(f"| together | {total:.1f} ({PREDICTED_IMAGE_MS:.0f}) | {1e3 / total:.0f} |")
    minutes = PAPER_IMAGES * total / 60e3
    print(
        f"\n~ {PAPER_IMAGES:,} images: {minutes:.1f} minutes on one core, {minutes / 8:.1f} on eight"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=60, help="to prepare")
    parser.add_argument("--pascal", type=Path, help="a set in PASCAL3D+'s raw layout that has cars")
    args = parser.parse_args()
    cases = golden_cases(GOLDEN) if (GOLDEN / "visibility.npz").is_file() else drawn_cases(24)
    print_annotation(cases)
    if cases[0].truth is not None:
        print_agreement(cases)
    with tempfile.TemporaryDirectory() as folder:
        root = args.pascal or noise_photographs(Path(folder) / "raw", args.images)
        print_whole(
            root,
            args.images,
            "photographs" if args.pascal else "pictures of noise",
            Path(folder) / "prepared",
        )


if __name__ == "__main__":
    main()
