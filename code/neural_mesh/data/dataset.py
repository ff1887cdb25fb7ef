"""Prepared crops as tensors, for training and for inference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.transforms.v2 import functional as image_functional

from neural_mesh.categories import category_settings
from neural_mesh.digests import short_digest
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine.distributed import Group, share
from neural_mesh.machine.workers import process_died
from neural_mesh.network.backbone import cells_of
from neural_mesh.settings import FEATURE_STRIDE, IMAGENET_MEAN, IMAGENET_STD, TrainConfig
from neural_mesh.storage.files import reserve
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.pictures import read_picture
from neural_mesh.storage.records import Annotation, VertexAnnotation, load_annotation

AUGMENTATIONS = ("flip", "color", "occlude")
CACHES = ("memory", "disk")  # where decoded crops are kept
MOST_WORKERS = 64  # whose whereabouts are known
MOST_PATCHES = 3  # of `occlude`
PATCH_SIDE = (0.15, 0.5)  # share of the visible vertices' extent, per axis


def read_crop(path: Path, image_scale: float) -> NDArray[np.uint8]:
    """A prepared crop as RGB [H, W, 3], at full or at half resolution (averaged)."""
    image = Image.fromarray(read_picture(path, "RGB"))
    if image_scale == 0.5:
        image = image.reduce(2)
    elif image_scale != 1:
        raise ValueError(f"IMAGE_SCALE is {image_scale}, it can be 1 or 0.5")
    return np.asarray(image)


def map_size(category: str, image_scale: float) -> tuple[int, int]:
    """(height, width) of the feature map of a category's crops, in cells."""
    height, width = category_settings(category).crop_hw
    return int(height * image_scale) // FEATURE_STRIDE, int(width * image_scale) // FEATURE_STRIDE


def decoded_shape(names: Sequence[str], config: TrainConfig) -> tuple[int, int, int, int]:
    """(B, 3, H, W) of the decoded crops of a category, in pixels."""
    height, width = map_size(config.category, config.image_scale)
    return len(names), 3, height * FEATURE_STRIDE, width * FEATURE_STRIDE


