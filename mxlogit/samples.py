"""Posterior samples of population parameters, and Pareto smoothed importance sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SHORTEST_TAIL = 5
# Of a number that places are sorted by; range of a coordinate, as a share of its size, that is rounding.
_CODE_BITS, _ROUNDING = 62, 1e-9


@dataclass(frozen=True)
class Samples:
    """Samples of the population parameters.

    Attributes
    ----------
    unconstrained : Tensor, shape (s, D)
        In the coordinates of `mxlogit.model.parameters.ParameterSpace`.
    reported : Tensor, shape (s, D)
        Fixed coefficients, locations, standard deviations, correlations.
    labels : tuple of str, length D
    kind : {"posterior", "sampling distribution"}
        What the samples represent.
    """

    unconstrained: Tensor
    reported: Tensor
    labels: tuple[str, ...]
    kind: str = "posterior"

    def __len__(self) -> int:
        return self.reported.shape[0]

    @property
    def mean(self) -> Tensor:
        """Mean of the reported parameters, shape (D,)."""
        return self.reported.mean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the reported parameters, shape (D,)."""
        return self.reported.std(0)

    def quantiles(self, probabilities: Sequence[float]) -> Tensor:
        """Quantiles of the reported parameters, shape (number of probabilities, D)."""
        at = torch.tensor(probabilities, dtype=self.reported.dtype, device=self.reported.device)
        return torch.quantile(self.reported, at, dim=0)


def order_along_curve(points: Tensor) -> Tensor:
    """Order (n,) in which neighbours among points (n, D) are near each other in all coordinates, or nearly so.

    That of Morton (1966): digits of the coordinates' ranks one after the other, of as many coordinates as there are
    bits. Stratified along it, points have less noise than in random order (Gerber and Chopin 2015, Journal of the Royal
    Statistical Society B 77, who take Hilbert's curve).
    """
    # What is held, but for rounding, has no order.
    if len(points):
        varies = points.amax(0) - points.amin(0) > _ROUNDING * points.abs().amax(0)
        points = points[:, varies][:, :_CODE_BITS]
    n, size = points.shape
    digits = max(1, min(_CODE_BITS // max(1, size), math.ceil(math.log2(max(2, n)))))
    cells = points.argsort(0).argsort(0) * 2**digits // n
    code = torch.zeros(n, dtype=torch.int64, device=points.device)
    for digit in reversed(range(digits)):
        for column in cells.unbind(1):
            code = 2 * code + (column.bitwise_right_shift(digit) & 1)
    return code.argsort(stable=True)


def pareto_k(log_weights: Tensor) -> Tensor:
    """Shape of the generalised Pareto tail of importance weights.

    Below 0.5 the weights have finite variance, up to 0.7 the estimate is usable, above it is not
    (Vehtari, Simpson, Gelman, Yao and Gabry 2024, Journal of Machine Learning Research 25; fitted after
    Zhang and Stephens 2009, Technometrics 51).

    Parameters
    ----------
    log_weights : Tensor, shape (*n, s)

    Returns
    -------
    Tensor, shape (*n,)
        Minus infinity where all weights are equal or there are too few draws for a tail of five.
    """
    tail = _tail_size(log_weights.shape[-1])
    if tail < _SHORTEST_TAIL:
        return log_weights.new_full(log_weights.shape[:-1], -math.inf)
    _, excess = _tail_excess(log_weights.double().sort(-1).values, tail)
    return _fit_tail(excess)[0]


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the largest weights by the expected order statistics of the Pareto tail fitted to them.

    Parameters
    ----------
    log_weights : Tensor, shape (*n, s)

    Returns
    -------
    tuple of Tensor
        Log weights (*n, s), float64, normalised to sum to one, and the shapes of `pareto_k` (*n,). Too short or flat
        tails stay as they are.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Journal of Machine Learning Research 25.
    """
    ordered, order = log_weights.double().sort(-1)
    tail = _tail_size(log_weights.shape[-1])
    shape = ordered.new_full(ordered.shape[:-1], -math.inf)
    if tail >= _SHORTEST_TAIL:
        cutoff, excess = _tail_excess(ordered, tail)
        shape, scale = _fit_tail(excess)
        place = (torch.arange(tail, dtype=torch.float64, device=ordered.device) + 0.5) / tail
        k = shape[..., None]
        # The quantile function of a generalised Pareto; its limit at shape zero is exponential.
        steep = torch.expm1(-k * torch.log1p(-place)) / k
        quantile = torch.where(k.abs() < 1e-8, -torch.log1p(-place), steep) * scale[..., None]
        smooth = ((cutoff + quantile).log().clamp(max=0.0)) + ordered[..., -1:]
        usable = torch.isfinite(k) & torch.isfinite(smooth).all(-1, keepdim=True)
        ordered = torch.cat([ordered[..., :-tail], torch.where(usable, smooth, ordered[..., -tail:])], -1)
    result = torch.empty_like(ordered).scatter_(-1, order, ordered)
    return result.log_softmax(-1), shape


def _tail_size(count: int) -> int:
    return min(count // 5, math.ceil(3.0 * math.sqrt(count)))


def _tail_excess(ordered: Tensor, tail: int) -> tuple[Tensor, Tensor]:
    """Weights relative to the largest: the cutoff (*n, 1) and what exceeds it (*n, tail)."""
    scaled = (ordered[..., -tail - 1 :] - ordered[..., -1:]).exp()
    return scaled[..., :1], scaled[..., 1:] - scaled[..., :1]


def _fit_tail(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale (*n,) of the tail; minus infinity where all weights are equal."""
    shape, scale = _fit_generalised_pareto(excess.clamp(min=1e-300))
    flat = excess[..., -1] <= 1e-12
    return torch.where(flat, torch.full_like(shape, -math.inf), shape), scale


def _fit_generalised_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior means of shape and scale of a generalised Pareto from sorted excesses (*n, m)."""
    count = excess.shape[-1]
    n_grid = 30 + int(math.sqrt(count))
    grid = torch.arange(1, n_grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[..., int(count / 4 + 0.5) - 1, None]
    inverse_scale = 1.0 / excess[..., -1:] + (1.0 - (n_grid / (grid - 0.5)).sqrt()) / (3.0 * quartile)
    shape = torch.log1p(-inverse_scale[..., None] * excess[..., None, :]).mean(-1)
    profile = count * ((-inverse_scale / shape).log() - shape - 1.0)
    weight = profile.softmax(-1)
    best = (inverse_scale * weight).sum(-1)
    fitted = torch.log1p(-best[..., None] * excess).mean(-1)
    # A weak prior centred at one half steadies short tails.
    return (fitted * count + 0.5 * 10.0) / (count + 10.0), -fitted / best
