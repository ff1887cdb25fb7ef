"""A checkpoint with its network and meshes, ready to turn images into feature maps."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from neural_mesh.data.crops import map_size
from neural_mesh.data.dataset import normalise
from neural_mesh.geometry.meshes import Mesh, published_cuboid
from neural_mesh.machine.devices import send
from neural_mesh.network.backbone import FeatureNet, has_bfloat16
from neural_mesh.solve.halving import in_halves
from neural_mesh.storage.checkpoints import Checkpoint, load_checkpoint
from neural_mesh.storage.layout import numbered_meshes
from neural_mesh.storage.mesh_files import read_off

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Model:
    """A checkpoint, ready to turn images into feature maps.

    precision: of the network, float32 or bfloat16.
    """

    checkpoint: Checkpoint
    network: FeatureNet
    device: torch.device
    precision: str = "float32"

    @property
    def map_hw(self) -> tuple[int, int]:
        """Size of the feature map of a prepared crop, in cells."""
        config = self.checkpoint.config
        return map_size(config.category, config.image_scale)

    # Not inference_mode: renderers with automatic differentiation keep what is made here for
    # their backward pass.
    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> unit feature maps [B, C, H/8, W/8], float32.

        In halves where the GPU's memory is too small.
        """
        bias = self.checkpoint.config.bias_at_test
        rounded = self.precision == "bfloat16"

        def forward(chunk: slice) -> Tensor:
            inputs = normalise(send(images[chunk], self.device), self.network.statistics)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=rounded):
                return self.network.feature_map(inputs, bias)

        chunks = in_halves(forward, len(images), "feature maps")
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def mesh(self, number: int) -> Mesh:
        """Mesh 1, 2, ... of the category."""
        return self.checkpoint.meshes[number - 1]

    def banks(self, number: int) -> tuple[Tensor, Tensor]:
        """Vertex features [V, C] and the clutter feature [C] of a mesh.

        The clutter feature is the mean of the clutter bank, at unit length.
        """
        vertices, clutter_bank = self.checkpoint.banks(number)
        clutter = functional.normalize(clutter_bank.mean(0), dim=0)
        return vertices.to(self.device), clutter.to(self.device)


def resolve_precision(name: str, solver: str, device: torch.device) -> str:
    """PRECISION as asked for -> float32 or bfloat16.

    auto is bfloat16 on a GPU that has it, but not for the paper's solver. Raises ValueError for a
    name that does not exist.
    """
    if name not in PRECISIONS:
        raise ValueError(f"PRECISION must be one of {', '.join(PRECISIONS)}, found {name!r}")
    if name != "auto":
        return name
    return "bfloat16" if has_bfloat16(device) and solver != "paper" else "float32"


def load_model(
    path: Path,
    category: str | None,
    mesh_folder: Path,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> Model:
    """Load a checkpoint.

    Its meshes come from the file itself or, for one of the reference, from mesh_folder. Where that
    folder's cuboid has another number of vertices but the authors' own has the right one, the
    authors' is used. category: None for whatever the file says that it was trained on.

    Raises ValueError when it was trained on another category than `category`, says none while
    `category` is None, or does not fit its meshes or backbone.
    """
    checkpoint = load_checkpoint(path, category)
    # Is it the right one?
    config = checkpoint.config
    if category is not None and config.category != category:
        raise ValueError(f"{path} was trained on {config.category}, not on {category}")
    # Our checkpoints carry their meshes, the reference's do not.
    if checkpoint.meshes is None:
        checkpoint = _with_meshes(checkpoint, mesh_folder)
    # Its network.
    try:
        network = FeatureNet(config.backbone)
    except ValueError as error:
        raise ValueError(
            f"{path} was trained with backbone {config.backbone!r}: {error}"
        ) from error
    try:
        network.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        # The first line says no more than that there is an error.
        reason = " ".join(str(error).splitlines()[1:2]).strip()[:120]
        raise ValueError(
            f"{path}: the weights do not fit backbone {config.backbone} ({reason})"
        ) from error
    network = network.to(device, memory_format=torch.channels_last).eval()
    return Model(checkpoint, network, torch.device(device), precision)


def _with_meshes(checkpoint: Checkpoint, mesh_folder: Path) -> Checkpoint:
    """A checkpoint of the reference with the folder's meshes, or with the authors' own cuboid.

    The cuboid is used where the folder's meshes do not fit.
    """
    try:
        meshes = [read_off(file) for file in numbered_meshes(mesh_folder)]
        return checkpoint.with_meshes(meshes, mesh_folder)
    except (ValueError, FileNotFoundError) as error:
        published = published_cuboid(checkpoint.config.category)
        # A memory holds the vertices' features and, behind them, the clutter bank.
        clutter_rows = checkpoint.config.num_clutter
        vertices = [len(memory) - clutter_rows for memory in checkpoint.memory]
        if published is None or vertices != [len(published.vertices)]:
            raise
        print(
            f"note: {error}. Its {len(published.vertices)} vertices are those of the authors' "
            "cuboid, which is used.",
            file=sys.stderr,
        )
        return checkpoint.with_meshes([published], mesh_folder)
