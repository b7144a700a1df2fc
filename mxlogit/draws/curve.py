"""Order of points along a space-filling curve, for stratified sampling of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Bits of the integer code by which points are sorted.
_CODE_BITS = 62
# Range of a coordinate, relative to its largest absolute value, below which it counts as constant up to rounding.
_ROUNDING = 1e-9


def order_along_curve(points: Tensor) -> Tensor:
    """Order (n,) of points (n, D) along Morton's curve (1966), on which neighbours are close in all coordinates.

    The position is the interleaved bits of the coordinates' ranks, of at most `_CODE_BITS` coordinates. Sampling
    stratified along the curve has less noise than in random order (Gerber and Chopin 2015, Journal of the Royal
    Statistical Society B 77, with Hilbert's curve).
    """
    # Coordinates that are constant up to rounding are ignored.
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


def spread_along_curve(points: Tensor, count: int) -> Tensor:
    """Evenly spaced points (count, D) along that curve, of ``points`` (n, D), or all of these if they are no more."""
    order = order_along_curve(points)
    count = min(count, len(points))
    return points[order[(torch.arange(count) + 0.5).mul(len(points) / count).long()]]
