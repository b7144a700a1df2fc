r"""Variational steps: move each person's Gaussian factor from the Laplace approximation to the optimal Gaussian.

With few choices and many tastes the posterior is skewed, and the Laplace factor is off its centre. A step averages
gradient and information over the factor instead of evaluating them at the mode (the identities of Bonnet and of Price;
Opper and Archambeau 2009, Neural Computation 21; Khan and Lin 2017, AISTATS). Measured with 20 tastes and 15
situations: the effective sample size fraction of the importance weights rises from 0.10 to 0.38 in two steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import Scratch, by_pieces, compute_odds, situation_means
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.model.triangles import inverse_of_lower

# Longest move of a mean in one step, in sds of the new factor per root of the number of tastes; chosen by hand.
_LONGEST_MOVE = 1.0


def refine_gaussian(
    factor: LocalFactor,
    points: Tensor,
    population: PopulationParameters,
    panel: Panels,
    mixing: Mixing,
    steps: int,
    scratch: Scratch | None = None,
) -> LocalFactor:
    """Take natural-gradient steps on each person's evidence lower bound.

    Proposals of models in willingness-to-pay space are left as they are: their utility is not linear in tastes.

    For families other than the normal the information is the Gauss-Newton one, and the mean over the factor of its
    product with slopes is replaced by the product of the means, which is positive semidefinite as well.

    Parameters
    ----------
    factor : LocalFactor
        Local factors of the n people of the panel.
    points : Tensor, shape (n, k, s)
        Standard normal points, the same in every step.
    population : PopulationParameters
        Population parameters in the dtype of the panel.
    panel : PanelDifferences or RaggedPanels
    mixing : Mixing
    steps : int
    scratch : Scratch, optional
        Buffer for the utility differences.

    Returns
    -------
    LocalFactor
    """

    def parts(place: slice | Tensor, piece: PanelDifferences) -> tuple[Tensor, ...]:
        some = LocalFactor(factor.mean[place], factor.root[place], factor.precision_tril[place], factor.log_det[place])
        for _ in range(steps):
            some = _where_finite(_step(some, points[place], population, piece, mixing, scratch), some)
        return some.mean, some.root, some.precision_tril, some.log_det

    return LocalFactor.of(by_pieces(panel, parts)) if steps and mixing.scale_position is None else factor


def _where_finite(new: LocalFactor, old: LocalFactor) -> LocalFactor:
    """New factors, or the old ones of people whose slopes overflow (lognormal tastes with sds of 100)."""
    finite = torch.isfinite(new.mean).all(-1) & torch.isfinite(new.log_det) & torch.isfinite(new.root).all(-1).all(-1)
    if bool(finite.all()):
        return new
    of_person, of_row, of_cell = finite, finite[:, None], finite[:, None, None]
    return LocalFactor(
        torch.where(of_row, new.mean, old.mean),
        torch.where(of_cell, new.root, old.root),
        torch.where(of_cell, new.precision_tril, old.precision_tril),
        torch.where(of_person, new.log_det, old.log_det),
    )


def _step(
    factor: LocalFactor,
    points: Tensor,
    population: PopulationParameters,
    panel: PanelDifferences,
    mixing: Mixing,
    scratch: Scratch | None,
) -> LocalFactor:
    tril, count = population.scale_tril, points.shape[-1]
    xi = torch.baddbmm(factor.mean[..., None], factor.root, points)
    people = PersonTastes.of(population, mixing, panel)
    tastes, slope = population.location[:, None] + tril @ xi, None
    if people.shift is not None:
        tastes = tastes + people.shift
    value = people.mapped(tastes)
    if value is not None:
        tastes, slope = value.taste, value.slope
    odds = compute_odds(people.utility(tastes, panel, scratch), panel)
    prob = odds.probabilities()
    values = panel.values[..., population.fixed.shape[0] :].contiguous()
    information = _mean_information(values, prob, odds.shares, panel)
    if slope is None:
        gradient = -torch.bmm(values.mT, prob.mean(-1, keepdim=True))[..., 0]
    else:
        gradient = -(torch.bmm(values.mT, prob) * slope).mean(-1)
        information = information * torch.bmm(slope, slope.mT) / count
    precision = tril.T @ information @ tril
    precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return _new_factor(factor, gradient @ tril - factor.mean, precision)


def _mean_information(values: Tensor, prob: Tensor, shares: list[Tensor] | None, panel: PanelDifferences) -> Tensor:
    """Logit information (n, k, k) averaged over draws, from attributes (n, r, k) and probabilities (n, r, s).

    If situations have nodes, probabilities are weighted by their ``shares``, and it is averaged over them as well.
    """
    n, k, count = len(values), values.shape[-1], prob.shape[-1]
    within = torch.bmm((values * prob.mean(-1, keepdim=True)).mT, values)
    means = situation_means(values, prob, panel)
    if shares is not None:
        means = means * torch.cat(shares, 1).rsqrt()[:, :, None]
    mean = means.transpose(1, 2).reshape(n, k, -1)
    return within - torch.bmm(mean, mean.mT) / count


def _new_factor(factor: LocalFactor, gradient: Tensor, precision: Tensor) -> LocalFactor:
    tril = torch.linalg.cholesky_ex(precision).L
    root = inverse_of_lower(tril).mT.contiguous()
    move = root.mT @ gradient[..., None]
    longest = _LONGEST_MOVE * tril.shape[-1] ** 0.5
    move = move * (longest / move.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
    log_det = -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return LocalFactor(factor.mean + (root @ move)[..., 0], root, tril, log_det)
