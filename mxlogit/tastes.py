"""Posterior of people's tastes given their choices: importance-weighted moments and samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.draws import make_generator
from mxlogit.importance import WeightedDraws
from mxlogit.likelihood import PanelDifferences, panel_log_prob
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.parameters import Population
from mxlogit.samples import pareto_k
from mxlogit.sequences import draw_normals


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
    """

    def __init__(self, model: PanelModel, seed: int, tail: int | None, draws: int = 128, polish: int = 30) -> None:
        self.model, self.seed, self.tail, self.draws, self.polish = model, seed, tail, draws, polish

    def _weigh(
        self, panel: PanelDifferences, population: Population, draws: int
    ) -> Iterator[tuple[slice, WeightedDraws, Tensor]]:
        """Every chunk's place, weighted draws and tastes (n, s, k)."""
        marginal = MarginalLikelihood(panel, self.model.space, self.model.mixing, self.seed)
        local = population.to(panel.values)
        proposals = marginal.propose(population, Sweep(draws, self.tail, 900 + draws, self.polish))
        for proposal, drawn in marginal.weigh(population, proposals):
            latent = local.location + drawn.xi @ local.scale_tril.mT
            yield proposal.part, drawn, self.model.mixing.tastes(latent, local.location, local.scale)

    def moments(self, panel: PanelDifferences, population: Population) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        shape = (len(panel), self.model.space.n_random)
        mean = panel.values.new_zeros(shape, dtype=torch.float64)
        deviation = torch.zeros_like(mean)
        for part, drawn, tastes in self._weigh(panel, population, self.draws):
            weights, tastes = drawn.weights.double()[..., None], tastes.double()
            centre = (weights * tastes).sum(1)
            mean[part] = centre
            deviation[part] = (weights * (tastes - centre[:, None]).square()).sum(1).sqrt()
        return mean, deviation

    def sample(self, panel: PanelDifferences, population: Population, n: int, seed: int) -> Tensor:
        """Posterior samples of each person's random tastes, (n_samples, n, k), by resampling the draws."""
        result = panel.values.new_zeros(n, len(panel), self.model.space.n_random)
        generator = make_generator(self.seed, seed, 17)
        for part, drawn, tastes in self._weigh(panel, population, max(self.draws, 4 * n)):
            picks = torch.multinomial(drawn.weights.cpu(), n, replacement=True, generator=generator)
            index = picks.to(tastes.device)[..., None].expand(-1, -1, tastes.shape[-1])
            result[:, part] = tastes.gather(1, index).transpose(0, 1)
        return result

    def check(self, panel: PanelDifferences, population: Population, draws: int = 256) -> PeopleCheck:
        """Effective sample sizes and Pareto k of people's importance weights."""
        ess, shape = panel.values.new_zeros(len(panel)), panel.values.new_zeros(len(panel)).double()
        for part, drawn, _ in self._weigh(panel, population, draws):
            ess[part] = drawn.ess_fraction
            shape[part] = pareto_k(drawn.log_ratio)
        return PeopleCheck(ess, shape)


class SimulatedTastes:
    """Tastes by Bayes weights over the draws of a simulated likelihood (Train 2009, section 11.3).

    Parameters
    ----------
    model : PanelModel
    scheme, draws, seed, antithetic
        As in `mxlogit.sequences.draw_normals`; people of another panel get the blocks of their places.
    """

    def __init__(self, model: PanelModel, scheme: str, draws: int, seed: int, *, antithetic: bool) -> None:
        self.model, self.scheme, self.draws, self.seed, self.antithetic = model, scheme, draws, seed, antithetic

    @torch.no_grad()
    def _weigh(self, panel: PanelDifferences, population: Population) -> tuple[Tensor, Tensor]:
        """Weights (n, r) and tastes (n, r, k), float64."""
        space = self.model.space
        z = draw_normals(self.scheme, len(panel), self.draws, space.n_random, self.seed, antithetic=self.antithetic).to(
            panel.values
        )
        local = population.to(panel.values)
        latent = local.location + z @ local.scale_tril.mT
        tastes = self.model.mixing.tastes(latent, local.location, local.scale)
        parts = []
        for part, chunk in panel.chunks(256):
            fixed = local.fixed.expand(*tastes[part].shape[:2], -1)
            beta = torch.cat([fixed, tastes[part]], -1).transpose(0, 1)
            parts.append(panel_log_prob(beta, chunk).T)
        return torch.cat(parts).double().softmax(-1), tastes.double()

    def moments(self, panel: PanelDifferences, population: Population) -> tuple[Tensor, Tensor]:
        """Conditional mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        weights, tastes = self._weigh(panel, population)
        mean = (weights[..., None] * tastes).sum(1)
        return mean, (weights[..., None] * (tastes - mean[:, None]).square()).sum(1).sqrt()

    def sample(self, panel: PanelDifferences, population: Population, n: int, seed: int) -> Tensor:
        """Samples of each person's conditional tastes, (n_samples, n, k), by resampling the draws."""
        weights, tastes = self._weigh(panel, population)
        picks = torch.multinomial(weights.cpu(), n, replacement=True, generator=make_generator(self.seed, seed, 19))
        index = picks.to(tastes.device)[..., None].expand(-1, -1, tastes.shape[-1])
        return tastes.gather(1, index).transpose(0, 1)
