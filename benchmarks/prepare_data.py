"""How long data preparation takes, and how visible vertices agree with the reference and the truth.

    python benchmarks/prepare_data.py [--images 60] [--pascal PASCAL3D+_release1.1]

Vertex annotation of one image and one mesh, on one core: ours against the published method, written
here from its description: a z-buffer filled triangle by triangle in Python, and a sphere fitted to
every three neighbours of every vertex for weights that nothing uses. Then crops and vertex
annotations of whole images as PrepareData.sh makes them, extrapolated to the 21,857 images of the
paper. Poses, and what the reference found, come from ../shared/golden where it is there, otherwise
poses are drawn; photographs from --pascal, otherwise they are noise.
Times are those that the processor spends on it, so that other work on the machine hardly changes
them. Predictions were written down before measuring, for one quiet core of a 2 GHz server.
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

from neural_mesh.categories import category_settings
from neural_mesh.data.pascal3d import Record
from neural_mesh.data.splits import read_split
from neural_mesh.geometry.boxes import place_crop
from neural_mesh.geometry.cameras import Pose, project
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh, published_cuboid
from neural_mesh.geometry.visibility import facing_weights, visible_vertices
from neural_mesh.settings import FOCAL_PX
from neural_mesh.stages.annotate_vertices import MeshedSubset, annotate_image
from neural_mesh.stages.cropped_images import CroppedSubset, annotation_of, prepare_image
from neural_mesh.storage.layout import PreparedSet, RawPascal3D
from neural_mesh.storage.mesh_files import read_off
from neural_mesh.storage.records import Annotation

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
PAPER_IMAGES = 21_857  # 11,045 to train on and 10,812 to test on
PREDICTED = {  # ms, per image and mesh
    "ours": 1.0,
    "published: z-buffer": 250.0,
    "published: weights": 2_000.0,
}
PREDICTED_IMAGE_MS = 30.0  # one crop and its two vertex annotations, files included


# ---- the published method, from its description --------------------------------------------------


def published_visibility(
    mesh: Mesh, pixels_rc: NDArray, centre: NDArray, image_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Vertices [V] whose normalised camera distance is within 1e-3 of a z-buffer at their pixel.

    pixels_rc [V, 2]: truncated. The z-buffer takes, per triangle, every pixel of the half-open
    bounding box whose three partial areas add up to the triangle's within 3 square pixels, and
    interpolates distance affinely; points outside the image are clamped first.
    """
    depth = np.linalg.norm(centre - mesh.vertices, axis=1)
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    points_rc = np.clip(pixels_rc, 0, np.array(image_hw) - 1).astype(float)
    buffer = np.full(image_hw, 1e10)
    for face in mesh.faces:
        _fill_triangle(buffer, points_rc[face], depth[face])
    buffer[buffer == 1e10] = 0
    rows, cols = points_rc.astype(int).T
    return abs(depth - buffer[rows, cols]) < 1e-3


def _fill_triangle(buffer: NDArray, corners_rc: NDArray, depths: NDArray) -> None:
    """Write a triangle with corners [3, 2] of depths [3] into a z-buffer [H, W]."""
    low = corners_rc.min(0).astype(int)
    high = corners_rc.max(0).astype(int)
    first, second, third = corners_rc
    area = _area(first, second, third)
    if (high - low).prod() < 3 or area < 0.01:
        return
    rows, cols = np.mgrid[low[0] : high[0], low[1] : high[1]]
    points = np.stack([rows, cols], axis=-1).astype(float)
    partial_areas = _area(points, second, third)
    partial_areas = partial_areas + _area(first, points, third)
    partial_areas = partial_areas + _area(first, second, points)
    inside = abs(partial_areas - area) < 3
    plane = np.linalg.solve(np.column_stack([corners_rc, np.ones(3)]), depths)
    values = points @ plane[:2] + plane[2]
    window = buffer[low[0] : high[0], low[1] : high[1]]
    window[inside] = np.minimum(window, values)[inside]


