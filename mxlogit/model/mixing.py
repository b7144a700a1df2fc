r"""Mixing distributions, as elementwise maps from a correlated Gaussian to tastes.

Every random coefficient has a latent normal :math:`\eta \sim N(\zeta, \tau^2)`; its taste is
:math:`\beta = g(\eta; \zeta, \tau)`. The latent normals are correlated (a Gaussian copula), so any subset of
coefficients can be correlated whatever their distributions.

This module handles tensors only. A map returns its value, its slope :math:`\partial g/\partial\eta`, and, for
families whose *shape* depends on the population parameters, the direct derivatives
:math:`\partial g/\partial\zeta` and :math:`\partial g/\partial\tau` at fixed :math:`\eta`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.model import taste_moments as moments
from mxlogit.model.latent_shifts import LatentShifts
from mxlogit.model.situation_deviations import SituationDeviations
from mxlogit.model.wtp_space import to_coefficients

# Logarithm of the square root of 2 pi.
_LOG_SQRT_TAU = 0.5 * math.log(2.0 * math.pi)


def _log_normal_density(z: Tensor) -> Tensor:
    return -0.5 * z.square() - _LOG_SQRT_TAU


@dataclass(frozen=True)
class MapValue:
    """Value and derivatives of a map at given latents; all tensors have the shape of the latents.

    Attributes
    ----------
    taste : Tensor
        Tastes beta = g(latent; location, scale).
    slope : Tensor
        Derivative d beta / d latent at fixed location and scale.
    by_location, by_scale : Tensor or None
        Direct derivatives at fixed latent; None if the shape does not depend on the parameters.
    """

    taste: Tensor
    slope: Tensor
    by_location: Tensor | None = None
    by_scale: Tensor | None = None

    def transposed(self) -> MapValue:
        """Return the value and derivatives with the last two axes swapped."""
        parts = (self.taste, self.slope, self.by_location, self.by_scale)
        return MapValue(*(part if part is None else part.mT for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class SecondDerivatives:
    """Second derivatives of a map g(latent; location, scale), and its direct first derivative by scale.

    All tensors have the shape of the latents.
    """

    latent_latent: Tensor
    latent_location: Tensor
    latent_scale: Tensor
    location_location: Tensor
    location_scale: Tensor
    scale_scale: Tensor
    scale: Tensor


def _identity(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    return MapValue(latent, torch.ones_like(latent))


def _exponential(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    taste = _finite_exponential(latent)
    return MapValue(taste, taste)


def _negative_exponential(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    taste = -_finite_exponential(latent)
    return MapValue(taste, taste)


def _finite_exponential(latent: Tensor) -> Tensor:
    """Exponential clamped below the square root of the largest number; choices are deterministic beyond it."""
    return latent.clamp(max=0.45 * math.log(torch.finfo(latent.dtype).max)).exp()


def _censored(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    """Normal censored from below at zero, with a point mass at zero."""
    return MapValue(latent.clamp(min=0.0), (latent > 0).to(latent.dtype))


def _logistic(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    """Johnson's S_B on the unit interval (Johnson 1949, Biometrika 36)."""
    taste = torch.sigmoid(latent)
    return MapValue(taste, taste * torch.sigmoid(-latent))