def decoded_file(prepared: PreparedSet, names: Sequence[str], config: TrainConfig) -> Path:
    """Where IMAGE_CACHE=disk keeps the decoded crops of these images."""
    described = "\n".join(
        [prepared.fingerprint(config.category), str(decoded_shape(names, config)), *names]
    )
    return prepared.decoded(config.category) / f"{short_digest(described.encode())}.uint8"


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float with ImageNet's mean and deviation."""
    mean, deviation = _statistics(images.device)
    return (images.float() / 255).sub_(mean).div_(deviation)


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and deviation [3, 1, 1], kept on the device: a GPU waits for what is sent to it with every batch."""
    return tuple(
        torch.tensor(values, device=device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )


@dataclass(frozen=True)
class Sample:
    """One training image. image uint8 [3, H, W]; positions [V, 2] (row, col); visible [V]; noise cells [n]."""

    image: Tensor
    positions: Tensor
    visible: Tensor
    noise_cells: Tensor

    def pin_memory(self) -> Sample:
        """The same in memory that a GPU can copy from by itself; DataLoader calls this."""
        return Sample(*(getattr(self, name).pin_memory() for name in SAMPLE_FIELDS))


SAMPLE_FIELDS = ("image", "positions", "visible", "noise_cells")


class TrainingImages(Dataset):
    """Crops of one mesh with their vertices; a sample is asked for as (epoch, index).

    What is random about a sample (clutter cells, augmentation) depends on (seed, epoch, index) alone, so neither the
    number of workers or processes nor a resumed run changes it.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        names: Sequence[str],
        mesh: Mesh,
        config: TrainConfig,
        shared: bool = False,
        cache: str = "memory",
    ):
        """shared: worker processes will read it. cache: where decoded crops are kept, see `_keep_decoded`."""
        unknown = set(config.augment) - set(AUGMENTATIONS)
        if unknown:
            raise ValueError(
                f"AUGMENT names {', '.join(sorted(unknown))}, it can be {' '.join(AUGMENTATIONS)}"
            )
        self.paths = [prepared.image(config.category, name) for name in names]
        self.config = config
        self.map_hw = map_size(config.category, config.image_scale)
        annotations = [
            load_annotation(
                prepared.vertex_annotation(config.mesh_d, config.category, name), VertexAnnotation
            )
            for name in names
        ]
        for name, annotation in zip(names, annotations, strict=True):
            if len(annotation.visible) != len(mesh.vertices):
                raise ValueError(
                    f"{name} is annotated with {len(annotation.visible)} vertices, the mesh has {len(mesh.vertices)}; "
                    "run PrepareData.sh with OVERWRITE=true"
                )
        vertices = len(mesh.vertices)
        self.vertices = _as_tensors(
            [(a.cropped_kp_list, a.visible) for a in annotations], vertices, config.image_scale
        )
        if "flip" in config.augment:
            mirrored = [mirror(a).vertices_in_crop(mesh) for a in annotations]
            self.mirrored_vertices = _as_tensors(mirrored, vertices, config.image_scale)
        self.decoding = torch.zeros(
            MOST_WORKERS, dtype=torch.int64
        ).share_memory_()  # 1 + index of what each worker is at
        self._keep_decoded(prepared, names, cache, shared)

    def _keep_decoded(
        self, prepared: PreparedSet, names: Sequence[str], cache: str, shared: bool
    ) -> None:
        """Room for decoded crops: `memory`, shared with worker processes, or `disk`.

        disk: one file that all processes of the machine map, later trainings included; it holds uint8 crops, then a
        byte per crop that says whether it is there. Preparing the data again removes it.
        """
        if cache not in CACHES:
            raise ValueError(f"IMAGE_CACHE is {cache!r}, it can be {' or '.join(CACHES)}")
        shape = decoded_shape(names, self.config)
        if cache == "disk" and names:
            path = decoded_file(prepared, names, self.config)
            crops = math.prod(shape)
            reserve(path, crops + len(names))
            stored = torch.from_file(
                str(path), shared=True, size=crops + len(names), dtype=torch.uint8
            )
            self.images, self.decoded = stored[:crops].view(shape), stored[crops:].view(torch.bool)
            return
        self.images = torch.zeros(shape, dtype=torch.uint8)
        self.decoded = torch.zeros(len(names), dtype=torch.bool)
        if shared:
            self.images.share_memory_()
            self.decoded.share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, which: tuple[int, int]) -> Sample:
        epoch, index = which
        random = np.random.default_rng([self.config.seed, epoch, index])
        image, positions, visible = self.original(index)
        if "flip" in self.config.augment and random.random() < 0.5:
            image, (positions, visible) = (
                image.flip(-1),
                (part[index] for part in self.mirrored_vertices),
            )
        if "color" in self.config.augment:
            image = change_colour(image, random)
        covered = None
        if "occlude" in self.config.augment and visible.any():
            donor = self._image(int(random.integers(len(self))))
            image, covered = paste_patches(image, donor, positions[visible].numpy(), random)
            rows, cols = positions.long().unbind(-1)
            visible = visible & ~covered[rows, cols]
        return Sample(image, positions, visible, self._noise_cells(positions, covered, random))

    def original(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image, positions and visibility of a sample as they were prepared."""
        positions, visible = (part[index] for part in self.vertices)
        return self._image(index), positions, visible

    def _image(self, index: int) -> Tensor:
        if not self.decoded[index]:
            self.decoding[_worker()] = index + 1
            crop = torch.from_numpy(
                read_crop(self.paths[index], self.config.image_scale).copy()
            ).permute(2, 0, 1)
            if crop.shape != self.images.shape[1:]:
                raise ValueError(
                    f"{self.paths[index]} is {tuple(crop.shape[1:])}, expected {tuple(self.images.shape[2:])}"
                )
            self.images[index] = crop
            self.decoded[index] = True
            self.decoding[_worker()] = 0
        return self.images[index]

    def _noise_cells(
        self, positions: Tensor, covered: Tensor | None, random: np.random.Generator
    ) -> Tensor:
        """Cells, anywhere in the map, into which no vertex falls, seen or not (reference), and cells of pasted patches.

        All different where there are enough of them; the reference stops with an error where there are not.
        """
        wanted = self.config.num_clutter_image
        free = np.ones(self.map_hw[0] * self.map_hw[1], bool)
        free[cells_of(positions, self.map_hw).numpy()] = False
        if covered is not None:
            cells = (
                covered.float()
                .reshape(self.map_hw[0], FEATURE_STRIDE, self.map_hw[1], FEATURE_STRIDE)
                .mean((1, 3))
            )
            free |= (cells == 1).flatten().numpy()
        candidates = np.flatnonzero(free) if free.any() else np.arange(len(free))
        return torch.from_numpy(random.choice(candidates, wanted, replace=len(candidates) < wanted))


def _worker() -> int:
    info = get_worker_info()
    return 0 if info is None else info.id % MOST_WORKERS


def batches(loader: DataLoader) -> Iterator[Sample]:
    """The batches of a loader of TrainingImages; ValueError, naming the file, when one cannot be read or a worker dies."""
    try:
        yield from loader
    except (
        ValueError,
        OSError,
    ) as error:  # of a worker process its text is a traceback, which ends in the message
        raise ValueError(
            str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        dataset = loader.dataset
        at = " or ".join(
            str(dataset.paths[index - 1]) for index in dataset.decoding.tolist() if index
        )
        raise process_died(
            "a decoding process", f"at {at or 'no image'}", ", or set WORKERS=0"
        ) from error


def _as_tensors(
    annotated: list[tuple[NDArray, NDArray]], vertices: int, image_scale: float
) -> tuple[Tensor, Tensor]:
    """Positions [B, V, 2] and visibility [B, V] of the `vertices` vertices of B images, of which there may be none."""
    positions = np.array([points for points, _ in annotated], np.float32).reshape(
        -1, vertices, 2
    ) * np.float32(image_scale)
    return torch.from_numpy(positions), torch.from_numpy(
        np.array([seen for _, seen in annotated], bool).reshape(-1, vertices)
    )


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples into a batch [B, ...]."""
    return Sample(
        *(torch.stack([getattr(sample, name) for sample in samples]) for name in SAMPLE_FIELDS)
    )


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), shuffled by (seed, epoch) alone, of which this process gets its share.

    In the order of the ranks the shares are the batch of a single process. A process for which the last batch has no
    image gets the first one, so that it takes part in every exchange; `counts` says that it does not count.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, size: int = 1):
        self.length, self.batch_size, self.seed, self.rank, self.size = (
            length,
            batch_size,
            seed,
            rank,
            size,
        )
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def counts(self, batch: int) -> list[int]:
        """How many images of a batch each process has."""
        images = range(min(self.batch_size, self.length - batch * self.batch_size))
        return [len(share(images, rank, self.size)) for rank in range(self.size)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = [
            (self.epoch, index)
            for index in torch.randperm(self.length, generator=generator).tolist()
        ]
        for first in range(0, self.length, self.batch_size):
            batch = order[first : first + self.batch_size]
            yield share(batch, self.rank, self.size) or batch[:1]


def make_loader(dataset: TrainingImages, group: Group, workers: int, pinned: bool) -> DataLoader:
    """Batches of a data set; worker processes live as long as the loader does."""
    config = dataset.config
    batches = EpochBatches(len(dataset), config.batch_size, config.seed, group.rank, group.size)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pinned,
        persistent_workers=workers > 0,
    )


