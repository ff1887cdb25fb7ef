"""Which test images are compared with which mesh, and their feature maps batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from neural_mesh.data.dataset import TestImages
from neural_mesh.machine.workers import process_died
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
    """A batch with its pictures: uint8 [3, H, W] each, or a message for one that cannot be read."""

    mesh: int
    names: list[str]
    images: list[Tensor | str]


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
            f"(for an occlusion level with ENABLE_OCCLUDED=true{protocol})"
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

    Raises ValueError, saying where, when one of the processes dies.
    """
    if not batches:
        return
    # The loader counts images through all batches.
    paths = [prepared.image(subset, name) for _, names in batches for name in names]
    dataset = TestImages(paths, model.map_hw, model.checkpoint.config.image_scale)
    borders = np.cumsum([0] + [len(names) for _, names in batches])
    indices = [list(range(a, b)) for a, b in zip(borders[:-1], borders[1:], strict=True)]
    loader = DataLoader(dataset, batch_sampler=indices, num_workers=workers, collate_fn=list)
    handed_out = 0
    try:
        for (mesh, names), images in zip(batches, loader, strict=True):
            handed_out += 1
            yield DecodedBatch(mesh, names, images)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # Every worker has up to two batches in hand.
        at_work = batches[handed_out : handed_out + 2 * workers]
        count = sum(len(names) for _, names in at_work)
        _, first_names = at_work[0]
        first = prepared.image(subset, first_names[0])
        raise process_died(
            "a decoding process", f"among the {count} images from {first} on"
        ) from error


def features_of_images(
    prepared: PreparedSet, subset: str, batches: Sequence[Batch], model: Model, workers: int
) -> Iterator[FeatureBatch]:
    """Feature maps of prepared crops, batch by batch, without the images that cannot be read.

    Raises as `read_batches`.
    """
    for mesh, names, images in read_batches(prepared, subset, batches, model, workers):
        messages = [image for image in images if isinstance(image, str)]
        pictures = [image for image in images if not isinstance(image, str)]
        readable = [
            name for name, image in zip(names, images, strict=True) if not isinstance(image, str)
        ]
        features = model.features(torch.stack(pictures)) if pictures else None
        yield FeatureBatch(mesh, readable, features, messages)


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
