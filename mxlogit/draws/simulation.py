"""Draws for maximum simulated likelihood: standard normal points, a different block of a sequence for every person.

Unlike the base points of importance sampling (`mxlogit.draws.importance`) these are fixed for a whole fit and follow
the conventions of maximum simulated likelihood, so that results of other programs can be reproduced. Any range of
people can be drawn separately, so the draws of all people are never in memory at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from mxlogit.errors import check_at_least, check_option

# Names of the kinds of draws (see `PersonDraws`).
SCHEMES = ("halton", "scrambled_halton", "sobol", "mlhs", "pseudo")

# Number of initial elements of every Halton sequence that are dropped, element 0 (value 0) included: the convention of
# mlogit and xlogit (Train 2009, section 9.3.3).
_DROPPED = 100
# Number of people who share a seed in schemes with independent draws per person.
_PEOPLE_PER_SEED = 64
# Smallest distance of a uniform number from 0 and 1, where the normal quantile is infinite.
_SMALLEST = 2.0**-53
# Smallest table of radical inverses; fixed, so that the draws of a range of people equal those of all to the last bit.
_TABLE = 4096


@dataclass(frozen=True)
class PersonDraws:
    """Standard normal draws of all people, generated on request for any range of them.

    Attributes
    ----------
    scheme : {"halton", "scrambled_halton", "sobol", "mlhs", "pseudo"}
        "halton": first primes in order, first 100 elements dropped, neither shuffled nor scrambled, with
        consecutive blocks of ``n_draws`` elements for people in order; independent of the seed.
        "scrambled_halton": the same layout with randomly permuted digits (Owen 2017, arXiv 1706.02808).
        "sobol": one scrambled Sobol sequence in consecutive blocks. "mlhs": a modified latin hypercube for
        each person (Hess, Train and Polak 2006, Transportation Research B 40). "pseudo": pseudo-random.
    n_draws : int
        Number r of draws per person.
    dimensions : int
        Number k of random coefficients.
    seed : int
        Seed of the randomisation.
    antithetic : bool
        Whether the second half of each block is minus the first; ``n_draws`` must be even.
    rotated : bool
        Whether all points are shifted by one random vector modulo one (Cranley and Patterson 1976, SIAM Journal
        on Numerical Analysis 13), which randomises a deterministic sequence.

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
        """Return the scheme with a different randomisation."""
        return replace(self, seed=self.seed + 1, rotated=self.scheme == "halton")

    def normals(self, start: int, stop: int) -> Tensor:
        """Draws of the people with indices ``start`` to ``stop - 1``, shape (n, k, r), float64."""
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
        """Draws of people with any indices (n,), shape (n, k, r)."""
        breaks = torch.nonzero(places.diff() != 1)[:, 0] + 1
        runs = places.tensor_split(breaks.cpu())
        return torch.cat([self.normals(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _uniforms(self, start: int, stop: int) -> np.ndarray:
        """Uniform points, shape (n, k, r), or r / 2 if antithetic, C-contiguous."""
        count = self.n_draws // 2 if self.antithetic else self.n_draws
        if self.scheme in ("pseudo", "mlhs"):
            return self._by_person(start, stop, count)
        if self.scheme == "halton":
            return self._halton(start, stop, count)
        points = self._consecutive(start * count, (stop - start) * count)
        return np.ascontiguousarray(points.reshape(stop - start, count, self.dimensions).transpose(0, 2, 1))

    def _halton(self, start: int, stop: int, count: int) -> np.ndarray:
        """Consecutive blocks of unscrambled Halton sequences in the first k primes, (n, k, count)."""
        primes = _first_primes(self.dimensions)
        points = np.empty((stop - start, self.dimensions, count))
        for k, base in enumerate(primes):
            length = (stop - start) * count
            points[:, k] = _radical_inverses(_DROPPED + start * count, length, base).reshape(-1, count)
        return points

    def _consecutive(self, first: int, length: int) -> np.ndarray:
        """Consecutive elements of one sequence for all people, (length, k)."""
        rng = np.random.default_rng(self.seed % 2**63)
        if self.scheme == "sobol":
            engine = qmc.Sobol(self.dimensions, scramble=True, rng=rng)
            if first:
                points: np.ndarray = engine.fast_forward(first).random(length)
                return points
            # scipy warns unless the first call draws a power of two.
            points = engine.random(2 ** math.ceil(math.log2(length)))[:length]
            return points
        halton = qmc.Halton(self.dimensions, scramble=True, rng=rng)
        halton.num_generated = _DROPPED + first
        points = halton.random(length, workers=torch.get_num_threads())
        return points

    def _by_person(self, start: int, stop: int, count: int) -> np.ndarray:
        """Independent points of every person, with one seed per group of `_PEOPLE_PER_SEED` people."""
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
    """Radical inverses of ``length`` integers from ``first``, equal to scipy's up to rounding.

    The inverses of the low digits repeat, so an element takes one table look-up and one sum: a tenth of the time of
    `scipy.stats.qmc.Halton`, which was a seventh of the time of a whole fit.
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
    """Radical inverses of numbers, digit by digit."""
    result, factor = np.zeros(len(numbers)), 1.0
    while numbers.any():
        numbers, digit = np.divmod(numbers, base)
        factor /= base
        result += digit * factor
    return result
