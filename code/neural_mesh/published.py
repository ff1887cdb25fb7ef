"""The numbers of papers that ours are compared with, and the reference's own cuboids.

"reference" is the code published with the paper (Angtian/NeMo, 2022-05-06); "paper" is the ICLR
2021 article. Levels: "" is the unoccluded test set, L0. Mesh dimensions: one cuboid per category
(single) or per CAD model (multi).
"""

from __future__ import annotations

# Images of the complete test sets, all categories together, by occlusion level.
FULL_TEST_IMAGES = {
    "": 10812,
    "FGL1_BGL1": 10421,
    "FGL1_BGL2": 10304,
    "FGL1_BGL3": 9143,
    "FGL2_BGL1": 10270,
    "FGL2_BGL2": 10219,
    "FGL2_BGL3": 10125,
    "FGL3_BGL1": 9965,
    "FGL3_BGL2": 10056,
    "FGL3_BGL3": 9983,
}
FULL_AZIMUTH_TEST_IMAGES = {"seen": 7305, "unseen": 3507}  # of PUBLISHED_AZIMUTHS

# The authors' single cuboids as (x, y, z) low and high corners in CAD units: the boxes around
# PASCAL3D+'s original CAD models. They give a checkpoint of the reference its mesh where those
# models, or the same versions of them, are not available.
PUBLISHED_CUBOIDS = {
    "aeroplane": ((-0.28379, -0.34905, -0.12756), (0.37793, 0.34508, 0.10140)),
    "bicycle": ((-0.10487, -0.41327, -0.22618), (0.11745, 0.45367, 0.24944)),
    "boat": ((-0.14976, -0.47957, -0.33473), (0.14910, 0.46459, 0.12325)),
    "bottle": ((-0.14459, -0.17792, -0.47353), (0.14000, 0.13337, 0.46935)),
    "bus": ((-0.12377, -0.47232, -0.13357), (0.10698, 0.46732, 0.13468)),
    "car": ((-0.18409, -0.44080, -0.16812), (0.18409, 0.43363, 0.12016)),
    "chair": ((-0.24732, -0.27109, -0.36984), (0.24610, 0.26405, 0.38880)),
    "diningtable": ((-0.41383, -0.30170, -0.21552), (0.45536, 0.30924, 0.22489)),
    "motorbike": ((-0.14223, -0.38084, -0.18656), (0.10460, 0.39103, 0.18914)),
    "sofa": ((-0.45713, -0.26520, -0.25958), (0.45678, 0.27541, 0.24027)),
    "train": ((-0.08028, -0.48711, -0.10496), (0.08456, 0.48272, 0.09671)),
    "tvmonitor": ((-0.42960, -0.28030, -0.30395), (0.42960, 0.28342, 0.30376)),
}

# The published tables: accuracies in % and median errors in degrees for the 12 categories in the
# order of `categories`, and their image-weighted mean.
PUBLISHED = {
    # From the README of the reference, for the unoccluded test set.
    ("single", ""): {
        "pi/6": (81.1, 79.8, 69.0, 87.6, 88.2, 98.5, 86.2, 73.9, 83.7, 95.4, 81.3, 82.0, 85.5),
        "pi/18": (47.8, 27.9, 35.9, 49.0, 84.4, 94.9, 47.3, 51.4, 31.0, 59.6, 68.1, 42.4, 60.2),
        "median": (10.6, 16.8, 15.4, 10.3, 3.2, 3.2, 10.5, 9.7, 14.6, 8.5, 5.4, 12.0, 8.9),
    },
    ("multi", ""): {
        "pi/6": (78.1, 81.2, 64.9, 88.2, 94.4, 98.6, 87.4, 81.5, 84.2, 96.0, 90.6, 85.9, 87.0),
        "pi/18": (38.8, 35.0, 33.1, 50.2, 91.4, 95.8, 48.5, 58.2, 36.2, 65.4, 77.9, 54.5, 62.8),
        "median": (13.0, 14.1, 16.4, 10.0, 2.6, 2.9, 10.4, 8.3, 13.9, 7.3, 4.7, 9.0, 8.5),
    },
}
PUBLISHED_AZIMUTHS = "TFFTTFFT"  # the paper's pattern: near the front and near the back
PUBLISHED_AZIMUTH_MEANS = {
    # The paper's unseen-pose table: accuracies (pi/6, pi/18) in %.
    "single": {"seen": (88.5, 68.6), "unseen": (54.3, 27.9)},
    "multi": {"seen": (88.6, 70.2), "unseen": (54.7, 31.0)},
}
PUBLISHED_MEANS = {
    # The paper's table: accuracies (pi/6, pi/18) in % for L0 and the three occlusion levels.
    "single": {
        "": (85.0, 57.7),
        "FGL1_BGL1": (75.8, 43.7),
        "FGL2_BGL2": (63.5, 30.4),
        "FGL3_BGL3": (45.8, 15.1),
    },
    "multi": {
        "": (86.7, 63.2),
        "FGL1_BGL1": (77.3, 49.9),
        "FGL2_BGL2": (65.2, 34.5),
        "FGL3_BGL3": (47.1, 17.8),
    },
}
