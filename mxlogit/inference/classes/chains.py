"""Chains of the posterior of the parameters of classes: Hamiltonian ones, or pseudo-marginal ones of mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.diagnostics.convergence import ess_bulk, ess_tail, rhat
from mxlogit.draws.generators import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.classes.labels import relabel
from mxlogit.inference.classes.posterior import ClassPosterior
from mxlogit.inference.clock import Clock
from mxlogit.integration.mixture_likelihood import MixtureLikelihood
from mxlogit.sampling.chains import Noise
from mxlogit.sampling.hamiltonian_move import HamiltonianMove, accept

# Spread of the first states of chains, in that of the Gaussian.
_SPREAD = 0.7
# Iterations of the warm-up after which masses are fitted to the states, as shares of it.
_FITS = (0.3, 0.6)
# Weight of the first Gaussian in a fitted one, in states per parameter.
_PRIOR_STATES = 2.0
# First step size of autoregressive proposals, and the acceptance to which it adapts (pseudo-marginal chains are best at
# lower rates than others: Doucet, Pitt, Deligiannidis and Kohn 2015, Biometrika 102).
_FIRST_STEP, _TARGET = 0.3, 0.2
# First random stream of the draws of tastes of an iteration.
_STREAM = 5_000
# Number of chains, and their lengths in turn, where too few weighted draws count.
_CHAINS, _LENGTHS = 4, (300, 900)
# Fewest kept states of a chain, and iterations between two messages.
_FEWEST_KEPT, _SHOW_EVERY = 4, 50


@dataclass(frozen=True)
class ClassChains:
    """States of chains.

    Attributes
    ----------
    vectors : Tensor, shape (chains, kept, D)
    acceptance : float
    relabelled : int
        Number of states whose classes had other labels than the point around which chains began.
    """

    vectors: Tensor
    acceptance: float
    relabelled: int

    @property
    def rhat(self) -> float:
        """Largest split R-hat."""
        return float(rhat(self.vectors).nan_to_num(nan=1.0).amax())

    @property
    def smallest_ess(self) -> tuple[float, float]:
        """Smallest effective sample sizes of bulk and tails."""
        return float(ess_bulk(self.vectors).amin()), float(ess_tail(self.vectors).amin())


@dataclass(frozen=True)
class ChainPlan:
    """Lengths of chains: their number, iterations of the warm-up, kept ones, and the interval between these."""

    chains: int
    warmup: int
    kept: int
    thin: int = 1


class Steps(Protocol):
    """Steps of all chains at once."""

    def advance(self, here: Tensor, iteration: int) -> tuple[Tensor, float]:
        """The next states (chains, D), and the mean probability of acceptance."""
        ...

    def adapt(self, acceptance: float) -> None:
        """Adapt the length of steps."""
        ...

    def fit(self, gaussian: GaussianFactor) -> None:
        """Take the shape of proposals from a Gaussian."""
        ...


class HamiltonianSteps:
    """Hamiltonian trajectories of the exact posterior of a latent class model."""

    def __init__(self, posterior: ClassPosterior, gaussian: GaussianFactor, noise: Noise) -> None:
        self.posterior, self.noise, self.move = posterior, noise, HamiltonianMove(gaussian)

    def advance(self, here: Tensor, iteration: int) -> tuple[Tensor, float]:
        """The ends of trajectories that are accepted."""
        path = self.move.propose(here, self.posterior.gradients, iteration, self.noise)
        taken, probability = accept(path.gain, self.noise)
        return torch.where(taken[:, None], path.vectors, here), float(probability.mean())

    def adapt(self, acceptance: float) -> None:
        """Adapt the step size."""
        self.move.adapt(acceptance)

    def fit(self, gaussian: GaussianFactor) -> None:
        """Take masses from a Gaussian."""
        self.move = HamiltonianMove(gaussian, self.move.step)


class PseudoMarginalSteps:
    """Metropolis steps on estimates of the likelihood by draws of tastes that are new in every iteration.

    The estimates being nearly unbiased, states have the exact posterior (Andrieu and Roberts 2009, Annals of Statistics
    37). Proposals are autoregressive: a Gaussian is invariant under them.
    """

    def __init__(self, posterior: ClassPosterior, gaussian: GaussianFactor, noise: Noise) -> None:
        assert isinstance(posterior.likelihood, MixtureLikelihood)
        self.posterior, self.gaussian, self.noise = posterior, gaussian, noise
        self.step, self.adapted = _FIRST_STEP, 0
        self.values: Tensor | None = None

    def advance(self, here: Tensor, iteration: int) -> tuple[Tensor, float]:
        """Proposals that are accepted, else the states before, with the estimates that they had."""
        values = self._estimate(here, 2 * iteration) if self.values is None else self.values
        mean, width = self.gaussian.mean, (1.0 - self.step**2) ** 0.5
        normal = self.noise.normal(here.shape[1], like=here)
        there = mean + width * (here - mean) + self.step * normal @ self.gaussian.tril.T
        proposed = self._estimate(there, 2 * iteration + 1)
        gain = proposed - values - self.gaussian.log_prob(there) + self.gaussian.log_prob(here)
        taken, probability = accept(gain, self.noise)
        self.values = torch.where(taken, proposed, values)
        return torch.where(taken[:, None], there, here), float(probability.mean())

    def _estimate(self, points: Tensor, stream: int) -> Tensor:
        """Log posterior (chains,) from new draws of each chain."""
        likelihood = self.posterior.likelihood
        assert isinstance(likelihood, MixtureLikelihood)
        found = []
        for chain, point in enumerate(points):
            likelihood.integration = replace(likelihood.integration, stream=_STREAM + len(points) * stream + chain)
            found.append(self.posterior.log_prob(point[None]))
        return torch.cat(found).nan_to_num(nan=-math.inf)

    def adapt(self, acceptance: float) -> None:
        """Adapt the step size."""
        self.adapted += 1
        self.step = min(1.0, self.step * math.exp((self.adapted + 1.0) ** -0.6 * (acceptance - _TARGET)))

    def fit(self, gaussian: GaussianFactor) -> None:
        """Take mean and covariance of proposals from a Gaussian."""
        self.gaussian = gaussian


def run_chains(
    posterior: ClassPosterior, gaussian: GaussianFactor, plan: ChainPlan, seed: int, clock: Clock
) -> ClassChains:
    """Chains of the posterior; their states have the classes in the order of the Gaussian's mean."""
    kinds: type[HamiltonianSteps] | type[PseudoMarginalSteps]
    kinds = PseudoMarginalSteps if posterior.space.is_spread else HamiltonianSteps
    steps: Steps = kinds(posterior, gaussian, Noise(seed, plan.chains))
    here = _warm_up(steps, gaussian, plan, seed, clock)
    kept, accepted = list[Tensor](), list[float]()
    for iteration in range(plan.kept * plan.thin):
        if clock.is_over() and len(kept) >= _FEWEST_KEPT:
            break
        here, acceptance = steps.advance(here, plan.warmup + iteration)
        _count(clock, plan, plan.warmup + iteration)
        accepted.append(acceptance)
        if iteration % plan.thin == plan.thin - 1:
            kept.append(here)
    vectors, moved = relabel(posterior.space, torch.stack(kept, 1), gaussian)
    return ClassChains(vectors, sum(accepted) / len(accepted), moved)


