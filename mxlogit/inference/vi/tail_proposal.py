"""Proposals for where a standard deviation is about zero: there a correlation may be anything.

In cells of the Cholesky factor, which other proposals are Gaussian in, such populations lie on a half circle around the
bulk, of which a draw from the bulk never comes to the other end; and importance weights say nothing of what is never
drawn (150 people, three choices, a correlation of -.76: its standard deviation was a tenth too small, at an effective
sample size of .85). In standard deviations and partial correlations they are next to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.student import StudentFactor
from mxlogit.model.coordinates import CholeskyPoints

# Degrees of freedom, and how many times as wide as the weighted draws.
_FREEDOM, _WIDER = 5.0, 1.5
# Standard deviations of a diagonal cell between its mean and zero, below which zero is near.
_NEAR = 4.0
# Tastes up to which such draws are taken: of five, most are too far out to count.
_MOST_TASTES = 3


@dataclass(frozen=True)
class TailProposal:
    """A multivariate t in fixed coefficients, locations, bent standard deviations and partial correlations.

    Attributes
    ----------
    coordinates : CholeskyPoints
        Coordinates of the points that it is a density of.
    student : StudentFactor
    unit : Tensor, shape (k,)
        Typical standard deviations, in which they are asinh(sd / 2).
    constant : float
        Constant that `CholeskyPoints.log_jacobian` leaves out.
    """

    coordinates: CholeskyPoints
    student: StudentFactor
    unit: Tensor
    constant: float

    @classmethod
    def around(cls, coordinates: CholeskyPoints, points: Tensor, weights: Tensor) -> TailProposal:
        """Fit weighted points (n, D), weights (n,) that sum to one."""
        centre = weights @ points
        jacobian = torch.autograd.functional.jacobian(coordinates.vectors, centre)
        constant = float(torch.linalg.slogdet(jacobian).logabsdet - coordinates.log_jacobian(centre))
        unit = coordinates.population(centre).scale
        draft = cls(
            coordinates, StudentFactor(GaussianFactor(centre, torch.eye(len(centre)).double()), 1.0), unit, constant
        )
        there = draft._chart(coordinates.vectors(points))
        mean = weights @ there
        covariance = (there - mean).T @ (weights[:, None] * (there - mean))
        covariance.diagonal().mul_(1.0 + 1e-9)
        gaussian = GaussianFactor(mean, _WIDER * torch.linalg.cholesky(covariance))
        return cls(coordinates, StudentFactor(gaussian, _FREEDOM), unit, constant)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points (n, D)."""
        drawn = self.student.sample(n, generator)
        _, _, bent, _ = self.coordinates.space.split(drawn)
        # Either sign of a standard deviation is the same population.
        vectors = drawn.clone()
        vectors[:, self._scales] = (2.0 * bent.abs().sinh() * self.unit).log()
        return self.coordinates.points(vectors)

    def log_prob(self, points: Tensor) -> Tensor:
        """Log density (n,) at points (n, D); minus infinity nowhere."""
        log_jacobian = self.coordinates.log_jacobian(points) + self.constant
        somewhere = torch.isfinite(log_jacobian)
        result = log_jacobian.clone()
        here = self._chart(self.coordinates.vectors(points[somewhere]))
        bent, k = here[:, self._scales], len(self.unit)
        # d asinh(exp(log sd) / 2 unit) / d log sd is the hyperbolic tangent; signs fold together.
        value = torch.stack([self.student.log_prob(self._signed(here, signs)) for signs in _all_signs(k)]).logsumexp(0)
        result[somewhere] += value + bent.tanh().log().sum(1)
        return result

    def _chart(self, vectors: Tensor) -> Tensor:
        """Coordinates (n, D) of unconstrained vectors (n, D)."""
        result = vectors.clone()
        result[:, self._scales] = (0.5 * vectors[:, self._scales].exp() / self.unit).asinh()
        return result

    def _signed(self, here: Tensor, signs: Tensor) -> Tensor:
        result = here.clone()
        result[:, self._scales] *= signs
        return result

    @property
    def _scales(self) -> slice:
        space = self.coordinates.space
        first = space.n_fixed + space.n_random
        return slice(first, first + space.n_random)


def _all_signs(k: int) -> Tensor:
    """All signs (2^k, k) of k numbers."""
    return torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * k).view(-1, k)


def is_zero_near(coordinates: CholeskyPoints, points: Tensor, weights: Tensor) -> bool:
    """Whether some standard deviation of a few correlated tastes may be about zero, by weighted points."""
    if not coordinates.space.pairs or coordinates.space.n_random > _MOST_TASTES:
        return False
    cells = coordinates.diagonal(points)
    mean = weights @ cells
    deviation = (weights @ (cells - mean).square()).sqrt()
    return bool((mean < _NEAR * deviation).any())
