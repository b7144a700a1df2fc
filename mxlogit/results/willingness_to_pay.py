r"""Willingness to pay for one unit of an attribute: minus the ratio of its coefficient to the cost's.

Positive if people pay to have more of the attribute; in units of the cost per unit of the attribute. Means exist under
the conditions of `mxlogit.results.cost`; quantiles always exist.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.draws.curve import spread_along_curve
from mxlogit.draws.simulation import PersonDraws
from mxlogit.errors import SpecificationError, check_probabilities, check_probability
from mxlogit.fit import Fit
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.results.class_cost import counted_weights, ignoring_classes, judge_classes, weighted_quantiles
from mxlogit.results.classes import mean_shares
from mxlogit.results.cost import Cost
from mxlogit.results.individual_coefficients import Group, coefficient_samples
from mxlogit.results.population_nodes import TASTE_STREAM, Nodes, taste_nodes

# Tastes per posterior sample, a power of two, and most posterior samples, whose intervals err by a thirtieth of a
# standard deviation.
_NODES, _MOST_SAMPLES = 1_024, 1_000
# Tastes per posterior sample beside which stand people with covariates of their own.
_NODES_WITH_COVARIATES = 4_096
# Posterior samples whose tastes are in memory at a time.
_SAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class Ratio:
    """An attribute and the cost to whose coefficient its own is related.

    Attributes
    ----------
    model : MixedLogitModel
    attribute, cost : str
        Labels of coefficients.
    places : tuple of int
        Their positions among all parameters, fixed ones first.
    people : Covariates or None
        Covariates of the people in the population, if some shift the means of tastes, or on which classes depend.
    member_of : int or None
        Index of the class whose members are asked about; None for everybody.
    """

    model: MixedLogitModel
    attribute: str
    cost: str
    places: tuple[int, int]
    people: Covariates | None = None
    member_of: int | None = None

    @classmethod
    def of(cls, model: MixedLogitModel, fit: Fit, attribute: str, cost: str, people: Covariates | None = None) -> Ratio:
        """Find two coefficients.

        Raises
        ------
        SpecificationError
            If one is unknown, both are the same, or the cost has no effect or is not the scale of its space.
        """
        labels = [*model.space.fixed, *model.space.random]
        unknown = [label for label in (attribute, cost) if label not in labels]
        if unknown:
            raise SpecificationError(f"{unknown} are no coefficients of this model, which has {labels}.")
        if attribute == cost:
            raise SpecificationError(f"attribute and cost are both {cost!r}; the ratio would be minus one.")
        Cost.of(model, fit, cost)
        return cls(model, attribute, cost, (labels.index(attribute), labels.index(cost)), people)

    def values(self, parameters: Tensor) -> Tensor:
        """Willingness to pay (...,) at parameters (..., f + k)."""
        attribute, cost = (parameters[..., place] for place in self.places)
        return attribute if self.in_money else -attribute / cost

    @property
    def in_money(self) -> bool:
        """Whether the parameter of the attribute is the willingness to pay."""
        return self.model.mixing.scale_position is not None

    @property
    def is_random(self) -> bool:
        """Whether people differ in it."""
        differ = self.places[:1] if self.in_money else self.places
        return any(place >= self.model.space.n_fixed or self.model.shifters.of(place) for place in differ)

    @property
    def varies(self) -> bool:
        """Whether covariates shift one of the two coefficients."""
        return any(self.model.shifters.of(place) for place in self.places)

    @property
    def on_latents(self) -> bool:
        """Whether covariates shift the latent normal of one of the two coefficients."""
        return any(self.model.shifters.of_latents.of(place) for place in self.places)

    def with_covariates(self, found: Nodes, nodes: int) -> Tensor:
        """Parameters (s, nodes, f + k), with what the covariates of as many people add to the two coefficients."""
        parameters = found.parameters
        shifters = [shifter for shifter in map(self.model.shifters.of, self.places) if shifter]
        if not shifters:
            return parameters
        assert self.people is not None
        index = shifters[0].index(parameters.mean((0, 1)), self.people.values)
        covariates = self.people.nodes(index, nodes)
        if found.latents is not None:
            parameters = found.latents.parameters(covariates)
        return self.model.shifters.shift(parameters.expand(-1, nodes, -1), covariates)

    def mean_of_covariates(self, population: PopulationParameters) -> Tensor:
        """Shift by covariates of the mean of the attribute's parameter, in each of some populations, (s,)."""
        shifters = self.model.shifters.of(self.places[0])
        if not shifters:
            return torch.zeros((), dtype=torch.float64)
        assert self.people is not None
        parameters = torch.cat([population.fixed, torch.zeros_like(population.location)], -1)
        return shifters.moments(parameters, self.people)[0][:, self.places[0]]

    def judge(self, population: PopulationParameters) -> tuple[bool, str]:
        """Whether the population mean exists, and why, given posterior samples of the population."""
        if isinstance(population, ClassPopulation):
            return judge_classes(self.model, population, self.places[1], self.cost, self.member_of)
        return self._cost.judge(population)

    @property
    def family(self) -> str:
        """Mixing distribution of the cost's coefficient."""
        return self._cost.family

    @property
    def cost_varies(self) -> bool:
        """Whether covariates shift the cost's coefficient."""
        return self._cost.varies

    @property
    def _cost(self) -> Cost:
        return Cost(self.model, self.cost, self.places[1], self.people)


