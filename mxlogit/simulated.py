r"""The simulated likelihood of a panel on fixed draws: value, score and Hessian.

.. math:: SLL(\phi) = \sum_n w_n \log \tfrac1R \sum_r P(y_n | \alpha, g(\zeta + L z_{nr}))

Coordinates :math:`\phi` are the fixed coefficients, the locations and the free entries of L, whose diagonal
may have either sign: with draws that are not symmetric the sign matters (Train 2009, chapter 10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.guide.laplace import fixed_utility
from mxlogit.likelihood import PanelDifferences, panel_probabilities
from mxlogit.mixing import MapValue
from mxlogit.parameters import Population

# Rows x draws of a chunk: intermediates live in cache and memory does not grow with people or draws.
_CELLS_PER_CHUNK = 1_000_000


@dataclass(frozen=True)
class SimulatedScores:
    """Value and scores on fixed draws.

    Attributes
    ----------
    log_prob : Tensor, shape (n,)
        Simulated log probability of each person's choices, not weighted.
    scores : Tensor, shape (n, D)
        Its gradient.
    """

    log_prob: Tensor
    scores: Tensor


class SimulatedLikelihood:
    """Simulated likelihood of one panel.

    Parameters
    ----------
    model : PanelModel
    panel : PanelDifferences
    draws : Tensor, shape (n, r, k)
        Standard normal, in the dtype of the panel.
    """

    def __init__(self, model: PanelModel, panel: PanelDifferences, draws: Tensor) -> None:
        self.model, self.panel, self.draws = model, panel, draws
        self.weights = panel.weights.double().cpu()
        self.evaluations = 0

    @property
    def size(self) -> int:
        """Number D of coordinates."""
        return self.model.space.size

    def population(self, vector: Tensor) -> Population:
        """Population at coordinates (*s, D), with the signs of the diagonal of L as they are."""
        space = self.model.space
        f, k = space.n_fixed, space.n_random
        tril = space.triangle_matrix(vector[..., f + k :])
        return Population(vector[..., :f], vector[..., f : f + k], tril)

    def coordinates(self, population: Population) -> Tensor:
        """Coordinates (D,) of a population."""
        rows, columns = self.model.space.triangle
        return torch.cat([population.fixed, population.location, population.scale_tril[rows, columns]])

    @torch.no_grad()
    def evaluate(self, vector: Tensor) -> SimulatedScores:
        """Value and scores of every person, float64."""
        local = self.population(vector).to(self.panel.values)
        rows = max(1, self.panel.values.shape[1])
        size = max(1, _CELLS_PER_CHUNK // (rows * self.draws.shape[1]))
        parts = [self._evaluate_chunk(local, chunk, self.draws[part]) for part, chunk in self.panel.chunks(size)]
        self.evaluations += 1
        return SimulatedScores(
            torch.cat([p.log_prob for p in parts]).double().cpu(), torch.cat([p.scores for p in parts]).double().cpu()
        )

    def _evaluate_chunk(self, population: Population, panel: PanelDifferences, z: Tensor) -> SimulatedScores:
        n_fixed = population.fixed.shape[0]
        latent = population.location + z @ population.scale_tril.mT
        value = self.model.mixing.evaluate(latent, population.location, population.scale)
        utility = torch.bmm(panel.values[..., n_fixed:], value.taste.mT)
        if n_fixed:
            utility += fixed_utility(population, panel)[..., None]
        log_prob, prob = panel_probabilities(utility, panel)
        weights = log_prob.softmax(-1)
        log_mean = log_prob.logsumexp(-1) - math.log(z.shape[1])
        return SimulatedScores(log_mean, self._scores(population, panel, z, value, prob, weights))

    def _scores(
        self,
        population: Population,
        panel: PanelDifferences,
        z: Tensor,
        value: MapValue,
        prob: Tensor,
        weights: Tensor,
    ) -> Tensor:
        n_fixed = population.fixed.shape[0]
        by_fixed = torch.bmm(panel.values[..., :n_fixed].mT, torch.bmm(prob, weights[..., None]))[..., 0]
        # Weighted gradient with respect to the tastes of every draw, (n, r, k).
        by_taste = -weights[..., None] * torch.bmm(prob.mT, panel.values[..., n_fixed:])
        by_latent = value.slope * by_taste
        by_location = by_latent.sum(1)
        by_tril = torch.bmm(by_latent.mT, z)
        if value.by_location is not None and value.by_scale is not None:
            by_location = by_location + (value.by_location * by_taste).sum(1)
            by_scale = (value.by_scale * by_taste).sum(1)
            by_tril = by_tril + by_scale[..., None] * (population.scale_tril / population.scale[:, None])
        rows, columns = self.model.space.triangle
        return torch.cat([-by_fixed, by_location, by_tril[:, rows, columns]], -1)

    def value_and_gradient(self, vector: Tensor) -> tuple[float, Tensor]:
        """Simulated log likelihood and its gradient (D,)."""
        at = self.evaluate(vector)
        return float(at.log_prob @ self.weights), at.scores.T @ self.weights

    def hessian(self, vector: Tensor, steps: Tensor) -> Tensor:
        """Hessian (D, D) by central differences of the analytic gradient; ``steps`` (D,) are their sizes."""
        columns = []
        for i, step in enumerate(torch.diag(steps)):
            _, up = self.value_and_gradient(vector + step)
            _, down = self.value_and_gradient(vector - step)
            columns.append((up - down) / (2.0 * steps[i]))
        matrix = torch.stack(columns, -1)
        return 0.5 * (matrix + matrix.T)
