"""Matrix-free second-order steps: Hessian-vector products and conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass
class Smooth:
    """A twice differentiable objective to be minimised, with a count of its evaluations.

    Attributes
    ----------
    function : callable
        Map from a vector (d,) to values (m,), one per draw or person; the objective is their mean.
    gradients : float
        Cost so far in gradient evaluations: a value counts one third, a gradient one, a Hessian-vector product two.
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
        """Product of the Hessian and a direction, (d,), by forward-over-reverse differentiation."""
        self.gradients += 2.0
        gradient = torch.func.grad(lambda x: self.function(x).mean())
        product: Tensor = torch.func.jvp(gradient, (vector.detach(),), (direction,))[1]
        return product.detach()

    def curvature(self, vector: Tensor) -> Product:
        """Return the map from directions to Hessian-vector products at ``vector``, by reverse-over-reverse.

        The graph of the gradient is kept, so each further product at the same point costs one backward pass.
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
        """Dense Hessian (d, d), from Hessian-vector products."""
        multiply = self.curvature(vector)
        rows = [multiply(row) for row in torch.eye(len(vector), dtype=vector.dtype)]
        matrix = torch.stack(rows)
        return 0.5 * (matrix + matrix.T)


@dataclass(frozen=True)
class CgStep:
    """Step found by conjugate gradients.

    Attributes
    ----------
    step : Tensor, shape (d,)
    predicted : float
        Decrease of the quadratic model.
    iterations : int
    at_boundary : bool
        Whether the step ends on the boundary of the trust region, by its length or along negative curvature.
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
        Map from a direction to the Hessian-vector product.
    gradient : Tensor, shape (d,)
    radius : float
        Radius of the ball; infinite for no trust region.
    most : int
        Largest number of iterations.
    tolerance : float, optional
        Norm of the residual at which to stop; min(.5, sqrt(|g|)) |g| by default.
    start : Tensor, optional
        Initial step, used if it lies inside the ball and decreases the model.

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
        curvature = float(direction @ product)
        length = float(residual.square().sum()) / curvature if curvature > 0.0 else math.inf
        if curvature <= 0.0 or float((step + length * direction).norm()) >= radius:
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
    """Multiple of a direction that leads from a step inside the ball to its surface."""
    a, b = float(direction.square().sum()), float(step @ direction)
    c = float(step.square().sum()) - radius**2
    return (-b + math.sqrt(max(b * b - a * c, 0.0))) / a
