"""Pictures of the procedural models with their exact poses, as if somebody had photographed and annotated them.

The projection is written here a second time, from PASCAL3D+'s formulas, and shares no code with `cameras` or a solver:
what the method recovers from these pictures is then no echo of its own conventions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from neural_mesh.compare.kernels_numba import rasterize
from neural_mesh.data.textures import fractal_noise, procedural_texture, random_colour
from neural_mesh.sample import models as parts
from neural_mesh.sample.models import Model

FOCAL, VIEWPORT = 1.0, 3000.0  # PASCAL3D+
SUPERSAMPLING = 2  # samples per pixel along each axis
VISIBLE, SELF_OCCLUDED, TRUNCATED = 1, 2, 4  # status of a key point
SHARE_TRUNCATED = 0.05  # of the pictures cut the object off
SURFACE_TOLERANCE = (
    0.022  # a key point this far behind the surface seen still counts as seen, CAD units
)
FOREGROUND = 10  # an object mask above this is object (OccludedPASCAL3D)
THETA_DEVIATION_DEG = 5.0
LEAST_SHADOW_ELEVATION_DEG = (
    2.5  # from lower down the ground is drawn as from here, or objects would float
)


@dataclass(frozen=True)
class Habit:
    """How a category is photographed: height over width of the pictures, elevations in degrees, share taken indoors."""

    image_shapes: tuple[float, ...] = (0.75, 0.75, 1.0, 1.33)
    elevation_deg: tuple[float, float, float, float] = (
        12.0,
        10.0,
        -5.0,
        60.0,
    )  # mean, deviation, least, most
    indoors: float = 0.5


HABITS = {
    "car": Habit((0.75, 0.75, 0.667, 0.6), (9.0, 8.0, -5.0, 35.0), 0.12),
    "chair": Habit((0.75, 1.0, 1.33, 1.33), (19.0, 14.0, -3.0, 60.0), 0.85),
}


@dataclass(frozen=True)
class Viewpoint:
    """PASCAL3D+'s camera: degrees, CAD units and pixels; focal length 1 and viewport 3000."""

    azimuth_deg: float
    elevation_deg: float
    theta_deg: float
    distance: float
    px: float
    py: float


@dataclass(frozen=True)
class Sample:
    """A picture and what is known about it."""

    image: NDArray[np.uint8]  # [H, W, 3]
    mask: NDArray[np.uint8]  # [H, W], share of each pixel that the object fills, times 255
    viewpoint: Viewpoint
    cad_index: int  # 1-based
    subtype: str
    truncated: bool
    keypoints: dict[str, tuple[int, tuple[float, float]]]  # name -> status, (x, y)

    @property
    def bbox_xyxy(self) -> tuple[float, float, float, float]:
        """Tight box of the silhouette in pixels, the right and lower edges outside of the last pixel."""
        rows, columns = (np.flatnonzero((self.mask > FOREGROUND).any(axis)) for axis in (1, 0))
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def camera_axes(view: Viewpoint) -> NDArray[np.float64]:
    """Right, up and backward (towards the camera) of a viewpoint without theta, as rows [3, 3] in the object frame."""
    a, e = np.radians([view.azimuth_deg, view.elevation_deg])
    backward = np.array([np.cos(e) * np.sin(a), -np.cos(e) * np.cos(a), np.sin(e)])
    right = np.array([np.cos(a), np.sin(a), 0.0])
    return np.stack([right, np.cross(backward, right), backward])


def _dot(rows: NDArray, vectors: NDArray) -> NDArray:
    """rows [..., 3] times vectors [3, N] -> [..., N]; unlike BLAS, the same bits with any number of threads."""
    return sum(rows[..., i, None] * vectors[i] for i in range(3))


def project(points: NDArray, view: Viewpoint) -> tuple[NDArray, NDArray]:
    """Points [N, 3] of the object frame -> pixels [N, 2] as (x right, y down) and depths [N] (PASCAL3D+)."""
    x, y, height = _dot(camera_axes(view), np.asarray(points, float).T)
    depth = view.distance - height
    t = np.radians(view.theta_deg)
    plane_x, plane_y = VIEWPORT * FOCAL * x / depth, VIEWPORT * FOCAL * y / depth
    turned_x, turned_y = (
        np.cos(t) * plane_x - np.sin(t) * plane_y,
        np.sin(t) * plane_x + np.cos(t) * plane_y,
    )
    return np.stack([view.px + turned_x, view.py - turned_y], -1), depth


