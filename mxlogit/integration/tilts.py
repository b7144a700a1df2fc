"""Densities of draws of tastes at other population values than the one they were drawn for.

In latents whitened at that value, the anchor, the log density changes by a quadratic function of the draws: a tilt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.integration.expansion import index_pairs
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.triangles import inverse_of_lower


def tilt_coefficients(anchor: PopulationParameters, others: PopulationParameters) -> tuple[Tensor, Tensor]:
    """Coefficients of the change of a draw's log density from one population value to others.

    Parameters
    ----------
    anchor : PopulationParameters
    others : PopulationParameters
        Population values along a leading axis of length b.

    Returns
    -------
    tuple of Tensor
        Coefficients (F, b) of whitened tastes, of their products, of first derivatives with respect to the fixed
        coefficients and of second ones; and the part (b,) of the change that all draws share.
    """
    fixed = others.fixed - anchor.fixed
    rows, columns = index_pairs(fixed.shape[1])
    pairs = fixed[:, rows] * fixed[:, columns] * (1.0 - 0.5 * (rows == columns).to(fixed))
    tril = torch.linalg.solve_triangular(anchor.scale_tril, others.scale_tril, upper=False)
    shift = torch.linalg.solve_triangular(anchor.scale_tril, (others.location - anchor.location).T, upper=False).T
    identity = torch.eye(tril.shape[-1], dtype=tril.dtype)
    inverse = inverse_of_lower(tril)
    precision = inverse.mT @ inverse
    slope = (precision @ shift[..., None])[..., 0]
    constant = -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * (slope * shift).sum(-1)
    rows, columns = index_pairs(tril.shape[-1])
    quadratic = (identity - precision)[:, rows, columns] * (1.0 - 0.5 * (rows == columns).to(fixed))
    return torch.cat([slope, quadratic, fixed, pairs], 1).T, constant


def log_tilted_integral(factor: LocalFactor, slope: Tensor, quadratic: Tensor) -> Tensor:
    """Log integrals (n, b) of Gaussian factors times exp(slope' xi + quadratic' (products of xi)); nan if infinite.

    The Cholesky factorisation runs entry by entry over all people and population values together, in a sixth of the
    time of a factorisation of one matrix after the other.

    Parameters
    ----------
    factor : LocalFactor
    slope : Tensor, shape (n, k, b)
    quadratic : Tensor, shape (pairs, b)
    """
    precision = factor.precision_tril @ factor.precision_tril.mT
    pull = (precision @ factor.mean[..., None])[..., 0]
    value = -factor.log_det[:, None] - 0.5 * (pull * factor.mean).sum(-1)[:, None]
    pairs = {
        pair: place
        for place, pair in enumerate(zip(*(part.tolist() for part in index_pairs(slope.shape[1])), strict=True))
    }
    cells: dict[tuple[int, int], Tensor] = {}
    solved: list[Tensor] = []
    for j in range(slope.shape[1]):
        pivot = precision[:, j, j, None] - 2.0 * quadratic[pairs[j, j]]
        right = pull[:, j, None] + slope[:, j]
        for m in range(j):
            pivot = pivot - cells[j, m].square()
            right = right - cells[j, m] * solved[m]
        inverse = pivot.rsqrt()
        solved.append(right * inverse)
        value = value + inverse.log() + 0.5 * solved[j].square()
        for i in range(j + 1, slope.shape[1]):
            cell = precision[:, i, j, None] - quadratic[pairs[i, j]]
            for m in range(j):
                cell = cell - cells[i, m] * cells[j, m]
            cells[i, j] = cell * inverse
    return value
