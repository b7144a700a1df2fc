"""Moments of people's tastes averaged over a posterior of the population, from one set of draws for all of it.

A person's draws at one population value, the anchor, are weighed anew at every other one: their log weights change by
a quadratic function of the draws (`mxlogit.integration.tilts`), a hundredth of the cost of draws of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.integration.expansion import Remainder, fixed_derivatives, index_pairs
from mxlogit.integration.importance import WeightedDraws
from mxlogit.integration.tilts import tilt_coefficients
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters

# Odds at once: four megabytes (50,000 people, 256 draws, 32 populations: a third of the time of a whole chunk at once).
_NUMBERS_AT_ONCE = 1_000_000
# Draws represent a person under all populations if these take no more draws per effective one, if the variances of the
# tastes rest on at least this share of the draws (a third under normal weights), and if the expansion in the fixed
# coefficients errs by less, in nats. Means and log standard deviations then err by .02 and .03 at most (root mean
# squares over people of the worst taste; ten data sets, 8 x 2 to 2,000 x 1 choices, against draws under each
# population); by .07 and .04 with five correlated normals. Without these limits, by up to .4.
_MOST_UNEVEN, _LEAST_SHARE, _LARGEST_REMAINDER = 2.0, 0.1, 0.1
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
    is_covered : Tensor, bool, shape (n,)
        Whether the draws represent a person under all populations: what both halves lack, they do not show.
    """

    mean: Tensor
    variance: Tensor
    error: Tensor
    is_covered: Tensor


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

    def average_weights(self, drawn: WeightedDraws, panel: PanelDifferences, mixing: Mixing) -> tuple[Tensor, Tensor]:
        """Weights (n, s) of the draws, averaged over all populations, and how uneven (n,) those under each are.

        Weights sum to one. Unevenness is the mean over populations of draws per effective draw.
        """
        features, count = self._features(drawn.xi, panel, mixing), len(self._coefficients)
        n, _, s = features.shape
        result, unevenness = torch.empty_like(drawn.log_ratio), drawn.log_ratio.new_empty(n)
        log_ratio = drawn.log_ratio - drawn.log_ratio.amax(1, keepdim=True)
        size = max(1, _NUMBERS_AT_ONCE // (s * count))
        for start in range(0, n, size):
            part = slice(start, start + size)
            odds = self._odds(log_ratio[part], features[part])
            shares = odds.sum(2).reciprocal_()
            result[part] = (shares[:, None] @ odds)[:, 0]
            unevenness[part] = s * (torch.linalg.vector_norm(odds, dim=2) * shares).square().mean(1)
        return result.div_(count), unevenness

    def remainder(self, xi: Tensor, panel: PanelDifferences, mixing: Mixing) -> Tensor:
        """Error (n,) of the expansion in the fixed coefficients at one taste vector (n, k) of each person.

        In nats, root mean square over populations.
        """
        f = len(self.anchor.fixed)
        if f == 0:
            return xi.new_zeros(len(xi))
        moves, pairs = self._coefficients.T[-f - f * (f + 1) // 2 :].split([f, f * (f + 1) // 2])
        still = xi.new_zeros(*xi.shape, f)
        found = Remainder(xi, still, self.anchor, panel, mixing).at(moves, pairs)
        return found.square().mean(1).sqrt()

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

    def is_covered(self, unevenness: Tensor, xi: Tensor, panel: PanelDifferences, mixing: Mixing) -> Tensor:
        """Whether draws represent people (n,) under all populations, but for the tails of their tastes.

        Parameters
        ----------
        unevenness : Tensor, shape (n,)
            That of `average_weights`.
        xi : Tensor, shape (n, k)
            Modes of the people.
        panel : PanelDifferences
        mixing : Mixing
        """
        return (unevenness < _MOST_UNEVEN) & (self.remainder(xi, panel, mixing) < _LARGEST_REMAINDER)


def averaged_moments(
    tastes: Tensor,
    weights: Tensor,
    base: tuple[Tensor, Tensor],
    weights_of_base: Tensor | None,
    is_covered: Tensor,
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
    is_covered : Tensor, bool, shape (n,)
        That of `Populations.is_covered`.
    """
    deviation = tastes.double() - base[0][..., None]
    whole, halves, share = _powers(deviation, weights)
    variance = torch.zeros_like(base[1])
    if weights_of_base is not None:
        of_base = _powers(deviation, weights_of_base)
        whole, halves, variance = whole - of_base[0], halves - of_base[1], base[1].square()
    mean, spread = whole[0], variance + whole[1] - whole[0].square()
    apart = (halves[0, ..., 0] - halves[0, ..., 1]).square() / spread.clamp(min=1e-300)
    stretch = (variance[..., None] + halves[1] - halves[0].square()).clamp(min=1e-300).log().diff(dim=-1)[..., 0]
    # Halves differ by twice the error of their mean, and by four times that of the log of a standard deviation.
    squares = torch.cat([0.25 * apart, stretch.square() / 16.0], 1)
    error = squares.mean(1).sqrt().nan_to_num(nan=torch.inf)
    return AveragedMoments(base[0] + mean, spread, error, is_covered & (share > _LEAST_SHARE))


def _powers(deviation: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First and second moments of deviations (n, k, s) under weights (n, s) that sum to one.

    Returns those of all draws (2, n, k), those of both halves of them (2, n, k, 2), and the share (n,) of the draws on
    which the variance of a person's least known taste rests.
    """
    weights = weights.double()[:, None]
    weighted = weights * deviation
    squares = weighted * deviation
    parts = torch.stack([each.unflatten(-1, (2, -1)).sum(-1) for each in (weighted, squares)])
    whole = parts.sum(-1)
    halves = parts / weights.unflatten(-1, (2, -1)).sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
    # Weighted squares of deviations from the mean.
    mean = whole[0, ..., None]
    squares.addcmul_(mean, weighted, value=-2.0).addcmul_(mean.square(), weights)
    rest = squares.sum(-1).square() / squares.square().sum(-1).clamp(min=1e-300)
    return whole, halves, rest.amin(1) / deviation.shape[-1]
