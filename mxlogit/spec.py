"""Specification of a mixed logit model, immutable and checked before data are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import KeysView, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mxlogit.errors import SpecificationError, suggest

# Prefix of the labels of alternative-specific constants.
CONSTANT_PREFIX = "asc."
# Prefix of the labels of nests.
_NEST_PREFIX = "nest."
# Names of the mixing distributions.
MIXING_NAMES = (
    "normal",
    "lognormal",
    "negative_lognormal",
    "truncated_normal",
    "censored_normal",
    "uniform",
    "triangular",
    "johnson_sb",
)

# Roles that need not have a column.
_OPTIONAL_ROLES = ("availability", "weights", "cluster")
# Roles whose column cannot have another role; a decision maker may be a situation (one choice each) or a cluster.
_OWN_COLUMN = ("alternative", "choice", "availability", "weights")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a long frame, by role.

    Raises
    ------
    SpecificationError
        If a name is not a string, or a column has two incompatible roles.
    """

    decision_maker: str
    situation: str
    alternative: str
    choice: str
    availability: str | None = None
    weights: str | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        roles = {role.name: getattr(self, role.name) for role in fields(self)}
        for role, name in roles.items():
            if not (isinstance(name, str) or (name is None and role in _OPTIONAL_ROLES)):
                raise SpecificationError(
                    f"{role} must be the name of a column (a string); got {name!r}. Rename columns whose names are not "
                    "strings: frame.rename(columns=str)."
                )
        for role in _OWN_COLUMN:
            others = [other for other, name in roles.items() if name == roles[role] and other != role]
            if others and roles[role] is not None:
                raise SpecificationError(f"column {roles[role]!r} cannot be both {role} and {others[0]}.")

    @property
    def keys(self) -> tuple[str, str, str]:
        """The three columns that identify a row."""
        return self.decision_maker, self.situation, self.alternative

    def role(self, name: str) -> str | None:
        """First role of a column; None if it has none."""
        return next((role.name for role in fields(self) if getattr(self, role.name) == name), None)


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
        Pairs of a column and a covariate of the decision makers that shifts the mean of its coefficient. The effects
        are fixed coefficients of the product columns, labelled by `product_label`.
    held : tuple of (str, float)
        Columns whose coefficient, or the mean of whose taste, is not estimated, and its value.
    nests : tuple of (str, tuple)
        Names of nests and their alternatives. Their dummies, labelled by `nest_label`, are among the random columns.
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
    def covariates(self) -> tuple[str, ...]:
        """Covariates of the decision makers."""
        return tuple(dict.fromkeys(covariate for _, covariate in self.shifters))

    @property
    def columns(self) -> tuple[str, ...]:
        """Attributes and covariates to be read from data: without products and dummies of nests, which are made."""
        made = [*self.products, *(nest_label(name) for name, _ in self.nests)]
        return tuple(dict.fromkeys([*(name for name in self.names if name not in made), *self.covariates]))

    def with_constants(self, constants: Sequence[str]) -> Specification:
        """Return the specification with constants added as fixed coefficients, unless they are named already."""
        extra = tuple(name for name in constants if name not in self.names)
        return replace(self, fixed=self.fixed + extra)


def product_label(column: str, covariate: str) -> str:
    """Label of the effect of a covariate on the mean of a column's coefficient."""
    return f"{column}:{covariate}"


def nest_label(name: str) -> str:
    """Label of the dummy of a nest."""
    return f"{_NEST_PREFIX}{name}"


def make_specification(
    *,
    fixed: Sequence[str] = (),
    random: Sequence[str] | Mapping[str, str] = (),
    correlated: bool | Sequence[Sequence[str]] = True,
    constants: bool = False,
    base_alternative: object = None,
    scale: str | None = None,
    mean_shifters: Mapping[str, Sequence[str]] | None = None,
    held: Mapping[str, float] | None = None,
    nests: Mapping[str, Sequence[object]] | None = None,
) -> Specification:
    """Check the arguments and build the specification.

    The parameters are those of `mxlogit.MixedLogit`.

    Returns
    -------
    Specification

    Raises
    ------
    SpecificationError
        If a name is listed twice, a distribution is unknown, blocks are invalid, there is no coefficient, or covariates
        are to shift what they cannot.
    """
    fixed_names = check_names("fixed", fixed)
    if isinstance(random, Mapping):
        random_names = check_names("random", list(random))
        mixing = tuple(_check_mixing(name, family) for name, family in random.items())
    else:
        random_names = check_names("random", random)
        mixing = ("normal",) * len(random_names)
    both = [name for name in random_names if name in fixed_names]
    if both:
        raise SpecificationError(f"{both} are listed both in fixed and in random; choose one.")
    groups = _check_nests(nests, [*fixed_names, *random_names])
    if not fixed_names and not random_names and not constants and not groups:
        raise SpecificationError("nothing to estimate: name attribute columns in fixed or random.")
    if not isinstance(constants, (bool, np.bool_)):
        raise SpecificationError(f"constants must be True or False; got {constants!r}. Name constants in random.")
    if base_alternative is not None and not constants:
        raise SpecificationError("base_alternative needs constants=True.")
    if scale is not None:
        _check_scale(scale, [*fixed_names, *random_names], constants=bool(constants))
    blocks = _make_blocks(random_names, correlated)
    plain = Specification(fixed_names, random_names, mixing, blocks, bool(constants), base_alternative, scale)
    shifters = _check_shifters(mean_shifters, plain)
    values = _check_held(held, plain)
    if groups and scale is not None:
        raise SpecificationError("nests are terms in utils; leave out scale, or nests.")
    dummies = tuple(nest_label(name) for name, _ in groups)
    alone = tuple((len(random_names) + i,) for i in range(len(dummies)))
    return replace(
        plain,
        fixed=fixed_names + tuple(product_label(*pair) for pair in shifters),
        random=random_names + dummies,
        mixing=mixing + ("normal",) * len(dummies),
        blocks=_divided(
            blocks,
            [name in dict(values) for name in random_names],
            explicit=not isinstance(correlated, (bool, np.bool_)),
        )
        + alone,
        shifters=shifters,
        held=values + tuple((label, 0.0) for label in dummies),
        nests=groups,
    )


