"""Start of a search in willingness-to-pay space: the population of a fit in preference space, in units of the scale.

The likelihood in amounts of money has local maxima where the scale varies much over people, in preference space hardly.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.draws.simulation import PersonDraws
from mxlogit.inference.method import Callback
from mxlogit.inference.task import Task
from mxlogit.inference.vi.newton import NewtonSearch, NewtonSettings, integration_of_search
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.priors import Priors, resolve_priors

# People drawn from the population in preference space, a power of two, and the seed of these draws.
_PEOPLE, _SEED = 4_096, 7
# Distance of the quartiles of a standard normal.
_QUARTILES = 1.349
# Largest correlation of a start, and the smallest and largest standard deviation of a latent normal relative to its
# unit, so that the search begins inside.
_MOST_CORRELATED, _LEAST_SPREAD, _MOST_SPREAD = 0.9, 0.05, 3.0
# Search in preference space, which need only end near the mode: tolerance in nats, iterations, draws, tail, steps to
# people's modes; and its share of a time limit.
_SEARCH, _START_SHARE = NewtonSettings(0.1, 40, 64, 8, 2), 0.3
# Standard deviations of a second start, relative to the first, and draws per person by which starts are compared: those
# of the first passes of the search, which begins where these are finite.
_NARROWER, _DRAWS_OF_STARTS = 0.4, 16


def find_money_start(
    model: MixedLogitModel, task: Task, callback: Callback, max_seconds: float | None
) -> PopulationParameters:
    """Start in willingness-to-pay space, by the mode of the sample's posterior in preference space.

    Parameters
    ----------
    model : MixedLogitModel
        Model in willingness-to-pay space, as it was specified.
    task : Task
        Its task.
    callback : callable
        Callback of progress messages.
    max_seconds : float or None
        Time limit of the whole fit.
    """
    preference = in_preference_space(model, model.attribute_scale)
    limit = None if max_seconds is None else _START_SHARE * max_seconds
    quick = Task.begin(preference, task.sample, torch.Generator().manual_seed(task.seed), callback, limit)
    marginal = MarginalLikelihood(quick.people, preference.space, preference.mixing, quick.seed)
    found = NewtonSearch(preference, marginal, marginal, _SEARCH, quick.clock).run(quick.start).population
    wide = to_money(task.model, preference, found, task.start)
    narrow = PopulationParameters(wide.fixed, wide.location, _NARROWER * wide.scale_tril)
    in_money = MarginalLikelihood(task.sample, task.model.space, task.model.mixing, task.seed)
    integration = integration_of_search(_DRAWS_OF_STARTS)

    def value(start: PopulationParameters) -> float:
        found = in_money.value_pass(start, integration).log_likelihood
        return found if math.isfinite(found) else -math.inf

    # Where scales vary very much, choices at wide starts may be impossible in single precision.
    return max((wide, narrow, task.start), key=value)


def in_preference_space(model: MixedLogitModel, attribute_scale: Tensor) -> MixedLogitModel:
    """A model of coefficients in utils with the same columns, of normals and, where signs are known, lognormals.

    Parameters
    ----------
    model : MixedLogitModel
        Model in willingness-to-pay space with a random scale.
    attribute_scale : Tensor, shape (f + k,)
        Typical differences of the attributes.
    """
    position, f = model.mixing.scale_position, model.space.n_fixed
    assert position is not None
    signs = [family.sign for family in model.mixing.families]
    scale_sign = signs[position - f]
    # A coefficient has the sign of minus the scale's times the amount's.
    signs = [scale_sign if i == position - f else -scale_sign * sign for i, sign in enumerate(signs)]
    mixing = Mixing([{0: "normal", 1: "lognormal", -1: "negative_lognormal"}[sign] for sign in signs])
    prior = resolve_priors(Priors(standardize=True), mixing, f, attribute_scale.tolist())
    return replace(model, mixing=mixing, prior=prior, attribute_scale=attribute_scale)


def to_money(
    model: MixedLogitModel, preference: MixedLogitModel, population: PopulationParameters, default: PopulationParameters
) -> PopulationParameters:
    """Amounts of money whose quartiles and rank correlations are those of a population in preference space.

    Parameters
    ----------
    model, preference : MixedLogitModel
        Models in both spaces.
    population : PopulationParameters
        Population in preference space.
    default : PopulationParameters
        Start whose values are kept for families without a simple inverse map.
    """
    position, f, k = model.mixing.scale_position, model.space.n_fixed, model.space.n_random
    assert position is not None
    normal = PersonDraws("sobol", _PEOPLE, k, _SEED).normals(0, 1)[0].to(population.location)
    latent = population.location + (population.scale_tril @ normal).mT
    tastes = preference.mixing.tastes(latent, population.location, population.scale)
    scale = tastes[:, position - f]
    fixed = -population.fixed / scale.median()
    location, deviation = default.location.clone(), default.scale.clone()
    values = tastes.clone()
    for i, family in enumerate(model.mixing.families):
        amounts = scale if i == position - f else -tastes[:, i] / scale
        if family.name in ("lognormal", "negative_lognormal"):
            amounts = amounts.abs().clamp(min=1e-30).log()
        values[:, i] = amounts
        if family.name in ("normal", "lognormal", "negative_lognormal", "uniform", "triangular"):
            low, middle, high = amounts.quantile(torch.tensor([0.25, 0.5, 0.75]).to(amounts))
            unit = 1.0 if family.units == "log" else float(default.scale[i]) + float(middle.abs())
            location[i] = middle
            deviation[i] = ((high - low) / _QUARTILES).clamp(_LEAST_SPREAD * unit, _MOST_SPREAD * unit)
    tril = _correlation_tril(values, model) * deviation[:, None]
    return PopulationParameters(fixed, location, tril)


def _correlation_tril(values: Tensor, model: MixedLogitModel) -> Tensor:
    """Cholesky factor (k, k) of rank correlations (n, k) within blocks, shrunk so that it exists."""
    ranks = values.argsort(0).argsort(0).double()
    matrix = torch.atleast_2d(torch.corrcoef(ranks.T)).clamp(-_MOST_CORRELATED, _MOST_CORRELATED)
    inside = torch.eye(len(matrix), dtype=torch.bool)
    for block in model.space.blocks:
        index = torch.tensor(block)
        inside[index[:, None], index] = True
    matrix = torch.where(inside, matrix, 0.0)
    matrix.fill_diagonal_(1.0)
    for _ in range(20):
        tril, info = torch.linalg.cholesky_ex(matrix)
        if int(info) == 0:
            return tril
        matrix = 0.8 * matrix + 0.2 * torch.eye(len(matrix), dtype=matrix.dtype)
    return torch.eye(len(matrix), dtype=matrix.dtype)
