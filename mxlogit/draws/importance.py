"""Draws that integrate: standardised base points, a different block for every decision maker.

Draws are regenerated from whole-number keys instead of being stored: the memory of a pass does not grow
with the number of people, and a person meets the same draws in every pass of a stage, whoever else is in its chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator, mixed_bits, seed_of

# Draws that are made together, and people at most, on a CPU and on a GPU.
_BLOCK = {"cpu": (16_384, 128), "cuda": (1_048_576, 16_384)}
# Smallest distance of a quasi-random number from 0 and 1 (single precision rounds anything nearer to one).
_EDGE = 2.0**-24
# Binary digits of the numbers of a net.
_DIGITS = 30


def shifted_net(words: tuple[int, ...], keys: Tensor, size: int, count: int) -> Tensor:
    """One Sobol net for everybody, with digits shifted at random for every person, so that each has a net.

    Parameters
    ----------
    words : tuple of int
        Same words, same net and shifts.
    keys : Tensor, int64, shape (n,)
        People with equal keys get equal points, whoever else is drawn with them.
    size : int
        Dimensions, at least one.
    count : int
        Points. Halves of a power of two of them are nets too.

    Returns
    -------
    Tensor, shape (n, size, count)
        Uniform numbers between 0 and 1, float64, on the processor.

    References
    ----------
    L'Ecuyer and Lemieux (2002), in Dror, L'Ecuyer and Szidarovszky, Modeling Uncertainty, chapter 20. Shifts modulo one
    (Cranley and Patterson 1976) leave twice the error (2,000 people, one choice, two tastes, 128 points).
    """
    net = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed_of(*words) % 2**31)
    digits = (net.draw(count, dtype=torch.float64).T * 2.0**_DIGITS).to(torch.int64)
    distinct, person = keys.cpu().unique(return_inverse=True)
    bits = torch.stack([mixed_bits((*words, axis), distinct) for axis in range(size)], 1)
    shifted = digits ^ bits.bitwise_right_shift(63 - _DIGITS)[..., None]
    return (shifted.double() + 0.5).mul_(2.0**-_DIGITS).clamp_(_EDGE, 1.0 - _EDGE)[person]


@dataclass(frozen=True)
class BaseDraws:
    """Standardised base points of a defensive mixture: a heavy-tailed factor and the prior.

    Attributes
    ----------
    points : Tensor, shape (n, k, s)
        Symmetric about zero. The halves of s hold whole antithetic pairs, so each half is symmetric too: s is
        (group, half, sign, position), and the last ``n_prior`` positions are standard normal and stand for
        the prior of whitened tastes; the others are Student-t (normal if ``tail`` is None) and stand for a person's
        local factor.
    n_prior : int
        Of the positions.
    tail : int or None
        Degrees of freedom of the local component.
    n_groups : int
    """

    points: Tensor
    n_prior: int
    tail: int | None
    n_groups: int = 1

    @classmethod
    def join(cls, groups: Sequence[BaseDraws]) -> BaseDraws:
        """Put groups of points of the same people and the same kind together."""
        first = groups[0]
        return cls(torch.cat([g.points for g in groups], -1), first.n_prior, first.tail, len(groups))

    def take(self, people: Tensor) -> BaseDraws:
        """Return the points of some people."""
        return replace(self, points=self.points[people])

    @property
    def prior_share(self) -> float:
        """Share of the points that come from the prior."""
        return 4 * self.n_groups * self.n_prior / self.points.shape[-1]

    def prior_part(self, tensor: Tensor) -> Tensor:
        """View (..., 4 groups, n_prior) of what belongs to points from the prior in a tensor (..., s)."""
        quarters = tensor.unflatten(-1, (4 * self.n_groups, -1))
        return quarters[..., quarters.shape[-1] - self.n_prior :]

    def log_local(self, square: Tensor, dimensions: int) -> Tensor:
        """Log density of the standardised local component at points of squared length ``square``."""
        if self.tail is None:
            return log_standard_normal(square, dimensions)
        return log_standard_student(square, dimensions, self.tail)


def log_standard_normal(square: Tensor, dimensions: int) -> Tensor:
    """Log density of a standard normal at points of squared length ``square``."""
    return -0.5 * square - 0.5 * dimensions * math.log(2.0 * math.pi)


def log_standard_student(square: Tensor, dimensions: int, freedom: float) -> Tensor:
    """Log density of a standard multivariate Student-t at points of squared length ``square``."""
    half = 0.5 * (freedom + dimensions)
    peak = math.lgamma(half) - math.lgamma(0.5 * freedom) - 0.5 * dimensions * math.log(freedom * math.pi)
    return (square / freedom).log1p_().mul_(-half).add_(peak)


@dataclass(frozen=True)
class DrawScheme:
    """Scheme of base points: how many, of what kind, from which key.

    Attributes
    ----------
    key : tuple of int
        Same key, same points.
    draws : int
        Per person, a multiple of 4.
    dimensions : int
    tail : int or None
        Degrees of freedom of a multivariate Student-t, an even number above 2; None for the normal.
    defensive : bool
        Whether some points come from the prior (Hesterberg 1995, Technometrics 37): weights are then bounded.
    """

    key: tuple[int, ...]
    draws: int
    dimensions: int
    tail: int | None
    defensive: bool

    @property
    def n_prior(self) -> int:
        """Points from the prior in each quarter: one in eight, at least one."""
        quarter = self.draws // 4
        return max(1, quarter // 8) if self.defensive and quarter > 1 else 0

    def points(self, first: int, count: int, like: Tensor) -> BaseDraws:
        """Draw the antithetic base points of people ``first`` to ``first + count - 1``.

        A person's points depend on its place alone, not on who is drawn with it: they are made in blocks of people.

        Parameters
        ----------
        first, count : int
        like : Tensor
            Gives dtype and device.

        Returns
        -------
        BaseDraws
        """
        quarter, k = self.draws // 4, self.dimensions
        shapes = [(k, 2, quarter), (0 if self.tail is None else self.tail // 2, 2, quarter)]
        normal, uniform = (like.new_empty(count, *shape) for shape in shapes)
        for generator, place in self._blocks(first, count, like.device):
            place.fill(normal, torch.Tensor.normal_, generator)
            place.fill(uniform, torch.Tensor.uniform_, generator)
        return self._assemble(normal, uniform)

    def quasi_points(self, keys: Tensor, like: Tensor) -> BaseDraws:
        """Quasi-random base points: one Sobol net, shifted at random by what a person's key gives.

        Parameters
        ----------
        keys : Tensor, int64, shape (n,)
            People with equal keys get equal points, whoever else is drawn with them.
        like : Tensor
            Gives dtype and device.

        Returns
        -------
        BaseDraws

        """
        half, k = self.draws // 2, self.dimensions
        size = k + (0 if self.tail is None else self.tail // 2)
        if size == 0:
            return self._assemble(*(like.new_empty(len(keys), 0, 2, half // 2) for _ in range(2)))
        uniform = shifted_net(self.key, keys, size, half).to(like.device).unflatten(-1, (2, -1))
        return self._assemble(torch.special.ndtri(uniform[:, :k]).to(like), uniform[:, k:].to(like))

    def _assemble(self, normal: Tensor, uniform: Tensor) -> BaseDraws:
        """Antithetic points from normal (n, k, 2, quarter) and uniform (n, tail / 2, 2, quarter) numbers."""
        if self.tail is not None:
            # A chi-square with an even number of degrees of freedom is minus twice the log of a product of uniforms.
            stretch = uniform.neg_().add_(1.0).prod(1).log_().mul_(-2.0 / self.tail).rsqrt_()
            stretch[..., normal.shape[-1] - self.n_prior :] = 1.0
            normal *= stretch[:, None]
        points = torch.stack([normal, -normal], 3)
        return BaseDraws(points.view(len(normal), self.dimensions, self.draws), self.n_prior, self.tail)

    def _blocks(self, first: int, count: int, device: torch.device) -> Iterator[tuple[torch.Generator, _Place]]:
        """Generators of the blocks that the people lie in, and where."""
        draws, people = _BLOCK["cuda" if device.type == "cuda" else "cpu"]
        size = max(1, min(people, draws // self.draws))
        for block in range(first // size, -(-(first + count) // size)):
            begin, stop = max(first, block * size), min(first + count, (block + 1) * size)
            inside = slice(begin - block * size, stop - block * size)
            yield (
                make_generator(*self.key, block, device=device),
                _Place(size, inside, slice(begin - first, stop - first)),
            )


@dataclass(frozen=True)
class _Place:
    """People ``inside`` a block of ``size``, and their rows in what is wanted."""

    size: int
    inside: slice
    rows: slice

    def fill(self, target: Tensor, draw: Callable[..., Tensor], generator: torch.Generator) -> None:
        """Fill rows with random numbers of the whole block, whoever else is wanted."""
        if self.inside == slice(0, self.size):
            draw(target[self.rows], generator=generator)
            return
        block = target.new_empty(self.size, *target.shape[1:])
        target[self.rows] = draw(block, generator=generator)[self.inside]
