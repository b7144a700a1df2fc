"""Inputs of a variational engine: model, people, starting values, seed and clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from mxlogit.execution.people import People
from mxlogit.inference.clock import Clock
from mxlogit.inference.method import Callback
from mxlogit.inference.start import (
    MultinomialLogit,
    fit_multinomial_logit,
    held_in_logit,
    in_wtp_space,
    prior_of_logit,
    start_population,
)
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters

# Most people of whom the beginning of a fit is found: of more a random subsample says where to begin, and what bends
# slowly.
LARGEST_SAMPLE = 20_000


@dataclass(frozen=True)
class Task:
    """One fit as all variational engines begin it.

    Attributes
    ----------
    model : MixedLogitModel
    people : People
    sample : People
        All people again, or a random subsample of more than 20,000.
    logit : MultinomialLogit
        Logit of the sample, with the information of all people.
    start : PopulationParameters
    seed : int
    clock : Clock
    """

    model: MixedLogitModel
    people: People
    sample: People
    logit: MultinomialLogit
    start: PopulationParameters
    seed: int
    clock: Clock

    @property
    def is_sampled(self) -> bool:
        """Whether a random subsample stands for the people where that is enough."""
        return len(self.people) > len(self.sample)

    @classmethod
    def begin(
        cls,
        model: MixedLogitModel,
        people: People,
        generator: torch.Generator,
        callback: Callback,
        max_seconds: float | None = None,
    ) -> Task:
        """Start the clock and find where to begin.

        Raises
        ------
        SpecificationError
            If the scale column of willingness-to-pay space has no effect on choices.
        """
        seed = int(torch.randint(2**62, (1,), generator=generator))
        clock = Clock(callback, people.team.gather(max_seconds)[0], people.team)
        many = len(people) > LARGEST_SAMPLE
        sample = people.take(people.draw(LARGEST_SAMPLE, (seed, -3))) if many else people
        found = fit_multinomial_logit(sample, prior_of_logit(model), held=held_in_logit(model))
        model, logit = in_wtp_space(model, found)
        logit = replace(logit, information=logit.information * (people.weight / sample.weight))
        return cls(model, people, sample, logit, start_population(model, logit), seed, clock)