def _warm_up(steps: Steps, gaussian: GaussianFactor, plan: ChainPlan, seed: int, clock: Clock) -> Tensor:
    """States (chains, D) after iterations in which steps adapt."""
    here = GaussianFactor(gaussian.mean, _SPREAD * gaussian.tril).sample(plan.chains, make_generator(seed, 31))
    fits, visited = {int(share * plan.warmup) for share in _FITS}, list[Tensor]()
    for iteration in range(plan.warmup):
        if clock.is_over():
            break
        here, acceptance = steps.advance(here, iteration)
        _count(clock, plan, iteration)
        steps.adapt(acceptance)
        visited.append(here)
        if iteration in fits:
            states = torch.stack(visited[len(visited) // 2 :])
            steps.fit(_fitted(gaussian, states.flatten(0, 1)))
    return here


def _count(clock: Clock, plan: ChainPlan, iteration: int) -> None:
    clock.passes += plan.chains
    if iteration % _SHOW_EVERY == _SHOW_EVERY - 1:
        clock.show(f"chains: {iteration + 1} iterations")


def _fitted(gaussian: GaussianFactor, states: Tensor) -> GaussianFactor:
    """Gaussian with the moments of states (n, D), shrunk towards another."""
    mean, size = states.mean(0), len(gaussian.mean)
    centred = states - mean
    prior = _PRIOR_STATES * size
    total = centred.T @ centred + prior * gaussian.tril @ gaussian.tril.T
    return GaussianFactor(mean, torch.linalg.cholesky(total / (len(states) + prior)))


def draw_until_mixed(
    posterior: ClassPosterior,
    gaussian: GaussianFactor,
    seed: int,
    clock: Clock,
    is_enough: Callable[[ClassChains], bool],
) -> ClassChains:
    """Chains of twice the length of the ones before, until they are long enough."""
    for length in _LENGTHS:
        chains = run_chains(posterior, gaussian, ChainPlan(_CHAINS, 150 + length // 4, length), seed, clock)
        if is_enough(chains) or clock.was_over:
            break
    return chains
