r"""The population posterior where it is not Gaussian: adaptive importance sampling.

With few people the posterior of standard deviations is skewed towards zero and intervals of a Gaussian of their
logarithms are too short. Draws from multivariate t distributions are weighed by the posterior density; after every
stage the next t takes the weighted mean and covariance of all draws so far, and weights are those of the mixture of
all stages (Cornuet, Marin, Mira and Robert 2012, Scandinavian Journal of Statistics 39), their tail smoothed (Vehtari
et al. 2024, Journal of Machine Learning Research 25).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.diagnostics.psis import pareto_smoothed
from mxlogit.draws.curve import order_along_curve
from mxlogit.draws.generators import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.task import Task
from mxlogit.inference.vi.response_surface import ResponseSurface, count_terms
from mxlogit.inference.vi.student import StudentFactor
from mxlogit.inference.vi.surfaces import KeptDensity, SweptDensity, keep_draws
from mxlogit.inference.vi.tail_proposal import TailProposal, is_zero_near
from mxlogit.integration.marginal import MarginalLikelihood, Sweep
from mxlogit.integration.path_draws import PathDraws
from mxlogit.model.coordinates import CholeskyPoints
from mxlogit.model.parameters import ParameterSpace

_STAGE, _MOST_STAGES, _FEWEST_STAGES = 256, 6, 2
# Effective draws that are enough, and stages at most, where draws of tastes are kept: usually, and when asked for.
_ENOUGH, _MANY, _MANY_STAGES = 250.0, 1_000.0, 16
# Effective points for a term of a surface, errors (nats, root mean square) below which it is taken after so many
# stages, Pareto k above which it is not, and draws on it: with errors of .17 after two stages and of .03 after one,
# standard deviations (one choice, two tastes, 2,000 and 5,000 people) differ by 1 % between seeds.
_PER_TERM, _SURFACE_ERRORS, _WORST_SURFACE_K, _SURFACE_DRAWS = 3.0, ((1, 0.06), (2, 0.2)), 0.7, 8_192
# Effective share of draws below which tails matter that no cubic has (100 people, one choice: a standard deviation 10 %
# too large on a surface where it is .78).
_EVEN_ENOUGH = 0.84
# Rows times draws times effective points, and points at all, on paths: each six nanoseconds.
_PATH_WORK, _MOST_PATH_WORK = 0.8e9, 2.4e9
# People times draws times evaluations that a correction may cost: a minute on electricity.
USUAL_WORK, MOST_WORK = 130e6, 650e6
# Stages from where a standard deviation is about zero.
_TAIL_STAGES = 3
# Share of the effective draws before that must be left after them.
_LEFT = 0.3
_TRIED, _MOMENT_SAMPLES = 12, 2_000
# Share of points out of reach of draws that stay, above which they leave out what is not negligible.
_MOST_UNKNOWN = 0.02
# Degrees of freedom of proposals: with many parameters and few of them most draws are too far out.
_LEAST_FREEDOM, _FREEDOM_PER_PARAMETER = 5.0, 2.0
# Weighted draws per parameter that the start counts for, its covariance and its mean, when the next proposal is made.
_DRAWS_PER_PARAMETER, _DRAWS_OF_MEAN = 3.0, 0.25


class Density(Protocol):
    """A log density up to a constant."""

    def log_prob(self, points: Tensor) -> Tensor:
        """Values (n,) at ``points`` (n, D); minus infinity where impossible or unknown."""
        ...


class ProposalDensity(Protocol):
    """A normalised density that can be drawn from."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points (n, D)."""
        ...

    def log_prob(self, points: Tensor) -> Tensor:
        """Log density (n,) at points (n, D)."""
        ...


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
        """Draw ``n`` vectors of the posterior, in random order: systematic resampling, so that some repeat."""
        start = torch.rand((), generator=generator, dtype=torch.float64)
        points = (torch.arange(n, dtype=torch.float64) + start) / n
        order = order_along_curve(self.vectors)
        cumulative = self.log_weights[order].exp().cumsum(0)
        places = torch.searchsorted(cumulative / cumulative[-1], points).clamp(max=len(self.vectors) - 1)
        return self.vectors[order[places[torch.randperm(n, generator=generator)]]]


