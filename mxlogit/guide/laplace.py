r"""Polish: damped Newton steps to the mode of each person's whitened tastes, batched over people.

The local target is :math:`\log P(y_n | \alpha, g(\zeta + L\xi)) - \tfrac12 |\xi|^2`. In whitened
coordinates its precision is :math:`I + L' F L` with F the logit information, so the Cholesky factorisation
cannot fail however singular Omega is. For mixing distributions other than the normal the precision is the
Gauss-Newton one, positive definite as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.likelihood import PanelDifferences, panel_derivatives
from mxlogit.mixing import Mixing
from mxlogit.money import coefficient_jacobian
from mxlogit.parameters import Population

# A candidate counts as an improvement unless it loses more than rounding can explain.
_ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}


@dataclass(frozen=True)
class LocalFactor:
    """Gaussian approximation of each person's whitened tastes, N(mean, R R').

    Attributes
    ----------
    mean : Tensor, shape (n, k)
    root : Tensor, shape (n, k, k)
        R, upper triangular: R R' is the covariance.
    precision_tril : Tensor, shape (n, k, k)
        Inverse of R', lower triangular: the Cholesky factor of the precision.
    log_det : Tensor, shape (n,)
        log |R|.
    """

    mean: Tensor
    root: Tensor
    precision_tril: Tensor
    log_det: Tensor

    @property
    def covariance(self) -> Tensor:
        """R R', shape (n, k, k)."""
        return self.root @ self.root.mT


@dataclass(frozen=True)
class _LocalPoint:
    """The local target at xi: value (n,), gradient (n, k), Cholesky factor of the precision (n, k, k)."""

    xi: Tensor
    value: Tensor
    gradient: Tensor
    precision_tril: Tensor

    def newton_step(self) -> Tensor:
        return torch.cholesky_solve(self.gradient[..., None], self.precision_tril)[..., 0]

    def replace_rows(self, other: _LocalPoint, rows: Tensor) -> _LocalPoint:
        """Take the rows of ``other`` where ``rows`` is True."""
        return _LocalPoint(
            torch.where(rows[:, None], other.xi, self.xi),
            torch.where(rows, other.value, self.value),
            torch.where(rows[:, None], other.gradient, self.gradient),
            torch.where(rows[:, None, None], other.precision_tril, self.precision_tril),
        )


def fixed_utility(population: Population, panel: PanelDifferences) -> Tensor:
    """Utility differences from the fixed coefficients, shape (n, r)."""
    n_fixed = population.fixed.shape[0]
    if n_fixed == 0:
        return panel.values.new_zeros(panel.values.shape[:2])
    return panel.values[..., :n_fixed] @ population.fixed


def drawn_utility(tastes: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing) -> Tensor:
    """Utility differences (n, r, s) at s taste vectors of each person, (n, s, k)."""
    if mixing.scale_position is not None:
        return torch.bmm(panel.values, mixing.coefficients(population.fixed, tastes).mT)
    utility = torch.bmm(panel.values[..., population.fixed.shape[0] :], tastes.mT)
    if population.fixed.shape[0]:
        utility += fixed_utility(population, panel)[..., None]
    return utility


def _evaluate(xi: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing, base: Tensor) -> _LocalPoint:
    n_fixed = population.fixed.shape[0]
    latent = population.location + xi @ population.scale_tril.mT
    value = mixing.evaluate(latent, population.location, population.scale)
    loading = value.slope[..., None] * population.scale_tril
    if mixing.scale_position is None:
        utility = base + torch.bmm(panel.values[..., n_fixed:], value.taste[..., None])[..., 0]
        derivatives = panel_derivatives(utility, panel, slice(n_fixed, None))
    else:
        utility = drawn_utility(value.taste[:, None], population, panel, mixing)[..., 0]
        derivatives = panel_derivatives(utility, panel)
        parameters = torch.cat([population.fixed.expand(len(xi), -1), value.taste], -1)[..., None]
        loading = coefficient_jacobian(parameters, mixing.scale_position)[:, :, n_fixed:, 0] @ loading
    gradient = (loading.mT @ derivatives.gradient[..., None])[..., 0] - xi
    precision = loading.mT @ derivatives.information @ loading
    precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
    tril = torch.linalg.cholesky_ex(precision).L
    return _LocalPoint(xi, derivatives.log_prob - 0.5 * xi.square().sum(-1), gradient, tril)


def polish(
    start: Tensor,
    population: Population,
    panel: PanelDifferences,
    mixing: Mixing,
    steps: int,
    tolerance: float = 1e-7,
) -> LocalFactor:
    """Take damped Newton steps from ``start`` and return the Laplace factor at the last point.

    Each iteration evaluates everybody once: people whose candidate improved take it and a new Newton
    step, the others halve their step. It stops early when every Newton decrement is below ``tolerance``.

    Parameters
    ----------
    start : Tensor, shape (n, k)
        Whitened tastes.
    population : Population
        In the dtype of the panel.
    panel : PanelDifferences
    mixing : Mixing
    steps : int
        Largest number of evaluations after the first.
    tolerance : float
        Half the squared Newton decrement (nats) at which a person is done.

    Returns
    -------
    LocalFactor
    """
    base = fixed_utility(population, panel)
    point = _evaluate(start, population, panel, mixing, base)
    step = point.newton_step()
    for _ in range(steps):
        if 0.5 * float((step * point.gradient).sum(-1).amax()) < tolerance:
            break
        candidate = _evaluate(point.xi + step, population, panel, mixing, base)
        slack = _ROUNDING[start.dtype] * (1.0 + point.value.abs())
        improved = candidate.value >= point.value - slack
        point = point.replace_rows(candidate, improved)
        step = torch.where(improved[:, None], point.newton_step(), 0.5 * step)
    return _laplace_factor(point)


def follow(start: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing) -> LocalFactor:
    """Follow modes to a nearby population by one full Newton step, from a single evaluation.

    For populations so close to where ``start`` was polished that a step cannot fail; the covariance is
    that of the starting point.
    """
    point = _evaluate(start, population, panel, mixing, fixed_utility(population, panel))
    return replace(_laplace_factor(point), mean=start + point.newton_step())


def _laplace_factor(point: _LocalPoint) -> LocalFactor:
    identity = torch.eye(point.xi.shape[-1], dtype=point.xi.dtype, device=point.xi.device)
    inverse = torch.linalg.solve_triangular(point.precision_tril, identity.expand_as(point.precision_tril), upper=False)
    log_det = -point.precision_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return LocalFactor(point.xi, inverse.mT.contiguous(), point.precision_tril, log_det)
