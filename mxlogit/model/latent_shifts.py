r"""Effects of covariates on latent normals: :math:`\eta_n = \zeta + \Gamma x_n + L \xi_n`.

A taste whose distribution only moves with its location is shifted by the product of its attribute with the covariate
(`mxlogit.model.mean_shifters`). Other tastes, such as lognormal ones, follow their latent normals through their maps;
the columns of these effects are then zero, and what they do to utility passes through the latents, here. A person's
likelihood depends on location and effects through its own location only, so that derivatives with respect to an effect
are those with respect to the location times the covariate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentShifts:
    """Effects of covariates on the latent normals of some random coefficients.

    Attributes
    ----------
    effects : tuple of int
        Position of each effect among the fixed coefficients.
    tastes : tuple of int
        Index, among the k random coefficients, of the one that it shifts.
    columns : tuple of int
        Column of each effect among the covariates of panels.
    n_random : int
        Number k of random coefficients.
    """

    effects: tuple[int, ...]
    tastes: tuple[int, ...]
    columns: tuple[int, ...]
    n_random: int

    def of(self, fixed: Tensor, loads: Tensor) -> Tensor:
        """Shifts of the latents, to be broadcast to (n, k, s).

        Parameters
        ----------
        fixed : Tensor, shape (*c, f)
            Fixed coefficients; one vector or one for each of the first axis of the latents.
        loads : Tensor, shape (1 or n, e, 1 or s)
            Covariates of the effects, of people along the first axis of the latents or along the last one.
        """
        terms = fixed[..., list(self.effects), None] * loads
        shift = terms.new_zeros(len(terms), self.n_random, terms.shape[-1])
        return shift.index_add(1, torch.tensor(self.tastes, device=terms.device), terms)

    def pull(self, by_location: Tensor, loads: Tensor) -> Tensor:
        """Derivatives (n, e) with respect to the effects, from those with respect to the locations, (n, k, 1 or s)."""
        return (by_location[:, list(self.tastes)] * loads).sum(-1)

    def loads(self, covariates: Tensor, like: Tensor) -> Tensor:
        """Covariates of people along the first axis of latents, (n, e, 1), from those of their panels (n, c)."""
        return covariates[:, list(self.columns)].to(like)[..., None]

    def loads_of_chains(self, covariates: Tensor, like: Tensor) -> Tensor:
        """Covariates of people along the last axis of latents, behind one of chains, (1, e, n)."""
        return covariates[:, list(self.columns)].to(like).mT[None]

    def zero_effects(self, parameters: Tensor) -> Tensor:
        """Parameters (..., f + k) as those of utility, to which effects on latents add nothing of their own."""
        index = torch.tensor(self.effects, device=parameters.device)
        return parameters.index_fill(-1, index, 0.0)

    def without(self, kept: list[int]) -> LatentShifts | None:
        """Effects on those of the random coefficients whose indices are given; None if there are none."""
        mine = [place for place, taste in enumerate(self.tastes) if taste in kept]
        effects, columns = (tuple(part[i] for i in mine) for part in (self.effects, self.columns))
        return (
            LatentShifts(effects, tuple(kept.index(self.tastes[i]) for i in mine), columns, len(kept)) if mine else None
        )
