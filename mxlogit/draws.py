"""Draws that integrate: standardised base points, a different block for every decision maker.

Draws are regenerated from whole-number keys instead of being stored: the memory of a pass does not grow
with the number of people, and the same chunk of people meets the same draws in every pass of a stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _seed_of(*words: int) -> int:
    """Mix words into one 63-bit seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (word & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


def make_generator(*words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by a tuple of whole numbers; other tuples give independent streams."""
    generator = torch.Generator(device=device)
    generator.manual_seed(_seed_of(*words))
    return generator


def jackknife_log_mean(log_values: Tensor) -> Tensor:
    """Log of the mean over s without its bias of order 1/S: twice the whole less the mean of the halves."""
    halves = log_values.unflatten(-1, (2, -1)).logsumexp(-1)
    count = log_values.shape[-1]
    return 2.0 * log_values.logsumexp(-1) - halves.mean(-1) - math.log(2.0 * count)


def jackknife_softmax(log_values: Tensor) -> Tensor:
    """Gradient of `jackknife_log_mean`."""
    halves = log_values.unflatten(-1, (2, -1)).softmax(-1).flatten(-2)
    return 2.0 * log_values.softmax(-1) - 0.5 * halves


@dataclass(frozen=True)
class BaseDraws:
    """Standardised base points of a defensive mixture: a heavy-tailed factor and the prior.

    Attributes
    ----------
    points : Tensor, shape (n, s, k)
        Symmetric about zero. The halves of s hold whole antithetic pairs, so each half is symmetric too.
    from_prior : Tensor, bool, shape (s,)
        Which points are standard normal and stand for the prior of whitened tastes; the others are
        Student-t (normal if ``tail`` is None) and stand for a person's local factor.
    tail : int or None
        Degrees of freedom of the local component.
    """

    points: Tensor
    from_prior: Tensor
    tail: int | None

    @property
    def prior_share(self) -> float:
        """Share of the points that come from the prior."""
        return float(self.from_prior.double().mean())

    def log_local(self, square: Tensor, dimensions: int) -> Tensor:
        """Log density of the standardised local component at points of squared length ``square``."""
        if self.tail is None:
            return log_standard_normal(square, dimensions)
        half = 0.5 * (self.tail + dimensions)
        peak = math.lgamma(half) - math.lgamma(0.5 * self.tail) - 0.5 * dimensions * math.log(self.tail * math.pi)
        return peak - half * (square / self.tail).log1p()


def log_standard_normal(square: Tensor, dimensions: int) -> Tensor:
    """Log density of a standard normal at points of squared length ``square``."""
    return -0.5 * square - 0.5 * dimensions * math.log(2.0 * math.pi)


def _prior_positions(count: int, *, defensive: bool) -> Tensor:
    """Which of ``count`` base points come from the prior: one in eight, at least one."""
    share = max(1, count // 8) if defensive and count > 1 else 0
    return torch.arange(count) >= count - share


def draw_base_points(
    generator: torch.Generator, shape: tuple[int, int, int], like: Tensor, tail: int | None, *, defensive: bool
) -> BaseDraws:
    """Draw antithetic base points.

    Parameters
    ----------
    generator : torch.Generator
    shape : tuple (n, s, k)
        People, draws per person (a multiple of 4), dimensions.
    like : Tensor
        Gives dtype and device.
    tail : int or None
        Degrees of freedom of a multivariate Student-t, an even number above 2; None for the normal.
    defensive : bool
        Whether some points come from the prior (Hesterberg 1995, Technometrics 37): weights are then bounded.

    Returns
    -------
    BaseDraws
    """
    n, s, k = shape
    half = torch.randn(n, 2, s // 4, k, generator=generator, dtype=like.dtype, device=like.device)
    prior = _prior_positions(s // 4, defensive=defensive).to(like.device)
    if tail is not None:
        # A chi-square with an even number of degrees of freedom is minus twice the log of a product of uniforms.
        size = (n, 2, s // 4, tail // 2)
        uniform = torch.rand(size, generator=generator, dtype=like.dtype, device=like.device)
        stretch = (1.0 - uniform).prod(-1).log().mul_(-2.0 / tail).rsqrt_()
        half *= torch.where(prior, torch.ones_like(stretch), stretch)[..., None]
    points = torch.stack([half, -half], dim=2).view(n, s, k)
    return BaseDraws(points, prior.repeat(4), tail)
