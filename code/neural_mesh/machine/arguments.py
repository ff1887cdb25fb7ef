"""Types of command-line arguments, checked as they are read, and the options that stages share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from neural_mesh.backbones import full_name
from neural_mesh.categories import CATEGORIES
from neural_mesh.settings import ALL_AZIMUTHS, MESH_DIMENSIONS, Azimuths
from neural_mesh.storage.files import plain_name

T = TypeVar("T")

# ---- types ---------------------------------------------------------------------------------------


def boolean(text: str) -> bool:
    """argparse type of true/false, so that "False" is not true."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no", ""):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def positive(text: str) -> int:
    """argparse type of an integer > 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def count_or_none(text: str) -> int:
    """argparse type of an integer >= 0."""
    # Digits alone: no sign, no fraction.
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def not_negative(text: str) -> float:
    """argparse type of a finite number >= 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def recipe_or(type_: Callable[[str], T]) -> Callable[[str], T | None]:
    """argparse type of what RECIPE switches unless it is set: None for `recipe`."""

    def read(text: str) -> T | None:
        return None if text == "recipe" else type_(text)

    return read


def backbone(text: str) -> str:
    """argparse type of a backbone: its full name."""
    try:
        return full_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def seed(text: str) -> int:
    """argparse type of an integer >= 0 that all random generators take."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def fraction(text: str) -> float:
    """argparse type of a number in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def at_home(text: str) -> str:
    """argparse type of a text that may be a path: a `~` that no shell has replaced is the home."""
    if text != "~" and not text.startswith("~/"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r}: no home folder is known here") from None


def path(text: str) -> Path:
    """argparse type of a path, which may begin with `~`."""
    return Path(at_home(text))


def optional_path(text: str) -> Path | None:
    """argparse type of a path that may be left empty."""
    return path(text) if text else None


def words(text: str) -> tuple[str, ...]:
    """argparse type of a list with spaces, commas or semicolons in it."""
    return tuple(text.replace(",", " ").replace(";", " ").split())


def names(text: str) -> tuple[str, ...]:
    """argparse type of a list of names that become parts of paths."""
    try:
        # No name may lead out of the folder that it becomes part of.
        return tuple(plain_name(name, "a name on the command line") for name in words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def categories(text: str) -> tuple[str, ...]:
    """argparse type of a list of categories, each of which counts once."""
    given = names(text)
    once = tuple(dict.fromkeys(given))
    if len(once) < len(given):
        print(f"note: of {' '.join(given)} each counts once", file=sys.stderr)
    return once


def level(text: str) -> str:
    """argparse type of an occlusion level, or of none: it becomes part of paths."""
    return names(text)[0] if text else ""


def azimuths(text: str) -> Azimuths:
    """argparse type of PATTERN or PATTERN:seen, such as TFFTTFFT:unseen; empty: all azimuths."""
    pattern, _, tested = text.partition(":")
    try:
        return Azimuths(pattern, tested or "unseen")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# ---- options that several stages share -----------------------------------------------------------


def add_categories(parser: argparse.ArgumentParser) -> None:
    """Add --categories, the 12 of PASCAL3D+ unless told."""
    parser.add_argument(
        "--categories",
        type=categories,
        default=tuple(CATEGORIES),
        help="names, separated by spaces",
    )


def add_level(parser: argparse.ArgumentParser) -> None:
    """Add --level, none unless told."""
    parser.add_argument("--level", type=level, default="", help="occlusion level such as FGL1_BGL1")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite, false unless told."""
    parser.add_argument(
        "--overwrite",
        type=boolean,
        default=False,
        help="delete what is there of these categories first",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers, as a text that `workers.worker_count` reads."""
    parser.add_argument("--workers", default="auto", help="processes, or auto: one per core")


def add_azimuths(parser: argparse.ArgumentParser) -> None:
    """Add --azimuths, all unless told."""
    parser.add_argument(
        "--azimuths",
        type=azimuths,
        default=ALL_AZIMUTHS,
        metavar="PATTERN[:seen]",
        help="azimuths trained on, such as TFFTTFFT; "
        "tested on the others, or with :seen on the same",
    )


def add_cuboids(parser: argparse.ArgumentParser) -> None:
    """Add --cuboids."""
    parser.add_argument(
        "--cuboids",
        type=path,
        help="folder of CAD_single and CAD_multi where --raw cannot be written",
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add what names a trained network, the images it is used on, and where its results lie."""
    parser.add_argument("--raw", type=path, required=True, help="PASCAL3D+_release1.1")
    parser.add_argument(
        "--prepared", type=path, required=True, help="test set made by PrepareData.sh"
    )
    parser.add_argument("--exp", type=path, required=True, help="folder of the results")
    parser.add_argument(
        "--save-dir", type=path, help="folder of the checkpoints, if not <exp>/NeMo_<mesh>"
    )
    parser.add_argument(
        "--load-file-name",
        default="saved_model_%s_last.pth",
        help="checkpoint; %%s stands for the category",
    )
    parser.add_argument(
        "--mesh-d",
        choices=MESH_DIMENSIONS,
        default="single",
        help="one cuboid per category or per CAD model",
    )
    add_cuboids(parser)
    add_level(parser)
    parser.add_argument(
        "--gpus", default="all", help="all or indices, the first is used; empty: CPU"
    )
    add_azimuths(parser)
    add_categories(parser)


def into_dataclass(kind: type[T], args: argparse.Namespace) -> T:
    """The dataclass `kind`, filled with the arguments of the same names as its fields."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
