"""Reading of single columns of a long frame; every problem is recorded in a `Problems` list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch

from mxlogit.choices.checks import COUNT, LARGEST, LARGEST_DIFFERENCE, PLACES, SHOWN, TOTAL, Problems
from mxlogit.choices.labels import factorize, listed, read_labels
from mxlogit.choices.values import NotNumbersError, as_floats, read_flags, read_numbers
from mxlogit.spec import Columns


@dataclass(frozen=True)
class RowKeys:
    """Integer codes of the rows' person, situation (numbered over all people) and alternative, with their labels."""

    person: np.ndarray
    alternative: np.ndarray
    people: np.ndarray
    situation_of: np.ndarray
    situation_labels: np.ndarray
    alternatives: np.ndarray | None
    alternative_labels: np.ndarray

    @property
    def n_alternatives(self) -> int:
        """Length of the alternative axis."""
        return int(self.alternative.max()) + 1 if self.alternatives is None else len(self.alternatives)

    def in_order(self, available: np.ndarray) -> np.ndarray:
        """Indices of the rows of available alternatives, sorted by person, situation and alternative."""
        kept = np.flatnonzero(available)
        key = self.situation_of[kept].astype(np.int64) * self.n_alternatives + self.alternative[kept]
        return kept if bool((np.diff(key) > 0).all()) else kept[np.argsort(key, kind="stable")]

    def place(self, situation: int) -> str:
        """Describe a choice situation (number over all people) for a message."""
        row = int(np.argmax(self.situation_of == situation))
        return f"person {self.people[self.person[row]]}: situation {self.situation_labels[row]}"

    def row_place(self, row: int) -> str:
        """Describe a row for a message."""
        (alternative,) = listed(self.alternative_labels[row : row + 1])
        return f"person {self.people[self.person[row]]}, situation {self.situation_labels[row]}, {alternative!r}"


def read_availability(table: nw.DataFrame[Any], column: str | None, rows: RowKeys, problems: Problems) -> np.ndarray:
    """Read the availability of every row (bool)."""
    if column is None:
        return np.ones(len(rows.person), dtype=bool)
    values = read_flags(table.get_column(column))
    if values is None:
        problems.add(f"availability column {column!r} must hold 0/1 or False/True in every row.")
    if values is None or _note_missing(f"availability column {column!r}", values, rows, problems):
        return np.ones(len(rows.person), dtype=bool)
    available = values.astype(bool)
    count = np.bincount(rows.situation_of, weights=available)
    empty = count == 0
    places = [rows.place(s) for s in np.flatnonzero(empty)[:SHOWN]]
    problems.add_if(empty, f"{COUNT} of {TOTAL} choice situations have no available alternative ({PLACES}).", places)
    return available


def _note_missing(what: str, values: np.ndarray, rows: RowKeys, problems: Problems) -> bool:
    """Record missing values as a problem; return whether there are any."""
    missing = np.isnan(values)
    places = [rows.row_place(row) for row in np.flatnonzero(missing)[:SHOWN]]
    problems.add_if(missing, f"{what} has {COUNT} missing values ({PLACES}). Fill or drop them.", places)
    return bool(missing.any())


def read_choice(
    values: nw.Series[Any] | np.ndarray, columns: Columns, rows: RowKeys, available: np.ndarray, problems: Problems
) -> np.ndarray:
    """Read the choice indicator of every row (bool)."""
    nothing = np.zeros(len(rows.person), dtype=bool)
    if len(values) != len(rows.person):
        problems.add(f"y has {len(values)} values for {len(rows.person)} rows of X.")
        return nothing
    flags = read_flags(values)
    if flags is None:
        problems.add(
            f"the choice column {columns.choice!r} must hold 0/1 or False/True, one row of each situation being 1. "
            f"If it names the chosen alternative, write frame[{columns.choice!r}] = "
            f"frame[{columns.choice!r}] == frame[{columns.alternative!r}]; one row per situation needs wide_to_long."
        )
    if flags is None or _note_missing(f"the choice column {columns.choice!r}", flags, rows, problems):
        return nothing
    chosen = flags.astype(bool)
    count = np.bincount(rows.situation_of, weights=chosen)
    advice = (
        "Exactly one row of each situation must be chosen. Did a row-wise split cut situations apart? "
        f"Split by decision maker: GroupKFold with groups=frame[{columns.decision_maker!r}]."
    )
    for wrong, words in ((count == 0, "no chosen alternative"), (count > 1, "more than one chosen alternative")):
        places = [rows.place(s) for s in np.flatnonzero(wrong)[:SHOWN]]
        problems.add_if(wrong, f"{COUNT} of {TOTAL} choice situations have {words} ({PLACES}).\n  {advice}", places)
    unavailable = chosen & ~available
    places = [rows.row_place(row) for row in np.flatnonzero(unavailable)[:SHOWN]]
    problems.add_if(
        unavailable,
        f"in {COUNT} choice situations the chosen alternative is marked unavailable ({PLACES}). Correct column "
        f"{columns.availability!r}, or drop these situations.",
        places,
    )
    return chosen


