"""From arguments to a specification, checked before data are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mxlogit.errors import SpecificationError, suggest
from mxlogit.spec.mixture import CLASS_FAMILIES, Mixture
from mxlogit.spec.names import as_list, check_names
from mxlogit.spec.network import HiddenUnits, Network
from mxlogit.spec.specification import CONSTANT_PREFIX, Specification, nest_label, product_label, within_label

# Most columns whose coefficients vary between situations: their nodes multiply.
MOST_WITHIN = 2
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


def make_specification(
    *,
    fixed: Sequence[str] = (),
    random: Sequence[str] | Mapping[str, str] = (),
    correlated: bool | Sequence[Sequence[str]] = True,
    constants: bool = False,
    base_alternative: object = None,
    scale: str | None = None,
    mean_shifters: Mapping[str, Sequence[str] | Network] | None = None,
    held: Mapping[str, float] | None = None,
    nests: Mapping[str, Sequence[object]] | None = None,
    mixing: Mixture | None = None,
    within: Mapping[str, str] | None = None,
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
        families = tuple(_check_family(name, family) for name, family in random.items())
    else:
        random_names = check_names("random", random)
        families = ("normal",) * len(random_names)
    both = [name for name in random_names if name in fixed_names]
    if isinstance(mixing, Mixture) and mixing.check().classes == 1:
        fixed_names, families = _of_one_class(mixing, fixed_names, random_names, families)
        random_names, mixing = random_names[: len(families)], None
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
    plain = Specification(fixed_names, random_names, families, blocks, bool(constants), base_alternative, scale)
    if mixing is not None:
        together = {"scale": scale, "mean_shifters": mean_shifters, "held": held, "nests": nests}
        together["within"] = within
        return replace(plain, mixture=_check_mixture(mixing, plain, together))
    shifters, networks = _check_shifters(mean_shifters, plain)
    values = _check_held(held, plain)
    varying = _check_within(within, plain)
    if groups and scale is not None:
        raise SpecificationError("nests are terms in utils; leave out scale, or nests.")
    dummies = tuple(nest_label(name) for name, _ in groups)
    alone = tuple((len(random_names) + i,) for i in range(len(dummies)))
    return replace(
        plain,
        fixed=fixed_names + tuple([product_label(*pair) for pair in shifters] + [within_label(x) for x in varying]),
        random=random_names + dummies,
        mixing=families + ("normal",) * len(dummies),
        blocks=_divided(
            blocks,
            [name in dict(values) for name in random_names],
            explicit=not isinstance(correlated, (bool, np.bool_)),
        )
        + alone,
        shifters=shifters,
        held=values + tuple((label, 0.0) for label in dummies),
        nests=groups,
        within=varying,
        networks=networks,
    )


def _check_mixture(asked: object, plain: Specification, others: Mapping[str, object]) -> Mixture:
    """A mixture whose covariates and classes the other arguments allow."""
    if not isinstance(asked, Mixture):
        raise SpecificationError(f"mixing must be None or Mixture(...), such as Mixture(classes=3); got {asked!r}.")
    mixture = asked.check()
    if not plain.random:
        raise SpecificationError("mixing: classes differ in the coefficients named in random, and there are none.")
    combined = [name for name, value in others.items() if value]
    if combined:
        raise SpecificationError(f"mixing cannot be combined with {combined}; leave one of them out.")
    other = {name: kind for name, kind in zip(plain.random, plain.mixing, strict=True) if kind not in CLASS_FAMILIES}
    if other:
        raise SpecificationError(f"mixing: tastes of classes are one of {list(CLASS_FAMILIES)}; not so: {other}.")
    ignored = [name for names in mixture.ignored.values() for name in names]
    unknown = [name for name in ignored if name not in plain.random]
    if unknown:
        raise SpecificationError(
            f"Mixture(ignored=...): {unknown} are not in random, {list(plain.random)}."
            f"{suggest(unknown[0], plain.random)}"
        )
    places = mixture.places_ignored(plain.names)
    nowhere = [name for i, name in enumerate(plain.names) if all(i in ignored_by for ignored_by in places)]
    if nowhere:
        raise SpecificationError(f"Mixture(ignored=...): all classes ignore {nowhere}; leave these columns out.")
    both = [name for name in mixture.membership if name in plain.names]
    if both:
        raise SpecificationError(f"{both} are named as attributes and in Mixture(membership=...); choose one.")
    return mixture


def _of_one_class(
    mixture: Mixture, fixed: tuple[str, ...], random: tuple[str, ...], families: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fixed coefficients and families of the plain model that a mixture of one class is: without spread, all fixed."""
    if mixture.membership or mixture.ignored or mixture.indifferent:
        raise SpecificationError(
            "Mixture(classes=1) has neither covariates of membership nor ignored columns nor indifferent people; leave "
            "these out."
        )
    if mixture.spread is None:
        return fixed, families
    other = {name: kind for name, kind in zip(random, families, strict=True) if kind != "normal"}
    if other:
        raise SpecificationError(
            f"Mixture(classes=1, spread=0) is a model of fixed coefficients, and these are not: {other}."
        )
    return fixed + random, ()


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
        listed = None if isinstance(members, str) else as_list(members)
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


