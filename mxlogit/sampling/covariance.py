r"""Priors of the covariance of tastes for samplers: their density, and draws given all people's latent tastes.

All are densities with respect to :math:`d\Omega`, block by block. Given latents :math:`\eta_n` and locations the
covariance of a block of size b has the likelihood :math:`|\Omega|^{-N/2} e^{-tr(S \Omega^{-1})/2}`.

- half-Cauchy standard deviations and LKJ correlations, the package's default: Metropolis-Hastings with an inverse
  Wishart proposal, whose acceptance ratio depends on the prior only;
- inverse Wishart, with a prior of locations proportional to the covariance, as in bayesm (Rossi, Allenby and McCulloch
  2005, *Bayesian Statistics and Marketing*, chapter 5) and RSGHB: conjugate;
- Huang and Wand (2013, Bayesian Analysis 8): half-t standard deviations, conjugate given one auxiliary variable each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.errors import check_at_least
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import PriorDensity
from mxlogit.model.triangles import inverse_of_lower, lower_of
from mxlogit.sampling.chains import Noise


@dataclass(frozen=True)
class InverseWishart:
    """Conjugate prior: Omega ~ inverse Wishart, locations ~ N(0, Omega / location_precision).

    Parameters
    ----------
    degrees_of_freedom : float, optional
        Degrees of freedom, at least the number k of random coefficients; k + 3 by default, as in bayesm.
    scale : float, optional
        Factor of the identity in the scale matrix, in units of the data; ``degrees_of_freedom`` by default, as in
        bayesm.
    location_precision : float or None
        Precision of locations relative to the inverse of Omega; None: the normal prior of `Priors` for locations.
    """

    degrees_of_freedom: float | None = None
    scale: float | None = None
    location_precision: float | None = 0.01

    def check(self) -> None:
        """Raise SpecificationError, naming the setting, unless all settings are positive."""
        for name in ("degrees_of_freedom", "scale", "location_precision"):
            if getattr(self, name) is not None:
                check_at_least(f"InverseWishart({name}=...)", getattr(self, name), 1e-12)


@dataclass(frozen=True)
class HuangWand:
    """Standard deviations ~ half-t(degrees_of_freedom, sd_scale of `Priors`); with 2, correlations are uniform.

    Parameters
    ----------
    degrees_of_freedom : float
        Degrees of freedom: 1 makes standard deviations half-Cauchy, 2 makes each correlation uniform.
    """

    degrees_of_freedom: float = 2.0

    def check(self) -> None:
        """Raise SpecificationError unless degrees of freedom are positive."""
        check_at_least("HuangWand(degrees_of_freedom=...)", self.degrees_of_freedom, 1e-12)


@dataclass(frozen=True)
class Scatter:
    """Moments of latent tastes over people: count, mean (chains, k) and centred sums of products (chains, k, k)."""

    count: int
    mean: Tensor
    products: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> Scatter:
        """Compute the moments of latent tastes (chains, k, n)."""
        mean = latents.mean(-1)
        centred = latents - mean[..., None]
        return cls(latents.shape[-1], mean, centred @ centred.mT)

    def around(self, location: Tensor) -> Tensor:
        """Sums of products (chains, k, k) around given locations (chains, k)."""
        shift = self.mean - location
        return self.products + self.count * shift[..., None] * shift[..., None, :]


class TastePrior(Protocol):
    """Prior of locations and covariance, and their draws given all people's latent tastes."""

    def log_density(self, location: Tensor, scale_tril: Tensor) -> Tensor:
        """Log density (chains,) with respect to locations and Omega, up to a constant."""
        ...

    def draw_location(self, scatter: Scatter, scale_tril: Tensor, noise: Noise) -> Tensor:
        """Draw locations (chains, k) given covariance and latents."""
        ...

    def draw_covariance(self, scatter: Scatter, location: Tensor, scale_tril: Tensor, noise: Noise) -> Tensor:
        """Draw Cholesky factors (chains, k, k) given locations, latents and the current factors."""
        ...


def draw_inverse_wishart(freedom: float, products: Tensor, noise: Noise) -> Tensor:
    """Cholesky factors (chains, b, b) of inverse Wishart draws with scale matrices ``products``.

    With products = U U' and a Bartlett factor A, the draw is U A'^-1 A^-1 U'.
    """
    size = products.shape[-1]
    bartlett = noise.normal(size, size, like=products).tril(-1)
    freedoms = [0.5 * (freedom - i) for i in range(size)]
    bartlett.diagonal(dim1=-2, dim2=-1).copy_((2.0 * noise.gamma(freedoms, products)).sqrt())
    return lower_of(torch.linalg.solve_triangular(bartlett, torch.linalg.cholesky(products).mT, upper=False).mT)


