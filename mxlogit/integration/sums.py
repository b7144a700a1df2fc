"""Sums over all people of one pass of the marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.importance import WeightedDraws


@dataclass(frozen=True)
class LikelihoodSums:
    """Weighted sums over all people of one pass without derivatives.

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
        """Build from the sums over all people and the sum of weights."""
        log_likelihood, variance, elbo, ess = sums.tolist()
        return cls(log_likelihood, variance, elbo, ess / weight)


@dataclass(frozen=True)
class PassResult:
    """Weighted sums over all people of one pass with derivatives (float64, on the CPU).

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
        """Build from sums over all people and the sum of weights; centres the outer product."""
        return cls(LikelihoodSums.finish(weight, sums), score, outer - torch.outer(score, score) / weight)


@dataclass(frozen=True)
class DrawsEffect:
    """Effect of more draws on the score (float64, on the CPU); sums over people.

    Attributes
    ----------
    score : Tensor, shape (D,)
        Score on many draws less score on few.
    variance : Tensor, shape (D, D)
        Covariance of this difference.
    noise : Tensor, shape (D, D)
        Contribution of the noise of few draws to the outer product of people's scores.
    """

    score: Tensor
    variance: Tensor
    noise: Tensor

    def scaled(self, share: float) -> DrawsEffect:
        """Return the effect for ``share`` times as many people."""
        return DrawsEffect(share * self.score, share**2 * self.variance, share * self.noise)
