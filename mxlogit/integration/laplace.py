r"""Laplace factors: damped Newton steps to the mode of each person's whitened tastes, batched over people.

The local target is :math:`\log P(y_n | \alpha, g(\zeta + L\xi)) - \tfrac12 |\xi|^2`. In whitened
coordinates its precision is :math:`I + L' F L` with F the logit information, so the Cholesky factorisation
cannot fail however singular Omega is. For mixing distributions other than the normal it is the Gauss-Newton
precision, which is positive definite as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import Scratch, by_pieces, compute_odds, panel_derivatives
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.model.triangles import inverse_of_lower
from mxlogit.model.wtp_space import coefficient_jacobian

# Relative loss of log density up to which a Newton candidate is accepted: what rounding can explain.
_ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}
# Largest number of utilities (rows x draws) held at once, 64 MB in single precision: several times a chunk of people,
# so that draws are processed in parts only for single people with panels of ten thousand rows and more.
_MOST_UTILITIES = 16_000_000
# Most halvings of the Newton step of people none of whose candidates was accepted within the steps: a step of a million
# shrinks to one.
_MORE_HALVINGS = 20
# Kinds of flows (`mxlogit.guide.flows`), listed here because settings are checked before Pyro is imported.
FLOWS = ("affine", "spline", "autoregressive")


class Warp(Protocol):
    """An invertible map of the whitened coordinates of local factors, one for each person."""

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, k, s) of base points, and log determinants (n, s) of the derivative."""
        ...

    def inverse(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Base points (n, k, s) of images, and log determinants (n, s) of the derivative of `forward` at them."""
        ...

    def frozen(self) -> Warp:
        """Return the same map with detached weights."""
        ...


@dataclass(frozen=True)
class LocalFactor:
    """Gaussian approximation N(mean, R R') of each person's whitened tastes, optionally with a flow.

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
        Map applied to base points before the affine map of the Gaussian.
    """

    mean: Tensor
    root: Tensor
    precision_tril: Tensor
    log_det: Tensor
    warp: Warp | None = None

    @classmethod
    def of(cls, parts: tuple[Tensor, ...]) -> LocalFactor:
        """Build a factor without a flow from its four tensors."""
        mean, root, precision_tril, log_det = parts
        return cls(mean, root, precision_tril, log_det)

    @classmethod
    def of_population(cls, like: Tensor) -> LocalFactor:
        """Whitened tastes in the population, whoever the people: standard normal ones, as many as ``like`` (n, k)."""
        identity = torch.eye(like.shape[1]).to(like).expand(len(like), -1, -1)
        return cls(torch.zeros_like(like), identity, identity, like.new_zeros(len(like)))

    @property
    def covariance(self) -> Tensor:
        """R R', shape (n, k, k)."""
        return self.root @ self.root.mT

    def to(self, dtype: torch.dtype) -> LocalFactor:
        """Return the Gaussian in another floating point type."""
        mean, root, precision_tril, log_det = (
            x.to(dtype) for x in (self.mean, self.root, self.precision_tril, self.log_det)
        )
        return LocalFactor(mean, root, precision_tril, log_det, self.warp)

    def frozen(self) -> LocalFactor:
        """Return the same factor with detached tensors."""
        warp = None if self.warp is None else self.warp.frozen()
        return LocalFactor(
            self.mean.detach(), self.root.detach(), self.precision_tril.detach(), self.log_det.detach(), warp
        )


class Flow(Protocol):
    """A conditional flow: supplies the warp of each person.

    Attributes
    ----------
    degrees_of_freedom : int
        Degrees of freedom of the Student-t base points that the flow was trained on.
    defensive : bool
        Whether some draws must still come from the prior, because weights of some people are uneven under the flow.
    """

    degrees_of_freedom: int
    defensive: bool

    def attach(self, factor: LocalFactor, population: PopulationParameters, panel: Panels, mixing: Mixing) -> Warp:
        """Warps of the factors of the people of a panel."""
        ...


@dataclass(frozen=True)
class _LocalPoint:
    """The local target at xi: value (n,), gradient (n, k), Cholesky factor P of the precision, and R = P'^-1."""

    xi: Tensor
    value: Tensor
    gradient: Tensor
    precision_tril: Tensor
    root: Tensor

    def newton_step(self) -> Tensor:
        return (self.root @ (self.root.mT @ self.gradient[..., None]))[..., 0]

    def decrement(self, step: Tensor) -> Tensor:
        """Half the squared Newton decrement (n,), in nats: the gain predicted by the quadratic model."""
        return 0.5 * (step * self.gradient).sum(-1)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.xi, self.value, self.gradient, self.precision_tril, self.root

    def take(self, rows: Tensor) -> _LocalPoint:
        return _LocalPoint(*(part[rows] for part in self._parts()))

    def put(self, rows: Tensor, other: _LocalPoint) -> None:
        """Overwrite some rows."""
        for mine, new in zip(self._parts(), other._parts(), strict=True):
            mine[rows] = new


def whitened_log_prob(xi: Tensor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing) -> Tensor:
    """Log P(y_n | xi), shape (n, s), at s whitened tastes of each person, (n, k, s)."""
    people = PersonTastes.of(population, mixing, panel)
    parts = [
        compute_odds(people.whitened_utility(part, panel), panel).log_prob
        for part in xi.split(draws_at_once(panel), -1)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def drawn_log_prob(
    tastes: Tensor, population: PopulationParameters, panel: Panels, mixing: Mixing, scratch: Scratch | None = None
) -> Tensor:
    """Log P(y_n | tastes), shape (n, s), at s taste vectors of each person, (n, k, s)."""
    people = PersonTastes.of(population, mixing, panel)

    def log_prob(place: slice | Tensor, piece: PanelDifferences) -> tuple[Tensor]:
        parts = [
            compute_odds(people.utility(part, piece, scratch), piece).log_prob
            for part in tastes[place].split(draws_at_once(piece), -1)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1),)

    return by_pieces(panel, log_prob)[0]


def draws_at_once(panel: PanelDifferences) -> int:
    """Number of draws whose utilities are held at once; fewer than all only for panels with very many rows."""
    return max(1, _MOST_UTILITIES // max(1, len(panel) * panel.n_rows))


def _evaluate(xi: Tensor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing) -> _LocalPoint:
    people, loading = PersonTastes.of(population, mixing, panel), population.scale_tril
    value = people.values_of_each(xi)
    if not mixing.is_identity:
        loading = value.slope[..., None] * loading
    parameters = people.parameters(value.taste[..., None])
    utility = people.utility_of(parameters, panel)[..., 0]
    n_fixed = people.n_fixed
    if mixing.scale_position is None:
        derivatives = panel_derivatives(utility, panel, slice(n_fixed, None))
    else:
        derivatives = panel_derivatives(utility, panel)
        loading = coefficient_jacobian(parameters, mixing.scale_position)[:, :, n_fixed:, 0] @ loading
    gradient = _pull(derivatives.gradient[:, None], loading)[:, 0] - xi
    precision = _pull(_pull(derivatives.information, loading).mT, loading)
    precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
    tril = torch.linalg.cholesky_ex(precision).L
    root = inverse_of_lower(tril).mT
    return _LocalPoint(xi, derivatives.log_prob - 0.5 * xi.square().sum(-1), gradient, tril, root.contiguous())


def _pull(left: Tensor, loading: Tensor) -> Tensor:
    """Product (n, a, k) of (n, a, m) with loadings per person (n, m, k), or with one shared loading (m, k)."""
    if loading.dim() == 3:
        return left @ loading
    return (left.flatten(0, 1) @ loading).unflatten(0, left.shape[:2])


def polish(
    start: Tensor,
    population: PopulationParameters,
    panel: Panels,
    mixing: Mixing,
    steps: int,
    tolerance: float = 1e-4,
) -> LocalFactor:
    """Take damped Newton steps from ``start`` and return the Laplace factor.

    All people are evaluated once, then only people whose Newton decrement is not yet small: an improved candidate is
    accepted and a new Newton step computed, otherwise the step is halved; people none of whose candidates were accepted
    have more of them. The last step, being small, is taken without
    another evaluation, so that the error of the mode is of the order of the squared tolerance; the covariance is the
    one before that step.

    Parameters
    ----------
    start : Tensor, shape (n, k)
        Whitened tastes.
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences or RaggedPanels
    mixing : Mixing
    steps : int
        Largest number of evaluations after the first.
    tolerance : float
        Half the squared Newton decrement (nats) below which a person has converged.

    Returns
    -------
    LocalFactor
    """

    def parts(place: slice | Tensor, piece: PanelDifferences) -> tuple[Tensor, ...]:
        return _polish(start[place], population, piece, mixing, steps, tolerance)

    return LocalFactor.of(by_pieces(panel, parts))


def _polish(
    start: Tensor,
    population: PopulationParameters,
    panel: PanelDifferences,
    mixing: Mixing,
    steps: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, root, Cholesky factor of the precision and log determinant for a dense panel."""
    point = _evaluate(start.clone(), population, panel, mixing)
    step = point.newton_step()
    far = point.decrement(step) >= tolerance
    stuck = far.clone()
    for number in range(steps + _MORE_HALVINGS if steps else 0):
        # Whoever has not moved at all would be drawn around an arbitrary point.
        rows = torch.nonzero(far if number < steps else far & stuck)[:, 0]
        if len(rows) == 0:
            break
        before = point.take(rows)
        candidate = _evaluate(before.xi + step[rows], population, panel.take(rows), mixing)
        slack = _ROUNDING[start.dtype] * (1.0 + before.value.abs())
        improved = candidate.value >= before.value - slack
        point.put(rows[improved], candidate.take(improved))
        stuck[rows[improved]] = False
        step[rows] = torch.where(improved[:, None], candidate.newton_step(), 0.5 * step[rows])
        far[rows] = point.decrement(step)[rows] >= tolerance
    mean = torch.where(far[:, None], point.xi, point.xi + step)
    log_det = -point.precision_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return mean, point.root, point.precision_tril, log_det


def follow(start: Tensor, population: PopulationParameters, panel: PanelDifferences, mixing: Mixing) -> LocalFactor:
    """Follow modes to a nearby population value by one full Newton step, from a single evaluation.

    The population value must be so close to the one of ``start`` that a step cannot fail; the covariance is the one at
    the starting point.
    """
    return polish(start, population, panel, mixing, 0, math.inf)
