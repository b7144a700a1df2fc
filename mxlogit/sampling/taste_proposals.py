"""Proposals of people's tastes that do not depend on the population parameters, fitted to weighted draws.

A proposal is a mixture of a multivariate t for each person and of the reference population, which bounds the weights
(Hesterberg 1995, Technometrics 37).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.draws.importance import BaseDraws, DrawScheme
from mxlogit.integration.importance import draw_whitened, log_density
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.triangles import inverse_of_lower
from mxlogit.sampling.taste_draws import Whitening

# Degrees of freedom of the t, which weights of lognormal tastes need more than normal ones do; chosen by hand.
_FREEDOM = 6
# Weight of the former covariance in a fitted one: few effective draws say little; chosen by hand.
_OF_FORMER = 0.1


@dataclass(frozen=True)
class TasteProposals:
    """Proposals of all people.

    Attributes
    ----------
    whitening : Whitening
        Reference population.
    factor : LocalFactor
        Means and covariances of whitened tastes.
    """

    whitening: Whitening
    factor: LocalFactor

    def scheme(self, seed: tuple[int, ...], draws: int) -> DrawScheme:
        """Scheme of the base draws of one chain."""
        return DrawScheme(seed, draws, self.factor.mean.shape[1], _FREEDOM, defensive=True)

    def draw(self, place: slice | Tensor, base: BaseDraws) -> tuple[Tensor, Tensor]:
        """Whitened tastes (n, k, s) of some people and their log densities (n, s)."""
        whitened, log_q, _ = draw_whitened(self._take(place), base)
        return whitened, log_q

    def log_density(self, place: slice | Tensor, whitened: Tensor, base: BaseDraws) -> Tensor:
        """Log densities (n, s) of some people at any whitened tastes (n, k, s)."""
        return log_density(self._take(place), whitened, base)

    def mirror(self, place: slice | Tensor, whitened: Tensor, is_prior: Tensor) -> Tensor:
        """Antithetic partners (n, k, s) of whitened tastes that come from the reference (n, s) or from the t."""
        centre = torch.where(is_prior[:, None], 0.0, self.factor.mean[place][..., None])
        return 2.0 * centre - whitened

    def fitted(self, mean: Tensor, covariance: Tensor, whitening: Whitening) -> TasteProposals:
        """Proposals in latents whitened at another reference, with the moments (n, k) and (n, k, k) of weighted draws.

        A share of the present covariance is added.
        """
        covariance = (1.0 - _OF_FORMER) * covariance + _OF_FORMER * self.factor.covariance.double()
        move = torch.linalg.solve_triangular(whitening.tril, self.whitening.tril, upper=False)
        precision = torch.linalg.cholesky(torch.linalg.inv(move @ covariance @ move.T))
        root = inverse_of_lower(precision).mT.contiguous()
        log_det = -precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        parts = whitening.rewhiten(self.whitening, mean.mT).mT, root, precision, log_det
        return TasteProposals(whitening, LocalFactor.of(tuple(x.to(self.factor.mean) for x in parts)))

    def _take(self, place: slice | Tensor) -> LocalFactor:
        factor = self.factor
        return LocalFactor(factor.mean[place], factor.root[place], factor.precision_tril[place], factor.log_det[place])
