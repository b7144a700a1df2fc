r"""Willingness to pay for one unit of an attribute: minus the ratio of its coefficient to the cost's.

Positive if people pay to have more of the attribute; in units of the cost per unit of the attribute. Where the cost's
coefficient may be about zero the ratio has no mean, however precise the fit: :math:`E[1 / \beta_c]` is finite for a
fixed coefficient, a lognormal and Johnson's S_B, and infinite or without meaning for distributions that reach zero
(Daly, Hess and Train 2012, Transportation 39, doi 10.1007/s11116-011-9331-3). Quantiles always exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.draws.curve import spread_along_curve
from mxlogit.draws.simulation import PersonDraws
from mxlogit.errors import SpecificationError, check_probability
from mxlogit.fit import Fit
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.results.individual_coefficients import Group, parameter_samples

# Tastes per posterior sample, a power of two, and most posterior samples, whose intervals err by a thirtieth of a
# standard deviation.
_NODES, _MOST_SAMPLES = 1_024, 1_000
# Posterior samples whose tastes are in memory at a time.
_SAMPLES_AT_ONCE = 100
# Offset of the seed of the tastes from the seed of the fit.
_STREAM = 41
# Share of posterior samples that may reach zero, or have the other sign, before that is said.
_RARE = 0.01


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
    """

    model: MixedLogitModel
    attribute: str
    cost: str
    places: tuple[int, int]

    @classmethod
    def of(cls, model: MixedLogitModel, fit: Fit, attribute: str, cost: str) -> Ratio:
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
        if cost in fit.void:
            raise SpecificationError(
                f"the coefficient of {cost!r} is not known (its errors are void), so nothing can be related to it."
            )
        position = model.mixing.scale_position
        if position is not None and labels[position] != cost:
            raise SpecificationError(
                f"this model is in willingness-to-pay space with scale={labels[position]!r}; cost must be that, not "
                f"{cost!r}."
            )
        return cls(model, attribute, cost, (labels.index(attribute), labels.index(cost)))

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
        return any(place >= self.model.space.n_fixed for place in differ)

    def family(self) -> str:
        """Mixing distribution of the cost's coefficient; "fixed" without."""
        place = self.places[1] - self.model.space.n_fixed
        return "fixed" if place < 0 else self.model.mixing.families[place].name

    def judge(self, population: PopulationParameters) -> tuple[bool, str]:
        """Whether the population mean exists, and why, given posterior samples of the population."""
        cost, family, place = self.cost, self.family(), self.places[1] - self.model.space.n_fixed
        offer = f"MixedLogit(scale={cost!r}, method='msle') estimates amounts of money instead, whose moments exist."
        if self.in_money:
            return True, "Amounts of money are parameters of this model, and have moments."
        if family == "fixed":
            return True, _sign_of(cost, population.fixed[:, self.places[1]])
        if family in ("lognormal", "negative_lognormal", "johnson_sb"):
            return True, f"The coefficient of {cost!r} keeps away from zero ({family}): the mean is finite."
        if family == "censored_normal":
            return False, (
                f"The coefficient of {cost!r} is zero for some people (censored_normal): their willingness to pay is "
                f"infinite. Read quantiles; {offer}"
            )
        if family in ("uniform", "triangular"):
            reach = population.location[:, place].abs() <= population.scale[:, place]
            if float(reach.double().mean()) < _RARE:
                return True, f"The coefficient of {cost!r} keeps away from zero ({family}): the mean is finite."
        return False, (
            f"The coefficient of {cost!r} reaches zero ({family}): the ratio has no mean. Read quantiles; {offer}"
        )


def _sign_of(cost: str, coefficient: Tensor) -> str:
    positive = float((coefficient > 0).double().mean())
    if min(positive, 1.0 - positive) < _RARE:
        return f"The coefficient of {cost!r} is the same for everybody: the mean is finite."
    return (
        f"The coefficient of {cost!r} is the same for everybody, but its sign is not known ({positive:.0%} of the "
        "posterior is positive): intervals are those of a ratio whose denominator may be zero."
    )


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
    if isinstance(probabilities, (str, float, int)):
        raise SpecificationError(
            f"quantiles must be a list of probabilities, such as [0.05, 0.5]; got {probabilities!r}."
        )
    for probability in probabilities:
        check_probability("quantiles", probability)
    population = _samples(model, fit)
    has_mean, verdict = ratio.judge(population)
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
    lower, middle, upper = np.quantile(rows.numpy(), at, axis=0, method="nearest")
    middle = middle if estimate is None else estimate.numpy()
    return pd.DataFrame({"estimate": middle, "lower": lower, "upper": upper}, index=index)


