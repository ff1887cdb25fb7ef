"""What a training is given: images with their meshes, and the devices and processes it runs on."""

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

    datasets[i] holds the images of meshes[i], of which there may be none. fingerprint: of the
    prepared set.
    """

    meshes: list[Mesh]
    datasets: list[TrainingImages]
    fingerprint: str = ""

    @property
    def sizes(self) -> list[int]:
        """Images of each mesh."""
        return [len(dataset) for dataset in self.datasets]


@dataclass(frozen=True)
class Hardware:
    """What a training runs on.

    devices: where network and banks lie. group: the processes that train together. workers:
    decoding processes of this one. compiled: whether the network goes through torch.compile.
    """

    devices: Placement
    group: Group = field(default_factory=Group)
    workers: int = 0
    compiled: bool = False


def check_combination(config: TrainConfig, hardware: Hardware) -> None:
    """ValueError for settings that do not go together."""
    devices = hardware.devices.network
    # torch synchronises batch norm between processes, and only on GPUs.
    if config.sync_batchnorm and (hardware.group.size == 1 or devices[0].type == "cpu"):
        raise ValueError("SYNC_BATCHNORM=true needs PARALLEL=ddp on several GPUs")
    # DataParallel's replicas are made anew in every step.
    if hardware.compiled and len(devices) > 1:
        raise ValueError(
            "COMPILE=true does not go with PARALLEL=dp on several GPUs; set PARALLEL=ddp"
        )
