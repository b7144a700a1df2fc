r"""Taylor expansion of log P(y | alpha, b) in the fixed coefficients alpha, at given tastes b.

The expansion is of second order at every draw of tastes. Its remainder varies little over the draws, so it is computed
exactly at one taste vector per person.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.laplace import drawn_utility
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import compute_odds, situation_means
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters


def index_pairs(size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the lower triangle of a symmetric matrix."""
    rows, columns = torch.tril_indices(size, size)
    return rows, columns


def fixed_units(tastes: Tensor, population: PopulationParameters, mixing: Mixing) -> Tensor:
    """Factor of the fixed coefficients in the utility, (n, 1, s): one, or minus the random scale of a WTP model."""
    if mixing.scale_position is None:
        return torch.ones_like(tastes[:, :1])
    return -tastes[:, mixing.scale_position - len(population.fixed), None]


@dataclass(frozen=True)
class FixedDerivatives:
    """First (n, f, s) and second (n, pairs, s) derivatives of log P(y | alpha, b) with respect to alpha."""

    first: Tensor
    second: Tensor


def fixed_derivatives(
    tastes: Tensor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing
) -> FixedDerivatives:
    """Derivatives of log P with respect to the fixed coefficients, at s taste vectors of each person.

    Parameters
    ----------
    tastes : Tensor, shape (n, k, s)
    population : PopulationParameters
        Population parameters in the dtype of the panel; only the fixed coefficients are used.
    panel : PanelDifferences
    mixing : Mixing
        Mixing distributions; the scale coefficient, if there is one, must be random.
    """
    f = len(population.fixed)
    odds = compute_odds(drawn_utility(tastes, population, panel, mixing), panel)
    probability, values = odds.probabilities(), panel.values[..., :f]
    rows, columns = index_pairs(f)
    mean = situation_means(values, probability, panel)
    second = -torch.bmm((values[..., rows] * values[..., columns]).mT, probability)
    for situation in mean.unbind(1):
        second += situation[:, rows] * situation[:, columns]
    unit = fixed_units(tastes, population, mixing)
    return FixedDerivatives(-mean.sum(1) * unit, second * unit.square())


class Remainder:
    """Remainder of the second-order expansion at one taste vector per person.

    Parameters
    ----------
    tastes : Tensor, shape (n, k)
    population : PopulationParameters
    panel : PanelDifferences
    mixing : Mixing
    """

    def __init__(
        self, tastes: Tensor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing
    ) -> None:
        self._panel = panel
        columns = tastes[..., None]
        self._utility = drawn_utility(columns, population, panel, mixing)
        self._values = panel.values[..., : len(population.fixed)] * fixed_units(columns, population, mixing)
        at = fixed_derivatives(columns, population, panel, mixing)
        self._first, self._second = at.first[..., 0], at.second[..., 0]
        self._log_prob = compute_odds(self._utility.clone(), panel).log_prob

    def at(self, moves: Tensor, pairs: Tensor) -> Tensor:
        """Remainders (n, b) at b values of the fixed coefficients.

        Parameters
        ----------
        moves : Tensor, shape (f, b)
            Changes of the fixed coefficients from the expansion point.
        pairs : Tensor, shape (pairs, b)
            Factors of the second derivatives: products of two changes, halved for squares.
        """
        odds = compute_odds(self._moved(moves), self._panel)
        return odds.log_prob - self._log_prob - self._first @ moves - self._second @ pairs

    def slope(self, moves: Tensor) -> Tensor:
        """Gradients (f, b) of the weighted sum of remainders over people, with respect to the moves."""
        f, weights = self._values.shape[2], self._panel.weights
        probability = compute_odds(self._moved(moves), self._panel).probabilities()
        weighted = (weights[:, None, None] * self._values).reshape(-1, f)
        rows, columns = index_pairs(f)
        hessian = moves.new_zeros(f, f)
        hessian[rows, columns] = hessian[columns, rows] = weights @ self._second
        slope = -weighted.T @ probability.reshape(len(weighted), -1)
        return slope - (weights @ self._first)[:, None] - hessian @ moves

    def _moved(self, moves: Tensor) -> Tensor:
        """Utility differences (n, r, b) at the moved fixed coefficients."""
        n, r, f = self._values.shape
        return self._utility + (self._values.reshape(n * r, f) @ moves).view(n, r, -1)