def random_viewpoint(
    generator: Generator,
    model: Model,
    category: str,
    size_hw: tuple[int, int],
    truncate: bool = False,
) -> Viewpoint:
    """A pose as in photographs: any azimuth, mostly upright, the object filling 45 to 92 % of the picture."""
    mean, deviation, least, most = HABITS.get(category, Habit()).elevation_deg
    azimuth, elevation = (
        generator.uniform(0, 360),
        np.clip(generator.normal(mean, deviation), least, most),
    )
    theta = np.clip(generator.normal(0, THETA_DEVIATION_DEG), -15, 15)
    height, width = size_hw
    unit = project(model.vertices, Viewpoint(azimuth, elevation, theta, 5.0, 0.0, 0.0))[0]
    fill = generator.uniform(0.45, 0.92)
    distance = 5.0 * max(np.ptp(unit[:, 0]) / (fill * width), np.ptp(unit[:, 1]) / (fill * height))
    distance = float(np.clip(distance, 1500 / width, 7500 / width))
    box, _ = project(model.vertices, Viewpoint(azimuth, elevation, theta, distance, 0.0, 0.0))
    low, high = box.min(0), box.max(0)
    free = np.maximum(np.array([width, height]) - (high - low), 0.0)
    corner = generator.uniform(0.1, 0.9, 2) * free
    if truncate:
        axis, outside = int(generator.integers(2)), generator.uniform(0.05, 0.2)
        side = high[axis] - low[axis]
        corner[axis] = (
            -outside * side
            if generator.random() < 0.5
            else size_hw[1 - axis] - (1 - outside) * side
        )
    px, py = corner - low
    return Viewpoint(float(azimuth), float(elevation), float(theta), distance, float(px), float(py))


# ---- looks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looks:
    """Colours and light of one picture; directions are in the object frame, colours RGB in 0..1."""

    albedo: NDArray[np.float32]  # [materials, 3]
    gloss: NDArray[np.float32]  # [materials, 3]: mirror reflection, highlight, exponent
    light: NDArray[np.float32]  # [3], towards the light
    light_rgb: NDArray[np.float32]
    sky_rgb: NDArray[np.float32]
    ground_rgb: NDArray[np.float32]


CAR_PAINTS = np.array(
    [
        (0.86, 0.86, 0.85),
        (0.62, 0.64, 0.66),
        (0.10, 0.10, 0.11),
        (0.30, 0.31, 0.33),
        (0.62, 0.06, 0.06),
        (0.08, 0.17, 0.45),
        (0.12, 0.33, 0.20),
        (0.80, 0.55, 0.08),
        (0.55, 0.30, 0.12),
        (0.45, 0.62, 0.72),
        (0.72, 0.66, 0.52),
        (0.35, 0.10, 0.14),
    ]
)
WOODS = np.array(
    [
        (0.55, 0.36, 0.20),
        (0.36, 0.21, 0.12),
        (0.70, 0.53, 0.33),
        (0.20, 0.13, 0.10),
        (0.82, 0.80, 0.76),
    ]
)
_FIXED = {  # RGB, mirror reflection, highlight, exponent
    parts.GLASS: (0.05, 0.06, 0.07, 0.85, 0.9, 120),
    parts.TYRE: (0.035, 0.035, 0.037, 0.03, 0.05, 8),
    parts.RIM: (0.62, 0.63, 0.65, 0.35, 0.6, 40),
    parts.CHROME: (0.66, 0.67, 0.69, 0.6, 0.8, 60),
    parts.BLACK: (0.035, 0.036, 0.04, 0.08, 0.1, 15),
    parts.HEADLIGHT: (0.88, 0.90, 0.92, 0.6, 1.0, 80),
    parts.TAILLIGHT: (0.62, 0.02, 0.03, 0.4, 0.8, 60),
    parts.PLATE: (0.88, 0.88, 0.82, 0.05, 0.1, 10),
    parts.GAP: (0.03, 0.03, 0.03, 0.0, 0.0, 5),
    parts.METAL: (0.55, 0.56, 0.58, 0.45, 0.8, 50),
}