class PosteriorSampler:
    """Adaptive importance sampling of a density, to be continued.

    Parameters
    ----------
    target : Density
    start : GaussianFactor
        Where the first proposal is.
    generator : torch.Generator
    """

    def __init__(self, target: Density, start: GaussianFactor, generator: torch.Generator) -> None:
        self._target, self._start, self._generator = target, start, generator
        self._freedom = max(_LEAST_FREEDOM, _FREEDOM_PER_PARAMETER * len(start.mean))
        self._proposals: list[ProposalDensity] = []
        self._vectors = torch.empty(0, len(start.mean), dtype=torch.float64)
        self._values = torch.empty(0, dtype=torch.float64)

    def run(self, most: int, enough: float = _ENOUGH, fewest: int = _FEWEST_STAGES) -> WeightedVectors | None:
        """Draw, weigh and adapt until enough draws count, of so many stages, or ``most`` were taken.

        Returns
        -------
        WeightedVectors or None
            None where none is possible.
        """
        weighted = self._weighted() if self._proposals else None
        while not self._proposals or weighted is not None:
            if len(self._vectors) + _STAGE > most:
                return weighted
            if len(self._proposals) >= fewest and weighted is not None and weighted.ess >= enough:
                return weighted
            gaussian = self._start if weighted is None else _next_gaussian(weighted, self._start)
            self._take_stage(StudentFactor(gaussian, self._freedom))
            weighted = self._weighted()
        return None

    def cover(self, weighted: WeightedVectors, coordinates: CholeskyPoints, stages: int) -> WeightedVectors:
        """Take further stages from where a standard deviation is about zero, if it may be.

        They are left out again if few draws of all then count: values so far from the bulk may be unknown.
        """
        found = weighted
        for _ in range(stages):
            weights = found.log_weights.exp()
            if not is_zero_near(coordinates, found.vectors, weights):
                break
            self._take_stage(TailProposal.around(coordinates, found.vectors, weights))
            found = self._weighted() or found
        return found if found.ess > _LEFT * weighted.ess else weighted

    def _take_stage(self, proposal: ProposalDensity) -> None:
        self._proposals.append(proposal)
        drawn = proposal.sample(_STAGE, self._generator)
        self._vectors = torch.cat([self._vectors, drawn])
        self._values = torch.cat([self._values, self._target.log_prob(drawn)])

    def _weighted(self) -> WeightedVectors | None:
        """All draws so far, by the weights of the mixture of all stages."""
        possible = torch.isfinite(self._values)
        if not bool(possible.any()):
            return None
        mixture = torch.stack([proposal.log_prob(self._vectors) for proposal in self._proposals]).logsumexp(0)
        return WeightedVectors(self._vectors[possible], *_smooth((self._values - mixture)[possible]))

    def smoothed(
        self, weighted: WeightedVectors, known: Callable[[Tensor], Tensor], error: float
    ) -> WeightedVectors | None:
        """Many draws, weighed by a surface through the values at those that were taken; None where it does not fit.

        Parameters
        ----------
        weighted : WeightedVectors
            What `run` returned.
        known : callable
            The part of the log density (n,) that needs no surface at vectors (n, D).
        error : float
            Of the surface, that is allowed.
        """
        gaussian, possible = weighted.gaussian(0.0), torch.isfinite(self._values)
        values = self._values[possible] - known(weighted.vectors)
        surface = ResponseSurface.fit(gaussian, weighted.vectors, values, weighted.log_weights.exp())
        if not surface.error < error:
            return None
        proposal = StudentFactor(gaussian, self._freedom)
        drawn = proposal.sample(_SURFACE_DRAWS, self._generator)
        log_ratio = surface.at(drawn) + known(drawn) - proposal.log_prob(drawn)
        inside = torch.isfinite(log_ratio)
        found = WeightedVectors(drawn[inside], *_smooth(log_ratio[inside]))
        return found if found.pareto_k < _WORST_SURFACE_K else None


def sample_posterior(
    target: Density, start: GaussianFactor, most: int, generator: torch.Generator, enough: float = _ENOUGH
) -> WeightedVectors | None:
    """Draw, weigh and adapt until enough draws count or ``most`` were taken.

    Returns
    -------
    WeightedVectors or None
        None where no draw is possible under the target.
    """
    return PosteriorSampler(target, start, generator).run(most, enough)


def _next_gaussian(weighted: WeightedVectors, start: GaussianFactor) -> GaussianFactor:
    """Gaussian of the next proposal: moments so far, with those of the start as if some draws had been seen before.

    Few draws that count say little about a covariance matrix. Where they are fewer than parameters the start is wrong,
    and tempered weights alone decide.
    """
    size = len(start.mean)
    if weighted.ess < size:
        return weighted.gaussian(_DRAWS_PER_PARAMETER * size)
    found, count = weighted.gaussian(0.0), weighted.ess
    seen = count / (count + _DRAWS_PER_PARAMETER * size)
    moved = count / (count + _DRAWS_OF_MEAN * size)
    covariance = seen * found.tril @ found.tril.T + (1.0 - seen) * start.tril @ start.tril.T
    return GaussianFactor(start.mean + moved * (found.mean - start.mean), torch.linalg.cholesky(covariance))


def _smooth(log_ratios: Tensor) -> tuple[Tensor, float]:
    log_weights, shape = pareto_smoothed(log_ratios)
    return log_weights, float(shape)


