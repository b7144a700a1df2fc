r"""The marginal likelihood of many populations on draws of whitened tastes that stay where they are.

.. math:: \log \hat p(y \mid \theta) = \log \tfrac1S \sum_s P(y \mid \alpha, g(\zeta + L \xi_s)) \phi(\xi_s) / q(\xi_s)

`mxlogit.kept_draws` keeps tastes, and costs an exponential per draw and population; but where people say little, wider
populations have tastes where no draws are, and its noise is that of `mxlogit.louis`. Whitened tastes hardly move then,
whatever the population, and any map from latents to tastes will do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.panels import PanelDifferences
from mxlogit.parameters import Population
from mxlogit.simulated_block import Block, draw_tastes, evaluate_in_parts, weigh_block

# Numbers that may be kept: 48 MB in single precision, and half a minute for five hundred populations.
_MOST_NUMBERS = 12_000_000
# Rows of data times draws that are evaluated together.
_CELLS = 128_000


@dataclass(frozen=True)
class _Chunk:
    """Draws of some people: halves of whitened tastes (n, k, s / 2), and of their log ratios (n, s / 2)."""

    panel: PanelDifferences
    halves: list[tuple[Tensor, Tensor]]

    def log_sums(self, model: PanelModel, population: Population) -> Tensor:
        """Logarithms (2, n) of the halves' sums of weighted probabilities."""
        return torch.stack(
            [
                (weigh_block(model, draw_tastes(model, population, xi), self.panel) + ratio).logsumexp(-1)
                for xi, ratio in self.halves
            ]
        )

    def evaluate(self, model: PanelModel, population: Population) -> list[Block]:
        """The same, and scores."""
        return [
            evaluate_in_parts(model, population, self.panel, xi, ratio, curvature=False) for xi, ratio in self.halves
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
        How many draws, and from what.
    """

    def __init__(self, model: PanelModel, marginal: MarginalLikelihood, anchor: Population, sweep: Sweep) -> None:
        self.model, self.draws, self._people = model, sweep.draws, marginal.people
        self._chunks = []
        size = max(1, _CELLS // (max(1, marginal.people.panels.n_rows) * sweep.draws))
        for proposal in marginal.propose(anchor, sweep, remember=False, size=size):
            xi, log_ratio = marginal.whitened(proposal)
            halves = list(zip(xi.chunk(2, -1), log_ratio.chunk(2, -1), strict=True))
            self._chunks.append(_Chunk(proposal.panel, [(z.contiguous(), ratio) for z, ratio in halves]))
        local = anchor.to(marginal.people.like)
        self._apart = [chunk.log_sums(model, local).diff(dim=0)[0] for chunk in self._chunks]

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
            logs, weights = chunk.log_sums(self.model, local), chunk.panel.weights.double()
            whole = (2.0 * logs.logsumexp(0) - logs.mean(0)).double() - math.log(2.0 * self.draws)
            total[0] += weights @ whole
            total[1] += weights.square() @ (0.5 * (logs.diff(dim=0)[0] - apart)).double().square()
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
            share = 2.0 * torch.stack([block.log_sum for block in blocks]).softmax(0) - 0.5
            scores = sum(part[:, None] * block.score for part, block in zip(share, blocks, strict=True))
            total += chunk.panel.weights.double() @ scores.double()
        return self._people.team.total(total)[0]


def can_keep_paths(marginal: MarginalLikelihood, draws: int) -> bool:
    """Whether draws of whitened tastes fit in memory, and populations can be met with them in reasonable time."""
    k = marginal.space.n_random
    return k > 0 and marginal.people.load * draws * (k + 1) <= _MOST_NUMBERS