def _check_within(asked: object, plain: Specification) -> tuple[str, ...]:
    """Columns of a mapping to the distribution of what varies between situations, which is normal."""
    if asked is None:
        return ()
    if not isinstance(asked, Mapping):
        raise SpecificationError(f"within must map columns to 'normal', such as {{'time': 'normal'}}; got {asked!r}.")
    unknown = [name for name in asked if name not in plain.names and not _is_constant(name, plain)]
    if unknown:
        raise SpecificationError(
            f"within: {unknown} are no columns in fixed or random: {list(plain.names)}."
            f"{suggest(unknown[0], plain.names)}"
        )
    families = dict(zip(plain.random, plain.mixing, strict=True))
    other = {name: families[name] for name in asked if families.get(name, "normal") != "normal"}
    wrong = {name: family for name, family in asked.items() if not isinstance(family, str) or family != "normal"}
    if other or wrong:
        raise SpecificationError(
            "within: normal deviations between situations are added to normal tastes and fixed coefficients; not so: "
            f"{other or wrong}."
        )
    if len(asked) > MOST_WITHIN:
        raise SpecificationError(
            f"within: the coefficients of at most {MOST_WITHIN} columns can vary between situations, since each "
            f"situation is averaged over all combinations of their nodes; got {list(asked)}."
        )
    if plain.scale is not None:
        raise SpecificationError("within: deviations are in utils; leave out scale, or within.")
    taken = [within_label(name) for name in asked if within_label(name) in plain.names]
    if taken:
        raise SpecificationError(f"{taken} are named in fixed or random and would be made by within; choose one.")
    return tuple(str(name) for name in asked)


def _divided(blocks: tuple[tuple[int, ...], ...], held: list[bool], *, explicit: bool) -> tuple[tuple[int, ...], ...]:
    """Blocks of which no one has both held and estimated means; explicit blocks are not divided but refused."""
    if explicit and any(len({held[i] for i in block}) > 1 for block in blocks):
        raise SpecificationError("correlated: a block cannot have both held and estimated means; divide it.")
    parts = [tuple(i for i in block if held[i] is kind) for block in blocks for kind in (True, False)]
    return tuple(sorted(part for part in parts if part))


def _check_shifters(asked: object, plain: Specification) -> tuple[tuple[tuple[str, str], ...], tuple[HiddenUnits, ...]]:
    """Pairs (column, covariate) of a mapping from columns to lists of covariates or networks, and hidden units."""
    if asked is None:
        return (), ()
    if not isinstance(asked, Mapping):
        raise SpecificationError(
            "mean_shifters must map columns to lists of covariates, such as {'price': ['income', 'urban']}; "
            f"got {asked!r}."
        )
    pairs, networks = list[tuple[str, str]](), list[HiddenUnits]()
    for column, covariates in asked.items():
        _check_shifted(column, plain)
        if isinstance(covariates, Network):
            networks.append(covariates.check(column))
            covariates = [*covariates.covariates, *networks[-1].features]
        listed = check_names(f"mean_shifters[{column!r}]", covariates)
        if column in listed:
            raise SpecificationError(f"mean_shifters: {column!r} cannot be a covariate of its own coefficient.")
        pairs += [(column, covariate) for covariate in listed]
    taken = [label for label in (product_label(*pair) for pair in pairs) if label in plain.names]
    if taken:
        raise SpecificationError(
            f"{taken} are named in fixed or random and would be made by mean_shifters; choose one."
        )
    return tuple(pairs), tuple(networks)


def _check_shifted(column: object, plain: Specification) -> None:
    """Check that covariates can shift the mean of a column's coefficient."""
    if column not in plain.names and not _is_constant(column, plain):
        raise SpecificationError(
            f"mean_shifters: {column!r} is no column in fixed or random: {list(plain.names)}."
            f"{suggest(column, plain.names)}"
        )
    if column == plain.scale and column not in plain.random:
        raise SpecificationError(
            f"mean_shifters: covariates shift the scale of willingness-to-pay space, {column!r}, if it is random; make "
            f"it random={{{column!r}: 'lognormal'}}, or 'negative_lognormal'."
        )


def _check_scale(scale: object, names: list[str], *, constants: bool) -> None:
    if scale not in names:
        raise SpecificationError(
            f"scale must be one of the columns in fixed or random, such as a cost: {names}; got {scale!r}."
            f"{suggest(scale, names)}"
        )
    if len(names) == 1 and not constants:
        raise SpecificationError(f"scale={scale!r} needs other columns to be valued in its units; there are none.")


def _check_family(column: str, family: object) -> str:
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
    listed = None if isinstance(correlated, str) else as_list(correlated)
    blocks = [None if isinstance(block, str) else as_list(block) for block in listed or ()]
    if listed is not None and None not in blocks:
        return [block for block in blocks if block is not None]
    raise SpecificationError("correlated must be True, False or a list of lists of random columns.")
