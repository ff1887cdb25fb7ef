"""The procedural cars and chairs of SamplePASCAL3D+: geometry, key points, and what each point of a surface is made of.

Axes are PASCAL3D+'s: z up, the front towards -y, everything symmetric about x = 0, the bounding box centred on the
origin. "left" in a key point's name is -x, as in PASCAL3D+ (the left seen by somebody in front of the object).
To add a category, write one function that returns its models and name it in `MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

# What a point of a surface is made of; `sample.palette` gives each its colour and gloss.
(
    PAINT,
    PAINT2,
    GLASS,
    TYRE,
    RIM,
    CHROME,
    BLACK,
    HEADLIGHT,
    TAILLIGHT,
    PLATE,
    GAP,
    WOOD,
    FABRIC,
    FABRIC2,
    METAL,
) = range(15)
NUM_MATERIALS = 15

Triangles = tuple[NDArray, NDArray]  # vertices [V, 3] and faces [F, 3]


@dataclass(frozen=True)
class Model:
    """One CAD model. `paint(points [3, N], tag [N], material [N])` refines the materials of points of its surface."""

    subtype: str
    vertices: NDArray[np.float64]  # [V, 3]
    normals: NDArray[np.float64]  # [V, 3], unit, of either sign
    faces: NDArray[np.int32]  # [F, 3]
    material: NDArray[np.int64]  # [V], the same for the corners of a face
    tag: NDArray[np.float64]  # [V], position along a section of the car's body, -1 elsewhere
    keypoints: dict[str, NDArray[np.float64]]  # name -> [3]
    paint: Callable[[NDArray, NDArray, NDArray], NDArray] | None = None


# ---- primitives -----------------------------------------------------------------------------------------------------


def grid_faces(rows: int, columns: int) -> NDArray:
    """Two triangles per cell of a grid of rows x columns vertices [F, 3]."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    return np.concatenate(
        [np.stack([a, b, c], -1).reshape(-1, 3), np.stack([d, c, b], -1).reshape(-1, 3)]
    )


def box(centre: tuple, half: tuple, radius: float = 0.006, step: float = 0.025) -> Triangles:
    """A box with rounded edges, tessellated so that no edge is longer than about `step`."""
    half = np.asarray(half, float)
    radius = min(radius, *half)
    vertices, faces, count = [], [], 0
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        ticks = [_edge_ticks(half[a], radius, step) for a in (u, v)]
        for sign in (-1.0, 1.0):
            side = np.empty((len(ticks[0]), len(ticks[1]), 3))
            side[..., axis], side[..., u], side[..., v] = (
                sign * half[axis],
                ticks[0][:, None],
                ticks[1][None],
            )
            faces.append(grid_faces(*side.shape[:2]) + count)
            vertices.append(side.reshape(-1, 3))
            count += len(vertices[-1])
    points = np.concatenate(vertices)
    inner = np.clip(points, radius - half, half - radius)
    outward = points - inner
    points = inner + radius * outward / np.maximum(
        np.linalg.norm(outward, axis=1, keepdims=True), 1e-12
    )
    return points + np.asarray(centre, float), np.concatenate(faces)


def _edge_ticks(half: float, radius: float, step: float) -> NDArray:
    """Positions along an edge from -half to half, denser where it is rounded."""
    flat = np.linspace(
        radius - half, half - radius, max(2, int(np.ceil(2 * (half - radius) / step)) + 1)
    )
    return np.concatenate([[-half, -half + 0.4 * radius], flat, [half - 0.4 * radius, half]])


def tube(
    path: list | NDArray, radius: float | NDArray, sides: int = 10, step: float = 0.025
) -> Triangles:
    """A round bar along a polyline [K, 3]; `radius` is one number or one per corner."""
    corners = np.asarray(path, float)
    radii = np.broadcast_to(np.asarray(radius, float), len(corners))
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    at = np.concatenate([[0], np.cumsum(lengths)])
    places = np.unique(np.concatenate([at, np.linspace(0, at[-1], int(at[-1] / step) + 2)]))
    points = np.stack([np.interp(places, at, corners[:, a]) for a in range(3)], -1)
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    helper = np.eye(3)[np.argmin(np.abs(along).max(0))]
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angle = np.linspace(0, 2 * np.pi, sides + 1)[None, :, None]
    ring = np.cos(angle) * first[:, None] + np.sin(angle) * second[:, None]
    vertices = points[:, None] + np.interp(places, at, radii)[:, None, None] * ring
    closed = np.concatenate(
        [
            np.repeat(points[:1, None], sides + 1, 1),
            vertices,
            np.repeat(points[-1:, None], sides + 1, 1),
        ]
    )
    return closed.reshape(-1, 3), grid_faces(len(closed), sides + 1)


