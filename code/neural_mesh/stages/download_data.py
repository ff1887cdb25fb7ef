"""Fetch what is missing of PASCAL3D+, its image subsets and the occluded test sets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from neural_mesh.categories import CATEGORIES
from neural_mesh.data.archives import half_unpacked, unpack
from neural_mesh.data.downloads import DownloadError, download
from neural_mesh.settings import DOWNLOADS, OCC_LEVELS, OCCLUDED_REPOSITORY
from neural_mesh.storage.files import can_be_written, lock
from neural_mesh.storage.layout import RawOccluded, RawPascal3D

PASCAL3D_FOLDER = "PASCAL3D+_release1.1"  # as its archive unpacks


def download_data(
    raw: Path,
    occluded: Path | None = None,
    levels: Sequence[str] = OCC_LEVELS,
    categories: Sequence[str] = tuple(CATEGORIES),
    other_addresses: Mapping[str, str] | None = None,
) -> None:
    """Fetch what is missing, and say how many data sets that was.

    raw: PASCAL3D+_release1.1. occluded: OccludedPASCAL3D, if its levels are wanted.
    other_addresses: by a name in settings.DOWNLOADS, in the place of those there.
    """
    # What the user gives wins over the settings.
    addresses = DOWNLOADS | dict(other_addresses or {})
    raw_set = RawPascal3D(raw)
    _tell_where(raw_set)
    # PASCAL3D+ comes first, because the image subsets are unpacked into its folder.
    fetched = [fetch_pascal3d(raw_set, addresses), fetch_subsets(raw_set, addresses)]
    if occluded is not None:
        for level in levels:
            fetched.append(fetch_level(RawOccluded(occluded), level, categories, addresses))
    new = sum(fetched)
    print(f"data sets: {new} downloaded, {len(fetched) - new} already there or not to be had")


def _tell_where(raw: RawPascal3D) -> None:
    """Say which folders were unpacked one level too deep, and are read there."""
    for name in ("Annotations", "Images", "Image_sets", "Image_subsets", "CAD"):
        folder = raw.folder(name)
        if folder != raw.root / name:
            print(f"note: {folder} was unpacked one folder too deep; it is read", file=sys.stderr)


def fetch_pascal3d(raw: RawPascal3D, addresses: Mapping[str, str]) -> bool:
    """PASCAL3D+ itself, if its annotations are not there; returns whether they were not."""
    annotations = raw.root / "Annotations"
    folder = raw.root.parent

    def is_there() -> bool:
        return raw.folder("Annotations").is_dir()

    # The archive contains the top folder itself, so its name cannot be chosen.
    if raw.root.name != PASCAL3D_FOLDER:
        if is_there():
            return False
        raise ValueError(
            f"{annotations} is not there, and the download unpacks as {PASCAL3D_FOLDER}; "
            "let PATH_PASCAL3DP end in that name, or point it at a complete set"
        )
    manual = (
        f"download it yourself, unpack it so that {annotations} exists, and run the command again"
    )
    archive = folder / f"{PASCAL3D_FOLDER}.zip"
    fetched = fetch(addresses[PASCAL3D_FOLDER], archive, folder, is_there, manual)
    # An archive of another layout leaves nothing where it is looked for.
    if not is_there():
        raise ValueError(
            f"the archive of PASCAL3D+ was unpacked into {folder}, "
            f"but {annotations} is not there; {manual}"
        )
    return fetched


def fetch_subsets(raw: RawPascal3D, addresses: Mapping[str, str]) -> bool:
    """The paper's image subsets; returns whether they were fetched.

    Without them the official image sets serve, so a failure is told and survived.
    """
    subsets = raw.root / "Image_subsets"
    archive = raw.root / "Image_subsets.zip"
    manual = f"download it yourself and unpack it as {subsets}"

    def is_there() -> bool:
        return raw.folder("Image_subsets").is_dir()

    # On shared machines PASCAL3D+ is often read-only, which is no reason to stop.
    if not is_there() and not can_be_written(raw.root):
        print(
            f"note: {subsets} is not there, and {raw.root} cannot be written. Going on with "
            "Image_sets, whose split may differ from the paper's.",
            file=sys.stderr,
        )
        return False
    try:
        return fetch(addresses["Image_subsets"], archive, raw.root, is_there, manual)
    except DownloadError as error:
        print(
            f"note: {error}. Going on with Image_sets, whose split may differ from the paper's.",
            file=sys.stderr,
        )
        return False


def fetch_level(
    occluded: RawOccluded, level: str, categories: Sequence[str], addresses: Mapping[str, str]
) -> bool:
    """One occlusion level, if no category has it; returns whether it was fetched."""

    def is_there() -> bool:
        return any(occluded.folder(category, level).is_dir() for category in categories)

    manual = (
        f"download OccludedPASCAL3D_{level}.zip as {OCCLUDED_REPOSITORY} says, "
        f"unpack it so that {occluded.root}/images exists, and run the command again "
        "(or set ENABLE_OCCLUDED=false)"
    )
    # Levels that the user made with make_occluded.py need no address.
    if level not in addresses:
        if is_there():
            return False
        raise ValueError(f"no address is known for occlusion level {level}; {manual}")
    archive = occluded.root / f"OccludedPASCAL3D_{level}.zip"
    return fetch(addresses[level], archive, occluded.root, is_there, manual)


def fetch(
    entry: str, archive: Path, destination: Path, is_there: Callable[[], bool], manual: str
) -> bool:
    """Download an archive, unpack it into a folder and delete it, unless all of it is there.

    Returns whether it was not.
    """

    def is_complete() -> bool:
        return is_there() and not half_unpacked(archive, destination)

    if is_complete():
        return False
    with lock(destination, "unpack", f"what {archive.name} holds"):
        if is_complete():  # by another run, meanwhile
            return False
        if not archive.is_file():
            download(entry, archive, manual)
        unpack(archive, destination)
        # It is deleted last, so that an unpacking that was killed needs no second download.
        archive.unlink()
    return True
