"""Images to poses: features, score volumes, starts, refinement, in one stream per category."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from neural_mesh.data.dataset import TestImages, map_size, normalise
from neural_mesh.geometry.meshes import Mesh, published_cuboid, read_off
from neural_mesh.machine.devices import send
from neural_mesh.machine.workers import process_died
from neural_mesh.network.backbone import FeatureNet, has_bfloat16
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.pose import (
    Poses,
    Starts,
    choose_camera,
    make_plan,
    resolve_renderer,
    solve,
    starts_of,
)
from neural_mesh.storage.checkpoints import Checkpoint, load_checkpoint
from neural_mesh.storage.layout import PreparedSet, numbered_meshes, read_list
from neural_mesh.storage.records import FeatureSet, PoseSet, load_poses, save_poses

T = TypeVar("T")
SECONDS_BETWEEN_SAVES = 10.0
ANY_MESH = 0  # stands for all meshes of a category where numbers start at 1
BATCHES_AHEAD = 2  # feature maps that may wait for the solver, which bounds the memory
PRECISIONS = ("auto", "float32", "bfloat16")
POSE_COLUMNS = ("azimuth", "elevation", "theta", "distance", "loss", "start", "mesh")


@dataclass(frozen=True)
class Model:
    """A checkpoint, ready to turn images into feature maps. precision: of the network, float32 or bfloat16."""

    checkpoint: Checkpoint
    network: FeatureNet
    device: torch.device
    precision: str = "float32"

    @property
    def map_hw(self) -> tuple[int, int]:
        """Size of the feature map of a prepared crop, in cells."""
        config = self.checkpoint.config
        return map_size(config.category, config.image_scale)

    @torch.no_grad()  # not inference_mode: renderers with automatic differentiation keep what is made here for their backward pass
    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> unit feature maps [B, C, H/8, W/8], float32; in halves where the GPU's memory is too small."""

        def forward(part: slice) -> Tensor:
            inputs = normalise(send(images[part], self.device)).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
            ):
                return self.network.feature_map(inputs, self.checkpoint.config.bias_at_test)

        parts = in_halves(forward, len(images), "feature maps")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def mesh(self, number: int) -> Mesh:
        """Mesh 1, 2, ... of the category."""
        return self.checkpoint.meshes[number - 1]

    def banks(self, number: int) -> tuple[Tensor, Tensor]:
        """Vertex features [V, C] and the clutter feature [C] (unit mean of the clutter bank) of a mesh."""
        vertices, clutter = self.checkpoint.banks(number)
        return vertices.to(self.device), functional.normalize(clutter.mean(0), dim=0).to(
            self.device
        )


def in_halves(work: Callable[[slice], T], images: int, what: str) -> list[T]:
    """[work(all)], or its parts where a GPU's memory is too small for all: halves, quarters, ... down to single images.

    Says so once per batch. Images do not influence each other, so the parts together are the whole. Raises ValueError when
    not even one image fits.
    """
    todo, done, smallest = [slice(0, images)], [], images
    while todo:
        part = todo.pop(0)
        size = part.stop - part.start
        try:
            done.append(work(part))
            continue
        except torch.cuda.OutOfMemoryError as error:
            if size == 1:
                raise ValueError(
                    f"not even the {what} of one image fit into the GPU's memory; {error}".splitlines()[
                        0
                    ]
                ) from error
        torch.cuda.empty_cache()
        middle = part.start + size // 2
        todo[:0] = [slice(part.start, middle), slice(middle, part.stop)]
        if size - size // 2 < smallest:
            smallest = size - size // 2
            print(
                f"note: out of GPU memory, going on with {smallest} images at a time (BATCH_SIZE={smallest})",
                file=sys.stderr,
            )
    return done


