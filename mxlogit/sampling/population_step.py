r"""Steps of the population parameters: given latent tastes (centred) and given whitened tastes (non-centred).

Given latent tastes, locations and covariance are independent of the choices and are drawn directly; given whitened
tastes, they enter the likelihood of the choices. Each step mixes well where the other does not, and interweaving both
costs little more than one (Yu and Meng 2011, Journal of Computational and Graphical Statistics 20).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.sampling.chains import ChainLikelihood, Noise, State, choose, choose_population
from mxlogit.sampling.covariance import Scatter, TastePrior

# Target acceptance rate to which the step size of the whitened move adapts; chosen by hand.
_TARGET = 0.75


def centred_step(state: State, prior: TastePrior, noise: Noise, space: ParameterSpace) -> State:
    """Draw locations and covariance given all people's latent tastes.

    Valid for mixing maps that do not depend on the population parameters: choice probabilities then do not change.
    """
    latents, population = state.latents(), state.population
    scatter = Scatter.of(latents)
    location = prior.draw_location(scatter, population.scale_tril, noise)
    if space.held:
        # Locations of a block are held together, so that the others are independent of them given the covariance.
        fixed_and_location = torch.cat([population.fixed, location], -1)
        _, location = space.insert_held(fixed_and_location[..., space.means])
    tril = prior.draw_covariance(scatter, location, population.scale_tril, noise)
    xi = torch.linalg.solve_triangular(tril, latents - location[..., None], upper=False)
    return replace(state, population=PopulationParameters(population.fixed, location, tril), xi=xi.to(state.xi))


class PopulationPrior:
    """Log prior in the coordinates of the whitened move: fixed coefficients, locations, free entries of L.

    In these the logit likelihood is log-concave if tastes are normal.
    """

    def __init__(self, space: ParameterSpace, taste: TastePrior, mean: Tensor, deviation: Tensor) -> None:
        self.space, self.taste, self.mean, self.deviation = space, taste, mean, deviation
        place = {index: i for block in space.blocks for i, index in enumerate(block)}
        size = {index: len(block) for block in space.blocks for index in block}
        # d Omega / d L = 2^b prod |L_ii|^(b - i), i from 0.
        self._powers = torch.tensor([float(size[i] - place[i]) for i in range(space.n_random)]).to(mean)

    def log_density(self, population: PopulationParameters) -> Tensor:
        """Log density (chains,), up to a constant."""
        fixed = -0.5 * ((population.fixed - self.mean) / self.deviation).square().sum(-1)
        diagonal = population.scale_tril.diagonal(dim1=-2, dim2=-1).abs().log()
        jacobian = (self._powers * diagonal).sum(-1)
        return fixed + jacobian + self.taste.log_density(population.location, population.scale_tril)

    def gradient(self, population: PopulationParameters) -> tuple[Tensor, Tensor]:
        """Log density (chains,) and gradient (chains, D)."""
        with torch.enable_grad():
            vector = coordinates(self.space, population).requires_grad_()
            value = self.log_density(population_of(self.space, vector))
            (slope,) = torch.autograd.grad(value.sum(), vector)
        return value.detach(), slope


def coordinates(space: ParameterSpace, population: PopulationParameters) -> Tensor:
    """Coordinates (chains, D) of the whitened move."""
    rows, columns = space.triangle
    whole = torch.cat([population.fixed, population.location, population.scale_tril[..., rows, columns]], -1)
    return space.drop_held(whole)


def population_of(space: ParameterSpace, vector: Tensor) -> PopulationParameters:
    """Population parameters at coordinates (chains, D)."""
    means, entries = vector.split([space.n_means, len(space.triangle[0])], -1)
    return PopulationParameters(*space.insert_held(means), space.triangle_matrix(entries))


def is_proper(population: PopulationParameters) -> Tensor:
    """Whether all diagonal entries of L are positive, (chains,)."""
    return (population.scale_tril.diagonal(dim1=-2, dim2=-1) > 0.0).all(-1)


@dataclass
class WhitenedMove:
    """A preconditioned Langevin move of all population parameters given whitened tastes.

    From coordinates phi with gradient g it proposes N(phi + a H^-1 g, (2 a - a^2) H^-1). For a normal target with
    precision H every proposal is accepted, and with a = 1 draws are independent.

    Attributes
    ----------
    prior : PopulationPrior
    tril : Tensor, shape (D, D)
        Cholesky factor of the precision H.
    step : Tensor, shape (chains,)
        Step size a of each chain, between 0 and 1.
    """

    prior: PopulationPrior
    tril: Tensor
    step: Tensor

    def _target(self, likelihood: ChainLikelihood, population: PopulationParameters, xi: Tensor) -> _Target:
        log_prob, score = likelihood.scores(population, xi)
        value, slope = self.prior.gradient(population)
        return _Target(log_prob, value + log_prob.double().sum(-1), score + slope)

    def _drift(self, gradient: Tensor) -> Tensor:
        return self.step[:, None] * torch.cholesky_solve(gradient.mT, self.tril).mT

    def _log_jump(self, jump: Tensor, gradient: Tensor) -> Tensor:
        """Log proposal density (chains,) of a move ``jump`` at a point with gradient ``gradient``."""
        distance = ((jump - self._drift(gradient)) @ self.tril).square().sum(-1)
        return -0.5 * distance / (2.0 * self.step - self.step.square())

    def run(self, state: State, likelihood: ChainLikelihood, noise: Noise) -> tuple[State, Tensor]:
        """Run one Metropolis-Hastings step; returns the state and the acceptance probabilities (chains,)."""
        space = likelihood.model.space
        start = coordinates(space, state.population)
        here = self._target(likelihood, state.population, state.xi)
        unit = noise.normal(start.shape[-1], like=start)
        width = (2.0 * self.step - self.step.square()).sqrt()[:, None]
        spread = torch.linalg.solve_triangular(self.tril.mT, unit.mT, upper=True).mT
        jump = self._drift(here.gradient) + width * spread
        moved = population_of(space, start + jump)
        there = self._target(likelihood, moved, state.xi)
        gain = there.value - here.value + self._log_jump(-jump, there.gradient) - self._log_jump(jump, here.gradient)
        gain = torch.where(is_proper(moved), gain, -math.inf).nan_to_num(nan=-math.inf)
        accepted = noise.uniform(like=gain).log() < gain
        population = choose_population(accepted, moved, state.population)
        log_prob = choose(accepted, there.log_prob, here.log_prob)
        return State(population, state.xi, log_prob), gain.clamp(max=0.0).exp()

    def adapt(self, acceptance: Tensor, iteration: int) -> None:
        """Adapt each chain's step size to the target acceptance (Robbins and Monro 1951, Annals of Statistics 22)."""
        rate = (iteration + 5.0) ** -0.6
        self.step = (self.step.log() + rate * (acceptance - _TARGET)).exp().clamp(max=1.0)


