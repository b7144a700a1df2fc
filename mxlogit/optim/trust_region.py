"""A trust-region Newton ascent for smooth functions of tens of parameters with expensive evaluations.

The objective enters only through `Evaluation` records, and points move only through ``move``, so that the maximiser is
independent of likelihoods and coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mxlogit.errors import SpecificationError

Point = TypeVar("Point")

# Smallest trust-region radius, in scaled coordinates; below it the ascent has stalled. Chosen by hand.
_SHORTEST_STEP = 1e-6
# Rejections in a row after which the ascent has stalled: each shortens the step four times, so the rest is noise.
_MOST_REJECTIONS = 4
# Steps over which the progress of an ascent is judged; chosen by hand.
_SLOW_STEPS = 5


@dataclass(frozen=True)
class Evaluation:
    """Value, gradient and curvature of an objective to be maximised, at one point (float64).

    Attributes
    ----------
    value : float
    gradient : Tensor, shape (D,)
    curvature : Tensor, shape (D, D)
        Symmetric approximation of minus the Hessian; may be indefinite.
    detail : object
        Data of the caller, returned with the best evaluation.
    """

    value: float
    gradient: Tensor
    curvature: Tensor
    detail: Any = None

    def is_finite(self) -> bool:
        """Whether value, gradient and curvature are all finite."""
        tensors = torch.isfinite(self.gradient).all() & torch.isfinite(self.curvature).all()
        return math.isfinite(self.value) and bool(tensors)


@dataclass(frozen=True)
class Step:
    """A proposed step, the increase predicted by the quadratic model, and whether the trust region was active."""

    step: Tensor
    predicted: float
    at_boundary: bool


@dataclass(frozen=True)
class Iteration:
    """Log entry of one trial step and its acceptance."""

    value: float
    decrement: float
    step_size: float
    accepted: bool


class Reason(Enum):
    """Reason why an ascent ended."""

    CONVERGED = "converged"
    ITERATIONS = "iterations"
    STALLED = "stalled"
    SLOW = "slow"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Ascent(Generic[Point]):
    """Result of an ascent: best point, its evaluation and Newton decrement, reason of the end, first evaluation."""

    point: Point
    evaluation: Evaluation
    decrement: float
    reason: Reason
    first: Evaluation


def newton_decrement(evaluation: Evaluation, scale: Tensor) -> float:
    """Increase predicted for a full Newton step (half the squared Newton decrement), in units of the objective.

    Negative curvature counts by its absolute value.
    """
    values, vectors = torch.linalg.eigh(scale[:, None] * evaluation.curvature * scale)
    gradient = vectors.T @ (scale * evaluation.gradient)
    floor = torch.finfo(values.dtype).eps * float(values.abs().amax()) + 1e-300
    return float(0.5 * (gradient.square() / values.abs().clamp(min=floor)).sum())


def solve_step(evaluation: Evaluation, scale: Tensor, radius: float) -> Step:
    """Maximise the quadratic model with every scaled coordinate of the step inside the radius.

    The damping is the smallest of a geometric sequence that makes the model concave and the step short enough
    (Levenberg 1944; More 1978, Lecture Notes in Mathematics 630).

    Parameters
    ----------
    evaluation : Evaluation
    scale : Tensor, shape (D,)
        Natural size of a step in each coordinate.
    radius : float
        Largest absolute scaled coordinate.

    Returns
    -------
    Step
    """
    values, vectors = torch.linalg.eigh(scale[:, None] * evaluation.curvature * scale)
    gradient = vectors.T @ (scale * evaluation.gradient)
    size = float(values.abs().amax()) or 1.0
    lowest = float(values.amin())
    shift, damping = (0.0, 0.0) if lowest > 1e-9 * size else (-lowest, 1e-6 * size)
    first = damping
    while True:
        step = vectors @ (gradient / (values + shift + damping))
        if float(step.abs().amax()) <= radius:
            break
        damping = max(2.0 * damping, 1e-6 * size)
    coordinates = vectors.T @ step
    predicted = float(gradient @ coordinates - 0.5 * (values * coordinates.square()).sum())
    return Step(scale * step, predicted, damping > first)


@dataclass
class NewtonAscent(Generic[Point]):
    """Trust-region ascent with acceptance on the objective itself.

    Parameters
    ----------
    evaluate : callable
        Map from a point to its `Evaluation`.
    move : callable
        Map from a point and a step to a point.
    scale : Tensor, shape (D,)
        Natural size of a step in each coordinate.
    tolerance : float
        Predicted increase (`newton_decrement`) below which the ascent has converged.
    max_iterations : int
    largest_radius : float
        Largest trust-region radius, in scaled coordinates.
    log : callable
        Callback that receives an `Iteration` after every evaluation.
    rounding : float
        Relative size of the objective's rounding errors.
    is_over : callable
        Function that returns whether to stop before the next step, for example at a time limit.
    ends_if_slow : bool
        Whether to end where five steps together have gained less than is predicted for one: the curvature is not that
        of the objective.
    """

    evaluate: Callable[[Point], Evaluation]
    move: Callable[[Point, Tensor], Point]
    scale: Tensor
    tolerance: float
    max_iterations: int
    largest_radius: float
    log: Callable[[Iteration], None]
    rounding: float = 1e-12
    is_over: Callable[[], bool] = lambda: False
    ends_if_slow: bool = False

    def run(self, point: Point, known: Evaluation | None = None) -> Ascent[Point]:
        """Ascend from ``point``; the ascent has stalled when steps are too short to change the value.

        Parameters
        ----------
        point : Point
        known : Evaluation, optional
            Evaluation at ``point``, if there is one.

        Raises
        ------
        SpecificationError
            If the objective is not finite at ``point``.
        """
        radius = self.largest_radius
        current = first = known or self.evaluate(point)
        if not current.is_finite():
            raise SpecificationError(
                "the objective is not finite where the search begins: rescale attributes of extreme size, or use "
                "dtype='float64'."
            )
        decrement = newton_decrement(current, self.scale)
        if known is None:
            self.log(Iteration(current.value, decrement, 0.0, accepted=True))
        rejected, values = 0, [current.value]
        for _ in range(self.max_iterations):
            if decrement < self._threshold(current):
                return Ascent(point, current, decrement, Reason.CONVERGED, first)
            if radius < _SHORTEST_STEP or rejected >= _MOST_REJECTIONS:
                return Ascent(point, current, decrement, Reason.STALLED, first)
            if self.is_over():
                return Ascent(point, current, decrement, Reason.STOPPED, first)
            proposal = solve_step(current, self.scale, radius)
            candidate = self.move(point, proposal.step)
            evaluation = self.evaluate(candidate)
            gain = evaluation.value - current.value
            length = float((proposal.step / self.scale).abs().amax())
            accepted = gain > 0.01 * proposal.predicted and evaluation.is_finite()
            rejected = 0 if accepted else rejected + 1
            if accepted:
                point, current = candidate, evaluation
                decrement = newton_decrement(current, self.scale)
            radius = self._next_radius(radius, length, gain / proposal.predicted)
            self.log(Iteration(evaluation.value, decrement, length, accepted))
            values.append(current.value)
            slow = len(values) > _SLOW_STEPS and current.value - values.pop(0) < decrement
            if slow and self.ends_if_slow:
                return Ascent(point, current, decrement, Reason.SLOW, first)
        converged = decrement < self._threshold(current)
        return Ascent(point, current, decrement, Reason.CONVERGED if converged else Reason.ITERATIONS, first)

    def _threshold(self, evaluation: Evaluation) -> float:
        """The tolerance, or the rounding error of the objective if that is larger."""
        return max(self.tolerance, self.rounding * abs(evaluation.value))

    def _next_radius(self, radius: float, length: float, ratio: float) -> float:
        if not ratio > 0.25:
            return 0.25 * length
        if ratio > 0.75:
            return min(2.0 * max(radius, length), self.largest_radius)
        return radius
