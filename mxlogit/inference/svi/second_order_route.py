"""Engines that optimise the bound of a guide under fixed draws: Adam, L-BFGS, Hessian-free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from mxlogit.diagnostics.record import Diagnostics
from mxlogit.fit import Fit, HistoryRow, Outcome, Status
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.report import draw_samples, evaluate_center, report_fit
from mxlogit.inference.svi.fixed_draws import FIRST_DRAWS, FixedDraws, minimise_fixed_draws
from mxlogit.inference.svi.guide_objective import GuideObjective, ObjectiveSettings
from mxlogit.inference.svi.guides import make_guide
from mxlogit.inference.svi.plan import GuidePlan
from mxlogit.inference.svi.training import Training
from mxlogit.inference.svi.warm_start import warm_start
from mxlogit.inference.task import Task
from mxlogit.inference.vi.assessment import assess_gaussian, assess_people
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import ImportanceTastes
from mxlogit.optim.stochastic import Batches, Progress, adam, hessian_free, lbfgs, settled

# Constants are chosen by hand.
# Default numbers of iterations without a time limit.
_ITERATIONS = {"adam": 2_000, "lbfgs": 150, "hessian_free": 60}
# Number of iterations with a time limit.
_ENDLESS = 10**9
# Most points of theta per iteration, of which there are two per dimension; number of points if networks are trained.
_MOST_POINTS = 128
_POINTS_WITH_NETWORKS = 8
# Draws of each person's tastes, by whether they are fixed for the whole search: the error of fixed draws does not
# average out over iterations.
_DRAWS = {False: 16, True: 128}
# Smallest allowed number of draws, used without random coefficients.
_NO_DRAWS = 4
# People for Hessian-vector products: this part of the batch, but at least CURVATURE_PEOPLE.
_CURVATURE_SHARE = 4
CURVATURE_PEOPLE = 300
# Share of people under one key above which batches do not grow any further.
_NEARLY_ALL_PEOPLE = 0.9
# Variational steps of people's factors after the fit.
_VARIATIONAL_STEPS = 2


@dataclass(frozen=True)
class BoundPlan:
    """Settings of `mxlogit.SVI` and `mxlogit.DADVI` for the route on a guide's bound, under their parameter names.

    Attributes
    ----------
    guide : GuidePlan
    optimizer : {"adam", "hessian_free", "lbfgs", "fixed_draws"}
    training : Training
    objective : {"auto", "iwae", "elbo"}
    noise : {"antithetic", "sobol"}
    draws : int or None
    degrees_of_freedom : int or None
    n_samples : int
    """

    guide: GuidePlan
    optimizer: str
    training: Training
    objective: str
    noise: str
    draws: int | None
    degrees_of_freedom: int | None
    n_samples: int

    @property
    def uses_fixed_draws(self) -> bool:
        """Whether the same draws are used in all iterations."""
        return self.optimizer == "fixed_draws"

    def settings_of_bound(self, guide: AmortizedGuide) -> ObjectiveSettings:
        """Settings of the estimate of a guide's bound."""
        alone = guide.encoder is None and guide.flow is None
        bound = self.objective
        if bound == "auto":
            bound = "marginal" if alone else "iwae"
        many = min(2 * guide.model.space.size, _MOST_POINTS) if alone else _POINTS_WITH_NETWORKS
        points = {"adam": 2, "fixed_draws": FIRST_DRAWS}.get(self.optimizer, many)
        draws = self.draws or _DRAWS[self.uses_fixed_draws]
        if guide.model.space.n_random == 0:
            draws = _NO_DRAWS
        gradient = self.training.gradient
        return ObjectiveSettings(
            bound,
            draws,
            points,
            self.training.batch_size,
            orthogonal=not self.uses_fixed_draws,
            gradient=gradient,
            noise="independent" if gradient == "dreg" else self.noise,
            share_of_draws=None if guide.sbp is None else guide.sbp.draws,
        )


def run_stochastic(task: Task, plan: BoundPlan) -> Fit:
    """Minimise the guide's bound and return its fit."""
    model, people, seed, clock = task.model, task.people, task.seed, task.clock
    panel = people.require_single_process()
    guide = make_guide(plan.guide, model, panel, task.start, seed)
    if plan.optimizer in ("hessian_free", "lbfgs") and guide.encoder is None and guide.flow is None:
        factor = warm_start(guide, people, seed, clock)
        guide = AmortizedGuide(model, factor, None, guide.newton_steps, family=guide.family)
    objective = GuideObjective(guide, panel, plan.settings_of_bound(guide), seed)
    if plan.uses_fixed_draws:
        found = minimise_fixed_draws(objective, seed, clock)
        factor, status = found.factor, Status.CONVERGED if found.settled else Status.ITERATIONS
        status = Status.TIME if clock.was_over else status
        figures = _diagnose_fixed_draws(found)
    else:
        progress = Progress(_Record(plan, objective, clock))
        objective.load(_minimise(plan, objective, progress, clock))
        q = guide.eval().population_factor()
        factor, status = GaussianFactor(q.mean.detach(), q.tril.detach()), Status.ITERATIONS_DONE
        figures = Diagnostics(iterations=progress.iteration, gradients=progress.gradients, rejected=progress.rejected)
    outcome = replace(_conclude(plan, task, guide, factor, figures), status=status)
    return report_fit(outcome, model, people, task.logit, clock)


