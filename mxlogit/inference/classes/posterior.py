"""Posterior of the parameters of classes: weighted draws around the best optimum, or Hamiltonian chains from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mxlogit.diagnostics.convergence import ess_bulk, ess_tail, rhat
from mxlogit.diagnostics.thresholds import largest_pareto_k
from mxlogit.draws.generators import make_generator
from mxlogit.guide.population import GaussianFactor
from mxlogit.inference.classes.objective import Place
from mxlogit.inference.clock import Clock
from mxlogit.inference.vi.weighted_draws import PosteriorSampler, WeightedVectors
from mxlogit.integration.class_likelihood import ClassLikelihood
from mxlogit.model.class_prior import ClassPrior
from mxlogit.model.classes import ClassPopulation, ClassSpace
from mxlogit.sampling.chains import Noise
from mxlogit.sampling.hamiltonian_move import HamiltonianMove, accept

# Effective draws that suffice, and most draws; rows x classes x draws at most: about a minute of one core.
_ENOUGH, _MOST_DRAWS, _MOST_WORK = 1_000.0, 32_768, 6e9
# Fewest draws that say something.
_FEWEST_DRAWS = 1_024
# Smallest eigenvalue of a curvature whose diagonal is one, below which a direction is taken as flat as this.
_FLATTEST = 1e-4
# Spread of the first states of chains, in that of the Gaussian.
_SPREAD = 0.7
# Iterations of the warm-up after which masses are fitted to the states, as shares of it.
_FITS = (0.3, 0.6)
# Weight of the first Gaussian in a fitted one, in states per parameter.
_PRIOR_STATES = 2.0


def laplace(place: Place) -> GaussianFactor:
    """Gaussian with the curvature of the log posterior at its mode; flat directions are made curved."""
    scale = place.curvature.diagonal().clamp(min=1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * place.curvature * scale)
    root = vectors * values.clamp(min=_FLATTEST).rsqrt() * scale[:, None]
    return GaussianFactor(place.vector, torch.linalg.cholesky(root @ root.T))


@dataclass(frozen=True)
class ClassPosterior:
    """Log posterior density of the unconstrained vector of a latent class model.

    Attributes
    ----------
    likelihood : ClassLikelihood
    prior : ClassPrior
    """

    likelihood: ClassLikelihood
    prior: ClassPrior

    @property
    def space(self) -> ClassSpace:
        """Layout of the parameters."""
        return self.likelihood.space

    def log_prob(self, points: Tensor) -> Tensor:
        """Values (n,) at vectors (n, D)."""
        population = self.space.constrain(points)
        values = self.likelihood.log_prob_people(population) @ self.likelihood.panel.weights
        return values + self.prior.log_prob(self.space, points)

    def gradients(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n,) and gradients (n, D) at vectors (n, D)."""
        value, gradient = self.likelihood.gradients(points)
        with torch.enable_grad():
            free = points.detach().requires_grad_()
            prior = self.prior.log_prob(self.space, free)
            (slopes,) = torch.autograd.grad(prior.sum(), free)
        return value + prior.detach(), gradient + slopes


def weigh(posterior: ClassPosterior, gaussian: GaussianFactor, seed: int) -> WeightedVectors | None:
    """Weighted draws of the posterior around a Gaussian; None where too few of them count."""
    likelihood = posterior.likelihood
    work = likelihood.space.n_classes * len(likelihood.panel) * max(1, likelihood.panel.n_rows)
    most = min(_MOST_DRAWS, int(_MOST_WORK / work))
    if most < _FEWEST_DRAWS:
        return None
    sampler = PosteriorSampler(posterior, gaussian, make_generator(seed, 17))
    found = sampler.run(most, _ENOUGH)
    if found is None or found.ess < 4.0 * len(gaussian.mean):
        return None
    found = sampler.widen(found, most, _ENOUGH)
    return found if found.pareto_k < largest_pareto_k(len(found.vectors)) else None


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


