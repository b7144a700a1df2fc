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
_PROMISING, _MOST_ROUNDS = 0.34, 5
# Exchanges of each class in a round.
_EXCHANGES = 2
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


@dataclass(frozen=True)
class Starts:
    """Points where searches begin: classes around the coefficients of a multinomial logit.

    Attributes
    ----------
    model : MixedLogitModel
    logit : MultinomialLogit
    count : int
        Number of random starts.
    seed : int
    """

    model: MixedLogitModel
    logit: MultinomialLogit
    count: int
    seed: int

    @property
    def space(self) -> ClassSpace:
        """Layout of the parameters."""
        assert isinstance(self.model.space, ClassSpace)
        return self.model.space

    def random(self) -> list[Tensor]:
        """Unconstrained vectors with random classes."""
        space, generator = self.space, make_generator(self.seed, 83)
        shape, found = (space.n_classes - 1, 1 + len(space.covariates)), list[Tensor]()
        for _ in range(self.count):
            tastes = _of_classes(self.model, self._draw(space.n_classes, generator))
            membership = torch.zeros(shape, dtype=torch.float64)
            membership[:, 0] = _LOGITS * torch.randn(shape[0], generator=generator, dtype=torch.float64)
            found.append(space.join(self.logit.coefficients[: space.n_fixed], tastes, membership))
        return found

    def exchanged(self, vector: Tensor, number: int) -> list[Tensor]:
        """Unconstrained vectors in which one class of a given one (D,) is somewhere else."""
        space, generator = self.space, make_generator(self.seed, 84, number)
        fixed, tastes, membership = space.own(vector)
        found = list[Tensor]()
        for place in range(_EXCHANGES * space.n_classes):
            moved = tastes.clone()
            moved[place % space.n_classes] = _of_classes(self.model, self._draw(1, generator))[0]
            found.append(space.join(fixed, moved, membership))
        return found

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Locations (count, k) of classes."""
        f, unit = self.space.n_fixed, 1.0 / self.model.attribute_scale
        centre, size = self.logit.coefficients[f:].clone(), torch.empty_like(unit[f:])
        for i, family in enumerate(self.model.mixing.families):
            if family.units == "log":
                centre[i] = (family.sign * centre[i]).clamp(min=0.1 * float(unit[f + i])).log()
                size[i] = 1.0
            else:
                size[i] = _RELATIVE * centre[i].abs() + _UTILS * unit[f + i]
        return centre + size * torch.randn(count, len(centre), generator=generator, dtype=torch.float64)


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


def search(objective: ClassObjective, starts: Starts, clock: Clock) -> Optimum:
    """Climb from random starts, and from the better ones to the end; then exchange classes of the best optimum.

    In turn each class of the best optimum is put elsewhere, and the search goes on from there, until no exchange leads
    higher (after split and merge EM: Ueda, Nakano, Ghahramani and Hinton 2000, Neural Computation 12).
    """
    first = starts.random()
    last, count = _finish(objective, _begin(objective, first, 0, clock), 0, clock), len(first)
    for number in range(1, _MOST_ROUNDS):
        before = max(last, key=lambda found: found.value)
        if clock.is_over():
            break
        others = starts.exchanged(before.vector, number)
        last += _finish(objective, _begin(objective, others, count, clock), len(last), clock)
        count += len(others)
        if max(found.value for found in last) - before.value < objective.same:
            break
    best = max(last, key=lambda found: found.value)
    gaps = [best.value - found.value for found in last]
    lower = [gap for gap in gaps if gap > objective.same]
    converged = best.decrement() < 10.0 * objective.tolerance
    return Optimum(best, converged, count, len(gaps) - len(lower), len(last), min(lower, default=math.inf))


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
