"""Fetch what is missing of PASCAL3D+, its image subsets and the occluded test sets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nemo import cli
from nemo.downloads import download, unpack
from nemo.layout import RawOccluded, RawPascal3D
from nemo.settings import DOWNLOADS, OCC_LEVELS, OCCLUDED_REPOSITORY


def fetch(entry: str, archive: Path, destination: Path, manual: str) -> None:
    """Download an archive, unpack it into a folder and delete it."""
    if not archive.is_file():
        download(entry, archive, manual)
    unpack(archive, destination)
    archive.unlink()


def fetch_pascal3d(raw: RawPascal3D, addresses: dict[str, str]) -> bool:
    """PASCAL3D+ itself, if its annotations are not there."""
    if (raw.root / "Annotations").is_dir():
        return False
    manual = f"download it yourself, unpack it so that {raw.root}/Annotations exists, and run the command again"
    if raw.root.name != "PASCAL3D+_release1.1":
        raise ValueError(f"{raw.root}/Annotations is not there, and the download unpacks as PASCAL3D+_release1.1; "
                         "let PATH_PASCAL3DP end in that name, or point it at a complete set")  # fmt: skip
    fetch(addresses["PASCAL3D+_release1.1"], raw.root.parent / "PASCAL3D+_release1.1.zip", raw.root.parent, manual)
    if not (raw.root / "Annotations").is_dir():
        raise ValueError(f"the archive of PASCAL3D+ was unpacked into {raw.root.parent}, but {raw.root}/Annotations is not there; {manual}")
    return True


def fetch_subsets(raw: RawPascal3D, addresses: dict[str, str]) -> bool:
    """The paper's image subsets; without them the official image sets serve, so a failure is told and survived."""
    if (raw.root / "Image_subsets").is_dir():
        return False
    manual = f"download it yourself and unpack it as {raw.root}/Image_subsets"
    try:
        fetch(addresses["Image_subsets"], raw.root / "Image_subsets.zip", raw.root, manual)
    except ValueError as error:
        print(f"note: {error}. Going on with Image_sets, whose split may differ from the paper's.", file=sys.stderr)
        return False
    return True


def fetch_level(occluded: RawOccluded, level: str, categories: tuple[str, ...], addresses: dict[str, str]) -> bool:
    """One occlusion level, if no category has it."""
    if any(occluded.folder(category, level).is_dir() for category in categories):
        return False
    manual = (
        f"download OccludedPASCAL3D_{level}.zip as {OCCLUDED_REPOSITORY} says, unpack it so that "
        f"{occluded.root}/images exists, and run the command again (or set ENABLE_OCCLUDED=false)"
    )
    if level not in addresses:
        raise ValueError(f"no address is known for occlusion level {level}; {manual}")
    fetch(addresses[level], occluded.root / f"OccludedPASCAL3D_{level}.zip", occluded.root, manual)
    return True


def address_pair(text: str) -> tuple[str, str]:
    """argparse type of NAME=ADDRESS."""
    name, sign, address = text.partition("=")
    if not sign or name not in DOWNLOADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ADDRESS with a NAME of {', '.join(DOWNLOADS)}")
    return name, address


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="PASCAL3D+_release1.1")
    parser.add_argument("--occluded", type=Path, help="OccludedPASCAL3D, if it is wanted")
    parser.add_argument("--levels", type=cli.words, default=OCC_LEVELS, help="occlusion levels")
    parser.add_argument("--address", type=address_pair, action="append", default=[], metavar="NAME=ADDRESS",
                        help="fetch NAME (as in settings.DOWNLOADS) from another address")  # fmt: skip
    cli.add_categories(parser)
    args = parser.parse_args()
    raw, addresses = RawPascal3D(args.raw), DOWNLOADS | dict(args.address)
    fetched = [fetch_pascal3d(raw, addresses), fetch_subsets(raw, addresses)]
    if args.occluded is not None:
        fetched += [fetch_level(RawOccluded(args.occluded), level, args.categories, addresses) for level in args.levels]
    print(f"data sets: {sum(fetched)} downloaded, {len(fetched) - sum(fetched)} already there or not to be had")


if __name__ == "__main__":
    cli.run_main(main)
