r"""The marginal likelihood of many populations on draws of whitened tastes that stay where they are.

.. math:: \log \hat p(y \mid \theta) = \log \tfrac1S \sum_s P(y \mid \alpha, g(\zeta + L \xi_s)) \phi(\xi_s) / q(\xi_s)

`mxlogit.kept_draws` keeps tastes, and costs an exponential per draw and population; but where people say little, wider
populations have tastes where no draws are, and its noise is that of `mxlogit.louis`. Whitened tastes hardly move then,
whatever the population, and any map from latents to tastes will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.draws import Jackknife, shifted_net
from mxlogit.guide.laplace import whitened_log_prob
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.panels import PanelDifferences
from mxlogit.parameters import Population
from mxlogit.simulated_block import Block, evaluate_in_parts

# Numbers that may be kept (64 MB in single precision), and rows of data times draws at a population: 30 ms.
_MOST_NUMBERS, _MOST_CELLS = 16_000_000, 8_000_000
# Rows of data times draws that are evaluated together.
_CELLS = 512_000
# Draws that show which kind reaches further.
_TRIED = 64
# How much of the logarithm of the mean of all draws over that of halves takes away the bias that it has, and the
# variance of the former by the squared difference of halves: for random draws, whose variance falls as one over their
# number, and for nets, whose variance falls as its square or faster (Owen 1997, Annals of Statistics 25).
_RANDOM, _NETS = (2.0, 1.0 / 4.0), (4.0 / 3.0, 1.0 / 8.0)


@dataclass(frozen=True)
class _Chunk:
    """Draws of some people: whitened tastes (n, k, s), and their log ratios (n, s) or zero."""

    panel: PanelDifferences
    xi: Tensor
    log_ratio: Tensor

    def weigh(self, model: PanelModel, population: Population) -> Jackknife:
        """Weighted probabilities of the choices."""
        return Jackknife(whitened_log_prob(self.xi, population, self.panel, model.mixing) + self.log_ratio)

    def evaluate(self, model: PanelModel, population: Population) -> list[Block]:
        """Halves' logarithms of sums of weighted probabilities, and their scores."""
        halves = zip(self.xi.chunk(2, -1), self.log_ratio.expand(len(self.xi), -1).chunk(2, -1), strict=True)
        return [
            evaluate_in_parts(model, population, self.panel, xi.contiguous(), ratio, curvature=False)
            for xi, ratio in halves
        ]


