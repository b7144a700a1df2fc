"""The mode of the search under as many draws, and of the kind, that its error asks for.

The error of the mode by few draws does not shrink relative to the information as the number of people grows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from mxlogit.inference.budgets import ALLOWED_ERROR_OF_MODE, AT_THE_MODE
from mxlogit.inference.task import Task
from mxlogit.inference.vi.information import FEW_PARAMETERS, error_bound_factor, subsample
from mxlogit.inference.vi.log_posterior import step_from, step_scale, with_prior
from mxlogit.inference.vi.newton import Optimum
from mxlogit.inference.vi.posterior import estimated_situations
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.optim.trust_region import newton_decrement

# Predicted gain, in nats, of a Newton step on these draws above which it is taken. A third of a posterior sd from the
# mode, information was that of a population with a standard deviation known 4 % worse (20,001 people, one choice each).
_FAR = 0.01
# People, and draws of each, on whom draws from the population are compared with those around modes.
_COMPARED_PEOPLE, _COMPARED_DRAWS = 500, 128
# Error of the mode by draws from the population, in posterior sds of its worst direction, and the power of the number
# of these draws with which its square falls at least (20,000 people, one choice, two and three tastes: 1.6 to 2.6).
_ALLOWED_ERROR_BY_NETS = 0.03
_RATE_OF_NETS = 1.75
# Fewest draws from the population: noise of 16 is that of as many around modes (20,000 people, one choice, two tastes).
_FEWEST_OF_NETS = 64
# People times choice situations times draws that are taken even if fewer would do: a tenth of a second.
_CHEAP_WORK = 2_000_000
# Step to the random stream of these draws.
_STREAM = 5


def sharpen(task: Task, all_people: MarginalLikelihood, optimum: Optimum) -> Optimum:
    """Evaluate the optimum with the draws that its error requires, if the search ended with fewer.

    Parameters
    ----------
    task : Task
    all_people : MarginalLikelihood
        Likelihood of all people.
    optimum : Optimum
    """
    model, integration = task.model, optimum.integration
    nets = _nets(model, all_people, optimum) if integration.pathwise else None
    if nets is not None:
        draws, redraw = nets
        return _evaluate(task, all_people, optimum, replace(integration, draws=draws, from_population=True), redraw)
    more = _draws_around_modes(task, all_people, optimum)
    if more is None:
        return optimum
    # The shift under new draws is inversely proportional to their number.
    redraw = optimum.redraw * integration.draws / more
    return _evaluate(task, all_people, optimum, replace(integration, draws=more), redraw)


def _evaluate(
    task: Task, all_people: MarginalLikelihood, optimum: Optimum, integration: IntegrationSettings, redraw: float
) -> Optimum:
    """The optimum on new draws, after a Newton step if that is far."""
    model, population = task.model, optimum.population
    sharp = replace(integration, stream=integration.stream + _STREAM)
    evaluation = with_prior(model, population, all_people.score_pass(population, sharp))
    task.clock.passes += 1
    if newton_decrement(evaluation, step_scale(model)) > _FAR:
        population = step_from(model, population, evaluation)
        evaluation = with_prior(model, population, all_people.score_pass(population, sharp))
        task.clock.passes += 1
    return replace(optimum, population=population, evaluation=evaluation, redraw=redraw, integration=integration)


def _draws_around_modes(task: Task, all_people: MarginalLikelihood, optimum: Optimum) -> int | None:
    """Draws per person around modes that the error of the optimum requires; None if it has them, or nearly."""
    model, integration = task.model, optimum.integration
    # With pathwise derivatives a pass costs little compared with later stages; otherwise it must halve the error.
    error, enough = (_likely_error(optimum, model), 1) if integration.pathwise else (optimum.redraw, 2)
    wanted = integration.draws * error / ALLOWED_ERROR_OF_MODE**2 if math.isfinite(error) else 0.0
    if wanted <= enough * integration.draws or not (integration.pathwise or task.is_sampled):
        return None
    draws = _affordable(all_people, wanted)
    few = model.space.size <= FEW_PARAMETERS
    if draws <= integration.draws or (draws < 2 * integration.draws and not (integration.pathwise or few)):
        return None
    return draws


def _affordable(all_people: MarginalLikelihood, wanted: float) -> int:
    """Number of draws of a person, of those wanted."""
    return AT_THE_MODE.draws(len(all_people.people) * estimated_situations(all_people), wanted)


def _likely_error(optimum: Optimum, model: MixedLogitModel) -> float:
    """Upper bound of the squared error of the optimum per parameter, exceeded once in ten.

    It is estimated from one change of draws, with as many degrees of freedom as parameters: with two, the estimate can
    be a tenth of the error by chance.
    """
    return optimum.redraw * error_bound_factor(model.space.size)


def _nets(model: MixedLogitModel, all_people: MarginalLikelihood, optimum: Optimum) -> tuple[int, float] | None:
    """Draws per person from the population that the mode requires, and its squared error per parameter.

    None if draws around modes have less noise, as some of the people tell, or so many people can have few draws only.
    """
    part, population = subsample(all_people, _COMPARED_PEOPLE), optimum.population
    inverse = torch.linalg.inv(optimum.evaluation.curvature) * (all_people.people.weight / part.people.weight)
    few = replace(optimum.integration, draws=_COMPARED_DRAWS)
    around, nets = (
        inverse @ part.effect_of_draws(population, replace(few, from_population=given), 2).noise
        for given in (False, True)
    )
    if float(nets.trace()) > float(around.trace()):
        return None
    worst = float(torch.linalg.eigvals(nets).real.amax())
    wanted = _COMPARED_DRAWS * (worst / _ALLOWED_ERROR_BY_NETS**2) ** (1.0 / _RATE_OF_NETS)
    cheap = _CHEAP_WORK / (len(all_people.people) * estimated_situations(all_people))
    draws = 1 << (_affordable(all_people, max(wanted, cheap, _COMPARED_DRAWS)).bit_length() - 1)
    if draws < _FEWEST_OF_NETS:
        return None
    return draws, float(nets.trace()) / model.space.size * (_COMPARED_DRAWS / draws) ** _RATE_OF_NETS
