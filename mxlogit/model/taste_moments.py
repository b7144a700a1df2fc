r"""Means and standard deviations of tastes in the population, by family.

The latent normal is :math:`\eta \sim N(\zeta, \tau^2)`, and :math:`a = \zeta / \tau`. Moments are in closed form,
except those of Johnson's S_B. This module handles tensors only. Every function takes ``location`` and ``scale`` of
equal shape, float64, and returns a mean and a standard deviation of that shape.

References
----------
Johnson, Kotz and Balakrishnan (1994), Continuous Univariate Distributions 1, chapters 10, 12, 13 and 14.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]

# Location, in standard deviations below zero, beyond which truncated moments use their asymptotic series: there the
# relative error of the closed form is 1e-9, by cancellation, and that of the series 2e-10.
_DEEP = 50.0
# Number of nodes of the trapezoidal rule for Johnson's S_B. The integrand is analytic within pi / scale of the real
# axis, so the error is below 2 exp(-2 pi (pi / scale) / step) (Trefethen and Weideman 2014, SIAM Review 56): 1e-9 at a
# scale of 40, negligible at 10.
_NODES = 801
# Ends of the range of the nodes, in standard deviations.
_REACH = 9.0


def normal_moments(location: Tensor, scale: Tensor) -> Pair:
    """Moments of the normal."""
    return location, scale


def lognormal_moments(location: Tensor, scale: Tensor) -> Pair:
    """Moments of the exponential of a normal."""
    mean = (location + 0.5 * scale.square()).exp()
    return mean, mean * torch.expm1(scale.square()).sqrt()


def negative_lognormal_moments(location: Tensor, scale: Tensor) -> Pair:
    """Moments of minus the exponential of a normal."""
    mean, deviation = lognormal_moments(location, scale)
    return -mean, deviation


def uniform_moments(location: Tensor, scale: Tensor) -> Pair:
    """Moments of the uniform on location -+ scale."""
    return location, scale / math.sqrt(3.0)


def triangular_moments(location: Tensor, scale: Tensor) -> Pair:
    """Moments of the symmetric triangular on location -+ scale."""
    return location, scale / math.sqrt(6.0)


def censored_normal_moments(location: Tensor, scale: Tensor) -> Pair:
    r"""Moments of max(0, eta): :math:`\tau (a \Phi + \phi)` and the square root of its variance."""
    a = location / scale
    # torch's ndtr loses all digits seven standard deviations below zero; the exponential of log_ndtr keeps them.
    density, below, above = _density(a), torch.special.log_ndtr(a).exp(), torch.special.log_ndtr(-a).exp()
    mean = scale * (a * below + density)
    variance = below + a.square() * below * above + a * density * (above - below) - density.square()
    return mean, scale * variance.clamp(min=0.0).sqrt()


def truncated_normal_moments(location: Tensor, scale: Tensor) -> Pair:
    r"""Moments of eta given eta > 0: :math:`\tau (a + h)`, variance :math:`\tau^2 (1 - h (a + h))`, h = phi / Phi."""
    a = location / scale
    hazard = math.sqrt(2.0 / math.pi) / torch.special.erfcx(-a / math.sqrt(2.0))
    mean, variance = a + hazard, 1.0 - hazard * (a + hazard)
    inverse = a.clamp(max=-_DEEP).reciprocal().square()
    deep_mean = inverse.sqrt() * _series(inverse, [1.0, -2.0, 10.0, -74.0, 706.0])
    deep_variance = inverse * _series(inverse, [1.0, -6.0, 50.0, -518.0, 6354.0])
    deep = a < -_DEEP
    mean, variance = torch.where(deep, deep_mean, mean), torch.where(deep, deep_variance, variance)
    return scale * mean, scale * variance.sqrt()


def johnson_sb_moments(location: Tensor, scale: Tensor) -> Pair:
    """Moments of Johnson's S_B, the logistic function of a normal, by the trapezoidal rule."""
    nodes = torch.linspace(-_REACH, _REACH, _NODES, dtype=location.dtype, device=location.device)
    weights = torch.softmax(-0.5 * nodes.square(), 0)
    taste = torch.sigmoid(location[..., None] + scale[..., None] * nodes)
    mean = taste @ weights
    return mean, ((taste - mean[..., None]).square() @ weights).sqrt()


def _density(z: Tensor) -> Tensor:
    return (-0.5 * z.square()).exp() / math.sqrt(2.0 * math.pi)


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    """Polynomial by Horner's rule, lowest coefficient first."""
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value