def random_looks(generator: Generator, view: Viewpoint) -> Looks:
    """Paint, wood and fabric colours, and a light that comes from above and most often from the camera's side."""
    table = np.zeros((parts.NUM_MATERIALS, 6))
    for material, row in _FIXED.items():
        table[material] = row
    table[parts.PAINT] = (
        *_tint(generator, CAR_PAINTS, 0.05),
        generator.uniform(0.3, 0.6),
        0.7,
        generator.uniform(30, 90),
    )
    table[parts.WOOD] = (*_tint(generator, WOODS, 0.06), 0.12, 0.25, 20)
    table[parts.FABRIC] = (*(random_colour(generator) / 255) ** 1.3, 0.0, 0.05, 6)
    table[parts.FABRIC2] = (*(random_colour(generator) / 255) ** 1.3, 0.02, 0.06, 8)
    if generator.random() < 0.3:
        table[parts.METAL, :3] *= 0.12
    turn = np.radians(view.azimuth_deg) + generator.normal(0, 1.0)
    height = generator.uniform(0.35, 1.25)
    light = np.array(
        [np.sin(turn) * np.cos(height), -np.cos(turn) * np.cos(height), np.sin(height)]
    )
    warmth, strength, ambient = (
        generator.normal(0, 0.07),
        generator.uniform(0.55, 1.15),
        generator.uniform(0.35, 0.65),
    )
    light_rgb = strength * np.array([1 + warmth, 1.0, 1 - warmth])
    sky = ambient * np.array([0.95, 1.0, 1.08]) * generator.uniform(0.95, 1.05, 3)
    ground = ambient * 0.55 * np.array([1.05, 1.0, 0.92]) * generator.uniform(0.9, 1.1, 3)
    return Looks(
        *(
            np.asarray(v, np.float32)
            for v in (table[:, :3], table[:, 3:], light, light_rgb, sky, ground)
        )
    )


def _tint(generator: Generator, colours: NDArray, spread: float) -> NDArray:
    colour = colours[int(generator.integers(len(colours)))]
    return np.clip(
        colour * generator.uniform(0.8, 1.15) + generator.normal(0, spread, 3) * colour, 0.02, 0.95
    )


# ---- drawing --------------------------------------------------------------------------------------------------------


def draw_object(
    model: Model, view: Viewpoint, looks: Looks, size_hw: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray]:
    """The object alone: RGB [H, W, 3] in 0..1 times its coverage, coverage [H, W], and depths [H n, W n] of samples."""
    n, (height, width) = SUPERSAMPLING, size_hw
    pixels, depth = project(model.vertices, view)
    low = np.clip(np.floor(pixels.min(0)) - 1, 0, [width, height]).astype(int)
    high = np.clip(np.ceil(pixels.max(0)) + 1, low, [width, height]).astype(int)
    window = high - low
    face_of, z_of, bary = rasterize(
        (pixels - low) * n, depth, model.faces, int(window[1] * n), int(window[0] * n)
    )
    rgba = np.zeros((*face_of.shape, 4), np.float32)
    seen = face_of >= 0
    rgba[seen, :3] = _shade(
        model, view, looks, model.faces[face_of[seen]], bary[seen].astype(np.float32)
    )
    rgba[seen, 3] = 1.0
    small = rgba.reshape(window[1], n, window[0], n, 4).mean((1, 3))
    full = np.zeros((height, width, 4), np.float32)
    depths = np.full((height * n, width * n), np.inf)
    full[low[1] : high[1], low[0] : high[0]] = small
    depths[low[1] * n : high[1] * n, low[0] * n : high[0] * n] = z_of
    return full[..., :3], full[..., 3], depths


