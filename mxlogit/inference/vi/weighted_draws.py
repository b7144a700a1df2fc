r"""Weighted draws of a density: adaptive importance sampling, and what a response surface adds to it.

Draws from multivariate t distributions are weighed by the density; after every stage the next t takes the weighted mean
and covariance of all draws so far, and weights are those of the mixture of all stages (Cornuet, Marin, Mira and Robert
2012, Scandinavian Journal of Statistics 39), their tail smoothed (Vehtari et al. 2024, Journal of Machine Learning
Research 25).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.diagnostics.psis import pareto_smoothed
from mxlogit.diagnostics.thresholds import largest_pareto_k
from mxlogit.draws.curve import order_along_curve
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.response_surface import ResponseSurface
from mxlogit.inference.vi.student import StudentFactor
from mxlogit.inference.vi.tail_proposal import TailProposal, is_zero_near
from mxlogit.inference.vi.wide_proposal import WideProposal
from mxlogit.model.coordinates import RelativeCholeskyCoordinates

# Draws of a stage.
STAGE = 256
# Fewest stages before enough effective draws may end the sampling.
FEWEST_STAGES = 2
# Effective draws that suffice by default.
TARGET_ESS = 250.0
# Fewest effective draws per coefficient of a response surface.
PER_TERM = 3.0
# Number of draws weighed on a response surface.
_SURFACE_DRAWS = 8_192
# Smallest ratio of the effective draws after tail stages to those before at which the stages are kept.
_LEFT = 0.3
# Degrees of freedom of proposals: least, and per parameter; with few of them and many parameters most draws are too far
# out.
_LEAST_FREEDOM = 5.0
_FREEDOM_PER_PARAMETER = 2.0
# Excess width of proposals over the posterior, in standard deviations, times the number of parameters: the noise of
# moments comes from the tails (501 people, one choice, one taste: root mean square .7 instead of .8 %).
_WIDER = 0.5
# Prior weight of the first Gaussian in the next proposal, in effective draws per parameter: of its covariance, and of
# its mean.
DRAWS_PER_PARAMETER = 3.0
_DRAWS_OF_MEAN = 0.25


# Change of a mean, in standard deviations, or of the logarithm of one, that noise of draws explains; chosen by hand.
_STAYED = 0.1
# Looks in a row after which moments that stay are believed.
_LOOKS = 2


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
    values : Tensor or None, shape (n,)
        Log density by which they were weighed, up to a constant.
    log_evidence : float
        Logarithm of its integral, if it is known exactly; NaN for draws weighed by a surface.
    """

    vectors: Tensor
    log_weights: Tensor
    pareto_k: float
    values: Tensor | None = None
    log_evidence: float = math.nan

    @property
    def ess(self) -> float:
        """Effective number of draws."""
        return float(1.0 / (2.0 * self.log_weights).exp().sum())

    @property
    def noise(self) -> float:
        """Largest error of a coordinate's mean, in standard deviations, or of its standard deviation, as a share."""
        weights, found = self.log_weights.exp(), self.gaussian(0.0)
        away = ((self.vectors - found.mean) / found.tril.norm(dim=1)).square()
        shares = weights.square()
        return float(torch.maximum(shares @ away, 0.25 * (shares @ (away - 1.0).square())).amax().sqrt())

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
        return self.vectors[self.pick(n, generator)]

    def pick(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the places of ``n`` vectors of the posterior, as `resample` does."""
        start = torch.rand((), generator=generator, dtype=torch.float64)
        points = (torch.arange(n, dtype=torch.float64) + start) / n
        order = order_along_curve(self.vectors)
        cumulative = self.log_weights[order].exp().cumsum(0)
        places = torch.searchsorted(cumulative / cumulative[-1], points).clamp(max=len(self.vectors) - 1)
        return order[places[torch.randperm(n, generator=generator)]]


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
        self._proposals: list[ProposalDensity] = []
        self._counts: list[int] = []
        self._vectors = torch.empty(0, len(start.mean), dtype=torch.float64)
        self._values = torch.empty(0, dtype=torch.float64)

    def run(self, most: int, enough: float = TARGET_ESS, fewest: int = FEWEST_STAGES) -> WeightedVectors | None:
        """Draw, weigh and adapt until the effective draws suffice after the fewest stages, or ``most`` were taken.

        Returns
        -------
        WeightedVectors or None
            None where none is possible.
        """
        weighted = self._weighted() if self._proposals else None
        while not self._proposals or weighted is not None:
            if len(self._vectors) + STAGE > most:
                return weighted
            if len(self._proposals) >= fewest and weighted is not None and weighted.ess >= enough:
                return weighted
            gaussian = self._start if weighted is None else _next_gaussian(weighted, self._start)
            size = STAGE if len(self._proposals) < fewest else self._block(weighted, enough, most)
            self._take_stage(_heavy_tailed(gaussian), size)
            weighted = self._weighted()
        return None

    def cover(
        self, weighted: WeightedVectors, coordinates: RelativeCholeskyCoordinates, stages: int
    ) -> WeightedVectors:
        """Add stages from the region where a standard deviation is close to zero, if the posterior reaches it.

        They are dropped again if the effective number of draws falls much: values far from the bulk may be unknown.
        """
        found = weighted
        for _ in range(stages):
            weights = found.log_weights.exp()
            if not is_zero_near(coordinates, found.vectors, weights):
                break
            self._take_stage(TailProposal.around(coordinates, found.vectors, weights))
            found = self._weighted() or found
        return found if found.ess > _LEFT * weighted.ess else weighted

    def widen(self, weighted: WeightedVectors, most: int, enough: float) -> WeightedVectors:
        """Look several standard deviations beyond the draws, and adapt to what is there, until moments stay.

        Parameters
        ----------
        weighted : WeightedVectors
            What `run` returned.
        most : int
            Draws in all.
        enough : float
            Number of effective draws whose noise means and standard deviations may have.
        """
        stayed = 0
        while len(self._vectors) + STAGE <= most and (stayed < _LOOKS or weighted.noise > enough**-0.5):
            before = weighted.gaussian(0.0)
            self._take_stage(WideProposal.around(weighted.vectors, weighted.log_weights.exp(), before))
            weighted = self._weighted() or weighted
            stayed = stayed + 1 if _distance(before, weighted.gaussian(0.0)) < _STAYED else 0
            if stayed == _LOOKS:
                # Nothing is there: draws closer to the posterior count more.
                weighted = self.run(most, enough) or weighted
        return weighted

    def _block(self, weighted: WeightedVectors | None, enough: float, most: int) -> int:
        """Size of the next stage: about the number of draws that is lacking, as one quasi-random net.

        Its error is smaller than that of several nets: .4 % of a standard deviation, instead of 1 % with stages of 256
        (501 people, one choice, one taste). As long as fewer draws count than a proposal has moments, it still learns.
        """
        size = self._vectors.shape[1]
        lacking = STAGE if weighted is None else (enough / weighted.ess - 1.0) * len(self._vectors)
        if weighted is not None and weighted.ess < size * (size + 3) / 2:
            return STAGE if lacking > STAGE // 2 else STAGE // 2
        power = min(round(math.log2(max(lacking / STAGE, 1.0))), int(math.log2((most - len(self._vectors)) / STAGE)))
        return STAGE << power

    def _take_stage(self, proposal: ProposalDensity, size: int = STAGE) -> None:
        self._proposals.append(proposal)
        self._counts.append(size)
        drawn = proposal.sample(size, self._generator)
        self._vectors = torch.cat([self._vectors, drawn])
        self._values = torch.cat([self._values, self._target.log_prob(drawn)])

    def _weighted(self) -> WeightedVectors | None:
        """All draws so far, by the weights of the mixture of all stages."""
        possible = torch.isfinite(self._values)
        if not bool(possible.any()):
            return None
        stages = zip(self._counts, self._proposals, strict=True)
        mixture = torch.stack([math.log(n) + proposal.log_prob(self._vectors) for n, proposal in stages]).logsumexp(0)
        values = self._values[possible]
        ratios = values - mixture[possible]
        evidence = float(ratios.logsumexp(0))
        return WeightedVectors(self._vectors[possible], *_smooth(ratios), values, evidence)

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
            Largest error of the surface that is allowed.
        """
        gaussian, possible = weighted.gaussian(0.0), torch.isfinite(self._values)
        values = self._values[possible] - known(weighted.vectors)
        surface = ResponseSurface.fit(gaussian, weighted.vectors, values, weighted.log_weights.exp())
        if not surface.error < error:
            return None
        return weigh_by_surface(surface, self._generator, known)


def _heavy_tailed(gaussian: GaussianFactor) -> StudentFactor:
    """Multivariate t with the location and scale of a Gaussian."""
    return StudentFactor(gaussian, max(_LEAST_FREEDOM, _FREEDOM_PER_PARAMETER * len(gaussian.mean)))


def weigh_by_surface(
    surface: ResponseSurface, generator: torch.Generator, known: Callable[[Tensor], Tensor] | None = None
) -> WeightedVectors | None:
    """Many draws, weighed by a surface of the log density, or of the part that is not ``known``; None if unevenly."""
    proposal = _heavy_tailed(surface.gaussian)
    drawn = proposal.sample(_SURFACE_DRAWS, generator)
    smooth = surface.at(drawn)
    if known is not None:
        smooth = smooth + known(drawn)
    log_ratio = smooth - proposal.log_prob(drawn)
    inside = torch.isfinite(log_ratio)
    found = WeightedVectors(drawn[inside], *_smooth(log_ratio[inside]), smooth[inside])
    return found if found.pareto_k < largest_pareto_k(len(drawn)) else None


def sample_posterior(
    target: Density, start: GaussianFactor, most: int, generator: torch.Generator, enough: float = TARGET_ESS
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
        return weighted.gaussian(DRAWS_PER_PARAMETER * size)
    found, count = weighted.gaussian(0.0), weighted.ess
    seen = count / (count + DRAWS_PER_PARAMETER * size)
    moved = count / (count + _DRAWS_OF_MEAN * size)
    covariance = seen * found.tril @ found.tril.T + (1.0 - seen) * start.tril @ start.tril.T
    wider = 1.0 + _WIDER / size
    return GaussianFactor(start.mean + moved * (found.mean - start.mean), wider * torch.linalg.cholesky(covariance))


def _distance(one: GaussianFactor, other: GaussianFactor) -> float:
    """Largest difference of means, in the other's standard deviations, and of logarithms of standard deviations."""
    here, there = one.tril.norm(dim=1), other.tril.norm(dim=1)
    return float(torch.maximum(((one.mean - other.mean) / there).abs(), (here / there).log().abs()).amax())


def _smooth(log_ratios: Tensor) -> tuple[Tensor, float]:
    log_weights, shape = pareto_smoothed(log_ratios)
    return log_weights, float(shape)
