"""The models of the sample data, by category.

To add a category, write one function that returns its models and name it in `MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from neural_mesh.sample.car_shapes import PICKUP, SEDAN, SUV
from neural_mesh.sample.cars import car
from neural_mesh.sample.chairs import armchair, shell_chair, slatted_chair
from neural_mesh.sample.parts import Model

MODELS: dict[str, tuple[Callable[[], Model], ...]] = {
    "car": (partial(car, SEDAN), partial(car, SUV), partial(car, PICKUP)),
    "chair": (slatted_chair, armchair, shell_chair),
}


@cache
def models(category: str) -> tuple[Model, ...]:
    """Build the CAD models of a category, cad_index 1 first; ValueError for an unknown category."""
    if category not in MODELS:
        raise ValueError(f"no sample models of {category!r}; there are {', '.join(MODELS)}")
    return tuple(make() for make in MODELS[category])
