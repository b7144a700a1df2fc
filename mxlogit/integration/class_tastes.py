"""Posterior of people's tastes in a population of classes: a class for each, by the probabilities of membership."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.execution.people import PanelSource
from mxlogit.integration.class_likelihood import ClassLikelihood
from mxlogit.integration.tastes import WeighedTastes, WeightedTastes
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters

# People whose memberships are in memory at a time.
_PEOPLE_AT_ONCE = 20_000


class ClassTastes(WeighedTastes):
    """Tastes in a latent class model: those of each class, weighted by the probabilities of membership.

    Parameters
    ----------
    model : MixedLogitModel
        Model whose parameter space is a `ClassSpace` without spread.
    """

    def __init__(self, model: MixedLogitModel) -> None:
        self.model = model

    def memberships(self, panel: PanelSource, population: PopulationParameters) -> Tensor:
        """Probabilities (n, C) of membership given people's choices."""
        assert isinstance(population, ClassPopulation)
        parts = [ClassLikelihood(self.model, part).memberships(population) for _, part in panel.chunks(_PEOPLE_AT_ONCE)]
        return torch.cat(parts)

    def weigh(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> Iterator[WeightedTastes]:
        """Tastes of all classes, with probabilities of membership as weights; nothing is drawn."""
        assert isinstance(population, ClassPopulation)
        parameters, f = self._parameters(population), self.model.space.n_fixed
        for part, some in panel.chunks(_PEOPLE_AT_ONCE):
            weights = ClassLikelihood(self.model, some).memberships(population)
            tastes = parameters[:, f:].T.expand(len(some), -1, -1)
            yield WeightedTastes(part, weights, tastes, parameters[:, :f].T)

    def moments(
        self, panel: PanelSource, population: PopulationParameters, seed: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of each person's random tastes, (n, k) each, float64."""
        assert isinstance(population, ClassPopulation)
        tastes = self._parameters(population)[:, self.model.space.n_fixed :]
        weights = self.memberships(panel, population)
        mean = weights @ tastes
        away = tastes - mean[:, None]
        return mean, (weights[..., None] * away.square()).sum(1).sqrt()

    def sample_parameters(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's fixed and random parameters, (n_samples, n, f + k)."""
        assert isinstance(population, ClassPopulation)
        below = self.memberships(panel, population).cumsum(-1)
        first = torch.rand((), generator=make_generator(seed, 17), dtype=torch.float64)
        heights = ((first + torch.arange(n)) / n).to(below).expand(len(below), -1).contiguous()
        picks = torch.searchsorted(below, heights).clamp_(max=below.shape[-1] - 1)
        return self._parameters(population)[picks].movedim(0, 1)

    def sample(
        self, panel: PanelSource, population: PopulationParameters, n: int, seed: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Posterior samples of each person's random tastes, (n_samples, n, k)."""
        return self.sample_parameters(panel, population, n, seed, places)[..., self.model.space.n_fixed :]

    def _parameters(self, population: ClassPopulation) -> Tensor:
        """Parameters (C, f + k) of the members of each class."""
        return population.class_tastes(self.model.mixing)[:, 0].double()
