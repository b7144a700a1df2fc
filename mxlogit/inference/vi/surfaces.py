r"""The log posterior of the population as a surface: its values wherever they are asked for, without new noise.

Base draws are the same at all points, so that differences between points have little noise. `KeptDensity` takes draws
of tastes that stay where they are: hundreds of points a second. `SweptDensity` polishes and draws anew at every point,
where populations reach further than draws that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mxlogit.integration.kept_draws import KeptDraws, can_keep
from mxlogit.integration.marginal import MarginalLikelihood, Sweep
from mxlogit.integration.path_draws import PathDraws, can_keep_paths
from mxlogit.model.coordinates import CholeskyPoints
from mxlogit.model.mixed_logit import PanelModel

# Variance (nats squared) of the log likelihood from finite draws: at typical points, above which more draws are taken;
# and at one point, above which its value is not known and it counts as impossible.
_TYPICAL_VARIANCE, _LARGEST_VARIANCE = 0.25, 4.0
_FIRST_DRAWS, _MOST_DRAWS = 16, 1_024
_POLISH = 4
# Draws that stay: people times draws at first, and draws at least and at most; variance at so many typical points, and
# at one; the quantile of standard deviations at which they are taken (measured, study design, 500 people: errors of .17
# nats, .35 at the mean; few choices: .1 and .6).
_FIRST_WORK, _FEWEST_KEPT, _MOST_KEPT, _TYPICAL = 64_000, 64, 8_192, 12
_KEPT_VARIANCE, _LARGEST_KEPT_VARIANCE, _WIDE = 0.16, 2.0, 0.84
# The same at typical points for draws on paths, which are cheap (2,000 people, one choice, two tastes: with 256 draws
# .002; at .005 standard deviations differ by 3 %), and where twice as many were more rows times draws than that.
_PATH_VARIANCE, _ROUGH_PATH_VARIANCE, _FEW_CELLS = 0.004, 0.04, 1_100_000
# Nats below the highest value at which the densities of points do not matter: all but a thousandth of a normal
# posterior of five parameters is above.
_NEGLIGIBLE = 10.0
# Situations a person, typically, below which draws do not reach populations as wide as the posterior has (150 people,
# one choice each: sds of log standard deviations of .47 where chains have .68).
_FEWEST_SITUATIONS = 3.0
# Quantiles of the narrowest and widest points, people times draws of a sweep there and draws at least, nats by which
# their difference may be wrong beyond two standard errors.
_ENDS, _SWEPT_WORK, _FEWEST_SWEPT, _LARGEST_ERROR = (0.05, 0.95), 128_000, 64, 0.3


class SweptDensity:
    """Log posterior at points of the population, a pass over the people for each.

    Parameters
    ----------
    model : PanelModel
    marginal : MarginalLikelihood
        Of everybody, with modes near the posterior's.
    coordinates : CholeskyPoints
    sweep : Sweep
    tick : callable
        Told how many points were evaluated.
    """

    def __init__(
        self,
        model: PanelModel,
        marginal: MarginalLikelihood,
        coordinates: CholeskyPoints,
        sweep: Sweep,
        tick: Callable[[int], None],
    ) -> None:
        self.model, self.marginal, self.coordinates, self._tick = model, marginal, coordinates, tick
        self.sweep = replace(sweep, draws=_FIRST_DRAWS, polish=max(sweep.polish, _POLISH))
        self.passes = 0.0

    def evaluate(self, point: Tensor) -> tuple[float, float]:
        """Value at a point, and the variance of the log likelihood from finite draws."""
        self.passes += 1.0
        space, vector = self.model.space, self.coordinates.vectors(point)
        population = space.constrain(vector)
        proposals = self.marginal.propose(population, self.sweep, remember=False)
        sums = self.marginal.value(population, proposals)
        prior = self.model.prior.log_prob(space, vector) + self.coordinates.log_jacobian(point)
        return sums.log_likelihood + float(prior), sums.variance

    def log_prob(self, points: Tensor) -> Tensor:
        """Values (n,) at points (n, D); minus infinity where that is nowhere, or draws are too few to tell."""
        return torch.tensor([self._log_prob(point) for point in points], dtype=torch.float64)

    def _log_prob(self, point: Tensor) -> float:
        self._tick(1)
        if not math.isfinite(float(self.coordinates.log_jacobian(point))):
            return -math.inf
        value, variance = self.evaluate(point)
        known = math.isfinite(value) and variance < _LARGEST_VARIANCE
        return value if known else -math.inf

    def sharpen(self, points: Tensor) -> None:
        """Take as many draws as make the value at typical points (n, D) known."""
        while self.sweep.draws < _MOST_DRAWS:
            variance = torch.tensor([self.evaluate(point)[1] for point in points])
            if float(variance.nan_to_num(nan=math.inf).median()) < _TYPICAL_VARIANCE:
                return
            self.sweep = replace(self.sweep, draws=min(_MOST_DRAWS, 4 * self.sweep.draws))


class KeptDensity:
    """Log posterior at points of the population, from draws of tastes that stay where they are.

    Parameters
    ----------
    model : PanelModel
    kept : KeptDraws or PathDraws
    coordinates : CholeskyPoints
    tick : callable
        Told how many points were evaluated.
    """

    passes = 1.0

    def __init__(
        self, model: PanelModel, kept: KeptDraws | PathDraws, coordinates: CholeskyPoints, tick: Callable[[int], None]
    ) -> None:
        self.model, self.kept, self.coordinates, self._tick = model, kept, coordinates, tick
        self._asked, self._highest, self._unknown = 0, -math.inf, torch.zeros(0, dtype=torch.float64)

    @property
    def share_unknown(self) -> float:
        """Share of points asked for whose values draws are too few to tell, but for those that cannot matter."""
        return float((self._unknown > self._highest - _NEGLIGIBLE).sum()) / max(1, self._asked)

    def log_prob(self, points: Tensor) -> Tensor:
        """Values (n,) at points (n, D); minus infinity where that is nowhere, or draws are too few to tell."""
        result = self.known(points)
        somewhere = torch.isfinite(result)
        value, variance = self.kept.log_likelihood(self.coordinates.vectors(points[somewhere]))
        # The likelihood, whose noise is about lognormal, and not its logarithm is to be right on average: points with
        # much noise would get too much weight.
        rest, value = result[somewhere], value - 0.5 * variance
        known = torch.isfinite(value) & (variance < _LARGEST_KEPT_VARIANCE)
        result[somewhere] += torch.where(known, value, -math.inf)
        self._asked += len(value)
        self._highest = max(self._highest, float(result.amax()))
        # As high as noise of two standard errors may make them.
        perhaps = (rest + value + 0.5 * variance + 2.0 * variance.sqrt())[~known].nan_to_num(nan=math.inf)
        self._unknown = torch.cat([self._unknown, perhaps])
        self._tick(len(points))
        return result

    def known(self, points: Tensor) -> Tensor:
        """Log prior density and log derivative of the coordinates, (n,); minus infinity where points are nowhere."""
        result = self.coordinates.log_jacobian(points)
        somewhere = torch.isfinite(result)
        result[somewhere] += self.model.prior.log_prob(self.model.space, self.coordinates.vectors(points[somewhere]))
        return result

    def agrees(self, ends: Tensor, difference: float, variance: float) -> bool:
        """Return whether the difference between two points (2, D) is the one that sweeps found."""
        low, high = self.log_prob(ends).tolist()
        noise = self.kept.log_likelihood(self.coordinates.vectors(ends))[1].sum()
        return abs(high - low - difference) < _LARGEST_ERROR + 2.0 * (variance + float(noise)) ** 0.5


def keep_draws(
    model: PanelModel,
    marginal: MarginalLikelihood,
    coordinates: CholeskyPoints,
    points: Tensor,
    sweep: Sweep,
    tick: Callable[[int], None],
) -> KeptDensity | None:
    """Return the posterior from so many kept draws that its values are known; None where draws do not reach.

    Parameters are those of the densities, and points (n, D) of about the posterior. Draws are taken where standard
    deviations are large: they reach narrower populations, not wider ones. Halves of draws that both do not reach agree
    with each other, so what is found at the widest and at the narrowest points is compared with sweeps.
    """
    paths, room = stay_on_paths(marginal, sweep), room_for_draws(marginal, sweep)
    if not room(1):
        return None
    wide = coordinates.diagonal(points)
    anchor = coordinates.with_diagonal(points.mean(0), wide.quantile(_WIDE, 0))
    population = model.space.constrain(coordinates.vectors(anchor))
    order = wide.log().sum(-1).argsort()
    ends = points[order[[int(share * len(points)) for share in _ENDS]]]
    typical, swept, found = coordinates.vectors(points[:_TYPICAL]), None, None
    draws = _first_kept(len(marginal.people))
    while draws <= _MOST_KEPT and room(draws):
        more = replace(sweep, draws=draws)
        path_draws = PathDraws(model, marginal, population, more, typical) if paths else None
        kept = path_draws or KeptDraws(marginal, population, more)
        variance = kept.log_likelihood(typical)[1].nan_to_num(nan=math.inf)
        typically, worst = float(variance.median()), float(variance.amax())
        if typically < _KEPT_VARIANCE and worst < _LARGEST_KEPT_VARIANCE:
            density = KeptDensity(model, kept, coordinates, tick)
            swept = swept or _sweep_difference(SweptDensity(model, marginal, coordinates, sweep, tick), ends)
            found = density if density.agrees(ends, *swept) else found
        wanted = _path_variance(2 * marginal.people.rows * draws) if paths else _KEPT_VARIANCE
        excess = max(typically / wanted, worst / _LARGEST_KEPT_VARIANCE)
        if (found is not None and excess < 1.0) or excess * draws > _MOST_KEPT:
            break
        draws *= 2
    return found


def _path_variance(cells: int) -> float:
    """Variance at typical points below which no more draws on paths are taken, if they had so many cells."""
    return _PATH_VARIANCE if cells < _FEW_CELLS else _ROUGH_PATH_VARIANCE


def stay_on_paths(marginal: MarginalLikelihood, sweep: Sweep) -> bool:
    """Return whether fixed draws are of whitened tastes: those of tastes do not serve all maps, nor few choices."""
    return sweep.pathwise or not can_keep(marginal, 1) or typical_situations(marginal) < _FEWEST_SITUATIONS


def room_for_draws(marginal: MarginalLikelihood, sweep: Sweep) -> Callable[[int], bool]:
    """Return what tells whether so many draws of a person can stay."""
    return partial(can_keep_paths if stay_on_paths(marginal, sweep) else can_keep, marginal)


def mean_situations(marginal: MarginalLikelihood) -> float:
    """Mean number of choice situations of a person, of all processes."""
    people = marginal.people
    return people.total(people.counts[1]) / len(people)


def typical_situations(marginal: MarginalLikelihood) -> float:
    """Harmonic mean of people's numbers of choice situations: one person with very many says nothing of the others."""
    people = marginal.people
    return len(people) / people.total(1.0 / people.counts[1].clamp(min=1.0))


def _first_kept(people: int) -> int:
    """Draws that stay, to begin with, a power of two: what few people's draws miss matters more, and they cost less."""
    return max(_FEWEST_KEPT, min(_MOST_KEPT // 2, 1 << (_FIRST_WORK // people).bit_length() >> 1))


def _sweep_difference(density: SweptDensity, ends: Tensor) -> tuple[float, float]:
    """Difference between two points by sweeps, and its variance."""
    people = density.marginal.people.load
    draws = max(_FEWEST_SWEPT, min(_MOST_DRAWS, 4 * (_SWEPT_WORK // (4 * people))))
    density.sweep = replace(density.sweep, draws=draws)
    (low, low_variance), (high, high_variance) = (density.evaluate(point) for point in ends)
    return high - low, low_variance + high_variance
