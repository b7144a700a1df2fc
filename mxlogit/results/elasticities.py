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
from mxlogit.results.prediction import Coefficients, sampled_values
from mxlogit.results.substitution import (
    Attribute,
    Change,
    Pairs,
    Response,
    SummedResponses,
    block_width,
    count_pairs,
    derivative,
    relative_derivative,
    removal,
    shifted,
    sum_responses,
    switched,
)

# Values (s, pairs) by the coefficients of a source.
ValuesOfSource = Callable[[CoefficientSource], Tensor]


@dataclass(frozen=True)
class Question:
    """Choice situations, coefficients of their people, and how to report.

    Attributes
    ----------
    rows : FrameChoices
        Rows of a frame.
    columns : list of int
        Positions of the attributes of the model, in its order.
    used : Coefficients
        Coefficients for estimates and for intervals.
    interval : float
        Probability of the intervals.
    names : tuple of str
        Columns of decision makers, situations and alternatives.
    """

    rows: FrameChoices
    columns: list[int]
    used: Coefficients
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

    def table(self, values_of: ValuesOfSource, pairs: Pairs, count: Tensor) -> pd.DataFrame:
        """Table of values (s, pairs); pairs that are never available together are left out."""
        found = torch.nonzero(count > 0)[:, 0]
        index = pairs.index(self.names[2])[found.numpy()]
        source, finer = self.used.sampled, self.finer
        estimate = None if finer is None else values_of(finer)[0, found]
        summary = sampled_values(source, values_of(source)[:, found]).summary(self.interval, estimate)
        return interval_frame(summary, index, source.kind, self.interval)

    @property
    def finer(self) -> CoefficientSource | None:
        """Source of more accurate estimates; None for people, whose draws come in several parts."""
        return self.used.mean if self.used.mean.is_common else None

    def each(self, change: Change, value: Callable[[Response], Tensor]) -> pd.DataFrame:
        """Table of values (m, i, j, s) of every situation and pair."""
        data, pairs, source = self.rows.data, self.pairs(), self.used.sampled
        estimate = dict[int, Tensor]()
        if self.finer is not None:
            for block in choice_blocks(data, self.columns, self.finer, width=block_width(data)):
                values = value(change(block))[..., 0].mT.flatten(1).cpu()
                estimate.update(zip(block.situations.tolist(), values, strict=True))
        parts, places = list[np.ndarray](), list[np.ndarray]()
        for block in choice_blocks(data, self.columns, source, width=block_width(data)):
            values = value(change(block)).cpu().permute(3, 0, 2, 1).flatten(1)
            finer = torch.cat([estimate[i] for i in block.situations.tolist()]) if estimate else None
            parts.append(sampled_values(source, values).summary(self.interval, finer))
            places.append(pairs.places(block))
        at = np.concatenate(places)
        order = np.argsort(at[:, 0], kind="stable")
        summary = np.concatenate(parts)[order]
        return interval_frame(summary, self._index(at[order], pairs), source.kind, self.interval)

    def _index(self, at: np.ndarray, pairs: Pairs) -> pd.MultiIndex:
        """Labels of places (situation, changed alternative, alternative)."""
        rows, label = self.rows, pairs.alternatives.to_numpy()
        first = _first_rows(rows)[at[:, 0]]
        keys = [rows.data.decision_makers[rows.person[first]], rows.situation_labels[first]]
        return pd.MultiIndex.from_arrays(
            [*keys, label[at[:, 1]], label[at[:, 2]]], names=[*self.names[:2], "changed", self.names[2]]
        )


def _first_rows(rows: FrameChoices) -> np.ndarray:
    """First row of the frame of every situation."""
    _, first = np.unique(rows.situation, return_index=True)
    return first


def elasticity_table(
    question: Question, attribute: Attribute, kind: str, change: float, aggregate: str | None
) -> pd.DataFrame:
    """Table of point or arc elasticities to an attribute."""
    response: Change = relative_derivative(attribute) if kind == "point" else shifted(attribute, change)
    ratio = _point if kind == "point" else _arc(change)
    if aggregate is None:
        return question.each(response, ratio)
    pairs, data = question.pairs(), question.rows.data
    each = ratio if aggregate == "sample" else None

    def values_of(source: CoefficientSource) -> Tensor:
        sums = sum_responses(data, question.columns, source, response, pairs, each)
        return _of_sums(ratio, sums) if each is None else sums.change / sums.count

    return question.table(values_of, pairs, count_pairs(data, pairs))


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


def marginal_table(question: Question, attribute: Attribute, *, discrete: bool, each: bool) -> pd.DataFrame:
    """Table of marginal effects of an attribute; of a dummy, of a discrete change."""
    response: Change = switched(attribute) if discrete else derivative(attribute)
    if each:
        return question.each(response, lambda found: found.change)
    pairs, data = question.pairs(), question.rows.data

    def values_of(source: CoefficientSource) -> Tensor:
        sums = sum_responses(data, question.columns, source, response, pairs)
        return sums.change / sums.count

    return question.table(values_of, pairs, count_pairs(data, pairs))


def diversion_table(question: Question, attribute: Attribute | None) -> pd.DataFrame:
    """Table of diversion ratios: by an attribute, or by removal of the alternative."""
    response: Change = removal if attribute is None else derivative(attribute)
    pairs, data = question.pairs(), question.rows.data
    size = len(pairs.alternatives)

    def values_of(source: CoefficientSource) -> Tensor:
        change = sum_responses(data, question.columns, source, response, pairs).change.unflatten(-1, (size, size))
        return (-change / change.diagonal(dim1=1, dim2=2)[..., None]).flatten(1)

    others = count_pairs(data, pairs) * ~torch.eye(size, dtype=torch.bool).flatten()
    return question.table(values_of, pairs, others)


def is_dummy(question: Question, attribute: Attribute) -> bool:
    """Whether an attribute of the rows is zero or one everywhere."""
    values = question.rows.data.choices.rows[:, question.columns[attribute.place]]
    return bool(((values == 0.0) | (values == 1.0)).all())
