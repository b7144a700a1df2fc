r"""Gradients of Gaussian expectations: the identities of Bonnet and of Price, and Hessians by reparameterisation.

For x ~ N(mu, C), with R R' = C and x = mu + R e,

.. math::
    \partial_\mu E f = E \nabla f, \quad \partial_C E f = \tfrac12 E \nabla^2 f, \quad
    \partial_R E f = E \nabla f\, e^\top = E[\nabla^2 f] R,

    \partial^2_{\mu\mu} E f = E \nabla^2 f, \quad
    \partial^2 E f [(\dot\mu, \dot R)] = E\, (\dot\mu + \dot R e)^\top \nabla^2 f\, (\dot\mu + \dot R e).

Sources: Bonnet (1964), Price (1958, IRE Transactions on Information Theory 4); Rezende, Mohamed and Wierstra (2014,
ICML); Fan, Wang, Beck, Kwok and Heller (2015, NeurIPS, arXiv 1509.02866).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GaussianDerivatives:
    """Derivatives of an expectation E f(x), x ~ N(mean, R R').

    Attributes
    ----------
    by_mean : Tensor, shape (d,)
        Gradient with respect to the mean (Bonnet).
    by_covariance : Tensor, shape (d, d)
        Symmetric gradient with respect to the covariance (Price).
    by_root : Tensor, shape (d, d)
        Gradient with respect to R, E grad f e', from first derivatives of f only.
    """

    by_mean: Tensor
    by_covariance: Tensor
    by_root: Tensor


def derivatives(
    function: Function, mean: Tensor, root: Tensor, noise: Tensor, weights: Tensor | None = None
) -> GaussianDerivatives:
    """Estimate derivatives of an expectation from draws, or compute them by quadrature.

    Parameters
    ----------
    function : callable
        Twice differentiable map from one vector (d,) to a scalar.
    mean : Tensor, shape (d,)
    root : Tensor, shape (d, d)
    noise : Tensor, shape (m, d)
        Standard normal draws, or quadrature nodes.
    weights : Tensor, shape (m,), optional
        Quadrature weights, summing to one; equal by default.

    Returns
    -------
    GaussianDerivatives
    """
    share = noise.new_full((len(noise),), 1.0 / len(noise)) if weights is None else weights
    points = mean + noise @ root.T
    slopes = torch.func.vmap(torch.func.grad(function))(points)
    bends = torch.func.vmap(torch.func.hessian(function))(points)
    return GaussianDerivatives(
        share @ slopes,
        0.5 * torch.einsum("m,mij->ij", share, bends),
        torch.einsum("m,mi,mj->ij", share, slopes, noise),
    )


def second_derivative(
    function: Function,
    mean: Tensor,
    root: Tensor,
    noise: Tensor,
    direction: tuple[Tensor, Tensor],
    weights: Tensor | None = None,
) -> Tensor:
    """Second derivative of the expectation along a direction of mean and root, by Hessian-vector products.

    Parameters
    ----------
    function, mean, root, noise, weights
        Arguments of `derivatives`.
    direction : tuple of (Tensor of shape (d,), Tensor of shape (d, d))
        Directions of the mean and of the root.

    Returns
    -------
    Tensor, scalar
    """
    share = noise.new_full((len(noise),), 1.0 / len(noise)) if weights is None else weights
    moves = direction[0] + noise @ direction[1].T
    points = mean + noise @ root.T

    def along(point: Tensor, move: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(torch.func.grad(function), (point,), (move,))[1]
        return move @ product

    return share @ torch.func.vmap(along)(points, moves)


def natural_update(tril: Tensor, mean_gradient: Tensor, precision: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """One natural-gradient step of a Gaussian, in the coordinates that it whitens.

    With P = E[-Hess log p] whitened and G = P - I, the new precision is I + r G, or, if that is not safely positive
    definite, I + r G + r^2/2 G^2 = (I + (I + r G)^2) / 2, which always is (Lin, Schmidt and Khan 2020, ICML).

    Parameters
    ----------
    tril : Tensor, shape (d, d)
        Cholesky factor of the covariance.
    mean_gradient : Tensor, shape (d,)
        Gradient E grad log p, whitened.
    precision : Tensor, shape (d, d)
        Whitened precision P.
    rate : float
        Step size r.

    Returns
    -------
    tuple of (Tensor of shape (d,), Tensor of shape (d, d))
        Step of the mean in whitened coordinates, and the new Cholesky factor.
    """
    identity = torch.eye(len(precision), dtype=precision.dtype)
    excess = precision - identity
    updated = identity + rate * excess
    if float(torch.linalg.eigvalsh(updated).amin()) < 0.2:
        updated = updated + 0.5 * rate**2 * excess @ excess
    covariance = torch.linalg.inv(updated)
    covariance = 0.5 * (covariance + covariance.T)
    return rate * covariance @ mean_gradient, torch.linalg.cholesky(tril @ covariance @ tril.T)
