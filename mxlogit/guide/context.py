"""Context vector of a person for a conditional flow: departures of the local posterior from its Gaussian factor.

In coordinates in which the factor is standard normal, along the principal axes of its covariance, the log target is
evaluated one and two sds from the mean. Its differences from a normal are zero if the posterior is Gaussian. They are
sums over choice situations, so they are defined for panels of any length, order and number of alternatives, and they
depend on the population parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.integration.laplace import LocalFactor, drawn_log_prob
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes

# Distances of the evaluation points from the mean, in sds; chosen by hand.
_DISTANCES = (1.0, 2.0)
# Largest number of tastes for which pairs of axes are evaluated, since pairs grow as its square; chosen by hand.
_MOST_PAIRED = 8


def context_size(n_random: int) -> int:
    """Length of a person's context."""
    pairs = n_random * (n_random - 1) // 2 if n_random <= _MOST_PAIRED else 0
    return n_random * (2 + 2 * len(_DISTANCES)) + 4 * pairs


def _log_target(xi: Tensor, population: PopulationParameters, panel: Panels, mixing: Mixing) -> Tensor:
    """Log P(y_n | xi) + log N(xi; 0, I) without its constant, shape (n, s), at whitened tastes (n, k, s)."""
    tastes = PersonTastes.of(population, mixing, panel).tastes(xi)
    log_prob = drawn_log_prob(tastes, population, panel, mixing)
    return log_prob - 0.5 * xi.square().sum(1)


def principal_axes(factor: LocalFactor) -> tuple[Tensor, Tensor]:
    """Rotation (n, k, k) from principal axes to the factor's whitened coordinates, and log sds (n, k) along them."""
    values, axes = torch.linalg.eigh(factor.root.mT @ factor.root)
    return axes, 0.5 * values.clamp(min=1e-30).log()


@torch.no_grad()
def probe(
    factor: LocalFactor, population: PopulationParameters, panel: Panels, mixing: Mixing
) -> tuple[Tensor, Tensor]:
    """Principal axes and context of the people of a panel.

    Parameters
    ----------
    factor : LocalFactor
        Local factors of the n people of the panel.
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences or RaggedPanels
    mixing : Mixing

    Returns
    -------
    tuple of (Tensor of shape (n, k, k), Tensor of shape (n, c))
        Axes, each oriented towards the side of the heavier tail, and contexts.
    """
    axes, log_deviation = principal_axes(factor)
    k = axes.shape[-1]
    points = _points(k, axes)
    above, below = _excess(points[:, : 2 * k], axes, factor, population, panel, mixing).chunk(2, 1)
    axes = torch.where((above < below)[:, None], -axes, axes)
    along = _excess(points, axes, factor, population, panel, mixing)
    centre = (axes.mT @ (factor.precision_tril.mT @ factor.mean[..., None]))[..., 0]
    return axes, torch.cat([log_deviation, centre.asinh(), along.asinh()], 1)


def _points(k: int, like: Tensor) -> Tensor:
    """Evaluation points (k, p), in sds: in both directions of each axis, and on the diagonals of pairs of axes."""
    identity = torch.eye(k, dtype=like.dtype, device=like.device)
    points = [sign * distance * identity for distance in _DISTANCES for sign in (1.0, -1.0)]
    if k <= _MOST_PAIRED:
        i, j = torch.triu_indices(k, k, 1, device=like.device)
        points += [one * identity[:, i] + other * identity[:, j] for one in (1.0, -1.0) for other in (1.0, -1.0)]
    return torch.cat(points, 1)


def _excess(
    points: Tensor,
    axes: Tensor,
    factor: LocalFactor,
    population: PopulationParameters,
    panel: Panels,
    mixing: Mixing,
) -> Tensor:
    """Log target at points relative to the centre, less the same of a standard normal, shape (n, p)."""
    everywhere = torch.cat([torch.zeros_like(points[:, :1]), points], 1)
    xi = factor.mean[..., None] + factor.root @ (axes @ everywhere)
    values = _log_target(xi, population, panel, mixing)
    return values[:, 1:] - values[:, :1] + 0.5 * points.square().sum(0)
