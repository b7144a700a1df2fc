r"""The guide's bound as a function of one vector, with draws and people fixed by a key.

.. math:: -\tfrac1M \sum_m \bigl[ \tfrac{N}{B} \sum_{n \in batch} w_n\, b_n(\theta_m)
          + \log p(\theta_m) - \log q(\theta_m) \bigr], \quad \theta_m = \mu + \Lambda \epsilon_m,

with b_n a person's evidence lower bound, its importance-weighted bound from S draws of the local factor, or an estimate
of its log marginal likelihood from them. The noise epsilon comes in antithetic pairs; there is one value per pair, and
the objective is their mean. With enough people each pair has its own batch, at the same cost as one batch for all
points; the sum over people, which determines the mean of q(theta), then covers all batches.

The gradients "stl" and "dreg" (`mxlogit.guide.objectives`) omit the derivative of log q with respect to its own
parameters, whose expectation is zero or, for "dreg", equals that of other terms. They are not derivatives of the value,
so they apply to first-order engines only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mxlogit.draws.generators import make_generator
from mxlogit.draws.importance import BaseDraws, DrawScheme
from mxlogit.draws.simulation import PersonDraws
from mxlogit.guide import objectives
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.draw_subsets import choose_draws, sbp_logmeanexp
from mxlogit.guide.population import GaussianFactor
from mxlogit.integration.importance import WeightedDraws, log_density, log_joint, weigh_draws
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.optim.curvature import Smooth


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of the estimate of the bound.

    Attributes
    ----------
    bound : {"marginal", "iwae", "elbo"}
        Bound on each person's log likelihood. "marginal", with jackknife and control variate, has the least noise and
        almost no bias, but is not a bound: for guides in which only q(theta) is trained.
    draws : int
        Number of draws of each person's tastes, a multiple of 4.
    points : int
        Number of points of theta, in antithetic pairs.
    batch : int
        Number of people at each point of theta, at most all of them. Up to N / batch pairs of points have disjoint
        batches of the N people.
    orthogonal : bool
        Whether directions of points are orthogonal, at their root-mean-square distance, or independent. With as many
        orthogonal pairs as dimensions of theta, means of quadratic functions are exact, and a full-rank q(theta) cannot
        become degenerate in a direction without points.
    gradient : {"standard", "stl", "dreg"}
    noise : {"antithetic", "sobol", "independent"}
        Kind of draws of tastes: pseudo-random or scrambled Sobol, both in antithetic pairs, or independent. "dreg"
        needs independent draws: conditional on one draw of a pair the other is not random.
    masked : bool
        Whether gradients pass only through the situations that the guide's `SBP` keeps, the same under one key. Second
        derivatives need all situations, because masked gradients are not derivatives of a function.
    share_of_draws : float or None
        Share of draws to backpropagate through, for "iwae"; 1: all, recomputed; None: all, stored.
    """

    bound: str = "marginal"
    draws: int = 16
    points: int = 8
    batch: int = 2_000
    orthogonal: bool = True
    gradient: str = "standard"
    noise: str = "antithetic"
    masked: bool = True
    share_of_draws: float | None = None