def _uniform(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    """Uniform on location -+ scale."""
    z = (latent - location) / scale
    shape = torch.erf(z / math.sqrt(2.0))
    slope = 2.0 * _log_normal_density(z).exp()
    return MapValue(location + scale * shape, slope, 1.0 - slope, shape - slope * z)


def _triangular(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    """Symmetric triangular on location -+ scale, by its quantile function in log space."""
    z = (latent - location) / scale
    log_tail = math.log(2.0) + torch.special.log_ndtr(-z.abs())
    half_width = (0.5 * log_tail).exp()
    shape = torch.sign(z) * (1.0 - half_width)
    slope = (_log_normal_density(z) - 0.5 * log_tail).exp()
    return MapValue(location + scale * shape, slope, 1.0 - slope, shape - slope * z)


def _normal_quantile_of_log(log_p: Tensor) -> Tensor:
    """Quantile of the standard normal at exp(log_p), accurate in both tails (float64)."""
    upper = log_p > -math.log(2.0)
    central = torch.where(upper, -torch.expm1(log_p), log_p.exp())
    value = torch.special.ndtri(central)
    # Below the smallest double, the leading terms of the tail expansion are accurate to 1e-3 or better.
    twice = (-2.0 * log_p).clamp(min=100.0)
    deep = -(twice - torch.log(twice) - 2.0 * _LOG_SQRT_TAU).sqrt()
    return torch.where(log_p < -700.0, deep, torch.where(upper, -value, value))


@dataclass(frozen=True)
class _Truncation:
    """Terms of the truncated normal map: standardised latents and bound, log tail probabilities, quantile; float64."""

    z: Tensor
    ratio: Tensor
    log_below: Tensor
    log_above: Tensor
    quantile: Tensor

    @classmethod
    def at(cls, latent: Tensor, location: Tensor, scale: Tensor) -> _Truncation:
        """Evaluate the map at latents, without expanding location and scale."""
        z, ratio = (latent - location) / scale, location / scale
        log_below, log_above = torch.special.log_ndtr(ratio), torch.special.log_ndtr(-z)
        return cls(z, ratio, log_below, log_above, _normal_quantile_of_log(log_below + log_above))


def _truncated(latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
    """Normal truncated from below at zero: N(location, scale^2) conditional on being positive."""
    location64, scale64 = location.double(), scale.double()
    t = _Truncation.at(latent.double(), location64, scale64)
    log_density = _log_normal_density(t.quantile)
    by_z = (t.log_below + _log_normal_density(t.z) - log_density).exp()
    by_ratio = (_log_normal_density(t.ratio) + t.log_above - log_density).exp()
    value = MapValue(
        location64 - scale64 * t.quantile,
        by_z,
        1.0 - by_ratio - by_z,
        -t.quantile + t.ratio * by_ratio - t.z * by_z,
    )
    return _cast(value, latent.dtype)


def _truncated_taste(latent: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """Tastes of the truncated normal without derivatives, in a third of the time."""
    location64, scale64 = location.double(), scale.double()
    return (location64 - scale64 * _Truncation.at(latent.double(), location64, scale64).quantile).to(latent.dtype)


def _cast(value: MapValue, dtype: torch.dtype) -> MapValue:
    by_location, by_scale = value.by_location, value.by_scale
    return MapValue(
        value.taste.to(dtype),
        value.slope.to(dtype),
        None if by_location is None else by_location.to(dtype),
        None if by_scale is None else by_scale.to(dtype),
    )


def _differentiate(output: Tensor | None, inputs: list[Tensor]) -> list[Tensor]:
    """Elementwise derivatives of an elementwise function; zero for inputs on which it does not depend."""
    if output is None or not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(output.sum(), inputs, retain_graph=True, materialize_grads=True))


@dataclass(frozen=True)
class Family:
    """Family of mixing distributions.

    Attributes
    ----------
    name : str
        Name of the family in specifications.
    map : callable
        Elementwise map (latent, location, scale) -> MapValue.
    moments : callable
        Elementwise function (location, scale) -> mean and standard deviation of the taste in the population.
    units : {"linear", "log", "none"}
        Effect of a change of the attribute's unit: location and scale are multiplied ("linear"), the location is
        shifted by the log ("log"), or neither changes ("none").
    sign : int
        Common sign +1 or -1 of all tastes, else 0.
    direct : bool
        Whether the map depends on location and scale directly, not only through the latent normal.
    kinked : bool
        Whether the slope is discontinuous: scores of single draws then jump as well, and averaging second derivatives
        over draws omits the contribution of the jumps.
    value : callable, optional
        Map (latent, location, scale) -> taste without derivatives, if they are expensive.
    """

    name: str
    map: Callable[[Tensor, Tensor, Tensor], MapValue]
    moments: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    units: str = "linear"
    sign: int = 0
    direct: bool = False
    kinked: bool = False
    value: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def taste(self, latent: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """Evaluate the map without derivatives, elementwise."""
        return self.map(latent, location, scale).taste if self.value is None else self.value(latent, location, scale)

    def second_derivatives(self, latent: Tensor, location: Tensor, scale: Tensor) -> SecondDerivatives:
        """Compute the second derivatives of the map by automatic differentiation of its first derivatives.

        Parameters
        ----------
        latent : Tensor
            Latent normals.
        location, scale : Tensor, broadcastable to ``latent``
            Means and standard deviations of the latent normals.

        Returns
        -------
        SecondDerivatives
        """
        with torch.enable_grad():
            inputs = [x.detach().expand_as(latent).clone().requires_grad_() for x in (latent, location, scale)]
            value = self.map(*inputs)
            by_latent = _differentiate(value.slope, inputs)
            by_location = _differentiate(value.by_location, inputs)
            by_scale = _differentiate(value.by_scale, inputs)
        direct = torch.zeros_like(latent) if value.by_scale is None else value.by_scale.detach()
        return SecondDerivatives(
            by_latent[0], by_latent[1], by_latent[2], by_location[1], by_location[2], by_scale[2], scale=direct
        )


# Mixing distributions by name.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("normal", _identity, moments.normal_moments),
        Family("lognormal", _exponential, moments.lognormal_moments, units="log", sign=1),
        Family("negative_lognormal", _negative_exponential, moments.negative_lognormal_moments, units="log", sign=-1),
        Family(
            "truncated_normal",
            _truncated,
            moments.truncated_normal_moments,
            sign=1,
            direct=True,
            value=_truncated_taste,
        ),
        Family("censored_normal", _censored, moments.censored_normal_moments, sign=1, kinked=True),
        Family("uniform", _uniform, moments.uniform_moments, direct=True),
        Family("triangular", _triangular, moments.triangular_moments, direct=True),
        Family("johnson_sb", _logistic, moments.johnson_sb_moments, units="none", sign=1),
    )
}


class Mixing:
    """Mixing distributions of all random coefficients, applied along the last axis.

    Parameters
    ----------
    names : sequence of str, length k
        Family of each random coefficient.
    scale_position : int, optional
        Position of the scale column among all coefficients in willingness-to-pay space (`mxlogit.model.wtp_space`).
    shifts : LatentShifts, optional
        Effects of covariates on latent normals.
    varying : SituationDeviations, optional
        Coefficients that vary between the situations of a person.
    """

    def __init__(
        self,
        names: Sequence[str],
        scale_position: int | None = None,
        shifts: LatentShifts | None = None,
        varying: SituationDeviations | None = None,
    ) -> None:
        self.scale_position, self.shifts, self.varying = scale_position, shifts, varying
        self.families = tuple(FAMILIES[name] for name in names)
        self.is_identity = shifts is None and all(family.name == "normal" for family in self.families)
        self.is_kinked = any(family.kinked for family in self.families)
        self.direct = tuple(i for i, family in enumerate(self.families) if family.direct)
        # Whether the likelihood is another function of the population parameters than that of logits given latents of
        # one distribution.
        self.is_direct = bool(self.direct) or shifts is not None or varying is not None
        self._groups = {
            name: _as_slice([i for i, family in enumerate(self.families) if family.name == name])
            for name in dict.fromkeys(names)
            if name != "normal"
        }

    def tastes(self, latent: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """Map latents to tastes.

        Parameters
        ----------
        latent : Tensor, shape (..., k)
            Latent normals.
        location, scale : Tensor, broadcastable to ``latent``
            Means and standard deviations of the latent normals.

        Returns
        -------
        Tensor, shape (..., k)
        """
        if self.is_identity:
            return latent
        taste = latent.clone()
        for name, columns in self._groups.items():
            part = latent[..., columns], location[..., columns], scale[..., columns]
            taste[..., columns] = FAMILIES[name].taste(*part)
        return taste

    def evaluate(self, latent: Tensor, location: Tensor, scale: Tensor) -> MapValue:
        """Map latents to tastes with slopes and direct derivatives (shapes as in `tastes`)."""
        taste, slope = latent.clone(), torch.ones_like(latent)
        by_location = torch.zeros_like(latent) if self.direct else None
        by_scale = torch.zeros_like(latent) if self.direct else None
        for name, columns in self._groups.items():
            part = FAMILIES[name].map(latent[..., columns], location[..., columns], scale[..., columns])
            taste[..., columns], slope[..., columns] = part.taste, part.slope
            if part.by_location is not None and by_location is not None:
                by_location[..., columns] = part.by_location
            if part.by_scale is not None and by_scale is not None:
                by_scale[..., columns] = part.by_scale
        return MapValue(taste, slope, by_location, by_scale)

    def curvature(self, latent: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """Second derivatives of the tastes with respect to the latents (shapes as in `tastes`)."""
        result = torch.zeros_like(latent)
        for name, columns in self._groups.items():
            part = latent[..., columns], location[..., columns], scale[..., columns]
            result[..., columns] = FAMILIES[name].second_derivatives(*part).latent_latent
        return result

    def coefficients(self, fixed: Tensor, tastes: Tensor) -> Tensor:
        """Combine fixed and random coefficients to the coefficients of utility, fixed ones first.

        Parameters
        ----------
        fixed : Tensor, shape (..., f)
            Fixed coefficients, broadcastable to the leading axes of ``tastes``.
        tastes : Tensor, shape (..., k)
            Random coefficients; amounts of money in willingness-to-pay space.

        Returns
        -------
        Tensor, shape (..., f + k)
        """
        parameters = torch.cat([fixed.to(tastes).expand(*tastes.shape[:-1], -1), tastes], -1)
        parameters = parameters if self.shifts is None else self.shifts.zero_effects(parameters)
        return to_coefficients(parameters, self.scale_position)

    def moments(self, location: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the tastes in the population (`mxlogit.model.taste_moments`).

        Parameters
        ----------
        location, scale : Tensor, shape (..., k)
            Means and standard deviations of the latent normals.

        Returns
        -------
        tuple of Tensor, each of shape (..., k), float64
        """
        location, scale = location.double(), scale.double()
        pairs = [family.moments(location[..., i], scale[..., i]) for i, family in enumerate(self.families)]
        if not pairs:
            return location, scale
        return torch.stack([mean for mean, _ in pairs], -1), torch.stack([deviation for _, deviation in pairs], -1)


def _as_slice(columns: list[int]) -> slice | list[int]:
    """Consecutive columns as a slice, which takes a view where a list takes a copy."""
    first, last = columns[0], columns[-1] + 1
    return slice(first, last) if last - first == len(columns) else columns