def put_block(tril: Tensor, block: tuple[int, ...], part: Tensor) -> Tensor:
    """Return factors (chains, k, k) with the block's rows and columns replaced."""
    index = torch.tensor(block, device=tril.device)
    result = tril.clone()
    result[:, index[:, None], index] = part
    return result


def take_block(matrix: Tensor, block: tuple[int, ...]) -> Tensor:
    """Rows and columns (chains, b, b) of a block."""
    index = torch.tensor(block, device=matrix.device)
    return matrix[:, index[:, None], index]


def _log_det(tril: Tensor) -> Tensor:
    """Log determinant (chains,) of L L', for diagonals of either sign."""
    return 2.0 * tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


class _NormalLocations:
    """Locations with independent normal priors that do not depend on the covariance."""

    def __init__(self, space: ParameterSpace, prior: PriorDensity) -> None:
        self.space, self.prior = space, prior
        self.mean, self.deviation = prior.mean[space.n_fixed :], prior.deviation[space.n_fixed :]

    def _log_location(self, location: Tensor) -> Tensor:
        return -0.5 * ((location - self.mean) / self.deviation).square().sum(-1)

    def draw_location(self, scatter: Scatter, scale_tril: Tensor, noise: Noise) -> Tensor:
        """Draw locations (chains, k) from their normal conditional posterior."""
        inverse = torch.cholesky_inverse(scale_tril)
        precision = scatter.count * inverse + torch.diag(self.deviation.square().reciprocal())
        pull = scatter.count * (inverse @ scatter.mean[..., None])[..., 0] + self.mean / self.deviation.square()
        return _draw_normal(precision, pull, noise)


def _draw_normal(precision: Tensor, pull: Tensor, noise: Noise) -> Tensor:
    """Draw normals (chains, k) with given precision and mean precision^-1 pull."""
    tril = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve(pull[..., None], tril)
    unit = noise.normal(pull.shape[-1], like=pull)[..., None]
    return (mean + torch.linalg.solve_triangular(tril.mT, unit, upper=True))[..., 0]


class HalfCauchyLKJ(_NormalLocations):
    """Half-Cauchy standard deviations and LKJ correlations, the priors of `mxlogit.model.priors.PriorDensity`."""

    def log_density(self, location: Tensor, scale_tril: Tensor) -> Tensor:
        """Log density; see `TastePrior`."""
        total = self._log_location(location)
        for block in self.space.blocks:
            total = total + self._log_block(take_block(scale_tril, block), block)
        return total

    def _log_block(self, tril: Tensor, block: tuple[int, ...]) -> Tensor:
        """Half-Cauchy of tau, LKJ of Psi, and d(tau, Psi) / d Omega = 2^-b prod tau^-b."""
        log_scale = 0.5 * tril.square().sum(-1).log()
        ratio = log_scale - self.prior.sd_scale[list(block)].log()
        cauchy = -torch.nn.functional.softplus(2.0 * ratio).sum(-1)
        log_det_correlation = _log_det(tril) - 2.0 * log_scale.sum(-1)
        return cauchy + (self.prior.concentration - 1.0) * log_det_correlation - len(block) * log_scale.sum(-1)

    def draw_covariance(self, scatter: Scatter, location: Tensor, scale_tril: Tensor, noise: Noise) -> Tensor:
        """Draw Cholesky factors by Metropolis-Hastings; see `TastePrior`.

        The proposal is inverse Wishart with N - 1 degrees of freedom: the posterior with |Omega|^-b/2 as the prior.
        """
        products = scatter.around(location)
        for block in self.space.blocks:
            size = len(block)
            if scatter.count <= size + 1:
                continue
            old = take_block(scale_tril, block)
            new = draw_inverse_wishart(scatter.count - 1.0, take_block(products, block), noise)
            gain = [self._log_block(tril, block) + 0.5 * size * _log_det(tril) for tril in (new, old)]
            accepted = noise.uniform(like=old).log() < gain[0] - gain[1]
            scale_tril = put_block(scale_tril, block, torch.where(accepted[:, None, None], new, old))
        return scale_tril


