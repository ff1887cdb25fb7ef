"""The categories that CATEGORIES stands for, for the scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from neural_mesh.categories import CATEGORIES, category_meant, did_you_mean, pascal3d_name
from neural_mesh.storage.files import plain_name
from neural_mesh.storage.layout import PreparedSet, RawPascal3D


def list_categories(names: Sequence[str], data: Sequence[Path] = ()) -> None:
    """Print the categories on a line, each once and as the data sets call it.

    A name that certainly means a category is accepted, which a note says. data: raw and prepared
    sets; what is there already wins over what PASCAL3D+ would call it. Raises ValueError when there
    is no category, or a name that cannot be one.
    """
    known: set[str] = set()
    for folder in data:
        known |= RawPascal3D(folder).categories() | PreparedSet(folder).subsets()
    categories = [category_named(name, known) for name in names]
    if not categories:
        raise ValueError("CATEGORIES is empty, it holds names such as car")
    # Listed twice, a category would go through every stage twice.
    for name in sorted({name for name in categories if categories.count(name) > 1}):
        print(f"note: CATEGORIES has {name} more than once, it counts once", file=sys.stderr)
    print(*dict.fromkeys(categories))


def category_named(name: str, known: set[str]) -> str:
    """The category that a name means, of those that are there or of PASCAL3D+."""
    meant = category_meant(name, known) or pascal3d_name(name)
    if meant and meant != name:
        print(f"note: {name} in CATEGORIES is taken for {meant}", file=sys.stderr)
        return meant
    # A near miss is taken for a typing error, while a name that resembles no other may well be a
    # category of the user's own data.
    hint = did_you_mean(name, known or CATEGORIES)
    if not meant and hint:
        raise ValueError(f"CATEGORIES names {name}, which is not there{hint}?")
    return plain_name(name, "CATEGORIES")
