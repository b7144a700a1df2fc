"""Conditional tastes of decision makers, averaged over the posterior of the population parameters.

The result for a person does not depend on the other people requested: the number of population samples follows from
the size of the fit's data, and the draws from its seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.draws.curve import spread_along_curve
from mxlogit.errors import SpecificationError, check_whole
from mxlogit.execution.people import PanelSource, on_cpu
from mxlogit.fit import Fit, TasteStates
from mxlogit.integration.tastes import total_moments
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.sampling.trace import MOST_STATES

# Largest number of population samples over which people's posteriors are averaged.
_MOST_POPULATIONS = 512
# Number of population samples times people of the fit: the contribution of the uncertainty of the population parameters
# to a person's posterior shrinks with the number of people.
_PEOPLE_TIMES_POPULATIONS = 32_000
# Fewest population samples for quantiles and predictions.
_FEWEST_POPULATIONS = 16
# Rows per person above which the number of population samples falls in proportion: tastes in long panels depend little
# on the population parameters.
_ROWS_OF_A_PERSON = 32
# Number of population samples below which it is not reduced for long panels.
_FEWEST_OF_LONG_PANELS = 64
# Taste samples per person for quantiles.
_SAMPLES = 512
# Fewest taste samples per person and population sample.
_SAMPLES_EACH = 16
# People whose samples are in memory at a time.
_PEOPLE_AT_ONCE = 1_000
# Fewest states of chains that represent a posterior better than importance weights do.
_FEWEST_STATES = 500


@dataclass(frozen=True)
class Moments:
    """Posterior means and standard deviations of people's tastes, (n, k) each."""

    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True)
