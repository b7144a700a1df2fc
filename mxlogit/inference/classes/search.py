"""Search for the best of several local optima, by generalised EM and Newton steps from several starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.inference.classes.objective import ClassObjective, Place
from mxlogit.inference.clock import Clock
from mxlogit.inference.start import MultinomialLogit
from mxlogit.model.classes import ClassSpace
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.optim.trust_region import Iteration

# Starts per class, and steps of each before the better ones go on; chosen by hand.
STARTS_PER_CLASS, _FIRST_STEPS = 6, 12
# Share of the starts that go on to the end, and most rounds of starts.
_PROMISING, _MOST_ROUNDS = 0.34, 4
# Most steps of a climb; those of EM are slow where classes overlap.
MOST_STEPS = 500
# Steps over which the increase is judged.
_LOOK_BACK = 5
# Halvings of a Newton step before a step of EM is taken, and of that before the climb ends.
_HALVINGS, _EM_HALVINGS = 4, 12
# Spread of the tastes of classes where a search begins: relative to the coefficients of a multinomial logit, and in
# utils for an attribute's typical difference; and of the logits of membership. Chosen by hand.
_RELATIVE, _UTILS, _LOGITS = 1.0, 0.7, 0.5


@dataclass(frozen=True)
class Optimum:
    """The best local optimum.

    Attributes
    ----------
    place : Place
    converged : bool
    starts : int
        Number of starts.
    found_by : int
        Number of those that led to it, among those that went on to the end.
    finished : int
        Number of starts that went on to the end.
    next_best : float
        Nats by which the second-best other optimum is lower; infinite if there was no other.
    """

    place: Place
    converged: bool
    starts: int
    found_by: int
    finished: int
    next_best: float

    def sentence(self) -> str:
        """The starts and the optima that they led to."""
        other = "" if math.isinf(self.next_best) else f"; the next best optimum is {self.next_best:.1f} nats lower"
        return (
            f"the best of {self.starts} starts; of {self.finished} that went on to the end {self.found_by} led to it"
            f"{other}"
        )


def random_starts(model: MixedLogitModel, logit: MultinomialLogit, count: int, seed: int) -> list[Tensor]:
    """Unconstrained vectors with classes around the coefficients of a multinomial logit."""
    space, generator = model.space, make_generator(seed, 83)
    assert isinstance(space, ClassSpace)
    f, unit = space.n_fixed, 1.0 / model.attribute_scale
    centre, size = logit.coefficients[f:].clone(), torch.empty_like(unit[f:])
    for i, family in enumerate(model.mixing.families):
        if family.units == "log":
            centre[i] = (family.sign * centre[i]).clamp(min=0.1 * float(unit[f + i])).log()
            size[i] = 1.0
        else:
            size[i] = _RELATIVE * centre[i].abs() + _UTILS * unit[f + i]
    found = []
    for _ in range(count):
        tastes = centre + size * torch.randn(space.n_classes, space.n_random, generator=generator, dtype=torch.float64)
        shape = (space.n_classes - 1, 1 + len(space.covariates))
        membership = torch.zeros(shape, dtype=torch.float64)
        membership[:, 0] = _LOGITS * torch.randn(shape[0], generator=generator, dtype=torch.float64)
        found.append(space.join(logit.coefficients[:f], _of_classes(model, tastes), membership))
    return found


def _of_classes(model: MixedLogitModel, locations: Tensor) -> Tensor:
    """Own parameters (G, d) of classes with given locations (G, k)."""
    space = model.space
    assert isinstance(space, ClassSpace)
    if not space.is_spread:
        return locations
    own = space.of_class
    scale = torch.full_like(locations, 0.5)
    for i, family in enumerate(model.mixing.families):
        if family.units != "log":
            scale[:, i] = 0.5 * torch.maximum(locations[:, i].abs(), 1.0 / model.attribute_scale[space.n_fixed + i])
    partial = locations.new_zeros(len(locations), len(own.pairs))
    return torch.cat([locations, scale.log(), partial], -1)


def search(objective: ClassObjective, draw_starts: Callable[[int], list[Tensor]], clock: Clock) -> Optimum:
    """Climb from random starts, and from the better ones to the end, until two of these agree on the best optimum.

    Parameters
    ----------
    objective : ClassObjective
    draw_starts : callable
        Function of the number of a round, from zero, that returns its starts.
    clock : Clock
    """
    last, count = list[Place](), 0
    for number in range(_MOST_ROUNDS):
        starts = draw_starts(number)
        last += _finish(objective, _begin(objective, starts, count, clock), len(last), clock)
        count += len(starts)
        best = max(last, key=lambda found: found.value)
        gaps = [best.value - found.value for found in last]
        others = [gap for gap in gaps if gap > objective.same]
        if len(gaps) - len(others) > 1 or clock.is_over():
            break
    converged = best.decrement() < 10.0 * objective.tolerance
    return Optimum(best, converged, count, len(gaps) - len(others), len(last), min(others, default=math.inf))


def _begin(objective: ClassObjective, starts: list[Tensor], before: int, clock: Clock) -> list[Place]:
    """The better ones of some starts, after a few steps of each."""
    found = list[Place]()
    for number, start in enumerate(starts):
        if found and clock.is_over():
            break
        found.append(climb(objective, start, _FIRST_STEPS, recorder(clock, f"start {before + number + 1}")))
    found.sort(key=lambda place: -place.value)
    return found[: max(1, math.ceil(_PROMISING * len(found)))]


def _finish(objective: ClassObjective, begun: list[Place], before: int, clock: Clock) -> list[Place]:
    """Optima to which climbs lead."""
    found = list[Place]()
    for place in begun:
        if found and clock.is_over():
            break
        record = recorder(clock, f"optimum {before + len(found) + 1}")
        found.append(climb(objective, place.vector, MOST_STEPS, record, clock.is_over))
    return found


def recorder(clock: Clock, stage: str) -> Callable[[Place, float], None]:
    """Callback that adds a step to the history."""

    def record(place: Place, decrement: float) -> None:
        clock.passes += 1.0
        clock.record(stage, Iteration(place.value, decrement, 0.0, accepted=True))

    return record


def climb(
    objective: ClassObjective,
    start: Tensor,
    steps: int,
    record: Callable[[Place, float], None],
    is_over: Callable[[], bool] = lambda: False,
) -> Place:
    """Newton steps where the objective is concave, else steps of EM, each shortened until it goes uphill."""
    place = objective.evaluate(start)
    values = [place.value]
    for _ in range(steps):
        newton = place.newton_step()
        step = place.em_step() if newton is None else newton
        decrement = 0.5 * float(place.gradient @ step)
        newton = None if newton is None else objective.capped(newton)
        record(place, decrement)
        if decrement < objective.tolerance or is_over():
            break
        found = None if newton is None else _uphill(objective, place, newton, _HALVINGS)
        if found is None:
            found = _uphill(objective, place, objective.capped(place.em_step()), _EM_HALVINGS)
        if found is None:
            break
        place = found
        values.append(place.value)
        if len(values) > _LOOK_BACK and place.value - values[-1 - _LOOK_BACK] < objective.stall:
            break
    return place


def _uphill(objective: ClassObjective, place: Place, step: Tensor, halvings: int) -> Place | None:
    """The first point with a higher value along ever shorter steps; None if there is none."""
    for _ in range(halvings):
        candidate = objective.evaluate(place.vector + step)
        if candidate.value > place.value and candidate.is_finite():
            return candidate
        step = 0.5 * step
    return None
