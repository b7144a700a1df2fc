"""Importance check of a Gaussian population posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.diagnostics.psis import pareto_k
from mxlogit.diagnostics.thresholds import EVEN_ENOUGH, LARGEST_PARETO_K
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.vi.posterior import Target


@dataclass(frozen=True)
class PopulationCheck:
    """Importance check of the population factor.

    Attributes
    ----------
    pareto_k : float
    ess : float
        Effective sample size as a fraction of the draws.
    vectors : Tensor or None, shape (n, D)
        Antithetic points of q: the second half mirrors the first.
    log_weights : Tensor or None, shape (n,)
        Their importance weights, up to a constant.
    gradients : Tensor or None, shape (n + 1, D)
        Gradients of the log posterior at the mean of q and at these points.
    """

    pareto_k: float
    ess: float
    vectors: Tensor | None = None
    log_weights: Tensor | None = None
    gradients: Tensor | None = None

    @property
    def is_poor(self) -> bool:
        """Whether the tail of the weights is too heavy; with even weights Pareto k is only noise."""
        return self.pareto_k > LARGEST_PARETO_K and self.ess < EVEN_ENOUGH


def check_gaussian(target: Target, q: GaussianFactor, n: int, generator: torch.Generator) -> PopulationCheck:
    """Pareto k and effective sample size of the importance weights of n draws from q (antithetic pairs).

    Log posterior ratios are integrals of the gradient along the line through a pair and the mean, by a rule that is
    exact for cubic log ratios: differences of values would have more simulation noise.
    """
    vectors, log_q = q.sample_and_log_prob(n, generator)
    half = n // 2
    steps = vectors[:half] - q.mean
    gradients = target.gradients(torch.cat([q.mean[None], vectors]))
    centre, *pairs = gradients.split([1, half, half])
    above, below = ((slope * steps).sum(1) for slope in pairs)
    middle = 8.0 * steps @ centre[0]
    log_p = torch.cat([5.0 * above + middle - below, above - middle - 5.0 * below]) / 12.0
    log_weights = torch.nan_to_num(log_p - log_q, nan=-math.inf, posinf=-math.inf)
    if not bool(torch.isfinite(log_weights).any()):
        return PopulationCheck(math.inf, 0.0)
    weights = log_weights.softmax(0)
    ess = float(1.0 / (weights.square().sum() * n))
    return PopulationCheck(float(pareto_k(log_weights)), ess, vectors, log_weights, gradients)