def population_frame(
    model: MixedLogitModel,
    fit: Fit,
    ratio: Ratio,
    seed: int,
    probabilities: Sequence[float],
    interval: float,
) -> pd.DataFrame:
    """Table of the distribution of a willingness to pay in the population.

    Parameters
    ----------
    model : MixedLogitModel
    fit : Fit
    ratio : Ratio
    seed : int
        Seed of the tastes.
    probabilities : sequence of float
        Probabilities of the quantiles.
    interval : float
        Probability of the intervals.

    Returns
    -------
    pandas.DataFrame
        Index ``statistic``: "mean" where it exists, quantiles as "25 %", "share below zero". Columns: ``estimate``,
        ``lower``, ``upper``. ``attrs["verdict"]`` says whether the mean exists, and why.
    """
    check_probabilities("quantiles", probabilities)
    population = _samples(model, fit)
    has_mean, verdict = ratio.judge(population)
    if ignoring_classes(population, ratio.places[1], ratio.member_of) and ratio.member_of is not None:
        raise SpecificationError(verdict)
    names = [f"{100.0 * p:g} %" for p in probabilities]
    rows = _statistics(ratio, population, seed, probabilities)
    centre = _statistics(ratio, _stacked(fit.center), seed, probabilities)
    labels = [*names, "share below zero"]
    if has_mean:
        labels = ["mean", *labels]
        rows = torch.cat([population_means(ratio, population, seed)[:, None], rows], 1)
        centre = torch.cat([population_means(ratio, _stacked(fit.center), seed)[:, None], centre], 1)
    estimate = None if fit.samples.kind == "posterior" else centre[0]
    frame = _with_interval(rows, interval, pd.Index(labels, name="statistic"), estimate)
    frame.attrs["verdict"] = verdict
    return frame


def _with_interval(rows: Tensor, interval: float, index: pd.Index, estimate: Tensor | None = None) -> pd.DataFrame:
    """Medians, or given estimates, with central intervals of samples (s, n)."""
    check_probability("interval", interval)
    at = [0.5 * (1.0 - interval), 0.5, 0.5 * (1.0 + interval)]
    # Ratios may be infinite: nothing is interpolated between these.
    quantile = np.nanquantile if bool(torch.isnan(rows).any()) else np.quantile
    with warnings.catch_warnings():
        # Of people in classes that ignore the cost nothing is known.
        warnings.simplefilter("ignore", RuntimeWarning)
        lower, middle, upper = quantile(rows.numpy(), at, axis=0, method="nearest")
    middle = middle if estimate is None else estimate.numpy()
    return pd.DataFrame({"estimate": middle, "lower": lower, "upper": upper}, index=index)


