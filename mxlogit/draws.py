"""Draws that integrate: standardised base points, a different block for every decision maker.

Draws are regenerated from whole-number keys instead of being stored: the memory of a pass does not grow
with the number of people, and the same chunk of people meets the same draws in every pass of a stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

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
    """Base points of importance sampling and their log density.

    Attributes
    ----------
    points : Tensor, shape (n, s, k)
        Symmetric about zero: the halves of s hold whole antithetic pairs, so each half is symmetric too.
    log_density : Tensor, shape (n, s)
    log_tilt : Tensor, shape (n, s)
        Log density of the standard normal less ``log_density``: the log weights that an exactly normal
        target would have. They are the control variate of every weighted sum.
    """

    points: Tensor
    log_density: Tensor
    log_tilt: Tensor

    @cached_property
    def control_weights(self) -> Tensor:
        """Signed jackknife weights (n, s), summing to one, that a normal target would have."""
        return jackknife_softmax(self.log_tilt)

    @cached_property
    def control_log_mean(self) -> Tensor:
        """Jackknifed log mean (n,) of a normal target's weights; its expectation is zero."""
        return jackknife_log_mean(self.log_tilt)


def antithetic_normal(generator: torch.Generator, shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """Standard normal points (n, s, k) in antithetic pairs, ordered (+a, -a, +b, -b); s a multiple of 4."""
    n, s, k = shape
    half = torch.randn(n, 2, s // 4, k, generator=generator, dtype=like.dtype, device=like.device)
    return torch.stack([half, -half], dim=2).view(n, s, k)


def draw_base_points(
    generator: torch.Generator, shape: tuple[int, int, int], like: Tensor, tail: int | None
) -> BaseDraws:
    """Draw antithetic base points from a standard normal or a standard Student-t.

    Parameters
    ----------
    generator : torch.Generator
    shape : tuple (n, s, k)
        People, draws per person (a multiple of 4), dimensions.
    like : Tensor
        Gives dtype and device.
    tail : int or None
        Degrees of freedom of a multivariate Student-t, an even number above 2; None for the normal.

    Returns
    -------
    BaseDraws
    """
    n, s, k = shape
    points = antithetic_normal(generator, shape, like)
    square = points.square().sum(-1)
    if tail is None:
        log_density = -0.5 * square - 0.5 * k * math.log(2.0 * math.pi)
        return BaseDraws(points, log_density, torch.zeros_like(log_density))
    # A chi-square with an even number of degrees of freedom is minus twice the log of a product of uniforms.
    size = (n, 2, s // 4, tail // 2)
    uniform = torch.rand(size, generator=generator, dtype=like.dtype, device=like.device)
    half = (1.0 - uniform).prod(-1).log().mul(-2.0 / tail)
    stretch = torch.stack([half, half], dim=2).view(n, s).rsqrt()
    constant = math.lgamma((tail + k) / 2) - math.lgamma(tail / 2) - 0.5 * k * math.log(tail * math.pi)
    square = square * stretch.square()
    log_density = constant - 0.5 * (tail + k) * (square / tail).log1p()
    log_normal = -0.5 * square - 0.5 * k * math.log(2.0 * math.pi)
    return BaseDraws(points * stretch[..., None], log_density, log_normal - log_density)
