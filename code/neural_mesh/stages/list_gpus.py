"""The GPUs that GPUS stands for, for the scripts."""

from __future__ import annotations

from neural_mesh.machine.devices import gpus_of


def list_gpus(gpus: str = "all") -> None:
    """Print the index of each GPU on a line; nothing for the CPU. Raises as `gpus_of`."""
    for gpu in gpus_of(gpus):
        print(gpu)
