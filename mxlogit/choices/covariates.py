r"""Covariates of decision makers: their values, and the products with attributes through which they shift tastes.

A covariate x that shifts the mean of a normal coefficient, :math:`\beta_n = \zeta + \gamma x_n + L \xi_n`, adds
:math:`\gamma` as the fixed coefficient of the product of the attribute and the covariate: for every engine the effect
is one more fixed coefficient, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mxlogit.choices.checks import COUNT, PLACES, SHOWN, TOTAL, Problems
from mxlogit.choices.data import ChoiceData
from mxlogit.choices.labels import listed
from mxlogit.errors import ChoiceDataError
from mxlogit.spec import product_label


def read_covariates(data: ChoiceData, names: Sequence[str]) -> Tensor:
    """Covariates of the decision makers, (n, c), float64.

    Parameters
    ----------
    data : ChoiceData
        Choices, with the covariates among their attributes.
    names : sequence of str, length c
        Names of the covariates.

    Raises
    ------
    ChoiceDataError
        If a covariate varies within a decision maker; the message says of how many and the first ones.
    """
    rows = data.choices.rows[:, data.columns(names)].double()
    first = data.first_rows[data.first_situations]
    values = rows[first[:-1]]
    differs = rows != values.repeat_interleave(first.diff(), 0)
    problems = Problems()
    person = torch.arange(data.n_decision_makers, device=rows.device).repeat_interleave(first.diff())
    for place, name in enumerate(names):
        wrong = torch.zeros(data.n_decision_makers, dtype=torch.bool, device=rows.device)
        wrong[person[differs[:, place]]] = True
        where = wrong.cpu().numpy()
        labels = listed(data.decision_makers[where][:SHOWN])
        problems.add_if(
            where,
            f"covariate {name!r} varies within {COUNT} of {TOTAL} decision makers (first: {PLACES}). Covariates of "
            "tastes describe people: give one value in all rows of a person, or name a column that varies in fixed or "
            "random, multiplied by the attribute.",
            labels,
        )
    problems.raise_if_any()
    return values


def add_products(data: ChoiceData, pairs: Sequence[tuple[str, str]], *, per_person: bool = True) -> ChoiceData:
    """Append the products of attributes and covariates, with the labels of `mxlogit.spec.product_label`.

    Parameters
    ----------
    data : ChoiceData
        Choices, with the covariates among their attributes.
    pairs : sequence of (str, str)
        Attribute and covariate of each product.
    per_person : bool
        Whether a covariate must be the same in all choice situations of a person; in predictions it may differ, as of
        a person today and in ten years.

    Raises
    ------
    ChoiceDataError
        If a name is no attribute, a covariate varies within a decision maker or a choice situation, or an attribute has
        the label of a product.
    """
    if not pairs:
        return data
    labels, problems = [product_label(*pair) for pair in pairs], Problems()
    taken = [label for label in labels if label in data.names]
    if taken:
        problems.add(f"the choice data already have attributes {taken}, which mean_shifters would make: rename them.")
    problems.raise_if_any()
    check_covariates(data, list(dict.fromkeys(covariate for _, covariate in pairs)), per_person=per_person)
    rows = data.choices.rows
    left, right = (data.columns([pair[side] for pair in pairs]) for side in (0, 1))
    choices = replace(data.choices, rows=torch.cat([rows, rows[:, left] * rows[:, right]], 1))
    return replace(data, choices=choices, names=(*data.names, *labels))


def add_copies(data: ChoiceData, pairs: Sequence[tuple[str, str]]) -> ChoiceData:
    """Append copies of attributes, given pairs of an attribute and the label of its copy.

    Raises
    ------
    ChoiceDataError
        If an attribute has the label of a copy.
    """
    if not pairs:
        return data
    taken = [label for _, label in pairs if label in data.names]
    if taken:
        raise ChoiceDataError(f"the choice data already have attributes {taken}, which within would make: rename them.")
    rows = data.choices.rows
    copies = rows[:, data.columns([column for column, _ in pairs])]
    choices = replace(data.choices, rows=torch.cat([rows, copies], 1))
    return replace(data, choices=choices, names=(*data.names, *(label for _, label in pairs)))


def check_covariates(data: ChoiceData, names: Sequence[str], *, per_person: bool) -> None:
    """Check that covariates are the same for all rows of a person, or of a choice situation.

    Raises
    ------
    ChoiceDataError
        If they are not.
    """
    if per_person:
        read_covariates(data, names)
    else:
        _check_situations(data, names)


def centre_products(data: Any, pairs: Sequence[tuple[str, str]], offsets: Sequence[float]) -> Any:
    """Choice data whose products, made by `add_products`, are those with covariates less ``offsets``."""
    if not any(offsets):
        return data
    rows = data.choices.rows.clone()
    for (column, covariate), offset in zip(pairs, offsets, strict=True):
        product, attribute, factor = data.columns([product_label(column, covariate), column, covariate])
        rows[:, product] = rows[:, attribute] * (rows[:, factor] - offset)
    return replace(data, choices=replace(data.choices, rows=rows))


def _check_situations(data: ChoiceData, names: Sequence[str]) -> None:
    """Check that covariates are the same for all alternatives of a choice situation."""
    rows = data.choices.rows[:, data.columns(names)]
    differs = rows != rows[data.first_rows[:-1]].repeat_interleave(data.first_rows.diff(), 0)
    if bool(differs.any()):
        wrong = [name for name, column in zip(names, differs.T, strict=True) if bool(column.any())]
        raise ChoiceDataError(
            f"covariates {wrong} vary between the alternatives of choice situations; they describe people: give one "
            "value in all rows of a situation."
        )
