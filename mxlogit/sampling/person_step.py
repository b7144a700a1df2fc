r"""Metropolis-Hastings steps of all people's tastes at once, given the population parameters of each chain.

The proposal is based on a quadratic expansion, computed once, of each person's log probability around its mode at a
reference population: in latents and fixed coefficients

.. math:: \log P(y_n|\alpha, \eta) \approx const + (g_n - B_n (\alpha - \alpha_0))'(\eta - m_n)
          - \tfrac12 (\eta - m_n)' F_n (\eta - m_n).

Its product with N(zeta, Omega) at the chain's population is a normal in closed form, so the proposals of a new
population value need no further evaluation of the data. A Student-t of the same mean and shape is proposed, which does
not depend on a person's current tastes: independence Metropolis-Hastings (Tierney 1994, Annals of Statistics 22). A
random walk of the same shape lets chains leave regions where this proposal density is too low.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.execution.people import dense_pieces
from mxlogit.integration.laplace import polish
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.latent_shifts import LatentShifts
from mxlogit.model.likelihood import panel_derivatives
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.model.triangles import inverse_of_lower
from mxlogit.model.wtp_space import coefficient_jacobian
from mxlogit.sampling.chains import ChainLikelihood, Noise, State, choose, with_people

# Degrees of freedom of the Student-t proposal; chosen by hand.
_DEGREES_OF_FREEDOM = 8
# Most Newton steps to the modes at the reference; chosen by hand.
_NEWTON_STEPS = 30
# Sd of the random walk times sqrt(k), in sds of the proposal (Roberts and Rosenthal 2001, Statistical Science 16).
_WALK = 2.38


@dataclass(frozen=True)
class Expansion:
    """Quadratic expansion of each person's log probability in latent tastes around a reference population.

    Attributes
    ----------
    fixed : Tensor, shape (f,)
        Reference fixed coefficients.
    pull : Tensor, shape (n, k)
        Linear term g + F m at the reference.
    information : Tensor, shape (n, k, k)
        Information F of the latent tastes.
    cross : Tensor, shape (n, k, f)
        Cross information B of latent tastes and fixed coefficients.
    shifts : LatentShifts or None
        Effects of covariates on latent tastes, of people whose covariates are ``loads`` (1, e, n).
    """

    fixed: Tensor
    pull: Tensor
    information: Tensor
    cross: Tensor
    shifts: LatentShifts | None = None
    loads: Tensor | None = None

    @classmethod
    def around(cls, likelihood: ChainLikelihood, reference: PopulationParameters) -> Expansion:
        """Find all people's modes at a reference population by Newton steps and expand around them."""
        size = likelihood.chunk_size(likelihood.panel.n_columns)
        local = reference.to(likelihood.panel.like)
        n, k, f = len(likelihood), likelihood.model.space.n_random, len(local.fixed)
        pull, information, cross = (local.fixed.new_empty(n, *shape) for shape in ((k,), (k, k), (k, f)))
        for part, panel in dense_pieces(likelihood.panel, size):
            pull[part], information[part], cross[part] = _expand(likelihood.model, local, panel)
        return cls(local.fixed, pull, information, cross, likelihood.model.mixing.shifts, likelihood.loads)

    def pull_of_covariates(self, fixed: Tensor) -> Tensor:
        """Information times what covariates add to the latent tastes at fixed coefficients (chains, f), (chains, n, k).

        Zero, to be broadcast, if they add nothing.
        """
        if self.shifts is None or self.loads is None:
            return self.pull.new_zeros(1, 1, 1)
        shift = self.shifts.of(fixed, self.loads.to(self.pull)).mT
        return (self.information @ shift[..., None])[..., 0]


def _expand(
    model: MixedLogitModel, population: PopulationParameters, panel: PanelDifferences
) -> tuple[Tensor, Tensor, Tensor]:
    """Linear term, information and cross information of the people of a panel."""
    mixing, n_fixed = model.mixing, population.fixed.shape[0]
    start = panel.values.new_zeros(len(panel), model.space.n_random)
    xi = polish(start, population, panel, mixing, _NEWTON_STEPS).mean
    people = PersonTastes.of(population, mixing, panel)
    value, latent = people.values_of_each(xi), population.location + xi @ population.scale_tril.mT
    if people.shift is not None:
        latent = latent + people.shift[..., 0]
    parameters = people.parameters(value.taste[..., None])
    utility = people.utility_of(parameters, panel)[..., 0]
    derivatives = panel_derivatives(utility, panel)
    gradient, information = derivatives.gradient, derivatives.information
    if mixing.scale_position is not None:
        jacobian = coefficient_jacobian(parameters, mixing.scale_position)[..., 0]
        gradient = (gradient[:, None] @ jacobian)[:, 0]
        information = jacobian.mT @ information @ jacobian
    slope = value.slope
    within = slope[..., None] * information[:, n_fixed:, n_fixed:] * slope[:, None]
    pull = slope * gradient[:, n_fixed:] + (within @ latent[..., None])[..., 0]
    return pull, within, slope[..., None] * information[:, n_fixed:, :n_fixed]


