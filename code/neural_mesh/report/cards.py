"""The cards of the gallery: the choice of images, and the texts about them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.pictures.selection import ranks_at

# About how many images the gallery has, and how many each category has at a level.
GALLERY_IMAGES = 240
LARGEST_GROUP = 36
SMALLEST_GROUP = 6


class Card(NamedTuple):
    """A picture of the gallery.

    error: in degrees. place: best, median or worst. rank: place of the error among the `of` images
    of its category and level, of which 1 is the smallest. predicted, annotated: poses in words.
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
    """The index of an image of the gallery, best, median or worst, and the rank from 1."""

    index: int
    place: str
    rank: int


def gallery_places(errors: NDArray, number: int) -> list[Place]:
    """Choose about `number` images by their errors [B], the smallest error first.

    A third each are the best images, those around the median, and the worst, without repetition.
    """
    # Ranks count from the smallest error.
    order = np.argsort(errors, kind="stable")
    third = max(1, number // 3)
    place_of_rank: dict[int, str] = {}
    # In a small set the thirds overlap, and the first place named here wins.
    for place in ("worst", "best", "median"):
        for rank in ranks_at(place, third, len(order)):
            place_of_rank.setdefault(rank, place)
    return [Place(int(order[k]), place_of_rank[k], k + 1) for k in sorted(place_of_rank)]


def group_size(groups: int) -> int:
    """Choose the number of images of a category at a level, given the number of such groups."""
    return min(LARGEST_GROUP, max(SMALLEST_GROUP, GALLERY_IMAGES // groups))
