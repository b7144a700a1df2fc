"""The marginal likelihood of a panel: one evaluator for every engine, table and diagnostic.

`MarginalLikelihood` sweeps people in chunks: polish each person's tastes from the last known mode, draw,
weigh, accumulate in float64. Its memory is O(chunk x situations x alternatives x draws).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.draws import BaseDraws, DrawScheme
from mxlogit.guide.laplace import LocalFactor, follow, polish
from mxlogit.importance import WeightedDraws, score_people, weigh_draws
from mxlogit.likelihood import PanelDifferences, Scratch
from mxlogit.louis import louis_information
from mxlogit.mixing import Mixing
from mxlogit.parameters import ParameterSpace, Population

# Rows x draws and people of a chunk, by measurement: some sixty small operations a chunk cost more than cache misses
# (20,000 people, 16 draws: 0.21 s at 1,024 people, 0.16 s at 4,096).
_CELLS_PER_CHUNK = 2_000_000
_LARGEST_CHUNK = 4096


@dataclass(frozen=True)
class Sweep:
    """How one pass integrates.

    Attributes
    ----------
    draws : int
        Importance draws per person, a multiple of 4.
    tail : int or None
        Degrees of freedom of the Student-t proposal; None for the normal.
    key : int
        Passes with the same key meet the same base draws.
    polish : int
        Newton steps per person before drawing.
    defensive : bool
        Whether some draws come from the prior, which bounds the weights.
    settled : float
        Newton decrement, in nats, below which a person needs no more polish.
    """

    draws: int = 16
    tail: int | None = None
    key: int = 0
    polish: int = 2
    defensive: bool = True
    settled: float = 1e-4


@dataclass
class LikelihoodSums:
    """Sums over people of one pass without derivatives (float64, weighted by the people's weights).

    Attributes
    ----------
    log_likelihood : float
    variance : float
        Delta-method variance of ``log_likelihood`` from the finite number of draws.
    elbo : float
        Sum of the evidence lower bounds of the local factors.
    ess : float
        Mean over people of the effective sample size fraction.
    """

    log_likelihood: float = 0.0
    variance: float = 0.0
    elbo: float = 0.0
    ess: float = 0.0

    def add_draws(self, drawn: WeightedDraws, weights: Tensor) -> None:
        """Add a chunk of people: their draws and weights (n,)."""
        self.log_likelihood += float(drawn.log_marginal.double() @ weights)
        self.variance += float(drawn.log_variance.double() @ weights.square())
        self.elbo += float(drawn.elbo.double() @ weights)
        self.ess += float(drawn.ess_fraction.double() @ weights)


@dataclass(kw_only=True)
class PassResult(LikelihoodSums):
    """Sums over people of one pass.

    Attributes
    ----------
    score : Tensor, shape (D,)
    outer : Tensor, shape (D, D)
        Centred outer product of the people's scores.
    """

    score: Tensor
    outer: Tensor

    @classmethod
    def zeros(cls, size: int, device: torch.device) -> PassResult:
        """Return an empty sum for D = ``size`` parameters."""
        score = torch.zeros(size, dtype=torch.float64, device=device)
        return cls(score=score, outer=torch.outer(score, score))

    def add(self, drawn: WeightedDraws, scores: Tensor, weights: Tensor) -> None:
        """Add a chunk of people: their draws, scores (n, D) and weights (n,)."""
        self.add_draws(drawn, weights)
        self.score += scores.T @ weights
        self.outer += scores.T @ (weights[:, None] * scores)

    def finish(self, weight: float) -> PassResult:
        """Centre the outer product and average the ESS, given the sum of weights."""
        self.outer -= torch.outer(self.score, self.score) / weight
        self.ess /= weight
        return self


@dataclass(frozen=True)
class Proposal:
    """Where to draw for one chunk of people: their panel, local factors and base draws."""

    part: slice
    panel: PanelDifferences
    factor: LocalFactor
    base: BaseDraws


class MarginalLikelihood:
    """The marginal likelihood of one set of people.

    Parameters
    ----------
    panel : PanelDifferences
        Columns in the order fixed, random.
    space : ParameterSpace
    mixing : Mixing
    seed : int
        Root of all draws.

    Attributes
    ----------
    modes : Tensor, shape (n, k)
        Last whitened mode of each person: the warm start of the next pass.
    """

    def __init__(self, panel: PanelDifferences, space: ParameterSpace, mixing: Mixing, seed: int) -> None:
        self.panel, self.space, self.mixing, self.seed = panel, space, mixing, seed
        self.modes = panel.values.new_zeros(len(panel), space.n_random)
        self._scratch = Scratch()

    def take(self, people: Tensor) -> MarginalLikelihood:
        """Return the marginal likelihood of some people (index tensor), with their modes."""
        part = MarginalLikelihood(self.panel.take(people), self.space, self.mixing, self.seed)
        part.modes = self.modes[people]
        return part

    def chunk_size(self, draws: int) -> int:
        """People per chunk so that intermediates stay in cache."""
        rows = max(1, self.panel.values.shape[1])
        return max(1, min(_LARGEST_CHUNK, _CELLS_PER_CHUNK // (rows * max(draws, rows // 8, 1)) or 1))

    @torch.no_grad()
    def propose(self, population: Population, sweep: Sweep, *, remember: bool = True) -> Iterator[Proposal]:
        """Polish and draw base points, chunk after chunk."""
        local = population.to(self.panel.values)
        scheme = DrawScheme((self.seed, sweep.key), sweep.draws, self.space.n_random, sweep.tail, sweep.defensive)
        for part, panel in self.panel.chunks(self.chunk_size(sweep.draws)):
            factor = polish(self.modes[part], local, panel, self.mixing, sweep.polish, sweep.settled)
            if remember:
                self.modes[part] = factor.mean
            yield Proposal(part, panel, factor, scheme.points(part.start, len(panel), factor.mean))

    @torch.no_grad()
    def follow(self, population: Population, proposals: Iterable[Proposal]) -> Iterator[Proposal]:
        """Move kept proposals to a nearby population: modes by one Newton step, base draws unchanged."""
        local = population.to(self.panel.values)
        for proposal in proposals:
            factor = follow(proposal.factor.mean, local, proposal.panel, self.mixing)
            yield replace(proposal, factor=factor)

    @torch.no_grad()
    def weigh(self, population: Population, proposals: Iterable[Proposal]) -> Iterator[tuple[Proposal, WeightedDraws]]:
        """Weigh the draws of proposals at ``population``."""
        local = population.to(self.panel.values)
        for proposal in proposals:
            yield (
                proposal,
                weigh_draws(proposal.factor, proposal.base, local, proposal.panel, self.mixing, self._scratch),
            )

    def log_prob_people(self, population: Population, proposals: Iterable[Proposal]) -> Tensor:
        """Jackknifed log p(y_n) of every person, shape (n,), float64, not weighted."""
        result = torch.zeros(len(self.panel), dtype=torch.float64, device=self.panel.values.device)
        for proposal, drawn in self.weigh(population, proposals):
            result[proposal.part] = drawn.log_marginal.double()
        return result

    def measure(self, population: Population, sweep: Sweep, *, remember: bool = True) -> LikelihoodSums:
        """Log likelihood without derivatives, in one pass."""
        total = LikelihoodSums()
        for proposal, drawn in self.weigh(population, self.propose(population, sweep, remember=remember)):
            total.add_draws(drawn, proposal.panel.weights.double())
        total.ess /= float(self.panel.weights.double().sum())
        return total

    @torch.no_grad()
    def score(self, population: Population, proposals: Iterable[Proposal]) -> PassResult:
        """Log likelihood, score and centred outer product in relative coordinates."""
        local = population.to(self.panel.values)
        total = PassResult.zeros(self.space.size, self.panel.values.device)
        for proposal in proposals:
            drawn, scores = score_people(
                proposal.factor, proposal.base, local, proposal.panel, self.mixing, self.space, self._scratch
            )
            total.add(drawn, scores.double(), proposal.panel.weights.double())
        return total.finish(float(self.panel.weights.double().sum()))

    @torch.no_grad()
    def information(self, population: Population, proposals: Iterable[Proposal]) -> Tensor | None:
        """Observed information (D, D) in relative coordinates; None where Louis' identity is not offered."""
        if self.mixing.direct:
            return None
        local = population.to(self.panel.values)
        size = self.space.size
        total = torch.zeros(size, size, dtype=torch.float64, device=self.panel.values.device)
        for p in proposals:
            total += louis_information(p.factor, p.base, local, p.panel, self.mixing, self.space, self._scratch)
        return total

    def sweep(self, population: Population, sweep: Sweep, *, remember: bool = True) -> PassResult:
        """One pass: propose and score."""
        return self.score(population, self.propose(population, sweep, remember=remember))
