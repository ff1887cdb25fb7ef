"""Every constant and default of the project, once, with its unit and its origin.

"reference" is the code published with the paper (Angtian/NeMo, 2022-05-06); "paper" is the ICLR
2021 article. Categories and published numbers have modules of their own.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from neural_mesh.digests import short_digest

FEATURE_STRIDE = 8  # image pixels per feature cell, both axes (paper section 4)
FEATURE_CHANNELS = 128  # length of a feature vector (paper section 4)
# Every crop is scaled so that its object looks as if it were this far away (reference).
NORMALISED_DISTANCE = 5.0
FOCAL_PX = 3000.0  # PASCAL3D+: viewport 3000 times focal length 1, in pixels
PAPER_FOV = math.radians(12.0)  # field of view of the reference's square rendering camera

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MESH_DIMENSIONS = ("single", "multi")  # one cuboid per category, or one per CAD model
OCC_LEVELS = ("FGL1_BGL1", "FGL2_BGL2", "FGL3_BGL3")  # the three levels that the paper's tables use
ALL_OCC_LEVELS = tuple(f"FGL{f}_BGL{b}" for f in (1, 2, 3) for b in (1, 2, 3))

# The shares of the object (FGL) and of the rest of the image (BGL) that the occluders cover,
# [low, high).
FOREGROUND_RATIO = {1: (0.2, 0.4), 2: (0.4, 0.6), 3: (0.6, 0.8)}
BACKGROUND_RATIO = {1: (0.0, 0.2), 2: (0.2, 0.4), 3: (0.4, 0.6)}


@dataclass(frozen=True)
class Azimuths:
    """The unseen-pose protocol: train on some azimuths, test on the others (or on the same ones).

    pattern: one letter for each of equal bins of azimuth from 0 on, T to train on it; a bin holds
    its lower border, so that every image is in exactly one list (the reference's lists lose the
    borders). Empty: all azimuths, no protocol. tested: `unseen` or `seen`.
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
        """What the folder of such networks ends in."""
        return f"_azum_{self.pattern}" if self.pattern else ""

    @property
    def result_suffix(self) -> str:
        """What folders of results of such networks end in."""
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

    number_vertices: int = 1000  # aimed at; the real number is some 3-13 % higher (reference)
    # of a side, as a share of the longest; 0: a flat axis collapses (reference)
    minimum_thickness: float = 0.0


# Of GEOMETRY=exact. The flattest of the 79 cuboids of PASCAL3D+ has 0.076, so this changes none
# of them.
EXACT_MINIMUM_THICKNESS = 0.05


@dataclass(frozen=True)
class TrainConfig:
    """How a category is trained. Defaults are the paper's.

    The fields below the line are what RECIPE switches.
    """

    category: str = "car"
    mesh_d: str = "single"  # single: one cuboid per category; multi: one per CAD model
    backbone: str = "resnetext"
    pretrained: str = "imagenet"  # imagenet, none, or the path of a state dict
    # scales crops, focal length, near distance and maps when images are loaded
    image_scale: float = 1.0
    batch_size: int = 108
    total_epochs: int = 800
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    temperature: float = 0.07  # of the softmax over similarities (paper eq. 7)
    # vertices nearer than this in the crop do not count as negatives
    near_distance_px: float = 48.0
    weight_clutter: float = 5e-3  # weight of a clutter feature among the negatives
    num_clutter_image: int = 5  # clutter features drawn from each image
    # the clutter bank holds num_clutter_image * num_clutter_group rows
    num_clutter_group: int = 512
    bank_momentum: float = 0.9
    # of the mean similarity between clutter features and the mesh bank
    weight_regularisation: float = 0.1
    seed: int = 0
    augment: tuple[str, ...] = ()  # any of: flip, color, occlude (see dataset)
    validate_every: int = 0  # epochs; 0 trains on all images, as the paper does
    validation_share: float = 0.1  # of the training images, held out when validate_every is set
    # over all processes of PARALLEL=ddp; the paper's batch norm sees one replica at a time
    sync_batchnorm: bool = False
    recipe: str = "paper"
    # ---- switched by RECIPE ----
    accumulate: int = 10  # iterations per optimiser step; gradients are summed
    # as-executed: x0.2 from epoch 1 on; cosine: warm-up, then down to zero
    schedule: str = "as-executed"
    # the reference trains its head with a bias and drops it at test time
    bias_at_test: bool = False
    # batch: divide a vertex's features by the batch size; visible: by how often it was seen
    bank_mean: str = "batch"
    # reference: slots of the first batch's size, spare rows stay random; full: all rows
    clutter_ring: str = "reference"

    @property
    def num_clutter(self) -> int:
        """Rows of the clutter bank."""
        return self.num_clutter_image * self.num_clutter_group

    @property
    def fingerprint(self) -> str:
        """A short digest of everything but the category."""
        values = {key: value for key, value in sorted(asdict(self).items()) if key != "category"}
        return short_digest(repr(values).encode())


