"""Prepared crops as tensors, for training and for inference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from neural_mesh.data.augmentation import AUGMENTATIONS, change_colour, mirror, paste_patches, shift
from neural_mesh.data.crops import map_size, read_crop
from neural_mesh.data.decoded_crops import make_room
from neural_mesh.data.occluders import NO_DONORS, Donors, paste_occluders, strip_beside
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.network.backbone import cells_of
from neural_mesh.settings import (
    FEATURE_STRIDE,
    IMAGENET_STATISTICS,
    InputStatistics,
    TrainConfig,
)
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import VertexAnnotation, load_annotation


def normalise(images: Tensor, statistics: InputStatistics = IMAGENET_STATISTICS) -> Tensor:
    """uint8 [B, 3, H, W] -> float, scaled as a network wants it."""
    mean, deviation = _statistics(images.device, statistics)
    return (images.float() / 255).sub_(mean).div_(deviation)


@lru_cache
def _statistics(device: torch.device, statistics: InputStatistics) -> tuple[Tensor, Tensor]:
    """Mean and deviation [3, 1, 1].

    They are kept on the device: a GPU waits for what is sent to it with every batch.
    """
    mean = torch.tensor(statistics.mean, device=device)
    deviation = torch.tensor(statistics.std, device=device)
    return mean[:, None, None], deviation[:, None, None]


class TrainingSample(NamedTuple):
    """One training image, or a batch of them [B, ...], which is what a loader makes of them."""

    image: Tensor  # uint8 [3, H, W]
    positions: Tensor  # [V, 2] of the vertices, (row, col)
    visible: Tensor  # bool [V]
    noise_cells: Tensor  # [n] of the feature map, in which there is clutter


class _Vertices(NamedTuple):
    """Where the vertices fall in all images [B, V, 2], and which of them are seen [B, V]."""

    positions: Tensor
    visible: Tensor

    def of_image(self, index: int) -> tuple[Tensor, Tensor]:
        return self.positions[index], self.visible[index]


class TrainingImages(Dataset):
    """Crops of one mesh with their vertices; a sample is asked for as (epoch, index).

    What is random about a sample (clutter cells, augmentation) depends on (seed, epoch, index)
    alone, so neither the number of workers or processes nor a resumed run changes it.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        names: Sequence[str],
        mesh: Mesh,
        config: TrainConfig,
        shared: bool = False,
        cache: str = "memory",
        donors: Donors = NO_DONORS,
    ):
        """shared: worker processes will read it. cache: where decoded crops are kept.

        donors: the user's pictures of which occluders are made, see `make_room` for the rest.
        """
        unknown = set(config.augment) - set(AUGMENTATIONS)
        if unknown:
            raise ValueError(
                f"AUGMENT names {', '.join(sorted(unknown))}, it can be {' '.join(AUGMENTATIONS)}"
            )
        self.config = config
        self.donors = donors
        self.map_hw = map_size(config.category, config.image_scale)
        annotations = _annotations(prepared, names, mesh, config)
        of_vertices = [(a.cropped_kp_list, a.visible) for a in annotations]
        self.vertices = _as_tensors(of_vertices, len(mesh.vertices), config.image_scale)
        if "flip" in config.augment:
            # A mirrored image shows the object from another side, so vertices are seen anew.
            mirrored = [mirror(a).vertices_in_crop(mesh) for a in annotations]
            self.mirrored_vertices = _as_tensors(mirrored, len(mesh.vertices), config.image_scale)
        self.crops = make_room(prepared, names, config, cache, shared)

    @property
    def paths(self) -> list[Path]:
        """Files of the crops."""
        return self.crops.paths

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> TrainingSample:
        epoch, index = epoch_and_index
        random = np.random.default_rng([self.config.seed, epoch, index])
        augment = self.config.augment
        # The order of these draws is part of what a seed means: another one is another training.
        image, positions, visible = self.original(index)
        if "flip" in augment and random.random() < 0.5:
            image = image.flip(-1)
            positions, visible = self.mirrored_vertices.of_image(index)
        if "shift" in augment:
            image, positions, on_image = shift(image, positions, random)
            visible = visible & on_image
        if "color" in augment:
            image = change_colour(image, random)
        covered = None
        if "occlude" in augment and visible.any():
            image, covered = self._occlude(image, positions[visible], random)
            rows, cols = _pixels(positions, image)
            visible = visible & ~covered[rows, cols]
        noise_cells = self._noise_cells(positions, covered, random)
        return TrainingSample(image, positions, visible, noise_cells)

    def _occlude(
        self, image: Tensor, around_rc: Tensor, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cover parts of an image, as `paste_patches` or `paste_occluders` do."""
        if self.config.occluders == "patches":
            donor = self.crops[int(random.integers(len(self)))]
            return paste_patches(image, donor, around_rc.numpy(), random)
        pasted, covered = paste_occluders(
            image.permute(1, 2, 0).numpy(),
            around_rc.numpy(),
            [self._piece_of_background, *self.donors.pieces],
            self.donors.cutouts,
            random,
        )
        return torch.from_numpy(pasted).permute(2, 0, 1), torch.from_numpy(covered)

    def _piece_of_background(self, random: np.random.Generator) -> NDArray[np.uint8] | None:
        """The largest strip of a training image beside its object, which it must not show."""
        index = int(random.integers(len(self)))
        crop = self.crops[index]
        return strip_beside(crop.permute(1, 2, 0).numpy(), self.vertices.positions[index].numpy())

    def original(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image, positions and visibility of a sample as they were prepared."""
        positions, visible = self.vertices.of_image(index)
        return self.crops[index], positions, visible

    def _noise_cells(
        self, positions: Tensor, covered: Tensor | None, random: np.random.Generator
    ) -> Tensor:
        """Cells, anywhere in the map, that show clutter.

        No vertex falls into them, seen or not (reference), or a pasted patch covers them. All
        different where there are enough of them; the reference stops with an error where there are
        not.
        """
        height, width = self.map_hw
        free = np.ones(height * width, bool)
        free[cells_of(positions, self.map_hw).numpy()] = False
        if covered is not None:
            cells = covered.float().reshape(height, FEATURE_STRIDE, width, FEATURE_STRIDE)
            free |= (cells.mean((1, 3)) == 1).flatten().numpy()
        # An object that fills the map leaves no cell free; then any will do.
        candidates = np.flatnonzero(free) if free.any() else np.arange(len(free))
        number = self.config.num_clutter_image
        chosen = random.choice(candidates, number, replace=len(candidates) < number)
        return torch.from_numpy(chosen)


def _pixels(positions_rc: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pixels that points fall into, or of the nearest ones."""
    rows, cols = positions_rc.long().unbind(-1)
    return rows.clamp(0, image.shape[1] - 1), cols.clamp(0, image.shape[2] - 1)


def _annotations(
    prepared: PreparedSet, names: Sequence[str], mesh: Mesh, config: TrainConfig
) -> list[VertexAnnotation]:
    """Annotations of images with a mesh's vertices; ValueError when they are another mesh's."""
    annotations = []
    for name in names:
        path = prepared.vertex_annotation(config.mesh_d, config.category, name)
        annotations.append(load_annotation(path, VertexAnnotation))
    for name, annotation in zip(names, annotations, strict=True):
        if len(annotation.visible) != len(mesh.vertices):
            raise ValueError(
                f"{name} is annotated with {len(annotation.visible)} vertices, "
                f"the mesh has {len(mesh.vertices)}; run PrepareData.sh with OVERWRITE=true"
            )
    return annotations


def _as_tensors(
    annotated: Sequence[tuple[NDArray, NDArray]], vertices: int, image_scale: float
) -> _Vertices:
    """Positions [V, 2] and visibility [V] of the `vertices` vertices of B images, B >= 0."""
    # The last two axes are told, since there may be no image.
    positions = np.array([points for points, _ in annotated], np.float32)
    positions = positions.reshape(-1, vertices, 2) * np.float32(image_scale)
    visible = np.array([seen for _, seen in annotated], bool).reshape(-1, vertices)
    return _Vertices(torch.from_numpy(positions), torch.from_numpy(visible))


class TestImages(Dataset):
    """Crops for inference: uint8 [3, H, W], or a message for an image that cannot be read."""

    def __init__(self, paths: Sequence[Path], map_hw: tuple[int, int], image_scale: float):
        self.paths = list(paths)
        self.image_scale = image_scale
        self.crop_hw = (map_hw[0] * FEATURE_STRIDE, map_hw[1] * FEATURE_STRIDE)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        path = self.paths[index]
        try:
            crop = read_crop(path, self.image_scale)
        except (OSError, ValueError) as error:
            # One broken image does not end an inference.
            return str(error)
        if crop.shape[:2] != self.crop_hw:
            return f"{path}: {crop.shape[:2]}, expected {self.crop_hw}"
        return torch.from_numpy(crop.copy()).permute(2, 0, 1)