def lathe(centre: tuple, profile: list[tuple[float, float]], sides: int = 28) -> Triangles:
    """A solid of revolution about an axis parallel to x; `profile` is (x, radius) from one end to the other."""
    x, r = np.asarray(profile, float).T
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    y, z = r[:, None] * np.cos(angle), r[:, None] * np.sin(angle)
    points = np.stack([np.repeat(x[:, None], sides + 1, 1), y, z], -1) + np.asarray(centre, float)
    return points.reshape(-1, 3), grid_faces(len(x), sides + 1)


def vertex_normals(vertices: NDArray, faces: NDArray) -> NDArray:
    """Area-weighted mean of the normals of the faces around a position [V, 3]; equal positions share it."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    _, same = np.unique(np.round(vertices, 7), axis=0, return_inverse=True)
    total = np.zeros((same.max() + 1, 3))
    for corner in range(3):
        np.add.at(total, same.ravel()[faces[:, corner]], normal)
    total = total[same.ravel()]
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-15)


@dataclass
class Builder:
    """Collects parts, each with its material, and centres the whole."""

    parts: list[tuple[NDArray, NDArray, NDArray, int, NDArray]] = field(default_factory=list)

    def add(
        self, triangles: Triangles, material: int, tag: NDArray | None = None, mirror: bool = False
    ) -> None:
        """Add a part; with `mirror` also its image at -x."""
        vertices, faces = triangles
        tag = np.full(len(vertices), -1.0) if tag is None else tag
        for sign in (1.0, -1.0) if mirror else (1.0,):
            points = vertices * [sign, 1, 1]
            self.parts.append((points, faces, vertex_normals(points, faces), material, tag))

    def model(self, subtype: str, keypoints: dict, paint: Callable | None = None) -> Model:
        """The model, moved so that its bounding box is centred; `paint` sees the coordinates of before."""
        vertices = np.concatenate([p[0] for p in self.parts])
        offsets = np.cumsum([0] + [len(p[0]) for p in self.parts[:-1]])
        middle = (vertices.min(0) + vertices.max(0)) / 2 * [0, 1, 1]  # x is symmetric already
        shift = middle.astype(np.float32)[:, None]
        return Model(
            subtype=subtype,
            vertices=vertices - middle,
            normals=np.concatenate([p[2] for p in self.parts]),
            faces=np.concatenate([p[1] + o for p, o in zip(self.parts, offsets)]).astype(np.int32),
            material=np.concatenate([np.full(len(p[0]), p[3]) for p in self.parts]),
            tag=np.concatenate([p[4] for p in self.parts]),
            keypoints={name: np.asarray(at, float) - middle for name, at in keypoints.items()},
            paint=None
            if paint is None
            else lambda points, tag, material: paint(points + shift, tag, material),
        )


def left_and_right(points: dict[str, tuple]) -> dict[str, tuple]:
    """{"{}_front_light": (x, y, z)} -> that point for left (-x) and right (+x)."""
    signs = {"left": -1, "right": 1}
    return {
        name.format(side): (s * x, y, z)
        for name, (x, y, z) in points.items()
        for side, s in signs.items()
    }


# ---- cars -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CarShape:
    """A car by its lines, in CAD units, z from the ground. Lines are (y, z) knots from front to back."""

    subtype: str
    half_width: float
    clearance: float
    top: tuple[tuple[float, float], ...]
    belt: tuple[tuple[float, float], ...]  # lower edge of the windows
    wheels: tuple[float, float, float]  # y of the front axle, y of the rear axle, radius
    windscreen: tuple[float, float]  # y of its lower and upper edge
    rear_window: tuple[float, float]
    side_glass: tuple[float, float]  # y
    pillars: tuple[float, ...]
    doors: tuple[float, ...]  # y of the gaps
    headlight: tuple[float, float]  # z
    grille: tuple[float, float]  # z
    taillight: tuple[float, float, float]  # z, z, and the share of the half width where they begin
    plate: tuple[float, float]  # z in front, z behind
    bed: tuple[float, float, float] | None = None  # y, y and depth of an open load bed
    trim: float = 0.012  # height of the black sill
    tumblehome: float = 0.22


HALF_LENGTH = 0.45
_SECTION_TAGS = np.array(
    [0, 0.2, 0.4, 0.6, 0.9, 1.3, 1.6, 1.9, 2, 2.33, 2.66, 3, 3.2, 3.4, 3.45, 3.6, 3.8, 4]
)

# fmt: off
SEDAN = CarShape(
    "sedan", 0.176, 0.036,
    top=((-0.45, 0.118), (-0.43, 0.148), (-0.32, 0.176), (-0.17, 0.197), (-0.025, 0.272), (0.06, 0.285), (0.14, 0.280),
         (0.21, 0.262), (0.325, 0.216), (0.425, 0.208), (0.45, 0.170)),
    belt=((-0.45, 0.112), (-0.42, 0.142), (-0.17, 0.184), (0.30, 0.202), (0.42, 0.200), (0.45, 0.165)),
    wheels=(-0.280, 0.262, 0.064), windscreen=(-0.162, -0.035), rear_window=(0.205, 0.318), side_glass=(-0.125, 0.255),
    pillars=(0.055, 0.185), doors=(-0.135, 0.055, 0.205), headlight=(0.098, 0.128), grille=(0.072, 0.112),
    taillight=(0.142, 0.178, 0.48), plate=(0.062, 0.120),
)
SUV = CarShape(
    "SUV", 0.186, 0.046,
    top=((-0.45, 0.150), (-0.432, 0.185), (-0.33, 0.208), (-0.195, 0.222), (-0.085, 0.312), (0.0, 0.333), (0.15, 0.337),
         (0.33, 0.328), (0.385, 0.315), (0.437, 0.215), (0.45, 0.160)),
    belt=((-0.45, 0.145), (-0.42, 0.178), (-0.19, 0.208), (0.40, 0.226), (0.437, 0.208), (0.45, 0.155)),
    wheels=(-0.278, 0.270, 0.073), windscreen=(-0.186, -0.090), rear_window=(0.388, 0.430), side_glass=(-0.150, 0.375),
    pillars=(0.025, 0.190, 0.315), doors=(-0.150, 0.025, 0.200), headlight=(0.128, 0.166), grille=(0.090, 0.158),
    taillight=(0.150, 0.222, 0.74), plate=(0.072, 0.130), trim=0.032, tumblehome=0.15,
)
PICKUP = CarShape(
    "pickup", 0.168, 0.056,
    top=((-0.45, 0.160), (-0.435, 0.190), (-0.33, 0.203), (-0.20, 0.212), (-0.118, 0.290), (-0.07, 0.304),
         (0.06, 0.304), (0.098, 0.296), (0.112, 0.208), (0.44, 0.206), (0.45, 0.196)),
    belt=((-0.45, 0.155), (-0.43, 0.184), (-0.20, 0.198), (0.11, 0.204), (0.44, 0.203), (0.45, 0.192)),
    wheels=(-0.300, 0.268, 0.070), windscreen=(-0.193, -0.122), rear_window=(0.099, 0.1095), side_glass=(-0.165, 0.088),
    pillars=(-0.018,), doors=(-0.160, -0.018, 0.095), headlight=(0.130, 0.168), grille=(0.092, 0.172),
    taillight=(0.125, 0.192, 0.82), plate=(0.078, 0.095), bed=(0.125, 0.437, 0.075), trim=0.024, tumblehome=0.16,
)
# fmt: on


def _smooth_line(knots: tuple, y: NDArray) -> NDArray:
    """The line through (y, z) knots with its corners rounded over about 8 mm of a metre-long car."""
    ys, zs = np.asarray(knots).T
    spread = np.linspace(-0.012, 0.012, 7)
    return np.mean([np.interp(y + s, ys, zs) for s in spread], axis=0)


def _body_lines(shape: CarShape, y: NDArray) -> tuple[NDArray, ...]:
    """Half width, bottom, belt, top and half width of the roof at stations y, each shaped like y."""
    end = np.clip((np.abs(y) - (HALF_LENGTH - 0.15)) / 0.15, 0, 1)
    width = shape.half_width * (1 - 0.13 * end**2.6)
    bottom = shape.clearance + 0.022 * end**3
    belt = _smooth_line(shape.belt, y)
    top = np.maximum(_smooth_line(shape.top, y), belt + 0.003)
    roof = width * (0.93 - shape.tumblehome * np.clip((top - belt) / 0.085, 0, 1))
    return width, bottom, belt, top, roof


def _bed_depth(shape: CarShape, y: NDArray) -> NDArray:
    if shape.bed is None:
        return np.zeros_like(y)
    return np.where((y > shape.bed[0]) & (y < shape.bed[1]), shape.bed[2], 0.0)


def _body_sections(shape: CarShape, y: NDArray) -> NDArray:
    """Half a cross-section at each station [S, K, 3], from the middle of the bottom to the middle of the roof."""
    w, low, belt, top, roof = _body_lines(shape, y)
    side, glass, deck = belt - low, top - belt, top - _bed_depth(shape, y)
    zero = np.zeros_like(y)
    shoulder = 0.945 * w
    corners = [
        (zero, low),
        (0.5 * w, low),
        (0.86 * w, low),
        (0.95 * w, low + 0.06 * side),
        (0.985 * w, low + 0.2 * side),
        (w, low + 0.5 * side),
        (0.995 * w, low + 0.78 * side),
        (0.975 * w, belt - 0.005),
        (shoulder, belt),  # tag 2: the windows begin
        (shoulder + (roof - shoulder) / 3, belt + 0.32 * glass),
        (shoulder + (roof - shoulder) / 1.5, belt + 0.64 * glass),
        (roof, top - 0.1 * glass),  # tag 3: the roof begins
        (roof - 0.010, top - 0.03 * glass),
        (roof - 0.018, top),
        (roof - 0.020, deck),
        (0.6 * roof, deck + 0.002),
        (0.3 * roof, deck + 0.004),
        (zero, deck + 0.005),
    ]
    return np.stack([np.stack([x, y, z], -1) for x, z in corners], 1)


def _stations(shape: CarShape) -> NDArray:
    """Where the body is cut: every 14 mm or so, at the ends of the glass, and close together at steps."""
    extra = [*shape.windscreen, *shape.rear_window, -0.446, -0.44, 0.44, 0.446]
    extra += [] if shape.bed is None else [b + e for b in shape.bed[:2] for e in (-0.0005, 0.0005)]
    steep = np.linspace(shape.rear_window[0] - 0.012, shape.rear_window[1] + 0.012, 7)
    return np.unique(
        np.round(np.concatenate([np.linspace(-HALF_LENGTH, HALF_LENGTH, 66), extra, steep]), 5)
    )


def _car_body(shape: CarShape) -> list[tuple[Triangles, NDArray]]:
    """The shell and its two end caps with the section tag of each vertex."""
    y = _stations(shape)
    half = _body_sections(shape, y)
    ring = np.concatenate(
        [half * [-1, 1, 1], half[:, -2::-1]], axis=1
    )  # from bottom to bottom, over the roof
    tags = np.concatenate([_SECTION_TAGS, _SECTION_TAGS[-2::-1]])
    parts = [((ring.reshape(-1, 3), grid_faces(*ring.shape[:2])), np.tile(tags, len(y)))]
    across = np.linspace(-1, 1, 13)
    for end, sign in ((half[0], -1.0), (half[-1], 1.0)):
        cap = np.repeat(end[:, None], len(across), 1) * np.stack(
            [across, np.ones(13), np.ones(13)], -1
        )
        rise = np.sin(np.pi * np.linspace(0, 1, len(end)))[:, None] ** 0.5
        cap[..., 1] += sign * 0.014 * (1 - across**2) * rise
        parts.append(
            ((cap.reshape(-1, 3), grid_faces(*cap.shape[:2])), np.full(cap[..., 0].size, 5.0))
        )
    return parts


def _paint_body(shape: CarShape, points: NDArray, tag: NDArray) -> NDArray:
    """Material of points [3, N] of the body, tag [N]: glass, lights, grille, plates, gaps and sills over paint."""
    x, y, z = np.abs(points[0]), points[1], points[2]
    w, low, belt, top, roof = _lookup(shape, y)
    material = np.full(len(y), PAINT)
    sides, above = tag < 3, (tag >= 3) & (tag < 4.5)
    doors = _nearest(y, shape.doors)
    material[sides & (tag > 0.7) & (doors < 0.0016)] = GAP
    handle = _nearest(y, [d - 0.028 for d in shape.doors[1:]])
    material[sides & (tag > 1) & (handle < 0.013) & (np.abs(z - belt + 0.020) < 0.0035)] = CHROME
    pillar = _nearest(y, shape.pillars) < 0.005
    window = (
        (tag > 2)
        & sides
        & (z > belt + 0.006)
        & (z < top - 0.014)
        & (y > shape.side_glass[0])
        & (y < shape.side_glass[1])
    )
    material[window] = GLASS
    material[window & pillar] = BLACK
    for first, last in (shape.windscreen, shape.rear_window):
        edge = (y > first - 0.003) & (y < last + 0.003) & above & (x < roof - 0.008)
        material[edge] = BLACK
        material[edge & (y > first + 0.001) & (y < last - 0.001) & (x < roof - 0.013)] = GLASS
    if shape.bed is not None:
        material[
            above & (y > shape.bed[0] - 0.001) & (y < shape.bed[1] + 0.001) & (x < roof - 0.015)
        ] = BLACK
    else:
        hood = above & (y < shape.windscreen[0] - 0.012) & (y > -0.42)
        material[hood & (np.abs(x - 0.72 * w) < 0.0016)] = GAP
    _paint_ends(shape, x, y, z, w, material)
    material[(tag < 2) & (z < low + shape.trim)] = BLACK
    material[tag < 0.55] = BLACK
    for axle in shape.wheels[:2]:
        arch = (y - axle) ** 2 + (z - shape.wheels[2]) ** 2
        material[(tag < 2) & (arch < (1.17 * shape.wheels[2]) ** 2)] = BLACK
    return material


def _nearest(y: NDArray, places: list[float] | tuple[float, ...]) -> NDArray:
    """Distance of y [N] to the nearest of some places [N]."""
    distance = np.abs(y - np.float32(places[0]))
    for place in places[1:]:
        np.minimum(distance, np.abs(y - np.float32(place)), out=distance)
    return distance


def _paint_ends(
    shape: CarShape, x: NDArray, y: NDArray, z: NDArray, w: NDArray, material: NDArray
) -> None:
    """Paint the front (lights, grille, intake, plate) and the back (lights, lid, plate, bumper) in place."""
    front, back, relative = y < -HALF_LENGTH + 0.05, y > HALF_LENGTH - 0.035, x / shape.half_width
    grille = front & (relative < 0.46) & (z > shape.grille[0]) & (z < shape.grille[1])
    material[grille] = BLACK
    material[grille & (np.mod(z - shape.grille[0], 0.012) < 0.004)] = CHROME
    material[
        front & (relative < 0.62) & (z < shape.grille[0] - 0.012) & (z > shape.clearance + 0.008)
    ] = BLACK
    material[front & (relative > 0.52) & (z > shape.headlight[0]) & (z < shape.headlight[1])] = (
        HEADLIGHT
    )
    low, high, start = shape.taillight
    material[back & (relative > start) & (z > low) & (z < high)] = TAILLIGHT
    material[back & (np.abs(z - low + 0.012) < 0.0018)] = GAP
    material[back & (z < shape.clearance + 0.040)] = BLACK
    for end, at in (
        (front & (y < -HALF_LENGTH + 0.01), shape.plate[0]),
        (back & (y > HALF_LENGTH - 0.01), shape.plate[1]),
    ):
        material[end & (x < 0.052) & (np.abs(z - at) < 0.013)] = BLACK
        material[end & (x < 0.048) & (np.abs(z - at) < 0.0105)] = PLATE


@cache
def _line_table(shape: CarShape) -> tuple[NDArray, tuple[NDArray, ...]]:
    y = np.linspace(-HALF_LENGTH - 0.02, HALF_LENGTH + 0.02, 1881)
    return y, tuple(line.astype(np.float32) for line in _body_lines(shape, y))


def _lookup(shape: CarShape, y: NDArray) -> list[NDArray]:
    """`_body_lines` at points y [N], from a table of half a millimetre."""
    at, lines = _line_table(shape)
    index = np.clip(
        (y - np.float32(at[0])) * np.float32(1 / (at[1] - at[0])) + np.float32(0.5), 0, len(at) - 1
    ).astype(np.int64)
    return [line[index] for line in lines]


def _paint_wheel(shape: CarShape, points: NDArray) -> NDArray:
    """Tyre, rim with five spokes and hub of points [3, N] of a wheel."""
    front = points[1] < sum(shape.wheels[:2]) / 2
    dy = points[1] - np.where(front, *np.float32(shape.wheels[:2]))
    dz = points[2] - np.float32(shape.wheels[2])
    r = np.hypot(dy, dz) / shape.wheels[2]
    material = np.full(len(r), TYRE)
    material[r < 0.70] = RIM
    spoke = np.cos(5 * np.arctan2(dz, dy) + 0.8)
    material[(r < 0.61) & (r > 0.2) & (spoke < 0.25 - 0.4 * r)] = BLACK
    material[r < 0.09] = BLACK
    return material


def car(shape: CarShape) -> Model:
    """A car of the given shape."""
    build, w, r = Builder(), shape.half_width, shape.wheels[2]
    for part, tag in _car_body(shape):
        build.add(part, PAINT, tag)
    for axle in shape.wheels[:2]:
        profile = [
            (-0.036, 0),
            (-0.036, 0.85 * r),
            (-0.030, r),
            (-0.008, r),
            (-0.001, 0.93 * r),
            (0.0, 0.78 * r),
            (-0.001, 0.7 * r),
            (-0.007, 0.66 * r),
            (-0.009, 0.3 * r),
            (-0.004, 0.16 * r),
            (-0.004, 0),
        ]
        build.add(lathe((w + 0.003, axle, r), profile), TYRE, mirror=True)
    mirror_y = shape.side_glass[0] + 0.022
    belt = float(_smooth_line(shape.belt, np.array([mirror_y]))[0])
    build.add(
        tube(
            [
                (w - 0.010, mirror_y, belt + 0.010),
                (w + 0.002, mirror_y, belt + 0.012),
                (w + 0.020, mirror_y + 0.003, belt + 0.013),
            ],
            [0.004, 0.010, 0.011],
            sides=7,
            step=0.1,
        ),
        PAINT,
        mirror=True,
    )
    if shape.subtype == "SUV":
        build.add(
            tube(
                [
                    (0.118, -0.04, 0.322),
                    (0.118, 0.0, 0.345),
                    (0.116, 0.30, 0.345),
                    (0.114, 0.34, 0.322),
                ],
                0.004,
            ),
            BLACK,
            mirror=True,
        )
    end_width = 0.80 * w

    def paint(points: NDArray, tag: NDArray, material: NDArray) -> NDArray:
        material = material.copy()
        body, wheel = tag >= 0, material == TYRE
        material[body] = _paint_body(shape, points[:, body], tag[body])
        material[wheel] = _paint_wheel(shape, points[:, wheel])
        return material

    lines = {
        y: [float(v[0]) for v in _body_lines(shape, np.array([y]))]
        for y in (shape.windscreen[1], shape.rear_window[0])
    }
    (_, _, _, top_front, roof_front), (_, _, _, top_rear, roof_rear) = lines.values()
    trunk = float(_smooth_line(shape.top, np.array([0.43]))[0])
    keypoints = left_and_right(
        {
            "{}_front_wheel": (w, shape.wheels[0], r),
            "{}_back_wheel": (w, shape.wheels[1], r),
            "upper_{}_windshield": (roof_front - 0.010, shape.windscreen[1], top_front),
            "upper_{}_rearwindow": (roof_rear - 0.010, shape.rear_window[0], top_rear),
            "{}_front_light": (end_width, -HALF_LENGTH + 0.004, sum(shape.headlight) / 2),
            "{}_back_trunk": (end_width, 0.435, trunk - 0.004),
        }
    )
    return build.model(shape.subtype, keypoints, paint)


# ---- chairs ---------------------------------------------------------------------------------------------------------


def _chair_keypoints(seat: tuple, back: tuple, rear_foot: tuple, front_foot: tuple) -> dict:
    """Key points of a chair from (x, y front, y rear, z) of the seat and the corners at +x; upper is the rear."""
    x, front, rear, z = seat
    return left_and_right(
        {
            "seat_upper_{}": (x, rear, z),
            "seat_lower_{}": (x, front, z),
            "back_upper_{}": back,
            "leg_upper_{}": rear_foot,
            "leg_lower_{}": front_foot,
        }
    )


def slatted_chair() -> Model:
    """A wooden dining chair: cushion, vertical slats, stretchers, no arms."""
    build = Builder()
    build.add(box((0, 0.0, 0.385), (0.205, 0.20, 0.016), 0.008), WOOD)
    build.add(box((0, -0.012, 0.412), (0.185, 0.172, 0.018), 0.017, 0.02), FABRIC)
    build.add(tube([(0.180, -0.175, 0), (0.183, -0.178, 0.375)], [0.013, 0.019]), WOOD, mirror=True)
    build.add(
        tube(
            [(0.175, 0.205, 0), (0.183, 0.182, 0.38), (0.183, 0.192, 0.50), (0.180, 0.228, 0.80)],
            [0.013, 0.018, 0.018, 0.014],
        ),
        WOOD,
        mirror=True,
    )
    build.add(box((0, 0.222, 0.765), (0.176, 0.009, 0.034), 0.008), WOOD)
    build.add(box((0, 0.196, 0.520), (0.176, 0.008, 0.016), 0.007), WOOD)
    for x in (0.045, 0.120):
        build.add(tube([(x, 0.197, 0.52), (x, 0.220, 0.76)], 0.009), WOOD, mirror=True)
    build.add(tube([(0.179, -0.176, 0.20), (0.179, 0.194, 0.20)], 0.009), WOOD, mirror=True)
    build.add(tube([(-0.179, 0.0, 0.20), (0.179, 0.0, 0.20)], 0.009), WOOD)
    build.add(tube([(-0.180, -0.177, 0.29), (0.180, -0.177, 0.29)], 0.009), WOOD)
    keys = _chair_keypoints(
        (0.200, -0.195, 0.19, 0.401),
        (0.180, 0.226, 0.79),
        (0.175, 0.205, 0.006),
        (0.180, -0.175, 0.006),
    )
    return build.model("slatted", keys)


def armchair() -> Model:
    """An upholstered armchair: thick seat and back, padded arms on posts, tapered legs."""
    build = Builder()
    build.add(box((0, -0.01, 0.315), (0.195, 0.215, 0.028), 0.012), FABRIC2)
    build.add(box((0, -0.025, 0.365), (0.180, 0.195, 0.040), 0.035, 0.018), FABRIC)
    back = box((0, 0, 0), (0.190, 0.034, 0.215), 0.030, 0.018)
    tilt = np.radians(11)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    build.add((np.einsum("ij,nj->ni", turn, back[0]) + [0, 0.205, 0.540], back[1]), FABRIC2)
    pad = box((0, 0, 0), (0.160, 0.016, 0.165), 0.015, 0.018)
    build.add((np.einsum("ij,nj->ni", turn, pad[0]) + [0, 0.174, 0.560], pad[1]), FABRIC)
    build.add(box((0.213, -0.020, 0.505), (0.024, 0.195, 0.016), 0.014), WOOD, mirror=True)
    build.add(tube([(0.210, -0.165, 0.31), (0.213, -0.175, 0.495)], 0.014), WOOD, mirror=True)
    build.add(tube([(0.208, 0.120, 0.31), (0.213, 0.140, 0.495)], 0.012), WOOD, mirror=True)
    build.add(box((0.200, -0.01, 0.315), (0.012, 0.205, 0.022), 0.008), WOOD, mirror=True)
    build.add(tube([(0.195, -0.200, 0), (0.180, -0.185, 0.29)], [0.010, 0.019]), WOOD, mirror=True)
    build.add(tube([(0.185, 0.235, 0), (0.175, 0.185, 0.29)], [0.010, 0.019]), WOOD, mirror=True)
    keys = _chair_keypoints(
        (0.175, -0.215, 0.150, 0.395),
        (0.180, 0.247, 0.745),
        (0.185, 0.235, 0.006),
        (0.195, -0.200, 0.006),
    )
    return build.model("armchair", keys)


def shell_chair() -> Model:
    """A moulded shell on splayed metal legs, no arms; the shell's outside has another colour than its inside."""
    build = Builder()
    knots = np.array(
        [
            (-0.215, 0.375),
            (-0.205, 0.395),
            (-0.15, 0.403),
            (0.0, 0.385),
            (0.10, 0.382),
            (0.160, 0.400),
            (0.195, 0.455),
            (0.210, 0.54),
            (0.222, 0.66),
            (0.240, 0.76),
            (0.244, 0.775),
        ]
    )
    at = np.linspace(0, 1, len(knots))
    along = np.linspace(0, 1, 49)
    spine = np.stack(
        [
            np.mean(
                [np.interp(along + s, at, knots[:, a]) for s in (-0.03, -0.015, 0, 0.015, 0.03)],
                axis=0,
            )
            for a in (0, 1)
        ],
        -1,
    )
    half = np.interp(
        along,
        [0, 0.05, 0.35, 0.55, 0.62, 0.9, 0.97, 1],
        [0.165, 0.20, 0.212, 0.200, 0.198, 0.205, 0.175, 0.13],
    )
    normal = np.stack([-np.gradient(spine[:, 1]), np.gradient(spine[:, 0])], -1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    curl = np.interp(along, [0, 0.15, 0.5, 0.75, 1], [-0.012, 0.012, 0.045, 0.060, 0.045])
    across = np.linspace(-1, 1, 21)
    lift = curl[:, None] * np.abs(across) ** 2.2
    surfaces = []
    for offset, material in ((0.006, FABRIC), (-0.006, FABRIC2)):
        yz = spine[:, None] + (lift + offset)[..., None] * normal[:, None]
        surface = np.concatenate([(half[:, None] * across)[..., None], yz], -1)
        build.add((surface.reshape(-1, 3), grid_faces(*surface.shape[:2])), material)
        surfaces.append(surface)
    edges = np.stack(surfaces)
    for rim in (edges[:, :, 0], edges[:, :, -1], edges[:, 0], edges[:, -1]):
        build.add((rim.reshape(-1, 3), grid_faces(2, rim.shape[1])), FABRIC2)
    build.add(tube([(0.200, -0.200, 0), (0.130, -0.125, 0.385)], 0.010), METAL, mirror=True)
    build.add(tube([(0.195, 0.235, 0), (0.125, 0.120, 0.375)], 0.010), METAL, mirror=True)
    build.add(tube([(0.130, -0.125, 0.372), (0.125, 0.120, 0.364)], 0.009), METAL, mirror=True)
    build.add(tube([(-0.130, -0.125, 0.372), (0.130, -0.125, 0.372)], 0.009), METAL)
    build.add(tube([(-0.125, 0.120, 0.364), (0.125, 0.120, 0.364)], 0.009), METAL)
    keys = _chair_keypoints(
        (0.198, -0.200, 0.150, 0.405),
        (0.170, 0.212, 0.765),
        (0.195, 0.235, 0.006),
        (0.200, -0.200, 0.006),
    )
    return build.model("shell", keys)


MODELS: dict[str, tuple[Callable[[], Model], ...]] = {
    "car": tuple(lambda shape=shape: car(shape) for shape in (SEDAN, SUV, PICKUP)),
    "chair": (slatted_chair, armchair, shell_chair),
}


@cache
def models(category: str) -> tuple[Model, ...]:
    """The CAD models of a category, cad_index 1 first. Raises ValueError for a category that has none."""
    if category not in MODELS:
        raise ValueError(f"no sample models of {category!r}; there are {', '.join(MODELS)}")
    return tuple(make() for make in MODELS[category])
