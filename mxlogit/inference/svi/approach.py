"""Where second-order engines of q(theta) begin: few people show the way, everybody the curvature.

Far from the optimum a few hundred people at a time lead towards it for a fraction of the cost; and in coordinates that
a Laplace approximation whitens, curvature is about the identity (study design, 2,000 people: Hessian-free comes within
2 nats per 1,000 people of the best bound in a third of the time that it takes without).
"""

from __future__ import annotations

import math

import torch

from mxlogit.execution.people import People
from mxlogit.fit import HistoryRow
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.svi.guide_objective import GuideObjective, ObjectiveSettings
from mxlogit.inference.vi.newton import with_prior
from mxlogit.inference.vi.posterior import laplace_factor
from mxlogit.integration.marginal import MarginalLikelihood, Sweep
from mxlogit.optim.stochastic import Progress, lbfgs, settled

# People at a time, and how many times more there must be for that to save time.
_FEW_PEOPLE, _TIMES_MORE = 250, 4
_MOST_ITERATIONS, _SHORT_WINDOW = 40, 5
_SWEEP = Sweep(draws=16, tail=8, key=30, polish=10)


def approach(guide: AmortizedGuide, people: People, seed: int, clock: Clock) -> GaussianFactor:
    """Go near the optimum on few people, and return the Laplace approximation of everybody there.

    Parameters
    ----------
    guide : AmortizedGuide
        Without networks; where it stands is where to begin.
    people : People
    seed : int
    clock : Clock

    Returns
    -------
    GaussianFactor
    """
    first = laplace(guide, people, seed, clock)
    if len(people) < _TIMES_MORE * _FEW_PEOPLE:
        return first
    near = AmortizedGuide(guide.model, first, None, guide.polish_steps)
    settings = ObjectiveSettings(points=2 * guide.model.space.size, batch=_FEW_PEOPLE)
    objective = GuideObjective(near, people.alone(), settings, seed)
    values: list[float] = []
    before = clock.passes

    def tell(iteration: int, value: float, gradients: float, kept: bool) -> bool:  # noqa: FBT001
        values.append(value)
        passes = before + gradients * settings.points * _FEW_PEOPLE / len(people)
        row = HistoryRow(f"few people {iteration}", -value, math.nan, passes, clock.seconds(), kept)
        clock.history.append(row)
        return not (clock.is_over() or settled(values, _SHORT_WINDOW))

    objective.load(lbfgs(objective, objective.vector(), _MOST_ITERATIONS, Progress(tell)))
    clock.passes = clock.history[-1].passes
    clock.tell(f"few people: {len(values)} iterations, bound {-values[-1]:.1f}")
    return laplace(near, people, seed, clock)


@torch.no_grad()
def laplace(guide: AmortizedGuide, people: People, seed: int, clock: Clock) -> GaussianFactor:
    """Laplace approximation, one Newton step from the mean of a guide's q(theta), by the scores of everybody."""
    model = guide.model
    population = model.space.constrain(guide.population_factor().mean)
    marginal = MarginalLikelihood(people, model.space, model.mixing, seed)
    found = with_prior(model, population, marginal.sweep(population, _SWEEP))
    clock.passes += 1
    return laplace_factor(model, population, found.curvature, found.gradient)
