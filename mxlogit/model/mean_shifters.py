"""Effects of covariates on the means of tastes, seen from the tastes: which coefficient moves whose.

In the utility an effect is the fixed coefficient of a product column (`mxlogit.choices.covariates`). The coefficient of
the attribute itself, of a person with given covariates, is the taste plus the effects times the covariates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MeanShifters:
    """Effects of c covariates on coefficients.

    Attributes
    ----------
    effects : tuple of int
        Position of each effect among all f + k parameters.
    tastes : tuple of int
        Position of the parameter that it shifts.
    covariates : tuple of int
        Index of the covariate by which it is multiplied.
    names : tuple of str
        Names of the covariates.
    offsets : tuple of float
        What engines subtract from the covariate of each effect (`mxlogit.inference.uncentred`).
    on_latents : tuple of bool
        Whether each effect shifts a latent normal (`mxlogit.model.latent_shifts`) instead of the taste itself.
    """

    effects: tuple[int, ...] = ()
    tastes: tuple[int, ...] = ()
    covariates: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    offsets: tuple[float, ...] = ()
    on_latents: tuple[bool, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.effects)

    def of(self, taste: int) -> MeanShifters:
        """Return those of the effects that shift the parameter at position ``taste``."""
        return self._take([i for i, place in enumerate(self.tastes) if place == taste])

    def _take(self, mine: list[int]) -> MeanShifters:
        effects, tastes, covariates = (
            tuple(part[i] for i in mine) for part in (self.effects, self.tastes, self.covariates)
        )
        offsets, on_latents = tuple(self.offsets[i] for i in mine), tuple(self._is_on_latent(i) for i in mine)
        return MeanShifters(effects, tastes, covariates, self.names, offsets, on_latents)

    @property
    def of_tastes(self) -> MeanShifters:
        """Return those of the effects that shift tastes themselves."""
        return self._take([i for i in range(len(self.effects)) if not self._is_on_latent(i)])

    @property
    def of_latents(self) -> MeanShifters:
        """Return those of the effects that shift latent normals."""
        return self._take([i for i in range(len(self.effects)) if self._is_on_latent(i)])

    def _is_on_latent(self, i: int) -> bool:
        # Models saved by earlier versions have no such effects.
        return bool(self.on_latents) and self.on_latents[i]

    def uncentre(self, means: Tensor) -> Tensor:
        """Coefficients and locations (..., f + k) at covariates of zero, from those where covariates are centred."""
        result = means.clone()
        for effect, taste, offset in zip(self.effects, self.tastes, self.offsets, strict=True):
            result[..., taste] -= offset * means[..., effect]
        return result

    def index(self, parameters: Tensor, covariates: Tensor) -> Tensor:
        """Sums (n,) of effects among parameters (f + k,) times covariates (n, c): an order of people."""
        effects = parameters[list(self.effects)]
        return covariates[:, list(self.covariates)].to(parameters) @ effects

    def index_at(self, fixed: Tensor, people: Covariates) -> Tensor:
        """Sums (*s,) of effects among fixed coefficients (*s, f) times the average covariates of people."""
        centre, _ = people.moments()
        return fixed[..., list(self.effects)] @ centre[list(self.covariates)].to(fixed)

    def shift_of_latents(self, fixed: Tensor, covariates: Tensor, n_random: int) -> Tensor:
        """Shifts (..., k) of latent normals at fixed coefficients (..., f) and covariates (..., c)."""
        shape = torch.broadcast_shapes(fixed.shape[:-1], covariates.shape[:-1])
        result, mine = fixed.new_zeros(*shape, n_random), self.of_latents
        for effect, taste, covariate in zip(mine.effects, mine.tastes, mine.covariates, strict=True):
            result[..., taste - fixed.shape[-1]] += fixed[..., effect] * covariates[..., covariate].to(fixed)
        return result

    def shift(self, parameters: Tensor, covariates: Tensor) -> Tensor:
        """Parameters (..., f + k) of people with covariates (..., c): tastes are shifted, effects are unchanged.

        Effects on latent normals are not among these shifts.
        """
        result, mine = parameters.clone(), self.of_tastes
        for effect, taste, covariate in zip(mine.effects, mine.tastes, mine.covariates, strict=True):
            result[..., taste] += parameters[..., effect] * covariates[..., covariate].to(parameters)
        return result

    def moments(self, parameters: Tensor, people: Covariates) -> tuple[Tensor, Tensor]:
        """Mean and variance over people, (..., f + k) each, of what covariates add to parameters (..., f + k).

        Effects on latent normals are not among these.
        """
        centre, spread = people.moments()
        loading, mine = parameters.new_zeros(*parameters.shape, len(centre)), self.of_tastes
        for effect, taste, covariate in zip(mine.effects, mine.tastes, mine.covariates, strict=True):
            loading[..., taste, covariate] += parameters[..., effect]
        return loading @ centre.to(parameters), ((loading @ spread.to(parameters)) * loading).sum(-1)


@dataclass(frozen=True)
class Covariates:
    """Covariates of the people whose tastes are averaged: those of a fit, or one person with given values.

    Attributes
    ----------
    values : Tensor, shape (n, c), float64
    weights : Tensor, shape (n,), float64
    """

    values: Tensor
    weights: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means (c,) and covariance (c, c) over people."""
        share = self.weights / self.weights.sum()
        centre = share @ self.values
        deviations = self.values - centre
        return centre, deviations.T @ (share[:, None] * deviations)

    def nodes(self, index: Tensor, count: int) -> Tensor:
        """Covariates (count, c) of people that represent all, as often as their weights say.

        They stand in the order of ``index`` (n,): beside a Sobol sequence their place is one more dimension of a net
        (Hammersley 1960, Annals of the New York Academy of Sciences 86).
        """
        order = index.argsort(stable=True)
        below = self.weights[order].cumsum(0)
        heights = (torch.arange(count, dtype=torch.float64) + 0.5) / count * below[-1]
        return self.values[order[torch.searchsorted(below, heights).clamp(max=len(order) - 1)]]
