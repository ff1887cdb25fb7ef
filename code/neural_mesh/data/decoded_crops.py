"""Decoded crops of a training set, kept in memory or on disk, so that each is decoded once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from neural_mesh.data.crops import map_size, read_crop
from neural_mesh.digests import short_digest
from neural_mesh.settings import FEATURE_STRIDE, TrainConfig
from neural_mesh.storage.files import reserve
from neural_mesh.storage.layout import PreparedSet

CACHES = ("memory", "disk")  # where decoded crops are kept
MOST_WORKERS = 64  # that can say what they are at


def decoded_shape(names: Sequence[str], config: TrainConfig) -> tuple[int, int, int, int]:
    """(B, 3, H, W) of the decoded crops of a category, in pixels."""
    height, width = map_size(config.category, config.image_scale)
    return len(names), 3, height * FEATURE_STRIDE, width * FEATURE_STRIDE


def decoded_file(prepared: PreparedSet, names: Sequence[str], config: TrainConfig) -> Path:
    """Where IMAGE_CACHE=disk keeps the decoded crops of these images."""
    shape = decoded_shape(names, config)
    described = "\n".join([prepared.fingerprint(config.category), str(shape), *names])
    return prepared.decoded(config.category) / f"{short_digest(described.encode())}.uint8"


class DecodedCrops:
    """Crops by index, as uint8 [3, H, W]; each is decoded when it is first asked for.

    Worker processes share the crops and say what they are at, so that the file that ends one can be
    named.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        image_scale: float,
        crops: Tensor,
        is_decoded: Tensor,
        shared: bool = True,
    ):
        """crops: room for uint8 [B, 3, H, W]. is_decoded: bool [B], which of them are there.

        shared: worker processes will read them.
        """
        self.paths = list(paths)
        self.image_scale = image_scale
        self.crops = crops
        self.is_decoded = is_decoded
        # Of each worker process, 1 + index of the crop that it decodes; 0: none.
        self.in_work = torch.zeros(MOST_WORKERS, dtype=torch.int64)
        if shared:
            self.in_work.share_memory_()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if not self.is_decoded[index]:
            self.in_work[_worker()] = index + 1
            self.crops[index] = self._decode(self.paths[index])
            # Only now: other processes read the same memory.
            self.is_decoded[index] = True
            self.in_work[_worker()] = 0
        return self.crops[index]

    def _decode(self, path: Path) -> Tensor:
        pixels = read_crop(path, self.image_scale).copy()
        crop = torch.from_numpy(pixels).permute(2, 0, 1)
        expected = self.crops.shape[1:]
        if crop.shape != expected:
            raise ValueError(f"{path} is {tuple(crop.shape[1:])}, expected {tuple(expected[1:])}")
        return crop

    def paths_in_work(self) -> list[Path]:
        """The crops that worker processes are decoding."""
        return [self.paths[index - 1] for index in self.in_work.tolist() if index]


def _worker() -> int:
    info = get_worker_info()
    return 0 if info is None else info.id % MOST_WORKERS


def make_room(
    prepared: PreparedSet, names: Sequence[str], config: TrainConfig, cache: str, shared: bool
) -> DecodedCrops:
    """Room for the decoded crops of these images.

    `memory`, shared with worker processes, or `disk`.

    disk: one file that all processes of the machine map, later trainings included; it holds uint8
    crops, then a byte per crop that says whether it is there. Preparing the data again removes it.
    """
    if cache not in CACHES:
        raise ValueError(f"IMAGE_CACHE is {cache!r}, it can be {' or '.join(CACHES)}")
    paths = [prepared.image(config.category, name) for name in names]
    shape = decoded_shape(names, config)
    if cache == "disk" and names:
        crops, is_decoded = _map_file(decoded_file(prepared, names, config), shape)
    else:
        crops = torch.zeros(shape, dtype=torch.uint8)
        is_decoded = torch.zeros(len(names), dtype=torch.bool)
        # Processes that are started later see what any of them has decoded.
        if shared:
            crops.share_memory_()
            is_decoded.share_memory_()
    return DecodedCrops(paths, config.image_scale, crops, is_decoded, shared)


def _map_file(path: Path, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Crops uint8 [B, 3, H, W] and which of them are there, bool [B], as they lie in a file."""
    images = shape[0]
    crops_bytes = math.prod(shape)
    # The place is taken before it is mapped: a disk that is full later would end the process.
    reserve(path, crops_bytes + images)
    stored = torch.from_file(str(path), shared=True, size=crops_bytes + images, dtype=torch.uint8)
    return stored[:crops_bytes].view(shape), stored[crops_bytes:].view(torch.bool)
