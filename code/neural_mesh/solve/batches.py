"""Which test images are compared with which mesh, and their feature maps batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neural_mesh.data.dataset import TestImages
from neural_mesh.data.loading import decoded, decoding_loader
from neural_mesh.machine.resources import BATCHES_AHEAD, workers_with_room
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.model import Model
from neural_mesh.storage.layout import PreparedSet, read_list
from neural_mesh.storage.results import FeatureSet

ANY_MESH = 0  # stands for all meshes of a category where numbers start at 1


@dataclass(frozen=True)
class PreparedSubset:
    """The test images of a category at an occlusion level. names: by mesh, see `names_by_mesh`."""

    prepared: PreparedSet
    level: str
    names: dict[int, list[str]]


class Batch(NamedTuple):
    """Names of images that are compared with the same mesh."""

    mesh: int
    names: list[str]


class DecodedBatch(NamedTuple):
    """The pictures [B, 3, H, W] of a batch, uint8, None where there is none; names: of these.

    messages: of the pictures that cannot be read.
    """

    mesh: int
    names: list[str]
    images: Tensor | None
    messages: list[str]


class FeatureBatch(NamedTuple):
    """Feature maps [B, C, H, W] of a batch, None where it is empty.

    messages: of the images that were left out.
    """

    mesh: int
    names: list[str]
    features: Tensor | None
    messages: list[str]


def names_by_mesh(
    prepared: PreparedSet, mesh_d: str, subset: str, meshes: int, subtype: str = SolveConfig.subtype
) -> dict[int, list[str]]:
    """Which test images are compared with which mesh, from the lists.

    With several meshes: subtype `annotated`, the mesh of the annotated CAD model (paper);
    `predicted`, all meshes, which is written as mesh 0.
    """
    if subtype not in ("annotated", "predicted"):
        raise ValueError(f"SUBTYPE is {subtype!r}, it can be annotated or predicted")
    lists = {number: prepared.mesh_list(mesh_d, subset, number) for number in range(1, meshes + 1)}
    # Later lists may be missing: no image has that subtype.
    if not lists[1].is_file():
        protocol = ", and with the same AZIMUTH_SELECTION" if prepared.azimuths else ""
        raise FileNotFoundError(
            f"no list of test images: {lists[1]}; run PrepareData.sh first "
            f"(for an occlusion level with ENABLE_OCCLUDED=true{protocol}), "
            "unless the data set has training images alone, on which nothing can be tested"
        )
    names = {number: read_list(path) if path.is_file() else [] for number, path in lists.items()}
    # All meshes will be tried on every image.
    if subtype == "predicted" and meshes > 1:
        return {ANY_MESH: sorted(name for group in names.values() for name in group)}
    return names


def split_into_batches(names: Mapping[int, Sequence[str]], size: int) -> list[Batch]:
    """Batches of at most `size` images, none of them with two meshes. names: by mesh."""
    batches = []
    for mesh, group in names.items():
        for first in range(0, len(group), size):
            batches.append(Batch(mesh, list(group[first : first + size])))
    return batches


def read_batches(
    prepared: PreparedSet, subset: str, batches: Sequence[Batch], model: Model, workers: int
) -> Iterator[DecodedBatch]:
    """Decode the prepared crops of batches ahead of time, in `workers` processes, none for 0.

    Fewer, with a note, where shared memory has no room for what so many hand over. Raises
    ValueError, saying where, when one of the processes dies or stalls.
    """
    if not batches:
        return
    # The loader counts images through all batches.
    paths = [prepared.image(subset, name) for _, names in batches for name in names]
    dataset = TestImages(paths, model.map_hw, model.checkpoint.config.image_scale)
    sizes = [len(names) for _, names in batches]
    borders = np.cumsum([0, *sizes])
    indices = [list(range(a, b)) for a, b in zip(borders[:-1], borders[1:], strict=True)]
    workers = workers_with_room(workers, max(sizes) * 3 * math.prod(dataset.crop_hw))
    loader = decoding_loader(dataset, indices, _stack_readable, workers)
    handed_out = 0

    def at_work() -> str:
        # Every worker has up to two batches in hand.
        in_hand = batches[handed_out : handed_out + BATCHES_AHEAD * workers]
        count = sum(len(names) for _, names in in_hand)
        _, first_names = in_hand[0]
        return f"among the {count} images from {prepared.image(subset, first_names[0])} on"

    of_loader = decoded(loader, at_work)
    for (mesh, names), (images, messages) in zip(batches, of_loader, strict=True):
        handed_out += 1
        readable = [name for name, text in zip(names, messages, strict=True) if not text]
        unreadable = [text for text in messages if text]
        yield DecodedBatch(mesh, readable, images, unreadable)


def _stack_readable(samples: list[Tensor | str]) -> tuple[Tensor | None, list[str]]:
    """The pictures of TestImages in one tensor, which is what a process can hand over at once.

    Also of each sample why it cannot be read, or nothing.
    """
    pictures = [sample for sample in samples if not isinstance(sample, str)]
    messages = [sample if isinstance(sample, str) else "" for sample in samples]
    return (torch.stack(pictures) if pictures else None), messages


def features_of_images(
    prepared: PreparedSet, subset: str, batches: Sequence[Batch], model: Model, workers: int
) -> Iterator[FeatureBatch]:
    """Feature maps of prepared crops, batch by batch, without the images that cannot be read.

    Raises as `read_batches`.
    """
    for mesh, names, images, messages in read_batches(prepared, subset, batches, model, workers):
        features = None if images is None else model.features(images)
        yield FeatureBatch(mesh, names, features, messages)


def stored_features(
    stored: FeatureSet, batches: Sequence[Batch], device: torch.device
) -> Iterator[FeatureBatch]:
    """Feature maps from a file, batch by batch, without the images that it lacks."""
    for mesh, names in batches:
        kept = [name for name in names if name in stored.maps]
        messages = [
            f"{name}: no feature map was saved" for name in names if name not in stored.maps
        ]
        features = None
        if kept:
            features = torch.from_numpy(np.stack([stored.maps[name] for name in kept])).to(device)
        yield FeatureBatch(mesh, kept, features, messages)