# What RECIPE="fixed" mends, and why.
FIXED_RECIPE = dict(
    recipe="fixed",
    accumulate=1,  # 10 means 2.6 optimiser steps an epoch on 2,800 images
    schedule="cosine",  # as executed, 799 of 800 epochs run at a fifth of the stated learning rate
    bias_at_test=True,  # features at test time then come from the function that was trained
    bank_mean="visible",  # rarely seen vertices otherwise hardly move
    # 400 of 2,560 clutter rows otherwise stay random, and enter the clutter mean
    clutter_ring="full",
)


@dataclass(frozen=True)
class SolveConfig:
    """How poses are found. Defaults are the paper's."""

    solver: str = "paper"  # paper, best
    # of the backbone: float32, bfloat16; auto: bfloat16 on a GPU unless solver is paper
    precision: str = "auto"
    renderer: str = "auto"  # auto, torch, numba, triton, pytorch3d, pytorch3d-features
    total_epochs: int = 300  # optimiser steps of an image
    learning_rate: float = 0.05
    adam_betas: tuple[float, float] = (0.4, 0.6)
    step_drop: int = 100  # the learning rate is multiplied by drop_factor every so many steps
    drop_factor: float = 0.2
    azimuths: int = 12  # start grid: 0, 30 .. 330 degrees
    elevations: tuple[float, float, int] = (-math.pi / 6, math.pi / 3, 4)  # first, last, count
    thetas: tuple[float, float, int] = (-math.pi / 6, math.pi / 6, 3)
    # which of several cuboids: the annotated one (paper), or `predicted`: all, lowest loss wins
    subtype: str = "annotated"
    clutter: bool = True  # False compares with the mesh alone
    # True: also find where the object lies on the map, and start from other distances
    six_d: bool = False
    # of the start distance if six_d; first, last, count, geometric
    distance_factors: tuple[float, float, int] = (2 / 3, 1.5, 3)
    # of the object over the map if six_d, in map heights and widths
    shifts: tuple[float, float, int] = (-0.25, 0.25, 5)
    seed: int = 0


@dataclass(frozen=True)
class PhotographConfig:
    """How the pose of an object in anybody's photograph is found.

    Chosen on training photographs of RealCars, disturbed.
    """

    solver: str = "best"  # its camera is the one that crops are made with
    # side of an object's box by that of its mesh's outline: cuboids are larger than what they hold
    box_fill: float = 0.92
    # a box's middle lies below that of the outline, which is empty above a bonnet; outline heights
    box_drop: float = 0.06
    picture_fill: float = 1.0  # the same for a whole picture
    # crops that the search begins with, by the scale that the box suggests
    box_zooms: tuple[float, ...] = (0.9, 1.1)
    # of a whole picture, of which an object takes a part
    picture_zooms: tuple[float, ...] = (0.85, 1.0, 1.2, 1.42)
    # where it is looked for in these, see `SolveConfig.shifts`
    picture_places: tuple[float, float, int] = (-0.2, 0.2, 5)
    # and how far away, see `SolveConfig.distance_factors`
    picture_distances: tuple[float, float, int] = (1.0, 2.0, 2)
    # of the reference's unlabelled photographs, to which a picture is resized, pixels
    reference_width: float = 435.0
    reference_shift: float = 30.0  # and how far below its middle they are cropped, pixels
    # pixels that the longer side of a box keeps when large pictures are reduced; twice a car's crop
    wanted_side: int = 1344
    overlay_side: int = 1600  # longer side of an overlay picture at most, in pixels


# Where the data sets are offered: an address, or "drive:" and the id of a file on Google Drive.
DOWNLOADS = {
    "PASCAL3D+_release1.1": "ftp://cs.stanford.edu/cs/cvgl/PASCAL3D+_release1.1.zip",
    "Image_subsets": "drive:1NsoVXW8ngQCqTHHFSW8YYsCim9EjiXS7",
    "FGL1_BGL1": "drive:1X-xwyypLTm9vr-boLYPIPhGxcYaPHSNF",
    "FGL2_BGL2": "drive:1dNP8YE3RJ9Pzr_jQ11O6f6eYgYnq9ROp",
    "FGL3_BGL3": "drive:1GsHCyAYnqcJsAgiih1vKpDQxzF3ouFxS",
}
OCCLUDED_REPOSITORY = "https://github.com/Angtian/OccludedPASCAL3D"
