"""Photographs whose poses are known, made of a prepared set, and a finder's calibration on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neural_mesh.data.augmentation import change_colour, paste_patches
from neural_mesh.data.crops import read_crop
from neural_mesh.geometry.pose_error import THRESHOLDS, pose_errors
from neural_mesh.machine.console import progress_bar
from neural_mesh.photographs.calibration import Calibration, calibrate
from neural_mesh.photographs.evidence import EVIDENCE
from neural_mesh.photographs.finder import PoseFinder
from neural_mesh.settings import FOREGROUND_RATIO
from neural_mesh.storage.checkpoints import Checkpoint
from neural_mesh.storage.layout import PreparedSet, read_list
from neural_mesh.storage.pictures import Photograph
from neural_mesh.storage.records import load_annotation
from neural_mesh.training.validation import hold_out

CALIBRATION_NOISE = 30.0  # grey levels of 255, at most
BOX_ERROR = 0.06  # of a side, at most, by which a box is off
WINDOW_MARGIN = (0.02, 0.4)  # of a side, around the object of a whole picture
COVERED_SHARES = ((0.0, 0.0), FOREGROUND_RATIO[1], FOREGROUND_RATIO[2])  # in turn
PATCH_CENTRES = 64  # places within the box that patches are drawn from
# What the images are to the network.
HELD_OUT = "held out from training"
OTHERS = "of a set not trained on"
TRAINED = "trained on"
UNKNOWN = "perhaps trained on"


@dataclass(frozen=True)
class CalibrationOptions:
    """What a calibration is made of.

    images: how many, drawn by the seed. patches: `true` or `false`, whether images are disturbed
    and partly covered; `auto`: unless they were surely not trained on. batch_size: images that are
    looked at together.
    """

    images: int = 400
    patches: str = "auto"
    seed: int = 0
    batch_size: int = 8


@dataclass(frozen=True)
class KnownPose:
    """A photograph, the box to look in (None: all of it), and the true angles [3] in radians."""

    photograph: Photograph
    box: NDArray[np.float64] | None
    truth: NDArray[np.float64]


def calibrate_finder(
    finder: PoseFinder, prepared: PreparedSet, options: CalibrationOptions
) -> Calibration:
    """Fit a map from evidence to confidence on images of a prepared set.

    Raises ValueError when the set has no images of the category, or they do not suffice.
    """
    checkpoint = finder.model.checkpoint
    category = checkpoint.config.category
    names = _prepared_names(prepared, checkpoint)
    data = prepared.fingerprint(category)
    names, origin = calibration_names(names, checkpoint, data)
    # A part of them, drawn by the seed.
    order = np.random.default_rng(options.seed).permutation(len(names))[: options.images]
    # On its own training images the network looks surer than it will be on others.
    disturb = options.patches == "true"
    if options.patches == "auto":
        disturb = origin in (TRAINED, UNKNOWN)
    drawn = [names[i] for i in order]
    images = calibration_images(prepared, category, drawn, disturb, options.seed)
    # Search them as photographs, and see which poses are right.
    evidence = []
    errors = []
    with progress_bar("calibration", len(drawn)) as bar:
        for first in range(0, len(drawn), options.batch_size):
            size = min(options.batch_size, len(drawn) - first)
            batch = [next(images) for _ in range(size)]
            poses = finder.find_all([(image.photograph, image.box) for image in batch])
            angles = [pose.pose.angles for pose in poses]
            errors.append(pose_errors(angles, [image.truth for image in batch]))
            evidence += [pose.evidence for pose in poses]
            bar.update(size)
    right = np.concatenate(errors) < THRESHOLDS["pi/6"]
    source = {"fingerprint": data, "images": origin, "patches": disturb, "seed": options.seed}
    return calibrate(evidence, right, EVIDENCE, finder.depends_on(), source, options.seed)


def _prepared_names(prepared: PreparedSet, checkpoint: Checkpoint) -> list[str]:
    """Names of the images that are prepared for the cuboids of a checkpoint."""
    category = checkpoint.config.category
    mesh_d = checkpoint.config.mesh_d
    names: set[str] = set()
    for path in sorted(prepared.vertex_lists(mesh_d, category).glob("mesh*.txt")):
        names |= set(read_list(path))
    if not names:
        raise ValueError(
            f"{prepared.root} has no prepared image of {category} for {mesh_d} cuboids; "
            "run PrepareData.sh first"
        )
    return sorted(names)


def calibration_names(names: list[str], checkpoint: Checkpoint, data: str) -> tuple[list[str], str]:
    """Which images of a prepared set to use, and what they are to the network.

    Where it was trained on this set: those that VALIDATE_EVERY held out, or else all.
    data: fingerprint of the set.
    """
    # Checkpoints of the reference, for one, do not say what they were trained on.
    if not data or not checkpoint.data:
        return names, UNKNOWN
    if data != checkpoint.data:
        return names, OTHERS
    config = checkpoint.config
    if not config.validate_every:
        return names, TRAINED
    # The training's own seed divides the images again as it did.
    _, held_out = hold_out([names], config.validation_share, config.seed)
    return held_out[0], HELD_OUT


def calibration_images(
    prepared: PreparedSet, category: str, names: Sequence[str], disturb: bool, seed: int
) -> Iterator[KnownPose]:
    """Prepared crops as photographs with known poses.

    Every other one comes in a box that is a little off, the others as whole pictures with more or
    less around the object. disturb: with other colours, noise, and patches of other crops over as
    much of the object as at the occlusion levels 0, 1 and 2 in turn: a network knows the pictures
    that it was trained on too well for its confidence in them to mean anything for others.
    """
    paths = [prepared.image(category, name) for name in names]
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        # Each image has random numbers of its own, whatever was done to the others.
        random = np.random.default_rng([seed, i])
        annotation = load_annotation(prepared.annotation(category, name))
        row0, row1, col0, col1 = annotation.box_obj[:4]
        box = np.array([col0, row0, col1, row1])
        pixels = read_crop(path, 1)
        if disturb:
            # Boxes and whole pictures take turns, so both get every share of occlusion.
            share = random.uniform(*COVERED_SHARES[i // 2 % len(COVERED_SHARES)])
            donor = read_crop(paths[int(random.integers(len(paths)))], 1)
            pixels = disturbed(pixels, donor, box, share, random)
        truth = annotation.pose.angles
        # Boxes of users and of detectors are never exact, and whole pictures show more or less.
        sides = np.tile(box[2:] - box[:2], 2)
        if i % 2:
            given = box + random.uniform(-BOX_ERROR, BOX_ERROR, 4) * sides
            yield KnownPose(_photograph(pixels), given, truth)
        else:
            window = box + random.uniform(*WINDOW_MARGIN, 4) * sides * [-1, -1, 1, 1]
            yield KnownPose(_photograph(_cut_window(pixels, window)), None, truth)


def _photograph(pixels: NDArray[np.uint8]) -> Photograph:
    return Photograph(pixels, pixels.shape[:2])


def _cut_window(pixels: NDArray[np.uint8], window: NDArray) -> NDArray[np.uint8]:
    """The part of a picture [H, W, 3] that lies in a window (x0, y0, x1, y1)."""
    height, width = pixels.shape[:2]
    corners = np.clip(window, 0, [width, height, width, height]).astype(int)
    left, top, right, bottom = corners
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def disturbed(
    pixels: NDArray[np.uint8],
    donor: NDArray[np.uint8],
    box: NDArray,
    covered: float,
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """A crop [H, W, 3] with other colours, noise, and patches of another crop, the donor.

    covered: share of the object's box that the patches hide at least.
    """
    noise = random.standard_normal(pixels.shape) * random.uniform(0, CALIBRATION_NOISE)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    image = _channels_first(noisy)
    patches = _channels_first(donor)
    x0, y0, x1, y1 = box.astype(int)
    rows = random.uniform(y0, y1, PATCH_CENTRES)
    columns = random.uniform(x0, x1, PATCH_CENTRES)
    inside_rc = np.stack([rows, columns], 1)
    # Patch after patch, until enough of the box is hidden.
    hidden = torch.zeros(pixels.shape[:2], dtype=torch.bool)
    while float(hidden[y0:y1, x0:x1].float().mean()) < covered:
        image, pasted = paste_patches(image, patches, inside_rc, random)
        hidden |= pasted
    # Colours change last, so that the patches do not stand out by theirs.
    return change_colour(image, random).permute(1, 2, 0).numpy()


def _channels_first(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
