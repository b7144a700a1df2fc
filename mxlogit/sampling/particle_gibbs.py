r"""Particle Gibbs of the population parameters and people's tastes, for all people and chains at once.

Every chain holds several draws of each person's tastes. Given these, the population parameters move by Hamiltonian
dynamics under the marginal likelihood that the draws estimate, tastes summed out; then one draw of each person is
selected by its weight, and all others are drawn again (iterated sampling importance resampling; Andrieu, Doucet and
Holenstein 2010, Journal of the Royal Statistical Society B 72). The chains keep the exact posterior with any number of
draws. With several dozen, the population hardly notices which tastes are held: successive states are nearly
independent, where a Gibbs sampler of tastes takes hundreds of iterations.

Draws come in antithetic pairs: with a selected draw its partner is kept, being determined by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.choices.chunks import cells_at_once
from mxlogit.draws.importance import BaseDraws, DrawScheme
from mxlogit.execution.people import dense_pieces
from mxlogit.guide.population import GaussianFactor
from mxlogit.integration.laplace import polish
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import Odds, Scratch, compute_odds, panel_derivatives
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import ParameterSpace, PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.model.triangles import lower_of
from mxlogit.sampling.chains import Noise, State
from mxlogit.sampling.hamiltonian_move import HamiltonianMove, Target, accept
from mxlogit.sampling.held_tastes import HeldTastes, HeldTasteSteps
from mxlogit.sampling.taste_draws import FixedExpansion, TasteDraws, Whitening
from mxlogit.sampling.taste_proposals import TasteProposals

# Newton steps to people's modes at the reference; all but a few people need five.
_NEWTON_STEPS = 20
# Share of the usual cells of a chunk: utilities, draws and densities stay in a cache (388 people, 9 rows, 768 draws: 63
# instead of 95 ms with all at once).
_SHARE = 0.2
# Distance from the mean, in sds, of differences that give curvature, and bounds on it relative to the fitted Gaussian;
# chosen by hand.
_DISTANCE, _CURVATURES = 0.5, (0.2, 100.0)
# Largest increase of a log standard deviation of the reference population over the mean; chosen by hand.
_MOST_WIDER = 0.4
# Key of base draws, beside the seed.
_STREAM = 83
# Weight of the former Gaussian in a fitted one, in samples per parameter, and states in a row that count as a sample.
_FORMER_SAMPLES, _STATES_OF_A_SAMPLE = 0.5, 3.0


@dataclass(frozen=True)
class ParticleState:
    """States of the chains.

    Attributes
    ----------
    vectors : Tensor, shape (chains, D)
        Unconstrained population parameters.
    draws : TasteDraws
    held : HeldTastes or None
        Tastes that the next draws of each person include; None at first.
    """

    vectors: Tensor
    draws: TasteDraws
    held: HeldTastes | None = None

    def restarted(self, sources: Tensor) -> ParticleState:
        """States in which each chain is where the chain ``sources`` (chains,) is; draws are to be drawn again."""
        assert self.held is not None
        held = HeldTastes(self.held.whitened[sources], self.held.place[sources])
        return ParticleState(self.vectors[sources], self.draws, held)


class DrawMoments:
    """Running moments of people's whitened tastes over weighted draws, float64."""

    def __init__(self) -> None:
        self._count, self._first, self._second = 0, torch.zeros(()), torch.zeros(())

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Means (n, k) and covariances (n, k, k)."""
        mean = self._first / self._count
        return mean, self._second / self._count - mean[:, :, None] * mean[:, None]

    def add(self, whitened: Tensor, weights: Tensor) -> None:
        """Add draws (chains, k, n, s) with weights (chains, n, s)."""
        for draws, each in zip(whitened, weights, strict=True):
            people = draws.transpose(0, 1)
            weighted = people * each[:, None]
            self._first = self._first + weighted.sum(2).double()
            self._second = self._second + torch.bmm(weighted, people.mT).double()
            self._count += 1


class ParticleGibbs:
    """Iterations of all chains.

    Parameters
    ----------
    model : MixedLogitModel
        Model whose mixing maps do not depend on the population parameters.
    panel : PanelDifferences or RaggedPanels
        Panel in which every person has weight one.
    chains, draws : int
        Number of chains, and of draws per person and chain (a multiple of four).
    seed : int
    gaussian : GaussianFactor
        Approximate posterior of the unconstrained vector: the scale of the first trajectories, and the population for
        which people's first proposals are made.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        panel: Panels,
        chains: int,
        draws: int,
        seed: int,
        gaussian: GaussianFactor,
    ) -> None:
        self.model, self.panel, self.chains, self._draws, self._seed = model, panel, chains, draws, seed
        self.noise, self.move = Noise(seed, chains), HamiltonianMove(gaussian)
        self._steps, self._scratch, self._round = HeldTasteSteps(model, panel), Scratch(), 0
        reference = _wide(model.space, gaussian)
        zero = panel.like.new_zeros(len(panel), model.space.n_random)
        factor = polish(zero, reference.to(panel.like), panel, model.mixing, _NEWTON_STEPS)
        self.proposals = TasteProposals(Whitening(reference.location, reference.scale_tril), factor)
        self._expand(reference)

    def _expand(self, reference: PopulationParameters) -> None:
        """Expand log probabilities in the fixed coefficients around those of a reference."""
        self._reference, self._local = reference, reference.to(self.panel.like)
        self._information = self._curvature(self.proposals.factor.mean)

    def start(self, vectors: Tensor) -> ParticleState:
        """Initial states at unconstrained vectors (chains, D)."""
        return ParticleState(vectors, self._draw(vectors, None))

    def run(
        self, state: ParticleState, iteration: int, *, adapt: bool, moments: DrawMoments | None = None
    ) -> tuple[ParticleState, float]:
        """Run one iteration: population, selection, steps of what is held, new draws.

        Returns the state and the mean acceptance. Weighted draws, before the selection, are added to ``moments``.
        """
        state, share = self._move(state, iteration)
        if adapt:
            self.move.adapt(share)
        weights = state.draws.weights(self.model.space.constrain(state.vectors))
        if moments is not None:
            moments.add(state.draws.whitened, weights)
        held = self._select(state.draws, weights)
        vectors, held = self._steps.run(state.vectors, held, self.proposals, self.noise, adapt=adapt)
        return ParticleState(vectors, self._draw(vectors, held), held), share

    def state(self, state: ParticleState) -> State:
        """The held tastes as states of chains."""
        assert state.held is not None
        return self._steps.states(state.vectors, state.held, self.proposals.whitening)

    def tune(self, state: ParticleState, moments: DrawMoments, visited: Tensor) -> ParticleState:
        """Fit proposals to weighted draws and the Gaussian to visited vectors (iterations, chains, D); draw again."""
        self._steps.tune(self.state(state))
        gaussian = _shrunk(visited.flatten(0, 1), self.move.gaussian)
        self.move = HamiltonianMove(self._with_curvature(state.draws, gaussian))
        reference = _wide(self.model.space, gaussian)
        former, whitening = self.proposals, Whitening(reference.location, reference.scale_tril)
        self.proposals = former.fitted(*moments.mean_and_covariance(), whitening)
        self._expand(reference)
        assert state.held is not None
        held = replace(state.held, whitened=whitening.rewhiten(former.whitening, state.held.whitened))
        return ParticleState(state.vectors, self._draw(state.vectors, held), held)

    def _with_curvature(self, draws: TasteDraws, gaussian: GaussianFactor) -> GaussianFactor:
        """Gaussian with the mean curvature of all chains' log densities given their draws, around its mean.

        That is what trajectories follow. A few states tell it less well than differences of gradients do.
        """
        moves = _DISTANCE * gaussian.tril.T
        target = self._target(draws)
        above, below = (
            torch.stack([target(vector.expand(self.chains, -1))[1].mean(0) for vector in gaussian.mean + sign * moves])
            for sign in (1.0, -1.0)
        )
        precision = (below - above) @ gaussian.tril / (2.0 * _DISTANCE)
        if not bool(torch.isfinite(precision).all()):
            return gaussian
        values, axes = torch.linalg.eigh(0.5 * (precision + precision.T))
        return GaussianFactor(gaussian.mean, lower_of(gaussian.tril @ axes * values.clamp(*_CURVATURES).rsqrt()))

    def _target(self, draws: TasteDraws) -> Target:
        """Log posterior density of the chains given their draws, and its gradient."""
        space, prior = self.model.space, self.model.prior

        def target(vectors: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = draws.approximate(space, vectors)
            return value + prior.log_prob(space, vectors), gradient + prior.derivatives(space, vectors)[0]

        return target

    def _move(self, state: ParticleState, iteration: int) -> tuple[ParticleState, float]:
        """Move the population parameters given all draws."""
        space, draws = self.model.space, state.draws
        path = self.move.propose(state.vectors, self._target(draws), iteration, self.noise)
        gain, log_ratio = path.gain, draws.log_ratio
        if draws.expansion is not None:
            proposed = replace(draws, log_ratio=self._ratio_at(path.vectors, draws))
            gain = gain + proposed.error_of_expansion(space, path.vectors)
            gain = gain - draws.error_of_expansion(space, state.vectors)
        accepted, share = accept(gain, self.noise)
        if draws.expansion is not None:
            log_ratio = torch.where(accepted[:, None, None], proposed.log_ratio, log_ratio)
        vectors = torch.where(accepted[:, None], path.vectors, state.vectors)
        return replace(state, vectors=vectors, draws=replace(draws, log_ratio=log_ratio)), float(share.mean())

    def _select(self, draws: TasteDraws, weights: Tensor) -> HeldTastes:
        """Select one draw of every person by weights (chains, n, s)."""
        points = self.noise.uniform(weights.shape[1], like=weights)[..., None]
        place = (weights.cumsum(2) < points.to(weights)).sum(2).clamp(max=weights.shape[2] - 1)
        index = place[:, None, :, None].expand(*draws.whitened.shape[:3], 1)
        return HeldTastes(draws.whitened.gather(3, index)[..., 0], place)

    def _draw(self, vectors: Tensor, held: HeldTastes | None) -> TasteDraws:
        """Draws of all people and chains, among which the selected ones of ``held``."""
        like, k, n, f = self.panel.like, self.model.space.n_random, len(self.panel), self.model.space.n_fixed
        whitened, slopes = (like.new_empty(self.chains, size, n, self._draws) for size in (k, f))
        log_ratio, at_reference, log_density = (like.new_empty(self.chains, n, self._draws) for _ in range(3))
        fixed = self.model.space.constrain(vectors).fixed.to(like)
        scheme = self.proposals.scheme((self._seed, _STREAM, self._round), self._draws)
        self._round += 1
        first = 0
        for place, piece in self._pieces():
            base = self._base(scheme, first, len(piece))
            first += self.chains * len(piece)
            drawn, log_q = self.proposals.draw(place, base)
            if held is not None:
                self._hold(held, place, base, drawn, log_q)
            tastes = self._tastes(drawn)
            whitened[:, :, place], log_density[:, place] = self._by_chain(drawn), self._by_chain(log_q)
            log_ratio[:, place] = self._by_chain(self._odds(piece, fixed, tastes).log_prob - log_q)
            if f:
                odds = self._odds(piece, self._local.fixed.expand(self.chains, -1), tastes)
                at_reference[:, place] = self._by_chain(odds.log_prob - log_q)
                slopes[:, :, place] = self._by_chain(-torch.bmm(piece.values[..., :f].mT, odds.probabilities()))
        expansion = None
        if f:
            expansion = FixedExpansion(self._reference.fixed, at_reference, log_density, slopes, self._information)
        return TasteDraws(self.proposals.whitening, whitened, log_ratio, expansion)

    def _hold(self, held: HeldTastes, place: slice | Tensor, base: BaseDraws, drawn: Tensor, log_q: Tensor) -> None:
        """Overwrite draws (n, k, chains s) and log densities by selected ones and their partners, in their places."""
        kept, slots = held.whitened[..., place].permute(2, 1, 0), held.place[:, place].mT
        quarter = self._draws // 4
        # The axis of draws is (half, sign, position); the last positions come from the reference.
        is_prior = slots % quarter >= quarter - base.n_prior
        partner = torch.where(slots // quarter % 2 == 0, slots + quarter, slots - quarter)
        both = torch.cat([kept, self.proposals.mirror(place, kept, is_prior)], -1)
        offset = self._draws * torch.arange(self.chains, device=slots.device)
        slots = torch.cat([slots + offset, partner + offset], 1)
        drawn.scatter_(2, slots[:, None].expand_as(both), both)
        log_q.scatter_(1, slots, self.proposals.log_density(place, both, base))

    def _ratio_at(self, vectors: Tensor, draws: TasteDraws) -> Tensor:
        """Log ratios (chains, n, s) of the draws at other fixed coefficients."""
        assert draws.expansion is not None
        fixed = self.model.space.constrain(vectors).fixed.to(draws.whitened)
        result = torch.empty_like(draws.log_ratio)
        for place, piece in self._pieces():
            drawn = draws.whitened[:, :, place].permute(2, 1, 0, 3).flatten(2)
            result[:, place] = self._by_chain(self._odds(piece, fixed, self._tastes(drawn)).log_prob)
        return result.sub_(draws.expansion.log_density)

    def _base(self, scheme: DrawScheme, first: int, people: int) -> BaseDraws:
        """Base draws of some people, (people, k, chains s), from place ``first`` of the scheme's sequence."""
        found = scheme.points(first, self.chains * people, self.panel.like)
        points = found.points.unflatten(0, (self.chains, people)).permute(1, 2, 0, 3).flatten(2)
        return replace(found, points=points, n_groups=self.chains)

    def _by_chain(self, values: Tensor) -> Tensor:
        """Values (n, ..., chains s) as (chains, ..., n, s)."""
        split = values.unflatten(-1, (self.chains, -1)).movedim(-2, 0)
        return split if values.dim() == 2 else split.transpose(1, 2)

    def _pieces(self) -> Iterator[tuple[slice | Tensor, PanelDifferences]]:
        """Dense pieces of the panel, small enough for all draws of all chains."""
        cells = _SHARE * cells_at_once(device=self.panel.like.device)
        width = max(1, self.panel.n_rows) * self.chains * self._draws
        return dense_pieces(self.panel, max(1, int(cells / width)))

    def _tastes(self, drawn: Tensor) -> Tensor:
        """Tastes (n, k, s) at whitened draws."""
        return self._people().tastes_at(self.proposals.whitening.latents(drawn))

    def _people(self) -> PersonTastes:
        return PersonTastes(self._local, self.model.mixing)

    def _odds(self, piece: PanelDifferences, fixed: Tensor, tastes: Tensor) -> Odds:
        """Odds at fixed coefficients (chains, f) and tastes (n, k, chains s)."""
        each = fixed.mT[None, :, :, None].expand(len(piece), -1, -1, self._draws).flatten(2)
        coefficients = torch.cat([each, tastes], 1)
        shape = (len(piece), piece.n_rows, coefficients.shape[-1])
        return compute_odds(torch.bmm(piece.values, coefficients, out=self._scratch.take(shape, tastes)), piece)

    def _curvature(self, whitened: Tensor) -> Tensor:
        """Information (f, f) about the fixed coefficients at one taste vector (n, k) per person, float64."""
        f = self.model.space.n_fixed
        total = torch.zeros(f, f, dtype=torch.float64, device=whitened.device)
        for place, piece in self._pieces() if f else ():
            utility = self._people().utility(self._tastes(whitened[place][..., None]), piece)
            total += panel_derivatives(utility[..., 0], piece, slice(f)).information.double().sum(0)
        return total


def _wide(space: ParameterSpace, gaussian: GaussianFactor) -> PopulationParameters:
    """Population at the mean, with standard deviations one posterior deviation larger: draws cover narrower ones."""
    vector = gaussian.mean.clone()
    scales = space.scales
    vector[scales] += gaussian.tril[scales].norm(dim=1).clamp(max=_MOST_WIDER)
    return space.constrain(vector)


def _shrunk(vectors: Tensor, former: GaussianFactor) -> GaussianFactor:
    """Gaussian fitted to states (m, D), its covariance shrunk to that of the former one."""
    count, prior = len(vectors) / _STATES_OF_A_SAMPLE, _FORMER_SAMPLES * vectors.shape[1]
    before = former.tril @ former.tril.T
    covariance = (count * torch.cov(vectors.T).reshape(before.shape) + prior * before) / (count + prior)
    return GaussianFactor(vectors.mean(0), torch.linalg.cholesky(covariance))
