"""Curvature without matrices: Hessian-vector products and conjugate gradients on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass
class Smooth:
    """A twice differentiable function of a vector, to be minimised, that counts what it costs.

    Attributes
    ----------
    function : callable
        Vector (d,) -> values (m,), of which the mean counts: draws, or people.
    gradients : float
        Gradient equivalents so far: a value counts one third, a gradient one, a Hessian-vector product two.
    """

    function: Callable[[Tensor], Tensor]
    gradients: float = field(default=0.0)

    def values(self, vector: Tensor) -> Tensor:
        """Values (m,) without derivatives."""
        self.gradients += 1.0 / 3.0
        with torch.no_grad():
            return self.function(vector)

    def gradient(self, vector: Tensor) -> tuple[float, Tensor]:
        """Mean value and its gradient (d,)."""
        self.gradients += 1.0
        point = vector.detach().requires_grad_()
        value = self.function(point).mean()
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient

    def product(self, vector: Tensor, direction: Tensor) -> Tensor:
        """Hessian times a direction, (d,), forward over reverse."""
        self.gradients += 2.0
        gradient = torch.func.grad(lambda x: self.function(x).mean())
        product: Tensor = torch.func.jvp(gradient, (vector.detach(),), (direction,))[1]
        return product.detach()

    def curvature(self, vector: Tensor) -> Product:
        """Return the map from directions to Hessian-vector products at ``vector``: reverse over reverse, graph kept.

        Many products at one point cost one gradient and as many backward passes.
        """
        point = vector.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.function(point).mean(), point, create_graph=True)
        self.gradients += 1.0

        def multiply(direction: Tensor) -> Tensor:
            self.gradients += 2.0
            (product,) = torch.autograd.grad(gradient, point, direction, retain_graph=True)
            return product

        return multiply

    def hessian(self, vector: Tensor) -> Tensor:
        """Dense Hessian (d, d), by products."""
        multiply = self.curvature(vector)
        rows = [multiply(row) for row in torch.eye(len(vector), dtype=vector.dtype)]
        matrix = torch.stack(rows)
        return 0.5 * (matrix + matrix.T)


@dataclass(frozen=True)
class CgStep:
    """What conjugate gradients found.

    Attributes
    ----------
    step : Tensor, shape (d,)
    predicted : float
        Decrease that the quadratic model promises.
    iterations : int
    at_boundary : bool
        Whether the trust region ended it, by its radius or by negative curvature.
    """

    step: Tensor
    predicted: float
    iterations: int
    at_boundary: bool


def steihaug(
    multiply: Product,
    gradient: Tensor,
    radius: float,
    *,
    most: int = 20,
    tolerance: float | None = None,
    start: Tensor | None = None,
) -> CgStep:
    """Minimise g's + s'Hs / 2 inside a ball by conjugate gradients.

    Negative curvature is followed to the boundary, so that the Hessian may be indefinite (Steihaug 1983, SIAM Journal
    on Numerical Analysis 20).

    Parameters
    ----------
    multiply : callable
        Direction -> Hessian-vector product.
    gradient : Tensor, shape (d,)
    radius : float
        Infinity for none.
    most : int
        Iterations.
    tolerance : float, optional
        Norm of the residual at which to stop; min(.5, sqrt(|g|)) |g| by default.
    start : Tensor, optional
        A step to begin with; it is used if it lies inside the ball and decreases the model.

    Returns
    -------
    CgStep
    """
    size = float(gradient.norm())
    tolerance = min(0.5, math.sqrt(size)) * size if tolerance is None else tolerance
    step, image = torch.zeros_like(gradient), torch.zeros_like(gradient)
    if start is not None and float(start.norm()) < radius:
        of_start = multiply(start)
        if float(gradient @ start + 0.5 * (start @ of_start)) < 0.0:
            step, image = start.clone(), of_start
    residual = gradient + image
    direction, done = -residual, 0
    while done < most and float(residual.norm()) > tolerance:
        done += 1
        product = multiply(direction)
        bend = float(direction @ product)
        length = float(residual.square().sum()) / bend if bend > 0.0 else math.inf
        if bend <= 0.0 or float((step + length * direction).norm()) >= radius:
            if not math.isfinite(radius):
                break
            length = _to_boundary(step, direction, radius)
            step, image = step + length * direction, image + length * product
            return CgStep(step, -float(gradient @ step + 0.5 * (step @ image)), done, at_boundary=True)
        step, image = step + length * direction, image + length * product
        new = residual + length * product
        direction = -new + float(new.square().sum() / residual.square().sum()) * direction
        residual = new
    return CgStep(step, -float(gradient @ step + 0.5 * (step @ image)), done, at_boundary=False)


def _to_boundary(step: Tensor, direction: Tensor, radius: float) -> float:
    """How far to go from a step inside the ball, along a direction, to its surface."""
    a, b = float(direction.square().sum()), float(step @ direction)
    c = float(step.square().sum()) - radius**2
    return (-b + math.sqrt(max(b * b - a * c, 0.0))) / a
