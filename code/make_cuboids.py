"""CAD models -> cuboid meshes: one per category (single) or one per CAD model (multi)."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nemo import cli
from nemo.layout import RawPascal3D
from nemo.meshes import NUMBER_VERTICES, cuboid_grid, cuboid_mesh, read_off, write_off
from nemo.settings import MESH_DIMENSIONS


def make_cuboids(raw: RawPascal3D, category: str, mesh_d: str, number_vertices: int, thickness: float, overwrite: bool) -> int:
    """Write the cuboids of a category; returns how many there are. Finished ones are kept unless overwrite."""
    cads = raw.cads(category)
    folder = raw.cuboid_folder(mesh_d, category)
    groups = {"01.off": cads} if mesh_d == "single" else {path.name: [path] for path in cads}
    for name, sources in groups.items():
        target = folder / name
        if overwrite or not target.is_file():
            points = np.concatenate([read_off(path).vertices for path in sources])
            try:
                write_off(target, cuboid_mesh(cuboid_grid(points, number_vertices, thickness)))
            except ValueError as error:
                raise ValueError(f"{sources[0]}: {error}") from error
    return len(groups)


def main() -> None:
    """Make the cuboids of all categories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1, with CAD/<category>/NN.off")
    parser.add_argument("--mesh-d", choices=MESH_DIMENSIONS, required=True)
    parser.add_argument("--number-vertices", type=cli.positive, default=NUMBER_VERTICES)
    parser.add_argument("--minimum-thickness", type=float, default=0.0,
                        help="of a side, as a share of the longest; 0 = the paper's, whose flat axes collapse")  # fmt: skip
    parser.add_argument("--overwrite", type=cli.boolean, default=False)
    cli.add_categories(parser)
    args = parser.parse_args()
    raw = RawPascal3D(cli.require_folder(args.raw, "PASCAL3D+", "set PATH_PASCAL3DP"))
    meshes = sum(
        make_cuboids(raw, category, args.mesh_d, args.number_vertices, args.minimum_thickness, args.overwrite)
        for category in args.categories
    )
    print(f"{args.mesh_d}: {cli.count(meshes, 'cuboid')} of {cli.count(len(args.categories), 'category')} in {raw.root}/CAD_{args.mesh_d}")


if __name__ == "__main__":
    cli.run_main(main)
