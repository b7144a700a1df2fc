"""Labels of decision makers, situations and alternatives as whole numbers, and found again."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from mxlogit.errors import ChoiceDataError

# Labels that are offered in fewer rows than this, on average, say nothing of an alternative of their own, ...
_FEWEST_ROWS = 100
# ... unless they are few: fewer than people, or than those of two of the largest choice sets.
_FEW_LABELS = 32


def factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer codes and sorted labels; order of appearance where labels cannot be compared."""
    try:
        codes, labels = pd.factorize(values, sort=True)
    except TypeError:
        try:
            codes, labels = pd.factorize(values)
        except TypeError as trouble:
            raise ChoiceDataError(f"labels must be numbers, text or dates ({trouble}).") from None
    return codes, np.asarray(labels)


def read_labels(column: nw.Series[Any]) -> np.ndarray:
    """Read the labels (n,) of a column; dates with a time zone keep it, and times their nanoseconds."""
    zone = getattr(column.dtype, "time_zone", None)
    if zone is not None:
        instants = pd.DatetimeIndex(column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy())
        return instants.tz_localize("UTC").tz_convert(zone).to_numpy(dtype=object)
    if column.dtype == nw.Time:
        # Python's own have no nanoseconds.
        nanoseconds = column.cast(nw.Int64).to_numpy()
        return nanoseconds if (nanoseconds % 1_000).any() else np.array(column.to_list(), dtype=object)
    if column.dtype in (nw.Int128, nw.UInt128):
        return np.array(column.to_list(), dtype=object)
    return column.to_numpy()


def listed(labels: np.ndarray) -> list[Any]:
    """List labels (n,) as Python's own: also dates in nanoseconds, which arrays list as whole numbers."""
    return pd.Index(labels, tupleize_cols=False).tolist()


def rank_within(groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Rank 0, 1, ... of every element within its group, in order of appearance."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=n_groups)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank


def are_few(n_labels: int, largest: int) -> bool:
    """Whether every alternative can have a place of its own in choice sets of up to ``largest``."""
    return n_labels <= max(_FEW_LABELS, 2 * largest)


def do_recur(n_labels: int, n_rows: int, n_people: int, largest: int) -> bool:
    """Whether labels name alternatives that recur, rather than number the rows or the offers to one person."""
    return are_few(n_labels, largest) or n_labels <= max(n_people, n_rows // _FEWEST_ROWS)


def find_labels(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of wanted labels among those known, -1 where there is none; dates in any unit of time are the same."""
    index = pd.Index(known, tupleize_cols=False)
    places: np.ndarray = index.get_indexer(pd.Index(wanted, tupleize_cols=False))
    return places


def explain_kinds(known: np.ndarray, wanted: np.ndarray) -> str:
    """Say that labels are the same but for their type (text and numbers), or nothing."""
    spelled = {str(label): label for label in listed(known)}
    for label in listed(wanted):
        same = spelled.get(str(label))
        if same is not None and type(same) is not type(label):
            return (
                f" The labels of the fit are of another type: {same!r} ({type(same).__name__}), not {label!r} "
                f"({type(label).__name__}). Convert the column."
            )
    return ""