def _shade(
    model: Model, view: Viewpoint, looks: Looks, corners: NDArray, bary: NDArray
) -> NDArray[np.float32]:
    """Colour [N, 3] of the points with barycentric coordinates [N, 3] in the triangles [N, 3].

    Inside, the coordinate comes first ([3, N]): whole rows are contiguous, which is several times as fast.
    """
    table = np.concatenate([model.vertices, model.normals, model.tag[:, None]], 1).T.astype(
        np.float32
    )
    values = sum(np.take(table, corners[:, i], axis=1) * bary[:, i] for i in range(3))
    points, normal, tag = values[:3], values[3:6], values[6]
    towards = camera_axes(view)[2].astype(np.float32)
    facing = _dot(towards, normal)
    normal *= np.where(facing < 0, -1, 1).astype(np.float32) / np.maximum(
        np.sqrt((normal**2).sum(0)), 1e-6
    )
    facing = np.clip(_dot(towards, normal), 0, 1)
    material = model.material[corners[:, 0]]
    if model.paint is not None:
        material = model.paint(points, tag, material)
    lit = np.clip(_dot(looks.light, normal), 0, 1) * _unshadowed(model, looks.light, points, normal)
    low, high = model.vertices[:, 2].min(), model.vertices[:, 2].max()
    open_sky = np.clip(0.45 + (points[2] - np.float32(low)) * np.float32(1.6 / (high - low)), 0, 1)
    up = (0.5 + 0.5 * normal[2]) * (0.35 + 0.65 * open_sky)
    ambient = _outer(looks.ground_rgb, 0.45 + 0.55 * open_sky) + _outer(
        looks.sky_rgb - looks.ground_rgb, up
    )
    colour = np.take(looks.albedo.T, material, axis=1) * _grain(points, material)
    colour *= ambient + _outer(looks.light_rgb, lit)
    mirror, highlight, exponent = np.take(looks.gloss.T, material, axis=1)
    reflected = 2 * facing * normal - towards[:, None]
    away = (1 - facing) ** 2
    colour += (_surroundings(looks, reflected) - colour) * (mirror * (0.10 + 0.90 * away * away))
    glint = highlight * np.exp(exponent * (_dot(looks.light, reflected) - 1)) * (lit > 0)
    return np.clip(colour + _outer(looks.light_rgb, glint), 0, 1.2).T


def _outer(rgb: NDArray, weight: NDArray) -> NDArray[np.float32]:
    """A colour [3] times a weight [N] -> [3, N]."""
    return rgb[:, None] * weight


def _surroundings(looks: Looks, direction: NDArray) -> NDArray[np.float32]:
    """What a mirror sees in direction [3, N]: ground, a dark uneven horizon, sky [3, N]."""
    skyline = (
        0.10 + 0.08 * np.sin(5 * direction[0] + 3 * direction[1]) + 0.05 * np.sin(17 * direction[0])
    )
    above = np.clip((direction[2] - skyline) / 0.12, 0, 1)
    below = np.clip(direction[2] * -4, 0, 1)
    dark = 0.35 * looks.ground_rgb
    return (
        dark[:, None]
        + _outer(1.45 * looks.sky_rgb - dark, above)
        + _outer(0.9 * looks.ground_rgb - dark, below)
    )


def _grain(points: NDArray, material: NDArray) -> NDArray[np.float32]:
    """Brightness factor [N] of wood and woven fabric at points [3, N]; 1 elsewhere."""
    factor = np.ones(len(material), np.float32)
    wood, cloth = material == parts.WOOD, (material == parts.FABRIC) | (material == parts.FABRIC2)
    x, y, z = points[:, wood]
    factor[wood] += 0.07 * np.sin(150 * (x + y) + 3 * np.sin(21 * z) + 14 * z) + 0.05 * np.sin(
        460 * (x - y) + 9 * z
    )
    x, y, z = points[:, cloth]
    factor[cloth] += 0.06 * np.sin(520 * x) * np.sin(520 * (y + z))
    return factor


def _unshadowed(
    model: Model, light: NDArray, points: NDArray, normal: NDArray, cells: int = 192
) -> NDArray[np.float32]:
    """1 where the light reaches points [3, N], 0 where the object itself is in between (a shadow map)."""
    helper = np.array([0.0, 0.0, 1.0]) if abs(light[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(helper, light)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(light, right), light]).astype(np.float32)
    flat = _dot(axes, model.vertices.T).T
    low, span = flat[:, :2].min(0), np.ptp(flat[:, :2], axis=0).max() * 1.02
    far = 50.0  # so far away that the perspective-correct kernel is as good as orthographic
    _, z_of, _ = rasterize(
        (flat[:, :2] - low) / span * cells, far - flat[:, 2], model.faces, cells, cells
    )
    column, row, height = _dot(axes, points + np.float32(0.008) * normal)
    column, row = (
        np.clip((v - np.float32(o)) * np.float32(cells / span), 0, cells - 1).astype(np.int64)
        for v, o in ((column, low[0]), (row, low[1]))
    )
    behind = (np.float32(far) - height) - z_of.astype(np.float32)[row, column]
    return 1 - np.clip(behind * np.float32(100) - np.float32(0.6), 0, 1)


