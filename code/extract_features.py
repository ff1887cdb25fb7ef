"""A checkpoint and test images -> feature maps on disk, in the reference's format (inference does not need them)."""

from __future__ import annotations

import argparse
import sys
from time import monotonic

import torch

from neural_mesh.machine import arguments, console
from neural_mesh.machine.devices import decoding_workers, first_device, gpus_of, images_at_a_time
from neural_mesh.machine.resources import require_disk, require_memory
from neural_mesh.settings import FEATURE_CHANNELS
from neural_mesh.solve.inference import Model, load_model, names_by_mesh, read_batches
from neural_mesh.storage.files import lock, remove_parts
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D, checkpoint_path
from neural_mesh.storage.records import FeatureSet, load_config, record_seconds, save_features


def extract(
    model: Model,
    prepared: PreparedSet,
    names: dict[int, list[str]],
    level: str,
    batch_size: int,
    workers: int,
) -> tuple[FeatureSet, list[str]]:
    """Feature maps of the named test images of a category, and the messages of those that cannot be read."""
    subset = model.checkpoint.config.category + level
    todo = [
        (mesh, group[i : i + batch_size])
        for mesh, group in names.items()
        for i in range(0, len(group), batch_size)
    ]
    maps, failures = {}, []
    with console.progress_bar(f"{subset} features", sum(map(len, names.values()))) as bar:
        for _, batch, images in read_batches(prepared, subset, todo, model, workers):
            readable = {
                name: image
                for name, image in zip(batch, images, strict=True)
                if not isinstance(image, str)
            }
            failures += [image for image in images if isinstance(image, str)]
            if readable:
                maps |= dict(
                    zip(
                        readable,
                        model.features(torch.stack(list(readable.values()))).cpu().numpy(),
                        strict=True,
                    )
                )
            bar.update(len(batch))
    for message in failures:
        print(f"skipped: {message}", file=sys.stderr)
    kept = {mesh: [name for name in group if name in maps] for mesh, group in names.items()}
    banks = {mesh: model.checkpoint.banks(mesh) for mesh in names}
    features = FeatureSet(
        maps,
        {m: v.numpy() for m, (v, _) in banks.items()},
        {m: c.numpy() for m, (_, c) in banks.items()},
        kept,
        config_of(model, prepared, subset, names),
    )
    return features, failures


def config_of(
    model: Model, prepared: PreparedSet, subset: str, names: dict[int, list[str]]
) -> dict:
    """What feature maps depend on."""
    images = sum(map(len, names.values()))
    return {
        "checkpoint": model.checkpoint.fingerprint,
        "data": prepared.fingerprint(subset),
        "images": images,
    }


def main() -> None:
    """Extract category after category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--batch-size", default="auto", help="images at a time; auto: 64 on a GPU, 8 on a CPU"
    )
    parser.add_argument("--workers", default="auto", help="decoding processes")
    arguments.add_network(parser)
    args = parser.parse_args()
    experiment, raw = Experiment(args.exp, args.mesh_d, args.azimuths), RawPascal3D(args.raw)
    device, images, failed = first_device(gpus_of(args.gpus)), 0, 0
    batch_size = images_at_a_time(args.batch_size, device)
    for category in args.categories:
        started = monotonic()
        path = checkpoint_path(
            args.save_dir or experiment.network_folder, args.load_file_name, category
        )
        model = load_model(path, category, raw.cuboid_folder(args.mesh_d, category), device)
        target, prepared = (
            experiment.features(category, args.level),
            PreparedSet(args.prepared, args.azimuths.test_pattern),
        )
        names = names_by_mesh(
            prepared, args.mesh_d, category + args.level, len(model.checkpoint.memory)
        )
        wanted = config_of(model, prepared, category + args.level, names)
        if target.is_file() and load_config(target) == wanted:
            continue
        workers = decoding_workers(args.workers, device)
        needed = (
            4 * FEATURE_CHANNELS * model.map_hw[0] * model.map_hw[1] * sum(map(len, names.values()))
        )
        require_disk(
            target.parent,
            needed,
            f"the feature maps of {category}",
            "make space, or set SAVE_FEATURES=false",
        )
        require_memory(
            2 * needed,
            f"writing the feature maps of {category}",
            "set SAVE_FEATURES=false, inference does not need them",
        )
        with lock(target.parent, target.stem, f"the feature maps of {category}"):
            remove_parts(target.parent, target.name)
            features, failures = extract(model, prepared, names, args.level, batch_size, workers)
            save_features(target, features)
        timing = experiment.timing("extract_features", category + args.level)
        record_seconds(timing, monotonic() - started, len(features.maps), "images")
        images, failed = images + len(features.maps), failed + len(failures)
    print(
        f"{args.level or 'clean'}: feature maps of {console.count(images, 'image')} written, {failed} could not be read; "
        f"in {args.exp}/Features_{args.mesh_d}{args.azimuths.result_suffix}"
    )


if __name__ == "__main__":
    console.run_main(main)
