r"""Weights, scores and second derivatives of the simulated likelihood on a block of draws.

With :math:`w_r \propto P(y_n | \beta_r)`, the score of a person is :math:`E_w[\nabla \log P]` and the
Hessian :math:`E_w[\nabla \log P \nabla \log P' + \nabla^2 \log P] - s s'`. In tastes, minus the Hessian of a
logit is :math:`F = \sum_t (\sum_j p_j x_j x_j' - \bar x_t \bar x_t')`; every coordinate moves one taste, so the
Hessian needs only moments over draws of :math:`gg' - F` and of the derivatives of that taste.

Draws are the last axis: products with attributes are batched, elementwise operations run along contiguous memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.drawn_tastes import DrawnTastes, draw_tastes, loads_of
from mxlogit.integration.laplace import draws_at_once
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import Odds, compute_odds, situation_means
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import SecondDerivatives
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.products import multiply
from mxlogit.model.wtp_space import pull_back, to_coefficients


@dataclass(frozen=True)
class Block:
    """Likelihood and derivatives of some people on a block of draws.

    Attributes
    ----------
    log_sum : Tensor, shape (n,)
        Log of the sum over draws of the probability of the choices.
    score : Tensor, shape (n, D)
        Weighted mean gradient of log P.
    second : Tensor or None, shape (n, D, D)
        Weighted mean of the gradient's outer product plus the Hessian of log P.
    """

    log_sum: Tensor
    score: Tensor
    second: Tensor | None


def _odds(model: MixedLogitModel, drawn: DrawnTastes, panel: PanelDifferences) -> Odds:
    coefficients = to_coefficients(drawn.parameters, model.mixing.scale_position, dim=1)
    return compute_odds(multiply(panel.values, coefficients), panel)


def weigh_block(model: MixedLogitModel, drawn: DrawnTastes, panel: PanelDifferences) -> Tensor:
    """Log probability of each person's choices on every draw, (n, r)."""
    return _odds(model, drawn, panel).log_prob


def sum_scores(
    model: MixedLogitModel,
    population: PopulationParameters,
    panel: PanelDifferences,
    z: Tensor,
    weigh: Callable[[Tensor], Tensor],
) -> Tensor:
    """Gradients of log P, summed over draws with the weights (n, r) that ``weigh`` makes of log P (n, r): (n, D)."""
    drawn = draw_tastes(model, population, z, loads_of(model, panel))
    odds = _odds(model, drawn, panel)
    log_prob, prob = odds.log_prob, odds.probabilities()
    gradient = multiply(panel.values.mT, prob)
    pulled = pull_back(gradient, drawn.parameters, model.mixing.scale_position)
    return score_coordinates(model, population, drawn, pulled * -weigh(log_prob)[:, None])


def evaluate_block(
    model: MixedLogitModel,
    population: PopulationParameters,
    panel: PanelDifferences,
    z: Tensor,
    *,
    curvature: bool,
    log_ratio: Tensor | None = None,
) -> Block:
    """Log simulated probability and its derivatives for the people of a panel, on a block of draws.

    Parameters
    ----------
    model : MixedLogitModel
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences
    z : Tensor, shape (n, k, r)
        Whitened tastes.
    curvature : bool
        Whether to compute second derivatives.
    log_ratio : Tensor, shape (n, r), optional
        Log density of the standard normal less log density of the proposal, if the draws are not standard normal.

    Returns
    -------
    Block
    """
    drawn = draw_tastes(model, population, z, loads_of(model, panel))
    odds = _odds(model, drawn, panel)
    log_prob, prob = odds.log_prob, odds.probabilities()
    if log_ratio is not None:
        log_prob = log_prob + log_ratio
    top = log_prob.amax(-1, keepdim=True)
    weights = (log_prob - top).exp_()
    total = weights.sum(-1, keepdim=True)
    weights /= total
    gradient = multiply(panel.values.mT, prob).neg_()
    pulled = pull_back(gradient, drawn.parameters, model.mixing.scale_position)
    score = score_coordinates(model, population, drawn, pulled * weights[:, None])
    second = None
    if curvature:
        design = _design(model, population, drawn)
        directions = _directions(model, drawn, design)
        second = _outer_and_information(directions, panel, prob, odds.shares, gradient, weights)
        if model.mixing.scale_position is not None:
            _add_wtp_curvature(second, model, design, gradient * weights[:, None])
        if drawn.value is not None:
            _add_mixing_curvature(second, model, population, drawn, pulled * weights[:, None])
    return Block((top + total.log())[:, 0], score, second)