class Group:
    """People whose conditional tastes are requested.

    Attributes
    ----------
    panel : PanelSource
        Choices on which tastes are conditional.
    places : Tensor, int64, shape (n,)
        Ranks among the people of the fit by first appearance; the number of people of the fit for new people.
    positions : Tensor or None, int64, shape (n,)
        Positions among the people of the fit, if the choices are those of the fit; else None.
    n_fitted, rows_fitted : int
        Numbers of people and of rows of the fit.
    covariates : Tensor or None, float64, shape (n, c)
        Covariates that shift the means of tastes.
    """

    panel: PanelSource
    places: Tensor
    positions: Tensor | None
    n_fitted: int
    rows_fitted: int = 0
    covariates: Tensor | None = None

    def count_populations(self) -> int:
        """Compute the number of population samples over which these people's posteriors are averaged."""
        people = max(1, self.n_fitted)
        count = _PEOPLE_TIMES_POPULATIONS // people
        long = _PEOPLE_TIMES_POPULATIONS * _ROWS_OF_A_PERSON // max(1, self.rows_fitted, _ROWS_OF_A_PERSON * people)
        return min(_MOST_POPULATIONS, 2 * (max(long, min(count, _FEWEST_OF_LONG_PANELS)) // 2))

    def states(self, fit: Fit) -> TasteStates | None:
        """Return the states of these people's tastes in the chains; None if there are too few."""
        if fit.states is None or self.positions is None or len(fit.states.tastes) < _FEWEST_STATES:
            return None
        return fit.states.take(self.positions)


@dataclass(frozen=True)
class WeightedCoefficients:
    """Weighted draws of the coefficients of a subset of people.

    Attributes
    ----------
    part : slice or Tensor
        Indices of the people in their group.
    weights : Tensor, shape (n, s)
        Weights, which sum to one over all draws of a person.
    coefficients : Tensor, shape (n, s, f + k)
        Draws of the coefficients.
    """

    part: slice | Tensor
    weights: Tensor
    coefficients: Tensor


def sampled_populations(model: MixedLogitModel, fit: Fit, n: int) -> list[PopulationParameters]:
    """Select ``n`` posterior samples of the population parameters, evenly spaced along a space-filling curve.

    Without a posterior (maximum likelihood) the result is the point estimate, on which tastes are then conditional.
    """
    if fit.samples.kind != "posterior":
        return [fit.center]
    return model.space.constrain_each(spread_along_curve(fit.samples.unconstrained, n))


def taste_moments(model: MixedLogitModel, fit: Fit, group: Group) -> Moments:
    """Posterior moments of tastes, from chains or by the law of total variance over population samples."""
    if model.shifters:
        return _moments_with_covariates(model, fit, group)
    if fit.states is not None and group.positions is not None:
        return Moments(fit.states.mean[group.positions], fit.states.deviation[group.positions])
    count = group.count_populations()
    populations = sampled_populations(model, fit, count) if count > 1 else [fit.center]
    return Moments(*fit.tastes.averaged_moments(group.panel, populations, fit.center, group.places))


def _moments_with_covariates(model: MixedLogitModel, fit: Fit, group: Group) -> Moments:
    """Posterior moments of tastes with what covariates add: tastes and effects are averaged together."""
    if group.states(fit) is not None:
        parts = [samples[..., model.varying] for _, samples in coefficient_samples(model, fit, group)]
        return Moments(torch.cat([part.mean(0) for part in parts]), torch.cat([part.std(0) for part in parts]))
    pairs = []
    populations = sampled_populations(model, fit, max(2, group.count_populations()))
    for seed, population in enumerate(populations):
        mean, deviation = fit.tastes.moments(group.panel, population, seed, group.places)
        parameters = torch.cat([population.fixed.to(mean).expand(len(mean), -1), mean], 1)
        still = deviation.new_zeros(len(mean), len(model.varying) - model.space.n_random)
        found = _with_covariates(model, parameters, group)[:, model.varying]
        pairs.append((found, torch.cat([still, deviation], 1)))
    return Moments(*total_moments(pairs))


def _with_covariates(
    model: MixedLogitModel, parameters: Tensor, group: Group, part: slice | Tensor = slice(None)
) -> Tensor:
    """Parameters (..., n, f + k) of a part of the people, with what their covariates add to coefficients."""
    if not model.shifters:
        return parameters
    assert group.covariates is not None
    return model.shifters.shift(parameters, group.covariates[on_cpu(part)].to(parameters.device))


def class_memberships(model: MixedLogitModel, fit: Fit, group: Group) -> Tensor:
    """Probabilities (n, C) that people belong to classes given their choices, averaged over the posterior."""
    populations = sampled_populations(model, fit, max(_FEWEST_POPULATIONS, group.count_populations()))
    found = [fit.tastes.memberships(group.panel, population) for population in populations]  # type: ignore[attr-defined]
    return torch.stack(found).mean(0)


def weigh_coefficients(model: MixedLogitModel, fit: Fit, group: Group) -> Iterator[WeightedCoefficients]:
    """Iterate over weighted posterior draws of coefficients, by chunks of people, possibly several times per chunk."""
    states = group.states(fit)
    if states is not None:
        yield from _state_coefficients(model, states)
        return
    populations = sampled_populations(model, fit, max(_FEWEST_POPULATIONS, group.count_populations()))
    for seed, population in enumerate(populations):
        for drawn in fit.tastes.weigh(group.panel, population, seed, group.places):
            fixed = population.fixed if drawn.fixed is None else drawn.fixed.mT
            coefficients = model.mixing.coefficients(fixed.to(drawn.tastes), drawn.tastes.mT)
            yield WeightedCoefficients(drawn.part, drawn.weights.double() / len(populations), coefficients)


def _state_coefficients(model: MixedLogitModel, states: TasteStates) -> Iterator[WeightedCoefficients]:
    """Iterate over the coefficients in evenly spaced states of chains, fixed ones from the same iteration."""
    picks = torch.linspace(0, len(states.fixed) - 1, min(MOST_STATES, len(states.fixed))).long()
    fixed, n = states.fixed[picks].to(states.tastes), states.tastes.shape[1]
    picks = picks.to(states.tastes.device)
    for start in range(0, n, _PEOPLE_AT_ONCE):
        part = slice(start, min(n, start + _PEOPLE_AT_ONCE))
        tastes = states.tastes[picks, part].transpose(0, 1)
        coefficients = model.mixing.coefficients(fixed, tastes)
        weights = tastes.new_full(tastes.shape[:2], 1.0 / len(picks), dtype=torch.float64)
        yield WeightedCoefficients(part, weights, coefficients)


def individual_frame(
    model: MixedLogitModel,
    fit: Fit,
    group: Group,
    labels: np.ndarray,
    statistic: Sequence[str | float],
) -> pd.DataFrame:
    """Table of people's posterior tastes.

    Parameters
    ----------
    model : MixedLogitModel
        Mixed logit model.
    fit : Fit
        Result of its fit.
    group : Group
        People in the table.
    labels : ndarray
        Labels of the people.
    statistic : sequence
        "mean", "sd", or probabilities between 0 and 1 for quantiles.

    Returns
    -------
    pandas.DataFrame
        Index: decision maker. Columns: (taste, statistic).

    Raises
    ------
    SpecificationError
        If a statistic is unknown.
    """
    named = isinstance(statistic, Iterable) and not isinstance(statistic, str)
    if not named or not all(s in ("mean", "sd") or (isinstance(s, float) and 0 < s < 1) for s in statistic):
        raise SpecificationError(
            f"statistic must be a list of 'mean', 'sd' and probabilities between 0 and 1; got {statistic!r}."
        )
    statistic, columns = list(statistic), dict[str | float, np.ndarray]()
    if "mean" in statistic or "sd" in statistic:
        moments = taste_moments(model, fit, group)
        columns["mean"], columns["sd"] = moments.mean.cpu().numpy(), moments.deviation.cpu().numpy()
    probabilities, names = [s for s in statistic if isinstance(s, float)], [*model.space.fixed, *model.space.random]
    if probabilities and model.varying:
        columns.update(_quantiles(model, fit, group, probabilities))
    data = {(names[place], s): columns[s][:, i] for i, place in enumerate(model.varying) for s in statistic}
    frame = pd.DataFrame(data, index=pd.Index(labels, name="decision_maker"))
    frame.columns = pd.MultiIndex.from_tuples(list(data), names=["taste", "statistic"])
    return frame


def _quantiles(
    model: MixedLogitModel, fit: Fit, group: Group, probabilities: list[float]
) -> dict[str | float, np.ndarray]:
    at = torch.tensor(probabilities)
    parts = []
    for _, samples in coefficient_samples(model, fit, group):
        tastes = samples[..., model.varying]
        parts.append(torch.quantile(tastes, at.to(tastes), dim=0))
    values = torch.cat(parts, 1).cpu().numpy()
    return {p: values[i] for i, p in enumerate(probabilities)}


def parameter_samples(
    model: MixedLogitModel, fit: Fit, group: Group, count: int | None = None
) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Iterate over groups of people: their indices, and posterior samples (n_samples, n, f + k) of their parameters.

    Parameters are fixed coefficients and random tastes, which are amounts of money in willingness-to-pay space: those
    of the attributes and of their products with covariates. With ``count`` there are as many samples, from at most half
    as many population samples; by default enough for quantiles.
    """
    for part, panel in group.panel.chunks(_PEOPLE_AT_ONCE):
        positions = None if group.positions is None else group.positions[part]
        some = replace(group, panel=panel, places=group.places[part], positions=positions)
        samples = torch.cat(list(_samples(model, fit, some, count)))
        if count is not None and len(samples) != count:
            samples = samples[((torch.arange(count) + 0.5) * len(samples) / count).long().to(samples.device)]
        yield part, samples


def coefficient_samples(
    model: MixedLogitModel, fit: Fit, group: Group, count: int | None = None
) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Iterate over `parameter_samples`, with what covariates add to the coefficients of attributes."""
    for part, samples in parameter_samples(model, fit, group, count):
        yield part, _with_covariates(model, samples, group, part)


def sampled_tastes(model: MixedLogitModel, fit: Fit, group: Group, labels: np.ndarray, n: int) -> pd.DataFrame:
    """Table of ``n`` joint samples of people's parameters; index (sample, decision maker)."""
    check_whole("n", n, 1)
    names = [*model.space.fixed, *model.space.random]
    # Effects of covariates are part of the coefficients that they shift.
    kept = [place for place in range(len(names)) if place not in model.shifters.effects]
    values = np.empty((n, len(labels), len(kept)))
    for part, parameters in coefficient_samples(model, fit, group, n):
        values[:, on_cpu(part)] = parameters[..., kept].cpu().numpy()
    index = pd.MultiIndex.from_product([range(n), labels], names=["sample", "decision_maker"])
    return pd.DataFrame(values.reshape(-1, len(kept)), index, [names[place] for place in kept])


def _samples(model: MixedLogitModel, fit: Fit, group: Group, count: int | None) -> Iterator[Tensor]:
    """Posterior samples of fixed coefficients and people's tastes (s, n, f + k).

    Equally many for each population sample, or those of chains.
    """
    states = group.states(fit)
    if states is not None:
        fixed, tastes = states.fixed.double(), states.tastes.double()
        yield torch.cat([fixed[:, None].expand(*tastes.shape[:2], -1), tastes], -1)
        return
    wanted = max(_FEWEST_POPULATIONS, group.count_populations())
    populations = sampled_populations(model, fit, wanted if count is None else min(wanted, -(-count // 2)))
    each = -(-(count or _SAMPLES) // len(populations))
    if count is None:
        each = max(_SAMPLES_EACH, each)
    for seed, population in enumerate(populations):
        yield fit.tastes.sample_parameters(group.panel, population, each, seed, group.places)