class GuideObjective:
    """Minus the bound of a guide, to be minimised over all its weights, or over q(theta) without networks.

    Parameters
    ----------
    guide : AmortizedGuide
    panel : PanelDifferences or RaggedPanels
    settings : ObjectiveSettings
    seed : int
    """

    def __init__(self, guide: AmortizedGuide, panel: Panels, settings: ObjectiveSettings, seed: int) -> None:
        self.guide, self.panel, self.settings, self.seed = guide, panel, settings, seed
        self.names = [name for name, _ in guide.named_parameters()]

    def of_batches(self, people: int, *, masked: bool = True) -> tuple[GuideObjective, float]:
        """Return the objective on batches of ``people``, and its cost relative to this one."""
        count = min(self.settings.batch, len(self.panel))
        other = replace(self.settings, batch=min(people, len(self.panel)), masked=masked)
        return GuideObjective(self.guide, self.panel, other, self.seed), other.batch / count

    def batches(self) -> int:
        """Number of disjoint batches for the pairs of points."""
        return max(min(len(self.panel) // min(self.settings.batch, len(self.panel)), self.settings.points // 2), 1)

    def vector(self) -> Tensor:
        """All weights of the guide as one vector (d,), float64."""
        return torch.cat([p.detach().flatten().double() for p in self.guide.parameters()])

    def of_networks(self) -> Tensor:
        """Mask (d,) of the weights that belong to networks."""
        parts = [torch.full((p.numel(),), "." in name) for name, p in self.guide.named_parameters()]
        return torch.cat(parts)

    def load(self, vector: Tensor) -> None:
        """Set the guide's weights from a vector."""
        with torch.no_grad():
            for parameter, value in zip(self.guide.parameters(), self._parts(vector), strict=True):
                parameter.copy_(value)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        parameters = list(self.guide.parameters())
        parts = vector.split([p.numel() for p in parameters])
        return [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]

    def freeze(self, key: int, around: Tensor) -> Smooth:
        """Return minus the bound on the draws and people of a key.

        Without an encoder, people's factors are Laplace factors at the mean of q(theta) at ``around``, with no
        gradients through them; importance weights correct for the difference.
        """
        generator = make_generator(self.seed, 31, key)
        dealt = self._deal(generator)
        half = self._noise(generator)
        base = self._base(key, sum(map(len, dealt)))
        batches, used = [], 0
        for people in dealt:
            part = self.panel.take(people) if len(people) < len(self.panel) else self.panel
            factor = self._factor_at(around, part) if self.guide.encoder is None else None
            points = replace(base, points=base.points[used : used + len(people)])
            batches.append(_Batch(people, part, points, factor, len(self.panel) / len(people)))
            used += len(people)
        module = _Bound(self.guide, batches, torch.cat([half, -half]), self.settings, (self.seed, key))
        names = [f"guide.{name}" for name in self.names]
        return Smooth(lambda vector: functional_call(module, dict(zip(names, self._parts(vector), strict=True)), ()))

    def _deal(self, generator: torch.Generator) -> list[Tensor]:
        """Local indices of the people of each batch, in proportion to its number of pairs of points."""
        pairs, whole = self.settings.points // 2, len(self.panel)
        size = min(self.settings.batch, whole)
        count = self.batches()
        shuffled = torch.randperm(whole, generator=generator)[: count * size]
        ends = [-(-number * pairs // count) * count * size // pairs for number in range(count + 1)]
        device = self.panel.values.device
        return [shuffled[a:b].sort().values.to(device) for a, b in pairwise(ends)]

    def _base(self, key: int, count: int) -> BaseDraws:
        """Standard normal base points of ``count`` people."""
        draws, k, like = self.settings.draws, self.guide.model.space.n_random, self.panel.values
        seed = (self.seed, 32, key)
        if self.settings.noise == "antithetic":
            return DrawScheme(seed, draws, k, None, False).points(0, count, like)
        generator = make_generator(*seed)
        if self.settings.noise == "independent":
            return BaseDraws(torch.randn(count, k, draws, generator=generator).to(like), 0, None)
        word = int(torch.randint(2**31, (1,), generator=generator))
        half = PersonDraws("sobol", draws // 2, k, word).normals(0, count).to(like).unflatten(-1, (2, -1))
        return BaseDraws(torch.stack([half, -half], 3).flatten(2), 0, None)

    def _noise(self, generator: torch.Generator) -> Tensor:
        """First points (m / 2, D) of the antithetic pairs."""
        count, size = self.settings.points // 2, len(self.guide.base_mean)
        if not self.settings.orthogonal:
            return torch.randn(count, size, generator=generator, dtype=torch.float64)
        blocks = []
        for _ in range(-(-count // size)):
            q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
            blocks.append(size**0.5 * (q * r.diagonal().sign()).T)
        return torch.cat(blocks)[:count]

    @torch.no_grad()
    def _factor_at(self, vector: Tensor, part: Panels) -> LocalFactor:
        parts = {name.split(".")[-1]: value for name, value in zip(self.names, self._parts(vector), strict=True)}
        mean = self.guide.base_mean + self.guide.base_tril @ parts["shift"]
        return self.guide.polished(self.guide.model.space.constrain(mean).to(part.values), part)


@dataclass(frozen=True)
class _Batch:
    """Indices, panel, draws and fixed factors of a batch of people, and the factor ``scale`` to all people."""

    places: Tensor
    part: Panels
    base: BaseDraws
    factor: LocalFactor | None
    scale: float


class _Bound(nn.Module):
    """Minus the bound at every pair of points of theta, (m / 2,); its mean, (1,), if pairs have different people."""

    def __init__(
        self,
        guide: AmortizedGuide,
        batches: list[_Batch],
        noise: Tensor,
        settings: ObjectiveSettings,
        key: tuple[int, int],
    ) -> None:
        super().__init__()
        self.guide, self.batches, self.noise, self.key = guide, batches, noise, key if settings.masked else (0, 0)
        self.masked = settings.masked
        self.bound, self.gradient, self.share_of_draws = settings.bound, settings.gradient, settings.share_of_draws

    def forward(self) -> Tensor:
        """Evaluate minus the bound."""
        guide, model = self.guide, self.guide.model
        q = guide.population_factor()
        vectors = q.at(self.noise)
        if self.gradient != "standard":
            q = GaussianFactor(q.mean.detach(), q.tril.detach())
        log_q = q.log_prob(vectors)
        values, pairs = [], len(vectors) // 2
        for number, vector in enumerate(vectors):
            guide.mask_key = (*self.key, 3, number)
            batch = self.batches[number % pairs * len(self.batches) // pairs]
            population = model.space.constrain(vector).to(batch.part.values)
            people = (self._people(population, batch).double() * batch.part.weights.double()).sum()
            values.append(batch.scale * people + model.log_prior(vector))
        first, second = (log_q - torch.stack(values)).chunk(2)
        each = 0.5 * (first + second)
        return each if len(self.batches) == 1 else each.mean(0, keepdim=True)

    def _people(self, population: PopulationParameters, batch: _Batch) -> Tensor:
        """Bounds (n,) on the log likelihoods of the people of a batch."""
        guide, part, factor = self.guide, batch.part, batch.factor
        if factor is None:
            factor = guide.local_factor(population, part, batch.places if self.masked else None)
        elif guide.flow is not None:
            factor = guide.flowed(factor, population, part)
        if self.share_of_draws is not None:
            return self._through_some(factor, population, batch)
        drawn = weigh_draws(factor, batch.base, population, part, guide.model.mixing)
        if self.gradient != "standard":
            return self._through_draws(factor, drawn, population, batch)
        return drawn.log_marginal if self.bound == "marginal" else objectives.value(drawn.log_ratio, self.bound)

    def _through_some(self, factor: LocalFactor, population: PopulationParameters, batch: _Batch) -> Tensor:
        """Importance-weighted bounds (n,) with autograd on a share of the draws, or on one chunk at a time."""
        kept, points = None, batch.base.points
        assert self.share_of_draws is not None
        if self.share_of_draws < 1.0:
            generator = make_generator(*self.guide.mask_key)
            kept = choose_draws(len(points), points.shape[-1], self.share_of_draws, generator).to(points.device)

        def log_ratio(points: Tensor) -> Tensor:
            base = replace(batch.base, points=points)
            return weigh_draws(factor, base, population, batch.part, self.guide.model.mixing).log_ratio

        return sbp_logmeanexp(log_ratio, points, kept)

    def _through_draws(
        self, factor: LocalFactor, drawn: WeightedDraws, population: PopulationParameters, batch: _Batch
    ) -> Tensor:
        """Bounds (n,) whose gradients with respect to the factors pass through the draws only."""
        part, mixing, dreg = batch.part, self.guide.model.mixing, self.gradient == "dreg"
        where = population.frozen() if dreg else population
        log_weights = log_joint(drawn.xi, where, part, mixing) - log_density(factor.frozen(), drawn.xi, batch.base)
        result = objectives.surrogate(log_weights, self.bound, self.gradient)
        if dreg:
            # Weights of the gradient with respect to theta are not squared: theta is not a parameter of the factors.
            shares = drawn.log_ratio.detach().softmax(-1)
            result = result + (shares * log_joint(drawn.xi.detach(), population, part, mixing)).sum(-1)
        value = objectives.value(drawn.log_ratio.detach(), self.bound)
        return value + result - result.detach()
