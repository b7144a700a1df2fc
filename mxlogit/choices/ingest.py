"""From a long frame to `ChoiceData`: the only place where frames become tensors.

A long frame has one row per decision maker, choice situation and alternative. Any eager frame that
narwhals knows (pandas, polars, pyarrow) is read column by column; it is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch

from mxlogit.choices.checks import Problems
from mxlogit.choices.columns import (
    SHOWN,
    RowKeys,
    read_attributes,
    read_availability,
    read_choice,
    read_clusters,
    read_weights,
)
from mxlogit.choices.data import ChoiceData
from mxlogit.choices.rows import ChoiceRows
from mxlogit.errors import ChoiceDataError, suggest
from mxlogit.spec import CONSTANT_PREFIX, Columns


@dataclass(frozen=True)
class FrameChoices:
    """Choice data read from a frame, with the place of every row.

    Attributes
    ----------
    data : ChoiceData
    index : pandas.Index
        Index of the frame (0, 1, ... for frames without one).
    person, situation : ndarray of int, shape (rows,)
        Decision maker and choice situation (counted over all of them) of every row.
    place : ndarray of int, shape (rows,)
        Place of every row among the rows of the data; -1 where the alternative is not available.
    situation_labels, alternative_labels : ndarray, shape (rows,)
        What the situation and alternative columns say in every row.
    """

    data: ChoiceData
    index: pd.Index
    person: np.ndarray
    situation: np.ndarray
    place: np.ndarray
    situation_labels: np.ndarray
    alternative_labels: np.ndarray

    def to(self, device: torch.device) -> FrameChoices:
        """Return the same with its tensors on ``device``."""
        return replace(self, data=self.data.to(device=device))


def as_narwhals(frame: Any) -> nw.DataFrame[Any]:
    """Return a frame in narwhals' form.

    Raises
    ------
    ChoiceDataError
        If it is not an eager frame of a known kind.
    """
    if isinstance(frame, pd.DataFrame) and not frame.columns.is_unique:
        repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
        raise ChoiceDataError(f"the frame has more than one column called {repeated}; rename or drop the copies.")
    try:
        return nw.from_native(frame, eager_only=True)
    except TypeError:
        raise ChoiceDataError(
            f"expected a long pandas, polars or pyarrow frame (or a ChoiceData); got {type(frame).__name__}."
        ) from None


def constant_labels(alternatives: np.ndarray, base: object) -> list[str]:
    """Labels of the alternative-specific constants of all alternatives but the base.

    Raises
    ------
    ChoiceDataError
        If the base is not one of the alternatives.
    """
    labels = list(alternatives)
    if base is None:
        base = labels[0]
    if base not in labels:
        raise ChoiceDataError(
            f"base_alternative {base!r} is not among the alternatives {labels[:10]}."
            f"{suggest(str(base), [str(label) for label in labels])}"
        )
    return [f"{CONSTANT_PREFIX}{label}" for label in labels if label != base]


def read_frame(
    frame: Any,
    columns: Columns,
    names: Sequence[str],
    *,
    constants: bool = False,
    base_alternative: object = None,
    alternatives: np.ndarray | None = None,
    need_choice: bool = True,
    chosen: Any = None,
    weights: Any = None,
) -> FrameChoices:
    """Read a long frame into choice data, reporting every problem at once.

    Parameters
    ----------
    frame : pandas.DataFrame, polars.DataFrame or pyarrow.Table
    columns : Columns
    names : sequence of str
        Attribute columns; labels of constants (``asc.<alternative>``) are made, not read.
    constants : bool
        Whether to add a dummy for every alternative but the base.
    base_alternative : object
        None for the first alternative.
    alternatives : ndarray, optional
        The alternatives known from an earlier fit; others are then a problem.
    need_choice : bool
        False for prediction: the choice column is not read.
    chosen, weights : array, optional
        One value per row, instead of the columns.

    Returns
    -------
    FrameChoices

    Raises
    ------
    ChoiceDataError
        Listing every problem found.
    """
    table = as_narwhals(frame)
    chosen, weights = _as_vector("y", chosen), _as_vector("sample_weight", weights)
    index = frame.index if isinstance(frame, pd.DataFrame) else pd.RangeIndex(len(table))
    problems = Problems()
    read = [name for name in names if not name.startswith(CONSTANT_PREFIX)]
    choice_column = [columns.choice] if need_choice and chosen is None else []
    # Predictions need no weights; shares use them where they are.
    weigh = columns.weights if weights is None and (need_choice or columns.weights in table.columns) else None
    cluster = columns.cluster if need_choice else None
    optional = [c for c in (columns.availability, weigh, cluster) if c]
    _check_columns(table, [*columns.keys, *choice_column, *optional, *read], problems)
    if len(table) == 0:
        problems.add("the frame has no rows.")
    problems.raise_if_any()
    _check_keys(table, columns, problems)
    problems.raise_if_any()
    rows = _read_keys(table, columns, alternatives, problems)
    problems.raise_if_any()
    available = read_availability(table, columns.availability, rows, problems)
    choice = None
    if need_choice:
        values = table[columns.choice].to_numpy() if chosen is None else np.asarray(chosen)
        choice = read_choice(values, columns, rows, available, problems)
    weight = read_weights(table, weigh, weights, rows, problems)
    clusters = read_clusters(table, cluster, rows, problems)
    attributes = read_attributes(table, read, rows, available, problems)
    problems.raise_if_any()
    data = replace(_assemble(rows, attributes, available, choice, weight, tuple(read)), clusters=clusters)
    if constants:
        data = add_constants(data, base_alternative, columns.alternative)
    return FrameChoices(
        data,
        index,
        rows.person,
        rows.situation_of,
        _places(rows.in_order(available), len(rows.person)),
        rows.situation_labels,
        rows.alternative_labels,
    )


def _places(order: np.ndarray, count: int) -> np.ndarray:
    """Place in ``order`` of each of ``count`` rows; -1 for those that are not in it."""
    places = np.full(count, -1, dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def _as_vector(name: str, values: Any) -> np.ndarray | None:
    """One value per row; a single column is flattened."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ChoiceDataError(f"{name} must hold one value per row; got an array of shape {array.shape}.")
    return array


