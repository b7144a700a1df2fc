"""What lies beyond all samples of a standard deviation, where hardly more than its prior bounds it.

Tastes with bounds, and skewed ones, approach a two-point distribution as the standard deviation of their latent grows:
the likelihood of few data then does not vanish, and the tail of the posterior is the half-Cauchy prior's, which has no
moments. A thousand samples may miss values that double the standard deviation of the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mxlogit.diagnostics.error import Cause, SquaredErrors
from mxlogit.fit import Samples
from mxlogit.inference.budgets import REINTEGRATED_POINT
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.mixed_logit import MixedLogitModel

# Posterior standard deviation of the logarithm of a standard deviation above which its tail is looked at: below, the
# largest of a thousand normal samples is three times the median, and data that say so much bound the tail too.
_VAGUE = 0.35
# Octaves beyond the largest sample that are looked at; the prior leaves less than a hundredth of its mass beyond.
_OCTAVES = 6
# Locations there, in those that the ratio of location to standard deviation in the bulk would ask for.
_STRETCHES = (0.0, 1.0)
_STREAM, _DEGREES_OF_FREEDOM, _NEWTON_STEPS = 23, 8, 30


def error_of_far_tails(model: MixedLogitModel, marginal: MarginalLikelihood, samples: Samples) -> SquaredErrors:
    """Errors of means and standard deviations of vague standard deviations by what lies beyond all samples.

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
    return SquaredErrors(Cause.TAIL, mean, deviation)


def _vague_tails(model: MixedLogitModel, samples: Samples) -> Iterator[_Tail]:
    f, k = model.space.n_fixed, model.space.n_random
    for j in range(k):
        sizes = samples.reported[:, f + k + j]
        if float(sizes.clamp(min=1e-300).log().std()) > _VAGUE:
            yield _Tail(f + k + j, f + j, samples)


@dataclass(frozen=True)
class _Tail:
    """The tail of the standard deviation at ``place`` of the reported vector; its location is at ``location``."""

    place: int
    location: int
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
        sizes, locations = self.samples.reported[:, self.place], self.samples.reported[:, self.location]
        vector = self.samples.mean.clone()
        vector[self.place] = size
        vector[self.location] = stretch * size * float((locations / sizes).median())
        population = model.space.from_report(vector)
        draws = REINTEGRATED_POINT.draws(marginal.people.load)
        integration = IntegrationSettings(draws, _DEGREES_OF_FREEDOM, _STREAM, _NEWTON_STEPS)
        value = marginal.value_pass(population, integration, remember=False).log_likelihood
        return value + float(model.prior.log_prob(model.space, model.space.unconstrain(population)))

    def _width(self, model: MixedLogitModel, size: float) -> float:
        """Width (median absolute deviation) of the location beside a standard deviation, within the prior's."""
        sizes, locations = self.samples.reported[:, self.place], self.samples.reported[:, self.location]
        ratio = locations / sizes
        inner = (ratio - ratio.median()).abs().median() * size
        return float(1.0 / (1.0 / inner.square() + 1.0 / model.prior.deviation[self.location] ** 2).sqrt())
