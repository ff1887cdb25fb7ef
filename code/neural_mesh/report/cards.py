"""The cards of the gallery: which images are shown, and what is said of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.pictures.selection import ranks_at

GALLERY_IMAGES = 240  # in all
LARGEST_GROUP = 36  # images of a category at a level
SMALLEST_GROUP = 6


class Card(NamedTuple):
    """A picture of the gallery.

    rank: 1 is the smallest error of its category and level, of so many. place: best, median or
    worst. error: degrees. predicted, annotated: poses in words.
    """

    category: str
    level: str
    name: str
    error: float
    place: str
    rank: int
    of: int
    predicted: str
    annotated: str
    jpeg: bytes


class Place(NamedTuple):
    """An image of the gallery by its index. rank: from 1."""

    index: int
    place: str
    rank: int


def gallery_places(errors: NDArray, number: int) -> list[Place]:
    """About `number` of the images [B], by their errors, from the smallest up.

    A third each are the best, those around the median, and the worst, none of them twice.
    """
    # Ranks count from the smallest error.
    order = np.argsort(errors, kind="stable")
    third = max(1, number // 3)
    place_of_rank: dict[int, str] = {}
    for place in ("worst", "best", "median"):  # where they meet, a small set rather shows its worst
        for rank in ranks_at(place, third, len(order)):
            place_of_rank.setdefault(rank, place)
    return [Place(int(order[k]), place_of_rank[k], k + 1) for k in sorted(place_of_rank)]


def group_size(groups: int) -> int:
    """How many images of a category at a level, when there are so many of these."""
    return min(LARGEST_GROUP, max(SMALLEST_GROUP, GALLERY_IMAGES // groups))
