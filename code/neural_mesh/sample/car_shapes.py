"""The shapes of the procedural cars, by their lines from front to back."""

from __future__ import annotations

from dataclasses import dataclass

Knots = tuple[tuple[float, float], ...]

HALF_LENGTH = 0.45


def _knots(text: str) -> Knots:
    """Parse the knots of a line from `y z, y z, ...`."""
    knots = []
    for pair in text.split(","):
        y, z = pair.split()
        knots.append((float(y), float(z)))
    return tuple(knots)


@dataclass(frozen=True)
class CarShape:
    """A car by its lines, in CAD units, with y from front to back and z from the ground.

    top, belt: upper edge of the body and lower edge of its windows. wheels: y of the front axle, y
    of the rear axle, and radius. windscreen, rear_window, side_glass: y of both ends. pillars,
    doors: y of the pillars, and of the gaps between doors. headlight, grille: lowest and highest z.
    taillight: lowest z, highest z, and the share of the half width where it begins. plate: z in
    front and behind. bed: y of both ends, and depth, of an open load bed. trim: height of the black
    sill. tumblehome: how far the windows lean inwards, as a share of the half width.
    """

    subtype: str
    half_width: float
    clearance: float
    top: Knots
    belt: Knots
    wheels: tuple[float, float, float]
    windscreen: tuple[float, float]
    rear_window: tuple[float, float]
    side_glass: tuple[float, float]
    pillars: tuple[float, ...]
    doors: tuple[float, ...]
    headlight: tuple[float, float]
    grille: tuple[float, float]
    taillight: tuple[float, float, float]
    plate: tuple[float, float]
    bed: tuple[float, float, float] | None = None
    trim: float = 0.012
    tumblehome: float = 0.22


SEDAN = CarShape(
    "sedan",
    half_width=0.176,
    clearance=0.036,
    top=_knots(
        "-0.45 0.118, -0.43 0.148, -0.32 0.176, -0.17 0.197, -0.025 0.272, 0.06 0.285, "
        "0.14 0.280, 0.21 0.262, 0.325 0.216, 0.425 0.208, 0.45 0.170"
    ),
    belt=_knots("-0.45 0.112, -0.42 0.142, -0.17 0.184, 0.30 0.202, 0.42 0.200, 0.45 0.165"),
    wheels=(-0.280, 0.262, 0.064),
    windscreen=(-0.162, -0.035),
    rear_window=(0.205, 0.318),
    side_glass=(-0.125, 0.255),
    pillars=(0.055, 0.185),
    doors=(-0.135, 0.055, 0.205),
    headlight=(0.098, 0.128),
    grille=(0.072, 0.112),
    taillight=(0.142, 0.178, 0.48),
    plate=(0.062, 0.120),
)
SUV = CarShape(
    "SUV",
    half_width=0.186,
    clearance=0.046,
    top=_knots(
        "-0.45 0.150, -0.432 0.185, -0.33 0.208, -0.195 0.222, -0.085 0.312, 0.0 0.333, "
        "0.15 0.337, 0.33 0.328, 0.385 0.315, 0.437 0.215, 0.45 0.160"
    ),
    belt=_knots("-0.45 0.145, -0.42 0.178, -0.19 0.208, 0.40 0.226, 0.437 0.208, 0.45 0.155"),
    wheels=(-0.278, 0.270, 0.073),
    windscreen=(-0.186, -0.090),
    rear_window=(0.388, 0.430),
    side_glass=(-0.150, 0.375),
    pillars=(0.025, 0.190, 0.315),
    doors=(-0.150, 0.025, 0.200),
    headlight=(0.128, 0.166),
    grille=(0.090, 0.158),
    taillight=(0.150, 0.222, 0.74),
    plate=(0.072, 0.130),
    trim=0.032,
    tumblehome=0.15,
)
PICKUP = CarShape(
    "pickup",
    half_width=0.168,
    clearance=0.056,
    top=_knots(
        "-0.45 0.160, -0.435 0.190, -0.33 0.203, -0.20 0.212, -0.118 0.290, -0.07 0.304, "
        "0.06 0.304, 0.098 0.296, 0.112 0.208, 0.44 0.206, 0.45 0.196"
    ),
    belt=_knots("-0.45 0.155, -0.43 0.184, -0.20 0.198, 0.11 0.204, 0.44 0.203, 0.45 0.192"),
    wheels=(-0.300, 0.268, 0.070),
    windscreen=(-0.193, -0.122),
    rear_window=(0.099, 0.1095),
    side_glass=(-0.165, 0.088),
    pillars=(-0.018,),
    doors=(-0.160, -0.018, 0.095),
    headlight=(0.130, 0.168),
    grille=(0.092, 0.172),
    taillight=(0.125, 0.192, 0.82),
    plate=(0.078, 0.095),
    bed=(0.125, 0.437, 0.075),
    trim=0.024,
    tumblehome=0.16,
)
