"""Moments of people's tastes averaged over a posterior of the population, from one set of draws for all of it.

A person's draws at one population value, the anchor, are weighed anew at every other one: their log weights change by
a quadratic function of the draws (`mxlogit.integration.tilts`), a hundredth of the cost of draws of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.expansion import fixed_derivatives, index_pairs
from mxlogit.integration.importance import WeightedDraws
from mxlogit.integration.tilts import tilt_coefficients
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters

# Odds at once: four megabytes (50,000 people, 256 draws, 32 populations: a third of the time of a whole chunk at once).
_NUMBERS_AT_ONCE = 1_000_000
# Largest exponent that is exponentiated without subtracting the maximum first: exp(60) cannot overflow.
_SAFE_EXPONENT = 60.0


@dataclass(frozen=True)
class AveragedMoments:
    """Posterior moments of some people's tastes.

    Attributes
    ----------
    mean, variance : Tensor, shape (n, k), float64
    error : Tensor, shape (n,)
        Errors of a person's means and log standard deviations (root mean square over tastes), in posterior standard
        deviations, by comparison of two halves of the draws.
    """

    mean: Tensor
    variance: Tensor
    error: Tensor


class Populations:
    """Population values over which is averaged, near an anchor.

    Parameters
    ----------
    anchor : PopulationParameters
        Population value of the draws, in the dtype of the panels.
    coefficients : Tensor, shape (b, F)
        Coefficients of `mxlogit.integration.tilts.tilt_coefficients`.
    """

    def __init__(self, anchor: PopulationParameters, coefficients: Tensor) -> None:
        self.anchor, self._coefficients = anchor, coefficients

    @classmethod
    def near(cls, anchor: PopulationParameters, others: list[PopulationParameters], like: Tensor) -> Populations:
        """Populations near an anchor, for people whose panels are ``like``."""
        columns = zip(*((each.fixed, each.location, each.scale_tril) for each in others), strict=True)
        stacked = PopulationParameters(*(torch.stack(column) for column in columns))
        return cls(anchor.to(like), tilt_coefficients(anchor, stacked)[0].T.contiguous().to(like))

    def average_weights(self, drawn: WeightedDraws, panel: PanelDifferences, mixing: Mixing) -> Tensor:
        """Weights (n, s) of the draws, averaged over all populations; they sum to one."""
        features, count = self._features(drawn.xi, panel, mixing), len(self._coefficients)
        n, _, s = features.shape
        result = torch.empty_like(drawn.log_ratio)
        log_ratio = drawn.log_ratio - drawn.log_ratio.amax(1, keepdim=True)
        size = max(1, _NUMBERS_AT_ONCE // (s * count))
        for start in range(0, n, size):
            part = slice(start, start + size)
            odds = self._odds(log_ratio[part], features[part])
            result[part] = (odds.sum(2).reciprocal_()[:, None] @ odds)[:, 0]
        return result.div_(count)

    def _odds(self, log_ratio: Tensor, features: Tensor) -> Tensor:
        """Odds (n, b, s) of the draws of some people under every population, up to a factor of each."""
        coefficients = self._coefficients.expand(len(features), -1, -1)
        exponents = torch.baddbmm(log_ratio[:, None], coefficients, features)
        if not -_SAFE_EXPONENT < float(exponents.amax()) < _SAFE_EXPONENT:
            exponents -= exponents.amax(2, keepdim=True)
        return exponents.exp_()

    def _features(self, xi: Tensor, panel: PanelDifferences, mixing: Mixing) -> Tensor:
        """Features (n, F, s) of the draws."""
        rows, columns = index_pairs(xi.shape[1])
        tastes = [xi, xi[:, rows] * xi[:, columns]]
        if len(self.anchor.fixed) == 0:
            return torch.cat(tastes, 1)
        of_fixed = fixed_derivatives(xi, None, self.anchor, panel, mixing)
        return torch.cat([*tastes, of_fixed.first, of_fixed.second], 1)


def averaged_moments(
    tastes: Tensor, weights: Tensor, base: tuple[Tensor, Tensor], weights_of_base: Tensor | None
) -> AveragedMoments:
    """Moments of tastes under averaged weights.

    Parameters
    ----------
    tastes : Tensor, shape (n, k, s)
    weights : Tensor, shape (n, s)
        Those of `Populations.average_weights`.
    base : tuple of Tensor, shape (n, k)
        Means and standard deviations at the anchor.
    weights_of_base : Tensor or None, shape (n, s)
        Weights at the anchor, if its moments are more precise than theirs: only the difference is added to them.
    """
    centre, variance = base[0], base[1].square()
    if weights_of_base is None:
        weights_of_base, variance = torch.zeros_like(weights), torch.zeros_like(variance)
    deviation = tastes.double() - centre[..., None]
    mean, spread = _moments(deviation, weights - weights_of_base, variance)
    one, other = (
        _moments(part, _normalised(some) - _normalised(few), variance)
        for part, some, few in zip(*(x.chunk(2, -1) for x in (deviation, weights, weights_of_base)), strict=True)
    )
    apart = (one[0] - other[0]).square() / spread.clamp(min=1e-300)
    stretch = (one[1].clamp(min=1e-300) / other[1].clamp(min=1e-300)).log()
    # Halves differ by twice the error of their mean, and by four times that of the log of a standard deviation.
    squares = torch.cat([0.25 * apart, stretch.square() / 16.0], 1)
    return AveragedMoments(centre + mean, spread, squares.mean(1).sqrt().nan_to_num(nan=torch.inf))


def _normalised(weights: Tensor) -> Tensor:
    """Weights (n, s) divided by their sums, where these are not zero."""
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _moments(deviation: Tensor, weights: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (n, k) of deviations (n, k, s), of which a variance is in the weights' base already."""
    weighted = weights.double()[:, None] * deviation
    mean = weighted.sum(-1)
    return mean, variance + (weighted * deviation).sum(-1) - mean.square()
