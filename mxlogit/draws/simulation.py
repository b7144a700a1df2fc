"""Draws of simulated likelihood: standard normal points, a different block of one sequence for every person.

Unlike the base points of importance sampling (`mxlogit.draws.importance`) these are fixed for a whole fit and follow
the conventions of maximum simulated likelihood, so that results of other programs can be reproduced. Any
range of people can be drawn on its own: nothing needs to hold the draws of everybody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from mxlogit.errors import check_at_least, check_option

SCHEMES = ("halton", "scrambled_halton", "sobol", "mlhs", "pseudo")

# Elements of every Halton sequence that are dropped, its element 0 (value 0) among them: the convention of
# mlogit and xlogit (Train 2009, section 9.3.3).
_DROPPED = 100
# People who share a seed in the schemes that are random for each person.
_PEOPLE_PER_SEED = 64
_SMALLEST = 2.0**-53
# Smallest table of radical inverses; fixed, so that a range equals a part of the whole to the last bit.
_TABLE = 4096


@dataclass(frozen=True)
class PersonDraws:
    """Standard normal draws of everybody, made for any range of people when asked for.

    Attributes
    ----------
    scheme : {"halton", "scrambled_halton", "sobol", "mlhs", "pseudo"}
        "halton": primes in order, first 100 elements dropped, neither shuffled nor scrambled, consecutive
        blocks of ``n_draws`` to people in order; it does not depend on the seed. "scrambled_halton": the
        same layout, digits permuted at random (Owen 2017, arXiv 1706.02808). "sobol": one scrambled Sobol
        sequence in consecutive blocks. "mlhs": modified latin hypercube for each person (Hess, Train and
        Polak 2006, Transportation Research B 40). "pseudo": pseudo-random.
    n_draws : int
        Draws r per person.
    dimensions : int
        Random coefficients k.
    seed : int
    antithetic : bool
        Second half of each block is minus the first; ``n_draws`` must be even.
    rotated : bool
        All points shifted by one random vector modulo one (Cranley and Patterson 1976, SIAM Journal on
        Numerical Analysis 13): another randomisation of a sequence that has none.

    Raises
    ------
    SpecificationError
        If the scheme is unknown or ``n_draws`` is less than one.
    """

    scheme: str
    n_draws: int
    dimensions: int
    seed: int
    antithetic: bool = False
    rotated: bool = False

    def __post_init__(self) -> None:
        check_option("draws", self.scheme, SCHEMES)
        check_at_least("n_draws", self.n_draws, 2 if self.antithetic else 1)

    def another(self) -> PersonDraws:
        """Return the same scheme under another randomisation."""
        return replace(self, seed=self.seed + 1, rotated=self.scheme == "halton")

    def normals(self, start: int, stop: int) -> Tensor:
        """Draws of the people at places ``start`` to ``stop - 1``, shape (n, k, r), float64."""
        shape = (stop - start, self.dimensions, self.n_draws)
        if self.dimensions == 0 or stop == start:
            return torch.zeros(shape, dtype=torch.float64)
        uniform = self._uniforms(start, stop)
        if self.rotated:
            shift = np.random.default_rng([self.seed % 2**63, 1]).random((self.dimensions, 1))
            uniform += shift
            np.subtract(uniform, 1.0, out=uniform, where=uniform >= 1.0)
        np.clip(uniform, _SMALLEST, 1.0 - _SMALLEST, out=uniform)
        normal = torch.special.ndtri(torch.from_numpy(uniform))
        return torch.cat([normal, -normal], -1) if self.antithetic else normal

    def normals_of(self, places: Tensor) -> Tensor:
        """Draws of people at any places (n,), shape (n, k, r)."""
        breaks = torch.nonzero(places.diff() != 1)[:, 0] + 1
        runs = places.tensor_split(breaks.cpu())
        return torch.cat([self.normals(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _uniforms(self, start: int, stop: int) -> np.ndarray:
        """Uniform points, shape (n, k, r or half of it), C-contiguous."""
        count = self.n_draws // 2 if self.antithetic else self.n_draws
        if self.scheme in ("pseudo", "mlhs"):
            return self._by_person(start, stop, count)
        if self.scheme == "halton":
            return self._halton(start, stop, count)
        points = self._consecutive(start * count, (stop - start) * count)
        return np.ascontiguousarray(points.reshape(stop - start, count, self.dimensions).transpose(0, 2, 1))

    def _halton(self, start: int, stop: int, count: int) -> np.ndarray:
        """Consecutive blocks of plain Halton sequences, the first primes in order, (n, k, count)."""
        primes = _first_primes(self.dimensions)
        points = np.empty((stop - start, self.dimensions, count))
        for k, base in enumerate(primes):
            length = (stop - start) * count
            points[:, k] = _radical_inverses(_DROPPED + start * count, length, base).reshape(-1, count)
        return points

    def _consecutive(self, first: int, length: int) -> np.ndarray:
        """Elements of one sequence for everybody, (length, k)."""
        rng = np.random.default_rng(self.seed % 2**63)
        if self.scheme == "sobol":
            engine = qmc.Sobol(self.dimensions, scramble=True, rng=rng)
            if first:
                points: np.ndarray = engine.fast_forward(first).random(length)
                return points
            # scipy warns where a first call does not ask for a power of two.
            points = engine.random(2 ** math.ceil(math.log2(length)))[:length]
            return points
        halton = qmc.Halton(self.dimensions, scramble=True, rng=rng)
        halton.num_generated = _DROPPED + first
        points = halton.random(length, workers=torch.get_num_threads())
        return points

    def _by_person(self, start: int, stop: int, count: int) -> np.ndarray:
        """Independent points of every person, from seeds of whole groups of people."""
        groups = range(start // _PEOPLE_PER_SEED, (stop - 1) // _PEOPLE_PER_SEED + 1)
        points = np.concatenate([self._group(group, count) for group in groups])
        offset = groups[0] * _PEOPLE_PER_SEED
        return points[start - offset : stop - offset]

    def _group(self, group: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed % 2**63, 0, group])
        shape = (_PEOPLE_PER_SEED, self.dimensions, count)
        if self.scheme == "pseudo":
            return rng.random(shape)
        points = (np.arange(count) + rng.random((*shape[:2], 1))) / count
        return rng.permuted(points, axis=2)


def _first_primes(count: int) -> list[int]:
    primes: list[int] = []
    candidate = 2
    while len(primes) < count:
        if all(candidate % prime for prime in primes):
            primes.append(candidate)
        candidate += 1
    return primes


def _radical_inverses(first: int, length: int, base: int) -> np.ndarray:
    """Radical inverses of ``length`` whole numbers from ``first``, equal to scipy's to rounding.

    The inverses of the low digits repeat, so a table of them and one sum an element do: a tenth of the time of
    `scipy.stats.qmc.Halton`, whose draws were a seventh of a whole fit.
    """
    block = base
    while block < _TABLE:
        block *= base
    table = _invert(np.arange(block), base)
    upper = np.arange(first // block, (first + length - 1) // block + 1)
    points = _invert(upper, base)[:, None] / block + table
    offset = first - int(upper[0]) * block
    return points.ravel()[offset : offset + length]


def _invert(numbers: np.ndarray, base: int) -> np.ndarray:
    """Radical inverse of every number, digit by digit."""
    result, factor = np.zeros(len(numbers)), 1.0
    while numbers.any():
        numbers, digit = np.divmod(numbers, base)
        factor /= base
        result += digit * factor
    return result
