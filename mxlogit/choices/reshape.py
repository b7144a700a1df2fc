"""Conversion of wide frames (one row per choice situation) to long frames (one row per alternative)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from mxlogit.choices.checks import COUNT, PLACES, SHOWN, TOTAL, Problems
from mxlogit.choices.frames import as_narwhals, index_of
from mxlogit.choices.labels import factorize, find_labels, listed, rank_within, read_labels
from mxlogit.choices.values import read_flags
from mxlogit.errors import ChoiceDataError, suggest


def wide_to_long(
    frame: Any,
    attributes: Mapping[str, Mapping[Any, Any]],
    *,
    choice: str | None,
    decision_maker: str = "id",
    situation: str | None = None,
    availability: Mapping[Any, str] | None = None,
    keep: Sequence[str] = (),
) -> pd.DataFrame:
    """Convert a frame with one row per choice situation to one with one row per alternative.

    Parameters
    ----------
    frame : frame of pandas, polars or pyarrow
        One row per choice situation.
    attributes : mapping of name to {alternative: column or number}
        Sources of every attribute of the long frame: the wide column with its values for each alternative, or a number
        for all rows (a column of that name takes precedence). All attributes must name the same alternatives.
    choice : str or None
        Column with the label of the chosen alternative, as in ``attributes``; None for scenarios to predict.
    decision_maker : str
        Column with the decision maker; it keeps its name.
    situation : str, optional
        Column with the choice situation; if None, situations are numbered within the decision maker.
    availability : mapping {alternative: column}, optional
        Columns of 0/1; alternatives not named are always available.
    keep : sequence of str
        Other columns to repeat on every row of a situation.

    Returns
    -------
    pandas.DataFrame
        Columns: decision maker, ``situation``, ``alternative``, ``choice`` (bool, unless None), ``available`` (bool,
        only with ``availability``), the attributes, and ``keep``. Rows of a situation are adjacent.

    Raises
    ------
    ChoiceDataError
        If columns are missing, two columns of the long frame would have the same name, attributes name different
        alternatives, a choice is not an alternative, or a decision maker has a situation twice.

    Examples
    --------
    >>> wide = pd.DataFrame({"id": [1, 1], "chosen": ["bus", "car"], "bus_time": [30, 20], "car_time": [25, 25]})
    >>> wide_to_long(wide, {"time": {"bus": "bus_time", "car": "car_time"}}, choice="chosen")
       id  situation alternative  choice  time
    0   1          0         bus    True    30
    1   1          0         car   False    25
    2   1          1         bus   False    20
    3   1          1         car    True    25
    """
    table = as_narwhals(frame)
    problems = Problems()
    alternatives = _check_sources(table, attributes, availability or {}, problems)
    roles = [(decision_maker, "the decision maker"), ("situation", "the choice situation")]
    roles += [("alternative", "the alternative")]
    roles += [("choice", "the choice")] if choice is not None else []
    roles += [("available", "the availability")] if availability else []
    roles += [(name, "an attribute") for name in attributes]
    # Columns that are in the long frame under their own name are not repeated.
    there = {decision_maker, *(["situation"] if situation == "situation" else [])}
    keep = _check_names(roles, keep, there, problems)
    optional = [name for name in (situation, choice) if name is not None]
    closing = [column for column in (availability or {}).values() if column is not None]
    wanted = [decision_maker, *optional, *closing, *keep]
    _check_present(table, index_of(frame, len(table)), wanted, problems)
    problems.raise_if_any()
    n_rows, n_alternatives = len(table), len(alternatives)
    repeat = np.repeat(np.arange(n_rows), n_alternatives)
    labels = np.empty(n_alternatives, dtype=object)
    labels[:] = alternatives
    long: dict[str, Any] = {
        decision_maker: _column(table, decision_maker).take(repeat),
        "situation": _read_situations(table, decision_maker, situation, problems).take(repeat),
        "alternative": pd.Series(np.tile(labels, n_rows)).infer_objects(),
    }
    if choice is not None:
        long["choice"] = _read_chosen(table, choice, alternatives, problems).ravel()
    if availability:
        open_ = [_read_available(table, availability.get(a), problems) for a in alternatives]
        long["available"] = np.stack(open_, axis=1).ravel()
    problems.raise_if_any()
    for name, sources in attributes.items():
        long[name] = _interleave([_column(table, sources[a]) for a in alternatives])
    for name in keep:
        long[name] = _column(table, name).take(repeat)
    return pd.DataFrame({name: _values(column) for name, column in long.items()})


def _values(column: pd.Series | np.ndarray) -> Any:
    """Values of a column without its index."""
    return column.array if isinstance(column, pd.Series) else column


def _column(table: nw.DataFrame[Any], source: Any) -> pd.Series:
    """Return a column (categories stay categories), or a number repeated in every row."""
    if not _is_column(source, table.columns):
        return pd.Series(np.full(len(table), source))
    column = table.get_column(source)
    native = column.to_native()
    if isinstance(native, pd.Series):
        values = native.reset_index(drop=True)
    elif column.dtype.is_integer() and column.is_null().any():
        values = pd.Series(pd.array(column.to_list(), dtype="Int64"))
    else:
        values = pd.Series(read_labels(column)).infer_objects()
    return values.astype("category") if isinstance(column.dtype, (nw.Categorical, nw.Enum)) else values


def _interleave(columns: Sequence[pd.Series]) -> pd.Series:
    """Interleave columns row by row; the result is categorical if any of them is."""
    n_rows = len(columns[0])
    order = np.arange(n_rows * len(columns)).reshape(len(columns), n_rows).T.ravel()
    if all(pd.api.types.is_integer_dtype(column.dtype) for column in columns) and len({c.dtype for c in columns}) > 1:
        # pandas would convert a mixture of signed and unsigned integers to floating point.
        columns = [column.astype(object) for column in columns]
    stacked = pd.concat(columns, ignore_index=True).take(order)
    is_category = any(isinstance(column.dtype, pd.CategoricalDtype) for column in columns)
    return stacked.astype("category") if is_category else stacked


def _read_situations(
    table: nw.DataFrame[Any], decision_maker: str, situation: str | None, problems: Problems
) -> pd.Series:
    """Read the situation of every row; without a column, situations are numbered within the decision maker."""
    person, people = factorize(read_labels(table.get_column(decision_maker)))
    _note_missing(decision_maker, person < 0, problems)
    if situation is None:
        return pd.Series(rank_within(person + 1, len(people) + 1))
    values = _column(table, situation)
    code, _ = factorize(read_labels(table.get_column(situation)))
    _note_missing(situation, code < 0, problems)
    repeated = pd.DataFrame({"person": person, "code": code}).duplicated().to_numpy() & (code >= 0) & (person >= 0)
    problems.add_if(
        repeated,
        f"{COUNT} of {TOTAL} rows repeat a pair ({decision_maker!r}, {situation!r}) (rows {PLACES}): a wide "
        "frame has one row per choice situation. Pass another column as situation, or None to number them.",
        np.flatnonzero(repeated).tolist(),
    )
    return values


def _read_chosen(table: nw.DataFrame[Any], choice: str, alternatives: Sequence[Any], problems: Problems) -> np.ndarray:
    """Read the choice indicators (rows, alternatives)."""
    codes, labels = factorize(read_labels(table.get_column(choice)))
    _note_missing(choice, codes < 0, problems)
    place = find_labels(pd.Series(list(alternatives)).to_numpy(), labels)
    # Missing values have code -1, which selects the appended -1.
    place_of = np.append(place, -1)[codes]
    chosen = place_of[:, None] == np.arange(len(alternatives))
    strange = (place_of < 0) & (codes >= 0)
    found = listed(labels[place < 0][:SHOWN])
    problems.add_if(
        strange,
        f"{COUNT} of {TOTAL} rows of {choice!r} name no alternative of {list(alternatives)} (rows {PLACES}): "
        f"{found}.{suggest(found[0], alternatives) if found else ''}",
        np.flatnonzero(strange).tolist(),
    )
    return chosen


def _read_available(table: nw.DataFrame[Any], column: str | None, problems: Problems) -> np.ndarray:
    if column is None:
        return np.ones(len(table), dtype=bool)
    flags = read_flags(table.get_column(column))
    if flags is None:
        problems.add(f"availability column {column!r} must hold 0/1 or False/True in every row.")
        return np.ones(len(table), dtype=bool)
    _note_missing(column, np.isnan(flags), problems)
    return flags == 1.0


def _note_missing(column: str, missing: np.ndarray, problems: Problems) -> None:
    places = np.flatnonzero(missing).tolist()
    problems.add_if(missing, f"column {column!r} has {COUNT} missing values (rows {PLACES}).", places)


def _check_sources(
    table: nw.DataFrame[Any],
    attributes: Mapping[str, Mapping[Any, Any]],
    availability: Mapping[Any, str],
    problems: Problems,
) -> list[Any]:
    """Return the alternatives; check that all attributes name them and that every source is a column or a number."""
    if not attributes:
        raise ChoiceDataError("attributes must name at least one attribute.")
    if not isinstance(attributes, Mapping) or not all(isinstance(each, Mapping) for each in attributes.values()):
        raise ChoiceDataError("attributes must be a mapping: {attribute: {alternative: column or number}}.")
    alternatives = list(next(iter(attributes.values())))
    if not alternatives:
        raise ChoiceDataError("attributes name no alternative: {attribute: {alternative: column or number}}.")
    if not isinstance(availability, Mapping):
        raise ChoiceDataError(f"availability must be a mapping, {{alternative: column}}; got {availability!r}.")
    for name, sources in attributes.items():
        if set(sources) != set(alternatives):
            problems.add(f"attribute {name!r} names alternatives {list(sources)}; the first names {alternatives}.")
        for source in sources.values():
            if not (_is_column(source, table.columns) or isinstance(source, (Real, Decimal, np.bool_))):
                hint = suggest(source, table.columns)
                problems.add(f"attribute {name!r}: the frame has no column {source!r}, nor is it a number.{hint}")
    for alternative in availability:
        if alternative not in alternatives:
            hint = suggest(alternative, alternatives)
            problems.add(f"availability names {alternative!r}, which is not among {alternatives}.{hint}")
    return alternatives


def _is_column(source: object, columns: Sequence[object]) -> bool:
    """Return whether a column has this name; 1.0 and True do not match the name 1."""
    return any(_kind(source) is _kind(name) and source == name for name in columns)


def _kind(name: object) -> type:
    if isinstance(name, Integral) and not isinstance(name, bool):
        return Integral
    return str if isinstance(name, str) else type(name)


def _check_names(roles: list[tuple[str, str]], keep: Sequence[str], there: set[str], problems: Problems) -> list[str]:
    """Record names that several columns of the long frame would share; return the further columns to keep.

    ``roles`` pairs the names of columns with their descriptions, for messages.
    """
    if isinstance(keep, str):
        raise ChoiceDataError(f"keep must be a list of column names; got the string {keep!r}: write [{keep!r}].")
    if not all(isinstance(name, Hashable) for name in keep):
        raise ChoiceDataError(f"keep must be a list of column names; got {keep!r}.")
    kept = [name for name in dict.fromkeys(keep) if name not in there]
    roles = [*roles, *((name, "a column to keep") for name in kept)]
    for name, count in Counter(name for name, _ in roles).items():
        if count > 1:
            what = " and ".join(role for other, role in roles if other == name)
            problems.add(
                f"the long frame would have {count} columns called {name!r}: {what}. Rename yours: "
                f"frame.rename(columns={{{name!r}: ...}}), or the attribute."
            )
    return kept


def _check_present(table: nw.DataFrame[Any], index: pd.Index, wanted: Sequence[str], problems: Problems) -> None:
    for name in dict.fromkeys(wanted):
        if name not in table.columns:
            level = name is not None and name in index.names
            hint = " It is a level of the index: pass frame.reset_index()." if level else ""
            problems.add(f"the frame has no column {name!r}.{hint or suggest(name, table.columns)}")
    if len(table) == 0:
        problems.add("the frame has no rows.")
