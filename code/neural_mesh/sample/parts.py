"""Models of the sample data, the materials of their surfaces, and the builder of models.

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

# Materials of points of a surface; `looks` gives each its colour and gloss.
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
    """One CAD model.

    vertices, normals [V, 3]: normals are unit vectors of either sign. faces [F, 3]. material [V]:
    the same for the corners of a face. tag [V]: position along a section of a car's body, -1
    elsewhere. keypoints: name -> point [3]. paint: refines the materials of points of the surface.
    """

    subtype: str
    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    faces: NDArray[np.int32]
    material: NDArray[np.int64]
    tag: NDArray[np.float64]
    keypoints: dict[str, NDArray[np.float64]]
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
        """Add a part, and with `mirror` also its mirror image at -x."""
        vertices, faces = triangles
        if tag is None:
            tag = np.full(len(vertices), NO_TAG)
        # The mirror image needs normals of its own, since its triangles turn the other way.
        for sign in (1.0, -1.0) if mirror else (1.0,):
            points = vertices * [sign, 1, 1]
            normals = vertex_normals(points, faces)
            self.parts.append(_Part(points, faces, normals, material, tag))

    def model(
        self, subtype: str, keypoints: dict[str, Point], paint: Painter | None = None
    ) -> Model:
        """Join the parts and centre their box; `paint` gets coordinates from before that."""
        vertices = np.concatenate([part.vertices for part in self.parts])
        sizes = [len(part.vertices) for part in self.parts]
        offsets = np.cumsum([0, *sizes[:-1]])
        faces = [part.faces + offset for part, offset in zip(self.parts, offsets, strict=True)]
        materials = [np.full(len(part.vertices), part.material) for part in self.parts]
        # x is symmetric already.
        middle = (vertices.min(0) + vertices.max(0)) / 2 * [0, 1, 1]
        if paint is not None:
            paint = _shifted(paint, middle.astype(np.float32)[:, None])
        return Model(
            subtype=subtype,
            vertices=vertices - middle,
            normals=np.concatenate([part.normals for part in self.parts]),
            faces=np.concatenate(faces).astype(np.int32),
            material=np.concatenate(materials),
            tag=np.concatenate([part.tag for part in self.parts]),
            keypoints={name: np.asarray(at, float) - middle for name, at in keypoints.items()},
            paint=paint,
        )


def _shifted(paint: Painter, shift: NDArray) -> Painter:
    """Wrap a painter so that it gets points that are moved by `shift` [3, 1]."""

    def paint_shifted(points: NDArray, tag: NDArray, material: NDArray) -> NDArray:
        return paint(points + shift, tag, material)

    return paint_shifted


def left_and_right(points: dict[str, Point]) -> dict[str, Point]:
    """Make a left (-x) and a right (+x) point of each, whose name holds {} for the side."""
    both = {}
    for name, (x, y, z) in points.items():
        both[name.format("left")] = (-x, y, z)
        both[name.format("right")] = (x, y, z)
    return both
