"""Posterior of people's tastes given their choices: importance-weighted moments and samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.diagnostics.psis import pareto_k
from mxlogit.draws.generators import make_generator
from mxlogit.draws.simulation import PersonDraws
from mxlogit.execution.people import PanelSource, People
from mxlogit.integration.averaged_tastes import AveragedMoments, Populations, averaged_moments
from mxlogit.integration.importance import WeightedDraws, latent_moments
from mxlogit.integration.laplace import Flow, LocalFactor
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.proposals import Proposal
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.simulated_likelihood import SimulatedLikelihood
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes

# Draws per person for means and standard deviations if importance weights are even; see `_chunk_moments`.
_FEW_DRAWS = 32
# Draws per person that are weighed under several populations, until two halves of them agree, and the largest error
# that these show, in posterior standard deviations: root mean square over a person's means and log standard deviations.
# 128 draws leave true ones of .02 (a normal and a lognormal), .04 (five correlated normals).
_DRAWS_BY_NEED = (128, 512, 2_048)
_ALLOWED_ERROR = 0.03
# First random stream of the draws of tastes; the seed is added to it.
_STREAM = 1_000_000


@dataclass(frozen=True)
class WeightedTastes:
    """Weighted draws of the random tastes of some people.

    Attributes
    ----------
    part : slice or Tensor
        Indices of the people in the panel.
    weights : Tensor, shape (n, s)
        Non-negative; sum to one for every person.
    tastes : Tensor, shape (n, k, s)
    fixed : Tensor or None, shape (f, s)
        Fixed coefficients of each draw, where some classes ignore them; None if they are those of the population.
    """

    part: slice | Tensor
    weights: Tensor
    tastes: Tensor
    fixed: Tensor | None = None


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
        """Concatenate the checks of several groups of people."""
        return cls(torch.cat([part.ess for part in parts]), torch.cat([part.pareto_k for part in parts]))


class WeighedTastes(ABC):
    """Posterior of people's tastes given their choices and the population, as weighted draws."""

    @abstractmethod
    def weigh(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> Iterator[WeightedTastes]:
        """Weighted draws of people's random tastes, chunk after chunk of people.

        Parameters
        ----------
        panel : PanelSource
        population : PopulationParameters
        seed : int
            Seed of the draws, if they are not the draws of the fit.
        places : Tensor, int64, shape (n,), optional
            Ranks of these people among the people of the fit by first appearance; the number of the latter for new
            people.
        """

    @abstractmethod
    def moments(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each, float64."""

    def averaged_moments(
        self,
        panel: PanelSource,
        populations: Sequence[PopulationParameters],
        anchor: PopulationParameters,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (n, k) over several population values, by the law of total variance.

        Each has draws of its own; ``anchor`` is a value in their midst.
        """
        pairs = [self.moments(panel, population, seed, places) for seed, population in enumerate(populations)]
        return total_moments(pairs)

    def sample_parameters(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's fixed coefficients and random tastes, (n_samples, n, f + k), float64."""
        return join_fixed(population, self.sample(panel, population, n, seed, places))

    def sample(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's random tastes, (n_samples, n, k), by systematic resampling."""
        result = panel.like.new_zeros(n, len(panel), panel.n_columns - population.fixed.shape[-1])
        first = torch.rand((), generator=make_generator(seed, 17), dtype=torch.float64)
        heights = (first + torch.arange(n)) / n
        for drawn in self.weigh(panel, population, seed, places):
            below = drawn.weights.double().cumsum(-1)
            wanted = heights.to(below).expand(len(below), -1).contiguous()
            # Rounding may leave the last sum below one.
            picks = torch.searchsorted(below, wanted).clamp_(max=below.shape[-1] - 1)
            index = picks[:, None].expand(-1, drawn.tastes.shape[1], -1)
            result[:, drawn.part] = drawn.tastes.gather(-1, index).permute(2, 0, 1).to(result)
        return result


def join_fixed(population: PopulationParameters, tastes: Tensor) -> Tensor:
    """Fixed coefficients of a population beside tastes (n_samples, n, k): (n_samples, n, f + k), float64."""
    tastes = tastes.double()
    return torch.cat([population.fixed.to(tastes).expand(*tastes.shape[:2], -1), tastes], -1)


def total_moments(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of an equal mixture, of the means and standard deviations of its parts."""
    means, deviations = (torch.stack(column) for column in zip(*pairs, strict=True))
    variance = deviations.square().mean(0) + (means - means.mean(0)).square().mean(0)
    return means.mean(0), variance.sqrt()


class ImportanceTastes(WeighedTastes):
    """Tastes by importance sampling around modes, for people of the fit or new people.

    All people share the quasi-random base points of a seed, so that equal choices give equal tastes, whoever else is in
    the panel.

    Parameters
    ----------
    model : MixedLogitModel
    seed : int
    degrees_of_freedom : int or None
        Degrees of freedom of the Student-t proposal; None for the normal.
    draws : int
        Number of importance draws per person and population value.
    newton_steps : int
        Most Newton steps per person from xi = 0.
    variational_steps : int
        Number of variational steps after the Newton steps.
    even_weights : bool
        Whether importance weights are known to be even, so that fewer draws suffice for means and standard deviations.
    flow : Flow, optional
        Flow on the local factors.
    """

    def __init__(
        self,
        model: MixedLogitModel,
        seed: int,
        degrees_of_freedom: int | None,
        draws: int = 128,
        newton_steps: int = 30,
        *,
        variational_steps: int = 0,
        even_weights: bool = False,
        flow: Flow | None = None,
    ) -> None:
        self.model, self.seed, self.degrees_of_freedom = model, seed, degrees_of_freedom
        self.newton_steps, self.variational_steps = newton_steps, variational_steps
        self.draws, self.even_weights, self.flow = draws, even_weights, flow

    @property
    def draws_of_moments(self) -> int:
        """Draws per person for means and standard deviations."""
        return min(self.draws, _FEW_DRAWS) if self.even_weights else self.draws

    def _marginal(self, people: People, keys: Tensor | None) -> MarginalLikelihood:
        """Marginal likelihood of people, created per call: reading results changes no state, whatever thread reads."""
        marginal = MarginalLikelihood(people, self.model.space, self.model.mixing, self.seed, keys=keys)
        marginal.flow = self.flow
        return marginal

    def _marginal_alike(self, panel: PanelSource) -> MarginalLikelihood:
        """Marginal likelihood of people who share their base points."""
        return self._marginal(People.gather(panel), torch.zeros(len(panel), dtype=torch.int64))

    def _propose(
        self, marginal: MarginalLikelihood, population: PopulationParameters, draws: int, stream: int
    ) -> Iterator[tuple[Proposal, WeightedDraws]]:
        """Proposal and weighted draws of each chunk of people; modes are where the next population's search begins."""
        integration = IntegrationSettings(
            draws,
            self.degrees_of_freedom,
            _STREAM + stream,
            self.newton_steps,
            variational_steps=self.variational_steps,
        )
        yield from marginal.weigh(population, marginal.propose(population, integration))

    def _tastes(self, drawn: WeightedDraws, population: PopulationParameters, panel: PanelDifferences) -> Tensor:
        """Tastes (n, k, s) of weighted draws of the people of a panel."""
        return PersonTastes.of(population, self.model.mixing, panel).tastes(drawn.xi)

    def moments(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        return self._moments(self._marginal_alike(panel), population, seed)

    def averaged_moments(
        self,
        panel: PanelSource,
        populations: Sequence[PopulationParameters],
        anchor: PopulationParameters,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (n, k) over several population values.

        People's draws at the anchor are weighed under all populations. People with even weights keep few draws, those
        whose halves of the draws disagree get more, and those whom such draws do not represent, draws under each
        population: who they are depends on their own choices only.
        """
        if len(populations) == 1 or self.model.mixing.is_direct or self.model.space.n_random == 0:
            return self._one_by_one(panel, populations)
        near = Populations.near(anchor, list(populations), panel.like)
        mean = torch.zeros(len(panel), self.model.space.n_random, dtype=torch.float64, device=panel.like.device)
        deviation, people = torch.zeros_like(mean), torch.arange(len(panel), device=mean.device)
        alone = torch.zeros(len(panel), dtype=torch.bool, device=mean.device)
        for draws in _DRAWS_BY_NEED:
            some = panel if len(people) == len(panel) else panel.take(people)
            vague = torch.zeros_like(people, dtype=torch.bool)
            for place, found in self._average(some, anchor, near, draws):
                mean[people[place]], deviation[people[place]] = found.mean, found.variance.clamp(min=0.0).sqrt()
                vague[place] = found.is_covered & (found.error > _ALLOWED_ERROR)
                alone[people[place]] = ~found.is_covered
            people = people[vague]
            if len(people) == 0:
                break
        alone[people] = True
        if bool(alone.any()):
            rest = alone.nonzero()[:, 0]
            mean[rest], deviation[rest] = self._one_by_one(panel.take(rest), populations)
        return mean, deviation

    def _average(
        self, panel: PanelSource, anchor: PopulationParameters, near: Populations, draws: int
    ) -> Iterator[tuple[slice | Tensor, AveragedMoments]]:
        """Averaged moments of all people from some draws, chunk after chunk."""
        marginal, mixing = self._marginal_alike(panel), self.model.mixing
        for proposal, drawn in self._propose(marginal, anchor, draws, 0):
            tastes = self._tastes(drawn, near.anchor, proposal.panel)
            base = self._chunk_moments(proposal.factor, drawn, near.anchor, tastes)
            weights, unevenness = near.average_weights(drawn, proposal.panel, mixing)
            covered = near.is_covered(unevenness, proposal.factor.mean, proposal.panel, mixing)
            of_base = drawn.weights if mixing.is_identity else None
            yield proposal.part, averaged_moments(tastes, weights, base, of_base, covered)

    def _one_by_one(self, panel: PanelSource, populations: Sequence[PopulationParameters]) -> tuple[Tensor, Tensor]:
        """Averaged moments from draws under each population.

        A person's mode is sought from the one before: populations that follow each other should be close.
        """
        marginal = self._marginal_alike(panel)
        return total_moments([self._moments(marginal, population, seed) for seed, population in enumerate(populations)])

    def _moments(
        self, marginal: MarginalLikelihood, population: PopulationParameters, seed: int
    ) -> tuple[Tensor, Tensor]:
        like, shape = marginal.people.like, (len(marginal.people.panels), self.model.space.n_random)
        mean = like.new_zeros(shape, dtype=torch.float64)
        deviation, local = torch.zeros_like(mean), population.to(like)
        for proposal, drawn in self._propose(marginal, population, self.draws_of_moments, seed):
            tastes = self._tastes(drawn, local, proposal.panel)
            mean[proposal.part], deviation[proposal.part] = self._chunk_moments(proposal.factor, drawn, local, tastes)
        return mean, deviation

    def _chunk_moments(
        self, factor: LocalFactor, drawn: WeightedDraws, population: PopulationParameters, tastes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (n, k) of a chunk of people, from their drawn tastes (n, k, s).

        Normal tastes are linear in whitened tastes, whose moments have control variates: on the study design 32 draws
        are as precise as 170 with plain weights for means, and 2,000 for standard deviations.
        """
        if not self.model.mixing.is_identity:
            weights = drawn.weights.double()[..., None]
            deviation = tastes.double()
            centre = deviation @ weights
            deviation = (deviation - centre).square_()
            return centre[..., 0], (deviation @ weights)[..., 0].sqrt()
        first, second = latent_moments(drawn, drawn.jackknife_weights, factor)
        covariance = (second - first[:, :, None] * first[:, None]).double()
        tril = population.scale_tril.double()
        variance = ((tril @ covariance) * tril).sum(-1)
        # Very uneven signed weights can make a variance negative; plain weights cannot.
        weights = drawn.weights[:, None]
        deviation = drawn.xi - (weights * drawn.xi).sum(-1, keepdim=True)
        plain = (weights * (population.scale_tril @ deviation).square()).sum(-1).double()
        variance = torch.where(variance > 0.25 * plain, variance, plain)
        return population.location.double() + first.double() @ tril.T, variance.sqrt()

    def weigh(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> Iterator[WeightedTastes]:
        """Weighted draws of people's random tastes, chunk after chunk of people."""
        local = population.to(panel.like)
        for proposal, drawn in self._propose(self._marginal_alike(panel), population, self.draws, seed):
            yield WeightedTastes(proposal.part, drawn.weights, self._tastes(drawn, local, proposal.panel))

    def check(self, people: People, population: PopulationParameters, draws: int = 256) -> PeopleCheck:
        """Effective sample size fractions and Pareto k of the importance weights of the people of all processes."""
        n = len(people.panels)
        ess, shape = people.like.new_zeros(n), people.like.new_zeros(n, dtype=torch.float64)
        for proposal, drawn in self._propose(self._marginal(people, None), population, draws, draws):
            ess[proposal.part] = drawn.ess_fraction
            shape[proposal.part] = pareto_k(drawn.log_ratio)
        return PeopleCheck.join(people.team.gather(PeopleCheck(ess.cpu(), shape.cpu())))


class ConditionalTastes(WeighedTastes):
    """Tastes by Bayes weights over the draws of a simulated likelihood (Train 2009, section 11.3).

    Parameters
    ----------
    model : MixedLogitModel
    draws : PersonDraws
        Draws in blocks: a person of the fit uses the block of its rank by first appearance, as given by ``places``,
        and all new people share one block; ranks in the panel by default.
    signs : Tensor, shape (k,)
        Signs of the columns of L at the maximum of the likelihood, applied because draws need not be symmetric.
    """

    def __init__(self, model: MixedLogitModel, draws: PersonDraws, signs: Tensor) -> None:
        self.model, self.draws, self.signs = model, draws, signs

    def weigh(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> Iterator[WeightedTastes]:
        """All draws of people's random tastes, weighted, chunk after chunk of people; ``seed`` has no effect."""
        panel = People.gather(panel).require_single_process()
        blocks = panel.ranked().appearance if places is None else places
        blocks, order = blocks.cpu().sort(stable=True)  # type: ignore[union-attr]
        ordered = replace(panel.take(order.to(panel.weights.device)), appearance=None)
        simulated = SimulatedLikelihood(self.model, ordered, self.draws, keep=False, places=blocks)
        mirrored = PopulationParameters(population.fixed, population.location, population.scale_tril * self.signs)
        for part, weights, tastes in simulated.weigh_tastes(mirrored):
            yield WeightedTastes(order[part], weights, tastes)

    def moments(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Conditional mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        mean = torch.zeros(len(panel), self.model.space.n_random, dtype=torch.float64)
        deviation = torch.zeros_like(mean)
        for drawn in self.weigh(panel, population, seed, places):
            weights = drawn.weights[:, None]
            centre = (weights * drawn.tastes).sum(-1)
            mean[drawn.part] = centre.cpu()
            deviation[drawn.part] = (weights * (drawn.tastes - centre[..., None]).square()).sum(-1).sqrt().cpu()
        return mean, deviation
