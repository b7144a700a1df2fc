"""Conversion of one column of any library to numbers; labels and dates stored as numbers are rejected."""

from __future__ import annotations

import datetime as dt
import numbers
from decimal import Decimal
from fractions import Fraction
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

# Bound up to which all integers are exact in double precision.
LARGEST_WHOLE = 2.0**53
# Size of a double precision number, in bytes.
_DOUBLE = 8
# Remedies, the last sentence of messages.
_LABELS = "Code it as numbers, or as dummies: 0/1 columns, one per value."
_TIMES = "Code it as numbers, such as seconds or days since a date."
# Keyed by the names of narwhals' types, some of which older versions lack.
_ADVICE = {
    "Categorical": ("a category", _LABELS),
    "Enum": ("a category", _LABELS),
    "String": ("text", _LABELS),
    "Binary": ("bytes", _LABELS),
    "Date": ("dates", _TIMES),
    "Datetime": ("dates", _TIMES),
    "Time": ("times of day", _TIMES),
    "Duration": ("lengths of time", _TIMES),
    "List": ("lists", _LABELS),
    "Array": ("arrays", _LABELS),
    "Struct": ("structures", _LABELS),
}
# Types of Python objects that are times, and types that are numbers or missing.
_TIME_KINDS = (dt.date, dt.time, dt.timedelta, np.datetime64, np.timedelta64, type(pd.NaT))
_NUMBER_KINDS = (numbers.Real, np.bool_, Decimal, type(None), type(pd.NA))


class NotNumbersError(ValueError):
    """Error for a column that does not hold numbers; its message ends a sentence and names the remedy.

    Attributes
    ----------
    row : int or None
        Index of the first row that is not a number; None if the whole column is of another type.
    """

    def __init__(self, what: str, advice: str = _LABELS, row: int | None = None) -> None:
        super().__init__(f"holds text or dates or other labels, not numbers ({what}). {advice}")
        self.row = row


def read_numbers(column: nw.Series[Any] | np.ndarray) -> np.ndarray:
    """Read values as numbers (integers, floats or bool), missing ones as nan.

    If double precision would round some, the result is an array of Python integers and fractions (see `as_floats`).

    Raises
    ------
    NotNumbersError
        If any value is text, a category, a date or anything else that is not a real number.
    """
    if isinstance(column, nw.Series):
        kind = type(column.dtype).__name__
        # A column without any value has no meaningful type.
        if kind in _ADVICE and not column.is_null().all():
            raise NotNumbersError(*_ADVICE[kind])
        column = _as_array(column, kind)
    if column.dtype.kind == "f" and column.dtype.itemsize > _DOUBLE:
        return _read_objects(column.astype(object))
    if column.dtype.kind in "fiub":
        return column
    if column.dtype.kind != "O":
        raise NotNumbersError(f"its type is {column.dtype}", _TIMES if column.dtype.kind in "mM" else _LABELS)
    return _read_objects(column)


def read_flags(column: nw.Series[Any] | np.ndarray) -> np.ndarray | None:
    """Read 0/1 or False/True as floats, missing values as nan; None if there are other values.

    Categories 0 and 1 are unambiguous, so they are accepted.
    """
    values = _as_array(column, type(column.dtype).__name__) if isinstance(column, nw.Series) else column
    try:
        flags = read_numbers(values).astype(np.float64)
    except NotNumbersError:
        return None
    return flags if np.isin(flags[~np.isnan(flags)], (0, 1)).all() else None


def _read_objects(values: np.ndarray) -> np.ndarray:
    """Read numbers from Python objects, each of which must be a number or missing."""
    strange = {kind for kind in set(map(type, values)) if not _is_number(kind)}
    if strange:
        rows = np.flatnonzero([type(value) in strange for value in values])
        first = values[rows[0]]
        advice = _TIMES if isinstance(first, _TIME_KINDS) else _LABELS
        some = f"{len(rows)} of its {len(values)} values are not numbers, first {first!r}"
        raise NotNumbersError(some, advice, int(rows[0]))
    try:
        rounded = np.array([np.nan if value is None or value is pd.NA else float(value) for value in values])
    except (OverflowError, ValueError):
        raise NotNumbersError("some are beyond double precision", "Rescale it.") from None
    if not _is_beyond_double(rounded):
        return rounded
    exact = np.empty(len(values), dtype=object)
    exact[:] = [_exact(value) if np.isfinite(near) else near for value, near in zip(values, rounded, strict=True)]
    return exact


def _as_array(column: nw.Series[Any], kind: str) -> np.ndarray:
    """Convert a column to numpy as its library does, but without rounding integers and decimals."""
    if kind in ("Int128", "UInt128", "Decimal"):
        return np.array(column.to_list(), dtype=object)
    if not column.dtype.is_integer():
        return column.to_numpy()
    missing = column.is_null().to_numpy().astype(bool)
    if not missing.any():
        return column.to_numpy()
    values = column.fill_null(0).to_numpy()
    values = values.astype(object if _is_beyond_double(values.astype(np.float64)) else np.float64)
    values[missing] = np.nan
    return values


def _exact(value: Any) -> int | Fraction:
    if isinstance(value, numbers.Integral):
        return int(value)
    return Fraction(*value.as_integer_ratio())


def _is_beyond_double(rounded: np.ndarray) -> bool:
    return bool((np.abs(rounded[np.isfinite(rounded)]) > LARGEST_WHOLE).any())


def as_floats(values: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Convert to double precision; if it would round, subtract ``origins`` (same shape) first.

    Only differences within a choice situation matter, so each situation has an origin of its own.
    """
    if values.dtype.kind == "O":
        return (values - origins).astype(np.float64)
    if values.dtype.kind not in "iu" or not _is_beyond_double(values.astype(np.float64)):
        return values.astype(np.float64, copy=False)
    # Arithmetic modulo 2^64, which is also correct for differences of unsigned integers.
    return (values.astype(np.int64) - origins.astype(np.int64)).astype(np.float64)


def _is_number(kind: type) -> bool:
    return issubclass(kind, _NUMBER_KINDS) and not issubclass(kind, _TIME_KINDS)