def _minimise(plan: BoundPlan, objective: GuideObjective, progress: Progress, clock: Clock) -> torch.Tensor:
    training, start = plan.training, objective.vector()
    most = training.steps or (_ITERATIONS[plan.optimizer] if clock.limit is None else _ENDLESS)
    if plan.optimizer != "adam":
        return minimise(objective, start, most, progress, plan.optimizer, training.safeguard or "trust")
    rate = torch.full_like(start, training.rate)
    rate[objective.of_networks()] = training.guide_rate
    return adam(objective, start, most, progress, rate=rate, share_used=clock.progress)


def minimise(
    objective: GuideObjective, start: torch.Tensor, most: int, progress: Progress, engine: str, safeguard: str = "trust"
) -> torch.Tensor:
    """Run a second-order engine to convergence.

    Parameters
    ----------
    objective : GuideObjective
    start : Tensor, shape (d,)
    most : int
        Largest number of iterations.
    progress : Progress
    engine : {"hessian_free", "lbfgs"}
    safeguard : {"trust", "damping"}
        Globalisation of "hessian_free".

    Returns
    -------
    Tensor, shape (d,)
    """
    if engine == "lbfgs":
        return lbfgs(objective, start, most, progress)
    return hessian_free(_doubling_batches(objective), start, most, progress, safeguard=safeguard)


def _doubling_batches(objective: GuideObjective) -> Iterator[Batches]:
    """The objective on its own batches, then on batches twice, four times, ... as large, up to about all people."""
    n_people = len(objective.panel)
    size = min(objective.settings.batch, n_people)
    while True:
        people = min(size, max(CURVATURE_PEOPLE, size // _CURVATURE_SHARE))
        whole, cost = objective.of_batches(size)
        few, curvature_cost = objective.of_batches(people, masked=False)
        yield Batches(whole, few, cost, curvature_cost)
        if whole.batches() * size >= _NEARLY_ALL_PEOPLE * n_people:
            return
        size = min(2 * size, n_people)


class _Record:
    """Callback that records the history and stops a second-order engine at convergence or at the time limit."""

    def __init__(self, plan: BoundPlan, objective: GuideObjective, clock: Clock) -> None:
        self.optimizer, self.clock = plan.optimizer, clock
        self.share = min(plan.training.batch_size, len(objective.panel)) / len(objective.panel)
        self.points = objective.settings.points
        self.before = clock.passes
        self.values: list[float] = []

    def __call__(self, iteration: int, value: float, gradients: float, kept: bool) -> bool:  # noqa: FBT001
        """Record an iteration; return whether to continue."""
        self.clock.passes = self.before + gradients * self.share * self.points
        row = HistoryRow(
            f"{self.optimizer} {iteration}", -value, math.nan, self.clock.passes, self.clock.seconds(), kept
        )
        self.clock.history.append(row)
        if iteration % 10 == 0:
            self.clock.show(f"{row.stage}: bound {-value:.1f}, {gradients:.0f} gradients")
        if self.clock.is_over():
            return False
        self.values.append(value)
        return self.optimizer == "adam" or not settled(self.values)


def _diagnose_fixed_draws(found: FixedDraws) -> Diagnostics:
    return Diagnostics(
        fixed_draws=found.draws,
        fixed_draws_error=found.error,
        held_out_gap=found.held_out_gap,
        gradients=found.gradients,
        mean_field_sd=found.mean_field.tolist(),
    )


def _conclude(
    plan: BoundPlan, task: Task, guide: AmortizedGuide, factor: GaussianFactor, figures: Diagnostics
) -> Outcome:
    """Sample q(theta), and measure the likelihood at its mean."""
    model, people, seed, clock = task.model, task.people, task.seed, task.clock
    samples = draw_samples(model.space, factor, plan.n_samples, seed)
    center = model.space.from_report(samples.mean)
    marginal = MarginalLikelihood(people, model.space, model.mixing, seed)
    marginal.score_pass(center, IntegrationSettings(16, plan.degrees_of_freedom, stream=6, newton_steps=30))
    # A flow has learned to follow polished factors.
    variational_steps = _VARIATIONAL_STEPS if model.space.n_random and guide.flow is None else 0
    diagnostics = replace(
        evaluate_center(marginal, center, 64, plan.degrees_of_freedom, variational_steps).join(figures),
        bound=clock.history[-1].objective if clock.history else math.nan,
        guide=f"q(theta) {guide.family}, by {plan.optimizer}; "
        + ("polished factors and importance weights" if guide.encoder is None else "encoder and importance weights"),
    )
    tastes = ImportanceTastes(
        model, seed, plan.degrees_of_freedom, variational_steps=variational_steps, flow=guide.flow
    )
    error = assess_gaussian(task, marginal, factor, samples, plan.degrees_of_freedom)
    error = replace(error, people=assess_people(task, tastes, center))
    return Outcome(samples, center, Status.CONVERGED, tastes, diagnostics, error=error)
