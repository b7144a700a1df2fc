"""Errors by values beyond all samples, where hardly more than its prior bounds a standard deviation or location.

Tastes with bounds, and skewed ones, approach a two-point distribution as the standard deviation of their latent grows:
the likelihood of few data then does not vanish, and the tail of the posterior is the half-Cauchy prior's, which has no
moments. A thousand samples may miss values that double the standard deviation of the posterior.

A normal truncated at zero approaches an exponential distribution as its location falls: of location and standard
deviation only the mean taste is known then, and the location's tail is its prior's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.diagnostics.error import Cause, SquaredErrors
from mxlogit.fit import Samples
from mxlogit.inference.budgets import REINTEGRATED_POINT
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Family

# Posterior standard deviation of the logarithm of a standard deviation above which its tail is looked at: below, the
# largest of a thousand normal samples is three times the median, and data that say so much bound the tail too.
_VAGUE = 0.35
# Octaves beyond the largest sample that are looked at; the prior leaves less than a hundredth of its mass beyond.
_OCTAVES = 6
# Locations there, in those that the ratio of location to standard deviation in the bulk would ask for.
_STRETCHES = (0.0, 1.0)
# Share of the samples that must be on a ridge, ratio of location to standard deviation below which one is, and the
# factor up to which samples around that quantile give its density; chosen by hand.
_ON_RIDGE, _LOW, _AROUND = 0.1, -0.3, 1.5
_STREAM, _DEGREES_OF_FREEDOM, _NEWTON_STEPS = 23, 8, 30


def error_of_far_tails(model: MixedLogitModel, marginal: MarginalLikelihood, samples: Samples) -> SquaredErrors:
    """Estimate errors of means and standard deviations by what lies beyond all samples.

    Parameters
    ----------
    model : MixedLogitModel
    marginal : MarginalLikelihood
        Marginal likelihood of all people, or of a random part of them.
    samples : Samples
        Posterior samples.
    """
    mean = torch.zeros(model.space.size, dtype=torch.float64)
    deviation = mean.clone()
    for tail in _vague_tails(model, samples):
        mean[tail.place], deviation[tail.place] = tail.squared_errors(model, marginal)
    for ridge in _low_ridges(model, samples):
        places = [ridge.location, ridge.place]
        of_means, of_deviations = ridge.squared_errors(model, marginal)
        mean[places] = torch.maximum(mean[places], of_means)
        deviation[places] = torch.maximum(deviation[places], of_deviations)
    return SquaredErrors(Cause.TAIL, mean, deviation)


def _vague_tails(model: MixedLogitModel, samples: Samples) -> Iterator[_Tail]:
    space = model.space
    for j in range(space.n_random):
        place = space.scales.start + j
        if float(samples.reported[:, place].clamp(min=1e-300).log().std()) > _VAGUE:
            column = space.n_fixed + j
            location = space.means.index(column) if column in space.means else None
            yield _Tail(place, location, column, samples)


def _low_ridges(model: MixedLogitModel, samples: Samples) -> Iterator[_Ridge]:
    """Tastes truncated at zero, where a tenth of the samples have begun to follow the ridge."""
    space = model.space
    for j, family in enumerate(model.mixing.families):
        if not (family.direct and family.sign) or space.n_fixed + j not in space.means:
            continue
        location, place = space.means.index(space.n_fixed + j), space.scales.start + j
        ratio = samples.reported[:, location] / samples.reported[:, place]
        if float(ratio.quantile(_ON_RIDGE)) < _LOW:
            yield _Ridge(place, location, samples, family)


def _log_posterior(model: MixedLogitModel, marginal: MarginalLikelihood, vector: Tensor) -> float:
    """Log posterior of a reported vector, by new draws."""
    population = model.space.from_report(vector)
    draws = REINTEGRATED_POINT.draws(marginal.people.load)
    integration = IntegrationSettings(draws, _DEGREES_OF_FREEDOM, _STREAM, _NEWTON_STEPS)
    value = marginal.value_pass(population, integration, remember=False).log_likelihood
    return value + float(model.prior.log_prob(model.space, model.space.unconstrain(population)))


@dataclass(frozen=True)
class _Ridge:
    """Low locations of a taste above zero, with the standard deviation that keeps its mean; places as of `_Tail`."""

    place: int
    location: int
    samples: Samples
    family: Family

    def squared_errors(self, model: MixedLogitModel, marginal: MarginalLikelihood) -> tuple[Tensor, Tensor]:
        """Squares of what the ridge adds to means, and to standard deviations, of location and standard deviation."""
        both = self.samples.reported[:, [self.location, self.place]]
        ratio = both[:, 0] / both[:, 1]
        here = float(ratio.quantile(_ON_RIDGE))
        # Density of the logarithm of minus the ratio, of samples up to half as much away.
        near = (ratio < here / _AROUND) & (ratio > here * _AROUND)
        density = float(near.double().mean()) / (2.0 * math.log(_AROUND))
        beyond = float(ratio.amin()) * 2.0 ** (0.5 + torch.arange(_OCTAVES, dtype=torch.float64))
        reference, _ = self._at(model, marginal, here)
        masses, places = [], []
        for value in beyond.tolist():
            log_density, pair = self._at(model, marginal, value)
            masses.append(density * math.log(2.0) * math.exp(min(log_density - reference, 0.0)))
            places.append(pair)
        mass, away = torch.tensor(masses).double(), (torch.stack(places) - both.mean(0)) / both.std(0)
        return (mass @ away).square(), (0.5 * mass @ away.square()).square()

    def _at(self, model: MixedLogitModel, marginal: MarginalLikelihood, ratio: float) -> tuple[float, Tensor]:
        """Log density of log(-ratio) and the log mean of tastes, and the pair of location and standard deviation."""
        pairs = self.samples.reported[:, [self.location, self.place]].median(0).values
        wanted = self.family.moments(pairs[0], pairs[1])[0]
        one = torch.tensor(1.0, dtype=torch.float64)
        size = float(wanted / self.family.moments(ratio * one, one)[0])
        vector = self.samples.mean.clone()
        vector[[self.location, self.place]] = pair = torch.tensor([ratio * size, size], dtype=torch.float64)
        # The map from (log(-ratio), log mean) to (location, log standard deviation) stretches by ratio times size.
        return _log_posterior(model, marginal, vector) + math.log(abs(ratio) * size), pair


@dataclass(frozen=True)
class _Tail:
    """The tail of the standard deviation at ``place`` of the reported vector, of the taste at ``column`` of the model.

    Its location is at ``location`` of the reported vector; None if that is held.
    """

    place: int
    location: int | None
    column: int
    samples: Samples

    def squared_errors(self, model: MixedLogitModel, marginal: MarginalLikelihood) -> tuple[float, float]:
        """Squares of what the tail adds to mean and standard deviation, in standard deviations."""
        sizes = self.samples.reported[:, self.place]
        beyond = float(sizes.amax()) * 2.0 ** (0.5 + torch.arange(_OCTAVES, dtype=torch.float64))
        middle = float(sizes.median())
        at_middle, width = self._log_density(model, marginal, middle, 1.0), self._width(model, middle)
        # Density of the logarithm at its median, as if it were normal there.
        density = 1.0 / (float(sizes.log().std()) * math.sqrt(2.0 * math.pi))
        masses = []
        for size in beyond.tolist():
            highest = max(self._log_density(model, marginal, size, stretch) for stretch in _STRETCHES)
            wider = self._width(model, size) / width
            masses.append(density * math.log(2.0) * wider * math.exp(min(highest - at_middle, 0.0)))
        mass, away = torch.tensor(masses).double(), (beyond - sizes.mean()) / sizes.std()
        return float(mass @ away) ** 2, float(0.5 * mass @ away.square()) ** 2

    def _log_density(self, model: MixedLogitModel, marginal: MarginalLikelihood, size: float, stretch: float) -> float:
        """Log posterior at a standard deviation, in its logarithm, all but its location at their means."""
        vector = self.samples.mean.clone()
        vector[self.place] = size
        if self.location is not None:
            sizes, locations = self.samples.reported[:, self.place], self.samples.reported[:, self.location]
            vector[self.location] = stretch * size * float((locations / sizes).median())
        return _log_posterior(model, marginal, vector)

    def _width(self, model: MixedLogitModel, size: float) -> float:
        """Width (median absolute deviation) of the location beside a standard deviation, within the prior's."""
        if self.location is None:
            return 1.0
        sizes, locations = self.samples.reported[:, self.place], self.samples.reported[:, self.location]
        ratio = locations / sizes
        inner = (ratio - ratio.median()).abs().median() * size
        return float(1.0 / (1.0 / inner.square() + 1.0 / model.prior.deviation[self.column] ** 2).sqrt())
