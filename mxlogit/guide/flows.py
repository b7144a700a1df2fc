"""Conditional normalizing flows on local Gaussian factors.

A person's flow acts in coordinates in which its Gaussian factor is standard normal, along the principal axes: splines
(Durkan, Bekasov, Murray and Papamakarios 2019, NeurIPS, arXiv 1906.04032), then a shift and a lower-triangular factor.
Its parameters are outputs of a network of the person's context, initialised so that an untrained flow is the identity.
Sampling takes one pass, and so does the density of any point. Pyro's transforms are built in every call, because their
cached values would be stale after an optimiser step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from pyro.distributions.transforms import ConditionalSpline, LowerCholeskyAffine
from torch import Tensor, nn
from torch.distributions import Transform
from torch.func import functional_call

from mxlogit.guide.context import context_size, probe
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.mixing import Mixing
from mxlogit.model.panels import Panels
from mxlogit.model.parameters import PopulationParameters

# Bins of each spline; chosen by hand.
_BINS = 8
# Splines are the identity beyond this distance from the mean, in sds; chosen by hand.
_BOUND = 5.0
# Bound on standardised contexts, in sds over the training set; chosen by hand.
_MOST_CONTEXT = 5.0
# Input of softplus for a unit slope at the knots, since Pyro adds 1e-3 to its output.
_UNIT_SLOPE = math.log(math.expm1(1.0 - 1e-3))
# Degrees of freedom of the base points: they set the tails beyond the range of the splines; chosen by hand.
_DEGREES_OF_FREEDOM = 20


class _Spline(nn.Module):
    """An elementwise spline of some coordinates, conditional on the person's state and possibly other coordinates."""

    def __init__(self, n_inputs: int, n_outputs: int, width: int, *, deep: bool) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        head = nn.Linear(width if deep else n_inputs, n_outputs * (3 * _BINS - 1))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        with torch.no_grad():
            head.bias[2 * _BINS * n_outputs :] = _UNIT_SLOPE
        self.net = nn.Sequential(nn.Linear(n_inputs, width), nn.GELU(), head) if deep else nn.Sequential(head)

    def transform(self, inputs: Tensor) -> Transform:
        """Condition the spline on inputs (*b, n_inputs)."""
        made = ConditionalSpline(self._knots, self.n_outputs, _BINS, _BOUND, "quadratic")
        return made.condition(inputs)

    def _knots(self, inputs: Tensor) -> tuple[Tensor, ...]:
        bins = self.n_outputs * _BINS
        parts: tuple[Tensor, ...] = self.net(inputs).split([bins, bins, bins - self.n_outputs], -1)
        return parts