def _check_nests(asked: object, taken: list[str]) -> tuple[tuple[str, tuple[object, ...]], ...]:
    """Pairs (name, alternatives) of a mapping."""
    if asked is None:
        return ()
    if not isinstance(asked, Mapping):
        raise SpecificationError(
            f"nests must map names to lists of alternatives, such as {{'transit': ['bus', 'train']}}; got {asked!r}."
        )
    found = []
    for name, members in asked.items():
        listed = None if isinstance(members, str) else _as_list(members)
        if not isinstance(name, str) or not listed:
            raise SpecificationError(f"nests[{name!r}] must be a list of alternatives; got {members!r}.")
        if nest_label(name) in taken:
            raise SpecificationError(f"{nest_label(name)!r} is named in fixed or random and would be made by nests.")
        found.append((name, tuple(listed)))
    return tuple(found)


def _is_constant(name: object, plain: Specification) -> bool:
    """Whether a name may be that of an alternative-specific constant, which only the data know."""
    return plain.constants and isinstance(name, str) and name.startswith(CONSTANT_PREFIX)


def _check_held(asked: object, plain: Specification) -> tuple[tuple[str, float], ...]:
    """Pairs (column, value) of a mapping."""
    if asked is None:
        return ()
    if not isinstance(asked, Mapping):
        raise SpecificationError(f"held must map columns to values, such as {{'bus_or_train': 0.0}}; got {asked!r}.")
    unknown = [name for name in asked if name not in plain.names and not _is_constant(name, plain)]
    if unknown:
        raise SpecificationError(
            f"held: {unknown} are no columns in fixed or random: {list(plain.names)}.{suggest(unknown[0], plain.names)}"
        )
    numbers = (int, float, np.integer, np.floating)
    is_number = {name: isinstance(value, numbers) and not isinstance(value, bool) for name, value in asked.items()}
    wrong = {name: value for name, value in asked.items() if not is_number[name] or not np.isfinite(value)}
    if wrong:
        raise SpecificationError(f"held must give finite numbers; got {wrong}.")
    families = dict(zip(plain.random, plain.mixing, strict=True))
    other = {name: families[name] for name in asked if families.get(name, "normal") != "normal"}
    if other:
        raise SpecificationError(f"held: means of normal tastes and fixed coefficients can be held; not so: {other}.")
    if plain.scale is not None:
        raise SpecificationError("held values are coefficients in utils; leave out scale, or do not hold any.")
    return tuple((str(name), float(value)) for name, value in asked.items())


def _divided(blocks: tuple[tuple[int, ...], ...], held: list[bool], *, explicit: bool) -> tuple[tuple[int, ...], ...]:
    """Blocks of which no one has both held and estimated means; explicit blocks are not divided but refused."""
    if explicit and any(len({held[i] for i in block}) > 1 for block in blocks):
        raise SpecificationError("correlated: a block cannot have both held and estimated means; divide it.")
    parts = [tuple(i for i in block if held[i] is kind) for block in blocks for kind in (True, False)]
    return tuple(sorted(part for part in parts if part))


def _check_shifters(asked: object, plain: Specification) -> tuple[tuple[str, str], ...]:
    """Pairs (column, covariate) of a mapping from columns to lists of covariates."""
    if asked is None:
        return ()
    if not isinstance(asked, Mapping):
        raise SpecificationError(
            "mean_shifters must map columns to lists of covariates, such as {'price': ['income', 'urban']}; "
            f"got {asked!r}."
        )
    pairs = []
    for column, covariates in asked.items():
        _check_shifted(column, plain)
        listed = check_names(f"mean_shifters[{column!r}]", covariates)
        if column in listed:
            raise SpecificationError(f"mean_shifters: {column!r} cannot be a covariate of its own coefficient.")
        pairs += [(column, covariate) for covariate in listed]
    taken = [label for label in (product_label(*pair) for pair in pairs) if label in plain.names]
    if taken:
        raise SpecificationError(
            f"{taken} are named in fixed or random and would be made by mean_shifters; choose one."
        )
    return tuple(pairs)


