"""Second-order minimisers of objectives that are known through random draws.

An objective is frozen under a key: the same key, the same draws and people. Curvature pairs and trial steps compare
values under one key; whether a step is kept is decided under another, so that it cannot have fitted its own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.optim.curvature import Smooth, steihaug

_LONGEST_CG, _SMALLEST_RADIUS, _LARGEST_RADIUS = 20, 1e-6, 30.0
_FIRST_RADIUS, _SHRINK, _GROW, _KEEP_PART = 30.0, 0.4, 2.0, 0.5
_DAMPING, _DAMPING_FACTOR = 1.0, 1.5
_STANDARD_ERRORS = 1.0
# Of the predicted decrease, for independent draws: above, it is more than noise; below, the step was no good; between
# (a step to the minimum that one key sees, from everybody's, gains -1), ends are averaged, so many at most.
_CLEAR_GAIN, _CLEAR_LOSS, _MOST_ENDS = 0.5, -2.0, 20
# Values of which the mean is compared with that of as many before.
_WINDOW = 10
_MEMORY, _FLAT_PAIR = 10, 1e-8
_ARMIJO, _HALVINGS, _AVERAGED = 1e-4, 12, 10


class Objective(Protocol):
    """Something to be minimised."""

    def freeze(self, key: int, around: Tensor) -> Smooth:
        """Return the objective with the draws and people of a key; what depends on where it is used is fixed there."""
        ...


@dataclass
class Progress:
    """What a minimiser did: told after every iteration.

    Attributes
    ----------
    tell : callable
        Receives iteration, value, gradient equivalents and whether the step was kept; returns whether to go on.
    gradients : float
        Gradient equivalents so far.
    rejected : int
    """

    tell: Callable[[int, float, float, bool], bool]
    gradients: float = 0.0
    rejected: int = 0
    iteration: int = field(default=0)

    def record(self, value: float, gradients: float, *, kept: bool) -> bool:
        """Count an iteration and its gradient equivalents; return whether to go on."""
        self.iteration += 1
        self.rejected += not kept
        self.gradients += gradients
        return self.tell(self.iteration, value, self.gradients, kept)


def settled(values: list[float], window: int = _WINDOW) -> bool:
    """Whether values, each with its own noise, have stopped falling by two standard errors from window to window."""
    if len(values) < 2 * window:
        return False
    recent = torch.tensor(values[-2 * window :], dtype=torch.float64)
    before, after = recent[:window], recent[window:]
    error = float((before.var() + after.var()).sqrt()) / math.sqrt(window)
    return float(before.mean() - after.mean()) < 2.0 * error


def improves(before: Tensor, after: Tensor) -> bool:
    """Whether paired values (m,) fell by more than a standard error; by anything at all if there is one value."""
    decrease = before - after
    if not bool(torch.isfinite(decrease).all()):
        return False
    mean = float(decrease.mean())
    if len(decrease) == 1:
        return mean > 0.0
    error = float(decrease.std()) / math.sqrt(len(decrease))
    return mean > _STANDARD_ERRORS * error


class _Acceptance:
    """Says where a trial step leads, by draws that had no part in it."""

    def __init__(self) -> None:
        self.ends: list[Tensor] = []

    def end_of(self, judge: Smooth, point: Tensor, trial: Tensor, predicted: float) -> Tensor | None:
        """The trial point, or the mean of those since the last clear gain; None if that is no better than ``point``."""
        before, after = judge.values(point), judge.values(trial)
        gain = float((before - after).mean()) / predicted
        if not gain > _CLEAR_LOSS:
            return None
        self.ends = [] if gain > _CLEAR_GAIN else [*self.ends, trial][-_MOST_ENDS:]
        if len(self.ends) > 1:
            trial = torch.stack(self.ends).mean(0)
            after = judge.values(trial)
        return trial if improves(before, after) else None


@dataclass(frozen=True)
class Batches:
    """An objective with so many people at a time.

    Attributes
    ----------
    objective : Objective
    curvature : Objective, optional
        A cheaper version, of fewer people, for Hessian-vector products.
    cost, curvature_cost : float
        Of a gradient of each, in a common unit.
    """

    objective: Objective
    curvature: Objective | None = None
    cost: float = 1.0
    curvature_cost: float = 1.0


def hessian_free(
    batches: Iterable[Batches], start: Tensor, iterations: int, progress: Progress, *, safeguard: str = "trust"
) -> Tensor:
    """Newton steps by conjugate gradients on Hessian-vector products (after Martens 2010, ICML).

    Parameters
    ----------
    batches : iterable of Batches
        The first is used at first. A step that is rejected says that the noise of who is in a batch is as large as what
        there is to gain, so the next one, of more people, takes over (after Byrd, Chin, Nocedal and Wu 2012,
        Mathematical Programming 134). With the last, where steps gain less than half of what their own draws promise,
        the point is moved to the mean of their ends, each the minimum of what one key sees.
    start : Tensor, shape (d,)
    iterations : int
    progress : Progress
    safeguard : {"trust", "damping"}
        "trust": a ball whose radius follows the quality of the model, negative curvature to its boundary (after
        Regier, Jordan and McAuliffe 2017, NeurIPS, arXiv 1706.02375). "damping": Levenberg and Marquardt's.

    Returns
    -------
    Tensor, shape (d,)
    """
    point, radius, damping = start, _FIRST_RADIUS, _DAMPING
    last: Tensor | None = None
    independent = _Acceptance()
    sizes = iter(batches)
    now = next(sizes)
    for iteration in range(iterations):
        smooth = now.objective.freeze(2 * iteration, point)
        judge = now.objective.freeze(2 * iteration + 1, point)
        value, gradient = smooth.gradient(point)
        bending = smooth if now.curvature is None else now.curvature.freeze(2 * iteration, point)
        multiply = bending.curvature(point)
        if safeguard == "damping":
            plain, weight = multiply, damping
            multiply = lambda v: plain(v) + weight * v  # noqa: B023, E731
        bound = radius if safeguard == "trust" else math.inf
        first = None if last is None else _KEEP_PART * last
        found = steihaug(multiply, gradient, bound, most=_LONGEST_CG, start=first)
        trial = point + found.step
        actual = value - float(smooth.values(trial).mean())
        ratio = actual / found.predicted if found.predicted > 0.0 and math.isfinite(actual) else -1.0
        end = independent.end_of(judge, point, trial, found.predicted) if ratio > 0.0 else None
        kept = end is not None
        length = float(found.step.norm())
        if ratio < 0.25:
            radius, damping = max(_SHRINK * min(radius, length), _SMALLEST_RADIUS), damping * _DAMPING_FACTOR
        elif ratio > 0.75:
            radius = min(max(radius, _GROW * length), _LARGEST_RADIUS)
            damping = damping / _DAMPING_FACTOR
        last = found.step if kept else None
        point = point if end is None else end
        work = now.cost * (smooth.gradients + judge.gradients)
        if bending is not smooth:
            work += now.curvature_cost * bending.gradients
        if not progress.record(value, work, kept=kept):
            break
        larger = None if kept else next(sizes, None)
        if larger is not None:
            now, independent = larger, _Acceptance()
    return point


def lbfgs(
    objective: Objective, start: Tensor, iterations: int, progress: Progress, *, pairs: str = "gradient"
) -> Tensor:
    """Stochastic L-BFGS whose curvature pairs come from the same draws and people at both ends.

    Parameters
    ----------
    objective : Objective
    start : Tensor, shape (d,)
    iterations : int
    progress : Progress
    pairs : {"gradient", "hvp"}
        Change of gradients along a step, or the Hessian times the step (Byrd, Hansen, Nocedal and Singer 2016, SIAM
        Journal on Optimization 26).

    Returns
    -------
    Tensor, shape (d,)
        Mean of the last ten points: each has moved with the noise of its draws.
    """
    point, recent = start, [start]
    memory: list[tuple[Tensor, Tensor]] = []
    for iteration in range(iterations):
        smooth = objective.freeze(iteration, point)
        value, gradient = smooth.gradient(point)
        direction = -apply_inverse(memory, gradient)
        if not memory:
            direction = direction / max(1.0, float(gradient.norm()))
        step = _backtrack(smooth, point, value, gradient, direction)
        kept = step is not None
        if step is None:
            memory = []
        else:
            change = smooth.product(point, step) if pairs == "hvp" else smooth.gradient(point + step)[1] - gradient
            _remember(memory, step, change)
            point = point + step
        recent = [*recent, point][-_AVERAGED:]
        if not progress.record(value, smooth.gradients, kept=kept):
            break
    return torch.stack(recent).mean(0)


def _backtrack(smooth: Smooth, point: Tensor, value: float, gradient: Tensor, direction: Tensor) -> Tensor | None:
    """A step along a direction that decreases the value enough; None where none does."""
    slope = float(gradient @ direction)
    if not slope < 0.0:
        return None
    length = 1.0
    for _ in range(_HALVINGS):
        step = length * direction
        after = float(smooth.values(point + step).mean())
        if after <= value + _ARMIJO * length * slope:
            return step
        length *= 0.5
    return None


def _remember(memory: list[tuple[Tensor, Tensor]], step: Tensor, change: Tensor) -> None:
    """Add a pair whose curvature is positive; forget the oldest."""
    if float(step @ change) > _FLAT_PAIR * float(step.norm()) * float(change.norm()):
        memory.append((step, change))
        del memory[:-_MEMORY]


def apply_inverse(memory: list[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """Product of the inverse Hessian estimate of pairs (step, change of gradient) with a gradient: two loops."""
    result, shares = gradient.clone(), []
    for step, change in reversed(memory):
        share = float(step @ result) / float(step @ change)
        result = result - share * change
        shares.append(share)
    if memory:
        step, change = memory[-1]
        result = result * float(step @ change) / float(change.square().sum())
    for (step, change), share in zip(memory, reversed(shares), strict=True):
        result = result + (share - float(change @ result) / float(step @ change)) * step
    return result


def adam(
    objective: Objective,
    start: Tensor,
    iterations: int,
    progress: Progress,
    *,
    rate: float = 0.05,
    relative: Tensor | None = None,
    share_used: Callable[[], float] = lambda: 0.0,
) -> Tensor:
    """First order: Adam on fresh draws at a rate that follows a cosine.

    Parameters
    ----------
    objective : Objective
    start : Tensor, shape (d,)
    iterations : int
    progress : Progress
    rate : float
        The first one.
    relative : Tensor, shape (d,), optional
        Rates of the coordinates as multiples of it.
    share_used : callable
        Share of the time that is used: the cosine follows it where it is ahead of the iterations.

    Returns
    -------
    Tensor, shape (d,)
        Average of the last quarter's points.
    """
    # Adam takes no notice of the size of gradients, so a rate of one's own is a unit of one's own.
    unit = torch.ones_like(start) if relative is None else relative
    moved = torch.zeros_like(start).requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=rate, betas=(0.9, 0.99))
    point = start
    total, count = torch.zeros_like(start), 0
    for iteration in range(iterations):
        share = min(1.0, max(iteration / iterations, share_used()))
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * share))
        smooth = objective.freeze(iteration, point)
        value, gradient = smooth.gradient(point)
        moved.grad = unit * gradient
        optimizer.step()
        point = start + unit * moved.detach()
        if share >= 0.75:
            total, count = total + point, count + 1
        if not progress.record(value, smooth.gradients, kept=True):
            break
    return total / count if count else point
