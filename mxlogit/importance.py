r"""Importance sampling of people: marginal likelihood, effective sample size and scores.

With draws :math:`\xi_s \sim q_n` and weights :math:`w_s \propto P(y_n | \xi_s) p(\xi_s) / q_n(\xi_s)`,

.. math:: \log \hat p(y_n | \theta) = \log \tfrac1S \sum_s P(y_n | \xi_s) p(\xi_s) / q_n(\xi_s),

and by Fisher's identity the scores in relative coordinates (`mxlogit.parameters`) are
:math:`E_w[\xi]` and :math:`tril(E_w[\xi\xi'] - I)`. Two corrections keep few draws honest: the known
moments of q are control variates, and the jackknife over antithetic halves removes the bias of order 1/S
of the logarithm and of the self-normalised weights (Quenouille 1956, Biometrika 43).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mxlogit.draws import BaseDraws, jackknife_log_mean, jackknife_softmax, log_standard_normal
from mxlogit.guide.laplace import LocalFactor, drawn_utility
from mxlogit.likelihood import PanelDifferences, panel_log_prob_of_differences, panel_probabilities
from mxlogit.mixing import MapValue, Mixing
from mxlogit.parameters import ParameterSpace, Population


@dataclass(frozen=True)
class WeightedDraws:
    """Importance draws of a chunk of people.

    Attributes
    ----------
    xi : Tensor, shape (n, s, k)
        Whitened tastes.
    log_ratio : Tensor, shape (n, s)
        log P(y_n | xi) + log p(xi) - log q_n(xi).
    log_tilt : Tensor, shape (n, s)
        The same if the target were exactly the normal factor: the control variate of every weighted sum.
    """

    xi: Tensor
    log_ratio: Tensor
    log_tilt: Tensor

    @property
    def elbo(self) -> Tensor:
        """Evidence lower bound of each person's factor, shape (n,)."""
        return self.log_ratio.mean(-1)

    @property
    def weights(self) -> Tensor:
        """Self-normalised weights, shape (n, s)."""
        return self.log_ratio.softmax(-1)

    @property
    def ess_fraction(self) -> Tensor:
        """Effective sample size of the weights as a fraction of the draws, shape (n,)."""
        return 1.0 / (self.weights.square().sum(-1) * self.log_ratio.shape[-1])

    @property
    def log_marginal(self) -> Tensor:
        """Jackknifed, controlled estimate of log p(y_n), shape (n,)."""
        return jackknife_log_mean(self.log_ratio) - jackknife_log_mean(self.log_tilt)

    @property
    def jackknife_weights(self) -> Tensor:
        """Signed weights (n, s), summing to one, of the derivative of `log_marginal`."""
        return jackknife_softmax(self.log_ratio)

    @cached_property
    def control_weights(self) -> Tensor:
        """Signed weights (n, s), summing to one, that a normal target would have on these draws."""
        return jackknife_softmax(self.log_tilt)

    @property
    def log_variance(self) -> Tensor:
        """Delta-method variance of the estimate of log p(y_n), shape (n,)."""
        return (self.weights - self.log_tilt.softmax(-1)).square().sum(-1)


@dataclass(frozen=True)
class DrawnUtility:
    """Draws of a chunk with their log densities (n, s), map and utility differences (n, r, s)."""

    xi: Tensor
    log_q: Tensor
    log_factor: Tensor
    value: MapValue
    utility: Tensor

    def weigh(self, log_prob: Tensor) -> WeightedDraws:
        """Attach log probabilities (n, s)."""
        log_prior = log_standard_normal(self.xi.square().sum(-1), self.xi.shape[-1])
        return WeightedDraws(self.xi, log_prob + log_prior - self.log_q, self.log_factor - self.log_q)


def draw_utilities(
    factor: LocalFactor, base: BaseDraws, population: Population, panel: PanelDifferences, mixing: Mixing
) -> DrawnUtility:
    """Draw whitened tastes from the mixture and compute utility differences (see `weigh_draws`)."""
    xi, log_q, log_factor = _draw(factor, base)
    latent = population.location + xi @ population.scale_tril.mT
    value = mixing.evaluate(latent, population.location, population.scale)
    return DrawnUtility(xi, log_q, log_factor, value, drawn_utility(value.taste, population, panel, mixing))


