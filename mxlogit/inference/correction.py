r"""The population posterior where it is not Gaussian: adaptive importance sampling.

With few people the posterior of standard deviations is skewed towards zero and intervals of a Gaussian of their
logarithms are too short. Draws from multivariate t distributions are weighed by the posterior density; after every
stage the next t takes the weighted mean and covariance of all draws so far, and weights are those of the mixture of
all stages (Cornuet, Marin, Mira and Robert 2012, Scandinavian Journal of Statistics 39), their tail smoothed (Vehtari
et al. 2024, Journal of Machine Learning Research 25).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from scipy import stats
from scipy.stats import qmc
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.draws import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.samples import pareto_smoothed

_STAGE, _MOST_STAGES, _FEWEST_STAGES = 256, 6, 2
_ENOUGH = 400.0
# People times draws times evaluations that a correction may cost: a minute on electricity.
USUAL_WORK, MOST_WORK = 130e6, 650e6
# Variance (nats squared) of the log likelihood from finite draws: at typical points, above which more draws are taken;
# and at one point, above which its value is not known and it counts as impossible.
_TYPICAL_VARIANCE, _LARGEST_VARIANCE = 0.25, 4.0
_TRIED, _FIRST_DRAWS, _MOST_DRAWS = 12, 16, 1_024
_POLISH = 4
_SMALLEST = 2.0**-53
# Degrees of freedom of proposals, and weighted draws per parameter from which the next one is made.
_LEAST_FREEDOM = 5.0
_MOMENT_SAMPLES = 2_000
_DRAWS_PER_PARAMETER = 3.0


@dataclass(frozen=True)
class StudentFactor:
    """Multivariate t whose location and scale are those of a Gaussian factor."""

    gaussian: GaussianFactor
    freedom: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n vectors, shape (n, D): a scrambled Sobol sequence, whose means have less noise than random ones."""
        size = len(self.gaussian.mean)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        uniform = qmc.Sobol(size + 1, rng=seed).random_base2(math.ceil(math.log2(n)))[:n]
        uniform = np.clip(uniform, _SMALLEST, 1.0 - _SMALLEST)
        normal = torch.special.ndtri(torch.from_numpy(uniform[:, :size]))
        stretch = np.sqrt(self.freedom / stats.chi2.ppf(uniform[:, size:], self.freedom))
        return self.gaussian.at(normal * torch.from_numpy(stretch))

    def log_prob(self, vector: Tensor) -> Tensor:
        """Log density (*s,) at vectors (*s, D)."""
        size, freedom = len(self.gaussian.mean), self.freedom
        square = self.gaussian.whitened(vector).square().sum(-1)
        constant = math.lgamma(0.5 * (freedom + size)) - math.lgamma(0.5 * freedom) - 0.5 * size * math.log(freedom)
        constant -= 0.5 * size * math.log(math.pi) + float(self.gaussian.tril.diagonal().log().sum())
        return constant - 0.5 * (freedom + size) * torch.log1p(square / freedom)


@dataclass(frozen=True)
class ScalePoints:
    """Points in which a standard deviation of zero is an edge and not infinitely far, as it is for its logarithm.

    A log standard deviation becomes asinh(sd / unit): linear in small, logarithmic in large ones. Other coordinates
    stay. Points with a negative one of these are nowhere.

    Attributes
    ----------
    first : int
        Place of the first log standard deviation.
    unit : Tensor, shape (k,)
        Typical standard deviations.
    """

    first: int
    unit: Tensor

    @property
    def _places(self) -> slice:
        return slice(self.first, self.first + len(self.unit))

    def points(self, vectors: Tensor) -> Tensor:
        """Points (*s, D) of unconstrained vectors (*s, D)."""
        result = vectors.clone()
        result[..., self._places] = (vectors[..., self._places].exp() / self.unit).asinh()
        return result

    def vectors(self, points: Tensor) -> Tensor:
        """Unconstrained vectors (*s, D) of points (*s, D) that are somewhere."""
        result = points.clone()
        result[..., self._places] = points[..., self._places].sinh().log() + self.unit.log()
        return result

    def log_jacobian(self, points: Tensor) -> Tensor:
        """Log determinant (*s,) of the derivative of `vectors`; minus infinity nowhere."""
        folded = points[..., self._places]
        value = -folded.clamp(min=1e-300).tanh().log().sum(-1)
        return torch.where((folded > 0.0).all(-1), value, -math.inf)

    def gaussian(self, factor: GaussianFactor, generator: torch.Generator) -> GaussianFactor:
        """Gaussian of points like a Gaussian of vectors: its moments, from samples."""
        vectors, _ = factor.sample_and_log_prob(_MOMENT_SAMPLES, generator)
        points = self.points(vectors)
        even = torch.zeros(len(points), dtype=torch.float64)
        return WeightedVectors(points, even.log_softmax(0), 0.0).gaussian(0.0)


class Density(Protocol):
    """A log density up to a constant."""

    def log_prob(self, vector: Tensor) -> float:
        """Value at ``vector`` (D,); minus infinity where impossible or unknown."""
        ...


class PosteriorDensity:
    """Log posterior at points of the population, with the same base draws wherever it is evaluated.

    Parameters
    ----------
    model : PanelModel
    marginal : MarginalLikelihood
        Of everybody, with modes near the posterior's.
    sweep : Sweep
    coordinates : ScalePoints
    """

    def __init__(self, model: PanelModel, marginal: MarginalLikelihood, sweep: Sweep, coordinates: ScalePoints) -> None:
        self.model, self.marginal, self.coordinates = model, marginal, coordinates
        self.sweep = replace(sweep, draws=_FIRST_DRAWS, polish=max(sweep.polish, _POLISH))
        self.evaluations = 0

    def evaluate(self, point: Tensor) -> tuple[float, float]:
        """Value at a point, and the variance of the log likelihood from finite draws."""
        self.evaluations += 1
        space, vector = self.model.space, self.coordinates.vectors(point)
        population = space.constrain(vector)
        proposals = self.marginal.propose(population, self.sweep, remember=False)
        sums = self.marginal.value(population, proposals)
        prior = self.model.prior.log_prob(space, vector) + self.coordinates.log_jacobian(point)
        return sums.log_likelihood + float(prior), sums.variance

    def log_prob(self, point: Tensor) -> float:
        """Value at a point; minus infinity where it is nowhere, and where draws are too few to tell."""
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


