"""Polynomial response surface of the log likelihood in the population parameters, fitted to weighted draws.

Standard deviations estimated from a few hundred weighted draws have errors of some per cent. The log likelihood at the
same draws is a cubic polynomial up to a tenth of a nat, and a polynomial is quickly evaluated at thousands of new
points (response surfaces, Box and Wilson 1951, Journal of the Royal Statistical Society B 13). It is fitted by least
squares with the weights of the posterior; the residuals are then orthogonal to all quadratic functions, so that means
and variances are correct to first order in the residuals.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.guide.population import GaussianFactor

# Degree of the polynomial.
_DEGREE = 3


def count_terms(size: int) -> int:
    """Number of terms of a cubic polynomial in ``size`` variables."""
    return math.comb(size + _DEGREE, _DEGREE)


@dataclass(frozen=True)
class ResponseSurface:
    """A cubic polynomial in whitened coordinates.

    Attributes
    ----------
    gaussian : GaussianFactor
        Gaussian that defines the coordinates.
    coefficients : Tensor, shape (terms,)
    reach : float
        Largest distance of the fitted points from the mean, in standard deviations.
    error : float
        Weighted root mean square of leave-one-out residuals.
    """

    gaussian: GaussianFactor
    coefficients: Tensor
    reach: float
    error: float

    @classmethod
    def fit(cls, gaussian: GaussianFactor, points: Tensor, values: Tensor, weights: Tensor) -> ResponseSurface:
        """Fit values (n,) at points (n, D) by least squares with weights (n,) that sum to one."""
        whitened = gaussian.whitened(points)
        terms, root = _terms(whitened), weights.sqrt()[:, None]
        basis, triangle = torch.linalg.qr(root * terms)
        coefficients = torch.linalg.solve_triangular(triangle, basis.T @ (root[:, 0] * values)[:, None], upper=True)
        left = root[:, 0] * (values - (terms @ coefficients)[:, 0]) / (1.0 - basis.square().sum(1))
        reach = float(whitened.norm(dim=1).amax())
        return cls(gaussian, coefficients[:, 0], reach, float(left.square().sum().sqrt()))

    def at(self, points: Tensor) -> Tensor:
        """Values (n,) at points (n, D); minus infinity beyond ``reach``."""
        whitened = self.gaussian.whitened(points)
        inside = whitened.norm(dim=1) <= self.reach
        return torch.where(inside, _terms(whitened) @ self.coefficients, -math.inf)


def _terms(x: Tensor) -> Tensor:
    """All products (n, terms) of at most three of the variables (n, D)."""
    columns = [torch.ones_like(x[:, 0])]
    for degree in range(1, _DEGREE + 1):
        for places in itertools.combinations_with_replacement(range(x.shape[1]), degree):
            columns.append(x[:, list(places)].prod(1))
    return torch.stack(columns, 1)
