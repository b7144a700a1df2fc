r"""Tastes that vary between the choice situations of a person: nodes over which each situation is averaged.

The coefficient of a person is :math:`\beta_n + \omega e_{nt}` in situation t, with independent standard normal e (Hess
and Rose 2009, Transportation Research Part B 43). The probability of a choice given the person's tastes,
:math:`\int P(y_{nt} \mid \beta_n + \omega e) \phi(e) de`, is an average over a few nodes of e: the rows of a situation
come once for each node, with a column of the node times the attribute, whose fixed coefficient is :math:`\omega`. Nodes
are symmetric about zero, and so is the likelihood in :math:`\omega`: its absolute value is the standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Nodes per coefficient and their spacing, in standard deviations, by the number of coefficients that vary. The log of a
# probability of .002 or more errs by at most 2e-4 with deviations of up to three utils and 6e-3 with five (as many
# Gauss-Hermite nodes: 3e-3 and 3e-2); with two coefficients by 2e-2 up to three utils.
GRIDS = {1: (15, 0.6), 2: (7, 0.95)}


@dataclass(frozen=True)
class SituationDeviations:
    """Coefficients that vary between the choice situations of a person.

    Attributes
    ----------
    deviations : tuple of int
        Position of each standard deviation among the fixed coefficients.
    coefficients : tuple of int
        Position, among all f + k coefficients, of the one that varies.
    """

    deviations: tuple[int, ...]
    coefficients: tuple[int, ...]

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Nodes (q, d) of standard normals and their log weights (q,), float64: a trapezoidal rule in each of them.

        Its error for smooth functions falls exponentially (Trefethen and Weideman 2014, SIAM Review 56).
        """
        count, spacing = GRIDS[len(self.deviations)]
        points = spacing * (torch.arange(count, dtype=torch.float64) - 0.5 * (count - 1))
        grid = torch.cartesian_prod(*[points] * len(self.deviations)).view(-1, len(self.deviations))
        return grid, (-0.5 * grid.square().sum(1)).log_softmax(0)

    def spread(self, parameters: Tensor, normals: Tensor) -> Tensor:
        """Parameters (..., f + k) of single situations, of those of people, at standard normals (..., d).

        Standard deviations, which are no coefficients of utility, become zero.
        """
        result = parameters.clone()
        for place, (deviation, coefficient) in enumerate(zip(self.deviations, self.coefficients, strict=True)):
            result[..., coefficient] += parameters[..., deviation] * normals[..., place]
        result[..., list(self.deviations)] = 0.0
        return result

    def spread_over_nodes(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters (..., r q, f + k) of the nodes of situations, of people's (..., r, f + k), and weights (q,)."""
        grid, log_weights = self.nodes()
        many = parameters[..., None, :].expand(*parameters.shape[:-1], len(grid), -1)
        return self.spread(many, grid.to(parameters)).flatten(-3, -2), log_weights.exp().to(parameters)
