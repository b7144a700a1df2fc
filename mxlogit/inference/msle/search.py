"""Search for the maximum of a simulated likelihood: optimisers, starting points over signs, final Newton steps.

Every optimiser is followed by Newton steps with the exact Hessian in the precision of the data, until the predicted
gain of a further step is below the tolerance. All optimisers therefore agree in all reported digits.

With sign-restricted tastes, whose large values make choices all but certain, a small change of parameters turns single
draws from likely to unlikely. The simulated likelihood then has curvature at scales far below a standard error, up to
a hundred times that of the exact one, and many local maxima within the noise of its draws. Outer products of scores do
not see this curvature: searches by them end where they gain hardly anything, and exact Hessians find the maximum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from mxlogit.fit import HistoryRow, Status
from mxlogit.inference.clock import Clock
from mxlogit.inference.msle.scaled_loss import ScaledLoss
from mxlogit.integration.simulated_likelihood import SimulatedLikelihood, SimulatedScores
from mxlogit.optim.trust_region import Ascent, Evaluation, Iteration, NewtonAscent, Reason, newton_decrement, solve_step

SCIPY = {"bfgs": "BFGS", "l-bfgs": "L-BFGS-B", "trust-region": "trust-exact"}
# Constants without a stated reason are chosen by hand. Gains are in log likelihood.
# Largest change of a coordinate in one Newton step, in its natural size.
_RADIUS = 0.5
# Predicted gains at which the search on few draws and the search on all draws end.
_COARSE, _NEAR = 1.0, 2e-3
# Predicted gain below which the Hessian is reused at the next points: at most 0.02 standard errors from the optimum.
_HESSIAN_REUSE_TOLERANCE = 2e-4
# Relative rounding error of the log likelihood in single precision, and the multiple of it that a predicted gain must
# exceed for values in single precision to tell whether a step is good.
_ROUNDING, _CLEAR = 1e-8, 100.0
# Draws of the coarse search: one in _COARSE_SHARE, but at least _FEWEST_DRAWS.
_COARSE_SHARE, _FEWEST_DRAWS = 8, 40
# Predicted gain at which a search with kinked mixing maps has converged, because their scores jump.
_NONSMOOTH_TOLERANCE = 1e-3
# Largest number of secant pairs.
_SECANTS = 5
# Smallest ratio, in either direction, of observed to expected curvature of a secant pair that is used.
_MIN_CURVATURE_RATIO = 0.25
# Factor of a standard deviation whose step would change its sign, unless it is below _NEXT_TO_ZERO natural sizes.
_SHRINK = 0.2
_NEXT_TO_ZERO = 0.02
# Smallest gain by which another starting point is preferred: more than rounding.
_MIN_IMPROVEMENT = 1e-2
_STATUS = {
    Reason.CONVERGED: Status.CONVERGED,
    Reason.ITERATIONS: Status.ITERATIONS,
    Reason.STALLED: Status.STALLED,
    Reason.STOPPED: Status.TIME,
}


@dataclass(frozen=True)
class MaximumFound:
    """A maximum of the simulated likelihood.

    Attributes
    ----------
    vector : Tensor, shape (D,)
        MaximumFound in the likelihood's coordinates.
    at : SimulatedScores
        Values and scores at the optimum.
    hessian : Tensor, shape (D, D)
        Exact Hessian at the optimum or at most 0.02 standard errors from it.
    decrement : float
        Predicted gain of a further Newton step.
    status : Status
    start : str
        Name of the starting point.
    """

    vector: Tensor
    at: SimulatedScores
    hessian: Tensor
    decrement: float
    status: Status
    start: str


@dataclass(frozen=True)
class Found:
    """End of an optimiser's run.

    Attributes
    ----------
    vector : Tensor, shape (D,)
        Coordinates.
    value : float
        Simulated log likelihood.
    gain : float
        Predicted gain of a further step, not small if the search ended because it was slow.
    exhausted : bool
        Whether iterations were used up.
    start : str
        Name of the starting point.
    """

    vector: Tensor
    value: float
    gain: float
    exhausted: bool
    start: str


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search (see `mxlogit.MSLE`)."""

    optimizer: str
    tolerance: float
    max_iterations: int


