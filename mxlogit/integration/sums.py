"""Sums over everybody of one pass of the marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.importance import WeightedDraws


@dataclass(frozen=True)
class LikelihoodSums:
    """Sums over everybody of one pass without derivatives (weighted by the people's weights).

    Attributes
    ----------
    log_likelihood : float
    variance : float
        Delta-method variance of ``log_likelihood`` from the finite number of draws.
    elbo : float
        Sum of the evidence lower bounds of the normal local factors.
    ess : float
        Mean over people of the effective sample size fraction.
    """

    log_likelihood: float
    variance: float
    elbo: float
    ess: float

    @staticmethod
    def of_chunk(drawn: WeightedDraws, weights: Tensor) -> Tensor:
        """Sums over a chunk of people with weights (n,), shape (4,), float64."""
        values = torch.stack([drawn.log_marginal, drawn.log_variance * weights, drawn.elbo, drawn.ess_fraction])
        return values.double() @ weights.double()

    @classmethod
    def finish(cls, weight: float, sums: Tensor) -> LikelihoodSums:
        """Name the sums over everybody, given the sum of weights."""
        log_likelihood, variance, elbo, ess = sums.tolist()
        return cls(log_likelihood, variance, elbo, ess / weight)


@dataclass(frozen=True)
class PassResult:
    """Sums over everybody of one pass (float64, on the CPU).

    Attributes
    ----------
    value : LikelihoodSums
    score : Tensor, shape (D,)
    outer : Tensor, shape (D, D)
        Centred outer product of the people's scores.
    """

    value: LikelihoodSums
    score: Tensor
    outer: Tensor

    @classmethod
    def finish(cls, weight: float, sums: Tensor, score: Tensor, outer: Tensor) -> PassResult:
        """Centre the outer products, given the sum of weights and sums over everybody."""
        return cls(LikelihoodSums.finish(weight, sums), score, outer - torch.outer(score, score) / weight)


@dataclass(frozen=True)
class DrawsEffect:
    """What more draws would change (float64, on the CPU); sums over people.

    Attributes
    ----------
    score : Tensor, shape (D,)
        The score with more draws less that with few.
    variance : Tensor, shape (D, D)
        Covariance of that estimate.
    noise : Tensor, shape (D, D)
        What the noise of few draws adds to the outer product of the people's scores.
    """

    score: Tensor
    variance: Tensor
    noise: Tensor

    def scaled(self, share: float) -> DrawsEffect:
        """Return the effect on ``share`` times as many people."""
        return DrawsEffect(share * self.score, share**2 * self.variance, share * self.noise)