def _area(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    """Area of triangles of points [..., 2]."""
    side = b - a
    other = c - a
    return abs(side[..., 0] * other[..., 1] - side[..., 1] * other[..., 0]) / 2


def published_weights(mesh: Mesh, centre: NDArray) -> NDArray[np.float64]:
    """|cosine| [V] between the line of sight and the centre of the best sphere.

    The spheres go through a vertex and three of its neighbours.
    """
    neighbours: list[set[int]] = [set() for _ in mesh.vertices]
    for face in mesh.faces:
        for corner in face:
            neighbours[corner] |= set(face.tolist()) - {int(corner)}
    weights = np.zeros(len(mesh.vertices))
    for k, vertex in enumerate(mesh.vertices):
        direction = _direction_of_best_sphere(vertex, mesh.vertices[sorted(neighbours[k])])
        sight = centre - vertex
        weights[k] = abs(direction @ sight) / np.linalg.norm(sight)
    return weights


def _direction_of_best_sphere(vertex: NDArray, ring: NDArray) -> NDArray:
    """Unit vector [3] from a vertex to the centre of the sphere closest to its neighbours."""
    direction = np.array([1.0, 0, 0])
    lowest_cost = np.inf
    for triple in combinations(range(len(ring)), 3):
        offsets = ring[list(triple)] - vertex
        if np.linalg.det(offsets) == 0:
            continue
        middle = np.linalg.solve(2 * offsets, (offsets**2).sum(1))
        radius = np.linalg.norm(middle)
        deviations = np.linalg.norm(ring - vertex - middle, axis=1) - radius
        cost = np.exp(abs(deviations)).sum()
        if cost < lowest_cost:
            direction = middle / radius
            lowest_cost = cost
    return direction


# ---- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One pose of one mesh, and which vertices are visible where that is known."""

    mesh: Mesh
    annotation: Annotation
    reference: NDArray | None = None  # by its z-buffer
    truth: NDArray | None = None  # by exact geometry

    @property
    def centre(self) -> NDArray:
        return self.annotation.pose.centre

    @property
    def pixels_rc(self) -> NDArray:
        return np.trunc(project(self.mesh.vertices, self.annotation.pose, FOCAL_PX)[:, ::-1])


def paper_annotation(pose: Pose, image_hw: tuple[int, int], bbox_xyxy: NDArray) -> Annotation:
    """The annotation of a car in GEOMETRY=paper, as the reference."""
    record = Record(
        name="case",
        category="car",
        image_hw=image_hw,
        bbox_xyxy=bbox_xyxy,
        cad_index=1,
        pose=pose,
        focal=1.0,
        viewport=FOCAL_PX,
        keypoints_xy=np.zeros((0, 2)),
        keypoint_status=np.zeros(0, np.int64),
        objects=1,
    )
    crop_hw = category_settings("car").crop_hw
    placement = place_crop("paper", image_hw, crop_hw, bbox_xyxy, pose.principal_xy, pose.distance)
    return annotation_of(record, placement, None)


def golden_cases(folder: Path) -> list[Case]:
    """The poses of golden/visibility.npz, with a single and a multi cuboid each."""
    stored = np.load(folder / "visibility.npz")
    cuboids = np.load(folder / "cuboids.npz")
    cases = []
    for kind in ("real", "synth"):
        for name in stored[f"{kind}_names"]:
            item = f"{kind}/{name}"
            cad = int(stored[f"{item}/multi/cad"])
            for mesh_d, key in (("single", "single/car"), ("multi", f"multi/car/{cad:02d}")):
                vertices = np.float32(cuboids[f"{key}/vertices"]).astype(float)
                case = Case(
                    mesh=Mesh(vertices, cuboids[f"{key}/faces"].astype(np.int32)),
                    annotation=_golden_annotation(stored, item),
                    reference=stored[f"{item}/{mesh_d}/zbuffer_visible"],
                    truth=stored[f"{item}/{mesh_d}/exact_visible"],
                )
                cases.append(case)
    return cases


def _golden_annotation(stored: np.lib.npyio.NpzFile, item: str) -> Annotation:
    numbers = [stored[f"{item}/{key}"] for key in ("azimuth", "elevation", "theta", "distance")]
    pose = Pose(*map(float, numbers), stored[f"{item}/principal"])
    image_hw = (int(stored[f"{item}/height"]), int(stored[f"{item}/width"]))
    bbox_xyxy = stored[f"{item}/box_ori"][[2, 0, 3, 1]].astype(float)
    return paper_annotation(pose, image_hw, bbox_xyxy)


def drawn_cases(count: int) -> list[Case]:
    """Random poses of the authors' car cuboid in a picture of 375 x 500 pixels."""
    random = np.random.default_rng(0)
    mesh = published_cuboid("car")
    bbox_xyxy = np.array([50.0, 80.0, 450.0, 300.0])
    cases = []
    for _ in range(count):
        numbers = random.uniform([0, -0.2, -0.1, 5], [2 * np.pi, 0.6, 0.1, 12]).tolist()
        pose = Pose(*numbers, np.array([250.0, 187.0]))
        cases.append(Case(mesh, paper_annotation(pose, (375, 500), bbox_xyxy)))
    return cases


def published(case: Case) -> NDArray[np.bool_]:
    """Visibility by the published method."""
    image_hw = (case.annotation.height, case.annotation.width)
    return published_visibility(case.mesh, case.pixels_rc, case.centre, image_hw)


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
            lambda case: published_weights(case.mesh, case.centre), cases[:2], 1
        ),
    }
    print("vertex annotation of one image and mesh, one core\n")
    print("| method | ms (predicted) | ratio |\n|---|---|---|")
    for name, value in measured.items():
        ratio = value / measured["ours"]
        print(f"| {name} | {value:,.2f} ({PREDICTED[name]:,.2f}) | {ratio:,.0f} |")


