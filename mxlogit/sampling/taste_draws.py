r"""Draws of people's tastes of every chain, and the marginal likelihood that they estimate.

Draws :math:`b_{ns}` of a person's latent tastes come from a proposal :math:`q_n` that does not depend on the population
parameters. Then

.. math:: \hat p(y_n | \theta) = \frac1S \sum_s \frac{P(y_n | \alpha, b_{ns}) N(b_{ns}; \zeta, \Omega)}{q_n(b_{ns})}

costs one exponential per draw at every :math:`\theta` with the same fixed coefficients. Latent tastes are whitened at a
reference population, so that all numbers are of the order of one whatever the units of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.triangles import inverse_of_lower

# Draws of some chains that are evaluated at once; chosen by hand.
_DRAWS_AT_ONCE = 60_000


@dataclass(frozen=True)
class Whitening:
    """Change of coordinates between latent tastes and those whitened at a reference population.

    Attributes
    ----------
    location : Tensor, shape (k,)
        Location of the reference, float64.
    tril : Tensor, shape (k, k)
        Cholesky factor of its covariance, float64.
    """

    location: Tensor
    tril: Tensor

    def whiten(self, population: PopulationParameters) -> tuple[Tensor, Tensor]:
        """Location (chains, k) and Cholesky factor (chains, k, k) of populations in whitened latents."""
        shift = torch.linalg.solve_triangular(self.tril, (population.location - self.location).mT, upper=False).mT
        return shift, torch.linalg.solve_triangular(self.tril, population.scale_tril, upper=False)

    def rewhiten(self, other: Whitening, whitened: Tensor) -> Tensor:
        """Tastes (..., k, s) whitened at this reference, from those whitened at another one."""
        latents = other.location[:, None] + other.tril @ whitened.double() - self.location[:, None]
        return torch.linalg.solve_triangular(self.tril, latents, upper=False).to(whitened)

    def latents(self, whitened: Tensor) -> Tensor:
        """Latent tastes (..., k, s) of whitened ones, in the dtype of these."""
        return self.location.to(whitened)[:, None] + self.tril.to(whitened) @ whitened


@dataclass(frozen=True)
class _Sums:
    """Log likelihoods (c,) and sums over people of weighted draws, float64: b (c, k), b b' (c, k, k), slopes (c, f)."""

    value: Tensor
    first: Tensor
    second: Tensor
    slope: Tensor

    @classmethod
    def join(cls, parts: list[_Sums]) -> _Sums:
        """Concatenate the sums of several chains."""
        return cls(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("value", "first", "second", "slope"))
        )