def score_coordinates(
    model: MixedLogitModel, population: PopulationParameters, drawn: DrawnTastes, weighted: Tensor
) -> Tensor:
    """Sum over draws (n, D) of weighted gradients with respect to the parameters (n, K, r), in coordinates.

    Coordinates are fixed coefficients, locations and free entries of L, of one population value or one per person.
    """
    n_fixed = model.space.n_fixed
    value, by_taste = drawn.value, weighted[:, n_fixed:]
    by_latent = by_taste if value is None else by_taste * value.slope
    by_location = by_latent.sum(-1)
    by_tril = torch.bmm(by_latent, drawn.z.mT)
    by_fixed = weighted[:, :n_fixed].sum(-1)
    if model.mixing.shifts is not None and drawn.loads is not None:
        moved = by_latent if value is None or value.by_location is None else by_latent + value.by_location * by_taste
        by_fixed[:, list(model.mixing.shifts.effects)] = model.mixing.shifts.pull(moved, drawn.loads)
    if value is not None and value.by_location is not None and value.by_scale is not None:
        by_location = by_location + (value.by_location * by_taste).sum(-1)
        by_scale = (value.by_scale * by_taste).sum(-1)
        by_tril = by_tril + by_scale[..., None] * (population.scale_tril / population.scale[..., None])
    rows, columns = model.space.triangle
    return torch.cat([by_fixed, by_location, by_tril[:, rows, columns]], -1)


def _design(model: MixedLogitModel, population: PopulationParameters, drawn: DrawnTastes) -> Tensor:
    """Derivative of the one parameter that each coordinate moves, (n, D, r)."""
    space, z, value = model.space, drawn.z, drawn.value
    rows, columns = space.triangle
    fixed = z.new_ones(len(z), space.n_fixed, z.shape[-1])
    if value is None:
        return torch.cat([fixed, torch.ones_like(z), z[:, columns]], 1)
    by_location, by_tril = value.slope, value.slope[:, rows] * z[:, columns]
    if value.by_location is not None and value.by_scale is not None:
        direction = (population.scale_tril / population.scale[:, None])[rows, columns]
        by_location = by_location + value.by_location
        by_tril = by_tril + value.by_scale[:, rows] * direction[:, None]
    if model.mixing.shifts is not None and drawn.loads is not None:
        fixed[:, list(model.mixing.shifts.effects)] = by_location[:, list(model.mixing.shifts.tastes)] * drawn.loads
    return torch.cat([fixed, by_location, by_tril], 1)


def _owners(model: MixedLogitModel) -> list[int]:
    """Index of the parameter that each coordinate moves, length D; effects on latent normals move their tastes."""
    f, k = model.space.n_fixed, model.space.n_random
    owners = [*range(f + k), *(f + row for row in model.space.triangle[0])]
    if model.mixing.shifts is not None:
        for effect, taste in zip(model.mixing.shifts.effects, model.mixing.shifts.tastes, strict=True):
            owners[effect] = f + taste
    return owners


@dataclass(frozen=True)
class _Directions:
    """Derivatives of utility: products of one attribute with one function of the draws.

    Attributes
    ----------
    functions : Tensor, shape (n, E, r)
        Function of the draws of each direction.
    attribute : list of int, length E
        Index of the attribute of each direction.
    collect : Tensor or None, shape (E, D)
        Indicator of the directions that each coordinate is the sum of; None if directions are coordinates.
    """

    functions: Tensor
    attribute: list[int]
    collect: Tensor | None = None


def _directions(model: MixedLogitModel, drawn: DrawnTastes, design: Tensor) -> _Directions:
    """Directions of all coordinates; in WTP space the scale moves all attributes, a WTP its own by minus the scale."""
    position, owners = model.mixing.scale_position, _owners(model)
    if position is None:
        return _Directions(design, owners)
    size = drawn.parameters.shape[1]
    functions, attribute, coordinate = [], [], []
    for i, owner in enumerate(owners):
        if owner != position:
            functions.append(-drawn.parameters[:, position] * design[:, i])
            attribute.append(owner)
            coordinate.append(i)
            continue
        for column in range(size):
            by_scale = design[:, i] if column == position else -drawn.parameters[:, column] * design[:, i]
            functions.append(by_scale)
            attribute.append(column)
            coordinate.append(i)
    collect = design.new_zeros(len(functions), len(owners))
    collect[torch.arange(len(functions)), coordinate] = 1.0
    return _Directions(torch.stack(functions, 1), attribute, collect)


