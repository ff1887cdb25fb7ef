"""Room in memory and on disk: asked for before a training starts, and what to do without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from neural_mesh.data.dataset import TrainingSample
from neural_mesh.data.decoded_crops import decoded_file, decoded_shape
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine.distributed import Group
from neural_mesh.machine.resources import (
    require_disk,
    require_memory,
    require_shared_memory,
    workers_with_room,
)
from neural_mesh.network.backbone import FeatureNet
from neural_mesh.settings import TrainConfig
from neural_mesh.storage.files import can_be_written
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.training.step import EpochTally, Learner, MeshBatch

BYTES_OF_A_VERTEX = 9  # in a sample: its position and whether it is seen
BYTES_OF_A_BLOCK = 512  # of a file, as stat counts them
# Files as large as the weights: weights, gradients and Adam's two moments of a state, twice while
# it is replaced, and a checkpoint.
FILES_OF_WEIGHTS = 9


def require_room_for_crops(
    prepared: PreparedSet,
    names: Sequence[Sequence[str]],
    config: TrainConfig,
    cache: str,
    workers: int,
    processes: int,
) -> None:
    """ValueError when the decoded crops do not fit into memory, or onto the disk.

    names: of the images of each mesh. cache: `memory` or `disk`. workers: decoding processes.
    processes: trainings on this machine, each of which keeps all crops if that is in memory.
    """
    needed = sum(math.prod(decoded_shape(group, config)) for group in names)
    what = f"keeping {sum(map(len, names)):,} decoded crops of {config.category}"
    if cache == "disk":
        needed -= min(needed, _bytes_on_disk(prepared, names, config))
        folder = prepared.decoded(config.category)
        if not can_be_written(folder):
            raise ValueError(
                f"IMAGE_CACHE=disk keeps decoded crops in {folder}, which cannot be written; "
                "set IMAGE_CACHE=memory"
            )
        require_disk(folder, needed, what, "make space, or set IMAGE_CACHE=memory")
        return
    if processes > 1:
        needed *= processes
        what = f"{what} in each of {processes} processes"
    remedy = "set IMAGE_CACHE=disk or IMAGE_SCALE=0.5"
    if workers:
        remedy = f"{remedy}, or WORKERS=0 to do without shared memory"
        require_shared_memory(needed, what, remedy)
    else:
        require_memory(needed, what, remedy)


def workers_for_batches(
    names: Sequence[Sequence[str]],
    meshes: Sequence[Mesh],
    config: TrainConfig,
    cache: str,
    workers: int,
    group: Group,
) -> int:
    """How many of so many decoding processes have room for their batches, the same in all ranks.

    names: of the images of each mesh. cache: as in `require_room_for_crops`, which comes first.
    """
    if group.local_rank == 0 and workers:
        of_crops = [math.prod(decoded_shape(images, config)) for images in names]
        vertices = max(len(mesh.vertices) for mesh in meshes)
        image = math.prod(decoded_shape([""], config)) + BYTES_OF_A_VERTEX * vertices
        batch = image * -(-config.batch_size // group.size)
        taken = sum(of_crops) * group.local_size if cache == "memory" else 0
        workers = workers_with_room(workers, batch, group.local_size, taken)
    # Machines may differ in memory, but all ranks have to use the same number.
    return min(group.collect(workers))


def _bytes_on_disk(
    prepared: PreparedSet, names: Sequence[Sequence[str]], config: TrainConfig
) -> int:
    """What earlier trainings left on disk of the decoded crops."""
    paths = [decoded_file(prepared, group, config) for group in names]
    # A file with holes takes less than its size.
    blocks = sum(path.stat().st_blocks for path in paths if path.is_file())
    return blocks * BYTES_OF_A_BLOCK


def require_room_for_weights(folder: Path, config: TrainConfig) -> None:
    """ValueError when the files of a training do not fit onto the disk of `folder`."""
    # On the meta device parameters have a size but take no memory.
    with torch.device("meta"):
        parameters = FeatureNet(config.backbone).parameters()
    weights = 4 * sum(parameter.numel() for parameter in parameters)
    what = f"training {config.category}"
    remedy = "make space, or set EXPROOT to another disk"
    require_disk(folder, FILES_OF_WEIGHTS * weights, what, remedy)


def batch_too_large(learner: Learner, batch: MeshBatch) -> ValueError:
    """The error of a batch that does not fit into a GPU's memory, with one that does.

    The run ends with it, since a smaller batch changes what the bank becomes; so it does not
    matter what a try does to the network.
    """
    if learner.group.size > 1:
        # The other processes wait for this one, so that nothing can be tried.
        half = max(learner.group.size, learner.config.batch_size // 2)
        remedy = f"try BATCH_SIZE={half}"
    elif fitting := _largest_fitting(learner, batch):
        remedy = f"BATCH_SIZE={fitting} fits"
    else:
        remedy = "not even one image fits: set IMAGE_SCALE=0.5 or BACKBONE=resnet18fpn"
    return ValueError(
        f"a batch of {len(batch.sample.image)} images does not fit into the memory of "
        f"{learner.devices.network[0]}; {remedy}, or use more GPUs; "
        "with RESUME=false, since the bank depends on the batch size"
    )


def _largest_fitting(learner: Learner, batch: MeshBatch) -> int:
    """The largest of the halves, quarters, ... of a batch that fits, found by trying; else 0."""
    size = len(batch.sample.image) // 2
    while size:
        # What the failed try left behind would take the room of the next one.
        learner.optimiser.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        sample = TrainingSample(*(values[:size] for values in batch.sample))
        part = MeshBatch(batch.mesh, sample, [size])
        if learner.try_step(part, 0.0, EpochTally()):
            return size
        size //= 2
    return 0
