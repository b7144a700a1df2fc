r"""A move of all population parameters at constant residuals of people's tastes under their conditional posteriors.

Given the population, each person's whitened tastes are :math:`\hat\xi_n(\theta) + R_n(\theta) u_n`, with mean and
root of the proposal of `mxlogit.sampling.person_step`. If the proposals were the exact posteriors, the residuals u
would be standard normal and independent of the population, which given u would have its *marginal* posterior and could
be drawn independently of its current value. The proposals are close to exact, so draws from a normal fitted to the
warm-up are often accepted, and chains have shorter autocorrelation than at constant latent or whitened tastes (a
data-driven partial centring; Papaspiliopoulos, Roberts and Skoeld 2007, Statistical Science 22).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.sampling.chains import ChainLikelihood, Noise, State, choose, choose_population
from mxlogit.sampling.person_step import Expansion, PersonProposal
from mxlogit.sampling.population_step import PopulationPrior, WhitenedMove, coordinates, is_proper, population_of

# Target acceptance rate to which the step size adapts; chosen by hand.
_TARGET = 0.4
# Initial step size, before adaptation; chosen by hand.
_FIRST_STEP = 0.1
# Weight, in samples, of the whitened move's covariance in the fitted one; chosen by hand.
_PRIOR_SAMPLES = 10.0


@dataclass
class PosteriorMove:
    """Autoregressive proposals phi + a (m - phi) + sqrt(2 a - a^2) S z, under which N(m, S S') is invariant.

    Attributes
    ----------
    prior : PopulationPrior
    mean : Tensor, shape (D,)
    tril : Tensor, shape (D, D)
        Cholesky factor S.
    step : Tensor, shape (chains,)
        Step size a of each chain, between 0 and 1.
    """

    prior: PopulationPrior
    mean: Tensor
    tril: Tensor
    step: Tensor

    @classmethod
    def fitted(cls, whitened: WhitenedMove, visited: Tensor, step: Tensor | None) -> PosteriorMove:
        """Fit mean and covariance to past coordinates (iterations, chains, D) of the chains.

        The covariance is shrunk towards the covariance of the whitened move.
        """
        chains, size = visited.shape[1:]
        flat = visited.reshape(-1, size)
        mean = flat.mean(0)
        deviations = flat - mean
        total = deviations.T @ deviations + _PRIOR_SAMPLES * torch.cholesky_inverse(whitened.tril)
        covariance = total / (len(flat) + _PRIOR_SAMPLES)
        step = torch.full((chains,), _FIRST_STEP).to(visited) if step is None else step
        return cls(whitened.prior, mean, torch.linalg.cholesky(covariance), step)

    def run(
        self, state: State, likelihood: ChainLikelihood, expansion: Expansion, here: PersonProposal, noise: Noise
    ) -> tuple[State, PersonProposal, Tensor]:
        """Run one step; returns the state, the people's proposal at it (before: ``here``) and acceptances (chains,)."""
        space = likelihood.model.space
        start = coordinates(space, state.population)
        width = (2.0 * self.step - self.step.square()).sqrt()[:, None]
        jump = self.step[:, None] * (self.mean - start)
        moved_to = start + jump + width * (noise.normal(start.shape[-1], like=start) @ self.tril.T)
        moved = population_of(space, moved_to)
        there = PersonProposal.at(expansion, moved)
        xi = there.place(here.residuals(state.xi))
        new = State(moved, xi, likelihood.log_prob(moved, xi))
        gain = self._target(new, there) - self._target(state, here)
        gain += 0.5 * (self._distance(moved_to) - self._distance(start))
        gain = torch.where(is_proper(moved), gain, -math.inf).nan_to_num(nan=-math.inf)
        accepted = noise.uniform(like=gain).log() < gain
        state = State(
            choose_population(accepted, moved, state.population),
            choose(accepted, xi, state.xi),
            choose(accepted, new.log_prob, state.log_prob),
        )
        return state, there.where(accepted, here), gain.clamp(max=0.0).exp()

    def adapt(self, acceptance: Tensor, iteration: int) -> None:
        """Adapt each chain's step size to the target acceptance."""
        rate = (iteration + 5.0) ** -0.6
        self.step = (self.step.log() + rate * (acceptance - _TARGET)).exp().clamp(max=1.0)

    def _target(self, state: State, proposal: PersonProposal) -> Tensor:
        """Log density (chains,) of population and residuals."""
        people = state.log_prob - 0.5 * state.xi.square().sum(1) - proposal.log_det
        return people.double().sum(-1) + self.prior.log_density(state.population)

    def _distance(self, vector: Tensor) -> Tensor:
        """Squared Mahalanobis distance (chains,) from the mean."""
        return torch.linalg.solve_triangular(self.tril, (vector - self.mean).T, upper=False).square().sum(0)
