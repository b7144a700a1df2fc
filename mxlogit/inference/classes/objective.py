"""Log likelihood or log posterior of a population of classes, with the steps of Newton's method and of EM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.integration.class_likelihood import ClassEvaluation
from mxlogit.model.class_prior import ClassPrior
from mxlogit.model.classes import ClassPopulation, ClassSpace
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.panels import Panels

# Least and largest damping of a singular information matrix whose diagonal is one.
_DAMPING, _MOST_DAMPING = 1e-9, 1e3
# Longest step: of coefficients, in utils for a typical difference; of logarithms; and of other coordinates.
# Newton steps far from the optimum would lead to spreads that no draws cover; chosen by hand.
_LONGEST_EFFECT, _LONGEST_LOG, _LONGEST_OTHER = 3.0, 1.0, 1.5


class Likelihood(Protocol):
    """Log likelihood of a population of classes (`ClassLikelihood`, `MixtureLikelihood`)."""

    model: MixedLogitModel
    space: ClassSpace
    panel: Panels
    weights: Tensor

    def log_prob_people(self, population: ClassPopulation) -> Tensor:
        """Log probabilities (*s, n) of people's choices."""
        ...

    def value_with_error(self, population: ClassPopulation) -> tuple[float, float, float]:
        """Log likelihood, its Monte Carlo standard error, and the mean effective share of people's draws."""
        ...

    def evaluate(self, vector: Tensor) -> ClassEvaluation:
        """Log likelihood and derivatives at one unconstrained vector (D,)."""
        ...


@dataclass(frozen=True)
class Place:
    """A point of a search.

    Attributes
    ----------
    vector : Tensor, shape (D,)
    value : float
        Objective.
    gradient : Tensor, shape (D,)
    curvature : Tensor, shape (D, D)
        Minus the Hessian of the objective.
    complete : Tensor, shape (D, D)
        The same if memberships were observed: the curvature of a step of EM.
    at : ClassEvaluation
        Log likelihood there.
    """

    vector: Tensor
    value: float
    gradient: Tensor
    curvature: Tensor
    complete: Tensor
    at: ClassEvaluation

    def is_finite(self) -> bool:
        """Whether value, gradient and curvature are all finite."""
        tensors = (self.gradient, self.curvature, self.complete)
        return math.isfinite(self.value) and all(bool(torch.isfinite(part).all()) for part in tensors)

    def newton_step(self) -> Tensor | None:
        """The step of Newton's method (D,); None where the objective is not concave."""
        return _solve(self.curvature, self.gradient, 0.0)

    def em_step(self) -> Tensor:
        """One Newton step on the expected complete-data objective (D,), which goes uphill (generalised EM)."""
        damping = _DAMPING
        while damping < _MOST_DAMPING:
            step = _solve(self.complete, self.gradient, damping)
            if step is not None:
                return step
            damping *= 100.0
        return self.gradient / self.complete.diagonal().abs().clamp(min=1e-300)

    def decrement(self) -> float:
        """Increase that a further step promises: of Newton's method, or of EM where that is not possible."""
        step = self.newton_step()
        return 0.5 * float(self.gradient @ (self.em_step() if step is None else step))


def _solve(matrix: Tensor, right: Tensor, damping: float) -> Tensor | None:
    """Solution of a positive definite system with its diagonal scaled to one; None if it is not positive definite."""
    scale = matrix.diagonal().abs().clamp(min=1e-300).rsqrt()
    scaled = scale[:, None] * matrix * scale + damping * torch.eye(len(matrix), dtype=matrix.dtype)
    root, info = torch.linalg.cholesky_ex(scaled)
    if int(info) or float(root.diagonal().amin()) < _DAMPING:
        return None
    return scale * torch.cholesky_solve((scale * right)[:, None], root)[:, 0]


@dataclass(frozen=True)
class ClassObjective:
    """Log posterior, or without a prior the log likelihood.

    Attributes
    ----------
    likelihood : Likelihood
    space : ClassSpace
    prior : ClassPrior or None
    tolerance : float
        Promised increase in nats at which a climb ends.
    same : float
        Largest difference in nats of two optima that count as one.
    stall : float
        Increase in nats in five steps below which a climb ends: where gradients are estimates, none goes to zero.
    """

    likelihood: Likelihood
    space: ClassSpace
    prior: ClassPrior | None = None
    tolerance: float = 1e-6
    same: float = 0.1
    stall: float = 0.0

    def capped(self, step: Tensor) -> Tensor:
        """A step (D,), shortened if a coordinate would move by more than is sensible."""
        longest = float((step.abs() / self._longest()).amax())
        return step / max(1.0, longest)

    def _longest(self) -> Tensor:
        """Longest sensible move (D,) of each coordinate."""
        model, space = self.likelihood.model, self.space
        effect = _LONGEST_EFFECT / model.attribute_scale
        own = torch.full((space.width,), _LONGEST_LOG, dtype=torch.float64)
        for i, family in enumerate(model.mixing.families):
            own[i] = _LONGEST_LOG if family.units == "log" else effect[space.n_fixed + i]
        member = torch.full((space.n_classes - 1, 1 + len(space.covariates)), _LONGEST_OTHER, dtype=torch.float64)
        if space.covariates and self.prior is not None:
            member[:, 1:] = self.prior.effect_scale
        return space.join(effect[: space.n_fixed], own.expand(space.n_classes, -1), member)

    def evaluate(self, vector: Tensor) -> Place:
        """Value and derivatives at one unconstrained vector (D,)."""
        at = self.likelihood.evaluate(vector)
        value, gradient, information, complete = at.value, at.gradient, at.information, at.complete
        if self.prior is not None:
            slope, hessian = self.prior.derivatives_at(self.space, vector)
            value += float(self.prior.log_prob(self.space, vector))
            gradient, information, complete = gradient + slope, information - hessian, complete - hessian
        return Place(vector, value, gradient, information, complete, at)
