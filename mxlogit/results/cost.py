r"""The cost coefficient, by which amounts of money are measured, and whether means over people exist.

Where the cost's coefficient may be about zero a ratio has no mean, however precise the fit: :math:`E[1 / \beta_c]` is
finite for a fixed coefficient, a lognormal and Johnson's S_B, and infinite or without meaning for distributions that
reach zero (Daly, Hess and Train 2012, Transportation 39, doi 10.1007/s11116-011-9331-3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.errors import SpecificationError, suggest
from mxlogit.fit import Fit
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.results.class_cost import class_costs, judge_classes
from mxlogit.results.classes import mean_shares

# Share of posterior samples that may reach zero, or have the other sign, before that is said.
_RARE = 0.01
# People whose coefficients are in memory at a time, in each of some populations.
_PEOPLE_AT_ONCE = 4_096


@dataclass(frozen=True)
class Cost:
    """A coefficient that measures money.

    Attributes
    ----------
    model : MixedLogitModel
    label : str
        Its label.
    place : int
        Its position among all coefficients, fixed ones first.
    people : Covariates or None
        Covariates of people, if some shift the means of tastes.
    """

    model: MixedLogitModel
    label: str
    place: int
    people: Covariates | None = None

    @classmethod
    def of(cls, model: MixedLogitModel, fit: Fit, label: str, people: Covariates | None = None) -> Cost:
        """Find the coefficient.

        Raises
        ------
        SpecificationError
            If it is unknown, has no effect, or is not the scale of its space.
        """
        labels = [*model.space.fixed, *model.space.random]
        if label not in labels:
            raise SpecificationError(
                f"cost: {label!r} is no coefficient of this model, which has {labels}.{suggest(label, labels)}"
            )
        if labels.index(label) in model.shifters.effects:
            raise SpecificationError(f"{label!r} is the effect of a covariate, and no cost.")
        if label in fit.void:
            raise SpecificationError(
                f"the coefficient of {label!r} is not known (its errors are void), so nothing can be related to it."
            )
        position = model.mixing.scale_position
        if position is not None and labels[position] != label:
            raise SpecificationError(
                f"this model is in willingness-to-pay space with scale={labels[position]!r}; cost must be that, not "
                f"{label!r}."
            )
        return cls(model, label, labels.index(label), people)

    @property
    def in_money(self) -> bool:
        """Whether the parameters of other attributes are amounts of money."""
        return self.model.mixing.scale_position is not None

    @property
    def family(self) -> str:
        """Mixing distribution of the coefficient; "fixed" without."""
        place = self.place - self.model.space.n_fixed
        return "fixed" if place < 0 else self.model.mixing.families[place].name

    @property
    def varies(self) -> bool:
        """Whether covariates shift it."""
        return bool(self.model.shifters.of(self.place))

    def _extremes(self, population: PopulationParameters) -> tuple[Tensor, Tensor]:
        """The least and the largest coefficient without random part over people, (s,) each, in some populations."""
        fixed, shifters = population.fixed, self.model.shifters.of(self.place)
        whole = torch.cat([fixed, population.location], -1)[:, self.place]
        if not shifters:
            return whole, whole
        assert self.people is not None
        low = torch.full_like(fixed[:, 0], torch.inf)
        high = -low
        for values in self.people.values.split(_PEOPLE_AT_ONCE):
            added = fixed[:, list(shifters.effects)] @ values[:, list(shifters.covariates)].T.to(fixed)
            found = whole[:, None] + added
            low, high = torch.minimum(low, found.amin(1)), torch.maximum(high, found.amax(1))
        return low, high

    def is_positive(self, population: PopulationParameters) -> bool:
        """Whether the median of the coefficient is positive in most of some populations (s)."""
        if isinstance(population, ClassPopulation):
            shares = mean_shares(population, self.people)
            positive = (class_costs(self.model, population, self.place) > 0.0) * shares
            return bool(positive.sum(-1).median() > 0.5)
        place = self.place - self.model.space.n_fixed
        if place < 0:
            return bool(self._extremes(population)[0].median() > 0.0)
        location, scale = population.location.clone(), population.scale
        if self.people is not None:
            location[:, place] += self.model.shifters.of(self.place).index_at(population.fixed, self.people)
        return bool(self.model.mixing.tastes(location, location, scale)[:, place].median() > 0.0)

    def judge(self, population: PopulationParameters, only: int | None = None) -> tuple[bool, str]:
        """Whether the population mean exists, and why, given posterior samples; of one class, if ``only`` is given."""
        cost, family, place = self.label, self.family, self.place - self.model.space.n_fixed
        offer = f"MixedLogit(scale={cost!r}) estimates amounts of money instead, whose moments exist."
        if isinstance(population, ClassPopulation):
            return judge_classes(self.model, population, self.place, cost, only)
        if self.in_money:
            return True, "Amounts of money are parameters of this model, and have moments."
        if family == "fixed":
            return self._judge_fixed(*self._extremes(population))
        if family in ("lognormal", "negative_lognormal", "johnson_sb"):
            return True, f"The coefficient of {cost!r} keeps away from zero ({family}): the mean is finite."
        if family == "censored_normal":
            return False, (
                f"The coefficient of {cost!r} is zero for some people (censored_normal): their willingness to pay is "
                f"infinite. Read quantiles; {offer}"
            )
        if family in ("uniform", "triangular"):
            (low, high), scale = self._extremes(population), population.scale[:, place]
            reach = (low <= scale) & (high >= -scale)
            if float(reach.double().mean()) < _RARE:
                return True, f"The coefficient of {cost!r} keeps away from zero ({family}): the mean is finite."
        return False, (
            f"The coefficient of {cost!r} reaches zero ({family}): the ratio has no mean. Read quantiles; {offer}"
        )

    def _judge_fixed(self, low: Tensor, high: Tensor) -> tuple[bool, str]:
        """The verdict on a coefficient without random part, at its extremes (s,) over people."""
        if float((low.sign() != high.sign()).double().mean()) >= _RARE:
            return False, (
                f"The coefficient of {self.label!r} may be zero for some covariates of the people: the ratio has no "
                "mean. Read quantiles, or those at given covariates: wtp(..., covariates={...})."
            )
        return True, _sign_of(self.label, low, "for everybody" if self.varies else "")


def _sign_of(cost: str, coefficient: Tensor, whom: str) -> str:
    positive = float((coefficient > 0).double().mean())
    words = f"has one sign {whom}" if whom else "is the same for everybody"
    if min(positive, 1.0 - positive) < _RARE:
        return f"The coefficient of {cost!r} {words}: the mean is finite."
    return (
        f"The coefficient of {cost!r} {words}, but its sign is not known ({positive:.0%} of the "
        "posterior is positive): intervals are those of a ratio whose denominator may be zero."
    )
