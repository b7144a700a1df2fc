"""Tables of elasticities, marginal effects and diversion ratios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import FrameChoices
from mxlogit.results.choice_blocks import choice_blocks
from mxlogit.results.coefficient_sources import CoefficientSource
from mxlogit.results.intervals import interval_frame
from mxlogit.results.prediction import sampled_values
from mxlogit.results.substitution import (
    Change,
    Pairs,
    Response,
    SummedResponses,
    block_width,
    derivative,
    relative_derivative,
    removal,
    shifted,
    sum_responses,
    switched,
)


@dataclass(frozen=True)
class Question:
    """Choice situations, coefficients of their people, and how to report.

    Attributes
    ----------
    rows : FrameChoices
        Rows of a frame.
    columns : list of int
        Positions of the attributes of the model, in its order.
    source : CoefficientSource
        Coefficients by sample.
    interval : float
        Probability of the intervals.
    names : tuple of str
        Columns of decision makers, situations and alternatives.
    """

    rows: FrameChoices
    columns: list[int]
    source: CoefficientSource
    interval: float
    names: tuple[str, str, str]

    def pairs(self) -> Pairs:
        """Pairs of alternatives, with the weights of people."""
        listed, data = self.rows.place >= 0, self.rows.data
        codes, labels = pd.factorize(self.rows.alternative_labels, sort=True)
        of_row = torch.zeros(len(data.choices.rows), dtype=torch.int64)
        of_row[self.rows.place[listed]] = torch.from_numpy(codes[listed].astype(np.int64))
        weights = data.weights.cpu().double().repeat_interleave(data.choices.panel_lengths.cpu())
        return Pairs(pd.Index(labels), of_row, weights)

    def table(self, values: Tensor, pairs: Pairs, count: Tensor) -> pd.DataFrame:
        """Table of values (s, pairs); pairs that are never available together are left out."""
        found = torch.nonzero(count > 0)[:, 0]
        index = pairs.index(self.names[2])[found.numpy()]
        sampled = sampled_values(self.source, values[:, found])
        return interval_frame(sampled.summary(self.interval), index, self.source.kind, self.interval)

    def each(self, change: Change, value: Callable[[Response], Tensor]) -> pd.DataFrame:
        """Table of values (m, i, j, s) of every situation and pair."""
        pairs, parts, places = self.pairs(), [], []
        first = _first_rows(self.rows)
        for block in choice_blocks(self.rows.data, self.columns, self.source, width=block_width(self.rows.data)):
            values = value(change(block)).cpu()
            sampled = sampled_values(self.source, values.permute(3, 0, 2, 1).flatten(1))
            parts.append(sampled.summary(self.interval))
            alternative = pairs.of_row[block.rows.cpu()]
            m, j = alternative.shape
            situation = torch.from_numpy(first)[block.situations.cpu()]
            whole = (situation[:, None, None], alternative[:, :, None], alternative[:, None])
            places.append(torch.stack([part.expand(m, j, j).flatten() for part in whole], 1))
        at = torch.cat(places).numpy()
        order = np.argsort(at[:, 0], kind="stable")
        at, rows, label = at[order], self.rows, pairs.alternatives.to_numpy()
        keys = [rows.data.decision_makers[rows.person[at[:, 0]]], rows.situation_labels[at[:, 0]]]
        index = pd.MultiIndex.from_arrays(
            [*keys, label[at[:, 1]], label[at[:, 2]]], names=[*self.names[:2], "changed", self.names[2]]
        )
        return interval_frame(np.concatenate(parts)[order], index, self.source.kind, self.interval)


def _first_rows(rows: FrameChoices) -> np.ndarray:
    """First row of the frame of every situation."""
    _, first = np.unique(rows.situation, return_index=True)
    return first


def elasticity_table(question: Question, place: int, kind: str, change: float, aggregate: str | None) -> pd.DataFrame:
    """Table of point or arc elasticities to the attribute in column ``place``."""
    response: Change = relative_derivative(place) if kind == "point" else shifted(place, change)
    ratio = _point if kind == "point" else _arc(change)
    if aggregate is None:
        return question.each(response, ratio)
    pairs = question.pairs()
    data, columns, source = question.rows.data, question.columns, question.source
    if aggregate == "sample":
        sums = sum_responses(data, columns, source, response, pairs, ratio)
        return question.table(sums.change / sums.count, pairs, sums.count)
    sums = sum_responses(data, columns, source, response, pairs)
    return question.table(_of_sums(ratio, sums), pairs, sums.count)


def _point(response: Response) -> Tensor:
    return response.change / response.before[:, :, None]


def _arc(change: float) -> Callable[[Response], Tensor]:
    """Ratio of relative changes, both relative to the middle."""

    def ratio(response: Response) -> Tensor:
        middle = response.before[:, :, None] + 0.5 * response.change
        return response.change / middle * (1.0 + 0.5 * change) / change

    return ratio


def _of_sums(ratio: Callable[[Response], Tensor], sums: SummedResponses) -> Tensor:
    """Ratio of sums, (s, pairs): the elasticity of a predicted share."""
    whole = Response(sums.before[..., None], sums.change[..., None, None])
    return ratio(whole)[..., 0, 0]


def marginal_table(question: Question, place: int, *, discrete: bool, each: bool) -> pd.DataFrame:
    """Table of marginal effects of the attribute in column ``place``; of a dummy, of a discrete change."""
    response: Change = switched(place) if discrete else derivative(place)
    if each:
        return question.each(response, lambda found: found.change)
    pairs = question.pairs()
    sums = sum_responses(question.rows.data, question.columns, question.source, response, pairs)
    return question.table(sums.change / sums.count, pairs, sums.count)


def diversion_table(question: Question, place: int | None) -> pd.DataFrame:
    """Table of diversion ratios: by the attribute in column ``place``, or by removal of the alternative."""
    response: Change = removal if place is None else derivative(place)
    pairs = question.pairs()
    sums = sum_responses(question.rows.data, question.columns, question.source, response, pairs)
    size = len(pairs.alternatives)
    change = sums.change.unflatten(-1, (size, size))
    ratio = -change / change.diagonal(dim1=1, dim2=2)[..., None]
    others = sums.count * ~torch.eye(size, dtype=torch.bool).flatten()
    return question.table(ratio.flatten(1), pairs, others)


def is_dummy(question: Question, place: int) -> bool:
    """Whether an attribute of the rows is zero or one everywhere."""
    values = question.rows.data.choices.rows[:, question.columns[place]]
    return bool(((values == 0.0) | (values == 1.0)).all())
