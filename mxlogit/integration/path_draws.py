r"""Marginal likelihood at many population values on fixed draws, of the best kind for each group of people.

With draws :math:`\xi_s \sim q` of whitened tastes

.. math:: \log \hat p(y \mid \theta) = \log \tfrac1S \sum_s P(y \mid \alpha, g(\zeta + L \xi_s)) \phi(\xi_s) / q(\xi_s).

If choices are little informative about tastes, fixed whitened tastes :math:`\xi_s` serve all population values, with
any mixing map. If they are informative, fixed tastes have less noise (`mxlogit.integration.fixed_taste_draws`, at one
exponential per draw and population value and with a control variate), but they do not cover the tails of populations
with larger variances.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.choices.chunks import cells_at_once
from mxlogit.draws.importance import DrawScheme, log_standard_normal
from mxlogit.draws.jackknife import Jackknife
from mxlogit.integration.laplace import drawn_log_prob, whitened_log_prob
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.proposals import Proposal
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.simulated_block import sum_scores
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import compute_odds
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes

# Largest number of floats of all fixed draws together: 64 MB in single precision.
_MOST_NUMBERS = 16_000_000
# Largest rows x draws evaluated per population value: about 30 ms.
_MOST_CELLS = 8_000_000
# Rows x draws evaluated at once: an eighth of the usual ones, since as many arrays are held; chosen by hand.
_CELLS = cells_at_once(0.125)
# Extrapolation factor that removes the bias of the log mean, from its halves to all draws, and variance of the log mean
# per squared difference of the halves. Variance of a mean of random draws falls as 1 / s:
_RANDOM = (2.0, 1.0 / 4.0)
# and of a randomised net as 1 / s^2 or faster (Owen 1997, Annals of Statistics 25).
_NETS = (4.0 / 3.0, 1.0 / 8.0)


@dataclass(frozen=True)
class _Drawn(ABC):
    """Fixed draws of some people.

    ``part`` and ``variance`` are the two numbers of `_RANDOM` or `_NETS`.
    """

    panel: PanelDifferences
    part: float
    variance: float

    @abstractmethod
    def log_weights(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
        """Logarithms (n, s) of the importance-weighted probabilities of the choices."""

    @abstractmethod
    def pull(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
        """Gradient of the weighted sum of `log_mean` in all fixed coefficients, locations and free entries of L."""

    def halves(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
        """Logarithms (n, 2) of the mean weighted probability over each half of the draws."""
        log_weights = self.log_weights(model, population)
        return Jackknife(log_weights).log_sums.double() - math.log(0.5 * log_weights.shape[-1])

    def log_mean(self, halves: Tensor) -> Tensor:
        """Bias-corrected logarithms (n,) of the mean over all draws."""
        mean = halves.mean(1)
        return mean + self.part * (halves.logsumexp(1) - math.log(2.0) - mean)

    def noise(self, halves: Tensor, apart: Tensor) -> Tensor:
        """Weighted sum over people of variances, from halves (n, 2) less their differences at the anchor (n,)."""
        return self.variance * (self.panel.weights.double().square() @ (halves.diff(dim=1)[:, 0] - apart).square())

    def shares(self, halves: Tensor) -> Tensor:
        """Derivatives (n, 2) of `log_mean` with respect to the halves."""
        return self.part * halves.softmax(1) + 0.5 * (1.0 - self.part)


@dataclass(frozen=True)
class WhitenedDraws(_Drawn):
    """Fixed whitened tastes (n, k, s), and their log ratios (n, s) or zero: tastes move with the population."""

    xi: Tensor
    log_ratio: Tensor

    @classmethod
    def around_modes(cls, marginal: MarginalLikelihood, proposal: Proposal) -> WhitenedDraws:
        """Draws from the local factors of a proposal."""
        return cls(proposal.panel, *_RANDOM, *marginal.whitened(proposal))

    @classmethod
    def from_population(cls, marginal: MarginalLikelihood, proposal: Proposal, stream: int) -> WhitenedDraws:
        """Quasi-random draws for the people of a proposal from the mixing distribution.

        They suit uninformative panels: with one choice and two tastes, 64 of them have the noise of a thousand random
        draws around modes.
        """
        if proposal.from_population:
            points = proposal.base.points
        else:
            count = 1 << (proposal.base.points.shape[-1] - 1).bit_length()
            scheme = DrawScheme.net((marginal.seed, stream), count, marginal.space.n_random)
            points = proposal.window.points(scheme, proposal.group, proposal.factor.mean).points
        return cls(proposal.panel, *_NETS, points, points.new_zeros(1, points.shape[-1]))

    def log_weights(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
        """Compute the logarithms of weighted probabilities, as `_Drawn` says."""
        return whitened_log_prob(self.xi, population, self.panel, model.mixing) + self.log_ratio

    def pull(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
        """Compute the derivatives, as `_Drawn` says."""
        scores = sum_scores(model, population, self.panel, self.xi, self._weigh)
        return scores.double().sum(0)

    def _weigh(self, log_prob: Tensor) -> Tensor:
        """Derivatives (n, s) of the sum over people of weighted `log_mean` with respect to log probabilities (n, s)."""
        halves = (log_prob + self.log_ratio).unflatten(-1, (2, -1))
        log_sums = halves.logsumexp(-1)
        shares = self.shares(log_sums) * self.panel.weights[:, None]
        return (halves - log_sums[..., None]).exp_().mul_(shares[..., None]).flatten(-2)


@dataclass(frozen=True)
class LatentDraws(_Drawn):
    """Fixed latent tastes (n, k, s), with the log density (n, s) of their proposal.

    They suit informative panels, whose posteriors of tastes depend little on the population.
    """

    latent: Tensor
    log_q: Tensor
    known: Tensor | None

    @classmethod
    def around_modes(
        cls, model: MixedLogitModel, marginal: MarginalLikelihood, proposal: Proposal, anchor: PopulationParameters
    ) -> LatentDraws:
        """Draws from a proposal's local factors; without fixed coefficients, probabilities are computed once."""
        xi, log_ratio = marginal.whitened(proposal)
        log_q = log_standard_normal(xi.square().sum(1), xi.shape[1]) - log_ratio - _log_volume(anchor)
        latent = anchor.latent(xi)
        draws = cls(proposal.panel, *_RANDOM, latent, log_q, None)
        return draws if model.space.n_fixed else replace(draws, known=draws._log_prob(model, anchor))

    def log_weights(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
        """Compute the logarithms of weighted probabilities, as `_Drawn` says."""
        xi = self._whitened(population)
        log_prior = log_standard_normal(xi.square().sum(1), xi.shape[1]) - _log_volume(population)
        log_prob = self._log_prob(model, population) if self.known is None else self.known
        return log_prob + log_prior - self.log_q

    def pull(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
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

    def _pull_of_fixed(self, model: MixedLogitModel, population: PopulationParameters, weights: Tensor) -> Tensor:
        n_fixed = model.space.n_fixed
        if n_fixed == 0:
            return weights.new_zeros(0)
        people = PersonTastes.of(population, model.mixing, self.panel)
        odds = compute_odds(people.utility(people.tastes_at(self.latent), self.panel), self.panel)
        mean = odds.weigh_probabilities(weights[..., None])[..., 0]
        return -torch.einsum("nrf,nr->f", self.panel.values[..., :n_fixed], mean)

    def _whitened(self, population: PopulationParameters) -> Tensor:
        centred = (self.latent - population.location[:, None]).transpose(0, 1)
        flat = torch.linalg.solve_triangular(population.scale_tril, centred.flatten(1), upper=False)
        return flat.view_as(centred).transpose(0, 1)

    def _log_prob(self, model: MixedLogitModel, population: PopulationParameters) -> Tensor:
        tastes = PersonTastes.of(population, model.mixing, self.panel).tastes_at(self.latent)
        return drawn_log_prob(tastes, population, self.panel, model.mixing)


def _log_volume(population: PopulationParameters) -> Tensor:
    return population.scale_tril.diagonal().log().sum()


class PathDraws:
    """Fixed draws of all people around one population value.

    For each group of people with panels of similar length, the kind of draws with the least noise is used: whitened
    tastes from the population or around modes, or latent tastes around modes.

    Parameters
    ----------
    model : MixedLogitModel
    marginal : MarginalLikelihood
        Marginal likelihood of all people, with modes close to those at the anchor; `supports_fixed_paths` must hold.
    anchor : PopulationParameters
    integration : IntegrationSettings
        Number of draws, rounded up to a power of two, and proposal of the draws around modes. If these are from the
        population, no other kind is tried.
    vectors : Tensor, shape (b, D)
        Unconstrained vectors, spread like the posterior, at which noise is compared.

    Attributes
    ----------
    cells : int
        Rows x draws, to which the time of one evaluation is proportional.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        marginal: MarginalLikelihood,
        anchor: PopulationParameters,
        integration: IntegrationSettings,
        vectors: Tensor,
    ) -> None:
        integration = replace(integration, draws=1 << (integration.draws - 1).bit_length())
        self.model, self._people, self.cells = model, marginal.people, path_cells(marginal, integration.draws)
        here = anchor.to(marginal.people.like)
        there = [population.to(marginal.people.like) for population in model.space.constrain_each(vectors)]
        self._chunks: list[_Drawn] = []
        self._apart: list[Tensor] = []
        for proposal in marginal.propose(anchor, integration, remember=False, cells=_CELLS):
            kinds = list(_kinds(model, marginal, proposal, here, integration))
            aparts = [drawn.halves(model, here).diff(dim=1)[:, 0] for drawn in kinds]
            best = 0
            if len(kinds) > 1:
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

        The variances are due to the finite number of draws, estimated from the two halves of each person's draws.
        """
        total = torch.zeros(2, len(vectors), dtype=torch.float64)
        for i, population in enumerate(self.model.space.constrain_each(vectors)):
            total[:, i] = self._value(population.to(self._people.like))
        return total[0], total[1]

    def _value(self, local: PopulationParameters) -> Tensor:
        total = self._people.like.new_zeros(2, dtype=torch.float64)
        for chunk, apart in zip(self._chunks, self._apart, strict=True):
            halves = chunk.halves(self.model, local)
            total[0] += chunk.panel.weights.double() @ chunk.log_mean(halves)
            total[1] += chunk.noise(halves, apart)
        return self._people.team.all_reduce_sum(total)[0]

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

    def _pull(self, local: PopulationParameters) -> Tensor:
        """Derivatives with respect to all fixed coefficients, locations and free entries of L, held ones among them."""
        total = self._people.like.new_zeros(self.model.space.whole.size, dtype=torch.float64)
        for chunk in self._chunks:
            total += chunk.pull(self.model, local)
        return self._people.team.all_reduce_sum(total)[0]


def _kinds(
    model: MixedLogitModel,
    marginal: MarginalLikelihood,
    proposal: Proposal,
    anchor: PopulationParameters,
    integration: IntegrationSettings,
) -> Iterator[_Drawn]:
    """Draws of each applicable kind for the people of a proposal."""
    yield WhitenedDraws.from_population(marginal, proposal, integration.stream)
    if integration.from_population:
        return
    yield WhitenedDraws.around_modes(marginal, proposal)
    if not model.mixing.is_direct and model.mixing.scale_position is None:
        yield LatentDraws.around_modes(model, marginal, proposal, anchor)


def supports_fixed_paths(marginal: MarginalLikelihood, draws: int) -> bool:
    """Return whether fixed draws fit in memory and in a bound on the time of one evaluation."""
    k, people = marginal.space.n_random, marginal.people
    return k > 0 and len(people) * draws * (k + 1) <= _MOST_NUMBERS and path_cells(marginal, draws) <= _MOST_CELLS


def path_cells(marginal: MarginalLikelihood, draws: int) -> int:
    """Rows x draws, summed over all people; a person with more than a chunk has fewer draws."""
    rows, _ = marginal.people.counts
    return int(marginal.people.total((rows * draws).clamp(max=float(_CELLS))))
