"""Posterior of people's tastes in a mixture of normals: draws in each class, weighted by its probability."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.execution.people import PanelSource, People
from mxlogit.integration.mixture_likelihood import MixtureLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.integration.tastes import WeighedTastes, WeightedTastes
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes

# Importance draws per person and class, and degrees of freedom of the Student-t proposal.
_DRAWS, _FREEDOM = 64, 8
# Most Newton steps to a person's mode in a class.
_NEWTON_STEPS = 30
# First random stream of the draws; the seed is added to it.
_STREAM = 2_000_000


class MixtureTastes(WeighedTastes):
    """Tastes in a population of classes within which tastes are spread.

    People share the quasi-random base points of a seed, so that equal choices give equal tastes.

    Parameters
    ----------
    model : MixedLogitModel
    seed : int
    """

    def __init__(self, model: MixedLogitModel, seed: int) -> None:
        self.model, self.seed = model, seed

    def _likelihood(self, panel: PanelSource, seed: int) -> MixtureLikelihood:
        keys = torch.zeros(len(panel), dtype=torch.int64)
        integration = IntegrationSettings(_DRAWS, _FREEDOM, _STREAM + seed, _NEWTON_STEPS)
        return MixtureLikelihood(self.model, People.gather(panel).local_panels(), self.seed, integration, keys)

    def memberships(self, panel: PanelSource, population: PopulationParameters) -> Tensor:
        """Probabilities (n, C) of membership given people's choices."""
        assert isinstance(population, ClassPopulation)
        return self._likelihood(panel, 0).memberships(population)

    def weigh(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> Iterator[WeightedTastes]:
        """Weighted draws of people's random tastes in all classes, one class after the other, in chunks of people."""
        assert isinstance(population, ClassPopulation)
        likelihood, f = self._likelihood(panel, seed), self.model.space.n_fixed
        shares = population.log_shares(likelihood.panel.covariates)
        steps = [likelihood.weigh_class(population, c) for c in range(population.n_classes)]
        for found in zip(*steps, strict=True):
            part = found[0][0].part
            joint = torch.stack([drawn.log_marginal.double() for _, drawn in found], 1)
            joint = joint + shares.expand(len(likelihood.panel), -1)[part]
            member = joint.softmax(-1)
            tastes, weights, fixed = [], [], []
            for c, (_, drawn) in enumerate(found):
                local, counts = population.component(c).to(drawn.xi), population.attended[c].to(drawn.xi)
                tastes.append(PersonTastes(local, self.model.mixing).tastes(drawn.xi) * counts[f:, None])
                weights.append(member[:, c, None].to(drawn.weights) * drawn.weights)
                fixed.append((local.fixed * counts[:f])[:, None].expand(-1, drawn.weights.shape[-1]))
            yield WeightedTastes(part, torch.cat(weights, 1), torch.cat(tastes, 2), torch.cat(fixed, 1))

    def moments(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        mean = panel.like.new_zeros(len(panel), self.model.space.n_random, dtype=torch.float64)
        deviation = torch.zeros_like(mean)
        for drawn in self.weigh(panel, population, seed, places):
            weights, tastes = drawn.weights.double()[:, None], drawn.tastes.double()
            mean[drawn.part] = centre = (tastes * weights).sum(-1)
            deviation[drawn.part] = ((tastes - centre[..., None]).square() * weights).sum(-1).sqrt()
        return mean, deviation

    def sample_parameters(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's fixed and random parameters, (n_samples, n, f + k), float64."""
        f, k = self.model.space.n_fixed, self.model.space.n_random
        result = torch.zeros(n, len(panel), f + k, dtype=torch.float64)
        first = torch.rand((), generator=make_generator(seed, 17), dtype=torch.float64)
        heights = (first + torch.arange(n)) / n
        for drawn in self.weigh(panel, population, seed, places):
            below = drawn.weights.double().cumsum(-1)
            picks = torch.searchsorted(below, heights.expand(len(below), -1).contiguous())
            picks.clamp_(max=below.shape[-1] - 1)
            assert drawn.fixed is not None
            both = torch.cat([drawn.fixed.expand(len(below), -1, -1), drawn.tastes], 1).double()
            found = both.gather(-1, picks[:, None].expand(-1, f + k, -1))
            result[:, drawn.part] = found.permute(2, 0, 1)
        return result

    def sample(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's random tastes, (n_samples, n, k)."""
        return self.sample_parameters(panel, population, n, seed, places)[..., self.model.space.n_fixed :]
