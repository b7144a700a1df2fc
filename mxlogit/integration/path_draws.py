r"""The marginal likelihood of many populations on draws that stay where they are, of each person the kind that suits.

With draws :math:`\xi_s \sim q` of whitened tastes

.. math:: \log \hat p(y \mid \theta) = \log \tfrac1S \sum_s P(y \mid \alpha, g(\zeta + L \xi_s)) \phi(\xi_s) / q(\xi_s).

Where people say little these hardly move, whatever the population, and any map from latents to tastes will do. Where
they say much it is tastes that stay, as in `mxlogit.integration.kept_draws`, which costs an exponential per draw and
population and has a control variate, but where wider populations have tastes where no draws are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.draws.importance import log_standard_normal, shifted_net
from mxlogit.draws.jackknife import Jackknife
from mxlogit.integration.laplace import drawn_log_prob, drawn_utility, whitened_log_prob
from mxlogit.integration.marginal import MarginalLikelihood, Proposal, Sweep
from mxlogit.integration.simulated_block import evaluate_in_parts
from mxlogit.model.likelihood import compute_odds
from mxlogit.model.mixed_logit import PanelModel
from mxlogit.model.panels import PanelDifferences
from mxlogit.model.parameters import Population

# Numbers that may be kept (64 MB in single precision), and rows of data times draws at a population: 30 ms.
_MOST_NUMBERS, _MOST_CELLS = 16_000_000, 8_000_000
# Rows of data times draws that are evaluated together.
_CELLS = 512_000
# How much of the logarithm of the mean of all draws over that of halves takes away the bias that it has, and the
# variance of the former by the squared difference of halves: for random draws, whose variance falls as one over their
# number, and for nets, whose variance falls as its square or faster (Owen 1997, Annals of Statistics 25).
_RANDOM, _NETS = (2.0, 1.0 / 4.0), (4.0 / 3.0, 1.0 / 8.0)


@dataclass(frozen=True)
class _Drawn(ABC):
    """Draws of some people.

    ``part`` and ``variance`` are those of `_RANDOM` or `_NETS`.
    """

    panel: PanelDifferences
    part: float
    variance: float

    @abstractmethod
    def log_weights(self, model: PanelModel, population: Population) -> Tensor:
        """Logarithms (n, s) of weighted probabilities of the choices."""

    @abstractmethod
    def pull(self, model: PanelModel, population: Population) -> Tensor:
        """Derivatives (D,) of the weighted sum of logarithms by fixed coefficients, locations and the cells of L."""

    def halves(self, model: PanelModel, population: Population) -> Tensor:
        """Logarithms (n, 2) of the halves' means of weighted probabilities."""
        log_weights = self.log_weights(model, population)
        return Jackknife(log_weights).log_sums.double() - math.log(0.5 * log_weights.shape[-1])

    def log_mean(self, halves: Tensor) -> Tensor:
        """Logarithms (n,) of the means of all draws, without the bias that finite numbers have."""
        mean = halves.mean(1)
        return mean + self.part * (halves.logsumexp(1) - math.log(2.0) - mean)

    def noise(self, halves: Tensor, apart: Tensor) -> Tensor:
        """Weighted sum of the variances of people's values, from halves (n, 2) and what differs at the anchor (n,)."""
        return self.variance * (self.panel.weights.double().square() @ (halves.diff(dim=1)[:, 0] - apart).square())

    def shares(self, halves: Tensor) -> Tensor:
        """Derivatives (n, 2) of `log_mean`."""
        return self.part * halves.softmax(1) + 0.5 * (1.0 - self.part)


@dataclass(frozen=True)
class WhitenedDraws(_Drawn):
    """Whitened tastes (n, k, s) that stay, and their log ratios (n, s) or zero: tastes move with the population."""

    xi: Tensor
    log_ratio: Tensor

    @classmethod
    def around_modes(cls, marginal: MarginalLikelihood, proposal: Proposal) -> WhitenedDraws:
        """Draws from the local factors of a proposal."""
        return cls(proposal.panel, *_RANDOM, *marginal.whitened(proposal))

    @classmethod
    def from_population(cls, marginal: MarginalLikelihood, proposal: Proposal, key: int) -> WhitenedDraws:
        """Quasi-random draws of the same people from the population.

        That is all there is to know of people who say little: of one choice, with two tastes, 64 of these have the
        noise of a thousand random ones around modes.
        """
        part = proposal.part.cpu() if isinstance(proposal.part, Tensor) else proposal.part
        places = (marginal.people.first + torch.arange(len(marginal.people.panels)))[part]
        count = 1 << (proposal.base.points.shape[-1] - 1).bit_length()
        uniform = shifted_net((marginal.seed, key), places, marginal.space.n_random, count)
        nothing = proposal.factor.mean.new_zeros(1, count)
        return cls(proposal.panel, *_NETS, torch.special.ndtri(uniform).to(nothing), nothing)

    def log_weights(self, model: PanelModel, population: Population) -> Tensor:
        """Compute the logarithms of weighted probabilities, as `_Drawn` says."""
        return whitened_log_prob(self.xi, population, self.panel, model.mixing) + self.log_ratio

    def pull(self, model: PanelModel, population: Population) -> Tensor:
        """Compute the derivatives, as `_Drawn` says."""
        ratios = self.log_ratio.expand(len(self.xi), -1).chunk(2, -1)
        blocks = [
            evaluate_in_parts(model, population, self.panel, xi.contiguous(), ratio, curvature=False)
            for xi, ratio in zip(self.xi.chunk(2, -1), ratios, strict=True)
        ]
        shares = self.shares(torch.stack([block.log_sum for block in blocks], 1)).unbind(1)
        scores = torch.stack([share[:, None] * block.score for share, block in zip(shares, blocks, strict=True)])
        return self.panel.weights.double() @ scores.sum(0).double()


