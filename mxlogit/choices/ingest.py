"""Conversion of long frames to `ChoiceData`: the only module where frames become tensors.

A long frame has one row per decision maker, choice situation and alternative. Any eager frame that
narwhals supports (pandas, polars, pyarrow) is read column by column and never modified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch

from mxlogit.choices.checks import COUNT, PLACES, SHOWN, Problems
from mxlogit.choices.columns import (
    RowKeys,
    read_attributes,
    read_availability,
    read_choice,
    read_clusters,
    read_weights,
)
from mxlogit.choices.constants import check_constants, constant_labels
from mxlogit.choices.data import ChoiceData
from mxlogit.choices.frames import as_narwhals, as_vector, index_of, note_missing_columns, note_missing_keys
from mxlogit.choices.labels import (
    explain_kinds,
    factorize,
    find_labels,
    labels_are_few,
    labels_recur,
    listed,
    rank_within,
    read_labels,
)
from mxlogit.choices.rows import ChoiceRows
from mxlogit.spec import CONSTANT_PREFIX, Columns


@dataclass(frozen=True)
class FrameChoices:
    """Choice data read from a frame, with the position of every row of the frame in the data.

    Attributes
    ----------
    data : ChoiceData
        Choices of the frame.
    index : pandas.Index
        Index of the frame (0, 1, ... for frames without an index).
    person, situation : ndarray of int, shape (rows,)
        Decision maker and choice situation (numbered over all people) of every row.
    place : ndarray of int, shape (rows,)
        Position of every row among the rows of the data; -1 if the alternative is not available.
    situation_labels, alternative_labels : ndarray, shape (rows,)
        Values of the situation and alternative columns.
    """

    data: ChoiceData
    index: pd.Index
    person: np.ndarray
    situation: np.ndarray
    place: np.ndarray
    situation_labels: np.ndarray
    alternative_labels: np.ndarray

    def to(self, device: torch.device) -> FrameChoices:
        """Return a copy with its tensors on ``device``."""
        return replace(self, data=self.data.to(device=device))


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
    """Read a long frame into choice data, reporting all problems in one error.

    Parameters
    ----------
    frame : pandas.DataFrame, polars.DataFrame or pyarrow.Table
        Long frame.
    columns : Columns
        Names of the columns by role.
    names : sequence of str
        Attribute columns; with ``constants``, labels of constants (``asc.<alternative>``) are not read but built.
    constants : bool
        Whether to add a dummy for every alternative but the base.
    base_alternative : object
        Label of the base alternative; None for the first alternative.
    alternatives : ndarray, optional
        Alternatives of an earlier fit; any other alternative is a problem.
    need_choice : bool
        Whether to read the choice column; False for prediction.
    chosen, weights : array, optional
        Vectors with one value per row, used instead of the columns.

    Returns
    -------
    FrameChoices

    Raises
    ------
    ChoiceDataError
        If there are problems; the message lists all of them.
    """
    table = as_narwhals(frame)
    index = index_of(frame, len(table))
    chosen, weights = as_vector("y", chosen, index), as_vector("sample_weight", weights, index)
    problems = Problems()
    # Predictions need no weights; shares use the column if it exists.
    weigh = columns.weights if weights is None and (need_choice or columns.weights in table.columns) else None
    cluster = columns.cluster if need_choice else None
    choice_column = columns.choice if need_choice and chosen is None else None
    roles = [*columns.keys, *(c for c in (choice_column, columns.availability, weigh, cluster) if c)]
    made = [name for name in names if constants and name.startswith(CONSTANT_PREFIX)]
    note_missing_columns(table, index, columns, [*roles, *(name for name in names if name not in made)], problems)
    if choice_column in names:
        problems.add(f"column {choice_column!r} is the choice, so it cannot be an attribute as well.")
    problems.raise_if_any()
    note_missing_keys(table, columns.keys, problems)
    problems.raise_if_any()
    rows = _read_keys(table, columns, alternatives, problems, by_label=constants)
    problems.raise_if_any()
    labels = constant_labels(rows.alternatives, base_alternative) if constants else {}
    available = read_availability(table, columns.availability, rows, problems)
    choice = None
    if need_choice:
        values = table.get_column(columns.choice) if chosen is None else chosen
        choice = read_choice(values, columns, rows, available, problems)
    weight = read_weights(table, weigh, weights, rows, problems)
    clusters = read_clusters(table, cluster, rows, problems)
    read = check_constants(table, names, labels, rows, available, problems) if constants else list(names)
    attributes = read_attributes(table, read, rows, available, problems)
    problems.raise_if_any()
    data = replace(_assemble(rows, attributes, available, choice, weight, tuple(read)), clusters=clusters)
    if constants:
        data = add_constants(data, base_alternative)
    return _with_places(data, index, rows, available)


def _with_places(data: ChoiceData, index: pd.Index, rows: RowKeys, available: np.ndarray) -> FrameChoices:
    """Combine choice data with the position of every row of their frame."""
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
    """Position in ``order`` of each of ``count`` rows; -1 for rows that are not in it."""
    places = np.full(count, -1, dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def _read_keys(
    table: nw.DataFrame[Any], columns: Columns, known: np.ndarray | None, problems: Problems, *, by_label: bool
) -> RowKeys:
    person, people = factorize(read_labels(table.get_column(columns.decision_maker)))
    labels = read_labels(table.get_column(columns.situation))
    situation_code, situation_names = factorize(labels)
    # A situation is the pair (decision maker, situation): ids may restart for every person.
    pair = person.astype(np.int64) * len(situation_names) + situation_code
    situation_of, _ = pd.factorize(pair, sort=True)
    alternative_values = read_labels(table.get_column(columns.alternative))
    alternative, alternatives = _read_alternatives(
        alternative_values, situation_of, known, len(people), problems, by_label=by_label
    )
    rows = RowKeys(person, alternative, people, situation_of, labels, alternatives, alternative_values)
    if not problems.sentences:
        _check_duplicates(rows, columns, problems)
    return rows


def _read_alternatives(
    values: np.ndarray,
    situation_of: np.ndarray,
    known: np.ndarray | None,
    n_people: int,
    problems: Problems,
    *,
    by_label: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions of the alternatives, with their labels.

    If the labels are many and not needed, positions are ranks within the situation, and the labels None.
    """
    codes, labels = factorize(values)
    if known is not None:
        position = find_labels(known, labels)
        strange = labels[position < 0]
        if len(strange):
            problems.add(
                f"alternatives {listed(strange[:SHOWN])} were not in the data of the fit: {listed(known[:10])}."
                f"{explain_kinds(known, strange)}"
            )
        return position[codes], known
    largest = int(np.bincount(situation_of).max())
    recur = by_label and labels_recur(len(labels), len(values), n_people, largest)
    if recur or labels_are_few(len(labels), largest):
        return codes, labels
    return rank_within(situation_of, int(situation_of.max()) + 1), None