class ConjugateWishart(_NormalLocations):
    """The prior `InverseWishart` of one model."""

    def __init__(self, space: ParameterSpace, prior: PriorDensity, settings: InverseWishart) -> None:
        super().__init__(space, prior)
        self.tie = settings.location_precision
        self.freedoms = [
            len(block) + 3.0 if settings.degrees_of_freedom is None else settings.degrees_of_freedom
            for block in space.blocks
        ]
        self.scales = [freedom if settings.scale is None else settings.scale for freedom in self.freedoms]

    def log_density(self, location: Tensor, scale_tril: Tensor) -> Tensor:
        """Log density; see `TastePrior`."""
        total = self._log_location(location) if self.tie is None else 0.0
        for block, freedom, scale in zip(self.space.blocks, self.freedoms, self.scales, strict=True):
            tril, size = take_block(scale_tril, block), len(block)
            inverse = inverse_of_lower(tril)
            total = total - 0.5 * (freedom + size + 1) * _log_det(tril) - 0.5 * scale * inverse.square().sum((-2, -1))
            if self.tie is not None:
                pulled = (inverse @ location[:, list(block), None]).square().sum((-2, -1))
                total = total - 0.5 * _log_det(tril) - 0.5 * self.tie * pulled
        assert isinstance(total, Tensor)
        return total

    def draw_location(self, scatter: Scatter, scale_tril: Tensor, noise: Noise) -> Tensor:
        """Draw locations; see `TastePrior`."""
        if self.tie is None:
            return super().draw_location(scatter, scale_tril, noise)
        count = scatter.count + self.tie
        unit = noise.normal(scatter.mean.shape[-1], like=scatter.mean)[..., None]
        return scatter.count / count * scatter.mean + (scale_tril @ unit)[..., 0] / math.sqrt(count)

    def draw_covariance(self, scatter: Scatter, location: Tensor, scale_tril: Tensor, noise: Noise) -> Tensor:
        """Draw Cholesky factors; see `TastePrior`."""
        products = scatter.around(location)
        count = scatter.count
        if self.tie is not None:
            products = products + self.tie * location[..., None] * location[..., None, :]
            count += 1
        for block, freedom, scale in zip(self.space.blocks, self.freedoms, self.scales, strict=True):
            mine = take_block(products, block) + scale * torch.eye(len(block)).to(products)
            scale_tril = put_block(scale_tril, block, draw_inverse_wishart(freedom + count, mine, noise))
        return scale_tril


class ConjugateHuangWand(_NormalLocations):
    """The prior `HuangWand` of one model: Omega | a ~ inverse Wishart(nu + b - 1, 2 nu diag(1 / a)), marginalised."""

    def __init__(self, space: ParameterSpace, prior: PriorDensity, settings: HuangWand) -> None:
        super().__init__(space, prior)
        self.freedom = settings.degrees_of_freedom

    def log_density(self, location: Tensor, scale_tril: Tensor) -> Tensor:
        """Log density with the auxiliary variables integrated out; see `TastePrior`."""
        total = self._log_location(location)
        for block in self.space.blocks:
            tril, size = take_block(scale_tril, block), len(block)
            rate = self._rates(tril, block)
            total = total - 0.5 * (self.freedom + 2 * size) * _log_det(tril)
            total = total - 0.5 * (self.freedom + size) * rate.log().sum(-1)
        return total

    def _rates(self, tril: Tensor, block: tuple[int, ...]) -> Tensor:
        """Rates (chains, b) of 1 / a given Omega: nu times the diagonal of its inverse, plus 1 / A^2."""
        diagonal = inverse_of_lower(tril).square().sum(-2)
        return self.freedom * diagonal + self.prior.sd_scale[list(block)].square().reciprocal()

    def draw_covariance(self, scatter: Scatter, location: Tensor, scale_tril: Tensor, noise: Noise) -> Tensor:
        """Draw auxiliary variables, then Cholesky factors; see `TastePrior`."""
        products = scatter.around(location)
        for block in self.space.blocks:
            size, tril = len(block), take_block(scale_tril, block)
            shape = [0.5 * (self.freedom + size)] * size
            inverse_a = noise.gamma(shape, tril) / self._rates(tril, block)
            mine = take_block(products, block) + 2.0 * self.freedom * torch.diag_embed(inverse_a)
            new = draw_inverse_wishart(self.freedom + size - 1.0 + scatter.count, mine, noise)
            scale_tril = put_block(scale_tril, block, new)
        return scale_tril


def resolve_taste_prior(
    space: ParameterSpace, prior: PriorDensity, settings: InverseWishart | HuangWand | None
) -> TastePrior:
    """Build the prior of locations and covariance of one model; ``settings=None`` is the prior of `Priors`."""
    if isinstance(settings, InverseWishart):
        return ConjugateWishart(space, prior, settings)
    if isinstance(settings, HuangWand):
        return ConjugateHuangWand(space, prior, settings)
    return HalfCauchyLKJ(space, prior)