def read_weights(
    table: nw.DataFrame[Any], column: str | None, given: Any, rows: RowKeys, problems: Problems
) -> np.ndarray:
    """Read one weight per person, from a column or from a vector with one value per row."""
    ones = np.ones(len(rows.people))
    if column is None and given is None:
        return ones
    try:
        values = read_numbers(given if column is None else table.get_column(column)).astype(np.float64)
    except NotNumbersError as trouble:
        problems.add(f"the weights must be numbers, one per row of the frame: {column or 'sample_weight'} {trouble}")
        return ones
    if len(values) != len(rows.person):
        problems.add(f"sample_weight has {len(values)} values for {len(rows.person)} rows of X.")
        return ones
    weight = np.zeros(len(rows.people))
    weight[rows.person] = values
    mixed = values != weight[rows.person]
    places = [f"person {rows.people[p]}" for p in dict.fromkeys(rows.person[mixed].tolist())]
    problems.add_if(
        mixed & np.isfinite(values),
        f"weights differ within {COUNT} rows' decision makers ({PLACES}). A weight belongs to a person: the panel "
        "is the unit of the likelihood.",
        places,
    )
    bad = ~(np.isfinite(values) & (values > 0))
    problems.add_if(
        bad,
        f"{COUNT} weights are not positive and finite ({PLACES}). A weight is a number of decision makers; drop "
        "people of weight zero.",
        [rows.row_place(row) for row in np.flatnonzero(bad)[:SHOWN]],
    )
    return weight


def read_clusters(
    table: nw.DataFrame[Any], column: str | None, rows: RowKeys, problems: Problems
) -> torch.Tensor | None:
    """Read the cluster 0, 1, ... of every person."""
    if column is None:
        return None
    if table.get_column(column).dtype.is_nested():
        problems.add(f"cluster column {column!r} holds {table.get_column(column).dtype} values, not labels.")
        return None
    codes, _ = factorize(read_labels(table.get_column(column)))
    missing = codes < 0
    problems.add_if(
        missing,
        f"cluster column {column!r} has {COUNT} missing values ({PLACES}).",
        [rows.row_place(row) for row in np.flatnonzero(missing)[:SHOWN]],
    )
    cluster = np.zeros(len(rows.people), dtype=np.int64)
    cluster[rows.person] = codes
    mixed = codes != cluster[rows.person]
    places = [f"person {rows.people[p]}" for p in dict.fromkeys(rows.person[mixed].tolist())]
    problems.add_if(
        mixed,
        f"cluster column {column!r} differs within {COUNT} rows' decision makers ({PLACES}). A person belongs to "
        "one cluster: the panel is the unit of the likelihood.",
        places,
    )
    return torch.from_numpy(cluster)


def read_attributes(
    table: nw.DataFrame[Any],
    names: Sequence[str],
    rows: RowKeys,
    available: np.ndarray,
    problems: Problems,
) -> torch.Tensor:
    """Read the attributes (r, k) of the available alternatives, sorted as by `RowKeys.in_order`.

    They are float64: single precision would round dates to minutes.
    """
    order = rows.in_order(available)
    attributes = torch.zeros(len(order), len(names), dtype=torch.float64)
    # Index of the first row of each row's situation.
    begins = np.diff(rows.situation_of[order], prepend=-1) > 0
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    for k, name in enumerate(names):
        try:
            values = read_numbers(table.get_column(name))
        except NotNumbersError as trouble:
            where = "" if trouble.row is None else f" (first: {rows.row_place(trouble.row)})"
            problems.add(f"column {name!r} {trouble}{where}")
            continue
        _check_finite(name, values.astype(np.float64), rows, available, problems)
        attributes.numpy()[:, k] = as_floats(values[order], values[order[first]])
    return attributes


def _check_finite(name: str, values: np.ndarray, rows: RowKeys, available: np.ndarray, problems: Problems) -> None:
    read = values[available & np.isfinite(values)]
    largest = max(-float(read.min(initial=0)), float(read.max(initial=0)))
    if largest > LARGEST:
        problems.add(f"column {name!r} has values up to {largest:.0e}; rescale it (to below {LARGEST:.0e}).")
    elif largest > LARGEST_DIFFERENCE:
        _check_differences(name, np.where(available & np.isfinite(values), values, np.nan), rows, problems)
    missing, infinite = np.isnan(values) & available, np.isinf(values) & available
    if missing.any() or infinite.any():
        first = rows.row_place(int(np.argmax(missing | infinite)))
        problems.add(
            f"column {name!r} has {missing.sum()} missing and {infinite.sum()} infinite values in rows of available "
            f"alternatives (first: {first}). Fill or drop them; values of unavailable alternatives are ignored."
        )


def _check_differences(name: str, values: np.ndarray, rows: RowKeys, problems: Problems) -> None:
    """Record a problem if large values differ too much within a choice situation."""
    groups = pd.Series(values).groupby(rows.situation_of)
    difference = float((groups.max() - groups.min()).max())
    if difference > LARGEST_DIFFERENCE:
        problems.add(
            f"column {name!r} differs by up to {difference:.0e} within a choice situation; rescale it (differences "
            f"to below {LARGEST_DIFFERENCE:.0e})."
        )