def mirror(annotation: Annotation) -> Annotation:
    """The annotation of the left-right mirrored image of an object that is symmetric about x = 0."""
    x0, y0, x1, y1 = annotation.bbox
    low, high = annotation.box_ori[2:4]
    box_ori = annotation.box_ori.copy()
    box_ori[2:4] = annotation.width - high, annotation.width - low
    x, y = annotation.pose.principal_xy
    pose = replace(
        annotation.pose,
        azimuth=-annotation.pose.azimuth,
        theta=-annotation.pose.theta,
        principal_xy=np.array([annotation.width - x, y]),
    )
    return replace(
        annotation,
        pose=pose,
        bbox=np.array([annotation.width - x1, y0, annotation.width - x0, y1]),
        box_ori=box_ori,
        geometry="exact",  # the mirrored crop is the crop of the mirrored image up to the reference's truncations
    )


def change_colour(image: Tensor, random: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation by factors 0.6 .. 1.4 of a uint8 image [3, H, W]."""
    image = image_functional.adjust_brightness(image, random.uniform(0.6, 1.4))
    image = image_functional.adjust_contrast(image, random.uniform(0.6, 1.4))
    return image_functional.adjust_saturation(image, random.uniform(0.6, 1.4))


def paste_patches(
    image: Tensor, donor: Tensor, around_rc: NDArray, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cover parts of an image [3, H, W] with elliptic patches of another one; also which pixels they cover [H, W].

    around_rc [N, 2]: points (row, col) to cover, one of which is the centre of each patch.
    """
    height, width = image.shape[1:]
    rows, cols = torch.arange(height)[:, None], torch.arange(width)[None]
    extent = np.maximum(around_rc.max(0) - around_rc.min(0), FEATURE_STRIDE)
    covered = torch.zeros(height, width, dtype=torch.bool)
    for _ in range(int(random.integers(MOST_PATCHES + 1))):
        centre = around_rc[random.integers(len(around_rc))]
        radius = np.maximum(extent * random.uniform(*PATCH_SIDE, 2) / 2, FEATURE_STRIDE / 2)
        covered |= ((rows - centre[0]) / radius[0]) ** 2 + (
            (cols - centre[1]) / radius[1]
        ) ** 2 <= 1
    moved = donor.roll((int(random.integers(height)), int(random.integers(width))), (1, 2))
    return torch.where(covered, moved, image), covered


class TestImages(Dataset):
    """Crops for inference: uint8 [3, H, W], or a message for an image that cannot be read."""

    def __init__(self, paths: Sequence[Path], map_hw: tuple[int, int], image_scale: float):
        self.paths, self.image_scale = list(paths), image_scale
        self.expected = map_hw[0] * FEATURE_STRIDE, map_hw[1] * FEATURE_STRIDE

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            crop = read_crop(self.paths[index], self.image_scale)
        except (OSError, ValueError) as error:
            return str(error)
        if crop.shape[:2] != self.expected:
            return f"{self.paths[index]}: {crop.shape[:2]}, expected {self.expected}"
        return torch.from_numpy(crop.copy()).permute(2, 0, 1)
