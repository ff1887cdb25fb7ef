"""The twelve object categories of PASCAL3D+: crops, start distances and key points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from neural_mesh.settings import NORMALISED_DISTANCE


@dataclass(frozen=True)
class Category:
    """One object category of PASCAL3D+.

    crop_hw: (height, width) of a prepared crop in pixels, multiples of 32 (reference).
    paper_distance: distance of the reference's start poses; tuned by its authors for their 12
    degree camera. keypoints: names in the order of the rows of `cropped_kp_list`.
    """

    name: str
    short: str
    crop_hw: tuple[int, int]
    paper_distance: float
    keypoints: tuple[str, ...] = ()


def _category(
    name: str, short: str, crop_hw: tuple[int, int], paper_distance: float, keypoints: str
) -> Category:
    return Category(name, short, crop_hw, paper_distance, tuple(keypoints.split()))


# In the order of the published tables.
_PASCAL3D = (
    _category(
        "aeroplane",
        "plane",
        (320, 1024),
        7.0,
        "left_wing right_wing rudder_upper noselanding left_elevator rudder_lower "
        "right_elevator tail",
    ),
    _category(
        "bicycle",
        "bike",
        (608, 608),
        5.2,
        "seat_front right_back_wheel right_pedal_center right_front_wheel "
        "left_front_wheel left_handle seat_back head_center left_back_wheel "
        "left_pedal_center right_handle",
    ),
    _category(
        "boat",
        "boat",
        (480, 1120),
        8.0,
        "head_down head tail_right tail_left head_right tail head_left",
    ),
    _category(
        "bottle",
        "bottle",
        (512, 736),
        5.75,
        "body bottom_left bottom mouth body_right body_left bottom_right",
    ),
    _category(
        "bus",
        "bus",
        (320, 800),
        5.2,
        "body_front_left_lower body_front_right_upper body_back_right_lower "
        "right_back_wheel body_back_left_upper right_front_wheel left_front_wheel "
        "body_front_left_upper body_back_left_lower body_back_right_upper "
        "body_front_right_lower left_back_wheel",
    ),
    _category(
        "car",
        "car",
        (256, 672),
        5.0,
        "left_front_wheel left_back_wheel right_front_wheel right_back_wheel "
        "upper_left_windshield upper_right_windshield upper_left_rearwindow "
        "upper_right_rearwindow left_front_light right_front_light left_back_trunk "
        "right_back_trunk",
    ),
    _category(
        "chair",
        "chair",
        (544, 384),
        4.0,
        "seat_upper_right back_upper_left seat_lower_right leg_lower_left "
        "back_upper_right leg_upper_right seat_lower_left leg_upper_left seat_upper_left "
        "leg_lower_right",
    ),
    _category(
        "diningtable",
        "table",
        (320, 800),
        7.0,
        "top_lower_left top_up top_lower_right leg_lower_left leg_upper_right top_right "
        "top_left leg_upper_left top_upper_left top_upper_right top_down leg_lower_right",
    ),
    _category(
        "motorbike",
        "mbike",
        (512, 512),
        4.5,
        "front_seat right_back_wheel back_seat right_front_wheel left_front_wheel "
        "headlight_center right_handle_center left_handle_center head_center "
        "left_back_wheel",
    ),
    _category(
        "sofa",
        "sofa",
        (352, 736),
        5.4,
        "top_right_corner seat_bottom_right left_bottom_back seat_bottom_left "
        "front_bottom_right top_left_corner right_bottom_back seat_top_left "
        "front_bottom_left seat_top_right",
    ),
    _category(
        "train",
        "train",
        (256, 608),
        3.75,
        "head_top mid1_left_bottom head_left_top mid1_left_top mid2_right_bottom "
        "head_right_bottom mid1_right_bottom head_left_bottom mid2_left_top "
        "mid2_left_bottom head_right_top tail_right_top tail_left_top tail_right_bottom "
        "tail_left_bottom mid2_right_top mid1_right_top",
    ),
    _category(
        "tvmonitor",
        "tv",
        (480, 480),
        5.5,
        "back_top_left back_bottom_right front_bottom_right front_top_right "
        "front_top_left back_bottom_left back_top_right front_bottom_left",
    ),
)
SHORT_NAMES = tuple(c.short for c in _PASCAL3D)
CATEGORIES: dict[str, Category] = {c.name: c for c in _PASCAL3D}
GENERIC_CROP_HW = (512, 512)  # for categories that PASCAL3D+ does not have


def category_settings(name: str) -> Category:
    """The settings of a category.

    One that PASCAL3D+ does not have gets a square crop and the consistent distance.
    """
    return CATEGORIES.get(name) or Category(name, name, GENERIC_CROP_HW, NORMALISED_DISTANCE)


# ---- names that people give them -----------------------------------------------------------------

# Of COCO, ImageNet and the published tables; what could mean two categories is not among them.
_OTHER_NAMES = {
    "airplane": "aeroplane",
    "automobile": "car",
    "couch": "sofa",
    "motorcycle": "motorbike",
    "television": "tvmonitor",
} | {category.short: category.name for category in _PASCAL3D}


def _plain(name: str) -> str:
    """A name as it is compared: `Dining table`, `dining_table` and `diningtable` are one."""
    return "".join(letter for letter in name.casefold() if letter not in " _-/")


def pascal3d_name(name: str) -> str:
    """What PASCAL3D+ calls a category, given any of its usual names; empty if it has none such."""
    plain = _plain(name)
    plain = _OTHER_NAMES.get(plain, plain)
    return plain if plain in CATEGORIES else ""


def is_same_category(name: str, other: str) -> bool:
    """Whether two names certainly mean one category."""
    if _plain(name) == _plain(other):
        return True
    return pascal3d_name(name) == pascal3d_name(other) != ""


def category_meant(name: str, known: Iterable[str]) -> str:
    """The one of the known categories that a name certainly means; empty if there is none."""
    known = set(known)
    if name in known:
        return name
    meant = [other for other in known if is_same_category(name, other)]
    return meant[0] if len(meant) == 1 else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean car`, of the known categories whose name is like it; empty if none is."""
    plain_names = {_plain(other): other for other in known if other != name}
    like = get_close_matches(_plain(name), plain_names, 1)
    meant = category_meant(name, plain_names.values())
    if like and not meant:
        meant = plain_names[like[0]]
    return f", did you mean {meant}" if meant else ""
