"""The solver's plan from starts to poses: its camera, its candidates and its steps."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from neural_mesh.categories import category_settings
from neural_mesh.compare.scene import StepRules
from neural_mesh.digests import short_digest
from neural_mesh.geometry.cameras import MapCamera, consistent_camera, paper_camera
from neural_mesh.settings import NORMALISED_DISTANCE, SolveConfig

# The values of `best` were chosen with benchmarks/solvers.py on one half of its photographs, under
# several draws of occluders, and on sample data that the demo does not make. Secant and sign-based
# steps (BFGS, Rprop) came out worse than Adam's: the score is linear within a triangle and has
# kinks between triangles. For the same reason the best iterate is a worse pose than an average: it
# sits in a kink. Moving starts to the minimum of a parabola through the grid's losses did not help.

# Pairs (candidates, steps) of the stages.
BEST_STAGES = ((3, 3), (2, 5), (1, 20))
# In six dimensions all steps are taken and the best iterate is returned, which gives better places
# and distances than the average.
BEST_STAGES_6D = ((8, 5), (3, 10), (1, 24))
# Learning rates of the first and the last step, in radians; geometric in between.
BEST_RATES = (0.1, 0.03)
BEST_RATES_6D = (0.15, 0.01)
# See `Plan` for the meaning of these.
BEST_AVERAGING = 0.25
BEST_PATIENCE = 6
BEST_BETAS = (0.7, 0.7)
# Objects in crops are at about the start distance; more freedom costs accuracy under occlusion.
BEST_LOCAL_SCALE = 0.1
BEST_LOCAL_SCALE_6D = 0.5
# With this scale a unit step moves the picture as far as a turn by one radian moves its parts: an
# object of radius 0.5 CAD units is 5 units away.
PRINCIPAL_SCALE = 0.1
# Just above the distance of neighbours in the grid, which lead to the same pose.
BEST_SEPARATION = np.radians(35.0)


@dataclass(frozen=True)
class Plan:
    """How starts become poses.

    stages: pairs (candidates, steps) in order; each stage continues with the best candidates of the
    one before.
    rates [all steps]: learning rate of each step, the same for all candidates.
    betas: Adam's.
    local_scale: 0 takes steps in (centre, theta) as the reference does. Otherwise steps are
    (sideways, up, theta, log distance) in the camera's own frame; the first three are in radians,
    and the last is multiplied by local_scale. principal_scale: focal lengths by which a unit step
    moves the principal point; 0 keeps it fixed. separation: in radians; starts that are nearer than
    this to a better start come last. averaging: share of the newest iterate in a running average of
    the iterates, which is returned; 0 returns the last iterate. keep_best: return the best iterate
    instead. patience: number of evaluations in a row without a new lowest loss after which a
    candidate stops; 0 for never.
    """

    stages: tuple[tuple[int, int], ...]
    rates: NDArray[np.float64]
    betas: tuple[float, float]
    local_scale: float = 0.0
    principal_scale: float = 0.0
    separation: float = 0.0
    averaging: float = 0.0
    keep_best: bool = False
    patience: int = 0

    @property
    def evaluations(self) -> int:
        """Number of renderings compared with an image after the start grid, at most."""
        # The pose that is returned is evaluated once more at the end.
        return sum(candidates * steps for candidates, steps in self.stages) + self.stages[-1][0]

    @property
    def fingerprint(self) -> str:
        """A digest of the whole plan; poses of plans with different digests may differ."""
        values = [getattr(self, field.name) for field in fields(self)]
        plain = [x.tolist() if isinstance(x, np.ndarray) else x for x in values]
        return short_digest(repr(plain).encode())

    def rules(self, focal: float) -> StepRules:
        """The rules by which a renderer steps. focal: the camera's focal length in cells."""
        beta1, beta2 = self.betas
        return StepRules(
            beta1=float(beta1),
            beta2=float(beta2),
            local_scale=float(self.local_scale),
            principal_scale=float(self.principal_scale * focal),
            averaging=float(self.averaging),
            # 0 means no limit: one more than there are evaluations.
            patience=self.patience or self.evaluations + 1,
        )


def make_plan(config: SolveConfig, stages: tuple[tuple[int, int], ...] | None = None) -> Plan:
    """The plan of a solver.

    "paper" follows the schedule of `config`; "best" ignores it and uses `stages`, by default its
    own. Raises ValueError for a solver that does not exist.
    """
    principal_scale = PRINCIPAL_SCALE if config.six_d else 0.0
    if config.solver == "paper":
        # One candidate, the best start, takes all steps; the rate falls at regular intervals.
        steps = np.arange(config.total_epochs)
        rates = config.learning_rate * config.drop_factor ** (steps // config.step_drop)
        return Plan(
            stages=((1, config.total_epochs),),
            rates=rates,
            betas=config.adam_betas,
            principal_scale=principal_scale,
        )
    if config.solver != "best":
        raise ValueError(f"SOLVER must be paper or best, found {config.solver!r}")
    # The rates fall geometrically over the steps of all stages together.
    stages = stages or (BEST_STAGES_6D if config.six_d else BEST_STAGES)
    step_count = sum(steps for _, steps in stages)
    if config.six_d:
        return Plan(
            stages=stages,
            rates=np.geomspace(*BEST_RATES_6D, step_count),
            betas=BEST_BETAS,
            local_scale=BEST_LOCAL_SCALE_6D,
            principal_scale=principal_scale,
            separation=BEST_SEPARATION,
            keep_best=True,
        )
    return Plan(
        stages=stages,
        rates=np.geomspace(*BEST_RATES, step_count),
        betas=BEST_BETAS,
        local_scale=BEST_LOCAL_SCALE,
        principal_scale=principal_scale,
        separation=BEST_SEPARATION,
        averaging=BEST_AVERAGING,
        patience=BEST_PATIENCE,
    )


def choose_camera(
    config: SolveConfig, category: str, map_hw: tuple[int, int], image_scale: float = 1.0
) -> tuple[MapCamera, float]:
    """The camera that a solver renders with, and the distance of its start grid.

    "paper" uses the reference's 12 degree camera with the category's tuned distance, "best" the
    camera that the crops were made with.
    """
    if config.solver == "paper":
        return paper_camera(map_hw), category_settings(category).paper_distance
    return consistent_camera(map_hw, image_scale), NORMALISED_DISTANCE