@dataclass(frozen=True)
class WeightedVectors:
    """Weighted draws of the population vector.

    Attributes
    ----------
    vectors : Tensor, shape (n, D)
    log_weights : Tensor, shape (n,)
        Smoothed, normalised.
    pareto_k : float
    """

    vectors: Tensor
    log_weights: Tensor
    pareto_k: float

    @property
    def ess(self) -> float:
        """Effective number of draws."""
        return float(1.0 / (2.0 * self.log_weights).exp().sum())

    def gaussian(self, least: float) -> GaussianFactor:
        """Weighted mean and covariance, of tempered weights where fewer than ``least`` draws count."""
        power = 1.0
        weights = self.log_weights.exp()
        while float(1.0 / weights.square().sum()) < least and power > 1e-3:
            power *= 0.7
            weights = (power * self.log_weights).softmax(0)
        mean = weights @ self.vectors
        centred = self.vectors - mean
        covariance = centred.T @ (weights[:, None] * centred)
        covariance.diagonal().mul_(1.0 + 1e-9)
        return GaussianFactor(mean, torch.linalg.cholesky(covariance))

    def resample(self, n: int, generator: torch.Generator) -> Tensor:
        """N vectors that represent the posterior, in random order: systematic resampling, so that some repeat."""
        start = torch.rand((), generator=generator, dtype=torch.float64)
        points = (torch.arange(n, dtype=torch.float64) + start) / n
        cumulative = self.log_weights.exp().cumsum(0)
        places = torch.searchsorted(cumulative / cumulative[-1], points).clamp(max=len(self.vectors) - 1)
        return self.vectors[places[torch.randperm(n, generator=generator)]]


def sample_posterior(
    target: Density, start: GaussianFactor, most: int, generator: torch.Generator, tick: Callable[[], None]
) -> WeightedVectors | None:
    """Draw, weigh and adapt until enough draws count or ``most`` were taken.

    Returns
    -------
    WeightedVectors or None
        None where no draw is possible under the target.
    """
    size = len(start.mean)
    freedom = max(_LEAST_FREEDOM, 0.5 * size)
    proposals: list[StudentFactor] = [StudentFactor(start, freedom)]
    vectors, values = torch.empty(0, size, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    while True:
        drawn = proposals[-1].sample(_STAGE, generator)
        vectors = torch.cat([vectors, drawn])
        values = torch.cat([values, _evaluate(target, drawn, tick)])
        mixture = torch.stack([proposal.log_prob(vectors) for proposal in proposals]).logsumexp(0)
        possible = torch.isfinite(values)
        if not bool(possible.any()):
            return None
        weighted = WeightedVectors(vectors[possible], *_smooth((values - mixture)[possible]))
        stages = len(proposals)
        if len(vectors) + _STAGE > most or (stages >= _FEWEST_STAGES and weighted.ess >= _ENOUGH):
            return weighted
        proposals.append(StudentFactor(weighted.gaussian(_DRAWS_PER_PARAMETER * size), freedom))


def _smooth(log_ratios: Tensor) -> tuple[Tensor, float]:
    log_weights, shape = pareto_smoothed(log_ratios)
    return log_weights, float(shape)


def _evaluate(target: Density, vectors: Tensor, tick: Callable[[], None]) -> Tensor:
    values = []
    for vector in vectors:
        values.append(target.log_prob(vector))
        tick()
    return torch.tensor(values, dtype=torch.float64)


def correct(
    model: PanelModel,
    marginal: MarginalLikelihood,
    start: GaussianFactor,
    sweep: Sweep,
    seed: int,
    tick: Callable[[], None],
    work: float = MOST_WORK,
) -> tuple[WeightedVectors | None, int]:
    """Correct a Gaussian posterior by weighted draws.

    Parameters
    ----------
    model : PanelModel
    marginal : MarginalLikelihood
        Of everybody.
    start : GaussianFactor
        The first proposal.
    sweep : Sweep
        All but the number of draws.
    seed : int
    tick : callable
        Told of every evaluation.
    work : float
        People times draws times evaluations at most.

    Returns
    -------
    tuple of (WeightedVectors or None, int)
        Weighted unconstrained vectors, None where too few count or too much work would be needed, and how many passes
        over the people they took.
    """
    generator = make_generator(seed, 17)
    _, _, log_scale, _ = model.space.split(start.mean)
    coordinates = ScalePoints(model.space.n_fixed + model.space.n_random, log_scale.exp())
    target = PosteriorDensity(model, marginal, sweep, coordinates)
    typical, _ = start.sample_and_log_prob(_TRIED, generator)
    target.sharpen(coordinates.points(typical))
    stages = min(_MOST_STAGES, int(work / (_STAGE * target.sweep.draws * len(marginal.people))))
    if stages < _FEWEST_STAGES:
        return None, target.evaluations
    most = _STAGE * stages
    found = sample_posterior(target, coordinates.gaussian(start, generator), most, generator, tick)
    if found is None or found.ess < _DRAWS_PER_PARAMETER * len(start.mean):
        return None, target.evaluations
    return replace(found, vectors=coordinates.vectors(found.vectors)), target.evaluations
