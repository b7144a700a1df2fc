r"""Evaluation of the log posterior at given population parameters, with common random numbers.

Base draws are the same at all points, so that differences between points have little noise. `FixedDrawsPosterior` uses
fixed draws of tastes: hundreds of points a second. `ReintegratedPosterior` integrates again at every point, for
population values that fixed draws do not cover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mxlogit.execution.people import People
from mxlogit.inference.budgets import COMPARED_POINT, FIXED_DRAWS, FIXED_PATHS, REINTEGRATED_POINT
from mxlogit.integration.fixed_taste_draws import FixedTasteDraws, supports_fixed_draws
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.path_draws import PathDraws, supports_fixed_paths
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.coordinates import RelativeCholeskyCoordinates
from mxlogit.model.mixed_logit import MixedLogitModel

# Constants without a stated reason are chosen by hand. Variances are of the log likelihood, from the finite number of
# draws, in nats squared.
# Median variance at typical points above which a reintegrated density takes more draws.
_TYPICAL_VARIANCE = 0.25
# Largest variance at one point; above it the value is unknown and counts as minus infinity.
_LARGEST_VARIANCE = 4.0
# Initial and largest number of draws per person of a reintegrated density, and least Newton steps to the modes.
_FIRST_DRAWS = 16
_MOST_DRAWS = 1_024
_NEWTON_STEPS = 4
# Most fixed draws per person.
_MOST_FIXED_DRAWS = 8_192
# Number of typical points at which their variance is checked, its largest median, and its largest value at one point.
_TYPICAL = 12
_FIXED_DRAWS_VARIANCE = 0.16
_LARGEST_FIXED_DRAWS_VARIANCE = 2.0
# Quantile of the standard deviations at which fixed draws are taken (measured, study design, 500 people: errors of .17
# nats, .35 at the mean; few choices: .1 and .6).
_WIDE = 0.84
# Largest median variance at typical points of fixed whitened draws, which are cheap (2,000 people, one choice, two
# tastes: .002 with 256 draws; at .005 standard deviations differ by 3 %); a larger one if twice the draws exceed
# _FEW_CELLS rows x draws.
_PATH_VARIANCE = 0.004
_ROUGH_PATH_VARIANCE = 0.04
_FEW_CELLS = 1_100_000
# Nats below the highest value at which points have negligible density: all but a thousandth of a normal posterior of
# five parameters is above.
_NEGLIGIBLE = 10.0
# Typical number of choice situations per person below which fixed tastes do not cover the populations of the posterior
# (150 people, one choice each: sds of log standard deviations of .47 where chains have .68).
_FEWEST_SITUATIONS = 3.0
# Quantiles of the standard deviations of the narrowest and the widest point at which fixed draws are compared with a
# reintegrated density; allowed error of the difference of the two points, in nats beyond two standard errors.
_ENDS = (0.05, 0.95)
_LARGEST_ERROR = 0.3


class ReintegratedPosterior:
    """Log posterior at population points, by one pass over the people for each point.

    Parameters
    ----------
    model : MixedLogitModel
    marginal : MarginalLikelihood
        Marginal likelihood of all people, with modes close to the modes under the posterior.
    coordinates : RelativeCholeskyCoordinates
    integration : IntegrationSettings
    tick : callable
        Callback that receives the number of points evaluated.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        marginal: MarginalLikelihood,
        coordinates: RelativeCholeskyCoordinates,
        integration: IntegrationSettings,
        tick: Callable[[int], None],
    ) -> None:
        self.model, self.marginal, self.coordinates, self._tick = model, marginal, coordinates, tick
        self.integration = replace(
            integration, draws=_FIRST_DRAWS, newton_steps=max(integration.newton_steps, _NEWTON_STEPS)
        )
        self.passes = 0.0

    def evaluate(self, points: Tensor) -> Iterator[tuple[float, float]]:
        """Iterate over the log posterior at points (n, D) and the variances due to the finite number of draws."""
        space, vectors = self.model.space, self.coordinates.to_unconstrained(points)
        known = self.model.prior.log_prob(space, vectors) + self.coordinates.log_jacobian(points)
        for population, prior in zip(space.constrain_each(vectors), known.tolist(), strict=True):
            self.passes += 1.0
            proposals = self.marginal.propose(population, self.integration, remember=False)
            sums = self.marginal.value(population, proposals)
            yield sums.log_likelihood + prior, sums.variance

    def log_prob(self, points: Tensor) -> Tensor:
        """Log posterior (n,) at points (n, D); minus infinity outside the space or if its variance is too large."""
        result = self.coordinates.log_jacobian(points)
        inside = torch.isfinite(result).nonzero()[:, 0]
        result[:] = -math.inf
        for place, (value, variance) in zip(inside.tolist(), self.evaluate(points[inside]), strict=True):
            self._tick(1)
            if math.isfinite(value) and variance < _LARGEST_VARIANCE:
                result[place] = value
        return result

    def on_other_draws(self, step: int) -> ReintegratedPosterior:
        """The same density on draws of another random stream, and on as many as a few points allow."""
        result = copy(self)
        situations = len(self.marginal.people) * mean_situations(self.marginal)
        draws = max(self.integration.draws, COMPARED_POINT.draws(situations))
        result.integration = replace(self.integration, draws=draws, stream=self.integration.stream + step)
        return result

    def sharpen(self, points: Tensor) -> None:
        """Quadruple the draws until the variance at typical points (n, D) is small."""
        while self.integration.draws < _MOST_DRAWS:
            variance = torch.tensor([variance for _, variance in self.evaluate(points)])
            if float(variance.nan_to_num(nan=math.inf).median()) < _TYPICAL_VARIANCE:
                return
            self.integration = replace(self.integration, draws=min(_MOST_DRAWS, 4 * self.integration.draws))


