"""CAD models -> cuboid meshes: one per category (single) or one per CAD model (multi)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from neural_mesh.categories import CATEGORIES
from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh, same_meshes
from neural_mesh.machine import console
from neural_mesh.settings import EXACT_MINIMUM_THICKNESS, CuboidConfig
from neural_mesh.storage.files import holds, lock, write_text
from neural_mesh.storage.layout import RawPascal3D
from neural_mesh.storage.mesh_files import read_off, read_off_vertices, write_off

DEFAULT = CuboidConfig()


@dataclass(frozen=True)
class CuboidOptions:
    """Which cuboids are made, and how.

    raw: PASCAL3D+_release1.1, with CAD/<category>/NN.off. mesh_d: single or multi. geometry: paper
    or exact; decides what minimum_thickness is where it is None. cuboids: where they are made if
    `raw` cannot be written.
    """

    raw: Path
    mesh_d: str
    categories: tuple[str, ...] = tuple(CATEGORIES)
    number_vertices: int = DEFAULT.number_vertices
    geometry: str = "paper"
    minimum_thickness: float | None = None
    overwrite: bool = False
    cuboids: Path | None = None

    @property
    def config(self) -> CuboidConfig:
        thickness = self.minimum_thickness
        if thickness is None and self.geometry == "exact":
            thickness = EXACT_MINIMUM_THICKNESS
        elif thickness is None:
            thickness = DEFAULT.minimum_thickness
        return CuboidConfig(self.number_vertices, thickness)


def make_cuboids(options: CuboidOptions) -> None:
    """Make the cuboids of all categories, and say how many there are."""
    root = console.require_folder(options.raw, "PASCAL3D+", "set PATH_PASCAL3DP")
    raw = RawPascal3D(root, cuboid_root=options.cuboids)
    meshes = 0
    for category in options.categories:
        meshes += make_category(raw, category, options.mesh_d, options.config, options.overwrite)
    cuboids = console.count(meshes, "cuboid")
    categories = console.count(len(options.categories), "category")
    # Some categories may lie in the raw set and others where it could not be written.
    folders = {raw.cuboid_folder(options.mesh_d, category) for category in options.categories}
    places = " and ".join(sorted({str(folder.parent) for folder in folders}))
    print(f"{options.mesh_d}: {cuboids} of {categories} in {places}")


def make_category(
    raw: RawPascal3D, category: str, mesh_d: str, config: CuboidConfig, overwrite: bool
) -> int:
    """Write the cuboids of a category; returns how many there are.

    What is there is kept when it was made from the same CAD models with the same settings, or would
    come out the same, or was put there by hand before any was made (a checkpoint may need it).
    Raises ValueError when it was made otherwise and `overwrite` is False: vertex annotations and
    checkpoints belong to it.
    """
    cads = raw.cads(category)
    folder = raw.cuboid_folder(mesh_d, category, overwrite)
    if mesh_d == "single":
        # One cuboid around all CAD models, or one around each.
        cads_of = {folder / "01.off": cads}
    else:
        cads_of = {folder / path.name: [path] for path in cads}
    record = raw.cuboid_source(mesh_d, category, overwrite)
    source = _source(cads, config)
    # Mostly nothing is left to do, which is found out without the lock.
    complete = holds(record, source) and all(target.is_file() for target in cads_of)
    if complete and not overwrite:
        return len(cads_of)
    with lock(record.parent, f"cuboids-{category}", f"the {mesh_d} cuboids of {category}"):
        # Another run may have been here meanwhile.
        is_known = holds(record, source)
        # What is missing or was made otherwise, and, with `overwrite`, everything.
        meshes = {
            target: _cuboid_around(sources, config)
            for target, sources in cads_of.items()
            if overwrite or not (is_known and target.is_file())
        }
        for target in [target for target in meshes if target.is_file()]:
            if overwrite:
                # A kill on the way then leaves none that the record says a wrong thing about.
                target.unlink()
            elif not same_meshes([read_off(target)], [meshes.pop(target)]):
                _keep_if_by_hand(target, record)
        # The record comes first: a kill on the way leaves cuboids missing, none of unknown origin.
        write_text(record, source)
        for target, mesh in meshes.items():
            write_off(target, mesh)
    return len(cads_of)


def _source(cads: Sequence[Path], config: CuboidConfig) -> str:
    """From which CAD models cuboids are made, and how."""
    # The content is compared, because copying a data set changes the times of its files.
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in cads}
    return console.as_json(asdict(config) | {"cads_sha256": digests})


def _cuboid_around(cads: Sequence[Path], config: CuboidConfig) -> Mesh:
    """The cuboid around CAD models; ValueError, naming the first, when there is none."""
    points = np.concatenate([read_off_vertices(path) for path in cads])
    try:
        return cuboid_mesh(cuboid_grid(points, config.number_vertices, config.minimum_thickness))
    except ValueError as error:
        raise ValueError(f"{cads[0]}: {error}") from error


def _keep_if_by_hand(target: Path, record: Path) -> None:
    """ValueError for a cuboid that was made otherwise; a note for one put there by hand."""
    # Only cuboids that this program made have a record beside them.
    if record.is_file():
        raise ValueError(
            f"{target} was made from other CAD models or with other settings; "
            "set OVERWRITE=true to make it again, and what was annotated and trained with it, "
            "or use another PATH_PASCAL3DP"
        )
    print(
        f"note: {target} is not what its CAD model gives; kept, since it was put there by hand",
        file=sys.stderr,
    )
