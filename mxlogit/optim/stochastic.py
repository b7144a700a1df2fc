"""Minimisers of stochastic objectives: Newton-CG, L-BFGS and Adam.

Freezing an objective under a key fixes its draws and people. Curvature pairs and trial steps compare values under one
key; acceptance of a step is decided under another, so that a step is not accepted for fitting its own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.optim.adam import Adam
from mxlogit.optim.curvature import Smooth, steihaug

# Constants without a stated reason are chosen by hand.
# Most conjugate-gradient iterations per Newton step.
_LONGEST_CG = 20
# Bounds and initial value of the trust-region radius, in units of the coordinates.
_SMALLEST_RADIUS = 1e-6
_LARGEST_RADIUS = 30.0
_FIRST_RADIUS = 30.0
# Factors of the radius after poor and good agreement with the quadratic model.
_SHRINK = 0.4
_GROW = 2.0
# Share of the last accepted step from which conjugate gradients start.
_WARM_START = 0.5
# Initial Levenberg-Marquardt damping (added to the Hessian), and its factor after poor or good agreement.
_FIRST_DAMPING = 1.0
_DAMPING_FACTOR = 1.5
# Standard errors that a paired mean decrease must exceed to count as an improvement.
_STANDARD_ERRORS = 1.0
# Ratio of the decrease on independent draws to the predicted one: above _CLEAR_GAIN the trial point is accepted, below
# _CLEAR_LOSS rejected, between them up to _MOST_AVERAGED trial points are averaged. A step from the optimum of the
# exact objective to the optimum under one key has ratio -1.
_CLEAR_GAIN = 0.5
_CLEAR_LOSS = -2.0
_MOST_AVERAGED = 20
# Number of values in each of the two windows whose means `settled` compares.
_WINDOW = 10
# Most curvature pairs of L-BFGS.
_MEMORY = 10
# Smallest cosine between step and change of gradient of a curvature pair: smaller ones are dropped.
_FLAT_PAIR = 1e-8
# Armijo's sufficient decrease, as a share of the linear prediction (Nocedal and Wright 2006, section 3.1).
_ARMIJO = 1e-4
# Most step sizes tried in a line search, each half of the last.
_HALVINGS = 12
# Number of last points that L-BFGS averages.
_LBFGS_AVERAGED = 10


class Objective(Protocol):
    """A stochastic objective to be minimised."""

    def freeze(self, key: int, around: Tensor) -> Smooth:
        """Return the objective on the draws and people of a key; point-dependent settings are fixed at ``around``."""
        ...


@dataclass
class Progress:
    """Record of a minimisation, with a callback after every iteration.

    Attributes
    ----------
    callback : callable
        Function that receives iteration, value, cost in gradients and whether the step was accepted; returns whether
        to continue.
    gradients : float
        Cost so far, in gradient evaluations.
    rejected : int
        Number of rejected steps.
    """

    callback: Callable[[int, float, float, bool], bool]
    gradients: float = 0.0
    rejected: int = 0
    iteration: int = field(default=0)

    def record(self, value: float, gradients: float, *, kept: bool) -> bool:
        """Record an iteration and its cost in gradients; return whether to continue."""
        self.iteration += 1
        self.rejected += not kept
        self.gradients += gradients
        return self.callback(self.iteration, value, self.gradients, kept)


def settled(values: list[float], window: int = _WINDOW) -> bool:
    """Whether the mean of noisy values no longer falls by two standard errors from one window to the next."""
    if len(values) < 2 * window:
        return False
    recent = torch.tensor(values[-2 * window :], dtype=torch.float64)
    before, after = recent[:window], recent[window:]
    error = float((before.var() + after.var()).sqrt()) / math.sqrt(window)
    return float(before.mean() - after.mean()) < 2.0 * error


def improves(before: Tensor, after: Tensor) -> bool:
    """Whether paired values (m,) fell by more than a standard error on average; a single value, by any amount."""
    decrease = before - after
    if not bool(torch.isfinite(decrease).all()):
        return False
    mean = float(decrease.mean())
    if len(decrease) == 1:
        return mean > 0.0
    error = float(decrease.std()) / math.sqrt(len(decrease))
    return mean > _STANDARD_ERRORS * error


class _Acceptance:
    """Acceptance of trial steps by their decrease on independent draws."""

    def __init__(self) -> None:
        self.ends: list[Tensor] = []

    def accepted_point(self, independent: Smooth, point: Tensor, trial: Tensor, predicted: float) -> Tensor | None:
        """The trial point, or the mean of trial points since the last clear gain; None without an improvement."""
        before, after = independent.values(point), independent.values(trial)
        gain = float((before - after).mean()) / predicted
        if not gain > _CLEAR_LOSS:
            return None
        self.ends = [] if gain > _CLEAR_GAIN else [*self.ends, trial][-_MOST_AVERAGED:]
        if len(self.ends) > 1:
            trial = torch.stack(self.ends).mean(0)
            after = independent.values(trial)
        return trial if improves(before, after) else None


@dataclass(frozen=True)
class Batches:
    """An objective on mini-batches of a given size.

    Attributes
    ----------
    objective : Objective
    curvature : Objective, optional
        Objective on fewer people, for cheaper Hessian-vector products.
    cost, curvature_cost : float
        Costs of one gradient of each, in a common unit.
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
        Objectives on mini-batches of increasing size. A rejected step indicates that the sampling noise of a batch is
        as large as the possible gain, and the next size is used from then on (after Byrd, Chin, Nocedal and Wu 2012,
        Mathematical Programming 134). When steps gain less than half of the prediction on their own draws, trial
        points, each the optimum under one key, are averaged.
    start : Tensor, shape (d,)
    iterations : int
        Largest number of iterations.
    progress : Progress
    safeguard : {"trust", "damping"}
        Globalisation. "trust": a trust region, with negative curvature followed to its boundary (after Regier, Jordan
        and McAuliffe 2017, NeurIPS, arXiv 1706.02375). "damping": Levenberg-Marquardt damping.

    Returns
    -------
    Tensor, shape (d,)
    """
    point, radius, damping = start, _FIRST_RADIUS, _FIRST_DAMPING
    last: Tensor | None = None
    acceptance = _Acceptance()
    sizes = iter(batches)
    now = next(sizes)
    for iteration in range(iterations):
        smooth = now.objective.freeze(2 * iteration, point)
        independent = now.objective.freeze(2 * iteration + 1, point)
        value, gradient = smooth.gradient(point)
        curved = smooth if now.curvature is None else now.curvature.freeze(2 * iteration, point)
        multiply = curved.curvature(point)
        if safeguard == "damping":
            plain, weight = multiply, damping
            multiply = lambda v: plain(v) + weight * v  # noqa: B023, E731
        bound = radius if safeguard == "trust" else math.inf
        first = None if last is None else _WARM_START * last
        found = steihaug(multiply, gradient, bound, most=_LONGEST_CG, start=first)
        trial = point + found.step
        actual = value - float(smooth.values(trial).mean())
        ratio = actual / found.predicted if found.predicted > 0.0 and math.isfinite(actual) else -1.0
        end = acceptance.accepted_point(independent, point, trial, found.predicted) if ratio > 0.0 else None
        kept = end is not None
        length = float(found.step.norm())
        if ratio < 0.25:
            radius, damping = max(_SHRINK * min(radius, length), _SMALLEST_RADIUS), damping * _DAMPING_FACTOR
        elif ratio > 0.75:
            radius = min(max(radius, _GROW * length), _LARGEST_RADIUS)
            damping = damping / _DAMPING_FACTOR
        last = found.step if kept else None
        point = point if end is None else end
        work = now.cost * (smooth.gradients + independent.gradients)
        if curved is not smooth:
            work += now.curvature_cost * curved.gradients
        if not progress.record(value, work, kept=kept):
            break
        larger = None if kept else next(sizes, None)
        if larger is not None:
            now, acceptance = larger, _Acceptance()
    return point


def lbfgs(
    objective: Objective, start: Tensor, iterations: int, progress: Progress, *, pairs: str = "gradient"
) -> Tensor:
    """Stochastic L-BFGS with curvature pairs from the same draws and people at both ends of a step.

    Parameters
    ----------
    objective : Objective
    start : Tensor, shape (d,)
    iterations : int
        Largest number of iterations.
    progress : Progress
    pairs : {"gradient", "hvp"}
        Second vector of the curvature pairs: change of the gradient along a step, or the Hessian times the step (Byrd,
        Hansen, Nocedal and Singer 2016, SIAM Journal on Optimization 26).

    Returns
    -------
    Tensor, shape (d,)
        Mean of the last ten points, which averages out the noise of their draws.
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
        recent = [*recent, point][-_LBFGS_AVERAGED:]
        if not progress.record(value, smooth.gradients, kept=kept):
            break
    return torch.stack(recent).mean(0)


