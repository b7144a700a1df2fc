"""The default population engine: trust-region Newton on the importance-sampled marginal posterior.

Stages: a random subsample of 2,000 people, then of 20,000, then all people. Few draws leave a bias that does not
shrink with the number of people. Up to 20,000 people the number of draws is quadrupled until new draws no longer
move the optimum; beyond, all people keep few draws, and the effect of more is estimated on the subsample. The history
records every pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mxlogit.diagnostics.thresholds import EVEN_WEIGHTS
from mxlogit.fit import Status
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.budgets import PRECISE_SEARCH_WORK, SEARCH_WORK, STEADY_SEARCH_WORK
from mxlogit.inference.clock import Clock
from mxlogit.inference.task import LARGEST_SAMPLE
from mxlogit.inference.vi.information import prefers_paths
from mxlogit.inference.vi.log_posterior import TRUST_RADIUS, draws_shift, step_scale, with_prior, without_noise
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.sums import DrawsEffect
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.optim.trust_region import (
    Ascent,
    Evaluation,
    Iteration,
    NewtonAscent,
    Reason,
    newton_decrement,
    solve_step,
)

# Constants without a stated reason are chosen by hand.
# Numbers of people of the subsamples of the first stages.
STAGE_SIZES = (2_000, LARGEST_SAMPLE)
# Predicted gain of a further step at which a stage ends, since later stages move the optimum anyway: on a subsample, in
# nats, and on a number of draws that may increase, in multiples of the tolerance.
_STAGE_TOLERANCE = 3.0
# For more people than the largest subsample, down to _CORRECTED_STEPS:
# Predicted gain at which the search on few draws ends, because the fit of the posterior starts with a Newton step.
_COARSE_TOLERANCE_NATS = 0.5
# Factor of the number of draws whose effect is estimated; bounds on the subsample for it, in people and as a share.
_MANY_TIMES = 4
_EFFECT_PEOPLE = (10_000, 50_000)
_EFFECT_SHARE = 0.05
# Largest squared error of this effect, per parameter, in posterior sds.
_EFFECT_ERROR = 0.03
# Largest squared Monte Carlo error of the optimum in its worst direction, in posterior sds, from the few draws.
_LARGEST_NOISE = 0.25
# Squared shift of the optimum (per parameter, in posterior sds) above which the number of draws is quadrupled.
_LARGEST_EFFECT = 0.25
# Predicted gain, in nats, below which a stalled search has converged up to the noise of its draws.
_STALL_TOLERANCE_NATS = 4.0
# Most Newton steps on corrected scores.
_CORRECTED_STEPS = 8
# Variational steps of proposals whose weights are uneven.
_VARIATIONAL_STEPS = 2
# Squared shift of the optimum under new draws (per parameter, in posterior sds) above which the number of draws is
# quadrupled, by cost: (draws x people, tolerance). About a fifth of the shift remains after quadrupling.
_REDRAW_TOLERANCES = ((32_000, 0.0009), (400_000, 0.006), (500_000, 0.03), (float("inf"), 0.05))
# Draws per person of a search that chains follow, whose mode is a place to begin only.
_ENOUGH_DRAWS = 256
# Predicted gain, in multiples of the tolerance, below which a stalled search has converged up to noise of its draws.
_NOISE_FLOOR = 20.0
# Relative rounding error of a sum of people's log likelihoods: single-precision errors average out over people.
_ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-13}
_STATUS = {
    Reason.CONVERGED: Status.CONVERGED,
    Reason.ITERATIONS: Status.ITERATIONS,
    Reason.STALLED: Status.STALLED,
    Reason.STOPPED: Status.TIME,
}


@dataclass(frozen=True)
class Optimum:
    """Optimum of the log posterior found by a search.

    Attributes
    ----------
    population : PopulationParameters
    evaluation : Evaluation
        Log posterior in relative coordinates; its detail is the `PassResult` of the likelihood.
    decrement : float
        Predicted gain of a further Newton step, in nats.
    redraw : float
        Squared distance per parameter, in posterior sds, by which the last change of draws moved the optimum.
    integration : IntegrationSettings
        Integration settings of the last stage.
    status : Status
    factor : GaussianFactor or None
        Gaussian population factor, if the search yields one.
    """

    population: PopulationParameters
    evaluation: Evaluation
    decrement: float
    redraw: float
    integration: IntegrationSettings
    status: Status
    factor: GaussianFactor | None = None


@dataclass(frozen=True)
class NewtonSettings:
    """Settings of the search (see `mxlogit.VI`)."""

    tolerance: float
    max_iterations: int
    draws: int | None
    degrees_of_freedom: int | None
    newton_steps: int


def integration_of_search(draws: int, degrees_of_freedom: int | None = 8, newton_steps: int = 2) -> IntegrationSettings:
    """Settings of the passes of a search with so many draws: the same draws whenever there are as many."""
    return IntegrationSettings(draws, degrees_of_freedom, 100 + draws, newton_steps)


class NewtonSearch:
    """Maximise the log posterior of the population parameters over one panel.

    Parameters
    ----------
    model : MixedLogitModel
    marginal, sample : MarginalLikelihood
        Marginal likelihoods of all people, and of a random subsample (or again of all people).
    settings : NewtonSettings
    clock : Clock
    is_enough : callable
        Whether more draws than `_ENOUGH_DRAWS` are no remedy, given a population, its evaluation and variational steps.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        marginal: MarginalLikelihood,
        sample: MarginalLikelihood,
        settings: NewtonSettings,
        clock: Clock,
        is_enough: Callable[[PopulationParameters, Evaluation, int], bool] = lambda *_: False,
    ) -> None:
        self.model, self.marginal, self.sample, self.settings, self.clock = model, marginal, sample, settings, clock
        self._is_enough = is_enough
        self._variational_steps, self._pathwise = 0, False
        self.step_scale = step_scale(model)

    def run(self, start: PopulationParameters) -> Optimum:
        """Run all stages from ``start``."""
        population = start
        for stage, size in enumerate(STAGE_SIZES):
            if size >= len(self.marginal.people) or self.clock.is_over():
                break
            part = self.sample
            if size < len(part.people):
                part = part.take(part.people.draw(size, (part.seed, -1)))
            integration = IntegrationSettings(
                16,
                self.settings.degrees_of_freedom,
                stage,
                self.settings.newton_steps,
                variational_steps=self._variational_steps,
                pathwise=self._pathwise,
            )
            ascent = self._ascend(population, part, integration, _STAGE_TOLERANCE, f"{size} people")
            population = self._note_weights(ascent)
            if not self._pathwise and not self.clock.is_over():
                self._pathwise = prefers_paths(part, population, integration, ascent.evaluation.curvature)
        if self.settings.draws is not None:
            return self._ascend_with_these(self.settings.draws, population)
        if len(self.marginal.people) > len(self.sample.people):
            return self._correct_draws(population)
        return self._refine_draws(population)

    def _note_weights(self, ascent: Ascent[PopulationParameters]) -> PopulationParameters:
        """Switch on variational steps if weights are uneven; return the end point of the ascent."""
        if ascent.evaluation.detail.value.ess < EVEN_WEIGHTS:
            self._variational_steps = _VARIATIONAL_STEPS
        return ascent.point

    def _ascend_with(
        self, draws: int, start: PopulationParameters, tolerance: float, known: Evaluation | None = None
    ) -> tuple[Ascent[PopulationParameters], IntegrationSettings]:
        """Ascend on the likelihood of all people; ``known`` is its evaluation at the start, if there is one."""
        integration, stage = self._integration_of(draws), f"all people, {draws} draws"
        return self._ascend(start, self.marginal, integration, tolerance, stage, known), integration

    def _integration_of(self, draws: int) -> IntegrationSettings:
        settings = integration_of_search(draws, self.settings.degrees_of_freedom, self.settings.newton_steps)
        return replace(settings, variational_steps=self._variational_steps, pathwise=self._pathwise)

    def _ascend_with_these(self, draws: int, population: PopulationParameters) -> Optimum:
        """Ascend on the likelihood of all people with a given number of draws; compare with a quarter of it."""
        ascent = self._first_ascent(population, min(16, draws), _STAGE_TOLERANCE)
        if self.clock.is_over():
            return self._finish(ascent, self._integration_of(min(16, draws)), math.nan)
        ascent, integration = self._ascend_with(draws, ascent.point, self.settings.tolerance)
        few = replace(self._integration_of(4 * max(1, draws // 16)), stream=integration.stream + 1)
        rough = self._evaluate(self.marginal, few, ascent.point)
        return self._finish(ascent, integration, draws_shift(self.model, rough, ascent.evaluation))

    def _finish(
        self, ascent: Ascent[PopulationParameters], integration: IntegrationSettings, redraw: float, near: float = 0.0
    ) -> Optimum:
        status = _STATUS[ascent.reason]
        if ascent.decrement < max(near, _NOISE_FLOOR * self.settings.tolerance):
            status = Status.CONVERGED
        return Optimum(ascent.point, ascent.evaluation, ascent.decrement, redraw, integration, status)

    def _first_ascent(
        self, population: PopulationParameters, draws: int, tolerance: float
    ) -> Ascent[PopulationParameters]:
        """Ascend on the likelihood of all people with few draws, with pathwise derivatives if they have less noise."""
        ascent, integration = self._ascend_with(draws, population, tolerance)
        if self._pathwise or self.clock.is_over():
            return ascent
        self._pathwise = prefers_paths(self.sample, ascent.point, integration, ascent.evaluation.curvature)
        if self._pathwise:
            ascent, _ = self._ascend_with(draws, ascent.point, tolerance)
        return ascent

    def _refine_draws(self, population: PopulationParameters) -> Optimum:
        """Ascend on the likelihood of all people, quadrupling the draws until new draws do not move the optimum."""
        people, draws, rough = self.marginal.people, 16, _STAGE_TOLERANCE * self.settings.tolerance
        ascent, integration, redraw = (
            self._first_ascent(population, draws, rough),
            self._integration_of(draws),
            math.nan,
        )
        while not self.clock.is_over():
            before, draws = ascent.evaluation, 4 * draws
            ascent, integration = self._ascend_with(draws, self._note_weights(ascent), rough)
            redraw = draws_shift(self.model, before, ascent.first)
            allowed = next(limit for cost, limit in _REDRAW_TOLERANCES if draws * len(people) < cost)
            # Along paths the optimum gets draws of another kind (`mxlogit.inference.vi.sharpening`).
            if self._pathwise or redraw < allowed or 4 * draws * people.load > SEARCH_WORK:
                break
            if draws == _ENOUGH_DRAWS and self._is_enough(ascent.point, ascent.evaluation, self._variational_steps):
                break
        if ascent.decrement > self.settings.tolerance and not self.clock.is_over():
            ascent, integration = self._ascend_with(draws, ascent.point, self.settings.tolerance, ascent.evaluation)
        return self._finish(ascent, integration, redraw)

    def _correct_draws(self, population: PopulationParameters) -> Optimum:
        """Ascend on the likelihood of all people with few draws, corrected by the effect of more on a subsample.

        The noise of draws also adds to the outer product of scores; in weakly identified directions it would be taken
        for information.
        """
        draws, size = 16, self.model.space.size
        ascent, integration = self._first_ascent(population, draws, _COARSE_TOLERANCE_NATS), self._integration_of(draws)
        if self.clock.is_over():
            return self._finish(ascent, integration, math.nan)
        while True:
            effect = self._effect_of_draws(ascent.point, integration)
            inverse = torch.linalg.inv(without_noise(ascent.evaluation.curvature, effect.noise))
            shift, error, noise = (
                float(effect.score @ inverse @ effect.score) / size,
                float((inverse * effect.variance).sum()) / size,
                float((inverse * effect.noise).sum()) / size,
            )
            steady = float(torch.linalg.eigvals(inverse @ effect.noise).real.amax()) < _LARGEST_NOISE
            work = 4 * draws * len(self.marginal.people)
            precise = (error < _EFFECT_ERROR and steady) or work > PRECISE_SEARCH_WORK
            small = shift < _LARGEST_EFFECT or work > STEADY_SEARCH_WORK
            if (precise and small) or self.clock.is_over():
                break
            draws *= 4
            ascent, integration = self._ascend_with(draws, ascent.point, _COARSE_TOLERANCE_NATS)
        ascent = self._solve_scores(ascent, integration, effect)
        # The remaining shift is about a quarter of this one in length: its square is divided by 16.
        return self._finish(ascent, integration, noise + error + shift / 16.0, _STALL_TOLERANCE_NATS)

    def _solve_scores(
        self, ascent: Ascent[PopulationParameters], integration: IntegrationSettings, effect: DrawsEffect
    ) -> Ascent[PopulationParameters]:
        """Newton steps on the corrected scores, as long as the predicted gain falls and is not negligible."""
        best = self._corrected(ascent, ascent.point, ascent.evaluation, effect)
        for _ in range(_CORRECTED_STEPS):
            if best.decrement < _COARSE_TOLERANCE_NATS or self.clock.is_over():
                break
            step = solve_step(best.evaluation, self.step_scale, TRUST_RADIUS).step
            point = self.model.space.move(best.point, step)
            found = self._corrected(ascent, point, self._evaluate(self.marginal, integration, point), effect)
            better = found.decrement < best.decrement
            log = Iteration(
                found.evaluation.value, found.decrement, float((step / self.step_scale).abs().amax()), better
            )
            self.clock.record(f"all people, {integration.draws} draws, corrected", log)
            if not better:
                break
            best = found
        return best

    def _corrected(
        self,
        ascent: Ascent[PopulationParameters],
        point: PopulationParameters,
        evaluation: Evaluation,
        effect: DrawsEffect,
    ) -> Ascent[PopulationParameters]:
        curvature = without_noise(evaluation.curvature, effect.noise)
        evaluation = replace(evaluation, gradient=evaluation.gradient + effect.score, curvature=curvature)
        return replace(
            ascent, point=point, evaluation=evaluation, decrement=newton_decrement(evaluation, self.step_scale)
        )

    def _effect_of_draws(self, population: PopulationParameters, integration: IntegrationSettings) -> DrawsEffect:
        """Effect of more draws on the score of all people, estimated on a subsample."""
        part, count = self.sample, len(self.marginal.people)
        # Bounded, because the subsample must fit in memory.
        size = max(_EFFECT_PEOPLE[0], min(_EFFECT_PEOPLE[1], int(_EFFECT_SHARE * count)))
        if size != len(part.people):
            whole = part if size < len(part.people) else self.marginal
            part = whole.take(whole.people.draw(size, (part.seed, -4)))
        self.clock.passes += len(part.people) / count
        effect = part.effect_of_draws(population, integration, _MANY_TIMES)
        return effect.scaled(self.marginal.people.weight / part.people.weight)

    def _evaluate(
        self, marginal: MarginalLikelihood, integration: IntegrationSettings, population: PopulationParameters
    ) -> Evaluation:
        self.clock.passes += len(marginal.people) / len(self.marginal.people)
        return with_prior(self.model, population, marginal.score_pass(population, integration))

    def _ascend(
        self,
        start: PopulationParameters,
        marginal: MarginalLikelihood,
        integration: IntegrationSettings,
        tolerance: float,
        stage: str,
        known: Evaluation | None = None,
    ) -> Ascent[PopulationParameters]:
        share = len(marginal.people) / len(self.marginal.people)

        def evaluate(population: PopulationParameters) -> Evaluation:
            return self._evaluate(marginal, integration, population)

        def log(iteration: Iteration) -> None:
            self.clock.record(stage, replace(iteration, value=iteration.value / share))

        ascent = NewtonAscent(
            evaluate,
            self.model.space.move,
            self.step_scale,
            tolerance,
            self.settings.max_iterations,
            TRUST_RADIUS,
            log,
            rounding=_ROUNDING[marginal.people.like.dtype],
            is_over=self.clock.is_over,
        )
        return ascent.run(start, known)