class FixedDrawsPosterior:
    """Log posterior at population points, from fixed draws of tastes.

    Parameters
    ----------
    model : MixedLogitModel
    fixed_draws : FixedTasteDraws or PathDraws
    coordinates : RelativeCholeskyCoordinates
    tick : callable
        Callback that receives the number of points evaluated.
    """

    passes = 1.0

    def __init__(
        self,
        model: MixedLogitModel,
        fixed_draws: FixedTasteDraws | PathDraws,
        coordinates: RelativeCholeskyCoordinates,
        tick: Callable[[int], None],
    ) -> None:
        self.model, self.fixed_draws, self.coordinates, self._tick = model, fixed_draws, coordinates, tick
        self._asked, self._highest, self._unknown = 0, -math.inf, torch.zeros(0, dtype=torch.float64)

    @property
    def share_unknown(self) -> float:
        """Share of evaluated points with too large a variance, except points of negligible density."""
        return float((self._unknown > self._highest - _NEGLIGIBLE).sum()) / max(1, self._asked)

    def log_prob(self, points: Tensor) -> Tensor:
        """Log posterior (n,) at points (n, D); minus infinity outside the space or if its variance is too large."""
        result = self.known(points)
        somewhere = torch.isfinite(result)
        value, variance = self.fixed_draws.log_likelihood(self.coordinates.to_unconstrained(points[somewhere]))
        # Lognormal correction: the likelihood, not its logarithm, must be unbiased; noisy points would get too much
        # weight.
        rest, value = result[somewhere], value - 0.5 * variance
        known = torch.isfinite(value) & (variance < _LARGEST_FIXED_DRAWS_VARIANCE)
        result[somewhere] += torch.where(known, value, -math.inf)
        self._asked += len(value)
        self._highest = max(self._highest, float(result.amax()))
        # Upper bounds: two standard errors above the estimates.
        perhaps = (rest + value + 0.5 * variance + 2.0 * variance.sqrt())[~known].nan_to_num(nan=math.inf)
        self._unknown = torch.cat([self._unknown, perhaps])
        self._tick(len(points))
        return result

    def known(self, points: Tensor) -> Tensor:
        """Log prior density plus log Jacobian of the coordinates, (n,); minus infinity outside the parameter space."""
        result = self.coordinates.log_jacobian(points)
        somewhere = torch.isfinite(result)
        result[somewhere] += self.model.prior.log_prob(
            self.model.space, self.coordinates.to_unconstrained(points[somewhere])
        )
        return result

    def agrees(self, ends: Tensor, difference: float, variance: float) -> bool:
        """Return whether the difference between two points (2, D) agrees with a reintegrated density."""
        low, high = self.log_prob(ends).tolist()
        noise = self.fixed_draws.log_likelihood(self.coordinates.to_unconstrained(ends))[1].sum()
        return abs(high - low - difference) < _LARGEST_ERROR + 2.0 * (variance + float(noise)) ** 0.5