def _check_columns(table: nw.DataFrame[Any], wanted: Sequence[str], problems: Problems) -> None:
    missing = [name for name in dict.fromkeys(wanted) if name not in table.columns]
    for name in missing:
        hint = suggest(name, table.columns)
        problems.add(f"the frame has no column {name!r}; it has {list(table.columns)[:20]}.{hint}")


def _check_keys(table: nw.DataFrame[Any], columns: Columns, problems: Problems) -> None:
    for name in columns.keys:
        keys = table[name]
        count = int(keys.is_null().sum()) + (int(keys.is_nan().sum()) if keys.dtype.is_float() else 0)
        if count:
            problems.add(f"column {name!r} has {count} missing values; every row needs its keys.")


def _factorize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer codes and sorted labels; order of appearance where labels cannot be compared."""
    try:
        codes, labels = pd.factorize(values, sort=True)
    except TypeError:
        codes, labels = pd.factorize(values)
    return codes, np.asarray(labels)


def _rank_within(groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Rank 0, 1, ... of every element within its group, in order of appearance."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=n_groups)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank


def _read_keys(table: nw.DataFrame[Any], columns: Columns, known: np.ndarray | None, problems: Problems) -> RowKeys:
    person, people = _factorize(table[columns.decision_maker].to_numpy())
    labels = table[columns.situation].to_numpy()
    situation_code, situation_names = _factorize(labels)
    # A situation is the pair (decision maker, situation): ids may restart for every person.
    pair = person.astype(np.int64) * len(situation_names) + situation_code
    situation_of, _ = pd.factorize(pair, sort=True)
    alternative_values = table[columns.alternative].to_numpy()
    alternative, alternatives = _read_alternatives(alternative_values, situation_of, known, problems)
    rows = RowKeys(person, alternative, people, situation_of, labels, alternatives, alternative_values)
    if not problems.sentences:
        _check_duplicates(rows, columns, problems)
    return rows


def _read_alternatives(
    values: np.ndarray, situation_of: np.ndarray, known: np.ndarray | None, problems: Problems
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions of the alternatives and their labels; ranks without labels where labels are many."""
    codes, labels = _factorize(values)
    if known is not None:
        position = pd.Index(known).get_indexer(pd.Index(labels))
        strange = list(labels[position < 0])
        if strange:
            problems.add(f"alternatives {strange[:SHOWN]} were not in the data of the fit: {list(known)[:10]}.")
        return position[codes], known
    largest = int(np.bincount(situation_of).max())
    if len(labels) > max(32, 2 * largest):
        return _rank_within(situation_of, int(situation_of.max()) + 1), None
    return codes, labels


