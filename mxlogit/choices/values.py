"""Values of one column as numbers, whatever library holds them; never labels or dates that merely look like numbers."""

from __future__ import annotations

import datetime as dt
import numbers
from decimal import Decimal
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

_LABELS = "Code it as numbers, or as dummies: 0/1 columns, one per value."
_TIMES = "Code it as numbers, such as seconds or days since a date."
# By the names of narwhals' types, some of which older versions lack.
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
_TIME_KINDS = (dt.date, dt.time, dt.timedelta, np.datetime64, np.timedelta64, type(pd.NaT))
_NUMBER_KINDS = (numbers.Real, np.bool_, Decimal, type(None), type(pd.NA))


class NotNumbersError(ValueError):
    """A column holds something else; the message is the end of a sentence, with a cure.

    Attributes
    ----------
    row : int or None
        The first row that is no number, where others are.
    """

    def __init__(self, what: str, advice: str = _LABELS, row: int | None = None) -> None:
        super().__init__(f"holds text or dates or other labels, not numbers ({what}). {advice}")
        self.row = row


def read_numbers(column: nw.Series[Any] | np.ndarray) -> np.ndarray:
    """Values as numbers (integers, floats or bool), missing ones as nan.

    Raises
    ------
    NotNumbersError
        If any value is text, a category, a date or anything else that is no real number.
    """
    if isinstance(column, nw.Series):
        kind = type(column.dtype).__name__
        # Where everything is missing, no type is known.
        if kind in _ADVICE and not column.is_null().all():
            raise NotNumbersError(*_ADVICE[kind])
        # numpy has no integers of 128 bits.
        column = (column.cast(nw.Float64) if kind in ("Int128", "UInt128") else column).to_numpy()
    if column.dtype.kind in "fiub":
        return column
    if column.dtype.kind != "O":
        raise NotNumbersError(f"its type is {column.dtype}", _TIMES if column.dtype.kind in "mM" else _LABELS)
    return _read_objects(column)


def read_flags(column: nw.Series[Any] | np.ndarray) -> np.ndarray | None:
    """Values of 0/1 or False/True as floats, missing ones as nan; None if there is anything else.

    A category of 0 and 1 has one meaning, so it is read.
    """
    values = column.to_numpy() if isinstance(column, nw.Series) else column
    try:
        flags = read_numbers(values).astype(np.float64)
    except NotNumbersError:
        return None
    return flags if np.isin(flags[~np.isnan(flags)], (0, 1)).all() else None


def _read_objects(values: np.ndarray) -> np.ndarray:
    """Numbers out of Python objects, every one of which must be a number or missing."""
    strange = {kind for kind in set(map(type, values)) if not _is_number(kind)}
    if strange:
        rows = np.flatnonzero([type(value) in strange for value in values])
        first = values[rows[0]]
        advice = _TIMES if isinstance(first, _TIME_KINDS) else _LABELS
        some = f"{len(rows)} of its {len(values)} values are not numbers, first {first!r}"
        raise NotNumbersError(some, advice, int(rows[0]))
    try:
        return np.array([np.nan if value is None or value is pd.NA else float(value) for value in values])
    except OverflowError:
        raise NotNumbersError("some are beyond double precision", "Rescale it.") from None


def _is_number(kind: type) -> bool:
    return issubclass(kind, _NUMBER_KINDS) and not issubclass(kind, _TIME_KINDS)