class SimulatedSearch:
    """Search for the maximum of one likelihood.

    Parameters
    ----------
    simulated : SimulatedLikelihood
        Likelihood in the precision of the data.
    rough : SimulatedLikelihood
        Likelihood in the precision of the search.
    sizes : Tensor, shape (D,)
        Natural size of each coordinate.
    settings : SearchSettings
    clock : Clock
    """

    def __init__(
        self,
        simulated: SimulatedLikelihood,
        rough: SimulatedLikelihood,
        sizes: Tensor,
        settings: SearchSettings,
        clock: Clock,
    ) -> None:
        self.simulated, self.rough, self.sizes = simulated, rough, sizes
        self.optimizer, self.tolerance = settings.optimizer, settings.tolerance
        self.max_iterations = settings.max_iterations
        self.clock = clock
        self._others: list[SimulatedLikelihood] = []

    @property
    def passes(self) -> float:
        """Passes over all people and draws so far."""
        every = {id(s): s for s in (self.simulated, self.rough, *self._others)}
        return sum(s.passes for s in every.values())

    def run(self, start: Tensor, n_starts: int) -> MaximumFound:
        """Search from ``start`` and from its most likely sign changes, then take final Newton steps at the best."""
        first = self._coarse(start) if self.optimizer == "newton" else start
        found = [self._search(first, "positive standard deviations")]
        flips = [] if self.clock.is_over() else self._flips(found[0].vector, n_starts - 1)
        for name, vector in flips:
            if self.clock.is_over():
                break
            found.append(self._search(vector, name))
        return self._finish_best(found)

    def _finish_best(self, found: list[Found]) -> MaximumFound:
        """Finish the search of the highest predicted maximum, and any that ended above what it comes to."""
        best = found[0]
        for other in found[1:]:
            if other.value + other.gain > best.value + best.gain + _MIN_IMPROVEMENT:
                best = other
        maximum = self._finish(best)
        for other in found:
            if other is best or self.clock.is_over() or other.value < self._value(maximum) + _MIN_IMPROVEMENT:
                continue
            rival = self._finish(other)
            if self._value(rival) > self._value(maximum) + _MIN_IMPROVEMENT:
                maximum = rival
        return maximum

    def _value(self, maximum: MaximumFound) -> float:
        return float(maximum.at.log_prob @ self.simulated.weights)

    def _flips(self, vector: Tensor, count: int) -> list[tuple[str, Tensor]]:
        """Points with the sign of one column of L changed, at most ``count``, in decreasing order of likelihood."""
        if count < 1:
            return []
        space = self.simulated.model.space
        offset = space.n_means
        columns = torch.tensor(space.triangle[1])
        flips = []
        for k, name in enumerate(space.random):
            mirrored = vector.clone()
            mirrored[offset:][columns == k] *= -1.0
            flips.append((self.rough.value(mirrored), f"sign of {name!r} flipped", mirrored))
        flips.sort(key=lambda flip: -flip[0])
        return [(name, mirrored) for _, name, mirrored in flips[:count]]

    def _search(self, start: Tensor, name: str) -> Found:
        if self.optimizer != "newton":
            return self._search_scipy(start, name)
        ascent = self._ascend(self.rough, start, _NEAR, name)
        vector = ascent.point
        if ascent.reason is Reason.CONVERGED:
            # The last evaluation gives one more step, so the exact Hessian is computed closer to the optimum.
            vector = vector + solve_step(ascent.evaluation, self.sizes, _RADIUS).step
        exhausted = ascent.reason is Reason.ITERATIONS
        return Found(vector, ascent.evaluation.value, ascent.decrement, exhausted, name)

    # -- Berndt-Hall-Hall-Hausman steps, few draws first -----------------------------------------

    def _coarse(self, start: Tensor) -> Tensor:
        """Approach the optimum on the first part of each person's draws, at low cost."""
        few = max(_FEWEST_DRAWS, self.rough.n_draws // _COARSE_SHARE)
        if 2 * few > self.rough.n_draws:
            return start
        likelihood = self.rough.thinned(few)
        self._others.append(likelihood)
        return self._ascend(likelihood, start, _COARSE, f"the first {few} draws").point

    def _ascend(self, likelihood: SimulatedLikelihood, start: Tensor, tolerance: float, stage: str) -> Ascent[Tensor]:
        """Trust-region steps with the people's centred outer product of scores as curvature.

        Berndt, Hall, Hall and Hausman (1974, Annals of Economic and Social Measurement 3); centred, because far from
        the optimum the mean score would bias the curvature.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def evaluate(vector: Tensor) -> Evaluation:
            at = likelihood.evaluate(vector)
            weights = likelihood.weights
            gradient = at.scores.T @ weights
            outer = at.scores.T @ (weights[:, None] * at.scores)
            outer -= torch.outer(gradient, gradient) / weights.sum()
            seen.append((vector, gradient))
            del seen[: -_SECANTS - 1]
            return Evaluation(float(at.log_prob @ weights), gradient, _with_secants(outer, seen), at)

        return self._newton(evaluate, start, tolerance, self.max_iterations, stage, _ROUNDING, ends_if_slow=True)

    def _newton(
        self,
        evaluate: Callable[[Tensor], Evaluation],
        start: Tensor,
        tolerance: float,
        iterations: int,
        stage: str,
        rounding: float,
        *,
        known: Evaluation | None = None,
        ends_if_slow: bool = False,
    ) -> Ascent[Tensor]:
        def log(iteration: Iteration) -> None:
            self._log(stage, iteration.value, iteration.decrement, accepted=iteration.accepted)

        settings = self.sizes, tolerance, iterations, _RADIUS
        ascent = NewtonAscent(
            evaluate,
            self._move,
            *settings,
            log,
            rounding=rounding,
            is_over=self.clock.is_over,
            ends_if_slow=ends_if_slow,
        )
        return ascent.run(start, known)

    def _move(self, vector: Tensor, step: Tensor) -> Tensor:
        """Take a step that does not change signs of standard deviations, unless they are close to zero.

        The simulated likelihood has a local optimum in most orthants of signs; a starting point belongs to one.
        """
        moved = vector + step
        space = self.simulated.model.space
        rows, columns = (torch.tensor(index, dtype=torch.int64) for index in space.triangle)
        diagonal = space.n_means + torch.nonzero(rows == columns)[:, 0]
        old, new = vector[diagonal], moved[diagonal]
        crossing = (old * new < 0) & (old.abs() > _NEXT_TO_ZERO * self.sizes[diagonal])
        moved[diagonal] = torch.where(crossing, _SHRINK * old, new)
        return moved

    def _log(self, stage: str, value: float, decrement: float, *, accepted: bool) -> None:
        self.clock.passes = self.passes
        self.clock.history.append(HistoryRow(stage, value, decrement, self.passes, self.clock.seconds(), accepted))
        self.clock.show(f"{stage}: {self.passes:.1f} passes, log likelihood {value:.3f}")

    # -- scipy ----------------------------------------------------------------------------------

    def _search_scipy(self, start: Tensor, name: str) -> Found:
        objective = ScaledLoss(self.rough, self._scales(start))
        # A gain of the tolerance corresponds to a gradient of this size in units of standard errors.
        gradient_tolerance = math.sqrt(2.0 * self.tolerance)
        options: dict[str, object] = {"gtol": gradient_tolerance, "maxiter": self.max_iterations}
        if self.optimizer == "bfgs" and len(start):
            options["hess_inv0"] = objective.first_inverse_hessian(start)

        def follow(intermediate_result: OptimizeResult) -> None:
            self._log(name, -float(intermediate_result.fun), math.nan, accepted=True)
            if self.clock.is_over():
                raise StopIteration

        result = minimize(
            objective.value,
            (start / objective.scales).numpy(),
            jac=objective.gradient,
            hess=objective.hessian if self.optimizer == "trust-region" else None,
            method=SCIPY[self.optimizer],
            options=options,
            callback=follow,
        )
        exhausted = result.nit >= self.max_iterations
        return Found(torch.from_numpy(result.x) * objective.scales, -float(result.fun), 0.0, exhausted, name)

    def _scales(self, start: Tensor) -> Tensor:
        """Standard errors of the coordinates from outer products of scores at the start, at most their sizes."""
        scores, weights = self.rough.evaluate(start).scores, self.rough.weights
        information = (weights[:, None] * scores.square()).sum(0)
        return torch.minimum(self.sizes, information.clamp(min=1e-300).rsqrt())

    # -- finish ---------------------------------------------------------------------------------

    def _finish(self, found: Found) -> MaximumFound:
        """Take final Newton steps with the exact Hessian, reused close to the optimum."""
        evaluate = _ExactEvaluation(self.simulated, self.rough, self.sizes)
        iterations = 0 if found.exhausted else self.max_iterations
        vector, known = (found.vector, None) if found.exhausted else evaluate.first_step(found.vector)
        # Jumps of the score limit the attainable gain.
        tolerance = (
            max(self.tolerance, _NONSMOOTH_TOLERANCE) if self.simulated.model.mixing.is_kinked else self.tolerance
        )
        ascent = self._newton(evaluate, vector, tolerance, iterations, "exact Hessian", 1e-13, known=known)
        status = _STATUS[ascent.reason]
        if self.simulated.model.mixing.is_kinked and ascent.decrement < 10.0 * _NONSMOOTH_TOLERANCE:
            status = Status.CONVERGED
        if found.exhausted and not status.converged:
            status = Status.ITERATIONS
        at: SimulatedScores = ascent.evaluation.detail
        if at.hessian is not None:
            # The search ended far from a maximum, on an evaluation in its own precision.
            at = self.simulated.evaluate(ascent.point)
        return MaximumFound(ascent.point, at, -ascent.evaluation.curvature, ascent.decrement, status, found.start)


def _with_secants(curvature: Tensor, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Curvature after BFGS updates with the changes of the gradient between the last points, oldest first.

    They correct the outer products of scores near the optimum at no further cost.
    """
    for (before, old), (after, new) in itertools.pairwise(seen):
        step, change = after - before, old - new
        along, bent = float(step @ change), curvature @ step
        size = float(step @ bent)
        if size > 0.0 and _MIN_CURVATURE_RATIO * size < along < size / _MIN_CURVATURE_RATIO:
            curvature = curvature + torch.outer(change, change) / along - torch.outer(bent, bent) / size
    return curvature


class _ExactEvaluation:
    """Values and scores in the precision of the data, with the exact Hessian in the precision of the search.

    The Hessian is reused once little is left to gain. Its rounding error in single precision (relative 1e-5) is
    negligible for Newton steps and standard errors. Far from the optimum values and scores are those of the search.
    """

    def __init__(self, simulated: SimulatedLikelihood, rough: SimulatedLikelihood, sizes: Tensor) -> None:
        self.simulated, self.rough, self.sizes = simulated, rough, sizes
        self._hessian: Tensor | None = None
        self._gain = math.inf

    def first_step(self, vector: Tensor) -> tuple[Tensor, Evaluation | None]:
        """One Newton step from ``vector``, in the precision of the search; none if its predicted gain is too large.

        The evaluation at ``vector`` comes with no step, if it is precise enough there.
        """
        evaluation = self._remember(self.rough.evaluate(vector, curvature=True))
        if self._gain > _HESSIAN_REUSE_TOLERANCE:
            return vector, evaluation if self._is_far(evaluation) else None
        return vector + solve_step(evaluation, self.sizes, _RADIUS).step, None

    def __call__(self, vector: Tensor) -> Evaluation:
        if self._hessian is None or self._gain > _HESSIAN_REUSE_TOLERANCE:
            evaluation = self._remember(self.rough.evaluate(vector, curvature=True))
            if self._is_far(evaluation):
                return evaluation
        return self._remember(self.simulated.evaluate(vector))

    def _is_far(self, evaluation: Evaluation) -> bool:
        """Whether there is so much to gain that rounding in single precision does not matter."""
        return self._gain > _CLEAR * _ROUNDING * abs(evaluation.value)

    def _remember(self, at: SimulatedScores) -> Evaluation:
        self._hessian = at.hessian if at.hessian is not None else self._hessian
        assert self._hessian is not None
        weights = self.simulated.weights
        evaluation = Evaluation(float(at.log_prob @ weights), at.scores.T @ weights, -self._hessian, at)
        self._gain = newton_decrement(evaluation, self.sizes)
        return evaluation
