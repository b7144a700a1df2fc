"""Frames and vectors of all supported libraries in one form, before values are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from mxlogit.choices.checks import COUNT, PLACES, Problems
from mxlogit.errors import ChoiceDataError, suggest
from mxlogit.spec import CONSTANT_PREFIX, Columns


def as_narwhals(frame: Any) -> nw.DataFrame[Any]:
    """Convert a frame to a narwhals frame.

    Raises
    ------
    ChoiceDataError
        If it is not an eager frame of a supported library, or its column names are repeated or have several levels.
    """
    if isinstance(frame, pd.DataFrame) and frame.columns.nlevels > 1:
        raise ChoiceDataError(
            f"the columns of the frame have {frame.columns.nlevels} levels (a MultiIndex); give them single names: "
            "frame.columns = ['_'.join(map(str, names)) for names in frame.columns]."
        )
    if nw.dependencies.is_into_dataframe(frame):
        names = getattr(frame, "column_names", None)
        _check_unique(frame.columns if names is None else names)
    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError:
        lazy = ": call its collect() first" if hasattr(frame, "collect") else ""
        raise ChoiceDataError(
            f"expected a long pandas, polars or pyarrow frame (or a ChoiceData); got {type(frame).__name__}{lazy}."
        ) from None


def _check_unique(names: Sequence[object]) -> None:
    repeated = sorted(str(name) for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ChoiceDataError(f"the frame has more than one column called {repeated}; rename or drop the copies.")


def index_of(frame: Any, n_rows: int) -> pd.Index:
    """Index of a pandas frame; 0, 1, ... for frames without an index."""
    return frame.index if isinstance(frame, pd.DataFrame) else pd.RangeIndex(n_rows)


def as_vector(name: str, values: Any, index: pd.Index) -> nw.Series[Any] | np.ndarray | None:
    """Convert ``values`` to a vector with one value per row; a single column is flattened.

    Raises
    ------
    ChoiceDataError
        If it is not a vector, or its index has the labels of ``index`` in another order.
    """
    if values is None:
        return None
    if isinstance(values, (pd.Series, pd.DataFrame)):
        _check_order(name, values.index, index)
    series = nw.from_native(values, series_only=True, pass_through=True)
    if isinstance(series, nw.Series):
        return series
    if np.ma.is_masked(values):
        raise ChoiceDataError(f"{name} is a masked array, and {np.ma.count_masked(values)} values are masked: fill it.")
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ChoiceDataError(f"{name} must hold one value per row; got an array of shape {array.shape}.")
    return array


def _check_order(name: str, own: pd.Index, rows: pd.Index) -> None:
    """Reject values whose index has the labels of the rows in another order."""
    if len(own) == len(rows) and not own.equals(rows) and Counter(own) == Counter(rows):
        raise ChoiceDataError(
            f"{name} has the index of X in another order; values are matched to rows by position: pass "
            f"{name}.loc[X.index]."
        )


def note_missing_columns(
    table: nw.DataFrame[Any], index: pd.Index, columns: Columns, wanted: Sequence[str], problems: Problems
) -> None:
    """Record the wanted columns that a frame lacks, or that it has no rows, as problems."""
    for name in [name for name in dict.fromkeys(wanted) if name not in table.columns]:
        hint = suggest(name, table.columns)
        if name is not None and name in index.names:
            hint = " It is a level of the index: pass frame.reset_index()."
        elif name.startswith(CONSTANT_PREFIX):
            hint = f" Constants of alternatives are made with constants=True.{hint}"
        role = columns.role(name)
        purpose = "" if role is None else f" ({role})"
        problems.add(f"the frame has no column {name!r}{purpose}; it has {list(table.columns)[:20]}.{hint}")
    if len(table) == 0:
        problems.add("the frame has no rows.")


def note_missing_keys(table: nw.DataFrame[Any], names: Sequence[str], problems: Problems) -> None:
    """Record missing keys, and keys that are not hashable, as problems."""
    for name in dict.fromkeys(names):
        keys = table.get_column(name)
        missing = keys.is_null().to_numpy().astype(bool)
        if keys.dtype.is_float() or isinstance(keys.dtype, nw.Object):
            # Missing values (NaN, NaT) do not equal themselves.
            values = keys.to_numpy()
            missing = missing | (values != values).astype(bool)
        problems.add_if(
            missing,
            f"column {name!r} has {COUNT} missing values (rows {PLACES}); every row needs its keys.",
            np.flatnonzero(missing).tolist(),
        )
        kinds = set(map(type, keys.to_numpy())) if isinstance(keys.dtype, nw.Object) else set()
        if keys.dtype.is_nested() or any(kind.__hash__ is None for kind in kinds):
            problems.add(f"column {name!r} holds {keys.dtype} values; keys must be numbers, text or dates.")
