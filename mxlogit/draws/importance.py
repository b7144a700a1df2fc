"""Draws for importance sampling: standardised base points, a different block for every decision maker.

Draws are regenerated from integer keys instead of being stored: the memory of a pass does not grow with the number
of people, and a person has the same draws in every pass of a stage, whatever the division into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from scipy import special
from torch import Tensor

from mxlogit.draws.generators import make_generator, mixed_bits, seed_of

# Size of the blocks in which draws are generated, by device: number of draws, and largest number of people.
_BLOCK = {"cpu": (16_384, 128), "cuda": (1_048_576, 16_384)}
# Smallest distance of a quasi-random number from 0 and 1; single precision would round closer ones to one.
_EDGE = 2.0**-24
# Binary digits of the coordinates of a net.
_DIGITS = 30


def shifted_net(words: tuple[int, ...], keys: Tensor, size: int, count: int) -> Tensor:
    """Sobol net of all people with a random digital shift for each person, which preserves the net.

    Parameters
    ----------
    words : tuple of int
        Seed of the net and of the shifts.
    keys : Tensor, int64, shape (n,)
        Keys of the shifts: people with equal keys have equal points, whoever else is drawn.
    size : int
        Number of dimensions, at least one.
    count : int
        Number of points. If it is a power of two, its halves are nets as well.

    Returns
    -------
    Tensor, shape (n, size, count)
        Uniform numbers between 0 and 1, float64, on the CPU.

    References
    ----------
    L'Ecuyer and Lemieux (2002), in Dror, L'Ecuyer and Szidarovszky, Modeling Uncertainty, chapter 20. Shifts modulo one
    (Cranley and Patterson 1976) leave twice the error (2,000 people, one choice, two tastes, 128 points).
    """
    net = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed_of(*words) % 2**31)
    digits = (net.draw(count, dtype=torch.float64).T * 2.0**_DIGITS).to(torch.int64)
    bits = torch.stack([mixed_bits((*words, axis), keys.cpu()) for axis in range(size)], 1)
    shifted = digits ^ bits.bitwise_right_shift(63 - _DIGITS)[..., None]
    return shifted.double().add_(0.5).mul_(2.0**-_DIGITS).clamp_(_EDGE, 1.0 - _EDGE)


@dataclass(frozen=True)
class BaseDraws:
    """Standardised base points of a defensive mixture of a heavy-tailed local component and the prior.

    Attributes
    ----------
    points : Tensor, shape (n, k, s)
        Points, symmetric about zero. The axis s is (group, half, sign, position), so antithetic pairs lie in the same
        half and each half is symmetric. The last ``n_prior`` positions are standard normal, draws from the prior of
        whitened tastes; the others are draws from a person's local component, Student-t (normal if
        ``degrees_of_freedom`` is None).
    n_prior : int
        Number of positions that are draws from the prior.
    degrees_of_freedom : int or None
        Degrees of freedom of the local component; None if it is normal.
    n_groups : int
        Number of groups of points.
    """

    points: Tensor
    n_prior: int
    degrees_of_freedom: int | None
    n_groups: int = 1

    @classmethod
    def join(cls, groups: Sequence[BaseDraws]) -> BaseDraws:
        """Concatenate groups of points of the same people and scheme."""
        first = groups[0]
        return cls(torch.cat([g.points for g in groups], -1), first.n_prior, first.degrees_of_freedom, len(groups))

    def take(self, people: Tensor) -> BaseDraws:
        """Return the points of a subset of people."""
        return replace(self, points=self.points[people])

    @property
    def prior_share(self) -> float:
        """Share of the points that come from the prior."""
        return 4 * self.n_groups * self.n_prior / self.points.shape[-1]

    def prior_part(self, tensor: Tensor) -> Tensor:
        """View (..., 4 groups, n_prior) of the entries of a tensor (..., s) that belong to points from the prior."""
        quarters = tensor.unflatten(-1, (4 * self.n_groups, -1))
        return quarters[..., quarters.shape[-1] - self.n_prior :]

    def log_local(self, square: Tensor, dimensions: int) -> Tensor:
        """Log density of the standardised local component at points of squared length ``square``."""
        if self.degrees_of_freedom is None:
            return log_standard_normal(square, dimensions)
        return log_standard_student(square, dimensions, self.degrees_of_freedom)


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
    """Scheme of base points: their number, distribution and seed.

    Attributes
    ----------
    key : tuple of int
        Seed of the points.
    draws : int
        Number of draws per person, a multiple of 4.
    dimensions : int
        Number k of random coefficients.
    degrees_of_freedom : int or None
        Degrees of freedom of a multivariate Student-t, an even number above 2; None for the normal.
    defensive : bool
        Whether a share of the points comes from the prior, which bounds the importance weights (Hesterberg 1995,
        Technometrics 37).
    is_net : bool
        Whether points are quasi-random, whoever asks for them.
    """

    key: tuple[int, ...]
    draws: int
    dimensions: int
    degrees_of_freedom: int | None
    defensive: bool
    is_net: bool = False

    @classmethod
    def net(cls, key: tuple[int, ...], draws: int, dimensions: int) -> DrawScheme:
        """Scheme of quasi-random draws of the mixing distribution itself."""
        return cls(key, draws, dimensions, None, defensive=False, is_net=True)

    @property
    def n_prior(self) -> int:
        """Number of points from the prior in each quarter: one in eight, at least one."""
        quarter = self.draws // 4
        return max(1, quarter // 8) if self.defensive and quarter > 1 else 0

    def points(self, first: int, count: int, like: Tensor) -> BaseDraws:
        """Draw the antithetic base points of people ``first`` to ``first + count - 1``.

        Points are generated in fixed blocks of people, so a person's points depend on the person's index only.

        Parameters
        ----------
        first, count : int
            Index of the first person, and number of people.
        like : Tensor
            Tensor with the dtype and device of the points.

        Returns
        -------
        BaseDraws
        """
        quarter, k = self.draws // 4, self.dimensions
        shapes = [(k, 2, quarter), (0 if self.degrees_of_freedom is None else self.degrees_of_freedom // 2, 2, quarter)]
        normal, uniform = (like.new_empty(count, *shape) for shape in shapes)
        for generator, place in self._blocks(first, count, like.device):
            place.fill(normal, torch.Tensor.normal_, generator)
            place.fill(uniform, torch.Tensor.uniform_, generator)
        return self._assemble(normal, None if self.degrees_of_freedom is None else _stretch(uniform))

    def quasi_points(self, keys: Tensor, like: Tensor) -> BaseDraws:
        """Draw quasi-random base points: a Sobol net with a random digital shift per key.

        They are antithetic, but where the scheme is one of nets: whole nets have half the noise of mirrored ones.

        Parameters
        ----------
        keys : Tensor, int64, shape (n,)
            Keys of the shifts: people with equal keys have equal points, whoever else is drawn.
        like : Tensor
            Tensor with the dtype and device of the points.

        Returns
        -------
        BaseDraws
        """
        half, k, freedom = self.draws // 2, self.dimensions, self.degrees_of_freedom
        size = k + (freedom is not None)
        if size == 0:
            return self._assemble(like.new_empty(len(keys), 0, 2, half // 2), None)
        distinct, person = keys.unique(return_inverse=True)
        if self.is_net:
            uniform = shifted_net(self.key, distinct, size, self.draws).to(like)
            drawn = BaseDraws(torch.special.ndtri(uniform), 0, None)
            return drawn if torch.equal(distinct, keys) else drawn.take(person)
        uniform = shifted_net(self.key, distinct, size, half).to(like.device).unflatten(-1, (2, -1))
        stretch = None
        if freedom is not None:
            # By its quantile function, so that the net has one dimension for it.
            square = 2.0 * torch.from_numpy(special.gammaincinv(0.5 * freedom, uniform[:, k].cpu().numpy()))
            stretch = (square / freedom).rsqrt_().to(like)
        drawn = self._assemble(torch.special.ndtri(uniform[:, :k]).to(like), stretch)
        return drawn if torch.equal(distinct, keys) else drawn.take(person)

    def _assemble(self, normal: Tensor, stretch: Tensor | None) -> BaseDraws:
        """Build antithetic points from normal numbers (n, k, 2, quarter) and their stretch (n, 2, quarter)."""
        if stretch is not None:
            stretch[..., stretch.shape[-1] - self.n_prior :] = 1.0
            normal *= stretch[:, None]
        points = torch.stack([normal, -normal], 3)
        return BaseDraws(points.view(len(normal), self.dimensions, self.draws), self.n_prior, self.degrees_of_freedom)

    def _blocks(self, first: int, count: int, device: torch.device) -> Iterator[tuple[torch.Generator, _Place]]:
        """Iterate over the blocks that contain the people: their generators, and the positions of the people."""
        draws, people = _BLOCK["cuda" if device.type == "cuda" else "cpu"]
        size = max(1, min(people, draws // self.draws))
        for block in range(first // size, -(-(first + count) // size)):
            begin, stop = max(first, block * size), min(first + count, (block + 1) * size)
            inside = slice(begin - block * size, stop - block * size)
            yield (
                make_generator(*self.key, block, device=device),
                _Place(size, inside, slice(begin - first, stop - first)),
            )


def _stretch(uniform: Tensor) -> Tensor:
    """Factors (n, ...) that turn normal vectors into Student-t ones, from uniform numbers (n, freedom / 2, ...).

    A chi-square variate with an even number of degrees of freedom is minus twice the log of a product of uniforms. The
    numbers are overwritten.
    """
    return uniform.neg_().add_(1.0).prod(1).log_().mul_(-1.0 / uniform.shape[1]).rsqrt_()


@dataclass(frozen=True)
class _Place:
    """People ``inside`` a block of ``size`` people, and their ``rows`` in the target tensor."""

    size: int
    inside: slice
    rows: slice

    def fill(self, target: Tensor, draw: Callable[..., Tensor], generator: torch.Generator) -> None:
        """Fill rows with random numbers; the whole block is drawn, so values do not depend on the selection."""
        if self.inside == slice(0, self.size):
            draw(target[self.rows], generator=generator)
            return
        block = target.new_empty(self.size, *target.shape[1:])
        target[self.rows] = draw(block, generator=generator)[self.inside]
