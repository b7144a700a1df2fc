"""Effects of covariates on the means of tastes, seen from the tastes: which coefficient moves whose.

In the utility an effect is the fixed coefficient of a product column (`mxlogit.choices.covariates`). The coefficient of
the attribute itself, of a person with given covariates, is the taste plus the effects times the covariates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.model.priors import PriorDensity


@dataclass(frozen=True)
class MeanShifters:
    """Effects of c covariates on coefficients.

    Attributes
    ----------
    effects : tuple of int
        Position of each effect among all f + k parameters.
    tastes : tuple of int
        Position of the parameter that it shifts.
    covariates : tuple of int
        Index of the covariate by which it is multiplied.
    names : tuple of str
        Names of the covariates.
    centre : tuple of float
        Their means over the people of the fit, where a typical coefficient is meant.
    """

    effects: tuple[int, ...] = ()
    tastes: tuple[int, ...] = ()
    covariates: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    centre: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.effects)

    def of(self, taste: int) -> MeanShifters:
        """Return those of the effects that shift the parameter at position ``taste``."""
        mine = [i for i, place in enumerate(self.tastes) if place == taste]
        effects, covariates = (tuple(part[i] for i in mine) for part in (self.effects, self.covariates))
        return MeanShifters(effects, (taste,) * len(mine), covariates, self.names, self.centre)

    def typical(self, parameters: Tensor) -> Tensor:
        """Parameters (..., f + k) of a person with average covariates."""
        return self.shift(parameters, parameters.new_tensor(self.centre)) if self else parameters

    def shift(self, parameters: Tensor, covariates: Tensor) -> Tensor:
        """Parameters (..., f + k) of people with covariates (..., c): tastes are shifted, effects are unchanged."""
        result = parameters.clone()
        for effect, taste, covariate in zip(self.effects, self.tastes, self.covariates, strict=True):
            result[..., taste] += parameters[..., effect] * covariates[..., covariate].to(parameters)
        return result

    def moments(self, parameters: Tensor, people: Covariates) -> tuple[Tensor, Tensor]:
        """Mean and variance over people, (..., f + k) each, of what covariates add to parameters (..., f + k)."""
        centre, spread = people.moments()
        loading = parameters.new_zeros(*parameters.shape, len(centre))
        for effect, taste, covariate in zip(self.effects, self.tastes, self.covariates, strict=True):
            loading[..., taste, covariate] += parameters[..., effect]
        return loading @ centre.to(parameters), ((loading @ spread.to(parameters)) * loading).sum(-1)

    def widen(self, prior: PriorDensity, people: Covariates) -> PriorDensity:
        """Priors of effects in standard deviations of covariates, and of means that these are far from zero.

        A taste's prior is meant for its mean at average covariates. Effects have the same per standard deviation of a
        covariate, and the mean at covariates of zero, which may be years ago, as much more as that is away.
        """
        centre, covariance = people.moments()
        deviation, away = prior.deviation.clone(), torch.zeros_like(prior.deviation)
        for effect, taste, covariate in zip(self.effects, self.tastes, self.covariates, strict=True):
            size = covariance[covariate, covariate].sqrt()
            deviation[effect] = prior.deviation[taste] / size
            away[taste] += (centre[covariate] / size).square()
        return replace(prior, deviation=deviation * (1.0 + away).sqrt())


@dataclass(frozen=True)
class Covariates:
    """Covariates of the people whose tastes are averaged: those of a fit, or one person with given values.

    Attributes
    ----------
    values : Tensor, shape (n, c), float64
    weights : Tensor, shape (n,), float64
    """

    values: Tensor
    weights: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means (c,) and covariance (c, c) over people."""
        share = self.weights / self.weights.sum()
        centre = share @ self.values
        deviations = self.values - centre
        return centre, deviations.T @ (share[:, None] * deviations)

    def nodes(self, index: Tensor, count: int) -> Tensor:
        """Covariates (count, c) of people that represent all, as often as their weights say.

        They stand in the order of ``index`` (n,): beside a Sobol sequence their place is one more dimension of a net
        (Hammersley 1960, Annals of the New York Academy of Sciences 86).
        """
        order = index.argsort(stable=True)
        below = self.weights[order].cumsum(0)
        heights = (torch.arange(count, dtype=torch.float64) + 0.5) / count * below[-1]
        return self.values[order[torch.searchsorted(below, heights).clamp(max=len(order) - 1)]]
