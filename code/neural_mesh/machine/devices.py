"""Which GPUs to use, and what runs where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Images at a time in inference.
IMAGES_ON_GPU = 64
IMAGES_ON_CPU = 8
MOST_DECODING_WORKERS = 8  # unless told otherwise
# Set by schedulers and users.
HIDING_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def gpus_of(text: str) -> list[int]:
    """GPUS as set by the user -> indices.

    `all` is every one that torch can use, an empty text is the CPU. Indices are torch's, which
    counts what CUDA_VISIBLE_DEVICES leaves, the fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID.

    Raises ValueError when the text is something else or names a GPU that is not there.
    """
    available = torch.cuda.device_count()
    if text.strip() == "all":
        return list(range(available))
    words = text.replace(",", " ").split()
    if not all(word.isdigit() for word in words):
        raise ValueError(
            f'GPUS is "{text}", it can be all, indices such as "0 1", or empty for the CPU'
        )
    gpus = [int(word) for word in words]
    absent = [gpu for gpu in gpus if gpu >= available]
    if absent:
        raise ValueError(
            f"GPUS names GPU {absent[0]}, but torch can use {available or 'none'} on this machine"
            f'{_renumbering()}; GPUS="" uses the CPU'
        )
    return gpus


def _renumbering() -> str:
    """What hides GPUs here and gives the others new numbers, if anything does."""
    for name in HIDING_VARIABLES:
        value = os.environ.get(name)
        if value in ("", "-1"):
            return f", since {name}={value} hides all of them"
        if value is not None:
            return (
                f", since {name}={value} hides the others and numbers these from 0: "
                "GPUS=0 is its first, GPUS=all takes all that it names"
            )
    return ""


def first_device(gpus: Sequence[int]) -> torch.device:
    """The first of the GPUs, or the CPU when there is none."""
    return torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, from the CPU to a GPU by pinned memory.

    A copy from other memory waits for all that the GPU still has to do.
    """
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def decoding_workers(text: str, device: torch.device, processes: int = 1) -> int:
    """WORKERS as set by the user -> decoding processes.

    processes: trainings on this machine, each of which gets that many. `auto` is up to 8 for a GPU,
    none beside a busy CPU.
    """
    if text == "auto":
        if device.type == "cpu":
            # On a busy CPU they would only take time from the network.
            return 0
        # A GPU waits for pictures; a few processes keep it fed.
        cores = (os.cpu_count() or 1) // processes
        return max(1, min(MOST_DECODING_WORKERS, cores))
    if not text.isdigit():
        raise ValueError(f'WORKERS is "{text}", it can be auto or a number of processes')
    return int(text)


def images_at_a_time(text: str, device: torch.device) -> int:
    """BATCH_SIZE of inference as set by the user -> images.

    `auto` is enough to fill a GPU, few for a CPU's memory.
    """
    if text == "auto":
        return IMAGES_ON_GPU if device.type == "cuda" else IMAGES_ON_CPU
    if not text.isdigit() or not int(text):
        raise ValueError(f'BATCH_SIZE is "{text}", it can be auto or a whole number above 0')
    return int(text)


def compute_the_same_bits() -> None:
    """From now on GPUs give the same bits for the same numbers, by slower algorithms.

    What has none is an error.

    The CPU does so anyway. Must come before the first computation on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


@dataclass(frozen=True)
class Placement:
    """Where training runs.

    network: devices of the network, which is replicated when there are several. bank: device of the
    bank and of similarities.
    """

    network: tuple[torch.device, ...]
    bank: torch.device
    sentence: str


def place(gpus: Sequence[int], separate_bank: bool) -> Placement:
    """Distribute network and bank over GPUs, and say so.

    separate_bank: the bank gets the last of several GPUs.
    """
    if not gpus:
        sentence = "training on the CPU"
        if separate_bank:
            sentence += ", the bank too: SEPARATE_BANK needs two GPUs"
        return Placement((torch.device("cpu"),), torch.device("cpu"), sentence)
    devices = tuple(torch.device("cuda", gpu) for gpu in gpus)
    first = gpus[0]
    if not separate_bank:
        sentence = f"network on {len(devices)} GPU(s), bank on GPU {first}"
        return Placement(devices, devices[0], sentence)
    if len(devices) == 1:
        sentence = f"SEPARATE_BANK needs two GPUs, so network and bank share GPU {first}"
        return Placement(devices, devices[0], sentence)
    # The last GPU is the bank's own.
    sentence = f"network on {len(devices) - 1} GPU(s), bank alone on GPU {gpus[-1]}"
    return Placement(devices[:-1], devices[-1], sentence)


def place_process(
    gpus: Sequence[int], local_rank: int, local_size: int, separate_bank: bool
) -> Placement:
    """Where process `local_rank` of the `local_size` on this machine trains.

    It gets a GPU of its own, bank included, or the CPU. Raises ValueError when there are fewer GPUs
    than processes, or the bank is to have a GPU of its own.
    """
    if separate_bank:
        raise ValueError(
            "SEPARATE_BANK=true is for PARALLEL=dp: "
            "with ddp every process keeps its own copy of the bank"
        )
    if not gpus:
        cpu = torch.device("cpu")
        return Placement((cpu,), cpu, f"{local_size} processes on the CPU")
    if local_size > len(gpus):
        raise ValueError(
            f"PARALLEL=ddp with {local_size} processes on this machine needs as many GPUs, "
            f"GPUS gives {len(gpus)}"
        )
    device = torch.device("cuda", gpus[local_rank])
    in_use = " ".join(map(str, gpus[:local_size]))
    sentence = f"{local_size} processes with a GPU each, GPUs {in_use}"
    return Placement((device,), device, sentence)