def _outer_and_information(
    directions: _Directions,
    panel: PanelDifferences,
    prob: Tensor,
    shares: list[Tensor] | None,
    gradient: Tensor,
    weights: Tensor,
) -> Tensor:
    """Weighted sum over draws (n, D, D) of the gradient's outer product plus the Hessian of log P, linear utility.

    Situations and alternatives are summed out first, per draw and pair of attributes: the cost of a direction then
    depends on the number of draws only.
    """
    attribute = torch.tensor(directions.attribute)
    mine = [torch.nonzero(attribute == i)[:, 0] for i in range(gradient.shape[1])]
    functions = [directions.functions[:, index] for index in mine]
    inner = _outer_and_hessian_of_attributes(panel, prob, shares, gradient) * weights[:, None]
    size = len(attribute)
    products = gradient.new_empty(len(gradient), size, size)
    for pair, (i, j) in enumerate(torch.triu_indices(len(mine), len(mine)).T.tolist()):
        block = torch.bmm(functions[i] * inner[:, pair, None], functions[j].mT)
        products[:, mine[i][:, None], mine[j]] = block
        products[:, mine[j][:, None], mine[i]] = block.mT
    collect = directions.collect
    return products if collect is None else collect.T @ products @ collect


def _outer_and_hessian_of_attributes(
    panel: PanelDifferences, prob: Tensor, shares: list[Tensor] | None, gradient: Tensor
) -> Tensor:
    """Gradient's outer product plus Hessian of log P by the coefficients, per pair of attributes and draw, (n, m, r).

    Pairs are the upper triangle in row order.
    """
    if shares is not None:
        return _outer_and_hessian_over_nodes(panel, prob, shares, gradient)
    first, second = torch.triu_indices(gradient.shape[1], gradient.shape[1])
    total = torch.bmm((panel.values[..., first] * panel.values[..., second]).mT, prob).neg_()
    for place in [gradient, *situation_means(panel.values, prob, panel).unbind(1)]:
        _add_square(total, place)
    return total


def _add_square(total: Tensor, place: Tensor, times: float = 1.0) -> None:
    """Add the outer product of vectors (n, k, r), times a number, to its upper triangle (n, m, r)."""
    start = 0
    for i in range(place.shape[1]):
        stop = start + place.shape[1] - i
        total[:, start:stop].addcmul_(place[:, i, None], place[:, i:], value=times)
        start = stop


def _outer_and_hessian_over_nodes(
    panel: PanelDifferences, prob: Tensor, shares: list[Tensor], gradient: Tensor
) -> Tensor:
    """The same where the probability of a situation is an average over nodes with shares (n, t q, r) given the choice.

    The Hessian is the mean over nodes of their Hessians and outer products, less the outer product of their mean.
    """
    first, second = torch.triu_indices(gradient.shape[1], gradient.shape[1])
    total = torch.bmm((panel.values[..., first] * panel.values[..., second]).mT, prob).neg_()
    _add_square(total, gradient)
    means = situation_means(panel.values, prob, panel)
    of_nodes = means * torch.cat(shares, 1).rsqrt()[:, :, None]
    for node in of_nodes.unbind(1):
        _add_square(total, node, 2.0)
    for situation in means.unflatten(1, (-1, panel.n_nodes)).sum(2).unbind(1):
        _add_square(total, situation, -1.0)
    return total


def _add_wtp_curvature(second: Tensor, model: MixedLogitModel, design: Tensor, weighted: Tensor) -> None:
    """Add the curvature of WTP-space coefficients, which are products, given weighted gradients of the coefficients."""
    position, owners = model.mixing.scale_position, torch.tensor(_owners(model))
    assert position is not None
    scale = torch.nonzero(owners == position)[:, 0]
    for i in range(weighted.shape[1]):
        if i == position:
            continue
        mine = torch.nonzero(owners == i)[:, 0]
        block = torch.bmm(design[:, mine] * weighted[:, i, None], design[:, scale].mT)
        second[:, mine[:, None], scale] -= block
        second[:, scale[:, None], mine] -= block.mT