def _check_duplicates(rows: RowKeys, columns: Columns, problems: Problems) -> None:
    code, _ = factorize(rows.alternative_labels)
    key = rows.situation_of.astype(np.int64) * (int(code.max()) + 1) + code
    repeated = pd.Series(key).duplicated().to_numpy()
    places = [rows.row_place(row) for row in np.flatnonzero(repeated)[:SHOWN]]
    problems.add_if(
        repeated,
        f"{COUNT} rows repeat an alternative of their choice situation ({PLACES}). Each pair "
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
    """Rank of every person by first row; None if people are in that order."""
    if bool((np.diff(person) >= 0).all()):
        return None
    first = np.full(n_people, len(person))
    np.minimum.at(first, person, np.arange(len(person)))
    return torch.from_numpy(first.argsort().argsort())


def add_constants(data: ChoiceData, base: object) -> ChoiceData:
    """Append a dummy for every alternative but the base.

    Parameters
    ----------
    data : ChoiceData
        Choices with labelled alternatives.
    base : object
        Label of the base alternative; None for the first alternative.

    Returns
    -------
    ChoiceData

    Raises
    ------
    ChoiceDataError
        If alternatives carry no labels, the base is not among them, or an attribute has the label of a constant.
    """
    labels = constant_labels(data.alternatives, base, data.names)
    known = [] if data.alternatives is None else listed(data.alternatives)
    wanted = [known.index(alternative) for alternative in labels.values()]
    rows, positions = data.choices.rows, data.choices.listed_positions()
    dummies = positions[:, None] == torch.tensor(wanted, device=rows.device)
    choices = replace(data.choices, rows=torch.cat([rows, dummies.to(rows)], 1))
    return replace(data, choices=choices, names=data.names + tuple(labels))