def _draw(factor: LocalFactor, base: BaseDraws) -> tuple[Tensor, Tensor, Tensor]:
    """Whitened tastes (n, s, k), their log density under the mixture, and under the normal factor."""
    k = base.points.shape[-1]
    log_det = factor.log_det[:, None]
    xi = factor.mean[:, None] + base.points @ factor.root.mT
    standard = base.points
    share = base.prior_share
    if share:
        prior = base.from_prior
        xi[:, prior] = base.points[:, prior]
        standard = standard.clone()
        standard[:, prior] = (base.points[:, prior] - factor.mean[:, None]) @ factor.precision_tril
    square = standard.square().sum(-1)
    log_q = base.log_local(square, k) - log_det
    log_factor = log_standard_normal(square, k) - log_det
    if share:
        log_prior = log_standard_normal(xi.square().sum(-1), k)
        log_q = torch.logaddexp(log_q + math.log1p(-share), log_prior + math.log(share))
    return xi, log_q, log_factor


def weigh_draws(
    factor: LocalFactor, base: BaseDraws, population: Population, panel: PanelDifferences, mixing: Mixing
) -> WeightedDraws:
    """Draw from the local factors and weigh the draws.

    Parameters
    ----------
    factor : LocalFactor
        Of the n people of the panel.
    base : BaseDraws
        Points (n, s, k).
    population : Population
        In the dtype of the panel.
    panel : PanelDifferences
    mixing : Mixing

    Returns
    -------
    WeightedDraws
    """
    drawn = draw_utilities(factor, base, population, panel, mixing)
    return drawn.weigh(panel_log_prob_of_differences(drawn.utility, panel))


def score_people(
    factor: LocalFactor,
    base: BaseDraws,
    population: Population,
    panel: PanelDifferences,
    mixing: Mixing,
    space: ParameterSpace,
) -> tuple[WeightedDraws, Tensor]:
    """Weigh draws and compute each person's score in relative coordinates.

    Parameters are those of `weigh_draws`, and the parameter space.

    Returns
    -------
    tuple of (WeightedDraws, Tensor of shape (n, D))
        Scores of the jackknifed log marginal likelihood: fixed part, u, free entries of A.
    """
    drawn = draw_utilities(factor, base, population, panel, mixing)
    log_prob, prob = panel_probabilities(drawn.utility, panel)
    weighted = drawn.weigh(log_prob)
    weights = weighted.jackknife_weights
    score_u, score_a = latent_moments(weighted, weights, factor)
    score_a.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    n_fixed = population.fixed.shape[0]
    parts = []
    if n_fixed:
        mean_prob = torch.bmm(prob, weights[..., None])
        parts.append(-torch.bmm(panel.values[..., :n_fixed].mT, mean_prob)[..., 0])
    if mixing.direct:
        extra_u, extra_a = _direct_scores(drawn.value, weights, prob, population, panel, mixing)
        score_u, score_a = score_u + extra_u, score_a + extra_a
    rows, columns = space.triangle
    return weighted, torch.cat([*parts, score_u, score_a[:, rows, columns]], -1)


def latent_moments(drawn: WeightedDraws, weights: Tensor, factor: LocalFactor) -> tuple[Tensor, Tensor]:
    """E_w[xi] (n, k) and E_w[xi xi'] (n, k, k), with the moments of q as control variates."""
    deviation = drawn.xi - factor.mean[:, None]
    excess = weights - drawn.control_weights
    first = torch.bmm(excess[:, None], deviation)
    second = torch.bmm((excess[..., None] * deviation).mT, deviation) + factor.covariance
    mean = factor.mean[:, None]
    return (first + mean)[:, 0], second + first.mT @ mean + mean.mT @ (first + mean)


def _direct_scores(
    value: MapValue,
    weights: Tensor,
    prob: Tensor,
    population: Population,
    panel: PanelDifferences,
    mixing: Mixing,
) -> tuple[Tensor, Tensor]:
    """Scores through the direct dependence of the maps on location and scale; (n, k) and (n, k, k).

    A location moves by L u and a log scale by the rows of L A against L / tau, hence the two products.
    """
    assert value.by_location is not None
    assert value.by_scale is not None
    columns = list(mixing.direct)
    pulls = torch.cat([value.by_location[..., columns], value.by_scale[..., columns]], -1)
    mean_prob = torch.bmm(prob, weights[..., None] * pulls)
    attributes = panel.values[..., [population.fixed.shape[0] + c for c in columns]]
    by_location, by_scale = (attributes.repeat(1, 1, 2) * mean_prob).sum(1).neg().chunk(2, -1)
    tril = population.scale_tril
    score_u = by_location @ tril[columns]
    loading = tril[columns] / population.scale[columns, None]
    score_a = torch.einsum("nc,cl,cm->nlm", by_scale, tril[columns], loading)
    return score_u, score_a.mT