def _check_shifted(column: object, plain: Specification) -> None:
    """Check that covariates can shift the mean of a column's coefficient."""
    if column not in plain.names and not _is_constant(column, plain):
        raise SpecificationError(
            f"mean_shifters: {column!r} is no column in fixed or random: {list(plain.names)}."
            f"{suggest(column, plain.names)}"
        )
    if column == plain.scale:
        raise SpecificationError(
            f"mean_shifters: covariates cannot shift {column!r}, the scale of willingness-to-pay space."
        )
    family = dict(zip(plain.random, plain.mixing, strict=True)).get(str(column), "normal")
    if family != "normal":
        raise SpecificationError(
            f"mean_shifters: {column!r} is {family}, and covariates shift the means of normal tastes and fixed "
            "coefficients only. Make it normal or fixed, or divide people into groups by a column per group."
        )


def _check_scale(scale: object, names: list[str], *, constants: bool) -> None:
    if scale not in names:
        raise SpecificationError(
            f"scale must be one of the columns in fixed or random, such as a cost: {names}; got {scale!r}."
            f"{suggest(scale, names)}"
        )
    if len(names) == 1 and not constants:
        raise SpecificationError(f"scale={scale!r} needs other columns to be valued in its units; there are none.")


def check_names(argument: str, names: Any) -> tuple[str, ...]:
    """Convert an ordered collection of column names (list, tuple, array, Index, Series) to a tuple.

    Raises
    ------
    SpecificationError
        If ``names`` is a single string, has no order, holds anything but strings, or repeats a name.
    """
    if isinstance(names, str):
        raise SpecificationError(
            f"{argument} must be a list of column names; got the string {names!r}: write [{names!r}]."
        )
    listed = _as_list(names)
    if listed is None:
        order = " A set has no order: write a list." if isinstance(names, (set, frozenset)) else ""
        raise SpecificationError(f"{argument} must be a list of column names; got {names!r}.{order}")
    wrong = [name for name in listed if not isinstance(name, str)]
    if wrong:
        raise SpecificationError(
            f"{argument} must hold column names (strings); got {wrong[:5]}. Rename columns whose names are not "
            "strings: frame.rename(columns=str)."
        )
    repeated = sorted(name for name, count in Counter(listed).items() if count > 1)
    if repeated:
        raise SpecificationError(f"{argument} lists {repeated} more than once.")
    return tuple(str(name) for name in listed)


def _as_list(names: Any) -> list[Any] | None:
    """List the elements of a sequence, of the keys of a mapping, or of a one-dimensional array-like; else None."""
    if isinstance(names, (Sequence, KeysView)):
        return list(names)
    listed = np.asarray(names) if hasattr(names, "__array__") else np.empty(())
    return list(listed) if listed.ndim == 1 else None


def _check_mixing(column: str, family: object) -> str:
    if not isinstance(family, str) or family not in MIXING_NAMES:
        known = ", ".join(repr(name) for name in MIXING_NAMES)
        hint = suggest(family, MIXING_NAMES)
        raise SpecificationError(f"unknown mixing distribution {family!r} for {column!r}. Known: {known}.{hint}")
    return str(family)


def _make_blocks(random: tuple[str, ...], correlated: object) -> tuple[tuple[int, ...], ...]:
    if isinstance(correlated, (bool, np.bool_)):
        together = (tuple(range(len(random))),) if random else ()
        return together if correlated else tuple((i,) for i in range(len(random)))
    listed_blocks = _check_blocks(correlated)
    listed = [name for block in listed_blocks for name in block]
    unknown = [name for name in listed if name not in random]
    if unknown:
        raise SpecificationError(
            f"correlated names {unknown}, which are not in random {list(random)}.{suggest(unknown[0], random)}"
        )
    if len(set(listed)) < len(listed):
        raise SpecificationError("correlated lists a column in two blocks; blocks must not overlap.")
    blocks = [tuple(sorted(random.index(name) for name in block)) for block in listed_blocks if block]
    alone = [(i,) for i, name in enumerate(random) if name not in listed]
    return tuple(sorted([*blocks, *alone]))


def _check_blocks(correlated: object) -> list[list[str]]:
    """Return the blocks as lists of names."""
    listed = None if isinstance(correlated, str) else _as_list(correlated)
    blocks = [None if isinstance(block, str) else _as_list(block) for block in listed or ()]
    if listed is not None and None not in blocks:
        return [block for block in blocks if block is not None]
    raise SpecificationError("correlated must be True, False or a list of lists of random columns.")