def _add_mixing_curvature(
    second: Tensor, model: MixedLogitModel, population: PopulationParameters, drawn: DrawnTastes, weighted: Tensor
) -> None:
    """Add the curvature of the mixing maps themselves, given weighted gradients (n, K, r)."""
    f, owners = model.space.n_fixed, torch.tensor(_owners(model))
    rows, columns = (torch.tensor(index) for index in model.space.triangle)
    for i, family in enumerate(model.mixing.families):
        if family.name == "normal":
            continue
        cells = rows == i
        factor = _factor_of_location(model, drawn, i)
        of_scale = torch.cat([torch.zeros(factor.shape[1]), torch.ones(int(cells.sum()))]).to(factor)
        lead = torch.cat([factor, factor.new_zeros(len(factor), int(cells.sum()))], 1)
        ratio = of_scale.clone()
        ratio[factor.shape[1] :] = population.scale_tril[i, columns[cells]] / population.scale[i]
        inputs = torch.stack([lead, ratio.expand(len(lead), -1)], 1)
        moved = torch.cat([factor[..., None].expand(-1, -1, drawn.z.shape[-1]), drawn.z[:, columns[cells]]], 1)
        location = population.location[i] if drawn.shift is None else population.location[i] + drawn.shift[:, i]
        second_map = family.second_derivatives(drawn.latent[:, i], location, population.scale[i])
        pull = weighted[:, f + i]
        block = torch.bmm(moved * (pull * second_map.latent_latent)[:, None], moved.mT)
        if family.direct:
            block = block + _direct_curvature(second_map, pull, moved, inputs)
            outside = torch.diag_embed(of_scale) - torch.outer(ratio, ratio)
            block = block + (pull * second_map.scale).sum(-1)[:, None, None] * outside / population.scale[i]
        mine = torch.nonzero(owners == f + i)[:, 0]
        second[:, mine[:, None], mine] += block


def _factor_of_location(model: MixedLogitModel, drawn: DrawnTastes, i: int) -> Tensor:
    """Derivatives (n, 1 + e) of a person's location of one taste with respect to the effects on it and the location."""
    one = torch.ones_like(drawn.z[:, :1, 0])
    if model.mixing.shifts is None or drawn.loads is None:
        return one
    mine = [place for place, taste in enumerate(model.mixing.shifts.tastes) if taste == i]
    return torch.cat([drawn.loads[:, mine, 0].expand(len(one), -1), one], 1)


def _direct_curvature(second_map: SecondDerivatives, pull: Tensor, moved: Tensor, inputs: Tensor) -> Tensor:
    """Second derivatives through location and scale: inputs (n, 2, m) are their derivatives."""
    cross = torch.stack([second_map.latent_location * pull, second_map.latent_scale * pull], 1)
    mixed = torch.bmm(torch.bmm(moved, cross.mT), inputs)
    pairs = [
        (second_map.location_location, second_map.location_scale),
        (second_map.location_scale, second_map.scale_scale),
    ]
    inner = torch.stack([torch.stack([(pull * entry).sum(-1) for entry in row], -1) for row in pairs], 1)
    return mixed + mixed.mT + torch.bmm(torch.bmm(inputs.mT, inner), inputs)


def evaluate_in_parts(
    model: MixedLogitModel,
    population: PopulationParameters,
    panel: PanelDifferences,
    z: Tensor,
    log_ratio: Tensor,
    *,
    curvature: bool,
) -> Block:
    """Apply `evaluate_block` to parts of the draws (n, k, r) with log ratios (n, r), and merge."""
    step = draws_at_once(panel)
    return merge_blocks(
        [
            evaluate_block(model, population, panel, part, curvature=curvature, log_ratio=ratio)
            for part, ratio in zip(z.split(step, -1), log_ratio.split(step, -1), strict=True)
        ]
    )


def merge_blocks(blocks: list[Block]) -> Block:
    """Merge blocks of different draws of the same people."""
    if len(blocks) == 1:
        return blocks[0]
    log_sums = torch.stack([block.log_sum for block in blocks])
    weights = log_sums.softmax(0)
    score = (weights[..., None] * torch.stack([block.score for block in blocks])).sum(0)
    seconds = [block.second for block in blocks if block.second is not None]
    second = (weights[..., None, None] * torch.stack(seconds)).sum(0) if seconds else None
    return Block(log_sums.logsumexp(0), score, second)


def sum_second(second: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over people of Hessians of the log simulated probability."""
    total = torch.einsum("nab,n->ab", second, weights) - scores.T @ (weights[:, None] * scores)
    return 0.5 * (total + total.T)
