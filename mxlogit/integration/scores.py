r"""Scores of people's marginal likelihoods on weighted draws, in relative coordinates (`mxlogit.model.parameters`).

By Fisher's identity the scores of the mixing distribution are :math:`E_w[\xi]` and :math:`tril(E_w[\xi\xi'] - I)`, at
constant tastes; along paths, at constant whitened tastes, they are those of the choices. Where the map of a taste
depends on its distribution directly, either is completed by that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.integration.expansion import slopes_at
from mxlogit.integration.importance import DrawnUtility, WeightedDraws, latent_moments
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.latent_shifts import LatentShifts
from mxlogit.model.likelihood import Odds, compute_odds
from mxlogit.model.mixing import MapValue, Mixing
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.wtp_space import pull_back


def score_people(
    drawn: DrawnUtility,
    population: PopulationParameters,
    panel: PanelDifferences,
    mixing: Mixing,
    space: ParameterSpace,
    *,
    pathwise: bool = False,
    follow: bool = True,
) -> tuple[WeightedDraws, Tensor]:
    """Weigh draws of `draw_utilities` and compute each person's score in relative coordinates.

    The other parameters are described in `weigh_draws`. With ``pathwise``, scores are taken at constant whitened
    tastes, so that tastes move with the population (see `mxlogit.integration.pathwise`); without, at constant tastes.
    Scores of fixed coefficients are those along tastes that follow them (`mxlogit.integration.expansion`): derivatives
    of the log joint density in the tastes, times the shift, have expectation zero and take away most of the noise (zero
    variance control variates: Mira, Solgi and Imparato 2013, Statistics and Computing 23; electricity with a fixed
    price beside five tastes: from .4 to .16 of a posterior sd with 64 draws). Draws of the mixing distribution itself
    must not ``follow``: the shift is that of modes, and adds noise away from them.

    Returns
    -------
    tuple of (WeightedDraws, Tensor of shape (n, D))
        Scores of the jackknifed log marginal likelihood: fixed coefficients, u, free entries of A.
    """
    odds = compute_odds(drawn.utility, panel)
    weighted = drawn.weigh(odds.log_prob)
    weights = weighted.jackknife_weights
    gradients = None
    if mixing.scale_position is not None:
        gradients = _parameter_gradients(drawn, odds, population, panel, mixing)
    n_fixed = population.fixed.shape[0]
    means = _mean_gradients(drawn, weights, odds, panel, n_fixed, gradients) if n_fixed else None
    if pathwise:
        score_u, score_a = _path_scores(drawn, weights, odds, population, panel, gradients)
    else:
        score_u, score_a = latent_moments(weighted, weights, drawn.factor)
        score_a.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    parts = []
    if means is not None:
        by_fixed, by_latent = means
        if follow:
            # Expected derivatives of the log joint density in whitened tastes, which are zero but for the noise.
            noise = by_latent @ population.scale_tril - torch.bmm(drawn.xi, weights[..., None])[..., 0]
            shift = slopes_at(drawn.factor.mean, population, panel, mixing).shift(drawn.factor)
            by_fixed = torch.baddbmm(by_fixed[..., None], shift.mT, noise[..., None])[..., 0]
        parts.append(by_fixed)
    if drawn.value is not None and mixing.direct:
        extra_u, extra_a = _direct_scores(drawn.value, weights, odds, population, panel, mixing, gradients)
        score_u, score_a = score_u + extra_u, score_a + extra_a
    if mixing.shifts is not None:
        parts[0][:, list(mixing.shifts.effects)] = _scores_of_effects(score_u, population, panel, mixing.shifts)
    rows, columns = space.triangle
    return weighted, space.drop_held(torch.cat([*parts, score_u, score_a[:, rows, columns]], -1))


def _scores_of_effects(
    score_u: Tensor, population: PopulationParameters, panel: PanelDifferences, shifts: LatentShifts
) -> Tensor:
    """Scores (n, e) of effects on latent normals, from those of relative moves L u of the location, (n, k)."""
    assert panel.covariates is not None
    by_location = torch.linalg.solve_triangular(population.scale_tril, score_u, upper=False, left=False)
    return shifts.pull(by_location[..., None], shifts.loads(panel.covariates, score_u))


def _mean_gradients(
    drawn: DrawnUtility, weights: Tensor, odds: Odds, panel: PanelDifferences, n_fixed: int, gradients: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted means of the gradients of log P(y_n) in the fixed coefficients (n, f) and in the latents (n, k)."""
    if gradients is not None:
        slopes = gradients if drawn.value is None else _times_slopes(gradients, drawn.value, n_fixed)
        both = torch.bmm(slopes, weights[..., None])[..., 0]
    elif drawn.value is None:
        both = -torch.bmm(panel.values.mT, odds.weigh_probabilities(weights[..., None]))[..., 0]
    else:
        columns = torch.cat([torch.ones_like(drawn.xi[:, :1]), drawn.value.slope], 1) * weights[:, None]
        means = odds.weigh_probabilities(columns.mT)
        each = torch.cat([means[..., :1].expand(-1, -1, n_fixed), means[..., 1:]], -1)
        both = -(panel.values * each).sum(1)
    return both[:, :n_fixed], both[:, n_fixed:]


