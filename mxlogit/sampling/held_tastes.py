"""Steps of the tastes that chains hold between two sets of draws, and of the population at constant whitened tastes.

A held taste in a region where proposals are thin outweighs all new draws; random-walk steps lead it out. Where standard
deviations are small, all held tastes are close to their mean and hold the population in its place; at constant
whitened tastes it moves all the same (Yu and Meng 2011, Journal of Computational and Graphical Statistics 20).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.triangles import inverse_of_lower
from mxlogit.sampling.chains import ChainLikelihood, Noise, State, with_people
from mxlogit.sampling.covariance import resolve_taste_prior
from mxlogit.sampling.population_step import PopulationPrior, WhitenedMove, precision_factor
from mxlogit.sampling.taste_draws import Whitening
from mxlogit.sampling.taste_proposals import TasteProposals

# Random-walk steps of the held tastes in an iteration, and their sd times sqrt(k), in sds of the proposal (Roberts and
# Rosenthal 2001, Statistical Science 16).
_WALKS, _WALK = 3, 2.38
# Initial step size of the whitened move, before adaptation; chosen by hand.
_FIRST_STEP = 0.3


@dataclass(frozen=True)
class HeldTastes:
    """One taste vector of each person and chain, and its place among the draws.

    Attributes
    ----------
    whitened : Tensor, shape (chains, k, n)
    place : Tensor, int64, shape (chains, n)
    """

    whitened: Tensor
    place: Tensor


class HeldTasteSteps:
    """Steps of held tastes and populations.

    Parameters
    ----------
    model : MixedLogitModel
    panel : PanelDifferences or RaggedPanels
    """

    def __init__(self, model: MixedLogitModel, panel: Panels) -> None:
        space, prior = model.space, model.prior
        self._space, self._deviation = space, prior.deviation
        self._likelihood = ChainLikelihood(model, panel)
        fixed = prior.mean[: space.n_fixed], prior.deviation[: space.n_fixed]
        self._prior = PopulationPrior(space, resolve_taste_prior(space, prior, None), *fixed)
        self._whitened: WhitenedMove | None = None
        self._adapted = 0

    def states(self, vectors: Tensor, held: HeldTastes, whitening: Whitening) -> State:
        """Held tastes as states of chains, whitened by each chain's own population; without log probabilities."""
        population = self._space.constrain(vectors)
        location, tril = whitening.whiten(population)
        xi = torch.linalg.solve_triangular(tril, held.whitened.double() - location[..., None], upper=False)
        xi = xi.to(held.whitened)
        return State(population, xi, xi.new_full((len(xi), xi.shape[2]), math.nan))

    def run(
        self, vectors: Tensor, held: HeldTastes, proposals: TasteProposals, noise: Noise, *, adapt: bool
    ) -> tuple[Tensor, HeldTastes]:
        """Run one iteration: tastes, then populations. Returns vectors (chains, D) and held tastes."""
        state = self.states(vectors, held, proposals.whitening)
        state = replace(state, log_prob=self._likelihood.log_prob(state.population, state.xi))
        for _ in range(_WALKS):
            state = self._walk(state, proposals, noise)
        if self._whitened is None:
            self.tune(state)
        assert self._whitened is not None
        state, share = self._whitened.run(state, self._likelihood, noise)
        if adapt:
            self._whitened.adapt(share, self._adapted)
            self._adapted += 1
        location, tril = proposals.whitening.whiten(state.population)
        whitened = (location[..., None] + tril @ state.xi.double()).to(held.whitened)
        return self._space.unconstrain(state.population), replace(held, whitened=whitened)

    def tune(self, state: State) -> None:
        """Fit the whitened move to the curvature at a state."""
        step = (
            self._deviation.new_full((len(state.xi),), _FIRST_STEP) if self._whitened is None else self._whitened.step
        )
        self._whitened = WhitenedMove(self._prior, precision_factor(self._likelihood, state, self._deviation), step)

    def _walk(self, state: State, proposals: TasteProposals, noise: Noise) -> State:
        """Random-walk Metropolis step of all tastes."""
        k, n = state.xi.shape[1:]
        unit = noise.normal(k, n, like=state.xi) * (_WALK / k**0.5)
        # Elementwise: a batched product of transposed views would run matrix by matrix.
        steps = (proposals.factor.root * unit.mT[..., None, :]).sum(-1).mT
        inverse = inverse_of_lower(proposals.whitening.whiten(state.population)[1]).to(unit)
        moved = state.xi + inverse @ steps
        log_prob = self._likelihood.log_prob(state.population, moved)
        gain = log_prob - state.log_prob + 0.5 * (state.xi.square().sum(1) - moved.square().sum(1))
        return with_people(state, moved, log_prob, noise.uniform(n, like=gain).log() < gain)