def run_chains(
    posterior: ClassPosterior, gaussian: GaussianFactor, plan: ChainPlan, seed: int, clock: Clock
) -> ClassChains:
    """Hamiltonian chains of the exact posterior; their states have the classes in the order of the Gaussian's mean."""
    noise, move = Noise(seed, plan.chains), HamiltonianMove(gaussian)
    wide = GaussianFactor(gaussian.mean, _SPREAD * gaussian.tril)
    here = wide.sample(plan.chains, make_generator(seed, 31))
    fits = {int(share * plan.warmup) for share in _FITS}
    visited, kept, accepted = list[Tensor](), list[Tensor](), list[float]()
    for iteration in range(plan.warmup + plan.kept * plan.thin):
        if clock.is_over() and len(kept) >= 4:
            break
        path = move.propose(here, posterior.gradients, iteration, noise)
        taken, probability = accept(path.gain, noise)
        here = torch.where(taken[:, None], path.vectors, here)
        clock.passes += plan.chains
        if iteration < plan.warmup:
            move.adapt(float(probability.mean()))
            visited.append(here)
            if iteration in fits:
                states = torch.stack(visited[len(visited) // 2 :])
                move = HamiltonianMove(_fitted(gaussian, states.flatten(0, 1)), move.step)
        else:
            accepted.append(float(probability.mean()))
            if (iteration - plan.warmup) % plan.thin == plan.thin - 1:
                kept.append(here)
        if iteration % 50 == 49:
            clock.show(f"chains: {iteration + 1} iterations")
    vectors, moved = relabel(posterior.space, torch.stack(kept, 1), gaussian)
    return ClassChains(vectors, sum(accepted) / len(accepted), moved)


def _fitted(gaussian: GaussianFactor, states: Tensor) -> GaussianFactor:
    """Gaussian with the moments of states (n, D), shrunk towards another."""
    mean, size = states.mean(0), len(gaussian.mean)
    centred = states - mean
    prior = _PRIOR_STATES * size
    total = centred.T @ centred + prior * gaussian.tril @ gaussian.tril.T
    return GaussianFactor(mean, torch.linalg.cholesky(total / (len(states) + prior)))


def relabel(space: ClassSpace, vectors: Tensor, gaussian: GaussianFactor) -> tuple[Tensor, int]:
    """Vectors (*s, D) whose classes have the labels of the closest classes of a Gaussian's mean, and how many moved.

    Labels of classes have no meaning, and a chain may exchange them (Stephens 2000, Journal of the Royal Statistical
    Society B 62).
    """
    groups = [alike for alike in space.exchangeable if len(alike) > 1]
    if not groups:
        return vectors, 0
    flat = vectors.reshape(-1, vectors.shape[-1])
    _, centre, _ = space.own(gaussian.mean)
    unit = space.own(gaussian.tril.norm(dim=1))[1].clamp(min=1e-12)
    _, tastes, _ = space.own(flat)
    distance = (((tastes[:, :, None] - centre) / unit).square()).sum(-1)
    moved, result = 0, flat.clone()
    for row in range(len(flat)):
        order = list(range(space.n_classes))
        for alike in groups:
            cost = distance[row][alike][:, alike]
            mine, theirs = linear_sum_assignment(cost.numpy())
            for a, b in zip(mine, theirs, strict=True):
                order[alike[b]] = alike[a]
        if order != sorted(order):
            moved += 1
            population = space.permuted(space.constrain(flat[row]), order)
            result[row] = space.unconstrain(population)
    return result.view(vectors.shape), moved


def draw_until_mixed(
    posterior: ClassPosterior,
    gaussian: GaussianFactor,
    seed: int,
    clock: Clock,
    is_enough: Callable[[ClassChains], bool],
) -> ClassChains:
    """Chains of twice the length of the ones before, until they are long enough."""
    for length in (400, 1_600):
        chains = run_chains(posterior, gaussian, ChainPlan(6, 200 + length // 4, length), seed, clock)
        if is_enough(chains) or clock.was_over:
            break
    return chains


def shares_of(population: ClassPopulation, covariates: Tensor | None, weights: Tensor) -> Tensor:
    """Mean shares (*s, C) of the classes over people with weights (n,)."""
    shares = population.log_shares(covariates).exp()
    if shares.shape[-2] == 1:
        return shares[..., 0, :]
    return torch.einsum("n,...nc->...c", weights / weights.sum(), shares)
