r"""The guide's bound as a function of one vector, its draws and people frozen by a key.

.. math:: -\tfrac1M \sum_m \bigl[ \tfrac{N}{B} \sum_{n \in batch} w_n\, b_n(\theta_m)
          + \log p(\theta_m) - \log q(\theta_m) \bigr], \quad \theta_m = \mu + \Lambda \epsilon_m,

with b_n a person's evidence lower bound, its importance-weighted bound from S draws of the local factor, or the log
marginal likelihood that those estimate. Noise comes in antithetic pairs; values are those of pairs, of which the mean
counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mxlogit.draws import BaseDraws, DrawScheme, make_generator
from mxlogit.guide import objectives
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.laplace import LocalFactor
from mxlogit.importance import weigh_draws
from mxlogit.optim.curvature import Smooth
from mxlogit.panels import PanelDifferences
from mxlogit.parameters import Population


@dataclass(frozen=True)
class ObjectiveSettings:
    """How the bound is estimated.

    Attributes
    ----------
    bound : {"marginal", "iwae", "elbo"}
        Of people. "marginal", jackknifed and with a control variate, has the least noise and hardly any bias, but is
        not a bound: for guides with nothing to train beside q(theta).
    draws : int
        Of each person's tastes, a multiple of 4.
    points : int
        Of theta, even: antithetic pairs.
    batch : int
        People at a time; all of them if there are no more.
    orthogonal : bool
        Whether directions of points are orthogonal, at their root-mean-square distance: as many pairs as theta has
        dimensions then give quadratic functions their exact mean, and a full-rank q(theta) cannot escape between them.
        Else they are independent.
    """

    bound: str = "marginal"
    draws: int = 16
    points: int = 8
    batch: int = 2_000
    orthogonal: bool = True


class GuideObjective:
    """Minus the bound of a guide, to be minimised over its weights or those of its population factor.

    Parameters
    ----------
    guide : AmortizedGuide
    panel : PanelDifferences
    settings : ObjectiveSettings
    seed : int
    """

    def __init__(self, guide: AmortizedGuide, panel: PanelDifferences, settings: ObjectiveSettings, seed: int) -> None:
        self.guide, self.panel, self.settings, self.seed = guide, panel, settings, seed
        self.names = [name for name, _ in guide.named_parameters()]

    def of_fewer(self, people: int) -> tuple[GuideObjective, float]:
        """The same with smaller batches, and what share of the work is left."""
        count = min(self.settings.batch, len(self.panel))
        fewer = replace(self.settings, batch=min(people, count))
        return GuideObjective(self.guide, self.panel, fewer, self.seed), fewer.batch / count

    def vector(self) -> Tensor:
        """All weights of the guide as one vector (d,), float64."""
        return torch.cat([p.detach().flatten().double() for p in self.guide.parameters()])

    def load(self, vector: Tensor) -> None:
        """Give the guide the weights of a vector."""
        with torch.no_grad():
            for parameter, value in zip(self.guide.parameters(), self._parts(vector), strict=True):
                parameter.copy_(value)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        parameters = list(self.guide.parameters())
        parts = vector.split([p.numel() for p in parameters])
        return [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]

    def freeze(self, key: int, around: Tensor) -> Smooth:
        """Return minus the bound with the draws and people of a key.

        Without an encoder the factors of people are those polished at the centre of q(theta) at ``around``, where
        their gradients stop; importance weights make up for the difference.
        """
        generator = make_generator(self.seed, 31, key)
        count = min(self.settings.batch, len(self.panel))
        people = torch.randperm(len(self.panel), generator=generator)[:count].sort().values
        half = self._noise(generator)
        scheme = DrawScheme((self.seed, 32, key), self.settings.draws, self.guide.model.space.n_random, None, False)
        part = self.panel.take(people.to(self.panel.values.device)) if count < len(self.panel) else self.panel
        base = scheme.points(0, count, self.panel.values)
        module = _Bound(self.guide, part, base, torch.cat([half, -half]), self.settings.bound, len(self.panel) / count)
        if self.guide.encoder is None:
            module.factor = self._factor_at(around, part)
        names = [f"guide.{name}" for name in self.names]
        return Smooth(lambda vector: functional_call(module, dict(zip(names, self._parts(vector), strict=True)), ()))

    def _noise(self, generator: torch.Generator) -> Tensor:
        """One half of antithetic points (m / 2, D)."""
        count, size = self.settings.points // 2, len(self.guide.base_mean)
        if not self.settings.orthogonal:
            return torch.randn(count, size, generator=generator, dtype=torch.float64)
        blocks = []
        for _ in range(-(-count // size)):
            q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
            blocks.append(size**0.5 * (q * r.diagonal().sign()).T)
        return torch.cat(blocks)[:count]

    @torch.no_grad()
    def _factor_at(self, vector: Tensor, part: PanelDifferences) -> LocalFactor:
        parts = {name.split(".")[-1]: value for name, value in zip(self.names, self._parts(vector), strict=True)}
        mean = self.guide.base_mean + self.guide.base_tril @ parts["shift"]
        return self.guide.polished(self.guide.model.space.constrain(mean).to(part.values), part)


class _Bound(nn.Module):
    """Minus the bound at every pair of points of theta, shape (m / 2,)."""

    factor: LocalFactor | None = None

    def __init__(
        self, guide: AmortizedGuide, part: PanelDifferences, base: BaseDraws, noise: Tensor, bound: str, scale: float
    ) -> None:
        super().__init__()
        self.guide, self.part, self.base, self.noise, self.bound, self.scale = guide, part, base, noise, bound, scale

    def forward(self) -> Tensor:
        """Evaluate."""
        guide, model = self.guide, self.guide.model
        q = guide.population_factor()
        vectors = q.at(self.noise)
        log_q = q.log_prob(vectors)
        values = []
        for vector in vectors:
            people = self._people(model.space.constrain(vector).to(self.part.values))
            values.append(self.scale * people + model.log_prior(vector))
        first, second = (log_q - torch.stack(values)).chunk(2)
        return 0.5 * (first + second)

    def _people(self, population: Population) -> Tensor:
        """Weighted sum of the bounds of the batch, float64."""
        guide, part = self.guide, self.part
        factor = self.factor
        if factor is None:
            factor = guide.local_factor(population, part)
        elif guide.flow is not None:
            factor = guide.flowed(factor, population, part)
        drawn = weigh_draws(factor, self.base, population, part, guide.model.mixing)
        bounds = drawn.log_marginal if self.bound == "marginal" else objectives.value(drawn.log_ratio, self.bound)
        return (bounds.double() * part.weights.double()).sum()
