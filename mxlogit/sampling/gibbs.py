"""Metropolis-within-Gibbs sampling for all people and chains at once: tastes, then population parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters
from mxlogit.sampling.chains import ChainLikelihood, Noise, State
from mxlogit.sampling.covariance import HuangWand, InverseWishart, resolve_taste_prior
from mxlogit.sampling.person_step import Expansion, PersonProposal, independence_step, walk_step
from mxlogit.sampling.population_step import (
    PopulationPrior,
    WhitenedMove,
    centred_step,
    coordinates,
    population_of,
    precision_factor,
)
from mxlogit.sampling.posterior_move import PosteriorMove

# Iterations between random-walk steps of people's tastes; chosen by hand.
_WALK_EVERY = 4
# Independence steps of tastes before chains begin at given populations. With two fifths of them accepted, 99 % of the
# people have moved; chosen by hand.
_FIRST_STEPS = 10
# Initial step size of the whitened move, before adaptation; chosen by hand.
_FIRST_STEP = 0.3


@dataclass(frozen=True)
class Acceptance:
    """Acceptance rates.

    Attributes
    ----------
    population : float
        Acceptance rate of the population move at constant whitened tastes (`WhitenedMove`).
    people : float
        Acceptance rate of the independence steps of people's tastes.
    posterior : float
        Acceptance rate of the population move at constant posterior residuals (`PosteriorMove`).
    """

    population: float
    people: float = 1.0
    posterior: float = 1.0


class GibbsSampler:
    """Iterations of all chains.

    Parameters
    ----------
    model : MixedLogitModel
    panel : PanelDifferences or RaggedPanels
        Panel in which every person has weight one.
    chains : int
    seed : int
    covariance : InverseWishart, HuangWand or None
        Prior of the covariance; None: the half-Cauchy and LKJ priors of the model.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        panel: Panels,
        chains: int,
        seed: int,
        covariance: InverseWishart | HuangWand | None = None,
    ) -> None:
        space, prior = model.space, model.prior
        self.likelihood = ChainLikelihood(model, panel)
        self.noise = Noise(seed, chains)
        self.chains, self.space, self.deviation = chains, space, prior.deviation
        self.prior = resolve_taste_prior(space, prior, covariance)
        fixed = prior.mean[: space.n_fixed], prior.deviation[: space.n_fixed]
        self._population_prior = PopulationPrior(space, self.prior, *fixed)
        self.is_centred = space.n_random > 0 and not model.mixing.is_direct
        self.expansion: Expansion | None = None
        self.whitened: WhitenedMove | None = None
        self.posterior: PosteriorMove | None = None

    def start(self, population: PopulationParameters, spread: float) -> State:
        """Overdispersed initial states: normal steps of relative sd ``spread`` from one population value."""
        steps = spread * self.noise.normal(self.space.size, like=self.deviation)
        steps[:, : self.space.n_free] *= 0.0
        populations = self.space.move(population, steps)
        xi = self.noise.normal(self.space.n_random, len(self.likelihood), like=self.likelihood.panel.like)
        return State(populations, xi, self.likelihood.log_prob(populations, xi))

    def start_at(self, populations: PopulationParameters, reference: PopulationParameters) -> State:
        """Initial states at given populations (one per chain), with tastes drawn given them.

        Tastes come from the proposals around ``reference``, by independence steps that keep their exact posterior.
        """
        proposal = PersonProposal.at(Expansion.around(self.likelihood, reference), populations)
        unit = self.noise.normal(self.space.n_random, len(self.likelihood), like=self.likelihood.panel.like)
        xi = proposal.place(unit)
        state = State(populations, xi, self.likelihood.log_prob(populations, xi))
        for _ in range(_FIRST_STEPS):
            state, _ = independence_step(state, self.likelihood, proposal, self.noise)
        return state

    def tune(self, state: State, visited: Tensor | None, reference: PopulationParameters) -> None:
        """Update the proposals.

        Parameters
        ----------
        state : State
            State at which the curvature of the whitened move is computed.
        visited : Tensor or None, shape (iterations, chains, D)
            Past coordinates of the chains, to which the posterior move is fitted.
        reference : PopulationParameters
            Population value around which people's log probabilities are expanded.
        """
        if self.space.n_random:
            self.expansion = Expansion.around(self.likelihood, reference)
        first = torch.full((self.chains,), _FIRST_STEP).to(self.deviation)
        step = first if self.whitened is None else self.whitened.step
        tril = precision_factor(self.likelihood, state, self.deviation)
        self.whitened = WhitenedMove(self._population_prior, tril, step)
        if visited is not None and self.space.n_random:
            known = None if self.posterior is None else self.posterior.step
            self.posterior = PosteriorMove.fitted(self.whitened, visited, known)

    def steps(self) -> dict[str, Tensor]:
        """Adapted step sizes by name of the move."""
        moves = {"whitened": self.whitened, "posterior": self.posterior}
        return {name: move.step for name, move in moves.items() if move is not None}

    def set_steps(self, steps: dict[str, Tensor]) -> None:
        """Restore step sizes from `steps`, after the same `tune`."""
        if self.whitened is not None:
            self.whitened.step = steps["whitened"]
        if self.posterior is not None:
            self.posterior.step = steps["posterior"]

    def run(self, state: State, iteration: int, *, adapt: bool) -> tuple[State, Acceptance]:
        """Run one iteration: posterior move, people's tastes, centred step, whitened move."""
        assert self.whitened is not None
        shares: dict[str, float] = {}
        if self.expansion is not None:
            state, shares = self._move_people(state, self.expansion, iteration, adapt=adapt)
        if self.is_centred:
            state = centred_step(state, self.prior, self.noise, self.space)
        state, share = self.whitened.run(state, self.likelihood, self.noise)
        if adapt:
            self.whitened.adapt(share, iteration)
        return state, Acceptance(population=float(share.mean()), **shares)

    def _move_people(
        self, state: State, expansion: Expansion, iteration: int, *, adapt: bool
    ) -> tuple[State, dict[str, float]]:
        shares: dict[str, float] = {}
        proposal = PersonProposal.at(expansion, state.population)
        if self.posterior is not None:
            state, proposal, share = self.posterior.run(state, self.likelihood, expansion, proposal, self.noise)
            shares["posterior"] = float(share.mean())
            if adapt:
                self.posterior.adapt(share, iteration)
        state, accepted = independence_step(state, self.likelihood, proposal, self.noise)
        shares["people"] = float(accepted.double().mean())
        if iteration % _WALK_EVERY == 0:
            state, _ = walk_step(state, self.likelihood, proposal, self.noise)
        return state, shares

    def coordinates(self, state: State) -> Tensor:
        """Coordinates (chains, D) of the populations, in the form of ``visited`` in `tune`."""
        return coordinates(self.space, state.population)

    def population(self, vector: Tensor) -> PopulationParameters:
        """The population at coordinates."""
        return population_of(self.space, vector)