def _samples(model: MixedLogitModel, fit: Fit) -> PopulationParameters:
    """Evenly spaced samples of the population parameters, at most `_MOST_SAMPLES`."""
    return model.space.constrain(spread_along_curve(fit.samples.unconstrained, _MOST_SAMPLES))


def _stacked(population: PopulationParameters) -> PopulationParameters:
    """One population value as a sample of size one."""
    return population.map(lambda part: part[None])


def _tastes(ratio: Ratio, population: PopulationParameters, seed: int) -> Iterator[Tensor]:
    """Parameters (s, nodes, f + k) of people drawn from each of some population values, the same draws for all."""
    nodes = (_NODES_WITH_COVARIATES if ratio.varies else _NODES) if ratio.is_random else 1
    for some in _split(population):
        yield ratio.with_covariates(taste_nodes(ratio.model, some, nodes, seed), nodes)


def _split(population: PopulationParameters) -> Iterator[PopulationParameters]:
    """Some samples of the population at a time."""
    for start in range(0, len(population.fixed), _SAMPLES_AT_ONCE):
        part = slice(start, start + _SAMPLES_AT_ONCE)
        yield population.map(lambda values, part=part: values[part])  # type: ignore[misc]


def _class_values(ratio: Ratio, population: ClassPopulation, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Willingness to pay (s, r) of members of classes, and their weights (s, r)."""
    people = ratio.people
    values_of_people, weights_of_people = (None, None) if people is None else (people.values, people.weights)
    for some in _split(population):
        assert isinstance(some, ClassPopulation)
        nodes = taste_nodes(ratio.model, some, _NODES, seed)
        if ratio.member_of is not None:
            values = ratio.values(nodes.of_class(ratio.member_of).parameters)
            yield values, torch.full_like(values, 1.0 / values.shape[1])
            continue
        assert nodes.membership is not None
        weights = nodes.membership.mean_weights(values_of_people, weights_of_people, nodes.parameters.shape[1])
        yield ratio.values(nodes.parameters), counted_weights(nodes, weights, some, ratio.places)


def _statistics(ratio: Ratio, population: PopulationParameters, seed: int, probabilities: Sequence[float]) -> Tensor:
    """Quantiles and the share below zero (s, number of probabilities + 1) in each of some populations."""
    if isinstance(population, ClassPopulation):
        found = _class_values(ratio, population, seed)
        return torch.cat([weighted_quantiles(values, weights, probabilities) for values, weights in found])
    parts = []
    for parameters in _tastes(ratio, population, seed):
        ordered = ratio.values(parameters).sort(1).values
        count = ordered.shape[1]
        picks = [min(count - 1, int(p * count)) for p in probabilities]
        parts.append(torch.cat([ordered[:, picks], (ordered < 0.0).double().mean(1, keepdim=True)], 1))
    return torch.cat(parts)


def population_means(ratio: Ratio, population: PopulationParameters, seed: int) -> Tensor:
    r"""Mean willingness to pay (s,) in each of some populations, where it exists.

    For a lognormal cost :math:`1 / \beta_c` is :math:`\pm e^{-\eta_c}`, under which the other latent normals keep their
    covariance and move by minus their covariance with :math:`\eta_c`.
    """
    if isinstance(population, ClassPopulation):
        return _class_means(ratio, population, seed)
    family, f = ratio.family, ratio.model.space.n_fixed
    cost = ratio.places[1]
    if ratio.on_latents:
        return torch.cat([ratio.values(parameters).mean(1) for parameters in _tastes(ratio, population, seed)])
    if ratio.in_money:
        return _mean_of(ratio, population, seed, None)
    if family == "fixed" and not ratio.cost_varies:
        return -_mean_of(ratio, population, seed, None) / population.fixed[:, cost]
    if family in ("fixed", "uniform", "triangular"):
        parts = [ratio.values(parameters).mean(1) for parameters in _tastes(ratio, population, seed)]
        return torch.cat(parts)
    place = cost - f
    inverse = (-population.location[:, place] + 0.5 * population.scale[:, place].square()).exp()
    tilted = inverse * _mean_of(ratio, population, seed, place)
    if family == "johnson_sb":
        return -(_mean_of(ratio, population, seed, None) + tilted)
    return tilted if family == "negative_lognormal" else -tilted


def _class_means(ratio: Ratio, population: ClassPopulation, seed: int) -> Tensor:
    """Mean willingness to pay (s,) of the members of all classes that do not ignore the cost, where it exists."""
    if not bool((population.scale_tril != 0.0).any()):
        found = _class_values(ratio, population, seed)
        return torch.cat([(weights * torch.where(weights > 0.0, values, 0.0)).sum(1) for values, weights in found])
    attribute, cost = (population.attended[:, place] for place in ratio.places)
    classes = [c for c in range(population.n_classes) if float(cost[c])]
    if ratio.member_of is not None:
        classes = [ratio.member_of]
    shares = mean_shares(population, ratio.people)[:, classes]
    means = torch.stack([attribute[c] * population_means(ratio, population.component(c), seed) for c in classes], 1)
    return (means * shares).sum(1) / shares.sum(1)


def _mean_of(ratio: Ratio, population: PopulationParameters, seed: int, cost: int | None) -> Tensor:
    """Mean (s,) of the attribute's parameter; by exp(-latent) of the random coefficient ``cost``, if given."""
    place, added = ratio.places[0] - ratio.model.space.n_fixed, ratio.mean_of_covariates(population)
    if place < 0:
        return population.fixed[:, ratio.places[0]] + added
    family, tril = ratio.model.mixing.families[place], population.scale_tril
    location, scale = population.location[:, place], population.scale[:, place]
    moved = location if cost is None else location - (tril[:, place] * tril[:, cost]).sum(-1)
    if cost is None or not family.direct:
        return family.moments(moved, scale)[0] + added
    normal = PersonDraws("sobol", _NODES, 1, seed + TASTE_STREAM).normals(0, 1)[0].to(scale)
    latent = moved[:, None] + scale[:, None] * normal
    return family.taste(latent, location[:, None], scale[:, None]).mean(1) + added


def people_frame(
    model: MixedLogitModel, fit: Fit, ratio: Ratio, group: Group, labels: np.ndarray, interval: float
) -> pd.DataFrame:
    """Table of people's willingness to pay given their choices.

    Returns
    -------
    pandas.DataFrame
        Index: decision maker. Columns: ``estimate``, the mean of the ratio where it exists, else its median; ``lower``,
        ``upper``.
    """
    if not ratio.is_random:
        raise SpecificationError(
            f"the coefficients of {ratio.attribute!r} and {ratio.cost!r} are the same for everybody; leave out people."
        )
    has_mean, verdict = ratio.judge(_samples(model, fit))
    parts = []
    for _, parameters in coefficient_samples(model, fit, group):
        values = ratio.values(parameters).cpu()
        if model.has_classes:
            # Samples of classes that ignore the cost say nothing.
            values = torch.where(parameters[..., ratio.places[1]].cpu() == 0.0, torch.nan, values)
        estimate = values.nanmean(0) if has_mean else None
        parts.append(_with_interval(values, interval, pd.RangeIndex(values.shape[1]), estimate))
    frame = pd.concat(parts).set_axis(pd.Index(labels, name="decision_maker"))
    frame.attrs["verdict"] = verdict
    return frame