def _check_duplicates(rows: RowKeys, columns: Columns, problems: Problems) -> None:
    code, _ = _factorize(rows.alternative_labels)
    key = rows.situation_of.astype(np.int64) * (int(code.max()) + 1) + code
    repeated = pd.Series(key).duplicated().to_numpy()
    places = [rows.row_place(row) for row in np.flatnonzero(repeated)[:SHOWN]]
    problems.add_if(
        repeated,
        "{count} rows repeat an alternative of their choice situation ({places}). Each pair "
        f"({columns.decision_maker}, {columns.situation}) must list an alternative once; do situation ids need "
        "another column?",
        places,
    )


def _assemble(
    rows: RowKeys,
    attributes: torch.Tensor,
    available: np.ndarray,
    choice: np.ndarray | None,
    weight: np.ndarray,
    names: tuple[str, ...],
) -> ChoiceData:
    order = rows.in_order(available)
    situation_of, n_situations = rows.situation_of[order], int(rows.situation_of.max()) + 1
    sizes = np.bincount(situation_of, minlength=n_situations)
    ranks = np.zeros(n_situations, dtype=np.int64)
    if choice is not None:
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        picked = choice[order]
        ranks[situation_of[picked]] = rank[picked]
    person_of = np.zeros(n_situations, dtype=np.int64)
    person_of[rows.situation_of] = rows.person
    positions, width = rows.alternative[order], rows.n_alternatives
    listed = len(order) == width * n_situations
    choices = ChoiceRows(
        attributes,
        torch.from_numpy(sizes.astype(np.int32)),
        torch.from_numpy(ranks),
        torch.from_numpy(np.bincount(person_of, minlength=len(rows.people))),
        None if listed else torch.from_numpy(positions.astype(np.int32)),
    )
    return ChoiceData(
        choices,
        torch.as_tensor(weight).to(attributes),
        names,
        rows.people,
        width,
        rows.alternatives,
        _appearance(rows.person, len(rows.people)),
    )


def _appearance(person: np.ndarray, n_people: int) -> torch.Tensor | None:
    """Rank of every person by first row; None where people are in that order."""
    if bool((np.diff(person) >= 0).all()):
        return None
    first = np.full(n_people, len(person))
    np.minimum.at(first, person, np.arange(len(person)))
    return torch.from_numpy(first.argsort().argsort())


def add_constants(data: ChoiceData, base: object, column: str) -> ChoiceData:
    """Append a dummy for every alternative but the base.

    Parameters
    ----------
    data : ChoiceData
    base : object
        None for the first alternative.
    column : str
        Name of the alternative column, for the message.

    Returns
    -------
    ChoiceData

    Raises
    ------
    ChoiceDataError
        If alternatives carry no labels, or the base is not among them.
    """
    if data.alternatives is None:
        raise ChoiceDataError(
            f"constants=True needs alternatives that recur: {column!r} labels no fixed set of alternatives."
        )
    labels = constant_labels(data.alternatives, base)
    base = data.alternatives[0] if base is None else base
    wanted = [j for j, label in enumerate(data.alternatives) if label != base]
    rows, positions = data.choices.rows, data.choices.listed_positions(data.n_alternatives)
    dummies = positions[:, None] == torch.tensor(wanted, device=rows.device)
    choices = replace(data.choices, rows=torch.cat([rows, dummies.to(rows)], 1))
    return replace(data, choices=choices, names=data.names + tuple(labels))
