"""Fetch what is missing of PASCAL3D+, its image subsets and the occluded test sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from neural_mesh.data.archives import half_unpacked, unpack
from neural_mesh.data.downloads import DownloadError, download
from neural_mesh.machine import arguments, console
from neural_mesh.settings import DOWNLOADS, OCC_LEVELS, OCCLUDED_REPOSITORY
from neural_mesh.storage.files import lock
from neural_mesh.storage.layout import RawOccluded, RawPascal3D


def fetch(
    entry: str, archive: Path, destination: Path, there: Callable[[], bool], manual: str
) -> bool:
    """Download an archive, unpack it into a folder and delete it, unless all of it is there; returns whether it was not."""

    def complete() -> bool:
        return there() and not half_unpacked(archive, destination)

    if complete():
        return False
    with lock(destination, "unpack", f"what {archive.name} holds"):
        if complete():  # by another run, meanwhile
            return False
        if not archive.is_file():
            download(entry, archive, manual)
        unpack(archive, destination)
        archive.unlink()
    return True


def fetch_pascal3d(raw: RawPascal3D, addresses: dict[str, str]) -> bool:
    """PASCAL3D+ itself, if its annotations are not there."""
    annotations, archive = raw.root / "Annotations", raw.root.parent / "PASCAL3D+_release1.1.zip"
    manual = (
        f"download it yourself, unpack it so that {annotations} exists, and run the command again"
    )
    if raw.root.name != "PASCAL3D+_release1.1":
        if annotations.is_dir():
            return False
        raise ValueError(
            f"{annotations} is not there, and the download unpacks as PASCAL3D+_release1.1; "
            "let PATH_PASCAL3DP end in that name, or point it at a complete set"
        )
    fetched = fetch(
        addresses["PASCAL3D+_release1.1"], archive, raw.root.parent, annotations.is_dir, manual
    )
    if not annotations.is_dir():
        raise ValueError(
            f"the archive of PASCAL3D+ was unpacked into {raw.root.parent}, but {annotations} is not there; {manual}"
        )
    return fetched


def fetch_subsets(raw: RawPascal3D, addresses: dict[str, str]) -> bool:
    """The paper's image subsets; without them the official image sets serve, so a failure is told and survived."""
    subsets = raw.root / "Image_subsets"
    try:
        return fetch(
            addresses["Image_subsets"],
            raw.root / "Image_subsets.zip",
            raw.root,
            subsets.is_dir,
            f"download it yourself and unpack it as {subsets}",
        )
    except DownloadError as error:
        print(
            f"note: {error}. Going on with Image_sets, whose split may differ from the paper's.",
            file=sys.stderr,
        )
        return False


def fetch_level(
    occluded: RawOccluded, level: str, categories: tuple[str, ...], addresses: dict[str, str]
) -> bool:
    """One occlusion level, if no category has it."""

    def there() -> bool:
        return any(occluded.folder(category, level).is_dir() for category in categories)

    archive = occluded.root / f"OccludedPASCAL3D_{level}.zip"
    manual = (
        f"download OccludedPASCAL3D_{level}.zip as {OCCLUDED_REPOSITORY} says, unpack it so that "
        f"{occluded.root}/images exists, and run the command again (or set ENABLE_OCCLUDED=false)"
    )
    if level not in addresses:
        if there():
            return False
        raise ValueError(f"no address is known for occlusion level {level}; {manual}")
    return fetch(addresses[level], archive, occluded.root, there, manual)


def address_pair(text: str) -> tuple[str, str]:
    """argparse type of NAME=ADDRESS."""
    name, sign, address = text.partition("=")
    if not sign or name not in DOWNLOADS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=ADDRESS with a NAME of {', '.join(DOWNLOADS)}"
        )
    return name, address


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1")
    parser.add_argument("--occluded", type=Path, help="OccludedPASCAL3D, if it is wanted")
    parser.add_argument("--levels", type=arguments.words, default=OCC_LEVELS, help="occlusion levels")
    parser.add_argument(
        "--address",
        type=address_pair,
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="fetch NAME (as in settings.DOWNLOADS) from another address",
    )
    arguments.add_categories(parser)
    args = parser.parse_args()
    raw, addresses = RawPascal3D(args.raw), DOWNLOADS | dict(args.address)
    fetched = [fetch_pascal3d(raw, addresses), fetch_subsets(raw, addresses)]
    if args.occluded is not None:
        fetched += [
            fetch_level(RawOccluded(args.occluded), level, args.categories, addresses)
            for level in args.levels
        ]
    print(
        f"data sets: {sum(fetched)} downloaded, {len(fetched) - sum(fetched)} already there or not to be had"
    )


if __name__ == "__main__":
    console.run_main(main)
