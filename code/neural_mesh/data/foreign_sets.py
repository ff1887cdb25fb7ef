"""Subsets that another program prepared, in folders that are the usual ones for it and for us.

The reference writes to the same places, and its annotations can be read. Such a subset is kept as
it is, or prepared again as a whole; nothing is written that would claim it for this program.
"""

from __future__ import annotations

from neural_mesh.categories import category_settings
from neural_mesh.data.crops import prepared_names
from neural_mesh.storage.layout import PreparedSet
from neural_mesh.storage.records import Annotation, is_of_others, load_annotation

REMEDY = "set OVERWRITE=true to prepare it again, or prepare into another folder"


def others_prepared(prepared: PreparedSet, subset: str) -> bool:
    """Whether another program prepared all of a subset.

    ValueError where it prepared only some of it, or SOURCE.json claims it: what its results would
    mean nobody could say.
    """
    names = prepared_names(prepared, subset)
    others = [name for name in names if is_of_others(prepared.annotation(subset, name))]
    if not others:
        return False
    folder = prepared.annotation(subset, "x").parent
    if len(others) < len(names) or prepared.source(subset).is_file():
        raise ValueError(
            f"{len(others)} of {len(names)} annotations in {folder} were made by another program, "
            f"the rest of {subset} was not; {REMEDY}"
        )
    if not prepared.listed(subset):
        raise ValueError(f"another program prepared {folder}, and left no lists of it; {REMEDY}")
    return True


def annotation_of_others(prepared: PreparedSet, category: str, level: str, name: str) -> Annotation:
    """One annotation of another program; ValueError when it cannot be used as it is."""
    path = prepared.annotation(category + level, name)
    try:
        annotation = load_annotation(path)
    except ValueError as error:
        raise ValueError(f"{error}; another program made it: {REMEDY}") from error
    crop_hw = category_settings(category).crop_hw
    if annotation.crop_hw != crop_hw:
        raise ValueError(
            f"{path} is of a crop of {annotation.crop_hw}, those of {category} are {crop_hw}; "
            f"another program made it: {REMEDY}"
        )
    return annotation
