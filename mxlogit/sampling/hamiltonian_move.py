"""A Hamiltonian move of the population parameters, in coordinates whitened by a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mxlogit.guide.population import GaussianFactor
from mxlogit.sampling.chains import Noise

# Acceptance rate to which the step size adapts (Beskos, Pillai, Roberts, Sanz-Serna and Stuart 2013, Bernoulli 19, find
# .65 in many dimensions; a rejection costs new draws here).
_TARGET = 0.8
# First and largest step size, in whitened coordinates; chosen by hand.
_FIRST_STEP, _LARGEST_STEP = 0.5, 1.2
# Leapfrog steps of successive trajectories: of one length, states of a direction for which it is half a period would
# alternate, and their squares would hardly change.
_LEAPFROG_STEPS = (2, 4, 3, 5)
# Width of the range of step sizes around the adapted one, against resonance; chosen by hand.
_JITTER = 0.2

Target = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trajectory:
    """End points of trajectories.

    Attributes
    ----------
    vectors : Tensor, shape (chains, D)
    gain : Tensor, shape (chains,)
        Log density of the dynamics there, kinetic energy included, less that at the start: the logarithm of the
        acceptance ratio.
    """

    vectors: Tensor
    gain: Tensor


@dataclass
class HamiltonianMove:
    """Leapfrog trajectories of all chains (Neal 2011, in Handbook of Markov Chain Monte Carlo, chapter 5).

    Attributes
    ----------
    gaussian : GaussianFactor
        Gaussian whose whitened coordinates have unit masses.
    step : float
        Step size of all chains.
    adapted : int
        Number of adaptations of the step size.
    """

    gaussian: GaussianFactor
    step: float = _FIRST_STEP
    adapted: int = 0

    def propose(self, vectors: Tensor, target: Target, iteration: int, noise: Noise) -> Trajectory:
        """Follow a trajectory from each of the vectors (chains, D).

        Parameters
        ----------
        vectors : Tensor, shape (chains, D)
        target : callable
            Log density (chains,) and gradient (chains, D) of the dynamics, which may approximate that of the chains.
        iteration : int
        noise : Noise
        """
        here, tril = self.gaussian.whitened(vectors), self.gaussian.tril
        momentum = first = noise.normal(vectors.shape[1], like=vectors)
        step = self.step * (1.0 + _JITTER * (2.0 * noise.uniform(1, like=vectors) - 1.0))
        before, gradient = target(vectors)
        momentum = momentum + 0.5 * step * (gradient @ tril)
        steps, after = _LEAPFROG_STEPS[iteration % len(_LEAPFROG_STEPS)], before
        for place in range(steps):
            here = here + step * momentum
            after, gradient = target(self.gaussian.at(here))
            momentum = momentum + (step if place < steps - 1 else 0.5 * step) * (gradient @ tril)
        return Trajectory(self.gaussian.at(here), after - before + 0.5 * (first.square() - momentum.square()).sum(1))

    def adapt(self, acceptance: float) -> None:
        """Adapt the step size to the mean acceptance of all chains, ever less."""
        self.adapted += 1
        rate = (self.adapted + 1.0) ** -0.6
        self.step = min(_LARGEST_STEP, self.step * math.exp(rate * (acceptance - _TARGET)))


def accept(gain: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Whether chains accept, and with which probability, (chains,) each; never where the gain is not a number."""
    gain = gain.nan_to_num(nan=-math.inf)
    return noise.uniform(like=gain).log() < gain, gain.clamp(max=0.0).exp()
