"""Draws of a chunk of people's tastes that follow the fixed coefficients (see `mxlogit.integration.expansion`)."""

from __future__ import annotations

from torch import Tensor

from mxlogit.integration.expansion import Remainder, fixed_derivatives, index_pairs, slopes_at
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters


class FollowingDraws:
    """Draws that move with the fixed coefficients, and the change that all draws of a person share.

    Parameters
    ----------
    factor : LocalFactor
        Local factors of n people at the population parameters.
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences
    mixing : Mixing

    Attributes
    ----------
    shift : Tensor, shape (n, k, f)
        Moves of the whitened draws per change of a fixed coefficient.
    by_taste : Tensor, shape (n, f, k)
        Derivatives of log P with respect to a fixed coefficient and a whitened taste.
    """

    def __init__(
        self, factor: LocalFactor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing
    ) -> None:
        slopes = slopes_at(factor.mean, population, panel, mixing)
        self.shift, self.by_taste = slopes.shift(factor), slopes.by_taste
        self._mean, self._weights = factor.mean[..., None], panel.weights
        self._model = population, panel, mixing
        self._remainder = Remainder(factor.mean, self.shift, population, panel, mixing)

    def derivatives(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of log P(y | xi) + log p(xi) by the fixed coefficients: first (n, s, f), second (n, s, pairs)."""
        of_choices = fixed_derivatives(xi, self.shift, *self._model)
        rows, columns = index_pairs(self.shift.shape[2])
        squares = (self.shift[..., rows] * self.shift[..., columns]).sum(1)
        return (of_choices.first - self.shift.mT @ xi).mT, of_choices.second.mT - squares[:, None]

    def common(self, fixed: Tensor, pairs: Tensor) -> Tensor:
        """Change (n, b) of a log likelihood by moves (f, b), beside what weights of target and control show.

        It is the remainder of the expansion, less the part of the exponents of the control sums that all draws share:
        moved draws have the density of the Gaussian factor, tilted by the moves, up to this constant.
        """
        level = ((self._mean + 0.5 * (self.shift @ fixed)) * (self.by_taste.mT @ fixed)).sum(1)
        return self._remainder.at(fixed, pairs) - level

    def common_slope(self, fixed: Tensor) -> Tensor:
        """Gradients (f, b) of the weighted sum of `common` over people, with respect to the moves."""
        weighted = self._weights[:, None, None] * self.by_taste
        level = (weighted @ self._mean).sum(0) + (weighted @ self.shift).sum(0) @ fixed
        return self._remainder.slope(fixed) - level
