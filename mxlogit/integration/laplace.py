r"""Polish: damped Newton steps to the mode of each person's whitened tastes, batched over people.

The local target is :math:`\log P(y_n | \alpha, g(\zeta + L\xi)) - \tfrac12 |\xi|^2`. In whitened
coordinates its precision is :math:`I + L' F L` with F the logit information, so the Cholesky factorisation
cannot fail however singular Omega is. For mixing distributions other than the normal the precision is the
Gauss-Newton one, positive definite as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.model.likelihood import Scratch, by_pieces, compute_odds, panel_derivatives
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import PanelDifferences, Panels
from mxlogit.model.parameters import Population
from mxlogit.model.triangles import inverse_of_lower
from mxlogit.model.wtp_space import coefficient_jacobian, to_coefficients

# A candidate counts as an improvement unless it loses more than rounding can explain.
_ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}
# Utilities (rows x draws) that are held at once: several times those of a chunk of people (64 MB in single precision),
# so that only single people with panels of ten thousand rows and more are met a part of the draws after the other.
_MOST_UTILITIES = 16_000_000
# Kinds of flows (`mxlogit.guide.flows`); here, because settings must be checked without Pyro's import time.
FLOWS = ("affine", "spline", "autoregressive")


class Warp(Protocol):
    """An invertible map of the whitened coordinates of local factors, of its own for every person."""

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, k, s) of base points, and log determinants (n, s) of the derivative."""
        ...

    def inverse(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Base points (n, k, s) of images, and log determinants (n, s) of the derivative of `forward` at them."""
        ...

    def frozen(self) -> Warp:
        """Return the same, through whose weights no gradients go."""
        ...


@dataclass(frozen=True)
class LocalFactor:
    """Gaussian approximation of each person's whitened tastes, N(mean, R R'), and perhaps a flow on it.

    Attributes
    ----------
    mean : Tensor, shape (n, k)
    root : Tensor, shape (n, k, k)
        R, upper triangular: R R' is the covariance.
    precision_tril : Tensor, shape (n, k, k)
        Inverse of R', lower triangular: the Cholesky factor of the precision.
    log_det : Tensor, shape (n,)
        log |R|.
    warp : Warp or None
        What stands between base points and the Gaussian.
    """

    mean: Tensor
    root: Tensor
    precision_tril: Tensor
    log_det: Tensor
    warp: Warp | None = None

    @classmethod
    def of(cls, parts: tuple[Tensor, ...]) -> LocalFactor:
        """Return the factor without a flow whose four tensors these are."""
        mean, root, precision_tril, log_det = parts
        return cls(mean, root, precision_tril, log_det)

    @property
    def covariance(self) -> Tensor:
        """R R', shape (n, k, k)."""
        return self.root @ self.root.mT

    def frozen(self) -> LocalFactor:
        """Return the same, through which no gradients go."""
        warp = None if self.warp is None else self.warp.frozen()
        return LocalFactor(
            self.mean.detach(), self.root.detach(), self.precision_tril.detach(), self.log_det.detach(), warp
        )


class Flow(Protocol):
    """What gives every person a warp.

    Attributes
    ----------
    tail : int
        Degrees of freedom of the Student-t base points that it is for.
    defensive : bool
        Whether some draws must still come from the prior: where the flow leaves people with uneven weights.
    """

    tail: int
    defensive: bool

    def attach(self, factor: LocalFactor, population: Population, panel: Panels, mixing: Mixing) -> Warp:
        """Warps of the factors of the people of a panel."""
        ...


@dataclass(frozen=True)
class _LocalPoint:
    """The local target at xi: value (n,), gradient (n, k), precision P P' and its root's inverse R = P'^-1."""

    xi: Tensor
    value: Tensor
    gradient: Tensor
    precision_tril: Tensor
    root: Tensor

    def newton_step(self) -> Tensor:
        return (self.root @ (self.root.mT @ self.gradient[..., None]))[..., 0]

    def decrement(self, step: Tensor) -> Tensor:
        """Gain (n,), in nats, that the quadratic model promises of half the way that a Newton step goes."""
        return 0.5 * (step * self.gradient).sum(-1)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.xi, self.value, self.gradient, self.precision_tril, self.root

    def take(self, rows: Tensor) -> _LocalPoint:
        return _LocalPoint(*(part[rows] for part in self._parts()))

    def put(self, rows: Tensor, other: _LocalPoint) -> None:
        """Overwrite some rows."""
        for mine, new in zip(self._parts(), other._parts(), strict=True):
            mine[rows] = new


def fixed_utility(population: Population, panel: PanelDifferences) -> Tensor:
    """Utility differences from the fixed coefficients, shape (n, r)."""
    n_fixed = population.fixed.shape[0]
    if n_fixed == 0:
        return panel.values.new_zeros(panel.values.shape[:2])
    return panel.values[..., :n_fixed] @ population.fixed


def drawn_utility(
    tastes: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing, scratch: Scratch | None = None
) -> Tensor:
    """Utility differences (n, r, s) at s taste vectors of each person, (n, k, s)."""
    fixed = population.fixed[:, None].expand(len(tastes), -1, tastes.shape[-1])
    coefficients = to_coefficients(torch.cat([fixed, tastes], 1), mixing.scale_position, dim=1)
    if scratch is None:
        return torch.bmm(panel.values, coefficients)
    shape = (*panel.values.shape[:2], tastes.shape[-1])
    return torch.bmm(panel.values, coefficients, out=scratch.take(shape, panel.values))


