"""Coordinates of the population parameters in which the posterior is closer to a Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.model.parameters import ParameterSpace, PopulationParameters


@dataclass(frozen=True)
class RelativeCholeskyCoordinates:
    """Coordinates whose covariance part is the Cholesky factor relative to a reference factor.

    Fixed coefficients and locations are unchanged; entries of the relative factor become asinh(entry / 2), linear for
    small and logarithmic for large entries. Unlike in the unconstrained vector (log standard deviations, partial
    correlations), a standard deviation of zero is at a finite distance, on the boundary, and the posterior is less
    skewed: root mean square skewness of the marginals .19 and .13, instead of .46 and .53 (study design, 2,000 and 150
    people). A point with a non-positive diagonal entry lies outside the parameter space; its log-Jacobian is -inf.

    Attributes
    ----------
    space : ParameterSpace
        Layout of the parameters.
    root : Tensor, shape (k, k)
        Reference Cholesky factor.
    """

    space: ParameterSpace
    root: Tensor

    def from_unconstrained(self, vectors: Tensor) -> Tensor:
        """Convert unconstrained vectors (*s, D) to points (*s, D)."""
        population = self.space.constrain(vectors)
        relative = torch.linalg.solve_triangular(self.root, population.scale_tril, upper=False)
        rows, columns = self.space.triangle
        bent = (0.5 * relative[..., rows, columns]).asinh()
        return self.space.drop_held(torch.cat([population.fixed, population.location, bent], -1))

    def to_unconstrained(self, points: Tensor) -> Tensor:
        """Convert points (*s, D) to unconstrained vectors (*s, D); points must lie inside the parameter space."""
        return self.space.unconstrain(self.population(points))

    def population(self, points: Tensor) -> PopulationParameters:
        """Population parameters at points (*s, D), which must lie inside the parameter space."""
        space = self.space
        means, bent = points.split([space.n_means, len(space.triangle[0])], -1)
        tril = self.root @ space.triangle_matrix(2.0 * bent.sinh())
        return PopulationParameters(*space.insert_held(means), tril)

    def log_jacobian(self, points: Tensor) -> Tensor:
        """Log Jacobian determinant (*s,) of `to_unconstrained`, up to a constant; -inf outside the parameter space.

        A row of the Cholesky factor is a standard deviation times a row of unit length, whose last entry is a function
        of the others.
        """
        diagonal = self.diagonal(points)
        somewhere = (diagonal > 0.0).all(-1)
        population = self.population(torch.where(somewhere[..., None], points, 1.0))
        _, _, log_scale, partial = self.space.split(self.space.unconstrain(population))
        _, log_factors = self.space.correlation_tril(partial)
        cells = torch.bincount(torch.tensor(self.space.triangle[0], dtype=torch.int64), minlength=self.space.n_random)
        log_last = population.scale_tril.diagonal(dim1=-2, dim2=-1).log() - log_scale
        value = (log_last - cells * log_scale).sum(-1)
        value = value + points[..., self.space.n_means :].cosh().log().sum(-1)
        for part in log_factors:
            value = value - part
        return torch.where(somewhere, value, -math.inf)

    def diagonal(self, points: Tensor) -> Tensor:
        """Diagonal entries (*s, k) of points (*s, D), on the asinh scale."""
        return points[..., self.space.n_means :][..., self._is_diagonal]

    def with_diagonal(self, point: Tensor, diagonal: Tensor) -> Tensor:
        """Return a copy of the point (D,) with the given diagonal entries (k,), on the asinh scale."""
        result = point.clone()
        result[self.space.n_means :][self._is_diagonal] = diagonal
        return result

    @property
    def _is_diagonal(self) -> Tensor:
        rows, columns = self.space.triangle
        return torch.tensor(rows) == torch.tensor(columns)