@dataclass(frozen=True)
class TasteDraws:
    """Draws of all people and chains.

    Attributes
    ----------
    whitening : Whitening
    whitened : Tensor, shape (chains, k, n, s)
        Whitened latent tastes.
    log_ratio : Tensor, shape (chains, n, s)
        log P(y_n | alpha, b) - log q_n(b) at each chain's own fixed coefficients.
    expansion : FixedExpansion or None
        Expansion of log P in the fixed coefficients; None without any.
    """

    whitening: Whitening
    whitened: Tensor
    log_ratio: Tensor
    expansion: FixedExpansion | None = None

    def weights(self, population: PopulationParameters) -> Tensor:
        """Normalised weights (chains, n, s) of the draws given each chain's population parameters."""
        location, tril = self.whitening.whiten(population)
        return torch.cat([self._weigh(some, location, tril, self.log_ratio[some])[1] for some in self._groups()])

    def error_of_expansion(self, space: ParameterSpace, vectors: Tensor) -> Tensor:
        """Log likelihoods (chains,) less those of `approximate`, at the fixed coefficients of `log_ratio`."""
        location, tril = self.whitening.whiten(space.constrain(vectors))
        exact = [self._weigh(some, location, tril, self.log_ratio[some])[0] for some in self._groups()]
        return torch.cat(exact) - self.approximate(space, vectors)[0]

    def approximate(self, space: ParameterSpace, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Log likelihoods (chains,) and gradients (chains, D) at unconstrained vectors (chains, D).

        Exact without fixed coefficients; with these, log P is expanded in them.
        """
        with torch.enable_grad():
            inputs = vectors.detach().requires_grad_()
            population = space.constrain(inputs)
            moves = population.fixed if self.expansion is None else population.fixed - self.expansion.fixed
            location, tril = self.whitening.whiten(population)
            with torch.no_grad():
                sums = _Sums.join([self._sums(some, location, tril, moves) for some in self._groups()])
            surrogate = self._surrogate(location, tril, moves, sums)
            (gradient,) = torch.autograd.grad(surrogate, inputs)
        return sums.value, gradient

    def _groups(self) -> list[slice]:
        """Chains that are evaluated at once: as many as stay in a cache."""
        chains, _, n, s = self.whitened.shape
        size = max(1, _DRAWS_AT_ONCE // (n * s))
        return [slice(first, min(first + size, chains)) for first in range(0, chains, size)]

    def _weigh(self, some: slice, location: Tensor, tril: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Log likelihoods (c,) of some chains and normalised weights (c, n, s) of their draws.

        Location (chains, k) and Cholesky factor (chains, k, k) are those of all chains, whitened.
        """
        draws, location, tril = self.whitened[some].flatten(2), location[some], tril[some]
        inverse = inverse_of_lower(tril)
        shift = -(inverse @ location[..., None]).to(draws)
        standard = torch.baddbmm(shift, inverse.to(draws), draws)
        exponent = torch.add(log_ratio, standard.square_().sum(1).view_as(log_ratio), alpha=-0.5)
        top = exponent.amax(2, keepdim=True)
        odds = exponent.sub_(top).exp_()
        total = odds.sum(2, keepdim=True)
        _, n, s = log_ratio.shape
        constant = 0.5 * location.shape[1] * math.log(2.0 * math.pi) + math.log(s)
        level = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + constant
        return (total.log() + top).double().sum((1, 2)) - n * level, odds.div_(total)

    def _sums(self, some: slice, location: Tensor, tril: Tensor, moves: Tensor) -> _Sums:
        """Sums of some chains, with log P expanded in the fixed coefficients, which have moved by (chains, f)."""
        expansion, draws = self.expansion, self.whitened[some].flatten(2)
        if expansion is None:
            value, weights = self._weigh(some, location, tril, self.log_ratio[some])
            slope = value.new_zeros(len(value), 0)
        else:
            slopes, move = expansion.slopes[some].flatten(2), moves[some]
            change = (move[:, None].to(slopes) @ slopes)[:, 0].view_as(expansion.log_ratio[some])
            value, weights = self._weigh(some, location, tril, expansion.log_ratio[some] + change)
            value = value - 0.5 * (move @ expansion.information * move).sum(1)
            slope = (slopes @ weights.flatten(1)[..., None])[..., 0].double()
        weighted = draws * weights.flatten(1)[:, None]
        return _Sums(value, weighted.sum(2).double(), (weighted @ draws.mT).double(), slope)

    def _surrogate(self, location: Tensor, tril: Tensor, moves: Tensor, sums: _Sums) -> Tensor:
        """Function whose gradient is that of the log likelihoods: weights are constant in it (Fisher's identity)."""
        n = self.log_ratio.shape[1]
        cross = sums.first[:, :, None] * location[:, None]
        scatter = sums.second - cross - cross.mT + n * location[:, :, None] * location[:, None]
        inverse = inverse_of_lower(tril)
        total = -n * tril.diagonal(dim1=-2, dim2=-1).log().sum() - 0.5 * (inverse.mT @ inverse * scatter).sum()
        if self.expansion is None:
            return total
        return total + (moves * sums.slope).sum() - 0.5 * (moves @ self.expansion.information * moves).sum()


@dataclass(frozen=True)
class FixedExpansion:
    """Expansion of log P(y | alpha, b) around the same fixed coefficients in all chains.

    Slopes belong to every draw, curvature to all people at one taste vector each: it varies little between draws.

    Attributes
    ----------
    fixed : Tensor, shape (f,)
    log_ratio : Tensor, shape (chains, n, s)
        log P(y_n | alpha, b) - log q_n(b) there.
    log_density : Tensor, shape (chains, n, s)
        log q_n(b).
    slopes : Tensor, shape (chains, f, n, s)
    information : Tensor, shape (f, f)
        Minus the second derivative, summed over people, float64.
    """

    fixed: Tensor
    log_ratio: Tensor
    log_density: Tensor
    slopes: Tensor
    information: Tensor