class MeshSolver:
    """`pose.solve` with the meshes of a model: each mesh's banks are brought to the device, and its start grid is rendered, once.

    Where a GPU's memory is too small for a batch, see `in_halves`.
    """

    def __init__(self, model: Model, config: SolveConfig, renderer: str):
        trained = model.checkpoint.config
        self.model, self.config, self.renderer = model, config, renderer
        self.camera, self.start_distance = choose_camera(
            config, trained.category, model.map_hw, trained.image_scale
        )
        self.known: dict[
            int, tuple[Mesh, Tensor, Tensor, Starts]
        ] = {}  # by number: mesh, its bank, clutter feature and starts

    def solve(self, number: int, features: Tensor) -> Poses:
        """Poses of mesh `number` in feature maps [B, C, H, W]."""
        how = self.config, self.camera, self.start_distance, self.renderer
        if number not in self.known:
            mesh = self.model.mesh(number)
            self.known[number] = (
                mesh,
                *self.model.banks(number),
                starts_of(mesh, *how, features.device),
            )
        mesh, bank, clutter, starts = self.known[number]
        parts = in_halves(
            lambda part: solve(mesh, features[part], bank, clutter, *how, starts),
            len(features),
            "score volumes",
        )
        return Poses.joined(parts)


def resolve_precision(name: str, solver: str, device: torch.device) -> str:
    """PRECISION as asked for -> float32 or bfloat16; auto is bfloat16 on a GPU that has it, but not for the paper's solver.

    Raises ValueError for a name that does not exist.
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
    """Load a checkpoint; its meshes come from the file itself or, for one of the reference, from mesh_folder.

    Where that folder's cuboid has another number of vertices but the authors' own has the right one, it is used.
    category: None for whatever it was trained on.

    Raises ValueError when it was trained on another category than `category`, or does not fit its meshes or backbone.
    """
    checkpoint = load_checkpoint(path)
    if category is not None and checkpoint.config.category != category:
        raise ValueError(f"{path} was trained on {checkpoint.config.category}, not on {category}")
    if checkpoint.meshes is None:
        checkpoint = _with_meshes(checkpoint, mesh_folder)
    network = FeatureNet(checkpoint.config.backbone)
    try:
        network.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit backbone {checkpoint.config.backbone} ({str(error).splitlines()[0]})"
        ) from error
    return Model(
        checkpoint,
        network.to(device, memory_format=torch.channels_last).eval(),
        torch.device(device),
        precision,
    )


def _with_meshes(checkpoint: Checkpoint, mesh_folder: Path) -> Checkpoint:
    """A checkpoint of the reference with its meshes: those of the folder or, where they do not fit, the authors' own cuboid."""
    try:
        return checkpoint.with_meshes(
            [read_off(file) for file in numbered_meshes(mesh_folder)], mesh_folder
        )
    except (ValueError, FileNotFoundError) as error:
        published = published_cuboid(checkpoint.config.category)
        if published is None or [len(published.vertices)] != [
            len(m) - checkpoint.config.num_clutter for m in checkpoint.memory
        ]:
            raise
        print(
            f"note: {error}. Its {len(published.vertices)} vertices are those of the authors' cuboid, which is used.",
            file=sys.stderr,
        )
        return checkpoint.with_meshes([published], mesh_folder)


def names_by_mesh(
    prepared: PreparedSet, mesh_d: str, subset: str, meshes: int, subtype: str = SolveConfig.subtype
) -> dict[int, list[str]]:
    """Which test images are compared with which mesh, from the lists.

    With several meshes: subtype `annotated`, the mesh of the annotated CAD model (paper); `predicted`, all meshes, which
    is written as mesh 0.
    """
    if subtype not in ("annotated", "predicted"):
        raise ValueError(f"SUBTYPE is {subtype!r}, it can be annotated or predicted")
    lists = {number: prepared.mesh_list(mesh_d, subset, number) for number in range(1, meshes + 1)}
    if not lists[1].is_file():
        raise FileNotFoundError(
            f"no list of test images: {lists[1]}; run PrepareData.sh first (for an occlusion level with ENABLE_OCCLUDED=true"
            + (", and with the same AZIMUTH_SELECTION)" if prepared.azimuths else ")")
        )
    names = {number: read_list(path) if path.is_file() else [] for number, path in lists.items()}
    return (
        {ANY_MESH: sorted(name for group in names.values() for name in group)}
        if subtype == "predicted" and meshes > 1
        else names
    )


