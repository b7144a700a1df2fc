"""Importance proposals that are wide in one direction at a time, to see tails beyond a Gaussian.

Effective draws do not reveal a region without draws. A proposal that is wide in all directions puts nearly all draws
where several parameters are extreme at once; here every draw is stretched along one parameter, the others following as
they do in the Gaussian, so that some lie several standard deviations out however many parameters there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.draws.importance import log_standard_student
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.student import draw_student

# Scale of the t along the stretched direction, in standard deviations of the Gaussian, and its degrees of freedom: four
# draws in ten lie beyond four standard deviations.
_WIDTH, _FREEDOM = 4.0, 3.0
# Square, in those standard deviations, beyond which a bend goes straight on: a parabola fits near the draws.
_FARTHEST = 16.0


@dataclass(frozen=True)
class WideProposal:
    """Equal mixture of densities (one for each parameter), each wider than a Gaussian along that parameter.

    The direction of a parameter is its column of the covariance matrix: the others at their conditional means. These
    may bend, as a parabola: where hardly more than a product of two parameters is known, they are curved.

    Attributes
    ----------
    gaussian : GaussianFactor
        Its whitened coordinates are those of the other attributes.
    directions : Tensor, shape (D, D)
        Unit vectors, one for each parameter.
    bends : Tensor, shape (D, D)
        Coefficients of the square, less one, of the coordinate along each of them, orthogonal to it.
    """

    gaussian: GaussianFactor
    directions: Tensor
    bends: Tensor

    @classmethod
    def around(cls, vectors: Tensor, weights: Tensor, gaussian: GaussianFactor) -> WideProposal:
        """Fit directions and bends to vectors (n, D) with weights (n,) and their Gaussian."""
        tril = gaussian.tril
        directions = tril / tril.norm(dim=1, keepdim=True)
        whitened = gaussian.whitened(vectors)
        squares = _bounded_square(whitened @ directions.T)
        weighted = weights[:, None] * squares
        slopes = (weighted.T @ whitened) / (weighted * squares).sum(0)[:, None]
        bends = slopes - (slopes * directions).sum(1, keepdim=True) * directions
        return cls(gaussian, directions, bends)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n vectors, shape (n, D), from a scrambled Sobol sequence."""
        size = len(self.gaussian.mean)
        # One more quasi-random number chooses the direction: places of the sequence are not independent of its values.
        normal, stretch = draw_student(n, size + 1, _FREEDOM, generator)
        normal, which = normal[:, :size], (torch.special.ndtr(normal[:, size]) * size).long().clamp(max=size - 1)
        direction = self.directions[which]
        before = (normal * direction).sum(1, keepdim=True)
        along = _WIDTH * stretch * before
        bent = _bounded_square(along) * self.bends[which]
        return self.gaussian.at(normal + (along - before) * direction + bent)

    def log_prob(self, vector: Tensor) -> Tensor:
        """Log density (n,) at vectors (n, D)."""
        whitened, size = self.gaussian.whitened(vector), len(self.gaussian.mean)
        along = whitened @ self.directions.T
        # Of what remains beside the bend: the square of its length, without its part along the direction.
        shift = _bounded_square(along)
        beside = whitened.square().sum(1, keepdim=True) - along.square()
        beside = beside - 2.0 * shift * (whitened @ self.bends.T) + shift.square() * self.bends.square().sum(1)
        normal = -0.5 * beside - 0.5 * (size - 1) * math.log(2.0 * math.pi)
        stretched = log_standard_student((along / _WIDTH).square(), 1, _FREEDOM) - math.log(_WIDTH)
        return (normal + stretched).logsumexp(1) - math.log(size) - self.gaussian.tril.diagonal().log().sum()


def _bounded_square(along: Tensor) -> Tensor:
    """Square of a coordinate, less its mean under the Gaussian."""
    return along.square().clamp(max=_FARTHEST) - 1.0
