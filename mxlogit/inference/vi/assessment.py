"""Error of the default engine's population posterior, by what its samples come from."""

from __future__ import annotations

from dataclasses import replace

from mxlogit.diagnostics.error import (
    Cause,
    ErrorEstimate,
    SquaredErrors,
    error_of_reweighting,
    error_of_weighted,
    unknown_errors,
)
from mxlogit.draws.generators import make_generator
from mxlogit.fit import Samples
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.budgets import AT_THE_MODE
from mxlogit.inference.clock import TimeIsOverError
from mxlogit.inference.error_estimate import Standardised, error_of_draws, error_of_people
from mxlogit.inference.task import Task
from mxlogit.inference.vi.newton import Optimum
from mxlogit.inference.vi.population_check import PopulationCheck, check_gaussian
from mxlogit.inference.vi.posterior import (
    Anchor,
    AnchoredTarget,
    most_people,
    posterior_integration,
)
from mxlogit.inference.vi.posterior_stage import Posterior, check_points
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import ImportanceTastes, PeopleCheck
from mxlogit.model.parameters import PopulationParameters

# Draws per person of the score at the mean of a Gaussian that is assessed; chosen by hand.
_AUDIT_DRAWS = 128
# Random streams of its draws, of the people around it and of the points of its check; Newton steps to modes.
_AUDIT_STREAM, _PEOPLE_STREAM, _POINTS_STREAM, _NEWTON_STEPS = 8, -2, 3, 30
# Largest number of people whose importance weights are checked after a fit; chosen by hand.
_CHECKED_PEOPLE = 1_000


def assess_posterior(task: Task, part: MarginalLikelihood, posterior: Posterior, samples: Samples) -> ErrorEstimate:
    """Estimate how far the means and standard deviations of samples are from those of the exact posterior.

    Parameters
    ----------
    task : Task
    part : MarginalLikelihood
        Marginal likelihood of all people, or of the subsample that gave the curvature.
    posterior : Posterior
        Population posterior that the samples come from: its weighted draws, or its Gaussian.
    samples : Samples
    """
    if task.clock.was_over:
        return ErrorEstimate(samples.labels, (unknown_errors(Cause.TIME, task.model.space.size),))
    if posterior.corrected is not None:
        return ErrorEstimate(samples.labels, _of_correction(task, part, posterior))
    return ErrorEstimate(samples.labels, _of_gaussian(task, part, posterior, samples))


def _of_correction(task: Task, part: MarginalLikelihood, posterior: Posterior) -> tuple[SquaredErrors, ...]:
    """Noise of the weighted draws, their distance from a density by other draws of tastes, and noise of the mode."""
    found = posterior.corrected
    assert found is not None
    weighted = found.weighted
    standardised = Standardised(task.model.space, weighted.vectors, weighted.log_weights.exp())
    parts = (
        error_of_weighted(standardised.scores(), standardised.weights),
        error_of_reweighting(Cause.INTEGRATION, standardised.scores(found.compared), found.log_ratio),
    )
    if not found.is_surface:
        return parts
    assert posterior.mode is not None
    return *parts, _of_mode(task, part, posterior.mode, standardised)


def _of_gaussian(
    task: Task, part: MarginalLikelihood, posterior: Posterior, samples: Samples
) -> tuple[SquaredErrors, ...]:
    """Noise of the score at the mode, and the distance that importance weights of the check reveal."""
    gaussian, mode = Standardised(task.model.space, samples.unconstrained), posterior.mode
    assert mode is not None
    of_draws = _of_mode(task, part, mode, gaussian)
    if posterior.noise is not None:
        of_draws = replace(of_draws, deviation=posterior.noise)
    return of_draws, _of_check(Cause.APPROXIMATION, posterior.check, gaussian)


def _of_check(cause: Cause, check: PopulationCheck, gaussian: Standardised) -> SquaredErrors:
    """Errors that importance weights of a Gaussian reveal; unknown where it was not checked."""
    if check.vectors is None or check.log_weights is None:
        return unknown_errors(cause, gaussian.space.size)
    return error_of_reweighting(cause, gaussian.scores(check.vectors), check.log_weights, antithetic=True)


def _of_mode(task: Task, part: MarginalLikelihood, mode: Optimum, gaussian: Standardised) -> SquaredErrors:
    """Errors that the draws of the search leave in the mode.

    The score of few draws of all people, corrected by the effect of more on a subsample, has the noise of both; a part
    of many people tells their noise, but not their bias, which the correction takes away.
    """
    sampled = task.is_sampled
    found = error_of_draws(part, mode.population, mode.integration, gaussian, task.people.weight, biased=not sampled)
    return replace(found, mean=found.mean.clamp(min=mode.redraw)) if sampled else found


def assess_gaussian(
    task: Task, marginal: MarginalLikelihood, factor: GaussianFactor, samples: Samples, degrees_of_freedom: int | None
) -> ErrorEstimate:
    """Estimate how far samples of a Gaussian, however it was found, are from the exact posterior.

    Parameters
    ----------
    task : Task
    marginal : MarginalLikelihood
        Marginal likelihood of all people, with modes at the Gaussian's mean.
    factor : GaussianFactor
    samples : Samples
        Samples of it.
    degrees_of_freedom : int or None
        Degrees of freedom of proposals of people's tastes.
    """
    model, size = task.model, task.model.space.size
    if task.clock.was_over:
        return ErrorEstimate(samples.labels, (unknown_errors(Cause.TIME, size),))
    population, people = model.space.constrain(factor.mean), marginal.people
    draws = AT_THE_MODE.draws(people.load, _AUDIT_DRAWS)
    integration = IntegrationSettings(draws, degrees_of_freedom, _AUDIT_STREAM, _NEWTON_STEPS)
    anchor = Anchor(population, marginal.score_pass(population, integration).score, people.weight)
    part, most = marginal, most_people(marginal)
    if len(people) > most:
        part = marginal.take(people.draw(most, (task.seed, _PEOPLE_STREAM)))
    posterior = Standardised(model.space, samples.unconstrained)
    of_draws = error_of_draws(part, population, integration, posterior, people.weight)
    try:
        around = posterior_integration(integration, 1.0, len(part.people))
        target = AnchoredTarget(model, part, anchor, around, factor, task.clock.counter())
        check = check_gaussian(target, factor, check_points(size), make_generator(task.seed, _POINTS_STREAM))
    except TimeIsOverError:
        return ErrorEstimate(samples.labels, (unknown_errors(Cause.TIME, size),))
    return ErrorEstimate(samples.labels, (of_draws, _of_check(Cause.TRAINING, check, posterior)))


def check_people(task: Task, tastes: ImportanceTastes, population: PopulationParameters) -> PeopleCheck:
    """Quality of the importance weights of a random part of the people."""
    sample = task.sample
    return tastes.check(sample.take(sample.draw(_CHECKED_PEOPLE, (task.seed, 11))), population)


def assess_people(task: Task, tastes: ImportanceTastes, population: PopulationParameters) -> float | None:
    """Estimate the error of people's mean tastes by importance draws; None without random coefficients."""
    if task.model.space.n_random == 0 or task.clock.was_over:
        return None
    return error_of_people(check_people(task, tastes, population), tastes.draws_of_moments)
