"""Coordinates of the population in which a posterior is made or corrected: points, and which vectors they are.

Gaussian posteriors are only as good as the coordinates that they are Gaussian in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.model.parameters import ParameterSpace, Population


@dataclass(frozen=True)
class CholeskyPoints:
    """Points whose covariance part is the Cholesky factor relative to a typical one.

    Fixed coefficients and locations stay. In log standard deviations and partial correlations the posterior is skewed
    (study design, 2,000 and 150 people: skewness of marginals .46 and .53, root mean square; here .19 and .13), and a
    standard deviation of zero is infinitely far, where it is an edge. Cells become asinh(cell / 2): linear in small,
    logarithmic in large ones. Points with a negative cell on the diagonal are nowhere.

    Attributes
    ----------
    space : ParameterSpace
    root : Tensor, shape (k, k)
        Typical Cholesky factor.
    """

    space: ParameterSpace
    root: Tensor

    def points(self, vectors: Tensor) -> Tensor:
        """Points (*s, D) of unconstrained vectors (*s, D)."""
        population = self.space.constrain(vectors)
        relative = torch.linalg.solve_triangular(self.root, population.scale_tril, upper=False)
        rows, columns = self.space.triangle
        bent = (0.5 * relative[..., rows, columns]).asinh()
        return torch.cat([population.fixed, population.location, bent], -1)

    def vectors(self, points: Tensor) -> Tensor:
        """Unconstrained vectors (*s, D) of points (*s, D) that are somewhere."""
        return self.space.unconstrain(self.population(points))

    def population(self, points: Tensor) -> Population:
        """Populations at points (*s, D) that are somewhere."""
        space = self.space
        fixed, location, bent = points.split([space.n_fixed, space.n_random, len(space.triangle[0])], -1)
        return Population(fixed, location, self.root @ space.triangle_matrix(2.0 * bent.sinh()))

    def log_jacobian(self, points: Tensor) -> Tensor:
        """Log determinant (*s,) of the derivative of `vectors`, up to a constant; minus infinity nowhere.

        A row of the Cholesky factor is a standard deviation times a row of unit length, of whose cells the last one
        follows from the others.
        """
        diagonal = self.diagonal(points)
        somewhere = (diagonal > 0.0).all(-1)
        population = self.population(torch.where(somewhere[..., None], points, 1.0))
        _, _, log_scale, partial = self.space.split(self.space.unconstrain(population))
        _, log_factors = self.space.correlation_tril(partial)
        cells = torch.bincount(torch.tensor(self.space.triangle[0], dtype=torch.int64), minlength=self.space.n_random)
        log_last = population.scale_tril.diagonal(dim1=-2, dim2=-1).log() - log_scale
        value = (log_last - cells * log_scale).sum(-1)
        value = value + points[..., self.space.n_fixed + self.space.n_random :].cosh().log().sum(-1)
        for part in log_factors:
            value = value - part
        return torch.where(somewhere, value, -math.inf)

    def diagonal(self, points: Tensor) -> Tensor:
        """Diagonal cells (*s, k) of points (*s, D), as they are bent."""
        return points[..., self.space.n_fixed + self.space.n_random :][..., self._is_diagonal]

    def with_diagonal(self, point: Tensor, diagonal: Tensor) -> Tensor:
        """The point (D,) with other diagonal cells (k,), as they are bent."""
        result = point.clone()
        result[self.space.n_fixed + self.space.n_random :][self._is_diagonal] = diagonal
        return result

    @property
    def _is_diagonal(self) -> Tensor:
        rows, columns = self.space.triangle
        return torch.tensor(rows) == torch.tensor(columns)
