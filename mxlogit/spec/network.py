"""Small networks of covariates that shift the mean of a coefficient beside linear effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mxlogit.errors import SpecificationError, check_whole
from mxlogit.spec.names import as_list, check_names


@dataclass(frozen=True)
class Network:
    """Covariates of which a mean is a smooth function: linear effects and the units of a hidden layer.

    The weights into hidden units are drawn once, from ``seed``; those out of the last layer are effects like others,
    with normal priors under which the hidden part has a standard deviation of three utils per typical difference of the
    attribute (or of three, on the logarithm of a lognormal taste).

    Parameters
    ----------
    covariates : sequence of str
        Covariates of the decision makers, numbers that are constant within a person.
    hidden : sequence of int
        Number of units of each hidden layer.
    seed : int
        Seed of the weights into hidden units.

    References
    ----------
    Rahimi and Recht (2008), Advances in Neural Information Processing Systems 21, for random hidden units; Neal (1996),
    Bayesian Learning for Neural Networks, for the prior.
    """

    covariates: Sequence[str]
    hidden: Sequence[int] = (16,)
    seed: int = 0

    def check(self, column: str) -> HiddenUnits:
        """Return the hidden units of a column's coefficient.

        Raises
        ------
        SpecificationError
            If a setting is invalid.
        """
        covariates = check_names(f"mean_shifters[{column!r}]: Network(covariates=...)", self.covariates)
        if not covariates:
            raise SpecificationError(f"mean_shifters[{column!r}]: Network(covariates=...) names no covariate.")
        sizes = as_list(self.hidden)
        if not sizes:
            raise SpecificationError(
                f"Network(hidden=...) must list numbers of units, such as (16,); got {self.hidden!r}."
            )
        for size in sizes:
            check_whole("Network(hidden=...)", size, 1)
        check_whole("Network(seed=...)", self.seed, 0)
        return HiddenUnits(column, covariates, tuple(int(size) for size in sizes), int(self.seed))


@dataclass(frozen=True)
class HiddenUnits:
    """Hidden units of the network of one column's coefficient.

    Attributes
    ----------
    column : str
    covariates : tuple of str, length c
    hidden : tuple of int
        Number of units of each layer.
    seed : int
    centre, scale : tuple of float, length c
        Means and standard deviations of the covariates in the data of the fit; empty before.
    """

    column: str
    covariates: tuple[str, ...]
    hidden: tuple[int, ...]
    seed: int
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the units of the last layer."""
        return tuple(f"hidden{i + 1}.{self.column}" for i in range(self.hidden[-1]))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Numbers of inputs and outputs of each layer."""
        return list(pairwise((len(self.covariates), *self.hidden)))
