"""Models of the sample data, the materials of their surfaces, and how they are put together.

Axes are PASCAL3D+'s: z up, the front towards -y, everything symmetric about x = 0, the bounding box
centred on the origin. "left" in a key point's name is -x, as in PASCAL3D+ (the left seen by
somebody in front of the object).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.sample.shapes import Triangles, vertex_normals

# What a point of a surface is made of; `looks` gives each its colour and gloss.
PAINT = 0
GLASS = 1
TYRE = 2
RIM = 3
CHROME = 4
BLACK = 5
HEADLIGHT = 6
TAILLIGHT = 7
PLATE = 8
GAP = 9
WOOD = 10
FABRIC = 11
FABRIC2 = 12
METAL = 13
NUM_MATERIALS = 14

NO_TAG = -1.0
Point = tuple[float, float, float]
# paint(points [3, N], tag [N], material [N]) -> refined material [N]
Painter = Callable[[NDArray, NDArray, NDArray], NDArray]


@dataclass(frozen=True)
class Model:
    """One CAD model. `paint` refines the materials of points of its surface."""

    subtype: str
    vertices: NDArray[np.float64]  # [V, 3]
    normals: NDArray[np.float64]  # [V, 3], unit, of either sign
    faces: NDArray[np.int32]  # [F, 3]
    material: NDArray[np.int64]  # [V], the same for the corners of a face
    tag: NDArray[np.float64]  # [V], position along a section of the car's body, -1 elsewhere
    keypoints: dict[str, NDArray[np.float64]]  # name -> [3]
    paint: Painter | None = None


class _Part(NamedTuple):
    """A piece of a model, of one material."""

    vertices: NDArray
    faces: NDArray
    normals: NDArray
    material: int
    tag: NDArray


@dataclass
class Builder:
    """Collects parts, each with its material, and centres the whole."""

    parts: list[_Part] = field(default_factory=list)

    def add(
        self, triangles: Triangles, material: int, tag: NDArray | None = None, mirror: bool = False
    ) -> None:
        """Add a part; with `mirror` also its image at -x."""
        vertices, faces = triangles
        if tag is None:
            tag = np.full(len(vertices), NO_TAG)
        # Normals are made anew for the mirror image, whose triangles turn the other way.
        for sign in (1.0, -1.0) if mirror else (1.0,):
            points = vertices * [sign, 1, 1]
            normals = vertex_normals(points, faces)
            self.parts.append(_Part(points, faces, normals, material, tag))

    def model(
        self, subtype: str, keypoints: dict[str, Point], paint: Painter | None = None
    ) -> Model:
        """The model, moved so that its bounding box is centred; `paint` sees the coordinates of
        before.
        """
        vertices = np.concatenate([part.vertices for part in self.parts])
        sizes = [len(part.vertices) for part in self.parts]
        offsets = np.cumsum([0, *sizes[:-1]])
        faces = [part.faces + offset for part, offset in zip(self.parts, offsets, strict=True)]
        materials = [np.full(len(part.vertices), part.material) for part in self.parts]
        # x is symmetric already.
        middle = (vertices.min(0) + vertices.max(0)) / 2 * [0, 1, 1]
        shift = middle.astype(np.float32)[:, None]

        def paint_centred(points: NDArray, tag: NDArray, material: NDArray) -> NDArray:
            return paint(points + shift, tag, material)

        return Model(
            subtype=subtype,
            vertices=vertices - middle,
            normals=np.concatenate([part.normals for part in self.parts]),
            faces=np.concatenate(faces).astype(np.int32),
            material=np.concatenate(materials),
            tag=np.concatenate([part.tag for part in self.parts]),
            keypoints={name: np.asarray(at, float) - middle for name, at in keypoints.items()},
            paint=None if paint is None else paint_centred,
        )


def left_and_right(points: dict[str, Point]) -> dict[str, Point]:
    """{"{}_front_light": (x, y, z)} -> that point for left (-x) and right (+x)."""
    both = {}
    for name, (x, y, z) in points.items():
        both[name.format("left")] = (-x, y, z)
        both[name.format("right")] = (x, y, z)
    return both
