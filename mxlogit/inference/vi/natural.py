"""Natural-gradient search: moves the Gaussian population factor from the start by Bonnet's and Price's identities."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from mxlogit.fit import HistoryRow, Status
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.clock import Clock
from mxlogit.inference.vi.information import prefers_paths
from mxlogit.inference.vi.log_posterior import draws_shift, with_prior
from mxlogit.inference.vi.newton import NewtonSettings, Optimum
from mxlogit.inference.vi.posterior import (
    Anchor,
    AnchoredTarget,
    expect,
    laplace_factor,
    most_people,
    natural_step,
)
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.optim.trust_region import Evaluation, newton_decrement

# Default draws per person, and variational steps; chosen by hand.
_DRAWS = 64
_VARIATIONAL_STEPS = 2
# Initial and smallest step size. It is halved if a full step below _NEAR posterior sds per parameter is no shorter than
# the last one, because steps oscillate in skewed posteriors; chosen by hand.
_RATE = 0.7
_LEAST_RATE = 0.15
_NEAR = 0.4
# Length of a full step, in posterior sds per parameter (root mean square), at which the search ends; chosen by hand.
_SETTLED = 0.03


class NaturalSearch:
    """Natural-gradient steps on q(theta), with a new anchor at its mean in every round.

    Parameters
    ----------
    model : MixedLogitModel
    marginal : MarginalLikelihood
        Marginal likelihood of all people.
    settings : NewtonSettings
    clock : Clock
    """

    def __init__(
        self, model: MixedLogitModel, marginal: MarginalLikelihood, settings: NewtonSettings, clock: Clock
    ) -> None:
        self.model, self.marginal, self.settings, self.clock = model, marginal, settings, clock
        people = marginal.people
        few = most_people(marginal)
        self.part = marginal.take(people.draw(few, (marginal.seed, -5))) if len(people) > few else marginal
        self.integration = IntegrationSettings(
            settings.draws or _DRAWS,
            settings.degrees_of_freedom,
            stream=50,
            newton_steps=settings.newton_steps,
            variational_steps=_VARIATIONAL_STEPS,
        )

    def run(self, start: PopulationParameters) -> Optimum:
        """Step until a full step would move the mean by a negligible distance."""
        space = self.model.space
        evaluation = self._evaluate(start)
        if prefers_paths(self.marginal, start, self.integration, evaluation.curvature):
            self.integration = replace(self.integration, pathwise=True)
        q = laplace_factor(self.model, start, evaluation.curvature, evaluation.gradient)
        status, move, rate = Status.ITERATIONS, math.inf, _RATE
        for _ in range(self.settings.max_iterations):
            if self.clock.is_over():
                break
            population = space.constrain(q.mean)
            evaluation = self._evaluate(population)
            new = self._step(q, population, evaluation, rate)
            last, move = move, float(q.whitened(new.mean).norm()) / space.size**0.5 / rate
            if last <= move < _NEAR:
                rate = max(_LEAST_RATE, 0.5 * rate)
            self._record(evaluation, move)
            q = new
            if move < _SETTLED:
                status = Status.CONVERGED
                break
        population = space.constrain(q.mean)
        evaluation = self._evaluate(population)
        decrement = newton_decrement(evaluation, torch.ones(space.size, dtype=torch.float64))
        other = self._evaluate(population, replace(self.integration, stream=self.integration.stream + 1))
        redraw = draws_shift(self.model, evaluation, other)
        return Optimum(population, evaluation, decrement, redraw, self.integration, status, q)

    def _step(
        self, q: GaussianFactor, population: PopulationParameters, evaluation: Evaluation, rate: float
    ) -> GaussianFactor:
        likelihood = evaluation.gradient - self.model.log_prior_in_moves(population).gradient
        weight = self.marginal.people.weight
        target = AnchoredTarget(self.model, self.part, Anchor(population, likelihood, weight), self.integration, q)
        at = expect(target, q)
        self.clock.passes += target.evaluations * self.part.people.weight / weight
        return natural_step(q, at, rate)

    def _evaluate(self, population: PopulationParameters, integration: IntegrationSettings | None = None) -> Evaluation:
        self.clock.passes += 1
        return with_prior(self.model, population, self.marginal.score_pass(population, integration or self.integration))

    def _record(self, evaluation: Evaluation, move: float) -> None:
        row = HistoryRow("natural", evaluation.value, move, self.clock.passes, self.clock.seconds(), accepted=True)
        self.clock.history.append(row)
        self.clock.show(f"natural: {self.clock.passes:.1f} passes, log posterior {evaluation.value:.1f}")