def run_config(model: Model, config: SolveConfig, level: str, data: str) -> dict:
    """Everything that poses depend on, as JSON values; the same values mean the same poses."""
    map_hw, trained = model.map_hw, model.checkpoint.config
    camera, distance = choose_camera(config, trained.category, map_hw, trained.image_scale)
    return {
        "solve": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(config).items()
        },
        "category": trained.category,
        "level": level,
        "mesh_d": trained.mesh_d,
        "backbone": trained.backbone,
        "image_scale": trained.image_scale,
        "recipe": trained.recipe,
        "checkpoint": model.checkpoint.fingerprint,
        "data": data,
        "training": trained.fingerprint,
        "focal_cells": camera.focal,
        "principal_xy_cells": list(camera.principal_xy),
        "map_hw": list(map_hw),
        "start_distance": distance,
        "plan": make_plan(config).fingerprint,
    }


@dataclass
class Run:
    """Poses of one category at one occlusion level, computed batch by batch and kept on the way.

    overlap: solve in a second thread while the network works on the next batches, which pays where they run on different
    devices; the poses are the same.
    """

    model: Model
    prepared: PreparedSet
    level: str
    config: SolveConfig
    target: Path
    names: dict[int, list[str]]
    batch_size: int
    workers: int = 0
    shard: tuple[int, int] = (0, 1)
    stored_features: FeatureSet | None = None
    overlap: bool = False

    @property
    def category(self) -> str:
        return self.model.checkpoint.config.category

    @property
    def partial(self) -> Path:
        """Poses of this shard so far."""
        return self.target.with_name(
            f"{self.target.stem}.partial-{self.shard[0]}-of-{self.shard[1]}.npz"
        )

    def __post_init__(self) -> None:
        data = self.prepared.fingerprint(self.category + self.level)
        self.wanted = {name for group in self.names.values() for name in group}
        self.mine = {name for _, names in self.batches() for name in names}
        self.settings = run_config(self.model, self.config, self.level, data) | {
            "renderer": self.config.renderer
        }
        self.columns = (*POSE_COLUMNS, "principal_xy") if self.config.six_d else POSE_COLUMNS
        self.rows: dict[str, dict] = {}
        self.failures: list[str] = []
        self.used: list[Path] = []
        self.solver: MeshSolver | None = None  # when there is something to solve

    def finished(self) -> PoseSet | None:
        """The result of an earlier run with the same settings and images, if there is one."""
        if not self.target.is_file():
            return None
        poses = load_poses(self.target)
        return (
            poses
            if poses.config == self.settings and set(poses.names.tolist()) == self.wanted
            else None
        )

    def collect(self) -> None:
        """Take up the poses that killed or parallel runs left behind, and tell of those that have other settings.

        Raises ValueError when another share differs in nothing but the precision, which PRECISION=auto chooses by the
        machine: the shares would be solved again instead of merged.
        """
        partials = sorted(self.target.parent.glob(f"{self.target.stem}.partial-*.npz"))
        for path in [*([self.target] if self.target.is_file() else []), *partials]:
            try:
                poses = load_poses(path)
            except (FileNotFoundError, ValueError):
                if path.is_file():
                    raise
                continue  # another run has just merged it
            if poses.config == self.settings:
                self._keep(poses)
                self.used += [path] if path != self.target else []
            elif path != self.target:
                self._tell_of_other(path, poses.config)

    def _tell_of_other(self, path: Path, found: dict) -> None:
        precision, here = (
            config.get("solve", {}).get("precision") for config in (found, self.settings)
        )
        alike = found | {"solve": found.get("solve", {}) | {"precision": here}} == self.settings
        if alike and path != self.partial:
            raise ValueError(
                f"{path} was solved with PRECISION={precision}, this run has PRECISION={here}: set PRECISION={precision} to use "
                "it, or delete it to solve its images again"
            )
        print(f"note: {path} is of other settings and is not used", file=sys.stderr)

    def _keep(self, poses: PoseSet) -> None:
        for i, name in enumerate(poses.names.tolist()):
            if name in self.mine:
                self.rows[name] = {key: getattr(poses, key)[i] for key in self.columns}

    def pose_set(self) -> PoseSet:
        """All poses so far, sorted by name."""
        names = sorted(self.rows)
        columns = {key: np.array([self.rows[n][key] for n in names]) for key in self.columns}
        return PoseSet(
            self.category, self.level, np.array(names, dtype=str), **columns, config=self.settings
        )

    def batches(self) -> Iterator[tuple[int, list[str]]]:
        """(mesh, names) of this shard. Their borders do not depend on what is done, so a resumed run repeats its numbers."""
        number = 0
        for mesh, names in self.names.items():
            for first in range(0, len(names), self.batch_size):
                if number % self.shard[1] == self.shard[0]:
                    yield mesh, names[first : first + self.batch_size]
                number += 1

    def execute(self, advance: Callable[[int], None]) -> PoseSet | None:
        """Solve what is missing; returns the poses when all shards are done, None when others are still to come.

        What an image gives may depend in the last digit on the others of its batch, so batches are solved whole: one with an
        image that cannot be read is solved again by every later run.
        """
        saved = monotonic()
        todo = [
            (mesh, names)
            for mesh, names in self.batches()
            if not all(name in self.rows for name in names)
        ]
        done = sum(len(names) for _, names in self.batches()) - sum(len(names) for _, names in todo)
        advance(done)
        if todo:
            self.solver = MeshSolver(
                self.model, self.config, resolve_renderer(self.config.renderer, self.model.device)
            )
        for images in self._solved_batches(todo):
            advance(images)
            if monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save_poses(self.partial, self.pose_set(), with_csv=False)
                saved = monotonic()
        if self.shard[1] > 1:
            if self.rows:
                save_poses(self.partial, self.pose_set(), with_csv=False)
            return None
        if not self.rows:
            raise ValueError(f"no test image of {self.category}{self.level} could be solved")
        poses = self.pose_set()
        save_poses(self.target, poses)
        for path in {*self.used, self.partial}:
            path.unlink(missing_ok=True)
        return poses

    def _solved_batches(self, todo: Sequence[tuple[int, list[str]]]) -> Iterator[int]:
        """Solve batch after batch, in order; yields how many images were in each."""
        batches = self._feature_batches(todo)
        if not self.overlap:
            for mesh, names, features in batches:
                self._keep_solved(names, self._solve(mesh, names, features))
                yield len(names)
            return
        waiting: deque[tuple[list[str], Future]] = deque()
        with ThreadPoolExecutor(max_workers=1) as solver:
            for mesh, names, features in batches:
                waiting.append((names, solver.submit(self._solve, mesh, names, features)))
                while len(waiting) > BATCHES_AHEAD:
                    names, solved = waiting.popleft()
                    self._keep_solved(names, solved.result())
                    yield len(names)
            for names, solved in waiting:
                self._keep_solved(names, solved.result())
                yield len(names)

    def _feature_batches(
        self, todo: Sequence[tuple[int, list[str]]]
    ) -> Iterator[tuple[int, list[str], Tensor | None]]:
        """Feature maps batch after batch; images that cannot be read are reported and left out."""
        if self.stored_features is not None:
            maps = self.stored_features.maps
            for mesh, names in todo:
                stored = [name for name in names if name in maps]
                self._report(
                    [f"{name}: no feature map was saved" for name in names if name not in maps]
                )
                stacked = (
                    torch.from_numpy(np.stack([maps[n] for n in stored])).to(self.model.device)
                    if stored
                    else None
                )
                yield mesh, stored, stacked
            return
        for mesh, names, images in read_batches(
            self.prepared, self.category + self.level, todo, self.model, self.workers
        ):
            readable = [
                (name, image)
                for name, image in zip(names, images, strict=True)
                if not isinstance(image, str)
            ]
            self._report([image for image in images if isinstance(image, str)])
            stacked = torch.stack([image for _, image in readable]) if readable else None
            yield (
                mesh,
                [name for name, _ in readable],
                None if stacked is None else self.model.features(stacked),
            )

    def _report(self, messages: list[str]) -> None:
        self.failures += messages
        for message in messages:
            print(f"skipped: {message}", file=sys.stderr)

    def _keep_solved(self, names: list[str], solved: list[dict | str]) -> None:
        for name, row in zip(names, solved, strict=True):
            if isinstance(row, str):
                self._report([f"{name}: {row}"])
            else:
                self.rows[name] = row

    def _solve(self, mesh: int, names: list[str], features: Tensor | None) -> list[dict | str]:
        """The pose columns of each image, or why it has none. A batch that fails is tried again image by image."""
        if features is None:
            return []
        whole = torch.isfinite(features).flatten(1).all(1).tolist()
        if not all(whole):
            kept = features[torch.tensor(whole, device=features.device)]
            solved = iter(
                self._solve(
                    mesh, [name for name, good in zip(names, whole, strict=True) if good], kept
                )
            )
            return [next(solved) if good else "its feature map is not finite" for good in whole]
        if not names:
            return []
        try:
            rows = self._rows(mesh, features)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            if len(names) == 1:
                return [f"the solver failed ({str(error).splitlines()[0]})"]
            return [
                self._solve(mesh, [name], features[i : i + 1])[0] for i, name in enumerate(names)
            ]
        return [row if np.isfinite(row["loss"]) else "its pose is not finite" for row in rows]

    def _rows(self, mesh: int, features: Tensor) -> list[dict]:
        """The pose columns of each image with its mesh or, for ANY_MESH, with the mesh of the lowest loss."""
        columns, rows = [key for key in self.columns if key != "mesh"], []
        for number in (
            [mesh] if mesh != ANY_MESH else range(1, len(self.model.checkpoint.memory) + 1)
        ):
            poses = self.solver.solve(number, features)
            each = zip(*(getattr(poses, key) for key in columns), strict=True)
            found = [dict(zip(columns, values, strict=True)) | {"mesh": number} for values in each]
            rows = (
                [min(pair, key=_finite_loss) for pair in zip(rows, found, strict=True)]
                if rows
                else found
            )
        return rows


def _finite_loss(row: dict) -> float:
    return row["loss"] if np.isfinite(row["loss"]) else np.inf


def read_batches(
    prepared: PreparedSet,
    subset: str,
    todo: Sequence[tuple[int, list[str]]],
    model: Model,
    workers: int,
) -> Iterator[tuple[int, list[str], list[Tensor | str]]]:
    """Decode batches of prepared crops ahead of time: (mesh, names, per image a uint8 tensor or a message)."""
    if not todo:
        return
    paths = [prepared.image(subset, name) for _, names in todo for name in names]
    dataset = TestImages(paths, model.map_hw, model.checkpoint.config.image_scale)
    borders = np.cumsum([0] + [len(names) for _, names in todo])
    batches = [list(range(a, b)) for a, b in zip(borders[:-1], borders[1:], strict=True)]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list)
    handed = 0
    try:
        for (mesh, names), images in zip(todo, loader, strict=True):
            handed += 1
            yield mesh, names, images
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        ahead = todo[handed : handed + 2 * workers]
        images, first = (
            sum(len(names) for _, names in ahead),
            prepared.image(subset, ahead[0][1][0]),
        )
        raise process_died(
            "a decoding process", f"among the {images} images from {first} on"
        ) from error
