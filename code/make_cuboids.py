"""CAD models -> cuboid meshes: one per category (single) or one per CAD model (multi)."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from neural_mesh.geometry.meshes import Mesh, cuboid_grid, cuboid_mesh, same_meshes
from neural_mesh.machine import arguments, console
from neural_mesh.settings import EXACT_MINIMUM_THICKNESS, MESH_DIMENSIONS, CuboidConfig
from neural_mesh.storage.files import holds, lock, write_text
from neural_mesh.storage.layout import RawPascal3D
from neural_mesh.storage.mesh_files import read_off, write_off


def make_cuboids(
    raw: RawPascal3D, category: str, mesh_d: str, config: CuboidConfig, overwrite: bool
) -> int:
    """Write the cuboids of a category; returns how many there are.

    What is there is kept when it was made from the same CAD models with the same settings, or would come out the same, or
    was put there by hand before any was made (a checkpoint may need it). Raises ValueError when it was made otherwise and
    `overwrite` is False: vertex annotations and checkpoints belong to it.
    """
    cads = raw.cads(category)
    folder, record = raw.cuboid_folder(mesh_d, category), raw.cuboid_source(mesh_d, category)
    groups = {"01.off": cads} if mesh_d == "single" else {path.name: [path] for path in cads}
    source = console.as_json(
        asdict(config)
        | {
            "cads_sha256": {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in cads
            }
        }
    )
    known = holds(record, source)
    if known and not overwrite and all((folder / name).is_file() for name in groups):
        return len(groups)
    with lock(raw.root, f"cuboids-{mesh_d}-{category}", f"the {mesh_d} cuboids of {category}"):
        known = holds(record, source)  # another run may have been here meanwhile
        wanted = {
            folder / name: sources
            for name, sources in groups.items()
            if overwrite or not (known and (folder / name).is_file())
        }
        meshes = {target: _cuboid_around(sources, config) for target, sources in wanted.items()}
        for target in [target for target in meshes if target.is_file()]:
            if overwrite:
                target.unlink()  # so that a kill on the way leaves none that the record below does not tell the truth about
                continue
            if not same_meshes([read_off(target)], [meshes.pop(target)]):
                if record.is_file():
                    raise ValueError(
                        f"{target} was made from other CAD models or with other settings; set OVERWRITE=true to make it "
                        "again, and what was annotated and trained with it, or use another PATH_PASCAL3DP"
                    )
                print(
                    f"note: {target} is not what its CAD model gives; kept, since it was put there by hand",
                    file=sys.stderr,
                )
        write_text(record, source)
        for target, mesh in meshes.items():
            write_off(target, mesh)
    return len(groups)


def _cuboid_around(cads: list[Path], config: CuboidConfig) -> Mesh:
    points = np.concatenate([read_off(path).vertices for path in cads])
    try:
        return cuboid_mesh(cuboid_grid(points, config.number_vertices, config.minimum_thickness))
    except ValueError as error:
        raise ValueError(f"{cads[0]}: {error}") from error


def thickness(text: str) -> float:
    """argparse type of a share of a length, [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def main() -> None:
    """Make the cuboids of all categories."""
    default = CuboidConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--raw", type=Path, required=True, help="PASCAL3D+_release1.1, with CAD/<category>/NN.off"
    )
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    parser.add_argument(
        "--number-vertices",
        type=arguments.positive,
        default=default.number_vertices,
        help="that a cuboid aims at",
    )
    parser.add_argument(
        "--geometry",
        choices=("paper", "exact"),
        default="paper",
        help="decides what --minimum-thickness is by default",
    )
    parser.add_argument(
        "--minimum-thickness",
        type=thickness,
        help="of a side, as a share of the longest; 0, the default of paper: flat axes collapse as in the reference; "
        f"{EXACT_MINIMUM_THICKNESS}: the default of exact",
    )
    parser.add_argument("--overwrite", type=arguments.boolean, default=False)
    arguments.add_categories(parser)
    args = parser.parse_args()
    raw = RawPascal3D(console.require_folder(args.raw, "PASCAL3D+", "set PATH_PASCAL3DP"))
    at_least = args.minimum_thickness
    if at_least is None:
        at_least = (
            EXACT_MINIMUM_THICKNESS if args.geometry == "exact" else default.minimum_thickness
        )
    config = CuboidConfig(args.number_vertices, at_least)
    meshes = sum(
        make_cuboids(raw, category, args.mesh_d, config, args.overwrite)
        for category in args.categories
    )
    print(
        f"{args.mesh_d}: {console.count(meshes, 'cuboid')} of {console.count(len(args.categories), 'category')} in {raw.root}/CAD_{args.mesh_d}"
    )


if __name__ == "__main__":
    console.run_main(main)
