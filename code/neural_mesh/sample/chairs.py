"""The procedural chairs: a wooden one, an armchair and a moulded shell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neural_mesh.sample.parts import (
    FABRIC,
    FABRIC2,
    METAL,
    WOOD,
    Builder,
    Model,
    Point,
    left_and_right,
)
from neural_mesh.sample.shapes import Triangles, box, grid_triangles, tube


def _chair_keypoints(
    seat: tuple[float, float, float, float], back: Point, rear_foot: Point, front_foot: Point
) -> dict[str, Point]:
    """Place PASCAL3D+'s key points of a chair, in whose names "upper" is the rear.

    seat: x, y of the front, y of the rear, and z. back, rear_foot, front_foot: corners at +x.
    """
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
    """Build a wooden dining chair with a cushion, vertical slats and stretchers, without arms."""
    build = Builder()
    # Seat and cushion.
    build.add(box((0, 0.0, 0.385), (0.205, 0.20, 0.016), 0.008), WOOD)
    build.add(box((0, -0.012, 0.412), (0.185, 0.172, 0.018), 0.017, 0.02), FABRIC)
    # Front legs, and rear legs that are also the sides of the back.
    build.add(tube([(0.180, -0.175, 0), (0.183, -0.178, 0.375)], [0.013, 0.019]), WOOD, mirror=True)
    side = [(0.175, 0.205, 0), (0.183, 0.182, 0.38), (0.183, 0.192, 0.50), (0.180, 0.228, 0.80)]
    build.add(tube(side, [0.013, 0.018, 0.018, 0.014]), WOOD, mirror=True)
    # Rails and slats of the back.
    build.add(box((0, 0.222, 0.765), (0.176, 0.009, 0.034), 0.008), WOOD)
    build.add(box((0, 0.196, 0.520), (0.176, 0.008, 0.016), 0.007), WOOD)
    for x in (0.045, 0.120):
        build.add(tube([(x, 0.197, 0.52), (x, 0.220, 0.76)], 0.009), WOOD, mirror=True)
    # Stretchers.
    build.add(tube([(0.179, -0.176, 0.20), (0.179, 0.194, 0.20)], 0.009), WOOD, mirror=True)
    build.add(tube([(-0.179, 0.0, 0.20), (0.179, 0.0, 0.20)], 0.009), WOOD)
    build.add(tube([(-0.180, -0.177, 0.29), (0.180, -0.177, 0.29)], 0.009), WOOD)
    keypoints = _chair_keypoints(
        seat=(0.200, -0.195, 0.19, 0.401),
        back=(0.180, 0.226, 0.79),
        rear_foot=(0.175, 0.205, 0.006),
        front_foot=(0.180, -0.175, 0.006),
    )
    return build.model("slatted", keypoints)


def armchair() -> Model:
    """Build an upholstered armchair with a thick seat and back, arms on posts, and tapered legs."""
    build = Builder()
    # Seat and cushion.
    build.add(box((0, -0.01, 0.315), (0.195, 0.215, 0.028), 0.012), FABRIC2)
    build.add(box((0, -0.025, 0.365), (0.180, 0.195, 0.040), 0.035, 0.018), FABRIC)
    # Back and its pad.
    back = box((0, 0, 0), (0.190, 0.034, 0.215), 0.030, 0.018)
    build.add(_leaning(back, [0, 0.205, 0.540]), FABRIC2)
    pad = box((0, 0, 0), (0.160, 0.016, 0.165), 0.015, 0.018)
    build.add(_leaning(pad, [0, 0.174, 0.560]), FABRIC)
    # Arms and their posts.
    build.add(box((0.213, -0.020, 0.505), (0.024, 0.195, 0.016), 0.014), WOOD, mirror=True)
    build.add(tube([(0.210, -0.165, 0.31), (0.213, -0.175, 0.495)], 0.014), WOOD, mirror=True)
    build.add(tube([(0.208, 0.120, 0.31), (0.213, 0.140, 0.495)], 0.012), WOOD, mirror=True)
    # Frame and legs.
    build.add(box((0.200, -0.01, 0.315), (0.012, 0.205, 0.022), 0.008), WOOD, mirror=True)
    build.add(tube([(0.195, -0.200, 0), (0.180, -0.185, 0.29)], [0.010, 0.019]), WOOD, mirror=True)
    build.add(tube([(0.185, 0.235, 0), (0.175, 0.185, 0.29)], [0.010, 0.019]), WOOD, mirror=True)
    keypoints = _chair_keypoints(
        seat=(0.175, -0.215, 0.150, 0.395),
        back=(0.180, 0.247, 0.745),
        rear_foot=(0.185, 0.235, 0.006),
        front_foot=(0.195, -0.200, 0.006),
    )
    return build.model("armchair", keypoints)


def _leaning(triangles: Triangles, centre: list[float]) -> Triangles:
    """Lean a part back by 11 degrees, and move it to a centre [3]."""
    vertices, faces = triangles
    tilt = np.radians(11)
    cos = np.cos(tilt)
    sin = np.sin(tilt)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    return np.einsum("ij,nj->ni", turn, vertices) + centre, faces


# The middle of the shell as (y, z) from the front edge of the seat to the upper edge of the back.
SHELL_SPINE = np.array(
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
# Half the width of the shell, and how far its sides curl up, by the share of the way along the
# spine.
SHELL_HALF_WIDTH = (
    [0, 0.05, 0.35, 0.55, 0.62, 0.9, 0.97, 1],
    [0.165, 0.20, 0.212, 0.200, 0.198, 0.205, 0.175, 0.13],
)
SHELL_CURL = ([0, 0.15, 0.5, 0.75, 1], [-0.012, 0.012, 0.045, 0.060, 0.045])


def shell_chair() -> Model:
    """Build a moulded shell, whose two sides differ in colour, on splayed metal legs."""
    build = Builder()
    inside = _shell_surface(0.006)
    outside = _shell_surface(-0.006)
    build.add(grid_triangles(inside), FABRIC)
    build.add(grid_triangles(outside), FABRIC2)
    sides = np.stack([inside, outside])
    for rim in (sides[:, :, 0], sides[:, :, -1], sides[:, 0], sides[:, -1]):
        build.add(grid_triangles(rim), FABRIC2)
    # Legs, and the frame between them.
    build.add(tube([(0.200, -0.200, 0), (0.130, -0.125, 0.385)], 0.010), METAL, mirror=True)
    build.add(tube([(0.195, 0.235, 0), (0.125, 0.120, 0.375)], 0.010), METAL, mirror=True)
    build.add(tube([(0.130, -0.125, 0.372), (0.125, 0.120, 0.364)], 0.009), METAL, mirror=True)
    build.add(tube([(-0.130, -0.125, 0.372), (0.130, -0.125, 0.372)], 0.009), METAL)
    build.add(tube([(-0.125, 0.120, 0.364), (0.125, 0.120, 0.364)], 0.009), METAL)
    keypoints = _chair_keypoints(
        seat=(0.198, -0.200, 0.150, 0.405),
        back=(0.170, 0.212, 0.765),
        rear_foot=(0.195, 0.235, 0.006),
        front_foot=(0.200, -0.200, 0.006),
    )
    return build.model("shell", keypoints)


def _shell_surface(offset: float) -> NDArray[np.float64]:
    """Compute points [along, across, 3] of the shell, moved by `offset` along its normal."""
    along = np.linspace(0, 1, 49)
    across = np.linspace(-1, 1, 21)
    spine = _smooth_spine(along)
    normal = np.stack([-np.gradient(spine[:, 1]), np.gradient(spine[:, 0])], -1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    half_width = np.interp(along, *SHELL_HALF_WIDTH)
    lift = np.interp(along, *SHELL_CURL)[:, None] * np.abs(across) ** 2.2
    yz = spine[:, None] + (lift + offset)[..., None] * normal[:, None]
    x = (half_width[:, None] * across)[..., None]
    return np.concatenate([x, yz], -1)


def _smooth_spine(along: NDArray) -> NDArray[np.float64]:
    """Compute (y, z) of the spine [N, 2] at shares `along` of the way, its corners rounded."""
    at = np.linspace(0, 1, len(SHELL_SPINE))
    columns = []
    for column in SHELL_SPINE.T:
        shifted = [np.interp(along + s, at, column) for s in (-0.03, -0.015, 0, 0.015, 0.03)]
        columns.append(np.mean(shifted, axis=0))
    return np.stack(columns, -1)
