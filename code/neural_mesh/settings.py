"""The defaults of the settings, and the constants that several modules share, with unit and origin.

"reference" is the code published with the paper (Angtian/NeMo, 2022-05-06); "paper" is the ICLR
2021 article. Categories and published numbers have modules of their own, and a constant that only
one module needs stands in that module.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_mesh.digests import short_digest

FEATURE_STRIDE = 8  # image pixels per feature cell, both axes (paper section 4)
FEATURE_CHANNELS = 128  # length of a feature vector (paper section 4)
# CAD units. Every crop is scaled so that its object looks as if it were this far away (reference).
NORMALISED_DISTANCE = 5.0
FOCAL_PX = 3000.0  # pixels; PASCAL3D+ has a viewport of 3000 and a focal length of 1
PAPER_FOV = math.radians(12.0)  # field of view of the reference's square rendering camera


class InputStatistics(NamedTuple):
    """Mean and standard deviation of red, green and blue, for pixel values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET_STATISTICS = InputStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

MESH_DIMENSIONS = ("single", "multi")  # one cuboid per category, or one per CAD model
OCC_LEVELS = ("FGL1_BGL1", "FGL2_BGL2", "FGL3_BGL3")  # the three levels that the paper's tables use
ALL_OCC_LEVELS = tuple(f"FGL{f}_BGL{b}" for f in (1, 2, 3) for b in (1, 2, 3))

# Occluders cover a share of the object (FGL) and a share of the rest of the image (BGL). Each level
# stands for an interval [low, high) of that share.
FOREGROUND_RATIO = {1: (0.2, 0.4), 2: (0.4, 0.6), 3: (0.6, 0.8)}
BACKGROUND_RATIO = {1: (0.0, 0.2), 2: (0.2, 0.4), 3: (0.4, 0.6)}


@dataclass(frozen=True)
class Azimuths:
    """The unseen-pose protocol: train on some azimuths, test on the others (or on the same ones).

    pattern: one letter for each of several equal bins of azimuth, counted from 0; T bins are
    trained on, F bins are not. An empty pattern means all azimuths, without the protocol. A bin
    includes its lower border, so that every image is in exactly one list (the reference's lists
    lose the borders). tested: which bins are tested on, `unseen` or `seen`.
    """

    pattern: str = ""
    tested: str = "unseen"

    def __post_init__(self) -> None:
        if set(self.pattern) - set("TF") or (self.pattern and len(set(self.pattern)) < 2):
            raise ValueError(
                f"AZIMUTH_SELECTION is {self.pattern!r}, it is a pattern of T and F, with both, "
                "such as TFFTTFFT"
            )
        if self.tested not in ("unseen", "seen"):
            raise ValueError(f"AZIMUTH_TEST is {self.tested!r}, it can be unseen or seen")

    @property
    def complement(self) -> str:
        """The pattern of the azimuths that are not trained on."""
        return self.pattern.translate(str.maketrans("TF", "FT"))

    @property
    def test_pattern(self) -> str:
        """The pattern of the azimuths that are tested on."""
        return self.pattern if self.tested == "seen" else self.complement

    @property
    def network_suffix(self) -> str:
        """The end of the name of the folder that holds such networks."""
        return f"_azum_{self.pattern}" if self.pattern else ""

    @property
    def result_suffix(self) -> str:
        """The end of the names of the folders that hold results of such networks."""
        return f"{self.network_suffix}_{self.tested}" if self.pattern else ""

    def seen(self, azimuth: NDArray) -> NDArray:
        """Whether azimuths (radians, any shape) lie in a bin that is trained on."""
        turns = np.mod(azimuth, 2 * np.pi) / (2 * np.pi)
        bins = np.minimum((turns * len(self.pattern)).astype(int), len(self.pattern) - 1)
        return np.array([letter == "T" for letter in self.pattern])[bins]


ALL_AZIMUTHS = Azimuths()


@dataclass(frozen=True)
class CuboidConfig:
    """How cuboids are made. Defaults are the paper's."""

    # Number of vertices aimed at; the real number is about 3 to 13 % higher (reference).
    number_vertices: int = 1000
    # Side of a cuboid at least, as a share of the longest; 0 lets a flat axis collapse, as the
    # reference does.
    minimum_thickness: float = 0.0


# The minimum thickness under GEOMETRY=exact. The flattest of the 79 cuboids of PASCAL3D+ has 0.076,
# so this changes none of them.
EXACT_MINIMUM_THICKNESS = 0.05


