"""A checkpoint and test images -> feature maps on disk, in the reference's format.

Inference does not need them.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.stages.extract_features import extract_features
from neural_mesh.stages.networks import TrainedNetworks


def main() -> None:
    """Extract category after category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--batch-size", default="auto", help="images at a time; auto: 64 on a GPU, 8 on a CPU"
    )
    parser.add_argument("--workers", default="auto", help="decoding processes")
    arguments.add_network(parser)
    args = parser.parse_args()
    networks = arguments.into_dataclass(TrainedNetworks, args)
    extract_features(networks, args.gpus, args.batch_size, args.workers)


if __name__ == "__main__":
    console.run_main(main)