def _times_slopes(gradients: Tensor, value: MapValue, n_fixed: int) -> Tensor:
    """Gradients (n, f + k, s) with those in tastes turned into those in latents."""
    return torch.cat([gradients[:, :n_fixed], gradients[:, n_fixed:] * value.slope], 1)


def _parameter_gradients(
    drawn: DrawnUtility, odds: Odds, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing
) -> Tensor:
    """Gradients (n, f + k, s) of log P(y_n) in the parameters of willingness-to-pay space, at every draw."""
    tastes = drawn.tastes(population)
    fixed = population.fixed[:, None].expand(len(tastes), -1, tastes.shape[-1])
    by_coefficient = -torch.bmm(panel.values.mT, odds.probabilities())
    return pull_back(by_coefficient, torch.cat([fixed, tastes], 1), mixing.scale_position)


def _path_scores(
    drawn: DrawnUtility,
    weights: Tensor,
    odds: Odds,
    population: PopulationParameters,
    panel: PanelDifferences,
    gradients: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scores through the latent tastes at constant xi: with respect to moves of zeta (n, k) and of L (n, k, k)."""
    moves = torch.cat([torch.ones_like(drawn.xi[:, :1]), drawn.xi], 1) * weights[:, None]
    values = panel.values[..., population.fixed.shape[0] :]
    if gradients is not None:
        by_taste = gradients[:, population.fixed.shape[0] :]
        by_latent = (by_taste if drawn.value is None else by_taste * drawn.value.slope) @ moves.mT
    elif drawn.value is None:
        by_latent = -torch.bmm(values.mT, odds.weigh_probabilities(moves.mT))
    else:
        slopes = drawn.value.slope.unbind(1)
        means = torch.stack([odds.weigh_probabilities((moves * slope[:, None]).mT) for slope in slopes], 2)
        by_latent = -torch.einsum("nrk,nrkc->nkc", values, means)
    pulled = population.scale_tril.T @ by_latent
    return pulled[..., 0], pulled[..., 1:]


def _direct_scores(
    value: MapValue,
    weights: Tensor,
    odds: Odds,
    population: PopulationParameters,
    panel: PanelDifferences,
    mixing: Mixing,
    gradients: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scores through the direct dependence of the maps on location and scale; (n, k) and (n, k, k).

    A location moves by L u and a log scale by the row products of L A and L / tau, hence the two products.
    """
    assert value.by_location is not None
    assert value.by_scale is not None
    columns, f = list(mixing.direct), population.fixed.shape[0]
    pulls = torch.cat([value.by_location[:, columns], value.by_scale[:, columns]], 1)
    if gradients is None:
        mean_prob = odds.weigh_probabilities((weights[:, None] * pulls).mT)
        attributes = panel.values[..., [f + c for c in columns]]
        both = (attributes.repeat(1, 1, 2) * mean_prob).sum(1).neg()
    else:
        both = (gradients[:, [f + c for c in columns]].repeat(1, 2, 1) * pulls * weights[:, None]).sum(-1)
    by_location, by_scale = both.chunk(2, -1)
    tril = population.scale_tril
    score_u = by_location @ tril[columns]
    loading = tril[columns] / population.scale[columns, None]
    score_a = torch.einsum("nc,cl,cm->nlm", by_scale, tril[columns], loading)
    return score_u, score_a.mT
