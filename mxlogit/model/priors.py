r"""Priors on the population parameters and their log density in unconstrained coordinates.

Locations and fixed coefficients are normal, standard deviations of the latent normals half-Cauchy
(Gelman 2006, Bayesian Analysis 1), correlations LKJ (Lewandowski, Kurowicka and Joe 2009, Journal of
Multivariate Analysis 100).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.errors import check_at_least
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace


@dataclass(frozen=True)
class Priors:
    """Prior settings, in the user's units or in units of standardised attributes.

    Parameters
    ----------
    location_scale : float
        Standard deviation of the normal prior, centred at zero, of fixed coefficients and locations.
    sd_scale : float
        Scale of the half-Cauchy prior of the standard deviations of the latent normals.
    correlation_concentration : float
        Concentration of the LKJ prior; 1 is uniform over correlation matrices.
    standardize : bool
        Whether the two scales refer to attributes divided by their within-situation standard deviation,
        so that the prior does not depend on units. ``MixedLogit(priors=None)``, the default, is
        ``Priors(standardize=True)``: weakly informative in any units. ``Priors()`` is in the units of
        the columns.
    """

    location_scale: float = 10.0
    sd_scale: float = 2.5
    correlation_concentration: float = 1.0
    standardize: bool = False

    def check(self) -> None:
        """Check that all scales are positive.

        Raises
        ------
        SpecificationError
            If one is not; the message names the setting.
        """
        for name in ("location_scale", "sd_scale", "correlation_concentration"):
            check_at_least(f"Priors({name}=...)", getattr(self, name), 1e-12)


@dataclass(frozen=True)
class PriorDensity:
    """Priors resolved for one specification and one data set (float64).

    Attributes
    ----------
    mean, deviation : Tensor, shape (f + k,)
        Mean and standard deviation of the normal prior of fixed coefficients and locations, in the user's units.
    sd_scale : Tensor, shape (k,)
        Half-Cauchy scales of the latent standard deviations.
    concentration : float
        LKJ concentration.
    """

    mean: Tensor
    deviation: Tensor
    sd_scale: Tensor
    concentration: float

    def log_prob(self, space: ParameterSpace, vector: Tensor) -> Tensor:
        """Log density of the unconstrained vector, its Jacobian included.

        Parameters
        ----------
        space : ParameterSpace
            Layout of the parameters.
        vector : Tensor, shape (*s, D)
            Unconstrained vectors.

        Returns
        -------
        Tensor, shape (*s,)
        """
        centred, ratio, partial, power = self._parts(space, vector)
        normal = -0.5 * centred.square() - space.drop_held(self.deviation).log() - 0.5 * math.log(2.0 * math.pi)
        # Logarithm of 2 / (pi s (1 + (tau / s)^2)), plus log tau, the log-Jacobian of tau = exp(log tau).
        cauchy = math.log(2.0 / math.pi) + ratio - torch.nn.functional.softplus(2.0 * ratio)
        total = normal.sum(-1) + cauchy.sum(-1) + (power * _log_sech_squared(partial)).sum(-1)
        return (
            total
            - torch.lgamma(power).sum() * 2.0
            + (torch.lgamma(2.0 * power) - (2.0 * power - 1.0) * math.log(2.0)).sum()
        )

    def derivatives(self, space: ParameterSpace, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of `log_prob` at vectors (*s, D), and the diagonal of its (diagonal) Hessian; (*s, D) each."""
        centred, ratio, partial, power = self._parts(space, vector)
        share = torch.sigmoid(2.0 * ratio)
        deviation = space.drop_held(self.deviation)
        slope = torch.cat([-centred / deviation, 1.0 - 2.0 * share, -2.0 * power * partial.tanh()], -1)
        hessian_diagonal = [
            -deviation.square().reciprocal().expand_as(centred),
            -4.0 * share * (1.0 - share),
            -2.0 * power * _log_sech_squared(partial).exp(),
        ]
        return slope, torch.cat(hessian_diagonal, -1)

    def _parts(self, space: ParameterSpace, vector: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Standardised coefficients, log scale ratios, partial correlations, and the LKJ powers.

        In unconstrained partial correlations y the LKJ density, Jacobian included, is a product of
        sech(y)^(2 b), b = concentration + (size - 2 - column) / 2 (Lewandowski et al. 2009, section 2.4).
        """
        fixed, location, log_scale, partial = space.split(vector)
        centred = space.drop_held((torch.cat([fixed, location], -1) - self.mean) / self.deviation)
        power = [
            self.concentration + 0.5 * (len(block) - 2 - column)
            for block in space.correlated_blocks
            for row in range(len(block))
            for column in range(row)
        ]
        return centred, log_scale - self.sd_scale.log(), partial, self.mean.new_tensor(power)


def _log_sech_squared(y: Tensor) -> Tensor:
    """log(1 - tanh(y)^2) without cancellation."""
    return 2.0 * (math.log(2.0) - y.abs() - torch.nn.functional.softplus(-2.0 * y.abs()))


def resolve_priors(priors: Priors, mixing: Mixing, n_fixed: int, scales: Sequence[float]) -> PriorDensity:
    """Build the prior densities of one model from prior settings.

    Parameters
    ----------
    priors : Priors
        Prior settings.
    mixing : Mixing
        Families of the k random coefficients, which define the effect of units on location and scale.
    n_fixed : int
        Number f of fixed coefficients.
    scales : sequence of float, length f + k
        Within-situation standard deviation of each attribute.

    Returns
    -------
    PriorDensity
    """
    priors.check()
    unit = torch.tensor(scales, dtype=torch.float64)
    if not priors.standardize:
        unit = torch.ones_like(unit)
    mean, deviation = torch.zeros_like(unit), priors.location_scale / unit
    sd_scale = priors.sd_scale / unit[n_fixed:]
    for i, family in enumerate(mixing.families):
        if family.units != "linear":
            deviation[n_fixed + i], sd_scale[i] = priors.location_scale, priors.sd_scale
        if family.units == "log":
            mean[n_fixed + i] = -unit[n_fixed + i].log()
    return PriorDensity(mean, deviation, sd_scale, priors.correlation_concentration)
