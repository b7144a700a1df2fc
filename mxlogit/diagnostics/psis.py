"""Pareto smoothed importance sampling: tail shape of importance weights, and smoothed weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Fewest weights in the tail for a generalised Pareto to be fitted.
_SHORTEST_TAIL = 5


def pareto_k(log_weights: Tensor) -> Tensor:
    """Shape k of the generalised Pareto tail of importance weights.

    Below 0.5 the weights have finite variance; importance sampling estimates are reliable up to 0.7 (Vehtari, Simpson,
    Gelman, Yao and Gabry 2024, Journal of Machine Learning Research 25). The tail is fitted as in Zhang and Stephens
    (2009, Technometrics 51).

    Parameters
    ----------
    log_weights : Tensor, shape (*n, s)
        Log weights, up to a constant.

    Returns
    -------
    Tensor, shape (*n,)
        Shapes; minus infinity if all weights are equal or there are too few draws for a tail of five.
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
        Log weights, up to a constant.

    Returns
    -------
    tuple of Tensor
        Log weights (*n, s), float64, normalised to sum to one, and the shapes of `pareto_k` (*n,). Tails that are too
        short or flat are unchanged.

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
        # Quantile function of the generalised Pareto; its limit at shape zero is exponential.
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
    """Cutoff (*n, 1) and excesses over it (*n, tail) of weights relative to the largest."""
    scaled = (ordered[..., -tail - 1 :] - ordered[..., -1:]).exp()
    return scaled[..., :1], scaled[..., 1:] - scaled[..., :1]


def _fit_tail(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale (*n,) of the tail; the shape is minus infinity if all weights are equal."""
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
    # A weak prior centred at one half, with the weight of ten observations, stabilises short tails.
    return (fitted * count + 0.5 * 10.0) / (count + 10.0), -fitted / best
