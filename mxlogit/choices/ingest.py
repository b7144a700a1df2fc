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

from mxlogit.choices.checks import SHOWN, Problems
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
from mxlogit.choices.labels import are_few, do_recur, explain_kinds, factorize, find_labels, rank_within
from mxlogit.spec import CONSTANT_PREFIX, Columns


@dataclass(frozen=True)
class FrameChoices:
    """Choice data read from a frame, with the place of every row.

    Attributes
    ----------
    data : ChoiceData
    index : pandas.Index
        Index of the frame (0, 1, ... for frames without one).
    person, situation, alternative : ndarray of int, shape (rows,)
        Position of every row along the axes n, t, j.
    situation_labels, alternative_labels : ndarray, shape (rows,)
        What the situation and alternative columns say in every row.
    """

    data: ChoiceData
    index: pd.Index
    person: np.ndarray
    situation: np.ndarray
    alternative: np.ndarray
    situation_labels: np.ndarray
    alternative_labels: np.ndarray

    def to(self, device: torch.device) -> FrameChoices:
        """Return the same with its tensors on ``device``."""
        return replace(self, data=self.data.to(device=device, dtype=self.data.attributes.dtype))


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
    dtype: torch.dtype = torch.float64,
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
    dtype : torch.dtype
        Of the attributes.

    Returns
    -------
    FrameChoices

    Raises
    ------
    ChoiceDataError
        Listing every problem found.
    """
    table = as_narwhals(frame)
    index = index_of(frame, len(table))
    chosen, weights = as_vector("y", chosen, index), as_vector("sample_weight", weights, index)
    problems = Problems()
    # Predictions need no weights; shares use them where they are.
    weigh = columns.weights if weights is None and (need_choice or columns.weights in table.columns) else None
    cluster = columns.cluster if need_choice else None
    choice_column = columns.choice if need_choice and chosen is None else None
    roles = [*columns.keys, *(c for c in (choice_column, columns.availability, weigh, cluster) if c)]
    made = [name for name in names if constants and name.startswith(CONSTANT_PREFIX)]
    note_missing_columns(table, index, columns, [*roles, *(name for name in names if name not in made)], problems)
    if choice_column in names:
        problems.add(f"column {choice_column!r} says what was chosen, so it cannot be an attribute as well.")
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
    attributes = read_attributes(table, read, rows, available, dtype, problems)
    problems.raise_if_any()
    data = replace(_assemble(rows, attributes, available, choice, weight, tuple(read)), clusters=clusters)
    if constants:
        data = add_constants(data, base_alternative)
    return FrameChoices(
        data,
        index,
        rows.person,
        rows.situation,
        rows.alternative,
        rows.situation_labels,
        rows.alternative_labels,
    )


def _read_keys(
    table: nw.DataFrame[Any], columns: Columns, known: np.ndarray | None, problems: Problems, *, by_label: bool
) -> RowKeys:
    person, people = factorize(table.get_column(columns.decision_maker).to_numpy())
    labels = table.get_column(columns.situation).to_numpy()
    situation_code, situation_names = factorize(labels)
    # A situation is the pair (decision maker, situation): ids may restart for every person.
    pair = person.astype(np.int64) * len(situation_names) + situation_code
    situation_of, pairs = pd.factorize(pair, sort=True)
    situation = rank_within(np.asarray(pairs) // len(situation_names), len(people))[situation_of]
    alternative_values = table.get_column(columns.alternative).to_numpy()
    alternative, alternatives = _read_alternatives(
        alternative_values, situation_of, known, len(people), problems, by_label=by_label
    )
    rows = RowKeys(person, situation, alternative, people, situation_of, labels, alternatives, alternative_values)
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
    """Positions of the alternatives and their labels; ranks without labels where labels are many and not needed."""
    codes, labels = factorize(values)
    if known is not None:
        position = find_labels(known, labels)
        strange = labels[position < 0]
        if len(strange):
            problems.add(
                f"alternatives {strange[:SHOWN].tolist()} were not in the data of the fit: {known[:10].tolist()}."
                f"{explain_kinds(known, strange)}"
            )
        return position[codes], known
    largest = int(np.bincount(situation_of).max())
    recur = by_label and do_recur(len(labels), len(values), n_people, largest)
    if recur or are_few(len(labels), largest):
        return codes, labels
    return rank_within(situation_of, int(situation_of.max()) + 1), None


def _check_duplicates(rows: RowKeys, columns: Columns, problems: Problems) -> None:
    code, _ = factorize(rows.alternative_labels)
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
    n, t, j = rows.shape
    mask = torch.zeros(n, t, j, dtype=torch.bool)
    observed = torch.zeros(n, t, dtype=torch.bool)
    chosen = torch.zeros(n, t, dtype=torch.int64)
    mask.numpy()[rows.person, rows.situation, rows.alternative] = available
    observed.numpy()[rows.person, rows.situation] = True
    if choice is None:
        chosen = mask.to(torch.int8).argmax(-1)
    else:
        chosen.numpy()[rows.person[choice], rows.situation[choice]] = rows.alternative[choice]
    mask[..., 0] |= ~observed
    return ChoiceData(
        attributes,
        mask,
        observed,
        chosen,
        torch.as_tensor(weight).to(attributes),
        names,
        rows.people,
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


def add_constants(data: ChoiceData, base: object) -> ChoiceData:
    """Append a dummy for every alternative but the base.

    Parameters
    ----------
    data : ChoiceData
    base : object
        None for the first alternative.

    Returns
    -------
    ChoiceData

    Raises
    ------
    ChoiceDataError
        If alternatives carry no labels, the base is not among them, or an attribute has the label of a constant.
    """
    labels = constant_labels(data.alternatives, base, data.names)
    known = [] if data.alternatives is None else data.alternatives.tolist()
    positions = [known.index(alternative) for alternative in labels.values()]
    usable = (data.available & data.observed[..., None]).to(data.attributes)
    dummies = torch.zeros(*usable.shape, len(positions), dtype=usable.dtype, device=usable.device)
    for k, j in enumerate(positions):
        dummies[:, :, j, k] = usable[:, :, j]
    attributes = torch.cat([data.attributes, dummies], -1)
    return replace(data, attributes=attributes, names=data.names + tuple(labels))
