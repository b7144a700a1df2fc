"""Specification of a mixed logit model, immutable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mxlogit.spec.mixture import Mixture
from mxlogit.spec.network import HiddenUnits

# Prefix of the labels of alternative-specific constants.
CONSTANT_PREFIX = "asc."
# Mixing distributions that move with their location and otherwise stay what they are.
LOCATION_FAMILIES = ("normal", "uniform", "triangular")
# Prefix of the labels of standard deviations between the situations of a person.
_WITHIN_PREFIX = "sd.within."
# Prefix of the labels of nests.
_NEST_PREFIX = "nest."


@dataclass(frozen=True)
class Specification:
    """Specification of a mixed logit model: attributes, mixing distributions and correlation.

    Attributes
    ----------
    fixed : tuple of str
        Attributes with a fixed coefficient.
    random : tuple of str
        Attributes with a random coefficient.
    mixing : tuple of str
        Mixing distribution of each random coefficient.
    blocks : tuple of tuple of int
        Partition of the random coefficients into correlated blocks.
    constants : bool
        Whether alternative-specific constants are added.
    base_alternative : object
        Alternative without a constant; None for the first.
    scale : str or None
        Column whose coefficient scales all others in willingness-to-pay space (`mxlogit.model.wtp_space`), else None.
    shifters : tuple of (str, str)
        Pairs of a column and a covariate of the decision makers that shifts the mean of its latent normal. The effects
        are fixed coefficients of the product columns, labelled by `product_label`.
    held : tuple of (str, float)
        Columns whose coefficient, or the mean of whose taste, is not estimated, and its value.
    nests : tuple of (str, tuple)
        Names of nests and their alternatives. Their dummies, labelled by `nest_label`, are among the random columns.
    mixture : Mixture or None
        Classes, of each of which the random coefficients have a distribution of their own.
    networks : tuple of HiddenUnits
        Hidden units of networks of covariates. They are covariates as well, and have effects.
    within : tuple of str
        Columns whose coefficients vary between the choice situations of a person. Their standard deviations are fixed
        coefficients of copies of the columns, labelled by `within_label`.
    """

    fixed: tuple[str, ...]
    random: tuple[str, ...]
    mixing: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    constants: bool = False
    base_alternative: object = None
    scale: str | None = None
    shifters: tuple[tuple[str, str], ...] = ()
    held: tuple[tuple[str, float], ...] = ()
    nests: tuple[tuple[str, tuple[object, ...]], ...] = ()
    mixture: Mixture | None = None
    within: tuple[str, ...] = ()
    networks: tuple[HiddenUnits, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of hidden units."""
        return tuple(name for units in self.networks for name in units.features)

    @property
    def scale_position(self) -> int | None:
        """Position of the scale column among all coefficients; None in preference space."""
        return None if self.scale is None else self.names.index(self.scale)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all attributes in the order of the coefficients, fixed ones first."""
        return self.fixed + self.random

    @property
    def products(self) -> tuple[str, ...]:
        """Labels of the products of columns and covariates, in the order of ``shifters``."""
        return tuple(product_label(*pair) for pair in self.shifters)

    @property
    def copies(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a column and the label of its copy, the standard deviation between situations."""
        return tuple((column, within_label(column)) for column in self.within)

    @property
    def latent_effects(self) -> tuple[int, ...]:
        """Indices of those of ``shifters`` that shift a latent normal: the taste does not move by as much."""
        families = dict(zip(self.random, self.mixing, strict=True))
        return tuple(
            i
            for i, (column, _) in enumerate(self.shifters)
            if column in families and (families[column] not in LOCATION_FAMILIES or column == self.scale)
        )

    @property
    def covariates(self) -> tuple[str, ...]:
        """Covariates of the decision makers."""
        return tuple(dict.fromkeys([*(covariate for _, covariate in self.shifters), *self.membership]))

    @property
    def membership(self) -> tuple[str, ...]:
        """Covariates on which the probabilities of classes depend."""
        return () if self.mixture is None else tuple(self.mixture.membership)

    @property
    def columns(self) -> tuple[str, ...]:
        """Attributes and covariates to be read from data: without products, copies and dummies of nests."""
        made = [*self.products, *(label for _, label in self.copies), *(nest_label(name) for name, _ in self.nests)]
        covariates = [name for name in self.covariates if name not in self.features]
        return tuple(dict.fromkeys([*(name for name in self.names if name not in made), *covariates]))

    def with_constants(self, constants: Sequence[str]) -> Specification:
        """Return the specification with constants added as fixed coefficients, unless they are named already."""
        extra = tuple(name for name in constants if name not in self.names)
        return replace(self, fixed=self.fixed + extra)


def product_label(column: str, covariate: str) -> str:
    """Label of the effect of a covariate on the mean of a column's coefficient."""
    return f"{column}:{covariate}"


def within_label(column: str) -> str:
    """Label of the standard deviation of a column's coefficient between the situations of a person."""
    return f"{_WITHIN_PREFIX}{column}"


def nest_label(name: str) -> str:
    """Label of the dummy of a nest."""
    return f"{_NEST_PREFIX}{name}"
