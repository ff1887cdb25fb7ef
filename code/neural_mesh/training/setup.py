"""The input of a training run: images with their meshes, and its devices and processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from neural_mesh.data.dataset import TrainingImages
from neural_mesh.geometry.meshes import Mesh
from neural_mesh.machine.devices import Placement
from neural_mesh.machine.distributed import Group
from neural_mesh.settings import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """The images to train on, by mesh.

    datasets[i]: the images of meshes[i]; it may be empty. fingerprint: that of the prepared set.
    """

    meshes: list[Mesh]
    datasets: list[TrainingImages]
    fingerprint: str = ""

    @property
    def sizes(self) -> list[int]:
        """Number of images of each mesh."""
        return [len(dataset) for dataset in self.datasets]


@dataclass(frozen=True)
class Hardware:
    """The devices and processes that a training run uses.

    devices: where network and banks are. group: the processes that train together. workers: number
    of decoding processes of this process. compiled: whether the network goes through torch.compile.
    """

    devices: Placement
    group: Group = field(default_factory=Group)
    workers: int = 0
    compiled: bool = False


def check_combination(config: TrainConfig, hardware: Hardware) -> None:
    """Raise ValueError for settings that contradict each other."""
    devices = hardware.devices.network
    # torch synchronises batch norm between processes, and only on GPUs.
    if config.sync_batchnorm and (hardware.group.size == 1 or devices[0].type == "cpu"):
        raise ValueError("SYNC_BATCHNORM=true needs PARALLEL=ddp on several GPUs")
    # DataParallel copies the network in every step, and the copies are not compiled.
    if hardware.compiled and len(devices) > 1:
        raise ValueError(
            "COMPILE=true does not go with PARALLEL=dp on several GPUs; set PARALLEL=ddp"
        )