@dataclass(frozen=True)
class LatentDraws(_Drawn):
    """Latent tastes (n, k, s) that stay, with the log density (n, s) that they are from.

    Right for people who say much: their tastes are where they are, whatever the population.
    """

    latent: Tensor
    log_q: Tensor
    known: Tensor | None

    @classmethod
    def around_modes(
        cls, model: PanelModel, marginal: MarginalLikelihood, proposal: Proposal, anchor: Population
    ) -> LatentDraws:
        """Draws from a proposal's local factors; probabilities that no fixed coefficient moves are computed once."""
        xi, log_ratio = marginal.whitened(proposal)
        log_q = log_standard_normal(xi.square().sum(1), xi.shape[1]) - log_ratio - _log_volume(anchor)
        latent = anchor.location[:, None] + anchor.scale_tril @ xi
        draws = cls(proposal.panel, *_RANDOM, latent, log_q, None)
        return draws if model.space.n_fixed else replace(draws, known=draws._log_prob(model, anchor))

    def log_weights(self, model: PanelModel, population: Population) -> Tensor:
        """Compute the logarithms of weighted probabilities, as `_Drawn` says."""
        xi = self._whitened(population)
        log_prior = log_standard_normal(xi.square().sum(1), xi.shape[1]) - _log_volume(population)
        log_prob = self._log_prob(model, population) if self.known is None else self.known
        return log_prob + log_prior - self.log_q

    def pull(self, model: PanelModel, population: Population) -> Tensor:
        """Compute the derivatives, as `_Drawn` says."""
        jackknife = Jackknife(self.log_weights(model, population))
        weights = jackknife.weights * self.panel.weights[:, None]
        xi, tril = self._whitened(population), population.scale_tril
        total = torch.eye(len(tril)).to(tril) * weights.sum()
        second = torch.einsum("nks,nls,ns->kl", xi, xi, weights) - total
        by_location = torch.linalg.solve_triangular(tril.T, torch.einsum("nks,ns->k", xi, weights)[:, None], upper=True)
        by_tril = torch.linalg.solve_triangular(tril.T, second, upper=True)
        rows, columns = model.space.triangle
        parts = [self._pull_of_fixed(model, population, weights), by_location[:, 0], by_tril[rows, columns]]
        return torch.cat(parts).double()

    def _pull_of_fixed(self, model: PanelModel, population: Population, weights: Tensor) -> Tensor:
        n_fixed = model.space.n_fixed
        if n_fixed == 0:
            return weights.new_zeros(0)
        odds = compute_odds(
            drawn_utility(self._tastes(model, population), population, self.panel, model.mixing), self.panel
        )
        mean = odds.weigh_probabilities(weights[..., None])[..., 0]
        return -torch.einsum("nrf,nr->f", self.panel.values[..., :n_fixed], mean)

    def _whitened(self, population: Population) -> Tensor:
        centred = (self.latent - population.location[:, None]).transpose(0, 1)
        flat = torch.linalg.solve_triangular(population.scale_tril, centred.flatten(1), upper=False)
        return flat.view_as(centred).transpose(0, 1)

    def _tastes(self, model: PanelModel, population: Population) -> Tensor:
        return model.mixing.tastes(self.latent.mT, population.location, population.scale).mT

    def _log_prob(self, model: PanelModel, population: Population) -> Tensor:
        return drawn_log_prob(self._tastes(model, population), population, self.panel, model.mixing)


def _log_volume(population: Population) -> Tensor:
    return population.scale_tril.diagonal().log().sum()