def correct(
    task: Task, marginal: MarginalLikelihood, start: GaussianFactor, sweep: Sweep, work: float = MOST_WORK
) -> tuple[WeightedVectors | None, float]:
    """Correct a Gaussian posterior by weighted draws.

    Parameters
    ----------
    task : Task
    marginal : MarginalLikelihood
        Of everybody.
    start : GaussianFactor
        The first proposal.
    sweep : Sweep
        All but the number of draws.
    work : float
        People times draws times evaluations at most, where every evaluation is a pass.

    Returns
    -------
    tuple of (WeightedVectors or None, float)
        Weighted unconstrained vectors, None where too few count or too much work would be needed, and how many passes
        over the people they took.
    """
    model, generator, tick = task.model, make_generator(task.seed, 17), task.clock.counter()
    coordinates = CholeskyPoints(
        model.space, model.space.constrain(_one_deviation_wider(model.space, start)).scale_tril
    )
    vectors, _ = start.sample_and_log_prob(_MOMENT_SAMPLES, generator)
    points = coordinates.points(vectors)
    first, passes = gaussian_of(points), 0.0
    kept = keep_draws(model, marginal, coordinates, points, sweep, tick)
    if kept is not None:
        found, passes = _sample_kept(kept, first, generator, asked=work >= MOST_WORK), kept.passes
        if kept.share_unknown < _MOST_UNKNOWN and _is_enough(found, start):
            return _as_vectors(found, coordinates), passes
    if work == 0.0:
        return None, passes
    swept = SweptDensity(model, marginal, coordinates, sweep, tick)
    swept.sharpen(points[:_TRIED])
    stages = min(_MOST_STAGES, int(work / (_STAGE * swept.sweep.draws * marginal.people.load)))
    if stages < _FEWEST_STAGES:
        return None, passes + swept.passes
    found = sample_posterior(swept, first, _STAGE * stages, generator)
    return _as_vectors(found, coordinates) if _is_enough(found, start) else None, passes + swept.passes


def _sample_kept(
    density: KeptDensity, first: GaussianFactor, generator: torch.Generator, *, asked: bool
) -> WeightedVectors | None:
    """Weighted draws on draws of tastes that stay: many on a surface through few, or as many as time allows."""
    sampler, needed = PosteriorSampler(density, first, generator), _PER_TERM * count_terms(len(first.mean))
    most, enough = _STAGE * _MOST_STAGES, _ENOUGH
    if asked:
        most, enough = _STAGE * _MANY_STAGES, _MANY
    elif isinstance(density.kept, PathDraws):
        most, enough = _on_paths(density.kept.cells)
    for stages, error in _SURFACE_ERRORS if needed <= enough else ():
        found = sampler.run(most, needed, stages)
        if found is None or found.ess < max(needed, _EVEN_ENOUGH * len(found.vectors)):
            continue
        if is_zero_near(density.coordinates, found.vectors, found.log_weights.exp()):
            break
        smoothed = sampler.smoothed(found, density.known, error)
        if smoothed is not None:
            return smoothed
    found = sampler.run(most, enough)
    return None if found is None else sampler.cover(found, density.coordinates, _TAIL_STAGES)


def _on_paths(cells: int) -> tuple[int, float]:
    """Most points, and enough effective ones, for a number of rows times draws at each.

    Standard deviations from a thousand effective points err by two per cent, from 250 by four.
    """
    stages = max(_MOST_STAGES, min(_MANY_STAGES, int(_MOST_PATH_WORK / (_STAGE * cells))))
    return _STAGE * stages, max(_ENOUGH, min(_MANY, _PATH_WORK / cells))


def _is_enough(found: WeightedVectors | None, start: GaussianFactor) -> bool:
    """Whether enough draws count."""
    return found is not None and found.ess >= _DRAWS_PER_PARAMETER * len(start.mean)


def _as_vectors(found: WeightedVectors | None, coordinates: CholeskyPoints) -> WeightedVectors:
    """The unconstrained vectors that weighted points are."""
    assert found is not None
    return replace(found, vectors=coordinates.vectors(found.vectors))


def gaussian_of(points: Tensor) -> GaussianFactor:
    """Gaussian with the moments of points (n, D)."""
    covariance = torch.cov(points.T).reshape(points.shape[1], -1)
    return GaussianFactor(points.mean(0), torch.linalg.cholesky(covariance))


def _one_deviation_wider(space: ParameterSpace, start: GaussianFactor) -> Tensor:
    """The start's mean with standard deviations one posterior deviation larger: where they end rather than begin."""
    wider = start.mean.clone()
    scales = slice(space.n_fixed + space.n_random, space.n_fixed + 2 * space.n_random)
    wider[scales] += start.tril[scales].norm(dim=1)
    return wider
