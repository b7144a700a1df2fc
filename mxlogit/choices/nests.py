"""Nests: dummies of groups of alternatives, whose random coefficients of mean zero make these closer substitutes.

A term that alternatives of a nest share correlates their utilities over people (error components: Brownstone and Train
1999, Journal of Econometrics 89; Train 2009, section 6.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from mxlogit.choices.data import ChoiceData
from mxlogit.choices.labels import explain_kinds, listed
from mxlogit.errors import ChoiceDataError, suggest
from mxlogit.spec import nest_label


def add_nests(
    data: ChoiceData,
    nests: Sequence[tuple[str, tuple[object, ...]]],
    *,
    complete: bool = False,
    fitted: np.ndarray | None = None,
) -> ChoiceData:
    """Append a dummy for every nest, with the label of `mxlogit.spec.nest_label`.

    Parameters
    ----------
    data : ChoiceData
        Choices with labelled alternatives.
    nests : sequence of (str, tuple)
        Name and alternatives of each nest.
    complete : bool
        Whether all alternatives of the nests must be in the data, as in those of a fit.
    fitted : ndarray, optional
        Alternatives of the fit, of which the data must have some.

    Raises
    ------
    ChoiceDataError
        If alternatives carry no labels, an alternative of a nest is not among them, two nests are the same or divide
        all alternatives, an attribute has the label of a nest, or no alternative was in the fit.
    """
    if not nests:
        return data
    if data.alternatives is None:
        raise ChoiceDataError(
            "nests need labelled alternatives that recur over choice situations; these have no labels, or labels that "
            "only number the rows."
        )
    labels, known = [nest_label(name) for name, _ in nests], listed(data.alternatives)
    taken = [label for label in labels if label in data.names]
    if taken:
        raise ChoiceDataError(f"the choice data already have attributes {taken}, the labels of nests: rename them.")
    if complete:
        _check_alternatives(nests, known)
    if fitted is not None and not set(known) & set(listed(fitted)):
        raise ChoiceDataError(
            f"none of the alternatives {known[:10]} were in the data of the fit: {listed(fitted)[:10]}."
            f"{explain_kinds(fitted, data.alternatives)}"
        )
    rows, positions = data.choices.rows, data.choices.listed_positions()
    member = np.array([[alternative in members for _, members in nests] for alternative in known], dtype=float)
    dummies = torch.from_numpy(member).to(rows)[positions.long()]
    choices = replace(data.choices, rows=torch.cat([rows, dummies], 1))
    return replace(data, choices=choices, names=(*data.names, *labels))


def _check_alternatives(nests: Sequence[tuple[str, tuple[object, ...]]], known: list[object]) -> None:
    for name, members in nests:
        unknown = [member for member in members if member not in known]
        if unknown:
            raise ChoiceDataError(
                f"nests[{name!r}]: {unknown} are not among the alternatives {known[:10]}.{suggest(unknown[0], known)}"
            )
    for (name, members), (other, others) in combinations(nests, 2):
        if set(members) == set(others):
            raise ChoiceDataError(f"nests {name!r} and {other!r} have the same alternatives; leave one of them out.")
        if not set(members) & set(others) and len(set(members) | set(others)) == len(known):
            raise ChoiceDataError(
                f"nests {name!r} and {other!r} divide all alternatives between them. Choices depend on differences of "
                "utilities, which tell the sum of their variances only: leave one of them out."
            )