def ground_shadow(
    model: Model, view: Viewpoint, looks: Looks, size_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Share of the light that the ground loses at each pixel [H, W]: the cast shadow, and the dark below the object."""
    height, width = size_hw
    view = replace(view, elevation_deg=max(view.elevation_deg, LEAST_SHADOW_ELEVATION_DEG))
    floor = model.vertices[:, 2].min()
    total = np.zeros(size_hw, np.float32)
    for light, strength, blur in (
        (looks.light, 0.40, 0.006),
        (np.array([0.0, 0.0, 1.0]), 0.28, 0.02),
    ):
        rise = (model.vertices[:, 2:] - floor) / max(float(light[2]), 0.25)
        flat = model.vertices - rise * light
        flat[:, 2] = floor
        pixels, depth = project(flat, view)
        seen = (
            rasterize(pixels / 2, depth, model.faces, (height + 1) // 2, (width + 1) // 2)[0] >= 0
        )
        picture = Image.fromarray(np.uint8(255) * seen).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        total += (
            strength
            * np.asarray(picture.filter(ImageFilter.GaussianBlur(1 + blur * width)), np.float32)
            / 255
        )
    return total


# ---- backgrounds ----------------------------------------------------------------------------------------------------


FLOORS_OUTDOORS = np.array(
    [(105, 104, 102), (86, 104, 55), (168, 150, 118), (130, 124, 118), (80, 82, 86)], np.float32
)
FLOORS_INDOORS = np.array(
    [
        (150, 110, 70),
        (105, 72, 48),
        (190, 160, 120),
        (200, 198, 190),
        (95, 98, 105),
        (120, 60, 55),
        (75, 95, 120),
        (150, 145, 125),
    ],
    np.float32,
)


def background(
    generator: Generator, size_hw: tuple[int, int], horizon: float, indoors: bool
) -> NDArray[np.float32]:
    """A made-up place [H, W, 3] in 0..255 whose ground begins at row `horizon`; sharp clutter comes and goes."""
    height, width = size_hw
    picture = np.empty((height, width, 3), np.float32)
    horizon = int(np.clip(horizon, 0.08 * height, 0.92 * height))
    picture[:horizon] = _wall(generator, (horizon, width), indoors)
    picture[horizon:] = _floor(generator, (height - horizon, width), indoors)
    drawn = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    _draw_things(generator, drawn, horizon, indoors)
    drawn = drawn.filter(
        ImageFilter.GaussianBlur(float(generator.uniform(0.3, 0.4 + 0.0035 * width)))
    )
    uneven = 1 + 0.18 * fractal_noise(generator, size_hw, 2, 6)
    return np.asarray(drawn, np.float32) * uneven[..., None]


def _wall(generator: Generator, size_hw: tuple[int, int], indoors: bool) -> NDArray[np.float32]:
    """Sky with clouds, a plain or papered wall, or sometimes a busy texture."""
    fade = np.linspace(0, 1, size_hw[0], dtype=np.float32)[:, None, None]
    if generator.random() < 0.15:
        return procedural_texture(generator, size_hw)
    if indoors:
        first = 0.5 * random_colour(generator) + 90
        return (
            first
            + (generator.uniform(-25, 25) * fade)
            + 10 * fractal_noise(generator, size_hw, 6, 4)[..., None]
        )
    zenith = np.array([60, 110, 180], np.float32) + generator.normal(0, 14, 3).astype(np.float32)
    haze = np.array([200, 210, 220], np.float32) + generator.normal(0, 15, 3).astype(np.float32)
    cloud = np.clip(
        fractal_noise(generator, size_hw, 3, 5) * 1.6 + generator.uniform(-0.3, 0.6), 0, 1
    )[..., None]
    sky = zenith + (haze - zenith) * fade
    return sky + (235 - sky) * cloud


def _floor(generator: Generator, size_hw: tuple[int, int], indoors: bool) -> NDArray[np.float32]:
    """Asphalt, grass, sand, boards or tiles in perspective."""
    height, width = size_hw
    nearness = (np.arange(height, dtype=np.float32)[:, None] + 0.15 * height + 4) / (
        1.15 * height + 4
    )
    colours = FLOORS_INDOORS if indoors else FLOORS_OUTDOORS
    colour = colours[int(generator.integers(len(colours)))] * np.float32(
        generator.uniform(0.7, 1.25)
    )
    colour = (colour + generator.normal(0, 7, 3)).astype(np.float32)
    rough = 0.5 * fractal_noise(generator, size_hw, 3, 3) + fractal_noise(generator, size_hw, 48, 2)
    shade = 1 + (0.08 + 0.22 * generator.random()) * rough + 0.15 * (nearness - 0.5)
    if generator.random() < (0.8 if indoors else 0.3):
        across = (np.arange(width, dtype=np.float32)[None] - generator.uniform(0, width)) / (
            nearness * width
        )
        boards = np.modf(np.abs(across * generator.uniform(4, 14) + 100))[0] < 0.06
        rows = np.modf(generator.uniform(2, 9) / nearness)[0] < (
            0.08 if generator.random() < 0.5 else 0.0
        )
        shade = shade * (1 - 0.3 * (boards | rows))
    return colour * shade[..., None]


def _draw_things(generator: Generator, picture: Image.Image, horizon: int, indoors: bool) -> None:
    """Buildings or furniture standing on the horizon, trees, marks on the ground, and loose shapes, drawn in place."""
    draw, (width, height) = ImageDraw.Draw(picture), picture.size

    def ink(brighter: float = 0.0) -> tuple[int, int, int]:
        return tuple(int(v) for v in np.clip(random_colour(generator) + brighter, 0, 255))

    for _ in range(int(generator.integers(1, 7))):
        x, w = generator.uniform(-0.1, 1) * width, generator.uniform(0.06, 0.35) * width
        top = horizon - generator.uniform(0.1, 1.0) * horizon
        foot = top + 0.6 * (horizon - top) if indoors and generator.random() < 0.4 else horizon
        foot += 0.12 * height * indoors * generator.random()
        draw.rectangle((x, top, x + w, foot), fill=ink(), outline=ink())
        nx, ny, glass = *(int(n) for n in generator.integers(1, 3 if indoors else 6, 2)), ink()
        for i in range(nx * ny):
            left, upper = (
                x + w * ((i % nx) + 0.25) / nx,
                top + (foot - top) * ((i // nx) + 0.25) / ny,
            )
            draw.rectangle(
                (left, upper, left + 0.5 * w / nx, upper + 0.5 * (foot - top) / ny), fill=glass
            )
    for _ in range(0 if indoors else int(generator.integers(0, 5))):
        x, r = generator.uniform(0, width), generator.uniform(0.04, 0.14) * width
        green = tuple(int(v) for v in np.array([50, 80, 35]) * generator.uniform(0.5, 1.5))
        draw.rectangle(
            (x - 0.08 * r, horizon - 1.5 * r, x + 0.08 * r, horizon + 2), fill=(60, 45, 35)
        )
        for dx, dy in generator.normal(0, 0.45, (7, 2)):
            draw.ellipse(
                (
                    x + (dx - 0.6) * r,
                    horizon + (dy - 2.6) * r,
                    x + (dx + 0.6) * r,
                    horizon + (dy - 1.4) * r,
                ),
                fill=green,
            )
    for _ in range(int(generator.integers(0, 4))):
        vanish, near, w = (
            generator.uniform(0, width),
            generator.uniform(-0.5, 1.5) * width,
            generator.uniform(0.01, 0.05) * width,
        )
        draw.polygon([(vanish, horizon), (near, height), (near + w, height)], fill=ink(30))
    for _ in range(int(generator.integers(0, 5))):
        centre = generator.uniform(0, 1, 2) * [width, height]
        corners = centre + generator.normal(0, 0.05 * width, (int(generator.integers(3, 7)), 2))
        draw.polygon([tuple(c) for c in corners], fill=ink())


# ---- whole pictures -------------------------------------------------------------------------------------------------


def draw_sample(category: str, cad_index: int, image_width: int, generator: Generator) -> Sample:
    """One picture of CAD model `cad_index` (1-based) of a category at a random pose in a random place."""
    model = parts.models(category)[cad_index - 1]
    habit = HABITS.get(category, Habit())
    ratio = float(generator.choice(habit.image_shapes))
    size_hw = (
        (image_width, round(image_width / ratio))
        if ratio > 1
        else (round(image_width * ratio), image_width)
    )
    truncate = bool(generator.random() < SHARE_TRUNCATED)
    view = random_viewpoint(generator, model, category, size_hw, truncate)
    looks = random_looks(generator, view)
    rgb, coverage, depths = draw_object(model, view, looks, size_hw)
    rows = np.flatnonzero(coverage.any(1))
    tall = rows[-1] - rows[0]
    horizon = rows[-1] - tall * (
        generator.uniform(0.25, 0.9)
        + np.clip(view.elevation_deg / 30, 0, 1) * generator.uniform(0.2, 0.8)
    )
    scene = background(generator, size_hw, horizon, indoors=generator.random() < habit.indoors)
    scene *= np.clip(1 - ground_shadow(model, view, looks, size_hw), 0.15, 1)[..., None]
    image = 255 * _tone(rgb, coverage) + scene * (1 - coverage[..., None])
    return Sample(
        image=_photograph(image, generator),
        mask=np.rint(255 * coverage).astype(np.uint8),
        viewpoint=view,
        cad_index=cad_index,
        subtype=model.subtype,
        truncated=truncate,
        keypoints=_keypoints(model, view, depths, size_hw),
    )


def _tone(rgb: NDArray, coverage: NDArray) -> NDArray[np.float32]:
    """Linear light to display values, for colours that are already multiplied by their coverage."""
    result, some = np.zeros_like(rgb), coverage > 0
    weight = coverage[some][:, None]
    result[some] = np.clip(rgb[some] / weight, 0, 1) ** np.float32(0.62) * weight
    return result


def _photograph(image: NDArray, generator: Generator) -> NDArray[np.uint8]:
    """Exposure, contrast, colour cast and sensor noise of a camera: [H, W, 3] in 0..255 to uint8."""
    contrast, exposure = generator.uniform(0.85, 1.15), generator.uniform(0.85, 1.15)
    cast = generator.normal(1, 0.03, 3).astype(np.float32)
    noise = generator.standard_normal((*image.shape[:2], 1), dtype=np.float32) * np.float32(
        generator.uniform(1, 5)
    )
    return np.clip((image * exposure - 110) * contrast * cast + 110 + noise, 0, 255).astype(
        np.uint8
    )


def _keypoints(
    model: Model, view: Viewpoint, depths: NDArray, size_hw: tuple[int, int]
) -> dict[str, tuple[int, tuple[float, float]]]:
    """Status and pixel of each key point: visible, hidden by the object itself, or outside of the picture."""
    pixels, depth = project(np.stack(list(model.keypoints.values())), view)
    found = {}
    for name, (x, y), z in zip(model.keypoints, pixels, depth):
        if not (0 <= x < size_hw[1] and 0 <= y < size_hw[0]):
            found[name] = (TRUNCATED, (float(x), float(y)))
            continue
        row, column = int(y * SUPERSAMPLING), int(x * SUPERSAMPLING)
        around = depths[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        nearest = np.median(around[np.isfinite(around)]) if np.isfinite(around).any() else np.inf
        found[name] = (
            VISIBLE if z < nearest + SURFACE_TOLERANCE else SELF_OCCLUDED,
            (float(x), float(y)),
        )
    return found


def draw_cutout(
    category: str, cad_index: int, generator: Generator, side: int = 320
) -> NDArray[np.uint8]:
    """A model at a random pose as RGBA uint8 [h, w, 4], cut out tightly: an occluder for other objects."""
    model = parts.models(category)[cad_index - 1]
    view = random_viewpoint(generator, model, category, (side, side))
    rgb, coverage, _ = draw_object(model, view, random_looks(generator, view), (side, side))
    colour = _tone(rgb, coverage) / np.maximum(coverage, 1e-6)[..., None]
    rgba = np.rint(255 * np.concatenate([colour, coverage[..., None]], -1)).astype(np.uint8)
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
