r"""Observed information of the marginal likelihood at constant whitened draws, in relative coordinates.

With fixed draws :math:`\xi_s \sim q_n`, :math:`p(y_n | \theta)` is the mean of
:math:`P(y_n | g(\zeta + L \xi_s)) \phi(\xi_s) / q_n(\xi_s)`; the information is minus the second derivative of its
jackknifed logarithm. The complete data are whitened tastes here, and tastes in Louis' identity
(`mxlogit.integration.louis`): if choices are little informative about tastes, the complete-data information of the
latter is a hundred times that of the choices, and the result is a small difference of large terms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.integration.simulated_block import Block, evaluate_in_parts, merge_blocks, sum_second
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import ParameterSpace, PopulationParameters


def pathwise_information(
    model: MixedLogitModel, xi: Tensor, log_ratio: Tensor, population: PopulationParameters, panel: PanelDifferences
) -> Tensor:
    """Observed information (D, D), float64, of a chunk of people, weighted by their weights.

    Parameters
    ----------
    model : MixedLogitModel
    xi : Tensor, shape (n, k, s)
        Whitened tastes; each half of the draws consists of whole antithetic pairs.
    log_ratio : Tensor, shape (n, s)
        Log density of the standard normal less log density of the proposal.
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences

    Returns
    -------
    Tensor, shape (D, D)
    """
    halves = [
        evaluate_in_parts(model, population, panel, z, ratio, curvature=True)
        for z, ratio in zip(xi.chunk(2, -1), log_ratio.chunk(2, -1), strict=True)
    ]
    weights = panel.weights.double()
    hessian, score = _derivatives(merge_blocks(halves), 2.0 * weights)
    for half in halves:
        of_half = _derivatives(half, -0.5 * weights)
        hessian, score = hessian + of_half[0], score + of_half[1]
    return -_in_moves(hessian, score, population, model.space)


def _derivatives(block: Block, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums over people of the Hessian (D, D) and the gradient (D,) of the logarithm of a block's mean."""
    assert block.second is not None
    scores = block.score.double()
    return sum_second(block.second.double(), scores, weights), weights @ scores


def _in_moves(hessian: Tensor, score: Tensor, population: PopulationParameters, space: ParameterSpace) -> Tensor:
    """Hessian (D, D) in relative coordinates, from Hessian and gradient in coefficients, locations, entries of L."""
    f, k = space.n_fixed, space.n_random
    tril = population.scale_tril.double()
    rows, columns = space.triangle
    jacobian = torch.eye(f + k + len(rows), dtype=tril.dtype, device=tril.device)
    jacobian[f : f + k, f : f + k] = tril
    moved = tril.new_zeros(len(rows), k, k)
    moved[torch.arange(len(rows)), :, columns] = tril[:, rows].T
    jacobian[f + k :, f + k :] = moved[:, rows, columns].T
    result = jacobian.T @ hessian @ jacobian
    # L exp(A) has the second derivatives L (A B + B A) / 2, and unit matrices the product (i, j) (j, l) = (i, l).
    pull = tril.T @ space.triangle_matrix(score[f + k :])
    m, n = (torch.tensor(index, dtype=torch.int64) for index in (rows, columns))
    i, j = m[:, None], n[:, None]
    result[f + k :, f + k :] += 0.5 * ((j == m).to(pull) * pull[i, n] + (n == i).to(pull) * pull[m, j])
    return space.drop_held(result, 0, 1)
