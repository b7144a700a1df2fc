"""Conversion of the argument X to choice data, for a fit and, in the same way, for its results."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from mxlogit.choices import ChoiceData, FrameChoices, PackedChoices, read_frame
from mxlogit.choices.constants import constant_labels
from mxlogit.choices.covariates import add_copies, add_products, check_covariates
from mxlogit.choices.hidden_units import add_hidden_units, standardise
from mxlogit.choices.ingest import add_constants
from mxlogit.choices.nests import add_nests
from mxlogit.errors import ChoiceDataError, ChoiceDataWarning
from mxlogit.request import Fitted
from mxlogit.spec import Columns, Specification


def read_choices(
    X: Any, columns: Columns, specification: Specification, *, y: Any = None, weights: Any = None
) -> ChoiceData | PackedChoices:
    """Read X for a fit, without the columns that `with_made_columns` adds.

    Raises
    ------
    ChoiceDataError
        If a frame has problems, all of which the message lists, or ``y`` or ``weights`` are passed with choice data.
    """
    _check_alone(X, y, weights)
    if isinstance(X, (ChoiceData, PackedChoices)):
        _warn_of_missing_roles(X, columns)
        return _with_constants(X, specification)
    return read_frame(
        X,
        columns,
        specification.columns,
        constants=specification.constants,
        base_alternative=specification.base_alternative,
        chosen=y,
        weights=weights,
    ).data


def complete(specification: Specification, data: ChoiceData | PackedChoices) -> Specification:
    """Return the specification with the alternative-specific constants of the data, and standardised networks."""
    if specification.networks and isinstance(data, ChoiceData):
        networks = tuple(standardise(units, data) for units in specification.networks)
        specification = replace(specification, networks=networks)
    if not specification.constants:
        return specification
    whole = specification.with_constants(list(constant_labels(data.alternatives, specification.base_alternative)))
    named = {
        "held": [name for name, _ in whole.held],
        "mean_shifters": [name for name, _ in whole.shifters],
        "within": list(whole.within),
    }
    for argument, names in named.items():
        unknown = [name for name in names if name not in whole.names]
        if unknown:
            raise ChoiceDataError(
                f"{argument}: there are no constants {unknown}: the base alternative has none; the model has "
                f"{list(whole.names)}."
            )
    return whole


def read_like_fit(
    X: Any, columns: Columns, fitted: Fitted, *, y: Any = None, weights: Any = None
) -> ChoiceData | PackedChoices:
    """Read choices of people in or outside the fit, in the same way as the fit."""
    _check_alone(X, y, weights)
    if isinstance(X, (ChoiceData, PackedChoices)):
        return with_made_columns(_with_constants(X, fitted.specification), fitted.specification)
    return _read_frame_like_fit(X, columns, fitted, need_choice=True, y=y, weights=weights).data


def read_for_prediction(X: Any, columns: Columns, fitted: Fitted, *, weigh: bool = False) -> FrameChoices:
    """Read a long frame for prediction; choices are not needed, and weights are read only with ``weigh``."""
    if isinstance(X, (ChoiceData, PackedChoices)):
        raise ChoiceDataError("predictions need a long frame, since they refer to its rows.")
    used = columns if weigh else replace(columns, weights=None)
    return _read_frame_like_fit(X, used, fitted, need_choice=False)


def _read_frame_like_fit(X: Any, columns: Columns, fitted: Fitted, *, need_choice: bool, **given: Any) -> FrameChoices:
    constants = fitted.specification.constants
    rows = read_frame(
        X,
        replace(columns, cluster=None),
        fitted.specification.columns,
        constants=constants,
        base_alternative=fitted.specification.base_alternative,
        alternatives=fitted.alternatives if constants else None,
        need_choice=need_choice,
        chosen=given.get("y"),
        weights=given.get("weights"),
    )
    if fitted.specification.membership:
        check_covariates(rows.data, fitted.specification.membership, per_person=need_choice)
    made = with_made_columns(rows.data, fitted.specification, per_person=need_choice, fitted=fitted.alternatives)
    completed = replace(rows, data=made)
    return completed.to(fitted.panel.like.device)


def _check_alone(X: Any, y: Any, weights: Any) -> None:
    if isinstance(X, (ChoiceData, PackedChoices)) and (y is not None or weights is not None):
        raise ChoiceDataError("choice data include choices and weights; y and sample_weight must be None.")


def _warn_of_missing_roles(X: ChoiceData | PackedChoices, columns: Columns) -> None:
    """Warn if a weights or cluster column is named, but the data are not a frame and have none."""
    missing = []
    if columns.weights is not None and bool((X.weights == 1.0).all()):
        missing.append(f"weights={columns.weights!r}: all weights of these data are one")
    if columns.cluster is not None and getattr(X, "clusters", None) is None:
        missing.append(f"cluster={columns.cluster!r}: these data have no clusters")
    if missing:
        warnings.warn(
            f"columns are read from frames, not from {type(X).__name__}; {'; '.join(missing)}. Pass them to "
            "ChoiceData.from_arrays or pack_choices.",
            ChoiceDataWarning,
            stacklevel=5,
        )


def _with_constants(X: ChoiceData | PackedChoices, specification: Specification) -> ChoiceData | PackedChoices:
    """Choice data with the constants of a specification, if they can have its other columns as well."""
    if isinstance(X, PackedChoices):
        if specification.shifters:
            raise ChoiceDataError(
                "packs hold differences between alternatives, in which covariates of people are lost, so mean_shifters "
                "cannot be made of them. Pack the products as columns of their own (price_income = price * income) and "
                "name these in fixed."
            )
        if specification.membership:
            raise ChoiceDataError(
                "packs hold differences between alternatives, in which covariates of people are lost, so "
                "Mixture(membership=...) needs a frame or ChoiceData."
            )
        if specification.within:
            raise ChoiceDataError(
                "packs have no nodes of choice situations, so within=... needs a frame or ChoiceData."
            )
        if specification.nests:
            raise ChoiceDataError(
                "nests cannot be made of packs. Pack their dummies as columns, name these in random and hold their "
                "means at zero: held={'transit': 0.0}."
            )
        return X.with_constants(specification.base_alternative) if specification.constants else X
    return add_constants(X, specification.base_alternative) if specification.constants else X


def with_made_columns(data: Any, specification: Specification, *, per_person: bool = True, **of_nests: Any) -> Any:
    """Choice data with the dummies of nests, hidden units, products with covariates and copies of a specification.

    Packs have all columns.
    """
    if isinstance(data, PackedChoices):
        return data
    data = add_nests(data, specification.nests, **of_nests)
    data = add_hidden_units(data, specification.networks, per_person=per_person)
    return add_copies(add_products(data, specification.shifters, per_person=per_person), specification.copies)
