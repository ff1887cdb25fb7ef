"""Random backgrounds: a wall or a sky, a floor, and clutter."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from neural_mesh.data.textures import fractal_noise, procedural_texture, random_colour

# RGB in 0..255.
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
LEAF_GREEN = np.array([50, 80, 35])
TRUNK = (60, 45, 35)


def background(
    generator: Generator, size_hw: tuple[int, int], horizon: float, indoors: bool
) -> NDArray[np.floating]:
    """Draw a random place [H, W, 3] in 0..255 whose ground begins at row `horizon`."""
    height, width = size_hw
    # Wall and floor.
    horizon = int(np.clip(horizon, 0.08 * height, 0.92 * height))
    wall = _wall(generator, (horizon, width), indoors)
    floor = _floor(generator, (height - horizon, width), indoors)
    empty = np.concatenate([wall, floor]).astype(np.float32)
    # Clutter, a lens that is never quite sharp, and uneven light.
    picture = Image.fromarray(np.clip(empty, 0, 255).astype(np.uint8))
    _Clutter(generator, picture, horizon, indoors).draw()
    radius = float(generator.uniform(0.3, 0.4 + 0.0035 * width))
    picture = picture.filter(ImageFilter.GaussianBlur(radius))
    uneven = 1 + 0.18 * fractal_noise(generator, size_hw, 2, 6)
    return np.asarray(picture, np.float32) * uneven[..., None]


def _wall(generator: Generator, size_hw: tuple[int, int], indoors: bool) -> NDArray[np.floating]:
    """Draw a sky or a wall [H, W, 3], or sometimes a busy texture."""
    if generator.random() < 0.15:
        return procedural_texture(generator, size_hw)
    # From 0 in the first row to 1 at the horizon.
    fade = np.linspace(0, 1, size_hw[0], dtype=np.float32)[:, None, None]
    if indoors:
        return _indoor_wall(generator, size_hw, fade)
    return _sky(generator, size_hw, fade)


def _indoor_wall(
    generator: Generator, size_hw: tuple[int, int], fade: NDArray
) -> NDArray[np.floating]:
    """Draw a pale wall [H, W, 3] that is a little lighter or darker towards the floor."""
    colour = 0.5 * random_colour(generator) + 90
    shade = generator.uniform(-25, 25) * fade
    stains = fractal_noise(generator, size_hw, 6, 4)[..., None]
    return colour + shade + 10 * stains


def _sky(generator: Generator, size_hw: tuple[int, int], fade: NDArray) -> NDArray[np.floating]:
    """Draw a sky [H, W, 3] behind clouds, hazier towards the horizon."""
    zenith = np.array([60, 110, 180], np.float32)
    zenith = zenith + generator.normal(0, 14, 3).astype(np.float32)
    haze = np.array([200, 210, 220], np.float32)
    haze = haze + generator.normal(0, 15, 3).astype(np.float32)
    noise = fractal_noise(generator, size_hw, 3, 5) * 1.6
    cloud = np.clip(noise + generator.uniform(-0.3, 0.6), 0, 1)[..., None]
    sky = zenith + (haze - zenith) * fade
    return sky + (235 - sky) * cloud


def _floor(generator: Generator, size_hw: tuple[int, int], indoors: bool) -> NDArray[np.floating]:
    """Draw asphalt, grass, sand, boards or tiles [H, W, 3] in perspective."""
    height, width = size_hw
    # 1 at the lower edge of the picture, smaller towards the horizon.
    row = np.arange(height, dtype=np.float32)[:, None]
    nearness = (row + 0.15 * height + 4) / (1.15 * height + 4)
    # One colour.
    colours = FLOORS_INDOORS if indoors else FLOORS_OUTDOORS
    colour = colours[int(generator.integers(len(colours)))]
    colour = colour * np.float32(generator.uniform(0.7, 1.25))
    colour = (colour + generator.normal(0, 7, 3)).astype(np.float32)
    # Roughness on a large and on a small scale.
    rough = 0.5 * fractal_noise(generator, size_hw, 3, 3)
    rough = rough + fractal_noise(generator, size_hw, 48, 2)
    roughness = 0.08 + 0.22 * generator.random()
    shade = 1 + roughness * rough + 0.15 * (nearness - 0.5)
    # Boards and tiles are more common indoors.
    share_with_gaps = 0.8 if indoors else 0.3
    if generator.random() < share_with_gaps:
        shade = shade * (1 - 0.3 * _gaps(generator, nearness, width))
    return colour * shade[..., None]


def _gaps(generator: Generator, nearness: NDArray, width: int) -> NDArray[np.bool_]:
    """Mark the gaps [H, W] between boards or tiles. nearness [H, 1]: nearness of each row."""
    # Gaps that run away from the camera; 100 keeps positions positive.
    column = np.arange(width, dtype=np.float32)[None]
    across = (column - generator.uniform(0, width)) / (nearness * width)
    boards = np.abs(across * generator.uniform(4, 14) + 100)
    along = np.modf(boards)[0] < 0.06
    # Gaps that run across, between tiles alone.
    tiles = generator.uniform(2, 9) / nearness
    has_rows = generator.random() < 0.5
    gap = 0.08 if has_rows else 0.0
    return along | (np.modf(tiles)[0] < gap)


class _Clutter:
    """Draws clutter into a picture in place, whose ground begins at row `horizon`."""

    def __init__(
        self, generator: Generator, picture: Image.Image, horizon: int, indoors: bool
    ) -> None:
        self.generator = generator
        self.canvas = ImageDraw.Draw(picture)
        self.width, self.height = picture.size
        self.horizon = horizon
        self.indoors = indoors

    def draw(self) -> None:
        """Draw buildings or furniture, trees, marks on the ground, and loose shapes."""
        for _ in range(int(self.generator.integers(1, 7))):
            self._building()
        for _ in range(0 if self.indoors else int(self.generator.integers(0, 5))):
            self._tree()
        for _ in range(int(self.generator.integers(0, 4))):
            self._mark()
        for _ in range(int(self.generator.integers(0, 5))):
            self._shape()

    def _ink(self, brighter: float = 0.0) -> tuple[int, int, int]:
        """Choose a random colour."""
        rgb = np.clip(random_colour(self.generator) + brighter, 0, 255)
        red, green, blue = (int(value) for value in rgb)
        return red, green, blue

    def _building(self) -> None:
        """Draw a building or piece of furniture with windows, which stands on the horizon."""
        # The front. Indoors some pieces end above the floor, and others stand before the wall.
        random = self.generator
        x = random.uniform(-0.1, 1) * self.width
        width = random.uniform(0.06, 0.35) * self.width
        top = self.horizon - random.uniform(0.1, 1.0) * self.horizon
        foot = self.horizon
        if self.indoors and random.random() < 0.4:
            foot = top + 0.6 * (self.horizon - top)
        foot += 0.12 * self.height * self.indoors * random.random()
        self.canvas.rectangle((x, top, x + width, foot), fill=self._ink(), outline=self._ink())
        # Windows in rows and columns, each half as wide and high as its cell.
        most = 3 if self.indoors else 6
        columns, rows = random.integers(1, most, 2).tolist()
        glass = self._ink()
        height = foot - top
        for row in range(rows):
            upper = top + height * (row + 0.25) / rows
            lower = upper + 0.5 * height / rows
            for column in range(columns):
                left = x + width * (column + 0.25) / columns
                right = left + 0.5 * width / columns
                self.canvas.rectangle((left, upper, right, lower), fill=glass)

    def _tree(self) -> None:
        """Draw a trunk with seven balls of leaves."""
        random = self.generator
        x = random.uniform(0, self.width)
        r = random.uniform(0.04, 0.14) * self.width
        green = tuple(int(value) for value in LEAF_GREEN * random.uniform(0.5, 1.5))
        trunk = (x - 0.08 * r, self.horizon - 1.5 * r, x + 0.08 * r, self.horizon + 2)
        self.canvas.rectangle(trunk, fill=TRUNK)
        for dx, dy in random.normal(0, 0.45, (7, 2)):
            left = x + (dx - 0.6) * r
            right = x + (dx + 0.6) * r
            upper = self.horizon + (dy - 2.6) * r
            lower = self.horizon + (dy - 1.4) * r
            self.canvas.ellipse((left, upper, right, lower), fill=green)

    def _mark(self) -> None:
        """Draw a line on the ground from the horizon to the lower edge."""
        random = self.generator
        vanish = random.uniform(0, self.width)
        near = random.uniform(-0.5, 1.5) * self.width
        width = random.uniform(0.01, 0.05) * self.width
        corners = [(vanish, self.horizon), (near, self.height), (near + width, self.height)]
        self.canvas.polygon(corners, fill=self._ink(30))

    def _shape(self) -> None:
        """Draw a polygon anywhere."""
        random = self.generator
        centre = random.uniform(0, 1, 2) * [self.width, self.height]
        number = int(random.integers(3, 7))
        corners = centre + random.normal(0, 0.05 * self.width, (number, 2))
        self.canvas.polygon([tuple(corner) for corner in corners], fill=self._ink())
