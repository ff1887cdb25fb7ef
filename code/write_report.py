"""All results of an experiment -> one page, Report_<mesh>/index.html, for a browser.

It opens without a server or network, and covers every occlusion level that has poses: the table,
accuracy by category, errors, errors against azimuth, accuracy against occlusion, time by stage,
settings, and a gallery of the best, median and worst images.
"""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.report.scores import EvaluationSets
from neural_mesh.settings import MESH_DIMENSIONS
from neural_mesh.stages.write_report import write_report
from neural_mesh.storage.layout import Experiment, PreparedSet, RawPascal3D


def main() -> None:
    """Write the page, unless the one that is there was made from the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exp", type=arguments.path, required=True, help="folder of the results")
    parser.add_argument(
        "--clean",
        type=arguments.path,
        required=True,
        help="clean test set, whose annotations are the truth",
    )
    parser.add_argument(
        "--occluded",
        type=arguments.path,
        required=True,
        help="occluded test set; need not exist where no level was solved",
    )
    parser.add_argument(
        "--raw", type=arguments.path, required=True, help="PASCAL3D+_release1.1, for the meshes"
    )
    parser.add_argument(
        "--mesh-d",
        choices=MESH_DIMENSIONS,
        default="single",
        help="one cuboid per category or per CAD model",
    )
    arguments.add_cuboids(parser)
    arguments.add_azimuths(parser)
    arguments.add_categories(parser)
    args = parser.parse_args()
    experiment = Experiment(args.exp, args.mesh_d, args.azimuths)
    sets = EvaluationSets(PreparedSet(args.clean), PreparedSet(args.occluded))
    raw = RawPascal3D(args.raw, cuboid_root=args.cuboids)
    write_report(experiment, raw, sets, args.categories)


if __name__ == "__main__":
    console.run_main(main)
