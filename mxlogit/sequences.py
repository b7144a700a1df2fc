"""Draws of simulated likelihood: standard normal points, a different block of one sequence for every person.

Unlike the base points of importance sampling (`mxlogit.draws`) these are fixed for a whole fit and follow
the conventions of maximum simulated likelihood, so that results of other programs can be reproduced.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from mxlogit.errors import check_at_least, check_option

SCHEMES = ("halton", "scrambled_halton", "sobol", "mlhs", "pseudo")

# Elements of every Halton sequence that are dropped, its element 0 (value 0) among them: the convention of
# mlogit and xlogit (Train 2009, section 9.3.3).
_DROPPED = 100


def draw_normals(
    scheme: str, n_people: int, n_draws: int, dimensions: int, seed: int, *, antithetic: bool = False
) -> Tensor:
    """Return standard normal draws of every person, shape (n, r, k), float64.

    Parameters
    ----------
    scheme : {"halton", "scrambled_halton", "sobol", "mlhs", "pseudo"}
        "halton": primes in order, first 100 elements dropped, neither shuffled nor scrambled, consecutive
        blocks of ``n_draws`` to people in order; it does not depend on the seed. "scrambled_halton": the
        same layout, digits permuted at random (Owen 2017, arXiv 1706.02808). "sobol": one scrambled Sobol
        sequence in consecutive blocks. "mlhs": modified latin hypercube for each person (Hess, Train and
        Polak 2006, Transportation Research B 40). "pseudo": pseudo-random.
    n_people, n_draws, dimensions : int
    seed : int
    antithetic : bool
        Second half of each block is minus the first; ``n_draws`` must be even.

    Returns
    -------
    Tensor, shape (n, r, k)

    Raises
    ------
    SpecificationError
        If the scheme is unknown or ``n_draws`` is less than one.
    """
    check_option("draws", scheme, SCHEMES)
    check_at_least("n_draws", n_draws, 2 if antithetic else 1)
    count = n_draws // 2 if antithetic else n_draws
    if dimensions == 0:
        return torch.zeros(n_people, n_draws, 0, dtype=torch.float64)
    uniform = _draw_uniform(scheme, n_people, count, dimensions, seed)
    normal = torch.special.ndtri(torch.from_numpy(uniform))
    return torch.cat([normal, -normal], 1) if antithetic else normal


def _draw_uniform(scheme: str, n: int, r: int, k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed % 2**63)
    if scheme == "pseudo":
        return 1.0 - rng.random((n, r, k))
    if scheme == "mlhs":
        points = (np.arange(r)[None, :, None] + rng.random((n, 1, k))) / r
        return rng.permuted(np.broadcast_to(points, (n, r, k)), axis=1)
    if scheme == "sobol":
        engine = qmc.Sobol(k, scramble=True, rng=rng)
        total = 2 ** math.ceil(math.log2(n * r))
        points = engine.random(total)[: n * r]
        return np.clip(points, 2.0**-53, 1.0 - 2.0**-53).reshape(n, r, k)
    halton = qmc.Halton(k, scramble=scheme == "scrambled_halton", rng=rng)
    halton.fast_forward(_DROPPED)
    return np.clip(halton.random(n * r), 2.0**-53, None).reshape(n, r, k)
