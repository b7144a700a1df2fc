"""Integer codes of the labels of decision makers, situations and alternatives, and look-up of labels."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from mxlogit.errors import ChoiceDataError

# Mean number of rows per label from which labels count as recurring alternatives.
_FEWEST_ROWS = 100
# Number of labels up to which every label gets a position of its own, whatever the size of the choice sets.
_FEW_LABELS = 32


def factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer codes and sorted labels; labels that cannot be compared are in order of appearance."""
    try:
        codes, labels = pd.factorize(values, sort=True)
    except TypeError:
        try:
            codes, labels = pd.factorize(values)
        except TypeError as trouble:
            raise ChoiceDataError(f"labels must be numbers, text or dates ({trouble}).") from None
    return codes, np.asarray(labels)


def read_labels(column: nw.Series[Any]) -> np.ndarray:
    """Read the labels (n,) of a column; dates keep their time zone and times their nanoseconds."""
    zone = getattr(column.dtype, "time_zone", None)
    if zone is not None:
        instants = pd.DatetimeIndex(column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy())
        return instants.tz_localize("UTC").tz_convert(zone).to_numpy(dtype=object)
    if column.dtype == nw.Time:
        # Times of the Python standard library have no nanoseconds.
        nanoseconds = column.cast(nw.Int64).to_numpy()
        return nanoseconds if (nanoseconds % 1_000).any() else np.array(column.to_list(), dtype=object)
    if column.dtype in (nw.Int128, nw.UInt128):
        return np.array(column.to_list(), dtype=object)
    return column.to_numpy()


def listed(labels: np.ndarray) -> list[Any]:
    """List labels (n,) as Python objects; `ndarray.tolist` would turn dates in nanoseconds into integers."""
    return pd.Index(labels, tupleize_cols=False).tolist()


def rank_within(groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Rank 0, 1, ... of every element within its group, in order of appearance."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=n_groups)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank


def labels_are_few(n_labels: int, largest: int) -> bool:
    """Return whether every label can have a position of its own, given choice sets of up to ``largest`` rows."""
    return n_labels <= max(_FEW_LABELS, 2 * largest)


def labels_recur(n_labels: int, n_rows: int, n_people: int, largest: int) -> bool:
    """Return whether labels name recurring alternatives, rather than number the rows or the offers to one person."""
    return labels_are_few(n_labels, largest) or n_labels <= max(n_people, n_rows // _FEWEST_ROWS)


def find_labels(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of the labels ``wanted`` in ``known``, -1 if absent; dates compare equal in any unit of time."""
    index = pd.Index(known, tupleize_cols=False)
    places: np.ndarray = index.get_indexer(pd.Index(wanted, tupleize_cols=False))
    return places


def explain_kinds(known: np.ndarray, wanted: np.ndarray) -> str:
    """Sentence for labels that differ from known ones in their type only (text and numbers), or an empty string."""
    spelled = {str(label): label for label in listed(known)}
    for label in listed(wanted):
        same = spelled.get(str(label))
        if same is not None and type(same) is not type(label):
            return (
                f" The labels of the fit are of another type: {same!r} ({type(same).__name__}), not {label!r} "
                f"({type(label).__name__}). Convert the column."
            )
    return ""