def whitened_utility(xi: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing) -> Tensor:
    """Utility differences (n, r, s) at s whitened tastes of each person, (n, k, s).

    Where tastes are the latents, attributes are multiplied by L once instead of every draw.
    """
    n_fixed = population.fixed.shape[0]
    if mixing.is_identity and mixing.scale_position is None:
        values = panel.values[..., n_fixed:]
        mean = fixed_utility(population, panel) + values @ population.location
        return torch.baddbmm(mean[..., None], values @ population.scale_tril, xi)
    latent = population.location[:, None] + population.scale_tril @ xi
    tastes = mixing.tastes(latent.mT, population.location, population.scale).mT
    return drawn_utility(tastes, population, panel, mixing)


def whitened_log_prob(xi: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing) -> Tensor:
    """Log P(y_n | xi), shape (n, s), at s whitened tastes of each person, (n, k, s)."""
    parts = [
        compute_odds(whitened_utility(part, population, panel, mixing), panel).log_prob
        for part in xi.split(draws_at_once(panel), -1)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def drawn_log_prob(
    tastes: Tensor, population: Population, panel: Panels, mixing: Mixing, scratch: Scratch | None = None
) -> Tensor:
    """Log P(y_n | tastes), shape (n, s), at s taste vectors of each person, (n, k, s)."""

    def log_prob(place: slice | Tensor, piece: PanelDifferences) -> tuple[Tensor]:
        parts = [
            compute_odds(drawn_utility(part, population, piece, mixing, scratch), piece).log_prob
            for part in tastes[place].split(draws_at_once(piece), -1)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1),)

    return by_pieces(panel, log_prob)[0]


def draws_at_once(panel: PanelDifferences) -> int:
    """Draws whose utilities are held at once: all that are ever taken, but for people with very many rows."""
    return max(1, _MOST_UTILITIES // max(1, len(panel) * panel.n_rows))


def _evaluate(xi: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing) -> _LocalPoint:
    latent = population.location + xi @ population.scale_tril.mT
    taste, loading = latent, population.scale_tril
    if not mixing.is_identity:
        value = mixing.evaluate(latent, population.location, population.scale)
        taste, loading = value.taste, value.slope[..., None] * population.scale_tril
    utility = drawn_utility(taste[..., None], population, panel, mixing)[..., 0]
    n_fixed = population.fixed.shape[0]
    if mixing.scale_position is None:
        derivatives = panel_derivatives(utility, panel, slice(n_fixed, None))
    else:
        derivatives = panel_derivatives(utility, panel)
        parameters = torch.cat([population.fixed.expand(len(xi), -1), taste], -1)[..., None]
        loading = coefficient_jacobian(parameters, mixing.scale_position)[:, :, n_fixed:, 0] @ loading
    gradient = _pull(derivatives.gradient[:, None], loading)[:, 0] - xi
    precision = _pull(_pull(derivatives.information, loading).mT, loading)
    precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
    tril = torch.linalg.cholesky_ex(precision).L
    root = inverse_of_lower(tril).mT
    return _LocalPoint(xi, derivatives.log_prob - 0.5 * xi.square().sum(-1), gradient, tril, root.contiguous())


def _pull(left: Tensor, loading: Tensor) -> Tensor:
    """Product (n, a, k) of (n, a, m) with a loading of each person (n, m, k), or of everybody (m, k) as one product."""
    if loading.dim() == 3:
        return left @ loading
    return (left.flatten(0, 1) @ loading).unflatten(0, left.shape[:2])


def polish(
    start: Tensor,
    population: Population,
    panel: Panels,
    mixing: Mixing,
    steps: int,
    tolerance: float = 1e-4,
) -> LocalFactor:
    """Take damped Newton steps from ``start`` and return the Laplace factor.

    Everybody is evaluated once, then those whose Newton decrement is not yet small: who improved takes the candidate
    and a new Newton step, the others halve theirs. The last step, being small, is taken without another evaluation,
    so that the mode's error is of the order of the square of the tolerance; the covariance is that of one step before.

    Parameters
    ----------
    start : Tensor, shape (n, k)
        Whitened tastes.
    population : Population
        In the dtype of the panel.
    panel : PanelDifferences or RaggedPanels
    mixing : Mixing
    steps : int
        Largest number of evaluations after the first.
    tolerance : float
        Half the squared Newton decrement (nats) below which a person is done.

    Returns
    -------
    LocalFactor
    """

    def parts(place: slice | Tensor, piece: PanelDifferences) -> tuple[Tensor, ...]:
        return _polish(start[place], population, piece, mixing, steps, tolerance)

    return LocalFactor.of(by_pieces(panel, parts))


def _polish(
    start: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing, steps: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, root, Cholesky factor of the precision and log determinant of people with a dense array."""
    point = _evaluate(start.clone(), population, panel, mixing)
    step = point.newton_step()
    far = point.decrement(step) >= tolerance
    for _ in range(steps):
        if not bool(far.any()):
            break
        rows = torch.nonzero(far)[:, 0]
        before = point.take(rows)
        candidate = _evaluate(before.xi + step[rows], population, panel.take(rows), mixing)
        slack = _ROUNDING[start.dtype] * (1.0 + before.value.abs())
        improved = candidate.value >= before.value - slack
        point.put(rows[improved], candidate.take(improved))
        step[rows] = torch.where(improved[:, None], candidate.newton_step(), 0.5 * step[rows])
        far[rows] = point.decrement(step)[rows] >= tolerance
    mean = torch.where(far[:, None], point.xi, point.xi + step)
    log_det = -point.precision_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mean, point.root, point.precision_tril, log_det


def follow(start: Tensor, population: Population, panel: PanelDifferences, mixing: Mixing) -> LocalFactor:
    """Follow modes to a nearby population by one full Newton step, from a single evaluation.

    For populations so close to where ``start`` was polished that a step cannot fail; the covariance is
    that of the starting point.
    """
    return polish(start, population, panel, mixing, 0, math.inf)