@dataclass(frozen=True)
class PersonProposal:
    """Student-t proposals of all people's whitened tastes at the populations of all chains.

    Attributes
    ----------
    mean : Tensor, shape (chains, k, n)
    tril : Tensor, shape (chains, n, k, k)
        Cholesky factor of the precision.
    inverse : Tensor, shape (chains, n, k, k)
        Inverse of ``tril``, lower triangular.
    """

    mean: Tensor
    tril: Tensor
    inverse: Tensor

    @classmethod
    def at(cls, expansion: Expansion, population: PopulationParameters) -> PersonProposal:
        """Combine the expansion with the distributions of tastes of the chains."""
        population = population.to(expansion.pull)
        n, k = expansion.pull.shape
        loading = population.scale_tril
        # One large product per chain with the matrices of all people.
        half = (expansion.information.reshape(n * k, k) @ loading).view(-1, n, k, k)
        precision = (half.mT.reshape(-1, n * k, k) @ loading).view(-1, n, k, k)
        precision.diagonal(dim1=-2, dim2=-1).add_(1.0)
        shift = expansion.cross.reshape(n * k, -1) @ (population.fixed - expansion.fixed).mT
        shift = shift + expansion.information.reshape(n * k, k) @ population.location.mT
        shift = shift.mT.view(-1, n, k) + expansion.pull_of_covariates(population.fixed)
        pull = (expansion.pull - shift) @ loading
        tril = torch.linalg.cholesky_ex(precision).L
        inverse = inverse_of_lower(tril)
        mean = _transposed_times((inverse * pull[..., None, :]).sum(-1), inverse)
        return cls(mean.mT, tril, inverse)

    def where(self, accepted: Tensor, other: PersonProposal) -> PersonProposal:
        """Return this proposal for chains (chains,) that accepted, the other one otherwise."""
        return PersonProposal(
            choose(accepted, self.mean, other.mean),
            choose(accepted, self.tril, other.tril),
            choose(accepted, self.inverse, other.inverse),
        )

    @property
    def log_det(self) -> Tensor:
        """Log determinant (chains, n) of the Cholesky factor of the precision."""
        return self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def log_density(self, xi: Tensor) -> Tensor:
        """Log density (chains, n) at tastes (chains, k, n), up to a constant."""
        distance = self.residuals(xi).square().sum(1)
        return self.log_det - 0.5 * (_DEGREES_OF_FREEDOM + xi.shape[1]) * torch.log1p(distance / _DEGREES_OF_FREEDOM)

    def residuals(self, xi: Tensor) -> Tensor:
        """Standardised deviations (chains, k, n) of tastes from the mean."""
        return _transposed_times((xi - self.mean).mT, self.tril).mT

    def spread(self, unit: Tensor) -> Tensor:
        """Deviations (chains, k, n) with the proposal's covariance, from standard normals."""
        return _transposed_times(unit.mT, self.inverse).mT

    def place(self, residuals: Tensor) -> Tensor:
        """Tastes (chains, k, n) with given residuals."""
        return self.mean + self.spread(residuals)


def _transposed_times(vector: Tensor, matrix: Tensor) -> Tensor:
    """Products M' v, (..., k), elementwise: a batched product of transposed views would run matrix by matrix."""
    return (matrix * vector[..., :, None]).sum(-2)


def _log_target(xi: Tensor, log_prob: Tensor) -> Tensor:
    return log_prob - 0.5 * xi.square().sum(1)


def independence_step(
    state: State, likelihood: ChainLikelihood, proposal: PersonProposal, noise: Noise
) -> tuple[State, Tensor]:
    """Independence Metropolis-Hastings step of all people's tastes; returns the state and acceptances (chains, n)."""
    k, n = state.xi.shape[1:]
    stretch = (0.5 * _DEGREES_OF_FREEDOM / noise.gamma([0.5 * _DEGREES_OF_FREEDOM] * n, state.xi)).sqrt()
    new = proposal.place(noise.normal(k, n, like=state.xi) * stretch[:, None])
    log_prob = likelihood.log_prob(state.population, new)
    gain = _log_target(new, log_prob) - _log_target(state.xi, state.log_prob)
    gain += proposal.log_density(state.xi) - proposal.log_density(new)
    accepted = noise.uniform(n, like=gain).log() < gain
    return with_people(state, new, log_prob, accepted), accepted


def walk_step(
    state: State, likelihood: ChainLikelihood, proposal: PersonProposal, noise: Noise
) -> tuple[State, Tensor]:
    """Random-walk Metropolis step of all people's tastes, scaled by the local information."""
    k, n = state.xi.shape[1:]
    unit = noise.normal(k, n, like=state.xi) * (_WALK / math.sqrt(k))
    new = state.xi + proposal.spread(unit)
    log_prob = likelihood.log_prob(state.population, new)
    gain = _log_target(new, log_prob) - _log_target(state.xi, state.log_prob)
    accepted = noise.uniform(n, like=gain).log() < gain
    return with_people(state, new, log_prob, accepted), accepted
