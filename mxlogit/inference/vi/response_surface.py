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
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.guide.population import GaussianFactor

# Degree of the polynomial.
_DEGREE = 3
# Coordinates of gradients per term, and fewest points, of a surface through gradients; chosen by hand.
_NUMBERS_PER_TERM = 2.0
_FEWEST_POINTS = 16
# Reach of a surface through gradients, in standard deviations: few points do not lie where all but a hundredth of the
# second moments are.
_REACH = 5.0


def count_terms(size: int) -> int:
    """Number of terms of a cubic polynomial in ``size`` variables."""
    return math.comb(size + _DEGREE, _DEGREE)


def points_of_surface(size: int) -> int:
    """Number of points, in pairs, whose gradients say enough of a surface in ``size`` variables."""
    return max(_FEWEST_POINTS, 2 * math.ceil(_NUMBERS_PER_TERM * count_terms(size) / (2 * size)))


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
    def fit_gradients(cls, gaussian: GaussianFactor, points: Tensor, gradients: Tensor) -> ResponseSurface:
        """Fit gradients (n, D) at points (n, D) by least squares, up to a constant.

        Every point says D numbers instead of one; `points_of_surface` are enough. The error is that of the value at a
        point left out, if the error of the gradient grows in proportion to the distance from the mean.
        """
        whitened, slopes = gaussian.whitened(points), gradients @ gaussian.tril
        design = _slopes(whitened)
        n, size, _ = design.shape
        basis, triangle = torch.linalg.qr(design.flatten(0, 1))
        coefficients = torch.linalg.solve_triangular(triangle, basis.T @ slopes.reshape(-1, 1), upper=True)
        rest = slopes - (design @ coefficients)[..., 0]
        # Without a point, its residuals are these by the inverse of the identity less its block of the projection.
        block = basis.unflatten(0, (n, size))
        left = torch.linalg.solve(torch.eye(size).to(block) - block @ block.mT, rest)
        error = float((0.5 * (left * whitened).sum(1)).square().mean().sqrt())
        full = torch.cat([coefficients.new_zeros(1), coefficients[:, 0]])
        return cls(gaussian, full, max(_REACH, float(whitened.norm(dim=1).amax())), error)

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


def _factors(size: int) -> Iterator[list[int]]:
    """The variables of each term but the constant."""
    for degree in range(1, _DEGREE + 1):
        yield from map(list, itertools.combinations_with_replacement(range(size), degree))


def _terms(x: Tensor) -> Tensor:
    """All products (n, terms) of at most three of the variables (n, D)."""
    return torch.stack([torch.ones_like(x[:, 0]), *(x[:, places].prod(1) for places in _factors(x.shape[1]))], 1)


def _slopes(x: Tensor) -> Tensor:
    """Derivatives (n, D, terms - 1) of all terms but the constant with respect to the variables (n, D)."""
    terms = list(_factors(x.shape[1]))
    result = x.new_zeros(*x.shape, len(terms))
    for column, places in enumerate(terms):
        for position, variable in enumerate(places):
            others = places[:position] + places[position + 1 :]
            result[:, variable, column] += x[:, others].prod(1)
    return result
