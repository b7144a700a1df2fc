r"""Taylor expansions of log P(y | alpha, b) in the fixed coefficients alpha, at tastes b that may follow them.

A person's tastes and the fixed coefficients explain the same choices: given its tastes, a person says a hundred times
more about a fixed coefficient than alone. Draws that stay where they are give a small difference of large terms, so
they move by the *shift* of the Laplace factor's mode, a linear function of alpha in whitened tastes.

The expansion is of second order at every draw of tastes. Its remainder varies little over the draws, so it is computed
exactly at one taste vector per person.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import compute_odds, panel_derivatives, situation_means, sum_alternatives
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.model.products import multiply
from mxlogit.model.wtp_space import acceleration, coefficient_jacobian, pull_back, velocity


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
class FixedSlopes:
    """Derivatives of log P in the fixed coefficients at one taste vector of each person.

    Attributes
    ----------
    first : Tensor, shape (n, f)
    by_taste : Tensor, shape (n, f, k)
        Their derivatives with respect to whitened tastes.
    """

    first: Tensor
    by_taste: Tensor

    def shift(self, factor: LocalFactor) -> Tensor:
        """Derivatives (n, k, f) of the modes of whitened tastes with respect to the fixed coefficients."""
        return factor.covariance @ self.by_taste.mT


def slopes_at(xi: Tensor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing) -> FixedSlopes:
    """Slopes in the fixed coefficients at one whitened taste vector of each person.

    As a function of the tastes they are nearly linear: a control variate for means over draws, whose expectation under
    a Gaussian is known. Slopes fitted to the same draws would leave a bias of order 1 / s, on Train's data (235 people,
    64 draws) a third of a nat at one posterior sd of the fixed coefficient.

    Parameters
    ----------
    xi : Tensor, shape (n, k)
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences
    mixing : Mixing
    """
    f, position = len(population.fixed), mixing.scale_position
    people = PersonTastes.of(population, mixing, panel)
    value = people.values(xi[..., None])
    parameters = people.parameters(value.taste)
    derivatives = panel_derivatives(people.utility_of(parameters, panel)[..., 0], panel)
    gradient, hessian = derivatives.gradient, -derivatives.information
    if position is not None:
        jacobian = coefficient_jacobian(parameters, position)[..., 0]
        hessian = jacobian.mT @ hessian @ jacobian
        # Coefficients are minus products of two parameters.
        others = gradient.clone()
        others[:, position] = 0.0
        hessian[:, :, position] -= others
        hessian[:, position] -= others
        gradient = pull_back(gradient[..., None], parameters, position)[..., 0]
    by_latent = hessian[:, :f, f:] * value.slope[:, None, :, 0]
    return FixedSlopes(gradient[:, :f], by_latent @ population.scale_tril)


@dataclass(frozen=True)
class FixedDerivatives:
    """First (n, f, s) and second (n, pairs, s) derivatives of log P with respect to the fixed coefficients."""

    first: Tensor
    second: Tensor


def fixed_derivatives(
    xi: Tensor, shift: Tensor | None, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing
) -> FixedDerivatives:
    """Derivatives of log P with respect to the fixed coefficients, at s taste vectors of each person that follow them.

    Parameters
    ----------
    xi : Tensor, shape (n, k, s)
        Whitened tastes at the population's own fixed coefficients.
    shift : Tensor or None, shape (n, k, f)
        Moves of the whitened tastes per change of a fixed coefficient; None if they stay where they are.
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences
    mixing : Mixing
        Mixing distributions; their maps must not depend on location or scale.
    """
    f, people = len(population.fixed), PersonTastes.of(population, mixing, panel)
    if mixing.scale_position is None and (mixing.is_identity or shift is None):
        values = panel.values[..., :f]
        if shift is not None:
            values = values + panel.values[..., f:] @ (population.scale_tril @ shift)
        return _along_lines(people.utility(people.tastes(xi), panel), values, panel)
    shift = xi.new_zeros(*xi.shape[:2], f) if shift is None else shift
    return _along_curves(xi, population.scale_tril @ shift, people, panel)


def _along_lines(utility: Tensor, values: Tensor, panel: PanelDifferences) -> FixedDerivatives:
    """Derivatives where utilities (n, r, s) are linear in the fixed coefficients, with attributes (n, r, f)."""
    probability = compute_odds(utility, panel).probabilities()
    rows, columns = index_pairs(values.shape[2])
    mean = situation_means(values, probability, panel)
    second = -torch.bmm((values[..., rows] * values[..., columns]).mT, probability)
    for situation in mean.unbind(1):
        second += situation[:, rows] * situation[:, columns]
    return FixedDerivatives(-mean.sum(1), second)


def _along_curves(xi: Tensor, moves: Tensor, people: PersonTastes, panel: PanelDifferences) -> FixedDerivatives:
    """Derivatives where the coefficients of every draw have velocities and accelerations of their own."""
    f, position = people.n_fixed, people.mixing.scale_position
    value, bend = people.values(xi), people.curvature(xi)
    parameters = people.parameters(value.taste)
    probability = compute_odds(people.utility_of(parameters, panel), panel).probabilities()
    gradient = -torch.bmm(panel.values.mT, probability)
    unit = torch.eye(f).to(xi)
    by_fixed = [people.parameters(value.slope * moves[..., a, None], unit[a, :, None]) for a in range(f)]
    utilities = [multiply(panel.values, velocity(parameters, by, position)) for by in by_fixed]
    weighted = [probability * change for change in utilities]
    means = [torch.cat([sum_alternatives(part) for part in panel.by_section(each)], 1) for each in weighted]
    second = []
    for a, b in zip(*(index.tolist() for index in index_pairs(f)), strict=True):
        curve = people.parameters(bend * (moves[..., a] * moves[..., b])[..., None], torch.zeros_like(unit[:, :1]))
        turn = acceleration(parameters, by_fixed[a], by_fixed[b], curve, position)
        spread = (means[a] * means[b]).sum(1) - (weighted[a] * utilities[b]).sum(1)
        second.append(spread + (gradient * turn).sum(1))
    return FixedDerivatives(-torch.stack([mean.sum(1) for mean in means], 1), torch.stack(second, 1))


class Remainder:
    """Remainder of the second-order expansion at one taste vector per person that follows the fixed coefficients.

    Parameters
    ----------
    xi : Tensor, shape (n, k)
        Whitened tastes at the expansion point.
    shift : Tensor, shape (n, k, f)
    population : PopulationParameters
    panel : PanelDifferences
    mixing : Mixing
    """

    def __init__(
        self,
        xi: Tensor,
        shift: Tensor,
        population: PopulationParameters,
        panel: PanelDifferences,
        mixing: Mixing,
    ) -> None:
        self._xi, self._shift, self._panel = xi, shift, panel
        self._people = PersonTastes.of(population, mixing, panel)
        at = fixed_derivatives(xi[..., None], shift, population, panel, mixing)
        self._first, self._second = at.first[..., 0], at.second[..., 0]
        parameters, _ = self._moved(torch.zeros_like(population.fixed)[:, None])
        self._log_prob = compute_odds(self._people.utility_of(parameters, panel), panel).log_prob

    def at(self, moves: Tensor, pairs: Tensor) -> Tensor:
        """Remainders (n, b) at b values of the fixed coefficients.

        Parameters
        ----------
        moves : Tensor, shape (f, b)
            Changes of the fixed coefficients from the expansion point.
        pairs : Tensor, shape (pairs, b)
            Factors of the second derivatives: products of two changes, halved for squares.
        """
        odds = compute_odds(self._people.utility_of(self._moved(moves)[0], self._panel), self._panel)
        return odds.log_prob - self._log_prob - self._first @ moves - self._second @ pairs

    def slope(self, moves: Tensor) -> Tensor:
        """Gradients (f, b) of the weighted sum of remainders over people, with respect to the moves."""
        panel, people, weights = self._panel, self._people, self._panel.weights
        f, (parameters, slope) = people.n_fixed, self._moved(moves)
        probability = compute_odds(people.utility_of(parameters, panel), panel).probabilities()
        gradient = pull_back(-torch.bmm(panel.values.mT, probability), parameters, people.mixing.scale_position)
        gradient = gradient * weights[:, None, None]
        pulled = people.population.scale_tril.mT @ (gradient[:, f:] * slope)
        rows, columns = index_pairs(f)
        hessian = moves.new_zeros(f, f)
        hessian[rows, columns] = hessian[columns, rows] = weights @ self._second
        total = gradient[:, :f].sum(0) + (self._shift.mT @ pulled).sum(0)
        return total - (weights @ self._first)[:, None] - hessian @ moves

    def _moved(self, moves: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters (n, f + k, b) at moved fixed coefficients, and slopes (n, k, b) of the tastes among them."""
        value = self._people.values(self._xi[..., None] + self._shift @ moves)
        return self._people.parameters(value.taste, self._people.population.fixed[:, None] + moves), value.slope
