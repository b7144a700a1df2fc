"""Reading single columns of a long frame, row by row, with every problem noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch

from mxlogit.choices.checks import Problems
from mxlogit.spec import Columns

SHOWN = 5
# Larger attributes overflow in single precision once multiplied.
_LARGEST = 1e15


@dataclass(frozen=True)
class RowKeys:
    """Keys of the rows as integers: person, situation (counted over all people), alternative, with their labels."""

    person: np.ndarray
    alternative: np.ndarray
    people: np.ndarray
    situation_of: np.ndarray
    situation_labels: np.ndarray
    alternatives: np.ndarray | None
    alternative_labels: np.ndarray

    @property
    def n_alternatives(self) -> int:
        """Length of the axis of alternatives."""
        return int(self.alternative.max()) + 1 if self.alternatives is None else len(self.alternatives)

    def in_order(self, available: np.ndarray) -> np.ndarray:
        """Rows of the frame that are available alternatives, by person, situation and alternative."""
        kept = np.flatnonzero(available)
        key = self.situation_of[kept].astype(np.int64) * self.n_alternatives + self.alternative[kept]
        return kept if bool((np.diff(key) > 0).all()) else kept[np.argsort(key, kind="stable")]

    def place(self, situation: int) -> str:
        """Words for a choice situation (global number)."""
        row = int(np.argmax(self.situation_of == situation))
        return f"person {self.people[self.person[row]]}: situation {self.situation_labels[row]}"

    def row_place(self, row: int) -> str:
        """Words for a row."""
        return (
            f"person {self.people[self.person[row]]}, situation {self.situation_labels[row]}, "
            f"{self.alternative_labels[row]!r}"
        )


def _numeric(values: np.ndarray) -> np.ndarray | None:
    """Values as floats with missing as nan; None when they are not numbers."""
    if values.dtype.kind in "fiub":
        return values
    if values.dtype.kind != "O" or any(isinstance(v, str) for v in values[:1000]):
        return None
    try:
        return pd.to_numeric(pd.Series(values)).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        return None


def read_availability(table: nw.DataFrame[Any], column: str | None, rows: RowKeys, problems: Problems) -> np.ndarray:
    """Availability of every row (bool)."""
    if column is None:
        return np.ones(len(rows.person), dtype=bool)
    values = _numeric(table[column].to_numpy())
    if values is None or not np.isin(values, (0, 1)).all():
        problems.add(f"availability column {column!r} must hold 0/1 or False/True in every row.")
        return np.ones(len(rows.person), dtype=bool)
    available = values.astype(bool)
    count = np.bincount(rows.situation_of, weights=available)
    empty = count == 0
    places = [rows.place(s) for s in np.flatnonzero(empty)[:SHOWN]]
    problems.add_if(empty, "{count} of {total} choice situations have no available alternative ({places}).", places)
    return available


def read_choice(
    values: np.ndarray, columns: Columns, rows: RowKeys, available: np.ndarray, problems: Problems
) -> np.ndarray:
    """Whether each row is the chosen one (bool)."""
    if len(values) != len(rows.person):
        problems.add(f"y has {len(values)} values for {len(rows.person)} rows of X.")
        return np.zeros(len(rows.person), dtype=bool)
    numbers = _numeric(values)
    if numbers is None or not np.isin(numbers, (0, 1)).all():
        problems.add(
            f"the choice column {columns.choice!r} must hold 0/1 or False/True, one row of each situation being 1. "
            f"If it names the chosen alternative, write frame[{columns.choice!r}] = "
            f"frame[{columns.choice!r}] == frame[{columns.alternative!r}]; one row per situation needs wide_to_long."
        )
        return np.zeros(len(rows.person), dtype=bool)
    chosen = numbers.astype(bool)
    count = np.bincount(rows.situation_of, weights=chosen)
    advice = (
        "Exactly one row of each situation must be chosen. Did a row-wise split cut situations apart? "
        f"Split by decision maker: GroupKFold with groups=frame[{columns.decision_maker!r}]."
    )
    for wrong, words in ((count == 0, "no chosen alternative"), (count > 1, "more than one chosen alternative")):
        places = [rows.place(s) for s in np.flatnonzero(wrong)[:SHOWN]]
        problems.add_if(
            wrong, f"{{count}} of {{total}} choice situations have {words} ({{places}}).\n  {advice}", places
        )
    closed = chosen & ~available
    places = [rows.row_place(row) for row in np.flatnonzero(closed)[:SHOWN]]
    problems.add_if(
        closed,
        "in {count} choice situations the chosen alternative is marked unavailable ({places}). Correct column "
        f"{columns.availability!r}, or drop these situations.",
        places,
    )
    return chosen


def read_weights(
    table: nw.DataFrame[Any], column: str | None, given: Any, rows: RowKeys, problems: Problems
) -> np.ndarray:
    """One weight per person, from a column or from one value per row."""
    ones = np.ones(len(rows.people))
    if column is None and given is None:
        return ones
    values = _numeric(np.asarray(given) if column is None or given is not None else table[column].to_numpy())
    if values is None or len(values) != len(rows.person):
        problems.add("weights must be numbers, one per row of the frame.")
        return ones
    weight = np.zeros(len(rows.people))
    weight[rows.person] = values
    mixed = values != weight[rows.person]
    places = [f"person {rows.people[p]}" for p in dict.fromkeys(rows.person[mixed].tolist())]
    problems.add_if(
        mixed & np.isfinite(values),
        "weights differ within {count} rows' decision makers ({places}). A weight belongs to a person: the panel "
        "is the unit of the likelihood.",
        places,
    )
    bad = ~(np.isfinite(values) & (values > 0))
    problems.add_if(
        bad,
        "{count} weights are not positive and finite ({places}).",
        [rows.row_place(row) for row in np.flatnonzero(bad)[:SHOWN]],
    )
    return weight


def read_clusters(
    table: nw.DataFrame[Any], column: str | None, rows: RowKeys, problems: Problems
) -> torch.Tensor | None:
    """Cluster 0, 1, ... of every person."""
    if column is None:
        return None
    codes, _ = pd.factorize(table[column].to_numpy())
    missing = codes < 0
    problems.add_if(
        missing,
        f"cluster column {column!r} has {{count}} missing values ({{places}}).",
        [rows.row_place(row) for row in np.flatnonzero(missing)[:SHOWN]],
    )
    cluster = np.zeros(len(rows.people), dtype=np.int64)
    cluster[rows.person] = codes
    mixed = codes != cluster[rows.person]
    places = [f"person {rows.people[p]}" for p in dict.fromkeys(rows.person[mixed].tolist())]
    problems.add_if(
        mixed,
        f"cluster column {column!r} differs within {{count}} rows' decision makers ({{places}}). A person belongs to "
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
    """Attributes (r, k) of the available alternatives in order, float64: single precision rounds dates to minutes."""
    order = rows.in_order(available)
    attributes = torch.zeros(len(order), len(names), dtype=torch.float64)
    for k, name in enumerate(names):
        values = _numeric(table[name].to_numpy())
        if values is None:
            problems.add(f"column {name!r} holds text or dates, not numbers. Code it as numbers or as 0/1 columns.")
            continue
        _check_finite(name, values, rows, available, problems)
        attributes.numpy()[:, k] = values[order]
    return attributes


def _check_finite(name: str, values: np.ndarray, rows: RowKeys, available: np.ndarray, problems: Problems) -> None:
    if values.dtype.kind != "f":
        return
    largest = np.abs(np.where(available & np.isfinite(values), values, 0.0)).max(initial=0.0)
    if largest > _LARGEST:
        problems.add(f"column {name!r} has values up to {largest:.0e}; rescale it (to below {_LARGEST:.0e}).")
    missing, infinite = np.isnan(values) & available, np.isinf(values) & available
    if missing.any() or infinite.any():
        first = rows.row_place(int(np.argmax(missing | infinite)))
        problems.add(
            f"column {name!r} has {missing.sum()} missing and {infinite.sum()} infinite values in rows of available "
            f"alternatives (first: {first}). Fill or drop them; values of unavailable alternatives are ignored."
        )