class PathDraws:
    """Draws of everybody's whitened tastes around one population.

    Of each group of people with like panels, whichever have the least noise: whitened tastes from the population or
    around modes, or tastes around modes.

    Parameters
    ----------
    model : PanelModel
    marginal : MarginalLikelihood
        Of everybody, with modes near those at the anchor; `can_keep_paths` says whether there is room.
    anchor : Population
    sweep : Sweep
        How many draws, of which the next power of two are taken, and from what where they are around modes.
    vectors : Tensor, shape (b, D)
        Where noise is compared: unconstrained, about the posterior.

    Attributes
    ----------
    cells : int
        Rows of data times draws, which the time of a population is proportional to.
    """

    def __init__(
        self, model: PanelModel, marginal: MarginalLikelihood, anchor: Population, sweep: Sweep, vectors: Tensor
    ) -> None:
        sweep = replace(sweep, draws=1 << (sweep.draws - 1).bit_length())
        self.model, self._people, self.cells = model, marginal.people, path_cells(marginal, sweep.draws)
        here = anchor.to(marginal.people.like)
        there = [model.space.constrain(vector).to(marginal.people.like) for vector in vectors]
        self._chunks: list[_Drawn] = []
        self._apart: list[Tensor] = []
        for proposal in marginal.propose(anchor, sweep, remember=False, cells=_CELLS):
            kinds = list(_kinds(model, marginal, proposal, here, sweep.key))
            aparts = [drawn.halves(model, here).diff(dim=1)[:, 0] for drawn in kinds]
            noises = [
                torch.stack([drawn.noise(drawn.halves(model, other), apart) for other in there]).median()
                for drawn, apart in zip(kinds, aparts, strict=True)
            ]
            best = int(torch.stack(noises).nan_to_num(math.inf).argmin())
            self._chunks.append(kinds[best])
            self._apart.append(aparts[best])

    @torch.no_grad()
    def log_likelihood(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Log likelihoods (b,) at unconstrained vectors (b, D), and variances of their differences to the anchor's.

        Variances are those from the finite number of draws, by how much halves of each person's draws differ.
        """
        total = torch.zeros(2, len(vectors), dtype=torch.float64)
        for i, vector in enumerate(vectors):
            total[:, i] = self._value(vector)
        return total[0], total[1]

    def _value(self, vector: Tensor) -> Tensor:
        local = self.model.space.constrain(vector).to(self._people.like)
        total = self._people.like.new_zeros(2, dtype=torch.float64)
        for chunk, apart in zip(self._chunks, self._apart, strict=True):
            halves = chunk.halves(self.model, local)
            total[0] += chunk.panel.weights.double() @ chunk.log_mean(halves)
            total[1] += chunk.noise(halves, apart)
        return self._people.team.total(total)[0]

    def gradients(self, vectors: Tensor) -> Tensor:
        """Gradients (b, D) of the log likelihoods at unconstrained vectors (b, D)."""
        return torch.stack([self._gradient(vector) for vector in vectors])

    def _gradient(self, vector: Tensor) -> Tensor:
        space = self.model.space
        rows, columns = space.triangle
        with torch.enable_grad():
            inputs = vector.detach().requires_grad_()
            population = space.constrain(inputs)
            with torch.no_grad():
                pull = self._pull(population.to(self._people.like))
            moves = torch.cat([population.fixed, population.location, population.scale_tril[rows, columns]])
            (gradient,) = torch.autograd.grad(moves @ pull, inputs)
        return gradient

    def _pull(self, local: Population) -> Tensor:
        """Derivatives (D,) by fixed coefficients, locations and the free cells of L."""
        total = self._people.like.new_zeros(self.model.space.size, dtype=torch.float64)
        for chunk in self._chunks:
            total += chunk.pull(self.model, local)
        return self._people.team.total(total)[0]


def _kinds(
    model: PanelModel, marginal: MarginalLikelihood, proposal: Proposal, anchor: Population, key: int
) -> Iterator[_Drawn]:
    """Draws of the kinds that there are of some people."""
    yield WhitenedDraws.from_population(marginal, proposal, key)
    yield WhitenedDraws.around_modes(marginal, proposal)
    if not model.mixing.direct and model.mixing.scale_position is None:
        yield LatentDraws.around_modes(model, marginal, proposal, anchor)


def can_keep_paths(marginal: MarginalLikelihood, draws: int) -> bool:
    """Return whether whitened draws fit in memory, and rows times draws stay below a bound of time."""
    k, people = marginal.space.n_random, marginal.people
    return k > 0 and len(people) * draws * (k + 1) <= _MOST_NUMBERS and path_cells(marginal, draws) <= _MOST_CELLS


def path_cells(marginal: MarginalLikelihood, draws: int) -> int:
    """Rows of data times draws of everybody; single people with more than a chunk have fewer draws."""
    rows, _ = marginal.people.counts
    return int(marginal.people.total((rows * draws).clamp(max=float(_CELLS))))
