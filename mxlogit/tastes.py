"""Posterior of people's tastes given their choices: importance-weighted moments and samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.draws import make_generator
from mxlogit.guide.laplace import Flow, LocalFactor
from mxlogit.importance import WeightedDraws, latent_moments
from mxlogit.marginal import MarginalLikelihood, Proposal, Sweep
from mxlogit.parameters import Population
from mxlogit.people import PanelSource, People
from mxlogit.samples import pareto_k
from mxlogit.sequences import PersonDraws
from mxlogit.simulated import SimulatedLikelihood

# Beyond so many people with even weights each person's moments take so many draws at most.
_MANY_PEOPLE, _FEW_DRAWS = 5_000, 32


@dataclass(frozen=True)
class PeopleCheck:
    """Quality of the local factors.

    Attributes
    ----------
    ess : Tensor, shape (n,)
        Effective sample size fractions.
    pareto_k : Tensor, shape (n,)
    """

    ess: Tensor
    pareto_k: Tensor

    @classmethod
    def join(cls, parts: Sequence[PeopleCheck]) -> PeopleCheck:
        """Put the checks of several groups of people together."""
        return cls(torch.cat([part.ess for part in parts]), torch.cat([part.pareto_k for part in parts]))


class PolishedTastes:
    """Tastes by polish and importance weights, for people seen or never seen.

    Parameters
    ----------
    model : PanelModel
    seed : int
    tail : int or None
        Degrees of freedom of the proposal.
    draws : int
        Importance draws per person and population value.
    polish : int
        Most Newton steps per person from xi = 0.
    vary : int
        Variational steps after the polish.
    even : bool
        Whether importance weights are known to be even, so that fewer draws do for many people.
    flow : Flow, optional
        On the local factors.
    """

    def __init__(
        self,
        model: PanelModel,
        seed: int,
        tail: int | None,
        draws: int = 128,
        polish: int = 30,
        *,
        vary: int = 0,
        even: bool = False,
        flow: Flow | None = None,
    ) -> None:
        self.model, self.seed, self.tail = model, seed, tail
        self.draws, self.polish, self.vary, self.even, self.flow = draws, polish, vary, even, flow

    def _weigh(
        self, panel: PanelSource | People, population: Population, draws: int
    ) -> Iterator[tuple[slice | Tensor, WeightedDraws, Tensor]]:
        """Places of some people after the other, weighted draws and tastes (n, k, s)."""
        local = population.to(panel.like)
        for proposal, drawn in self._propose(panel, population, draws):
            yield proposal.part, drawn, self._tastes(drawn, local)

    def _propose(
        self, panel: PanelSource | People, population: Population, draws: int
    ) -> Iterator[tuple[Proposal, WeightedDraws]]:
        """Every chunk's proposal and weighted draws."""
        people = panel if isinstance(panel, People) else People.gather(panel)
        # Its buffers are those of this call: results change nothing when they are read, from several threads or not.
        marginal = MarginalLikelihood(people, self.model.space, self.model.mixing, self.seed)
        marginal.flow = self.flow
        sweep = Sweep(draws, self.tail, 900 + draws, self.polish, vary=self.vary)
        yield from marginal.weigh(population, marginal.propose(population, sweep, remember=False))

    def _tastes(self, drawn: WeightedDraws, population: Population) -> Tensor:
        """Tastes (n, k, s) of weighted draws."""
        latent = population.location[:, None] + population.scale_tril @ drawn.xi
        return self.model.mixing.tastes(latent.mT, population.location, population.scale).mT

    def moments(self, panel: PanelSource, population: Population) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        shape = (len(panel), self.model.space.n_random)
        mean = panel.like.new_zeros(shape, dtype=torch.float64)
        deviation = torch.zeros_like(mean)
        many = self.even and len(panel) > _MANY_PEOPLE
        draws = min(self.draws, _FEW_DRAWS) if many else self.draws
        for proposal, drawn in self._propose(panel, population, draws):
            centre, spread = self._chunk_moments(proposal.factor, drawn, population.to(panel.like))
            mean[proposal.part], deviation[proposal.part] = centre, spread
        return mean, deviation

    def _chunk_moments(
        self, factor: LocalFactor, drawn: WeightedDraws, population: Population
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (n, k) of a chunk of people.

        Normal tastes are linear in whitened ones, whose moments have control variates: on the study design 32 draws do
        what 170 do with plain weights for means, and 2,000 for standard deviations.
        """
        if not self.model.mixing.is_identity:
            weights, tastes = drawn.weights.double()[:, None], self._tastes(drawn, population).double()
            centre = (weights * tastes).sum(-1)
            return centre, (weights * (tastes - centre[..., None]).square()).sum(-1).sqrt()
        first, second = latent_moments(drawn, drawn.jackknife_weights, factor)
        covariance = (second - first[:, :, None] * first[:, None]).double()
        tril = population.scale_tril.double()
        variance = torch.einsum("kl,nlm,km->nk", tril, covariance, tril)
        # Signed weights can make a variance negative where they are very uneven: plain weights cannot.
        weights = drawn.weights[:, None]
        deviation = drawn.xi - (weights * drawn.xi).sum(-1, keepdim=True)
        plain = (weights * (population.scale_tril @ deviation).square()).sum(-1).double()
        variance = torch.where(variance > 0.25 * plain, variance, plain)
        return population.location.double() + first.double() @ tril.T, variance.sqrt()

    def sample(self, panel: PanelSource, population: Population, n: int, seed: int) -> Tensor:
        """Posterior samples of each person's random tastes, (n_samples, n, k), by resampling the draws."""
        result = panel.like.new_zeros(n, len(panel), self.model.space.n_random)
        generator = make_generator(self.seed, seed, 17)
        for part, drawn, tastes in self._weigh(panel, population, max(self.draws, 4 * n)):
            picks = torch.multinomial(drawn.weights.cpu(), n, replacement=True, generator=generator)
            index = picks.to(tastes.device)[:, None].expand(-1, tastes.shape[1], -1)
            result[:, part] = tastes.gather(-1, index).permute(2, 0, 1)
        return result

    def check(self, people: People, population: Population, draws: int = 256) -> PeopleCheck:
        """Effective sample sizes and Pareto k of the importance weights of everybody, of all processes."""
        n = len(people.panels)
        ess, shape = people.like.new_zeros(n), people.like.new_zeros(n, dtype=torch.float64)
        for part, drawn, _ in self._weigh(people, population, draws):
            ess[part] = drawn.ess_fraction
            shape[part] = pareto_k(drawn.log_ratio)
        return PeopleCheck.join(people.team.gather(PeopleCheck(ess.cpu(), shape.cpu())))


class SimulatedTastes:
    """Tastes by Bayes weights over the draws of a simulated likelihood (Train 2009, section 11.3).

    Parameters
    ----------
    model : PanelModel
    draws : PersonDraws
        Every person gets the block of its rank by first appearance, that of the fit for the people of the fit.
    signs : Tensor, shape (k,)
        Signs of the columns of L at the maximum of the likelihood: asymmetric draws are used as it used them.
    """

    def __init__(self, model: PanelModel, draws: PersonDraws, signs: Tensor) -> None:
        self.model, self.draws, self.signs = model, draws, signs

    def _weigh(self, panel: PanelSource, population: Population) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Places of a chunk of people in the panel, weights (n, r) and tastes (n, k, r), float64."""
        panel = People.gather(panel).alone()
        places, order = panel.ranked().appearance.cpu().sort()  # type: ignore[union-attr]
        ordered = panel.by_appearance()
        simulated = SimulatedLikelihood(self.model, ordered, self.draws, keep=False, places=places)
        mirrored = Population(population.fixed, population.location, population.scale_tril * self.signs)
        for part, weights, tastes in simulated.weigh_tastes(mirrored):
            yield order[part], weights, tastes

    def moments(self, panel: PanelSource, population: Population) -> tuple[Tensor, Tensor]:
        """Conditional mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        mean = torch.zeros(len(panel), self.model.space.n_random, dtype=torch.float64)
        deviation = torch.zeros_like(mean)
        for places, weights, tastes in self._weigh(panel, population):
            centre = (weights[:, None] * tastes).sum(-1)
            mean[places] = centre.cpu()
            deviation[places] = (weights[:, None] * (tastes - centre[..., None]).square()).sum(-1).sqrt().cpu()
        return mean, deviation

    def sample(self, panel: PanelSource, population: Population, n: int, seed: int) -> Tensor:
        """Samples of each person's conditional tastes, (n_samples, n, k), by resampling the draws."""
        result = torch.zeros(n, len(panel), self.model.space.n_random, dtype=torch.float64)
        generator = make_generator(self.draws.seed, seed, 19)
        for places, weights, tastes in self._weigh(panel, population):
            picks = torch.multinomial(weights.cpu(), n, replacement=True, generator=generator)
            index = picks[:, None].expand(-1, tastes.shape[1], -1)
            result[:, places] = tastes.cpu().gather(-1, index).permute(2, 0, 1)
        return result
