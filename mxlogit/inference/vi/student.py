"""Multivariate t distributions as importance proposals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.stats import qmc
from torch import Tensor

from mxlogit.draws.importance import log_standard_student
from mxlogit.guide.population import GaussianFactor

# Smallest distance of a quasi-random number from 0 and 1: the spacing of double precision below one.
_SMALLEST = 2.0**-53


def draw_student(n: int, size: int, freedom: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Quasi-random standard normals (n, size), and the factors (n, 1) that make them t with some degrees of freedom."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    uniform = qmc.Sobol(size + 1, rng=seed).random_base2(math.ceil(math.log2(n)))[:n]
    uniform = np.clip(uniform, _SMALLEST, 1.0 - _SMALLEST)
    normal = torch.special.ndtri(torch.from_numpy(uniform[:, :size]))
    return normal, torch.from_numpy(np.sqrt(freedom / stats.chi2.ppf(uniform[:, size:], freedom)))


@dataclass(frozen=True)
class StudentFactor:
    """Multivariate t with the location and scale of a Gaussian factor."""

    gaussian: GaussianFactor
    freedom: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n vectors, shape (n, D), from a scrambled Sobol sequence: means have less noise than of random draws."""
        normal, stretch = draw_student(n, len(self.gaussian.mean), self.freedom, generator)
        return self.gaussian.at(normal * stretch)

    def log_prob(self, vector: Tensor) -> Tensor:
        """Log density (*s,) at vectors (*s, D)."""
        square = self.gaussian.whitened(vector).square().sum(-1)
        log_size = self.gaussian.tril.diagonal().log().sum()
        return log_standard_student(square, len(self.gaussian.mean), self.freedom) - log_size