def fixed_draws_posterior(
    model: MixedLogitModel,
    marginal: MarginalLikelihood,
    coordinates: RelativeCholeskyCoordinates,
    points: Tensor,
    integration: IntegrationSettings,
    tick: Callable[[int], None],
) -> FixedDrawsPosterior | None:
    """Return the posterior density on enough fixed draws for a small variance; None if draws do not cover it.

    The parameters are described in `ReintegratedPosterior`; ``points`` (n, D) represent the posterior. Draws are taken
    at large standard deviations, since they cover narrower populations, not wider ones. The variance between halves of
    the draws does not reveal a region that neither half covers, so the difference between the widest and the narrowest
    point is compared with a reintegrated density.
    """
    paths, is_supported = uses_path_draws(marginal, integration), supported_draws(marginal, integration)
    if not is_supported(1):
        return None
    wide = coordinates.diagonal(points)
    anchor = coordinates.with_diagonal(points.mean(0), wide.quantile(_WIDE, 0))
    population = model.space.constrain(coordinates.to_unconstrained(anchor))
    order = wide.log().sum(-1).argsort()
    ends = points[order[[int(share * len(points)) for share in _ENDS]]]
    typical, reintegrated, found = coordinates.to_unconstrained(points[:_TYPICAL]), None, None
    budget = FIXED_PATHS if paths else FIXED_DRAWS
    draws = 1 << budget.draws(len(marginal.people)).bit_length() - 1
    while draws <= _MOST_FIXED_DRAWS and is_supported(draws):
        more = replace(integration, draws=draws)
        path_draws = PathDraws(model, marginal, population, more, typical) if paths else None
        fixed_draws = path_draws or FixedTasteDraws(marginal, population, more)
        variance = fixed_draws.log_likelihood(typical)[1].nan_to_num(nan=math.inf)
        typically, worst = float(variance.median()), float(variance.amax())
        if typically < _FIXED_DRAWS_VARIANCE and worst < _LARGEST_FIXED_DRAWS_VARIANCE:
            density = FixedDrawsPosterior(model, fixed_draws, coordinates, tick)
            reintegrated = reintegrated or _reintegrated_difference(
                ReintegratedPosterior(model, marginal, coordinates, integration, tick), ends
            )
            found = density if density.agrees(ends, *reintegrated) else found
        wanted = _path_variance(2 * marginal.people.rows * draws) if paths else _FIXED_DRAWS_VARIANCE
        excess = max(typically / wanted, worst / _LARGEST_FIXED_DRAWS_VARIANCE)
        if (found is not None and excess < 1.0) or excess * draws > _MOST_FIXED_DRAWS:
            break
        draws *= 2
    return found


def _path_variance(cells: int) -> float:
    """Variance at typical points below which no more whitened draws are taken, given the cells of twice the draws."""
    return _PATH_VARIANCE if cells < _FEW_CELLS else _ROUGH_PATH_VARIANCE


def uses_path_draws(marginal: MarginalLikelihood, integration: IntegrationSettings) -> bool:
    """Return whether to fix whitened tastes: fixed tastes do not apply to all mixing maps, nor to few choices."""
    return (
        integration.pathwise
        or not supports_fixed_draws(marginal, 1)
        or typical_situations(marginal.people) < _FEWEST_SITUATIONS
    )


def supported_draws(marginal: MarginalLikelihood, integration: IntegrationSettings) -> Callable[[int], bool]:
    """Return a function of the number of draws per person: whether fixed draws apply and fit in memory."""
    return partial(supports_fixed_paths if uses_path_draws(marginal, integration) else supports_fixed_draws, marginal)


def mean_situations(marginal: MarginalLikelihood) -> float:
    """Mean number of choice situations per person, over all processes."""
    people = marginal.people
    return people.total(people.counts[1]) / len(people)


def typical_situations(people: People) -> float:
    """Harmonic mean of people's numbers of choice situations, robust to a few people with very many."""
    return len(people) / people.total(1.0 / people.counts[1].clamp(min=1.0))


def _reintegrated_difference(density: ReintegratedPosterior, ends: Tensor) -> tuple[float, float]:
    """Difference of the log posterior between two points by a reintegrated density, and its variance."""
    people = density.marginal.people.load
    density.integration = replace(density.integration, draws=REINTEGRATED_POINT.draws(people))
    (low, low_variance), (high, high_variance) = density.evaluate(ends)
    return high - low, low_variance + high_variance
