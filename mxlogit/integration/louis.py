r"""Observed information of the marginal likelihood by Louis' identity, in relative coordinates.

With l the log density of a person's choices and tastes and E_w the weighted mean over draws,

.. math:: -\nabla^2 \log p(y_n) = -E_w[\nabla^2 l] - E_w[\nabla l \nabla l'] + s_n s_n'

(Louis 1982, Journal of the Royal Statistical Society B 44). In relative coordinates
:math:`\nabla_u l = \xi` and :math:`\nabla_A l = tril(\xi\xi' - I)`, and the expected Hessian depends on the
draws through their first two moments only. Mixing maps whose shape depends on the population parameters would need
their second derivatives, and single draws miss the curvature of a map with a kink; the caller refuses both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.integration.expansion import fixed_units, slopes_at
from mxlogit.integration.importance import DrawnUtility, WeightedDraws, latent_moments
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import panel_probabilities, situation_means
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters


def louis_information(
    drawn: DrawnUtility,
    population: PopulationParameters,
    panel: PanelDifferences,
    mixing: Mixing,
    space: ParameterSpace,
) -> Tensor:
    """Observed information (D, D), float64, of a chunk of people, weighted by their weights.

    The parameters are described in `mxlogit.integration.scores.score_people`. In willingness-to-pay space the scale
    must be random: utility is then linear in the fixed coefficients, given tastes.
    """
    factor = drawn.factor
    asked, space = space, space.whole
    log_prob, prob = panel_probabilities(drawn.utility, panel)
    weighted = drawn.weigh(log_prob)
    weights = weighted.jackknife_weights
    first, second = latent_moments(weighted, weights, factor)
    people = panel.weights.double()
    moments = torch.einsum("nkl,n->kl", second.double(), people)
    expected = _latent_hessian(first.double().T @ people, moments, people, space)
    unit, of_fixed = None, weights
    if mixing.scale_position is not None:
        unit = fixed_units(drawn.tastes(population), population, mixing)
        of_fixed = weights * unit[:, 0].square()
    gradients = _gradients(weighted.xi, prob, unit, panel, space)
    f = space.n_fixed
    slopes = slopes_at(factor.mean, population, panel, mixing)
    gradients[:f] -= slopes.first.T[..., None]
    information = -expected - _spread(gradients, slopes.by_taste, weighted, weights, factor, panel.weights, space)
    information[:f, :f] += _fixed_information(prob, of_fixed, panel, f)
    return asked.drop_held(information, 0, 1)


def _spread(
    gradients: Tensor,
    by_taste: Tensor,
    drawn: WeightedDraws,
    weights: Tensor,
    factor: LocalFactor,
    panel_weights: Tensor,
    space: ParameterSpace,
) -> Tensor:
    """Sum over people of the weighted covariance of the complete-data gradients (D, n, s), (D, D).

    The information is a small difference of large terms, so the covariance under the Laplace factor is computed in
    closed form and only the difference from it is estimated on draws; gradients of the fixed coefficients, less those
    at the mode, are nearly linear in the tastes, with slopes ``by_taste`` (n, f, k). Products of means contain the
    variance of the means, a bias of order 1 / s that does not average out over people; it is estimated from the two
    halves of the draws and subtracted.
    """
    f, scale, people = space.n_fixed, panel_weights[:, None], panel_weights.double()
    linear = (by_taste @ (drawn.xi - factor.mean[..., None])).transpose(0, 1)
    mean, halves = drawn.mean_by_halves(gradients)
    controls = torch.cat([linear, gradients[f:]])
    control, control_halves = drawn.control_mean_by_halves(controls)
    controls.mul_(drawn.control_weights).mul_(scale)
    weighted = (gradients * weights).mul_(scale)
    covariance = _gaussian_covariance(factor, by_taste, people, space)
    covariance[:f, :f] += _product(weighted[:f], gradients[:f]) - _product(controls[:f], linear)
    rest = _product(weighted.sub_(controls), gradients[f:])
    covariance[:, f:] += rest
    covariance[f:, :f] += rest[:f].T
    excess = (mean - control).double()
    cross = (_gaussian_mean(factor, space) * people) @ excess.T
    covariance[f:] -= cross
    covariance[:, f:] -= cross.T
    return covariance - _squared(excess, halves - control_halves, people)


def _squared(mean: Tensor, halves: Tensor, people: Tensor) -> Tensor:
    """Sum over people of products of expectations (a, n), bias-corrected, (a, a).

    An estimate is about the mean of its two estimates on halves of the draws (a, n, 2), so a quarter of the squared
    difference between the halves is its variance.
    """
    apart = 0.5 * (halves[..., 0] - halves[..., 1]).double()
    return (mean * people) @ mean.T - (apart * people) @ apart.T


def _gaussian_mean(factor: LocalFactor, space: ParameterSpace) -> Tensor:
    """Means (k + cells, n) of (xi, tril(xi xi' - I)) when xi ~ N(mean, R R')."""
    mean = factor.mean.double()
    second = factor.covariance.double() + mean[:, :, None] * mean[:, None, :]
    second.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    rows, columns = _triangle(space, mean.device)
    return torch.cat([mean, second[:, rows, columns]], 1).T


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Sum over people and draws of the outer product, (a, b), float64 from a product in the data's type."""
    return (left.flatten(1) @ right.flatten(1).T).double()


def _gaussian_covariance(factor: LocalFactor, by_taste: Tensor, people: Tensor, space: ParameterSpace) -> Tensor:
    """Sum over people of the covariance of (B (xi - mean), xi, tril(xi xi')) when xi ~ N(mean, R R'), (D, D)."""
    mean, cov = factor.mean.double(), factor.covariance.double()
    (i, j), f, k = _triangle(space, mean.device), space.n_fixed, space.n_random
    # What is linear in the tastes: slopes in the fixed coefficients, and the tastes themselves.
    loading = torch.cat([by_taste.double(), torch.eye(k).to(mean).expand(len(mean), -1, -1)], 1)
    with_tastes = loading @ cov
    result = mean.new_zeros(space.size, space.size)
    result[: f + k, : f + k] = torch.einsum("nak,nbk,n->ab", with_tastes, loading, people)
    # Sums over people of m_i times covariances with taste j, (i, a, j).
    products = ((people[:, None] * mean).T @ with_tastes.flatten(1)).view(k, f + k, k)
    result[: f + k, f + k :] = (products[j, :, i] + products[i, :, j]).T
    result[f + k :, : f + k] = result[: f + k, f + k :].T
    # Cov(x_i x_j, x_p x_q) = M_ip M_jq + M_iq M_jp - 2 m_i m_j m_p m_q, M the raw second moments.
    raw = (cov + mean[:, :, None] * mean[:, None, :]).flatten(1)
    pairs = (raw.T @ (people[:, None] * raw)).view(k, k, k, k)
    squares = mean[:, i] * mean[:, j]
    first, other = (pairs[i[:, None], p, j[:, None], q] for p, q in ((i, j), (j, i)))
    result[f + k :, f + k :] = first + other - 2.0 * squares.T @ (people[:, None] * squares)
    return result


def _triangle(space: ParameterSpace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the free entries of A as index tensors."""
    rows, columns = space.triangle
    return (
        torch.tensor(rows, dtype=torch.int64, device=device),
        torch.tensor(columns, dtype=torch.int64, device=device),
    )


def _gradients(xi: Tensor, prob: Tensor, unit: Tensor | None, panel: PanelDifferences, space: ParameterSpace) -> Tensor:
    """Complete-data gradients of every draw, shape (D, n, s); ``unit`` (n, 1, s) multiplies fixed coefficients."""
    rows, columns = _triangle(space, xi.device)
    tastes = xi.transpose(0, 1)
    fixed = -torch.bmm(panel.values[..., : space.n_fixed].mT, prob).transpose(0, 1)
    if unit is not None:
        fixed = fixed * unit.transpose(0, 1)
    pairs = tastes[rows] * tastes[columns]
    pairs -= (rows == columns).to(xi)[:, None, None]
    return torch.cat([fixed, tastes, pairs])


def _latent_hessian(first: Tensor, second: Tensor, people: Tensor, space: ParameterSpace) -> Tensor:
    """Expected Hessian of sum_n log N(eta_n; zeta, Omega), from sums of E[xi] (k,) and E[xi xi'] (k, k)."""
    f, k = space.n_fixed, space.n_random
    rows, columns = _triangle(space, second.device)
    hessian = second.new_zeros(space.size, space.size)
    hessian[f : f + k, f : f + k] = -people.sum() * torch.eye(k, dtype=second.dtype, device=second.device)
    # -(u'A xi + xi'A u) for the unit matrix A at (row, column).
    unit = torch.eye(k, dtype=second.dtype, device=second.device)
    cross = -(unit[:, rows] * first[columns] + unit[:, columns] * first[rows])
    hessian[f : f + k, f + k :] = cross
    hessian[f + k :, f : f + k] = cross.T
    # -xi'(A'B + B'A + AB + BA) xi / 2 for unit matrices A = e_i e_j', B = e_k e_l'.
    i, j = rows[:, None], columns[:, None]
    p, q = rows[None, :], columns[None, :]
    both = 2.0 * second[j, q] * (i == p) + second[i, q] * (j == p) + second[p, j] * (q == i)
    hessian[f + k :, f + k :] = -0.5 * both
    return hessian


def _fixed_information(prob: Tensor, weights: Tensor, panel: PanelDifferences, n_fixed: int) -> Tensor:
    """Information of the fixed coefficients given tastes, (f, f), weighted by draws (n, s) and people."""
    values = panel.values[..., :n_fixed]
    row_weight = torch.bmm(prob, weights[..., None]) * panel.weights[:, None, None]
    within = (row_weight * values).flatten(0, 1).double().T @ values.flatten(0, 1).double()
    # Mean attributes (f, n, t, s) of every situation and draw.
    means = situation_means(values, prob, panel).permute(2, 0, 1, 3)
    scaled = means * (weights * panel.weights[:, None])[:, None]
    return within - _product(scaled, means)
