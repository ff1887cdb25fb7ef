"""A checkpoint and test images -> feature maps on disk, in the reference's format.

Inference does not need them.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import NamedTuple

import torch

from neural_mesh.machine import console
from neural_mesh.machine.devices import decoding_workers, first_device, gpus_of, images_at_a_time
from neural_mesh.machine.resources import require_disk, require_memory
from neural_mesh.settings import FEATURE_CHANNELS
from neural_mesh.solve.batches import (
    PreparedSubset,
    features_of_images,
    names_by_mesh,
    split_into_batches,
)
from neural_mesh.solve.model import Model
from neural_mesh.stages.networks import TrainedNetworks
from neural_mesh.storage.files import lock, remove_parts
from neural_mesh.storage.results import FeatureSet, load_config, save_features
from neural_mesh.storage.timings import record_seconds

BYTES_PER_NUMBER = 4  # float32


class ExtractedCount(NamedTuple):
    """Feature maps that were written, and images that could not be read."""

    written: int
    failed: int


def extract_features(
    networks: TrainedNetworks, gpus: str = "all", batch_size: str = "auto", workers: str = "auto"
) -> None:
    """Extract category after category, and say how many.

    gpus, batch_size, workers: as the user sets them.
    """
    device = first_device(gpus_of(gpus))
    images_at_once = images_at_a_time(batch_size, device)
    counts = []
    for category in networks.categories:
        counts.append(extract_category(networks, category, device, images_at_once, workers))
    written = sum(count.written for count in counts)
    failed = sum(count.failed for count in counts)
    folder = f"{networks.exp}/Features_{networks.mesh_d}{networks.azimuths.result_suffix}"
    print(
        f"{networks.level or 'clean'}: feature maps of {console.count(written, 'image')} written, "
        f"{failed} could not be read; in {folder}"
    )


def extract_category(
    networks: TrainedNetworks, category: str, device: torch.device, batch_size: int, workers: str
) -> ExtractedCount:
    """Write the feature maps of a category, unless they are there.

    Raises ValueError where there is no room for them.
    """
    # What is to be written, and is it there?
    started = monotonic()
    model = networks.load(category, device)
    subset = category + networks.level
    names = names_by_mesh(networks.test_set, networks.mesh_d, subset, len(model.checkpoint.memory))
    images = PreparedSubset(networks.test_set, networks.level, names)
    target = networks.experiment.features(category, networks.level)
    # Maps of another checkpoint or of changed images are extracted again.
    if target.is_file() and load_config(target) == feature_config(model, images):
        return ExtractedCount(0, 0)
    processes = decoding_workers(workers, device)

    # Is there room?
    map_height, map_width = model.map_hw
    count = sum(len(group) for group in names.values())
    needed = BYTES_PER_NUMBER * FEATURE_CHANNELS * map_height * map_width * count
    require_disk(
        target.parent,
        needed,
        f"the feature maps of {category}",
        "make space, or set SAVE_FEATURES=false",
    )
    # All maps are held in memory, since they go into a single file.
    require_memory(
        2 * needed,
        f"writing the feature maps of {category}",
        "set SAVE_FEATURES=false, inference does not need them",
    )

    # Extract and write.
    with lock(target.parent, target.stem, f"the feature maps of {category}"):
        remove_parts(target.parent, target.name)
        features, failures = extract(model, images, batch_size, processes)
        save_features(target, features)
    timing = networks.experiment.timing("extract_features", subset)
    record_seconds(timing, monotonic() - started, len(features.maps), "images")
    return ExtractedCount(len(features.maps), len(failures))


def extract(
    model: Model, images: PreparedSubset, batch_size: int, workers: int
) -> tuple[FeatureSet, list[str]]:
    """Feature maps of a category's test images, and the messages of those that cannot be read."""
    subset = model.checkpoint.config.category + images.level
    batches = split_into_batches(images.names, batch_size)
    maps = {}
    failures = []
    total = sum(len(batch.names) for batch in batches)
    with console.progress_bar(f"{subset} features", total) as bar:
        for batch in features_of_images(images.prepared, subset, batches, model, workers):
            failures += batch.messages
            if batch.features is not None:
                maps |= dict(zip(batch.names, batch.features.cpu().numpy(), strict=True))
            bar.update(len(batch.names) + len(batch.messages))
    # Messages wait until the progress bar is finished, which they would break up.
    for message in failures:
        print(f"skipped: {message}", file=sys.stderr)

    # The reference's file also holds what the maps are compared with.
    vertex_banks = {}
    clutter_banks = {}
    kept = {}
    for mesh, group in images.names.items():
        vertices, clutter = model.checkpoint.banks(mesh)
        vertex_banks[mesh] = vertices.numpy()
        clutter_banks[mesh] = clutter.numpy()
        kept[mesh] = [name for name in group if name in maps]
    config = feature_config(model, images)
    return FeatureSet(maps, vertex_banks, clutter_banks, kept, config), failures


def feature_config(model: Model, images: PreparedSubset) -> dict:
    """What feature maps depend on."""
    subset = model.checkpoint.config.category + images.level
    return {
        "checkpoint": model.checkpoint.fingerprint,
        "data": images.prepared.fingerprint(subset),
        "images": sum(len(group) for group in images.names.values()),
    }
