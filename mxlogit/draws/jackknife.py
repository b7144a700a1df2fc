"""Jackknife over halves of the draws, which removes the bias of order 1/S of a simulated log mean."""

from __future__ import annotations

import math
from functools import cached_property

from torch import Tensor


class Jackknife:
    """Log mean of exp(log_values) over draws, with its bias of order 1/S removed.

    Parameters
    ----------
    log_values : Tensor, shape (n, s)
        Log values; antithetic pairs lie in the same half of s.
    """

    def __init__(self, log_values: Tensor) -> None:
        halves = log_values.unflatten(-1, (2, -1))
        top = halves.amax(-1, keepdim=True)
        self._odds = (halves - top).exp()
        self._total = self._odds.sum(-1, keepdim=True)
        self._halves = (top + self._total.log())[..., 0]
        self._count = log_values.shape[-1]

    @cached_property
    def _whole(self) -> Tensor:
        return self._halves.logsumexp(-1)

    @property
    def log_sums(self) -> Tensor:
        """Logarithms (n, 2) of the sums over each half."""
        return self._halves

    @property
    def log_mean(self) -> Tensor:
        """Twice the log mean of all draws minus the average log mean of the halves, shape (n,)."""
        return 2.0 * self._whole - self._halves.mean(-1) - math.log(2.0 * self._count)

    @property
    def plain_log_mean(self) -> Tensor:
        """Log mean of all draws, shape (n,), with its bias."""
        return self._whole - math.log(self._count)

    @cached_property
    def half_weights(self) -> Tensor:
        """Weights (n, 2, s / 2) that sum to one in each half."""
        return self._odds / self._total

    @property
    def half_coefficients(self) -> Tensor:
        """Coefficients (n, 2) that combine the weighted means of the halves into that by `weights`; they sum to one."""
        return 2.0 * self._share()[..., 0] - 0.5

    @cached_property
    def plain_weights(self) -> Tensor:
        """Self-normalised weights, shape (n, s)."""
        return (self.half_weights * self._share()).flatten(-2)

    @cached_property
    def weights(self) -> Tensor:
        """Signed weights (n, s), summing to one: the gradient of `log_mean`."""
        return (self.half_weights * self.half_coefficients[..., None]).flatten(-2)

    def _share(self) -> Tensor:
        """Share of each half in the sum, shape (n, 2, 1)."""
        return (self._halves - self._whole[:, None]).exp_()[..., None]
