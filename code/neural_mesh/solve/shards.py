"""The poses of a run on disk: their settings, the shares of parallel runs, and partial files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neural_mesh.geometry.cameras import Pose
from neural_mesh.settings import SolveConfig
from neural_mesh.solve.mesh_solver import SolvedImage
from neural_mesh.solve.model import Model
from neural_mesh.solve.plan import choose_camera, make_plan
from neural_mesh.storage.results import PoseSet, load_poses, save_poses


class Shard(NamedTuple):
    """Share `number` (from 0) of `of` equal shares of a category's batches, for parallel runs."""

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse i/n with 0 <= i < n. Raises ValueError for anything else."""
        try:
            number, of = (int(part) for part in text.split("/"))
        except ValueError:
            number, of = 1, 0
        if not 0 <= number < of:
            raise ValueError(f"{text!r} is not i/n with 0 <= i < n")
        return cls(number, of)

    @property
    def is_whole(self) -> bool:
        """Whether this is the only share."""
        return self.of == 1


WHOLE = Shard()  # the only share, of all batches


def run_config(model: Model, config: SolveConfig, level: str, data: str) -> dict:
    """Everything that poses depend on, as JSON values; equal values mean equal poses.

    level: occlusion level, "" for none. data: fingerprint of the prepared images.
    """
    trained = model.checkpoint.config
    camera, start_distance = choose_camera(
        config, trained.category, model.map_hw, trained.image_scale
    )
    # JSON, in which files hold the settings, has no tuples.
    solver_settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
    }
    return {
        "solve": solver_settings,
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
        "map_hw": list(model.map_hw),
        "start_distance": start_distance,
        "plan": make_plan(config).fingerprint,
        "renderer": config.renderer,
    }


@dataclass
class ShardPoses:
    """The poses that a shard has so far, in memory and on disk.

    target: the file of all shards together. settings: everything the poses depend on, see
    `run_config`; files with other settings are not used. expected: names of the images of all
    shards. own: names of this shard's images. images: the results so far, by name. merged_files:
    files of other runs whose poses this one has adopted.
    """

    target: Path
    shard: Shard
    settings: dict
    expected: set[str]
    own: set[str]
    images: dict[str, SolvedImage] = field(default_factory=dict)
    merged_files: list[Path] = field(default_factory=list)

    @property
    def category(self) -> str:
        return self.settings["category"]

    @property
    def level(self) -> str:
        return self.settings["level"]

    @property
    def partial_file(self) -> Path:
        """The file of this shard's poses so far."""
        number, of = self.shard
        return self.target.with_name(f"{self.target.stem}.partial-{number}-of-{of}.npz")

    def finished(self) -> PoseSet | None:
        """The result of an earlier run with the same settings and images; None without one."""
        if not self.target.is_file():
            return None
        poses = load_poses(self.target)
        is_complete = set(poses.names.tolist()) == self.expected
        return poses if is_complete and poses.config == self.settings else None

    def collect(self) -> None:
        """Adopt the poses that killed or parallel runs left behind.

        Prints a note about files with other settings. Raises ValueError when a file differs from
        this run in nothing but the precision, which PRECISION=auto chooses by the machine: its
        images would otherwise be solved again instead of merged.
        """
        # The finished file may have fewer images than are expected, when the lists have grown.
        files = sorted(self.target.parent.glob(f"{self.target.stem}.partial-*.npz"))
        # Partial files come after it, since their poses are newer.
        if self.target.is_file():
            files.insert(0, self.target)
        for path in files:
            try:
                poses = load_poses(path)
            except (FileNotFoundError, ValueError):
                if path.is_file():
                    raise
                continue  # another run has just merged the file
            if poses.config == self.settings:
                self._adopt(poses)
                if path != self.target:
                    self.merged_files.append(path)
            elif path != self.target:
                self._report_other(path, poses.config)
            else:
                print(
                    f"note: the poses in {path} have other settings and are replaced; "
                    "to keep them, set another EXPROOT",
                    file=sys.stderr,
                )

    def _adopt(self, poses: PoseSet) -> None:
        for i, name in enumerate(poses.names.tolist()):
            # Runs may be divided differently, so a file can hold images of several shards.
            if name in self.own:
                self.images[name] = SolvedImage(
                    poses.pose[i : i + 1], poses.loss[i], poses.start[i], poses.mesh[i]
                )

    def _report_other(self, path: Path, config: dict) -> None:
        """Print that a file has other settings. Raises as `collect`."""
        solver_settings = config.get("solve", {})
        precision = solver_settings.get("precision")
        here = self.settings.get("solve", {}).get("precision")
        # Compare the settings with those of this run, apart from the precision.
        with_precision_of_here = config | {"solve": solver_settings | {"precision": here}}
        if with_precision_of_here == self.settings and path != self.partial_file:
            raise ValueError(
                f"{path} was solved with PRECISION={precision}, this run has PRECISION={here}: "
                f"set PRECISION={precision} to use it, or delete it to solve its images again"
            )
        print(f"note: {path} is of other settings and is not used", file=sys.stderr)

    def has_all(self, names: Iterable[str]) -> bool:
        """Whether these images have a pose."""
        return all(name in self.images for name in names)

    def pose_set(self) -> PoseSet:
        """All poses so far, sorted by name."""
        # The order does not depend on which shard or run solved an image.
        names = sorted(self.images)
        solved = [self.images[name] for name in names]
        pose = Pose.joined([image.pose for image in solved])
        return PoseSet(
            self.category,
            self.level,
            np.array(names, dtype=str),
            pose=pose,
            loss=np.array([image.loss for image in solved]),
            start=np.array([image.start for image in solved]),
            mesh=np.array([image.mesh for image in solved]),
            config=self.settings,
        )

    def save_partial(self) -> None:
        """Write the poses of this shard so far; nothing when there are none."""
        if self.images:
            # The table is for people, who look at finished results alone.
            save_poses(self.partial_file, self.pose_set(), with_csv=False)

    def save_whole(self) -> PoseSet:
        """Write the poses of all shards, and delete the partial files that were merged.

        Raises ValueError when there are no poses.
        """
        if not self.images:
            raise ValueError(f"no test image of {self.category}{self.level} could be solved")
        # Partial files go only after the whole has been written.
        poses = self.pose_set()
        save_poses(self.target, poses)
        for path in {*self.merged_files, self.partial_file}:
            path.unlink(missing_ok=True)
        return poses
