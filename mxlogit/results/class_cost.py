"""The cost coefficient in a population of classes, and ratios to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.results.population_nodes import Nodes

# Share of posterior samples in which a class's coefficient may have the other sign before that is said.
_RARE = 0.01


def class_costs(model: MixedLogitModel, population: ClassPopulation, place: int) -> Tensor:
    """Coefficients (*s, C) of the members of each class at the centre of their tastes."""
    return population.class_tastes(model.mixing)[..., 0, place]


def judge_classes(
    model: MixedLogitModel, population: ClassPopulation, place: int, label: str, only: int | None = None
) -> tuple[bool, str]:
    """Whether the mean of a ratio to a coefficient exists, and why, given samples of the population.

    It is the mean over the members of all classes, or ``only`` of one.
    """
    counts = population.attended[:, place] > 0.0
    if only is not None:
        if not bool(counts[only]):
            return False, f"Members of class{only + 1} ignore {label!r}: the ratio is not defined."
        counts = torch.arange(len(counts)) == only
    ignore = [f"class{c + 1}" for c in range(population.n_classes) if only is None and not bool(counts[c])]
    others = f" Members of {', '.join(ignore)} ignore it, and are left out." if ignore else ""
    families = dict(zip(model.space.random, model.mixing.families, strict=True))
    if label in families and families[label].units != "log" and bool((population.scale_tril != 0.0).any()):
        return False, (
            f"The coefficient of {label!r} reaches zero (normal within classes): the ratio has no mean. Read "
            f"quantiles.{others}"
        )
    positive = (class_costs(model, population, place) > 0.0).double().mean(0)
    unsure = [
        f"class{c + 1}"
        for c, share in enumerate(positive.tolist())
        if bool(counts[c]) and min(share, 1.0 - share) >= _RARE
    ]
    if unsure:
        return False, (
            f"The coefficient of {label!r} may be zero in {', '.join(unsure)}: the ratio has no mean. Read quantiles, "
            f"or those of single classes.{others}"
        )
    return True, f"The coefficient of {label!r} has one sign in every class: the mean is finite.{others}"


def ignoring_classes(population: PopulationParameters, place: int, only: int | None = None) -> list[str]:
    """Names of the classes, or of one if it is among them, that ignore an attribute."""
    if not isinstance(population, ClassPopulation):
        return []
    counts = population.attended[:, place]
    return [f"class{c + 1}" for c in range(len(counts)) if not float(counts[c]) and only in (None, c)]


def counted_weights(nodes: Nodes, weights: Tensor, population: ClassPopulation, places: Sequence[int]) -> Tensor:
    """Weights (s, r) of nodes whose classes do not ignore the last of some attributes, which sum to one."""
    counts = population.attended[:, places[-1]].to(weights)
    mine = weights * counts.repeat(nodes.parameters.shape[1] // len(counts))
    return mine / mine.sum(1, keepdim=True)


def weighted_quantiles(values: Tensor, weights: Tensor, probabilities: Sequence[float]) -> Tensor:
    """Quantiles (s, p) of values (s, r) with weights (s, r), and the share below zero as a last column."""
    known = torch.where(weights > 0.0, values, torch.inf)
    ordered, order = known.sort(1)
    below = weights.gather(1, order).cumsum(1)
    wanted = torch.tensor(list(probabilities), dtype=torch.float64) * below[:, -1:]
    places = torch.searchsorted(below, wanted).clamp(max=values.shape[1] - 1)
    negative = (weights * (known < 0.0)).sum(1, keepdim=True)
    return torch.cat([ordered.gather(1, places), negative], 1)