@dataclass(frozen=True)
class TrainConfig:
    """How a category is trained. Defaults are the paper's.

    RECIPE switches the fields from `accumulate` on.
    """

    category: str = "car"
    mesh_d: str = "single"  # single: one cuboid per category; multi: one per CAD model
    backbone: str = "resnetext"
    pretrained: str = "imagenet"  # imagenet, none, or the path of a state dict
    # Factor by which crops, focal length, near distance and maps are scaled when images are loaded.
    image_scale: float = 1.0
    batch_size: int = 108
    total_epochs: int = 800
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    temperature: float = 0.07  # of the softmax over similarities (paper eq. 7)
    # Vertices nearer to each other than this in the crop, in pixels, are not negatives.
    near_distance_px: float = 48.0
    weight_clutter: float = 5e-3  # weight of a clutter feature among the negatives
    num_clutter_image: int = 5  # clutter features drawn from each image
    # The clutter bank holds num_clutter_image * num_clutter_group rows.
    num_clutter_group: int = 512
    bank_momentum: float = 0.9
    # Weight of the clutter loss: the mean similarity of clutter features and the mesh bank.
    weight_regularisation: float = 0.1
    seed: int = 0
    augment: tuple[str, ...] = ()  # any of: flip, color, occlude (see dataset)
    validate_every: int = 0  # epochs; 0 trains on all images, as the paper does
    # Share of the training images that is held out when validate_every is set.
    validation_share: float = 0.1
    # Batch norm over all processes of PARALLEL=ddp; the paper's sees one replica at a time.
    sync_batchnorm: bool = False
    recipe: str = "paper"
    # ---- switched by RECIPE ----
    accumulate: int = 10  # iterations per optimiser step; gradients are summed
    # as-executed: a fifth of the learning rate from epoch 1 on; cosine: warm-up, then down to zero.
    schedule: str = "as-executed"
    # The reference trains its head with a bias and drops it at test time.
    bias_at_test: bool = False
    # A vertex's features are divided by the batch size (batch), or by the number of images that
    # show it (visible).
    bank_mean: str = "batch"
    # reference: slots of the first batch's size, spare rows stay random; full: all rows are used.
    clutter_ring: str = "reference"
    # mean: the reference's, of mean clutter and mean vertex feature; dense: the log odds of each
    # clutter feature that it is a vertex.
    clutter_loss: str = "mean"
    # What `occlude` in `augment` pastes: patches of other training images, or families of many
    # kinds, see data.occluders.
    occluders: str = "patches"
    trunk_rate: float = 1.0  # learning rate of the pretrained trunk, as a share of the others'
    freeze: bool = False  # the trunk keeps its pretrained weights
    # Digest of the user's pictures that `families` are made of, too.
    occluder_pictures: str = ""

    @property
    def num_clutter(self) -> int:
        """Rows of the clutter bank."""
        return self.num_clutter_image * self.num_clutter_group

    @property
    def fingerprint(self) -> str:
        """A short digest of everything but the category."""
        values = {key: value for key, value in sorted(asdict(self).items()) if key != "category"}
        return short_digest(repr(values).encode())


# What RECIPE=fixed changes, and why.
FIXED_RECIPE = dict(
    recipe="fixed",
    accumulate=1,  # 10 means 2.6 optimiser steps an epoch on 2,800 images
    schedule="cosine",  # as executed, 799 of 800 epochs run at a fifth of the stated learning rate
    bias_at_test=True,  # features at test time then come from the function that was trained
    bank_mean="visible",  # rarely seen vertices barely move otherwise
    # Otherwise 400 of 2,560 clutter rows stay random, and enter the clutter mean.
    clutter_ring="full",
)

# What RECIPE=robust changes besides, and why. What each brings has not been measured yet.
ROBUST_RECIPE = FIXED_RECIPE | dict(
    recipe="robust",
    # The network learns what clutter is, and not only that it is no mesh on average.
    clutter_loss="dense",
    weight_regularisation=1.0,
    num_clutter_image=48,  # 5 are too few to tell clutter from the object
    num_clutter_group=54,
    augment=("flip", "shift", "color", "occlude"),
    occluders="families",  # what has been seen as clutter in training is told from the object
)
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "fixed": FIXED_RECIPE,
    "robust": ROBUST_RECIPE,
}


