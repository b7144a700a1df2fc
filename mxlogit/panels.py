"""Panels of choices: what data must offer, and their attributes as differences to the chosen alternative.

This module knows tensors only: no frames, no population, no draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_PEOPLE_AT_ONCE = 1024
# Share of situations that are not padding above which people stay in order.
_WORTH_TRIMMING = 0.8


class PanelData(Protocol):
    """What the kernel needs of choice data (see `mxlogit.choices.ChoiceData` for shapes)."""

    @property
    def attributes(self) -> Tensor:
        """Attributes (n, t, j, k)."""
        ...

    @property
    def available(self) -> Tensor:
        """Availability (n, t, j)."""
        ...

    @property
    def observed(self) -> Tensor:
        """Observed situations (n, t)."""
        ...

    @property
    def chosen(self) -> Tensor:
        """Chosen positions (n, t)."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights (n,)."""
        ...

    @property
    def appearance(self) -> Tensor | None:
        """Ranks by first appearance (n,)."""
        ...

    @property
    def clusters(self) -> Tensor | None:
        """Clusters (n,)."""
        ...


@dataclass(frozen=True)
class PanelDifferences:
    """Attributes differenced against the chosen alternative, ready for the kernel.

    Attributes
    ----------
    values : Tensor, shape (n, r, k)
        x_j - x_chosen for the J - 1 other alternatives of each situation; r = t * (J - 1), the
        alternatives of a situation being adjacent. Zero where closed.
    closed : Tensor or None, bool, shape (n, r)
        True where the alternative is unavailable or the situation is padding; None when nowhere.
    n_others : int
        J - 1.
    weights : Tensor, shape (n,)
        Weight of each decision maker in sums over people.
    n_situations : Tensor, shape (n,)
        Number of observed situations of each decision maker.
    appearance : Tensor or None, int64, shape (n,)
        Rank of each decision maker by first appearance in the source; None where people are in that order.
    clusters : Tensor or None, int64, shape (n,)
        Cluster 0, 1, ... of each decision maker, for standard errors.
    """

    values: Tensor
    closed: Tensor | None
    n_others: int
    weights: Tensor
    n_situations: Tensor
    appearance: Tensor | None = None
    clusters: Tensor | None = None

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        return self.values[:0]

    @property
    def n_rows(self) -> int:
        """Number r of rows of a person."""
        return self.values.shape[1]

    @property
    def n_columns(self) -> int:
        """Number k of attributes."""
        return self.values.shape[2]

    def take(self, people: slice | Tensor) -> PanelDifferences:
        """Return the panels of some people (a view for a slice, a copy for an index)."""
        return PanelDifferences(
            self.values[people],
            None if self.closed is None else self.closed[people],
            self.n_others,
            self.weights[people],
            self.n_situations[people],
            None if self.appearance is None else self.appearance[people],
            None if self.clusters is None else self.clusters[people],
        )

    def by_appearance(self) -> PanelDifferences:
        """Return the panels in order of first appearance in the source."""
        if self.appearance is None:
            return self
        if bool((self.appearance.diff() > 0).all()):
            return replace(self, appearance=None)
        return replace(self.take(self.appearance.argsort()), appearance=None)

    def ranked(self) -> PanelDifferences:
        """Return the panels with ranks by first appearance, which then travel with every part of them."""
        if self.appearance is not None:
            return self
        return replace(self, appearance=torch.arange(len(self), device=self.values.device))

    def to(self, dtype: torch.dtype) -> PanelDifferences:
        """Return the panels with attributes and weights in another floating point type."""
        return replace(self, values=self.values.to(dtype), weights=self.weights.to(dtype))

    def closed_rows(self) -> Tensor:
        """``closed``, False everywhere where that is None."""
        return torch.zeros_like(self.values[..., 0], dtype=torch.bool) if self.closed is None else self.closed

    def padded(self, situations: int, others: int) -> PanelDifferences:
        """Return the panels with more situations and alternatives, closed ones."""
        values = self.by_situation(self.values)
        more = situations - values.shape[1], others - values.shape[2]
        if more == (0, 0):
            return self
        closed = F.pad(self.by_situation(self.closed_rows()), (0, more[1], 0, more[0]), value=True)
        values = F.pad(values, (0, 0, 0, more[1], 0, more[0]))
        return replace(self, values=values.flatten(1, 2), closed=closed.flatten(1), n_others=others)

    def pieces(self, size: int) -> Iterator[tuple[slice | Tensor, PanelDifferences]]:
        """Iterate over groups of at most ``size`` people, without padding that a group does not need.

        Yields
        ------
        tuple of (place, PanelDifferences)
            Who they are: consecutive people as a slice, or, where much is padding, people with panels of like length
            as an index tensor.
        """
        length = None if self.closed is None else self._lengths()
        if length is None or float(length.sum()) > _WORTH_TRIMMING * self.n_rows // self.n_others * len(self):
            yield from self.chunks(size)
            return
        for group in length.argsort(stable=True).split(size):
            piece = self._trimmed(int(length[group].amax())).take(group)
            yield group, piece if bool(piece.closed_rows().any()) else replace(piece, closed=None)

    def _lengths(self) -> Tensor:
        """Situations of each person up to the last that is not padding, (n,)."""
        seen = (~self.by_situation(self.closed_rows())).any(-1)
        return (seen * torch.arange(1, seen.shape[1] + 1, device=seen.device)).amax(1)

    def _trimmed(self, situations: int) -> PanelDifferences:
        """Return the panels without their situations from some one on, as views."""
        rows = slice(0, situations * self.n_others)
        return replace(self, values=self.values[:, rows], closed=self.closed_rows()[:, rows])

    def chunks(self, size: int) -> Iterator[tuple[slice, PanelDifferences]]:
        """Iterate over consecutive people, ``size`` at a time, without copying."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self.take(part)

    def by_situation(self, rows: Tensor) -> Tensor:
        """Reshape (n, r, ...) to (n, t, J - 1, ...)."""
        return rows.unflatten(1, (-1, self.n_others))


def difference_panels(data: PanelData, order: list[int] | None = None) -> PanelDifferences:
    """Difference the attributes of every situation against its chosen alternative.

    Parameters
    ----------
    data : ChoiceData
    order : list of int, optional
        Columns to use, in the order wanted (fixed coefficients first); all by default.

    Returns
    -------
    PanelDifferences
    """
    n, t, j, k = data.attributes.shape
    columns = list(range(k)) if order is None else order
    if j == 1:
        # Nothing to choose from: one closed alternative, so every log probability is zero.
        values = data.attributes.new_zeros(n, t, len(columns))
        nothing = torch.ones(n, t, dtype=torch.bool, device=values.device)
        return PanelDifferences(values, nothing, 1, data.weights, data.observed.sum(1), data.appearance, data.clusters)
    values = data.attributes.new_empty(n, t, j - 1, len(columns))
    opened = torch.empty(n, t, j - 1, dtype=torch.bool, device=values.device)
    natural = columns == list(range(k))
    for start in range(0, n, _PEOPLE_AT_ONCE):
        part = slice(start, start + _PEOPLE_AT_ONCE)
        differences = _difference(data, part, opened[part])
        values[part] = differences if natural else differences[..., columns]
    closed = None if bool(opened.all()) else ~opened.flatten(1)
    return PanelDifferences(
        values.flatten(1, 2), closed, j - 1, data.weights, data.observed.sum(1), data.appearance, data.clusters
    )


def _difference(data: PanelData, part: slice, opened: Tensor) -> Tensor:
    """Differences (n, t, J - 1, k) of some people, zero where closed; says in ``opened`` where they are not."""
    chosen = data.chosen[part][..., None]
    n, t, others, j = *opened.shape, opened.shape[-1] + 1
    other = torch.arange(others, device=chosen.device).expand(n, t, others)
    other = other + (other >= chosen)
    torch.logical_and(data.available[part].gather(2, other), data.observed[part][..., None], out=opened)
    rows = data.attributes[part].reshape(n * t * j, -1)
    situation = j * torch.arange(n * t, device=chosen.device).view(n, t, 1)
    # Whole rows are copied: one look-up for all attributes.
    differences = rows.index_select(0, (situation + other).flatten()).view(n, t, others, -1)
    differences -= rows.index_select(0, (situation + chosen).flatten()).view(n, t, 1, -1)
    return differences if bool(opened.all()) else differences.masked_fill_(~opened[..., None], 0.0)


def join_panels(parts: Sequence[PanelDifferences]) -> PanelDifferences:
    """Put the panels of several groups of people together, padded to the longest panel and the largest choice set."""
    others = max(part.n_others for part in parts)
    situations = max(part.n_rows // part.n_others for part in parts)
    wide = [part.padded(situations, others) for part in parts]
    closed = None
    if any(part.closed is not None for part in wide):
        closed = torch.cat([part.closed_rows() for part in wide])
    return PanelDifferences(
        torch.cat([part.values for part in wide]),
        closed,
        others,
        torch.cat([part.weights for part in wide]),
        torch.cat([part.n_situations for part in wide]),
    )
