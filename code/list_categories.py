"""Print the categories that CATEGORIES stands for on a line, as the data sets call them."""

from __future__ import annotations

import argparse

from neural_mesh.machine import arguments, console
from neural_mesh.stages.list_categories import list_categories


def main() -> None:
    """Check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option("--categories", type=arguments.words, required=True, help="names, as a person types")
    option(
        "--data",
        type=arguments.path,
        nargs="*",
        default=(),
        help="raw and prepared sets that may be",
    )
    args = parser.parse_args()
    list_categories(args.categories, args.data)


if __name__ == "__main__":
    console.run_main(main)