def print_agreement(cases: list[Case]) -> None:
    """How visibility by the object itself compares, over all vertices of all cases."""
    by_object = np.concatenate([visible_vertices(case.mesh, case.centre) for case in cases])
    by_published = np.concatenate([published(case) for case in cases])
    truth = np.concatenate([case.truth for case in cases])
    reference = np.concatenate([case.reference for case in cases])
    print(f"\nvisibility of {len(truth):,} vertices of {len(cases)} poses and meshes\n")
    print("| | equal | visible ones missed | hidden ones taken |\n|---|---|---|---|")
    for name, visible, expected in (
        ("ours, against the truth", by_object, truth),
        ("the reference, against the truth", reference, truth),
        ("ours, against the reference", by_object, reference),
        ("its method as written here, against the reference", by_published, reference),
    ):
        missed = (expected & ~visible).sum() / expected.sum()
        taken = (~expected & visible).sum() / (~expected).sum()
        equal = (visible == expected).mean()
        print(f"| {name} | {equal:.2%} | {missed:.2%} | {taken:.2%} |")


# ---- whole images --------------------------------------------------------------------------------


def noise_photographs(root: Path, count: int) -> Path:
    """A raw set of `count` pictures of noise, for where there are no photographs."""
    from scipy.io import savemat

    raw = RawPascal3D(root)
    random = np.random.default_rng(0)
    names = [f"noise_{i}" for i in range(count)]
    for name in names:
        image_path = raw.image("car", name)
        annotation_path = raw.annotation("car", name)
        image_path.parent.mkdir(parents=True, exist_ok=True)
        annotation_path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 255, (47, 63, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(image_path, "JPEG")
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
        car = {
            "class": "car",
            "bbox": np.array([50.0, 80.0, 450.0, 300.0]),
            "cad_index": 1,
            "viewpoint": view,
        }
        record = {"imgsize": np.array([500.0, 375.0, 3.0]), "objects": car}
        savemat(annotation_path, {"record": record}, oned_as="row")
    raw.image_set("car", "train").parent.mkdir(parents=True)
    raw.image_set("car", "train").write_text("\n".join(names))
    return root


def print_whole(root: Path, count: int, what: str, out: Path) -> None:
    """Time of a crop with its two vertex annotations, files included.

    Also what it means for the paper's images.
    """
    raw = RawPascal3D(root)
    names = read_split(raw, "car", "train").names[:count]
    subset = CroppedSubset(raw, PreparedSet(out), "car", "paper", cads=10)
    start = time.process_time()
    outcomes = [prepare_image(subset, name) for name in names]
    seconds_of_crops = time.process_time() - start

    usable = [outcome.name for outcome in outcomes if outcome.is_usable]
    single = (published_cuboid("car"),)
    multi = single * 10
    if raw.cad_folder("car").is_dir():
        cads = [read_off(path) for path in raw.cads("car")]
        multi = tuple(cuboid_mesh(cuboid_grid(cad.vertices)) for cad in cads)
    start = time.process_time()
    for mesh_d, meshes in (("single", single), ("multi", multi)):
        meshed = MeshedSubset(PreparedSet(out), mesh_d, "car", meshes)
        for name in usable:
            annotate_image(meshed, name)
    seconds_of_vertices = time.process_time() - start

    crop_ms = seconds_of_crops / len(usable) * 1e3
    vertices_ms = seconds_of_vertices / len(usable) * 1e3
    total_ms = crop_ms + vertices_ms
    print(f"\nwhole preparation of {len(usable)} {what}, one core, files included\n")
    print("| | ms an image (predicted) | images/s |\n|---|---|---|")
    print(f"| crop | {crop_ms:.1f} | {1e3 / crop_ms:.0f} |")
    print(f"| vertices of two meshes | {vertices_ms:.1f} | {1e3 / vertices_ms:.0f} |")
    print(f"| together | {total_ms:.1f} ({PREDICTED_IMAGE_MS:.0f}) | {1e3 / total_ms:.0f} |")
    one_core = PAPER_IMAGES * total_ms / 60e3
    eight_cores = one_core / 8
    print(
        f"\n~ {PAPER_IMAGES:,} images: "
        f"{one_core:.1f} minutes on one core, {eight_cores:.1f} on eight"
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
        what = "photographs" if args.pascal else "pictures of noise"
        print_whole(root, args.images, what, Path(folder) / "prepared")


if __name__ == "__main__":
    main()
