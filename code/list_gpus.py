"""Print the GPUs that GPUS stands for, one index a line; nothing for the CPU."""

from __future__ import annotations

import argparse

from neural_mesh.machine import console
from neural_mesh.stages.list_gpus import list_gpus


def main() -> None:
    """Check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", default="all", help="all, indices, or empty for the CPU")
    list_gpus(parser.parse_args().gpus)


if __name__ == "__main__":
    console.run_main(main)