def _backtrack(smooth: Smooth, point: Tensor, value: float, gradient: Tensor, direction: Tensor) -> Tensor | None:
    """Step along a direction with sufficient decrease (Armijo), by halving; None if no step size succeeds."""
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
    """Append a pair if its curvature is positive, and drop the oldest beyond the memory."""
    if float(step @ change) > _FLAT_PAIR * float(step.norm()) * float(change.norm()):
        memory.append((step, change))
        del memory[:-_MEMORY]


def apply_inverse(memory: list[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """L-BFGS two-loop recursion: product of the inverse Hessian estimate from curvature pairs with a gradient."""
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
    rate: float | Tensor = 0.05,
    share_used: Callable[[], float] = lambda: 0.0,
) -> Tensor:
    """Adam on new draws in every iteration, with a cosine schedule of the learning rate.

    Parameters
    ----------
    objective : Objective
    start : Tensor, shape (d,)
    iterations : int
        Largest number of iterations.
    progress : Progress
    rate : float or Tensor, shape (d,)
        Initial learning rate, of each coordinate if a tensor.
    share_used : callable
        Function that returns the used share of the time limit; the schedule follows it if it exceeds the share of
        iterations.

    Returns
    -------
    Tensor, shape (d,)
        Average of the points of the last quarter of the schedule.
    """
    # Adam is invariant to the scale of gradients, so learning rates per coordinate amount to units per coordinate.
    unit = torch.ones_like(start) * rate
    moved = torch.zeros_like(start).requires_grad_()
    optimizer = Adam([moved], betas=(0.9, 0.99))
    point = start
    total, count = torch.zeros_like(start), 0
    for iteration in range(iterations):
        share = min(1.0, max(iteration / iterations, share_used()))
        smooth = objective.freeze(iteration, point)
        value, gradient = smooth.gradient(point)
        moved.grad = unit * gradient
        optimizer.step(0.5 * (1.0 + math.cos(math.pi * share)))
        point = start + unit * moved.detach()
        if share >= 0.75:
            total, count = total + point, count + 1
        if not progress.record(value, smooth.gradients, kept=True):
            break
    return total / count if count else point
