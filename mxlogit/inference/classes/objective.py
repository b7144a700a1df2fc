"""Log likelihood or log posterior of a population of classes, with the steps of Newton's method and of EM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.integration.class_likelihood import ClassEvaluation
from mxlogit.model.class_prior import ClassPrior
from mxlogit.model.classes import ClassSpace

# Damping of a singular information matrix whose diagonal is one.
_DAMPING = 1e-9


class Likelihood(Protocol):
    """A log likelihood with derivatives in the unconstrained vector."""

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

    def newton_step(self) -> Tensor | None:
        """The step of Newton's method (D,); None where the objective is not concave."""
        return _solve(self.curvature, self.gradient, 0.0)

    def em_step(self) -> Tensor:
        """One Newton step on the expected complete-data objective (D,), which goes uphill (generalised EM)."""
        damping = _DAMPING
        while True:
            step = _solve(self.complete, self.gradient, damping)
            if step is not None:
                return step
            damping *= 100.0

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
    """

    likelihood: Likelihood
    space: ClassSpace
    prior: ClassPrior | None = None

    def evaluate(self, vector: Tensor) -> Place:
        """Value and derivatives at one unconstrained vector (D,)."""
        at = self.likelihood.evaluate(vector)
        value, gradient, information, complete = at.value, at.gradient, at.information, at.complete
        if self.prior is not None:
            slope, hessian = self.prior.derivatives_at(self.space, vector)
            value += float(self.prior.log_prob(self.space, vector))
            gradient, information, complete = gradient + slope, information - hessian, complete - hessian
        return Place(vector, value, gradient, information, complete, at)