def _samples(model: MixedLogitModel, fit: Fit) -> PopulationParameters:
    """Evenly spaced samples of the population parameters, at most `_MOST_SAMPLES`."""
    return model.space.constrain(spread_along_curve(fit.samples.unconstrained, _MOST_SAMPLES))


def _stacked(population: PopulationParameters) -> PopulationParameters:
    """One population value as a sample of size one."""
    return PopulationParameters(population.fixed[None], population.location[None], population.scale_tril[None])


def _tastes(ratio: Ratio, population: PopulationParameters, seed: int) -> Iterator[Tensor]:
    """Parameters (s, nodes, f + k) of people drawn from each of some population values, the same draws for all."""
    model, k = ratio.model, ratio.model.space.n_random
    normal = PersonDraws("sobol", _NODES, k, seed + _STREAM).normals(0, 1)[0] if ratio.is_random else torch.zeros(k, 1)
    for fixed, location, tril, scale in zip(
        *(
            part.split(_SAMPLES_AT_ONCE)
            for part in (population.fixed, population.location, population.scale_tril, population.scale)
        ),
        strict=True,
    ):
        latent = (location[..., None] + tril @ normal.to(tril)).mT
        tastes = model.mixing.tastes(latent, location[:, None], scale[:, None])
        yield torch.cat([fixed[:, None].expand(-1, latent.shape[1], -1), tastes], -1)


def _statistics(ratio: Ratio, population: PopulationParameters, seed: int, probabilities: Sequence[float]) -> Tensor:
    """Quantiles and the share below zero (s, number of probabilities + 1) in each of some populations."""
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
    family, f = ratio.family(), ratio.model.space.n_fixed
    cost = ratio.places[1]
    if ratio.in_money:
        return _mean_of(ratio, population, seed, None)
    if family == "fixed":
        return -_mean_of(ratio, population, seed, None) / population.fixed[:, cost]
    if family in ("uniform", "triangular"):
        parts = [ratio.values(parameters).mean(1) for parameters in _tastes(ratio, population, seed)]
        return torch.cat(parts)
    place = cost - f
    inverse = (-population.location[:, place] + 0.5 * population.scale[:, place].square()).exp()
    tilted = inverse * _mean_of(ratio, population, seed, place)
    if family == "johnson_sb":
        return -(_mean_of(ratio, population, seed, None) + tilted)
    return tilted if family == "negative_lognormal" else -tilted


def _mean_of(ratio: Ratio, population: PopulationParameters, seed: int, cost: int | None) -> Tensor:
    """Mean (s,) of the attribute's parameter; by exp(-latent) of the random coefficient ``cost``, if given."""
    place = ratio.places[0] - ratio.model.space.n_fixed
    if place < 0:
        return population.fixed[:, ratio.places[0]]
    family, tril = ratio.model.mixing.families[place], population.scale_tril
    location, scale = population.location[:, place], population.scale[:, place]
    moved = location if cost is None else location - (tril[:, place] * tril[:, cost]).sum(-1)
    if cost is None or not family.direct:
        return family.moments(moved, scale)[0]
    normal = PersonDraws("sobol", _NODES, 1, seed + _STREAM).normals(0, 1)[0].to(scale)
    latent = moved[:, None] + scale[:, None] * normal
    return family.taste(latent, location[:, None], scale[:, None]).mean(1)


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
    for _, parameters in parameter_samples(model, fit, group):
        values = ratio.values(parameters).cpu()
        estimate = values.mean(0) if has_mean else None
        parts.append(_with_interval(values, interval, pd.RangeIndex(values.shape[1]), estimate))
    frame = pd.concat(parts).set_axis(pd.Index(labels, name="decision_maker"))
    frame.attrs["verdict"] = verdict
    return frame
