"""Predicted shares of one or several scenarios, with differences from the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData, FrameChoices
from mxlogit.choices.frames import as_narwhals
from mxlogit.errors import ChoiceDataError, SpecificationError, check_probability, suggest
from mxlogit.results.intervals import SampledValues, interval_frame
from mxlogit.results.prediction import Cells, Coefficients, probabilities, sampled_values, sums_of_rows

# Name of the only scenario, which is not shown.
_ONLY = ""


def name_scenarios(X: Any) -> dict[str, Any]:
    """Frames by name: one, or those of a list or mapping.

    Raises
    ------
    SpecificationError
        If a list or mapping has fewer than two frames.
    """
    if not isinstance(X, (list, tuple, Mapping)):
        return {_ONLY: X}
    if len(X) < 2:
        raise SpecificationError(f"scenarios must be at least two frames to compare; got {len(X)}.")
    if isinstance(X, Mapping):
        return {str(name): frame for name, frame in X.items()}
    others = ["scenario"] if len(X) == 2 else [f"scenario {i}" for i in range(1, len(X))]
    return dict(zip(["base", *others], X, strict=True))


def share_tables(
    frames: Mapping[str, Any],
    read: Mapping[str, FrameChoices],
    used: Mapping[str, Coefficients],
    columns: Callable[[ChoiceData], list[int]],
    by: Sequence[str] | None,
    alternative: str,
    interval: float | None,
) -> pd.Series | pd.DataFrame:
    """Shares of every scenario, and their differences to the first one."""
    if interval is not None:
        check_probability("interval", interval)
    tables = {
        name: _Shares.of(rows, used[name], columns(rows.data), _groups(frames[name], rows, by), alternative, interval)
        for name, rows in read.items()
    }
    first, *others = tables
    for name in others:
        tables[f"{name} - {first}"] = tables[name].minus(tables[first])
    found = {name: table.frame(interval) for name, table in tables.items()}
    if first == _ONLY:
        return found[_ONLY]
    whole = pd.concat(found, names=["scenario"])
    whole.attrs = found[first].attrs
    return whole


class _Shares:
    """Shares of cells: estimates, and values by sample if intervals are asked for."""

    def __init__(self, labels: pd.Index, estimate: Tensor, values: SampledValues | None, kind: str) -> None:
        self.labels, self.estimate, self.values, self.kind, self.bounds = labels, estimate, values, kind, (0.0, 1.0)

    @classmethod
    def of(
        cls,
        rows: FrameChoices,
        used: Coefficients,
        columns: list[int],
        groups: pd.DataFrame | None,
        name: str,
        interval: float | None,
    ) -> _Shares:
        cells = Cells.of(rows, name, groups)
        estimate = sums_of_rows(rows.data, columns, used.mean, probabilities, cells)[0]
        values = None
        if interval is not None:
            sums = sums_of_rows(rows.data, columns, used.sampled, probabilities, cells)
            values = sampled_values(used.sampled, sums)
        return cls(cells.labels, estimate, values, used.sampled.kind)

    def minus(self, other: _Shares) -> _Shares:
        """Differences; an alternative that one scenario lacks has share zero there."""
        labels = self.labels.union(other.labels)
        mine, theirs = (_reindexed(part, labels) for part in (self, other))
        values = None if mine[1] is None or theirs[1] is None else mine[1].minus(theirs[1])
        result = _Shares(labels, mine[0] - theirs[0], values, self.kind)
        result.bounds = (-1.0, 1.0)
        return result

    def frame(self, interval: float | None) -> pd.Series | pd.DataFrame:
        if self.values is None or interval is None:
            return pd.Series(self.estimate.numpy(), index=self.labels, name="share")
        summary = self.values.summary(interval, self.estimate).clip(*self.bounds)
        return interval_frame(summary, self.labels, self.kind, interval)


def _reindexed(shares: _Shares, labels: pd.Index) -> tuple[Tensor, SampledValues | None]:
    """Estimates and values at other labels, zero where there are none."""
    place = torch.from_numpy(shares.labels.get_indexer(labels))
    there = place >= 0

    def move(values: Tensor) -> Tensor:
        result = values.new_zeros(*values.shape[:-1], len(labels))
        result[..., there] = values[..., place[there]]
        return result

    values = shares.values
    if values is not None:
        values = SampledValues(move(values.values), None if values.center is None else move(values.center))
    return move(shares.estimate), values


def _groups(frame: Any, rows: FrameChoices, by: Sequence[str] | None) -> pd.DataFrame | None:
    """Columns of a frame that divide its situations into groups."""
    if by is None:
        return None
    table = as_narwhals(frame)
    known = table.columns
    for name in by:
        if name not in known:
            raise ChoiceDataError(f"by: the frame has no column {name!r}.{suggest(name, known)}")
    groups = pd.DataFrame({name: table.get_column(name).to_numpy() for name in by})
    for name in by:
        varies = groups[name].groupby(rows.situation).nunique(dropna=False) > 1
        if varies.any():
            raise ChoiceDataError(
                f"by: column {name!r} varies within {int(varies.sum())} choice situations; groups are of situations."
            )
    return groups