class _Coupling(nn.Module):
    """Splines of half of the coordinates given the other half."""

    def __init__(self, n_random: int, width: int, *, first: bool) -> None:
        super().__init__()
        half = n_random // 2
        self.kept = slice(0, half) if first else slice(half, n_random)
        self.moved = slice(half, n_random) if first else slice(0, half)
        count = half if first else n_random - half
        self.spline = _Spline(width + count, n_random - count, width, deep=True)

    def apply_to(self, points: Tensor, state: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Image (n, s, k) and log determinant (n, s) of the map or of its inverse."""
        kept = points[..., self.kept]
        inputs = torch.cat([state[:, None].expand(*kept.shape[:-1], -1), kept], -1)
        moved, log_det = _apply(self.spline.transform(inputs), points[..., self.moved], inverse=inverse)
        parts = (kept, moved) if self.kept.start == 0 else (moved, kept)
        return torch.cat(parts, -1), log_det


class _Elementwise(nn.Module):
    """A spline along every axis."""

    def __init__(self, n_random: int, width: int) -> None:
        super().__init__()
        self.spline = _Spline(width, n_random, width, deep=False)

    def apply_to(self, points: Tensor, state: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Image (n, s, k) and log determinant (n, s) of the map or of its inverse."""
        return _apply(self.spline.transform(state[:, None]), points, inverse=inverse)


class _Affine(nn.Module):
    """A shift and a lower-triangular factor."""

    rows: Tensor
    columns: Tensor

    def __init__(self, n_random: int, width: int) -> None:
        super().__init__()
        self.n_random = n_random
        rows, columns = torch.tril_indices(n_random, n_random)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.head = nn.Linear(width, n_random + len(rows))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def apply_to(self, points: Tensor, state: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Image (n, s, k) and log determinant (n, s) of the map or of its inverse."""
        out = self.head(state)
        tril = out.new_zeros(len(out), self.n_random, self.n_random)
        tril[:, self.rows, self.columns] = out[:, self.n_random :]
        log_diagonal = tril.diagonal(dim1=-2, dim2=-1)
        tril = tril.tril(-1) + torch.diag_embed(log_diagonal.exp())
        shift = out[:, None, : self.n_random]
        transform = LowerCholeskyAffine(shift, tril[:, None])
        image = transform.inv(points) if inverse else transform(points)
        log_det = log_diagonal.sum(-1)[:, None].expand(image.shape[:-1])
        return image, -log_det if inverse else log_det


def _apply(spline: Transform, points: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Image and log determinant, summed over coordinates, of a spline or of its inverse."""
    if not inverse:
        image = spline(points)
        return image, spline.log_abs_det_jacobian(points, image).sum(-1)
    # In double precision: Pyro solves a quadratic whose discriminant, rounded to single, may be negative.
    exact = points.double()
    origin = spline.inv(exact)
    log_det = -spline.log_abs_det_jacobian(origin, exact).sum(-1)
    return origin.to(points.dtype), log_det.to(points.dtype)


class LocalFlow(nn.Module):
    """Conditional flow: one network that maps a person's context to a flow.

    Parameters
    ----------
    n_random : int
        Number k of random coefficients.
    kind : {"affine", "spline", "autoregressive"}
        Kind of flow. "affine": a shift and a lower-triangular factor; "spline": the same after splines;
        "autoregressive": the same after splines of each coordinate conditional on the preceding ones, in alternating
        order.
    layers : int
        Number of spline layers. For "spline" the last is elementwise, the others couple alternating halves of the axes.
    width : int
        Width of the hidden layers.
    n_context : int, optional
        Length of the context; `context_size` by default.
    """

    degrees_of_freedom = _DEGREES_OF_FREEDOM
    defensive = False
    context_mean: Tensor
    context_scale: Tensor

    def __init__(
        self, n_random: int, kind: str = "spline", layers: int = 1, width: int = 64, n_context: int | None = None
    ) -> None:
        super().__init__()
        size = context_size(n_random) if n_context is None else n_context
        self.n_random = n_random
        self.arguments = {"n_random": n_random, "kind": kind, "layers": layers, "width": width, "n_context": n_context}
        self.trunk = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.layers = nn.ModuleList(_layers(n_random, kind, layers, width))
        self.register_buffer("context_mean", torch.zeros(size))
        self.register_buffer("context_scale", torch.ones(size))

    def standardize(self, context: Tensor) -> None:
        """Set the mean and sd of the context from the contexts of training people (n, c)."""
        self.context_mean.copy_(context.mean(0))
        spread = context.std(0, correction=0)
        self.context_scale.copy_(torch.where(spread > 1e-3, spread, torch.ones_like(spread)))

    def attach(self, factor: LocalFactor, population: PopulationParameters, panel: Panels, mixing: Mixing) -> FlowWarp:
        """Return the flows of the people of a panel."""
        axes, context = probe(factor, population, panel, mixing)
        # Detached, because forward-mode derivatives ignore no_grad.
        return FlowWarp(self, axes.detach(), context.detach())

    def forward(self, points: Tensor, context: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Images (n, s, k) and log determinants (n, s) under the flow, or its inverse, along principal axes."""
        # Contexts far outside the training set are clamped.
        seen = ((context - self.context_mean) / self.context_scale).clamp(-_MOST_CONTEXT, _MOST_CONTEXT)
        state = self.trunk(seen)
        total = points.new_zeros(points.shape[:-1])
        for layer in self._ordered(inverse=inverse):
            points, log_det = layer.apply_to(points, state, inverse=inverse)  # type: ignore[operator]
            total = total + log_det
        return points, total

    def _ordered(self, *, inverse: bool) -> Iterator[nn.Module]:
        return reversed(self.layers) if inverse else iter(self.layers)


def _layers(n_random: int, kind: str, layers: int, width: int) -> Iterator[nn.Module]:
    if kind == "spline":
        for layer in range(layers - 1 if n_random > 1 else 0):
            yield _Coupling(n_random, width, first=layer % 2 == 0)
        yield _Elementwise(n_random, width)
    if kind == "autoregressive":
        from mxlogit.guide.autoregressive import AutoregressiveSpline

        for layer in range(layers):
            yield AutoregressiveSpline(n_random, width, reverse=layer % 2 == 1)
    yield _Affine(n_random, width)


@dataclass(frozen=True)
class FlowWarp:
    """The flows of n people.

    Attributes
    ----------
    flow : LocalFlow
    axes : Tensor, shape (n, k, k)
        Rotations from principal axes to the whitened coordinates of the factors.
    context : Tensor, shape (n, c)
    weights : dict of str to Tensor, optional
        Weights to use instead of the network's own.
    """

    flow: LocalFlow
    axes: Tensor
    context: Tensor
    weights: dict[str, Tensor] | None = None

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, k, s) of base points, and log determinants (n, s)."""
        image, log_det = self._apply(points.mT, inverse=False)
        return self.axes @ image.mT, log_det

    def inverse(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Base points (n, k, s) of images, and log determinants (n, s) of the derivative of `forward` at them."""
        points, log_det = self._apply((self.axes.mT @ images).mT, inverse=True)
        return points.mT, -log_det

    def take(self, people: Tensor | slice) -> FlowWarp:
        """Return the flows of some people."""
        return replace(self, axes=self.axes[people], context=self.context[people])

    def frozen(self) -> FlowWarp:
        """Return the same flows with detached weights."""
        return replace(self, weights={name: value.detach() for name, value in self.flow.named_parameters()})

    def _apply(self, points: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.weights is None:
            result: tuple[Tensor, Tensor] = self.flow(points, self.context, inverse=inverse)
            return result
        result = functional_call(self.flow, self.weights, (points, self.context), {"inverse": inverse})
        return result
