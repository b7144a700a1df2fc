"""The default population engine: trust-region Newton on the importance-sampled marginal posterior.

Stages: a random subsample of 2,000 people, then 20,000, then everybody; then the number of draws is
quadrupled until new draws no longer move the optimum. What each pass did is in the history.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.draws import make_generator
from mxlogit.fit import HistoryRow, Status
from mxlogit.marginal import MarginalLikelihood, PassResult, Sweep
from mxlogit.optim.trust_region import Ascent, Evaluation, Iteration, NewtonAscent, Reason
from mxlogit.parameters import Population

_STAGE_SIZES = (2_000, 20_000)
# Gains left in log posterior at which a stage ends: on a subsample, and, in multiples of the tolerance, on the first
# draws of few or of many people. What follows moves the optimum further anyway.
_STAGE_TOLERANCE = 3.0
_FIRST_DRAWS_TOLERANCES = (6.0, 25.0)
_MANY_PEOPLE = 20_000
_TRUST_RADIUS = 0.5
# New draws may move the optimum by this squared distance per parameter, in posterior sds, before the
# number of draws is quadrupled; what remains after quadrupling is about a fifth of it. The demand depends
# on what draws cost: (draws times people, tolerance).
_REDRAW_TOLERANCES = ((400_000, 0.006), (500_000, 0.03), (float("inf"), 0.05))
_MOST_DRAWS_TIMES_PEOPLE = 6_400_000
# A search that stalls this close (in multiples of the tolerance) has met the noise of its draws, not failed.
_NOISE_FLOOR = 20.0
# Relative rounding of a sum of people's log likelihoods: single precision averages out over people.
_ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-13}
_STATUS = {
    Reason.CONVERGED: Status.CONVERGED,
    Reason.ITERATIONS: Status.ITERATIONS,
    Reason.STALLED: Status.STALLED,
}


@dataclass
class Clock:
    """Seconds and passes since the start of a fit, its history, and whom to tell."""

    tell: Callable[[str], None]
    started: float = field(default_factory=time.perf_counter)
    passes: float = 0.0
    history: list[HistoryRow] = field(default_factory=list)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def record(self, stage: str, iteration: Iteration) -> None:
        """Append a line to the history and report progress."""
        row = HistoryRow(stage, iteration.value, iteration.decrement, self.passes, self.seconds(), iteration.accepted)
        self.history.append(row)
        self.tell(f"{stage}: {self.passes:.1f} passes, log posterior {row.objective:.1f}")


@dataclass(frozen=True)
class Optimum:
    """Where the search ended.

    Attributes
    ----------
    population : Population
    evaluation : Evaluation
        Of the log posterior in relative coordinates.
        Its detail is the `PassResult` of the likelihood.
    decrement : float
    redraw : float
        Squared distance per parameter, in posterior sds, by which the last change of draws moved the optimum.
    sweep : Sweep
        Of the last stage.
    status : Status
    """

    population: Population
    evaluation: Evaluation
    decrement: float
    redraw: float
    sweep: Sweep
    status: Status


@dataclass(frozen=True)
class NewtonSettings:
    """Settings of the search (see `mxlogit.VI`)."""

    tolerance: float
    max_iterations: int
    draws: int | None
    tail: int | None
    polish: int


class NewtonSearch:
    """Maximise the log posterior of the population parameters over one panel.

    Parameters
    ----------
    model : PanelModel
    marginal : MarginalLikelihood
        Of all people.
    settings : NewtonSettings
    clock : Clock
    """

    def __init__(self, model: PanelModel, marginal: MarginalLikelihood, settings: NewtonSettings, clock: Clock) -> None:
        self.model, self.marginal, self.settings, self.clock = model, marginal, settings, clock
        n_fixed, space = model.space.n_fixed, model.space
        self.step_scale = torch.ones(space.size, dtype=torch.float64)
        self.step_scale[:n_fixed] = 1.0 / model.attribute_scale[:n_fixed]

    def run(self, start: Population) -> Optimum:
        """Run all stages from ``start``."""
        population = start
        n_people = len(self.marginal.panel)
        for stage, size in enumerate(size for size in _STAGE_SIZES if size < n_people):
            part = self.marginal.take(self._subsample(size))
            sweep = Sweep(16, self.settings.tail, stage, self.settings.polish)
            population = self._ascend(population, part, sweep, _STAGE_TOLERANCE, f"{size} people").point
        return self._refine_draws(population)

    def _subsample(self, size: int) -> Tensor:
        generator = make_generator(self.marginal.seed, -1)
        device = self.marginal.panel.values.device
        return torch.randperm(len(self.marginal.panel), generator=generator)[:size].to(device)

    def _refine_draws(self, population: Population) -> Optimum:
        """Ascend over everybody with more and more draws until new draws do not matter."""
        n_people = len(self.marginal.panel)
        draws = self.settings.draws or 16
        multiple = _FIRST_DRAWS_TOLERANCES[n_people > _MANY_PEOPLE] if self.settings.draws is None else 1.0
        tolerance = multiple * self.settings.tolerance
        while True:
            sweep = Sweep(draws, self.settings.tail, 100 + draws, self.settings.polish)
            first = len(self.clock.history)
            ascent = self._ascend(population, self.marginal, sweep, tolerance, f"all people, {draws} draws")
            redraw = 2.0 * self.clock.history[first].decrement / self.model.space.size
            allowed = next(limit for cost, limit in _REDRAW_TOLERANCES if draws * n_people < cost)
            settled = redraw < allowed and draws > 16
            too_many = 4 * draws * n_people > _MOST_DRAWS_TIMES_PEOPLE and draws >= 64
            if self.settings.draws is not None or settled or too_many:
                status = _STATUS[ascent.reason]
                if ascent.decrement < _NOISE_FLOOR * self.settings.tolerance:
                    status = Status.CONVERGED
                return Optimum(ascent.point, ascent.evaluation, ascent.decrement, redraw, sweep, status)
            population, draws, tolerance = ascent.point, 4 * draws, self.settings.tolerance

    def _ascend(
        self, start: Population, marginal: MarginalLikelihood, sweep: Sweep, tolerance: float, stage: str
    ) -> Ascent[Population]:
        share = len(marginal.panel) / len(self.marginal.panel)

        def evaluate(population: Population) -> Evaluation:
            self.clock.passes += share
            return self._posterior(population, marginal.sweep(population, sweep))

        def log(iteration: Iteration) -> None:
            self.clock.record(stage, replace(iteration, value=iteration.value / share))

        ascent = NewtonAscent(
            evaluate,
            self.model.space.move,
            self.step_scale,
            tolerance,
            self.settings.max_iterations,
            _TRUST_RADIUS,
            log,
            rounding=_ROUNDING[marginal.panel.values.dtype],
        )
        return ascent.run(start)

    def _posterior(self, population: Population, result: PassResult) -> Evaluation:
        prior = self.model.log_prior_in_moves(population)
        return Evaluation(
            result.log_likelihood + prior.value,
            result.score.cpu() + prior.gradient,
            result.outer.cpu() - prior.hessian,
            detail=result,
        )
