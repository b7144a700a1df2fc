r"""Willingness-to-pay space: parameters in money, coefficients in utils.

With a scale column c (a cost) the parameters of the other columns are amounts of money :math:`\omega_k`, and

.. math:: U = \beta_c (x_c - \sum_k \omega_k x_k), \qquad \beta_k = -\beta_c\,\omega_k

(Train and Weeks 2005, in Scarpa and Alberini, Applications of Simulation Methods in Environmental and
Resource Economics, chapter 1). :math:`\omega_k` is positive where people pay for more of attribute k,
:math:`\beta_c` keeps its sign. This module knows tensors only: where ``position`` is None, parameters are
the coefficients.
"""

from __future__ import annotations

from torch import Tensor


def to_coefficients(parameters: Tensor, position: int | None, dim: int = -1) -> Tensor:
    """Coefficients of the utility from parameters; both have the K columns along ``dim``."""
    if position is None:
        return parameters
    scale = parameters.narrow(dim, position, 1)
    coefficients = -scale * parameters
    coefficients.narrow(dim, position, 1).copy_(scale)
    return coefficients


def pull_back(gradient: Tensor, parameters: Tensor, position: int | None) -> Tensor:
    """Gradient with respect to the parameters from that with respect to the coefficients.

    Parameters
    ----------
    gradient, parameters : Tensor, shape (n, K, s)
    position : int or None
        Place of the scale column.

    Returns
    -------
    Tensor, shape (n, K, s)
    """
    if position is None:
        return gradient
    result = -parameters[:, position, None] * gradient
    others = _others(gradient.shape[1], position)
    result[:, position] = gradient[:, position] - (parameters * gradient)[:, others].sum(1)
    return result


def coefficient_jacobian(parameters: Tensor, position: int) -> Tensor:
    """Derivatives of the coefficients (second axis) with respect to the parameters (third), (n, K, K, s)."""
    n, k, s = parameters.shape
    jacobian = parameters.new_zeros(n, k, k, s)
    for i in _others(k, position):
        jacobian[:, i, i] = -parameters[:, position]
        jacobian[:, i, position] = -parameters[:, i]
    jacobian[:, position, position] = 1.0
    return jacobian


def _others(k: int, position: int) -> list[int]:
    return [i for i in range(k) if i != position]