class PathDraws:
    """Draws of everybody's whitened tastes around one population.

    Parameters
    ----------
    model : PanelModel
    marginal : MarginalLikelihood
        Of everybody, with modes near those at the anchor; `can_keep_paths` says whether there is room.
    anchor : Population
    sweep : Sweep
        How many draws, and from what, where they are around modes.
    around_modes : bool
        Whether they are, or else quasi-random draws from the population, which is all there is to know of people who
        say little: of one choice, with two tastes, 64 of these have the noise of a thousand random ones around modes.

    Attributes
    ----------
    cells : int
        Rows of data times draws, which the time of a population is proportional to.
    """

    def __init__(
        self, model: PanelModel, marginal: MarginalLikelihood, anchor: Population, sweep: Sweep, *, around_modes: bool
    ) -> None:
        self.model, self._people = model, marginal.people
        source = _around_modes(marginal, anchor, sweep) if around_modes else _from_population(marginal, sweep)
        self._chunks, local = list(source), anchor.to(marginal.people.like)
        self.cells, self._draws = marginal.people.rows * sweep.draws, sweep.draws
        self._part, self._variance = _RANDOM if around_modes else _NETS
        self._apart = [chunk.weigh(model, local).log_sums.double().diff(dim=1)[:, 0] for chunk in self._chunks]

    @torch.no_grad()
    def log_likelihood(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Log likelihoods (b,) at unconstrained vectors (b, D), and variances of their differences to the anchor's.

        Variances are those from the finite number of draws, by how much halves of each person's draws differ.
        """
        total = torch.stack([self._value(vector) for vector in vectors], 1)
        return total[0], total[1]

    def _value(self, vector: Tensor) -> Tensor:
        local = self.model.space.constrain(vector).to(self._people.like)
        total = self._people.like.new_zeros(2, dtype=torch.float64)
        for chunk, apart in zip(self._chunks, self._apart, strict=True):
            halves, weights = chunk.weigh(self.model, local).log_sums.double(), chunk.panel.weights.double()
            mean = halves.mean(1) - math.log(0.5 * self._draws)
            total[0] += weights @ (mean + self._part * (halves.logsumexp(1) - math.log(2.0) - halves.mean(1)))
            total[1] += self._variance * (weights.square() @ (halves.diff(dim=1)[:, 0] - apart).square())
        return self._people.team.total(total)[0]

    def gradients(self, vectors: Tensor) -> Tensor:
        """Gradients (b, D) of the log likelihoods at unconstrained vectors (b, D)."""
        return torch.stack([self._gradient(vector) for vector in vectors])

    def _gradient(self, vector: Tensor) -> Tensor:
        space = self.model.space
        rows, columns = space.triangle
        with torch.enable_grad():
            inputs = vector.detach().requires_grad_()
            population = space.constrain(inputs)
            with torch.no_grad():
                pull = self._pull(population.to(self._people.like))
            moves = torch.cat([population.fixed, population.location, population.scale_tril[rows, columns]])
            (gradient,) = torch.autograd.grad(moves @ pull, inputs)
        return gradient

    def _pull(self, local: Population) -> Tensor:
        """Derivatives (D,) by fixed coefficients, locations and the free cells of L."""
        total = self._people.like.new_zeros(self.model.space.size, dtype=torch.float64)
        for chunk in self._chunks:
            blocks = chunk.evaluate(self.model, local)
            share = torch.stack([block.log_sum for block in blocks]).softmax(0)
            share = self._part * share + 0.5 * (1.0 - self._part)
            scores = sum(part[:, None] * block.score for part, block in zip(share, blocks, strict=True))
            total += chunk.panel.weights.double() @ scores.double()
        return self._people.team.total(total)[0]


def _around_modes(marginal: MarginalLikelihood, anchor: Population, sweep: Sweep) -> Iterator[_Chunk]:
    for proposal in marginal.propose(anchor, sweep, remember=False, size=_people_at_once(marginal, sweep.draws)):
        yield _Chunk(proposal.panel, *marginal.whitened(proposal))


def _from_population(marginal: MarginalLikelihood, sweep: Sweep) -> Iterator[_Chunk]:
    people, like = marginal.people, marginal.people.like
    places = people.first + torch.arange(len(people.panels))
    nothing = like.new_zeros(1, sweep.draws)
    for part, chunk in people.panels.chunks(_people_at_once(marginal, sweep.draws)):
        for group, panel in chunk.pieces(_CELLS // sweep.draws, len(chunk)):
            keys = places[part][group.cpu() if isinstance(group, Tensor) else group]
            uniform = shifted_net((marginal.seed, sweep.key), keys, marginal.space.n_random, sweep.draws)
            yield _Chunk(panel, torch.special.ndtri(uniform).to(like), nothing)


def _people_at_once(marginal: MarginalLikelihood, draws: int) -> int:
    return max(1, _CELLS // (max(1, marginal.people.panels.n_rows) * draws))


def draw_paths(
    model: PanelModel, marginal: MarginalLikelihood, anchor: Population, sweep: Sweep, vectors: Tensor
) -> PathDraws:
    """Draws of the kind that knows differences between the anchor and some vectors (b, D) better; a power of two."""
    sweep = replace(sweep, draws=1 << (sweep.draws - 1).bit_length())
    few = replace(sweep, draws=min(_TRIED, sweep.draws))
    near, wide = (
        PathDraws(model, marginal, anchor, few, around_modes=kind).log_likelihood(vectors)[1].nan_to_num(nan=math.inf)
        for kind in (True, False)
    )
    return PathDraws(model, marginal, anchor, sweep, around_modes=float(near.median()) < float(wide.median()))


def can_keep_paths(marginal: MarginalLikelihood, draws: int) -> bool:
    """Whether draws of whitened tastes fit in memory, and populations can be met with them in reasonable time."""
    k, people = marginal.space.n_random, marginal.people
    return k > 0 and len(people) * draws * (k + 1) <= _MOST_NUMBERS and people.rows * draws <= _MOST_CELLS