def with_recipe(config: TrainConfig, recipe: str, chosen: dict[str, Any]) -> TrainConfig:
    """Settings of a recipe, but for those that are chosen; None leaves one to the recipe."""
    fields = RECIPES[recipe] | {name: x for name, x in chosen.items() if x is not None}
    return replace(config, **fields)


@dataclass(frozen=True)
class SolveConfig:
    """How poses are found. Defaults are the paper's."""

    solver: str = "paper"  # paper, best
    # Number format in which the backbone computes: float32 or bfloat16. auto is bfloat16 on a GPU
    # unless the solver is paper.
    precision: str = "auto"
    renderer: str = "auto"  # auto, torch, numba, triton, pytorch3d, pytorch3d-features
    total_epochs: int = 300  # optimiser steps of an image
    learning_rate: float = 0.05
    adam_betas: tuple[float, float] = (0.4, 0.6)
    step_drop: int = 100  # steps after which the learning rate is multiplied by drop_factor
    drop_factor: float = 0.2
    azimuths: int = 12  # start grid: 0, 30 .. 330 degrees
    elevations: tuple[float, float, int] = (-math.pi / 6, math.pi / 3, 4)  # first, last, count
    thetas: tuple[float, float, int] = (-math.pi / 6, math.pi / 6, 3)
    # Which of several cuboids is compared: the `annotated` one (paper), or `predicted`: all of
    # them, of which the one with the lowest loss wins.
    subtype: str = "annotated"
    clutter: bool = True  # False compares with the mesh alone
    # True also searches for the object's place on the map, and starts from several distances.
    six_d: bool = False
    # With six_d, factors of the start distance: first, last, count; in geometric progression.
    distance_factors: tuple[float, float, int] = (2 / 3, 1.5, 3)
    # With six_d, shifts of the object over the map: first, last, count; in map heights and widths.
    shifts: tuple[float, float, int] = (-0.25, 0.25, 5)
    seed: int = 0


@dataclass(frozen=True)
class PhotographConfig:
    """How the pose of an object in an arbitrary photograph is found.

    The values were chosen on disturbed training photographs of RealCars.
    """

    solver: str = "best"  # its camera is the one that crops are made with
    # Side of an object's box divided by the side of its mesh's outline; below 1 because a cuboid is
    # larger than the object in it.
    box_fill: float = 0.92
    # How far the middle of a box lies below the middle of the outline, in outline heights; the
    # upper part of an outline is empty above a bonnet.
    box_drop: float = 0.06
    picture_fill: float = 1.0  # as box_fill, where the whole picture takes the place of a box
    # Crops that the search begins with, as factors of the scale that the box suggests.
    box_zooms: tuple[float, ...] = (0.9, 1.1)
    # The same for a whole picture, of which the object fills only a part.
    picture_zooms: tuple[float, ...] = (0.85, 1.0, 1.2, 1.42)
    # Places where the object is searched in a whole picture, as `SolveConfig.shifts`.
    picture_places: tuple[float, float, int] = (-0.2, 0.2, 5)
    # Distances at which it is searched there, as `SolveConfig.distance_factors`.
    picture_distances: tuple[float, float, int] = (1.0, 2.0, 2)
    # Width in pixels to which the reference resizes a photograph without annotation.
    reference_width: float = 435.0
    # Pixels by which the reference puts such a photograph's crop below the middle.
    reference_shift: float = 30.0
    # Pixels that the longer side of a box keeps when a large picture is reduced; twice a car's
    # crop.
    wanted_side: int = 1344
    overlay_side: int = 1600  # longer side of an overlay picture at most, in pixels


# Where the data sets are published: an address, or "drive:" and the id of a file on Google Drive.
DOWNLOADS = {
    "PASCAL3D+_release1.1": "ftp://cs.stanford.edu/cs/cvgl/PASCAL3D+_release1.1.zip",
    "Image_subsets": "drive:1NsoVXW8ngQCqTHHFSW8YYsCim9EjiXS7",
    "FGL1_BGL1": "drive:1X-xwyypLTm9vr-boLYPIPhGxcYaPHSNF",
    "FGL2_BGL2": "drive:1dNP8YE3RJ9Pzr_jQ11O6f6eYgYnq9ROp",
    "FGL3_BGL3": "drive:1GsHCyAYnqcJsAgiih1vKpDQxzF3ouFxS",
}
OCCLUDED_REPOSITORY = "https://github.com/Angtian/OccludedPASCAL3D"
