"""Synthetic decision makers and choices: draws of what the posterior predicts, instead of averages over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData
from mxlogit.fit import Fit
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.results.choice_blocks import choice_blocks
from mxlogit.results.coefficient_sources import CoefficientSource, Part, of_situations
from mxlogit.results.prediction import probabilities

# People times samples whose tastes are drawn at a time.
_DRAWN_AT_ONCE = 200_000


def draw_people(
    model: MixedLogitModel, fit: Fit, covariates: Tensor | None, n: int, generator: torch.Generator
) -> Tensor:
    """Draw new decision makers from the posterior predictive distribution, each with its own posterior sample.

    Parameters
    ----------
    model : MixedLogitModel
    fit : Fit
    covariates : Tensor or None, shape (n, c)
        Covariates of the people, of a model that has some.
    n : int
    generator : torch.Generator

    Returns
    -------
    Tensor, shape (n, f + k)
        Fixed coefficients and tastes; amounts of money in willingness-to-pay space. What covariates add to tastes
        through products is not in them.
    """
    vectors = fit.samples.unconstrained
    if fit.samples.kind != "posterior":
        vectors = model.space.unconstrain(fit.center)[None]
    # Every sample equally often, or as nearly so as the numbers allow.
    picks = torch.randperm(-(-n // len(vectors)) * len(vectors), generator=generator)[:n] % len(vectors)
    unit = torch.randn(n, model.space.n_random, generator=generator, dtype=torch.float64)
    population = model.space.constrain(vectors[picks].double())
    if isinstance(population, ClassPopulation):
        return _members(model, population, covariates, unit, generator)
    shift = torch.zeros_like(unit)
    if covariates is not None:
        shift = model.shifters.shift_of_latents(population.fixed, covariates, model.space.n_random)
    return torch.cat([population.fixed, _tastes(model, population, shift, unit)], 1)


def _tastes(model: MixedLogitModel, population: PopulationParameters, shift: Tensor, unit: Tensor) -> Tensor:
    """Tastes (n, k) of people with one population value each."""
    location = population.location + shift
    latent = location + (population.scale_tril @ unit[..., None])[..., 0]
    return model.mixing.tastes(latent, location, population.scale)


def _members(
    model: MixedLogitModel,
    population: ClassPopulation,
    covariates: Tensor | None,
    unit: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Parameters (n, f + k) of people who belong to classes drawn by their probabilities."""
    logits = population.membership[..., 0]
    if covariates is not None and population.membership.shape[-1] > 1:
        logits = logits + (population.membership[..., 1:] * covariates[:, None].to(logits)).sum(-1)
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
    noise = -torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300).log()
    member, row = (logits - noise.log()).argmax(1), torch.arange(len(unit))
    own = PopulationParameters(population.fixed, population.location[row, member], population.scale_tril[row, member])
    tastes = _tastes(model, own, torch.zeros_like(unit), unit)
    return torch.cat([population.fixed, tastes], 1) * population.attended[member]


def draw_covariates(people: Covariates, n: int, generator: torch.Generator) -> Tensor:
    """Covariates (n, c) of people drawn, with replacement, as often as their weights say."""
    return people.values[torch.multinomial(people.weights, n, replacement=True, generator=generator)]


@dataclass(frozen=True)
class DrawnPeople(CoefficientSource):
    """New decision makers in the places of the people of choice data, other ones in each sample.

    Attributes
    ----------
    model : MixedLogitModel
    fit : Fit
    covariates : Tensor or None, shape (n, c)
        Covariates of the people of the data.
    n_samples : int
    seed : int
    """

    model: MixedLogitModel
    fit: Fit
    covariates: Tensor | None
    n_samples: int
    seed: int
    kind: str = "posterior predictive distribution"

    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """One node for every person and sample, chunk after chunk of people."""
        generator = torch.Generator().manual_seed(self.seed)
        size, f = max(1, _DRAWN_AT_ONCE // self.n_samples), self.model.space.n_fixed
        for people in torch.arange(data.n_decision_makers).split(size):
            covariates = None
            if self.covariates is not None:
                covariates = self.covariates[people].repeat_interleave(self.n_samples, 0)
            drawn = draw_people(self.model, self.fit, covariates, len(people) * self.n_samples, generator)
            coefficients = self.model.mixing.coefficients(drawn[:, :f], drawn[:, f:])
            own = coefficients.view(len(people), self.n_samples, 1, -1)
            yield of_situations(self.model, Part(people, own))


def simulate_ranks(data: ChoiceData, columns: list[int], source: CoefficientSource, seed: int) -> np.ndarray:
    """Simulated choices (situations, samples): the place of the chosen alternative among the rows of its situation.

    A person has the same tastes in all situations of a sample.
    """
    generator = torch.Generator().manual_seed(seed)
    result = np.zeros((data.n_situations, source.n_samples), dtype=np.int32)
    for block in choice_blocks(data, columns, source):
        cumulative = probabilities(block).cumsum(1)
        heights = torch.rand(len(cumulative), 1, cumulative.shape[2], generator=generator, dtype=torch.float64)
        below = (cumulative < heights.to(cumulative) * cumulative[:, -1:]).sum(1)
        result[block.situations.cpu().numpy()] = below.clamp(max=cumulative.shape[1] - 1).cpu().numpy()
    return result


class SampledPeople(CoefficientSource):
    """Posterior samples of the tastes of people given their choices, in a given number."""

    def __init__(self, source: CoefficientSource, n: int) -> None:
        self._source, self.n_samples, self.kind = source, n, source.kind

    def parts(self, data: ChoiceData) -> Iterator[Part]:
        """Samples of people, evenly spaced among those of another source, or repeated in turn if it has fewer."""
        picks = (torch.arange(self.n_samples) * max(1.0, self._source.n_samples / self.n_samples)).long()
        picks = picks % self._source.n_samples
        for part in self._source.parts(data):
            yield Part(part.people, part.coefficients[:, picks], part.weights)
