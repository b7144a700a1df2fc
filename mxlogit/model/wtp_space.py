r"""Willingness-to-pay space: conversion of parameters in money to coefficients in utils.

With a scale column c (a cost) the parameters of the other columns are amounts of money :math:`\omega_k`, and

.. math:: U = \beta_c (x_c - \sum_k \omega_k x_k), \qquad \beta_k = -\beta_c\,\omega_k

(Train and Weeks 2005, in Scarpa and Alberini, Applications of Simulation Methods in Environmental and
Resource Economics, chapter 1). :math:`\omega_k` is positive if people pay for more of attribute k;
:math:`\beta_c` keeps its sign. This module handles tensors only; if ``position`` is None, the parameters are
the coefficients.
"""

from __future__ import annotations

from torch import Tensor


def to_coefficients(parameters: Tensor, position: int | None, dim: int = -1) -> Tensor:
    """Convert parameters to coefficients of utility; both have K entries along ``dim``."""
    if position is None:
        return parameters
    scale = parameters.narrow(dim, position, 1)
    coefficients = -scale * parameters
    coefficients.narrow(dim, position, 1).copy_(scale)
    return coefficients


def pull_back(gradient: Tensor, parameters: Tensor, position: int | None) -> Tensor:
    """Convert a gradient with respect to the coefficients to one with respect to the parameters.

    Parameters
    ----------
    gradient, parameters : Tensor, shape (n, K, s)
        Gradient with respect to the coefficients, and the parameters.
    position : int or None
        Position of the scale column.

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
    """Jacobian (n, K, K, s) of the coefficients (second axis) with respect to the parameters (third axis)."""
    n, k, s = parameters.shape
    jacobian = parameters.new_zeros(n, k, k, s)
    for i in _others(k, position):
        jacobian[:, i, i] = -parameters[:, position]
        jacobian[:, i, position] = -parameters[:, i]
    jacobian[:, position, position] = 1.0
    return jacobian


def velocity(parameters: Tensor, moves: Tensor, position: int | None) -> Tensor:
    """Derivative of the coefficients (n, K, s) along a curve on which the parameters (n, K, s) have this derivative."""
    if position is None:
        return moves
    at = slice(position, position + 1)
    result = -(moves[:, at] * parameters + parameters[:, at] * moves)
    result[:, at] = moves[:, at]
    return result


def acceleration(parameters: Tensor, one: Tensor, other: Tensor, second: Tensor, position: int | None) -> Tensor:
    """Mixed second derivative of the coefficients (n, K, s) along a surface of parameters.

    Parameters
    ----------
    parameters, one, other, second : Tensor, shape (n, K, s)
        Parameters, their derivatives in two directions, and their mixed second derivative.
    position : int or None
        Position of the scale column.
    """
    result = velocity(parameters, second, position)
    if position is None:
        return result
    at = slice(position, position + 1)
    products = one[:, at] * other + other[:, at] * one
    products[:, at] = 0.0
    return result - products


def _others(k: int, position: int) -> list[int]:
    return [i for i in range(k) if i != position]
