"""Importance proposals for standard deviations near zero, where correlations are not identified.

In entries of the Cholesky factor, the coordinates of the Gaussian proposals, such populations lie on a half circle
around the bulk of the posterior, whose far end is never drawn; importance weights cannot reveal a region without draws
(150 people, three choices, a correlation of -.76: its standard deviation was a tenth too small, at an effective sample
size of .85). In standard deviations and partial correlations they are adjacent to the bulk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.student import StudentFactor
from mxlogit.model.coordinates import RelativeCholeskyCoordinates

# Degrees of freedom of the proposal; chosen by hand.
_FREEDOM = 5.0
# Ratio of its scale to the sds of the weighted draws; chosen by hand.
_WIDER = 1.5
# Mean of a diagonal entry, in its posterior sds, below which zero is plausible; chosen by hand.
_NEAR = 4.0
# Largest number of tastes for which the proposal is used: with five, most of its draws have negligible weight.
_MOST_TASTES = 3


@dataclass(frozen=True)
class TailProposal:
    """A multivariate t in fixed coefficients, locations, transformed standard deviations and partial correlations.

    Attributes
    ----------
    coordinates : RelativeCholeskyCoordinates
        Coordinates in which points and their density are given.
    student : StudentFactor
    unit : Tensor, shape (k,)
        Typical standard deviations; the transform of a standard deviation is asinh(sd / (2 unit)).
    constant : float
        Additive constant omitted by `RelativeCholeskyCoordinates.log_jacobian`.
    """

    coordinates: RelativeCholeskyCoordinates
    student: StudentFactor
    unit: Tensor
    constant: float

    @classmethod
    def around(cls, coordinates: RelativeCholeskyCoordinates, points: Tensor, weights: Tensor) -> TailProposal:
        """Fit the proposal to points (n, D) with weights (n,) that sum to one."""
        centre = weights @ points
        jacobian = torch.autograd.functional.jacobian(coordinates.to_unconstrained, centre)
        constant = float(torch.linalg.slogdet(jacobian).logabsdet - coordinates.log_jacobian(centre))
        unit = coordinates.population(centre).scale
        draft = cls(
            coordinates, StudentFactor(GaussianFactor(centre, torch.eye(len(centre)).double()), 1.0), unit, constant
        )
        there = draft._chart(coordinates.to_unconstrained(points))
        mean = weights @ there
        covariance = (there - mean).T @ (weights[:, None] * (there - mean))
        covariance.diagonal().mul_(1.0 + 1e-9)
        gaussian = GaussianFactor(mean, _WIDER * torch.linalg.cholesky(covariance))
        return cls(coordinates, StudentFactor(gaussian, _FREEDOM), unit, constant)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points (n, D)."""
        drawn = self.student.sample(n, generator)
        _, _, bent, _ = self.coordinates.space.split(drawn)
        # A standard deviation and its negative are the same population.
        vectors = drawn.clone()
        vectors[:, self._scales] = (2.0 * bent.abs().sinh() * self.unit).log()
        return self.coordinates.from_unconstrained(vectors)

    def log_prob(self, points: Tensor) -> Tensor:
        """Log density (n,) at points (n, D); minus infinity outside the parameter space."""
        log_jacobian = self.coordinates.log_jacobian(points) + self.constant
        somewhere = torch.isfinite(log_jacobian)
        result = log_jacobian.clone()
        here = self._chart(self.coordinates.to_unconstrained(points[somewhere]))
        bent, k = here[:, self._scales], len(self.unit)
        # d asinh(exp(log sd) / 2 unit) / d log sd is the hyperbolic tangent; densities at both signs add up.
        value = torch.stack([self.student.log_prob(self._signed(here, signs)) for signs in _all_signs(k)]).logsumexp(0)
        result[somewhere] += value + bent.tanh().log().sum(1)
        return result

    def _chart(self, vectors: Tensor) -> Tensor:
        """Coordinates (n, D) of the Student-t at unconstrained vectors (n, D)."""
        result = vectors.clone()
        result[:, self._scales] = (0.5 * vectors[:, self._scales].exp() / self.unit).asinh()
        return result

    def _signed(self, here: Tensor, signs: Tensor) -> Tensor:
        result = here.clone()
        result[:, self._scales] *= signs
        return result

    @property
    def _scales(self) -> slice:
        return self.coordinates.space.scales


def _all_signs(k: int) -> Tensor:
    """All combinations (2^k, k) of k signs."""
    return torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * k).view(-1, k)


def is_zero_near(coordinates: RelativeCholeskyCoordinates, points: Tensor, weights: Tensor) -> bool:
    """Whether zero is plausible for a standard deviation of at most `_MOST_TASTES` correlated tastes."""
    if not coordinates.space.pairs or coordinates.space.n_random > _MOST_TASTES:
        return False
    cells = coordinates.diagonal(points)
    mean = weights @ cells
    deviation = (weights @ (cells - mean).square()).sqrt()
    return bool((mean < _NEAR * deviation).any())