@dataclass(frozen=True)
class _Target:
    """Log probabilities of people (chains, n), log target (chains,) and its gradient (chains, D)."""

    log_prob: Tensor
    value: Tensor
    gradient: Tensor


def precision_factor(likelihood: ChainLikelihood, state: State, deviation: Tensor) -> Tensor:
    """Cholesky factor (D, D) of the precision of the whitened move, from the Hessians at the chains' states.

    Negative curvature, possible with nonlinear mixing maps, counts by its absolute value. In directions without
    information, the prior of coefficients and the current standard deviations bound the move.

    Parameters
    ----------
    likelihood : ChainLikelihood
    state : State
    deviation : Tensor, shape (f + k,)
        Prior standard deviations of fixed coefficients and locations.
    """
    chains = len(state.xi)
    information = torch.stack(
        [
            likelihood.information(
                PopulationParameters(*(part[chain] for part in _parts(state.population))), state.xi[chain]
            )
            for chain in range(chains)
        ]
    ).mean(0)
    typical = state.population.scale.log().mean(0).exp()[likelihood.model.space.triangle[0]]
    width = likelihood.model.space.drop_held(torch.cat([deviation, typical]))
    information.diagonal().add_(width.square().reciprocal())
    unit = information.diagonal().abs().clamp(min=1e-300).sqrt()
    values, vectors = torch.linalg.eigh(information / torch.outer(unit, unit))
    values = values.abs().clamp(min=1e-6)
    return torch.linalg.cholesky(torch.outer(unit, unit) * ((vectors * values) @ vectors.mT))


def _parts(population: PopulationParameters) -> tuple[Tensor, Tensor, Tensor]:
    return population.fixed, population.location, population.scale_tril
