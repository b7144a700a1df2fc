"""Panels of choices, stored as attribute differences to the chosen alternative: the input of the kernel.

`PanelDifferences` are dense: every person has the same number of rows, with padding marked in ``closed``.
`RaggedPanels` store rows without padding and yield dense pieces of people with similar panels, so that time and memory
are proportional to the rows of the data, whatever the longest panel and the largest choice set.

This module handles tensors only: no frames, no population, no draws.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from mxlogit.choices.runs import first_places, places_of_runs
from mxlogit.model.layouts import Layout, Situations, size_classes

# Largest padding of a dense array, as a share of the real rows; with more, rows are stored without padding.
_MOST_PADDING = 0.25
# Number of divisions into chunks, and into pieces, that ragged panels cache: passes alternate between few of them.
_REMEMBERED = 2
# Lock of the caches.
_MAKING = threading.Lock()


class OpenRows(NamedTuple):
    """Rows without padding, person by person and section by section.

    Attributes
    ----------
    values : Tensor, shape (r, k)
        Differences to the chosen alternative.
    sizes : Tensor, shape (s,)
        Number of rows of every non-empty choice situation.
    n_rows, n_situations : Tensor, shape (n,)
        Numbers of rows and of non-empty choice situations of every person.
    """

    values: Tensor
    sizes: Tensor
    n_rows: Tensor
    n_situations: Tensor


class Section(NamedTuple):
    """Consecutive rows of a person: ``situations`` choice situations with ``others`` non-chosen alternatives each."""

    situations: int
    others: int


@dataclass(frozen=True)
class _Ranked:
    """Panels with the optional rank of each person by first appearance in the source."""

    def by_appearance(self) -> Self:
        """Return the panels in order of first appearance in the source."""
        appearance: Tensor | None = self.appearance  # type: ignore[attr-defined]
        if appearance is None:
            return self
        if bool((appearance.diff() > 0).all()):
            return replace(self, appearance=None)  # type: ignore[call-arg]
        ordered: Any = self.take(appearance.argsort())  # type: ignore[attr-defined]
        return replace(ordered, appearance=None)

    def ranked(self) -> Self:
        """Return the panels with ranks by first appearance, which subsets then inherit."""
        if self.appearance is not None:  # type: ignore[attr-defined]
            return self
        weights: Tensor = self.weights  # type: ignore[attr-defined]
        return replace(self, appearance=torch.arange(len(weights), device=weights.device))  # type: ignore[call-arg]


@dataclass(frozen=True)
class PanelDifferences(_Ranked):
    """Dense panels: attribute differences to the chosen alternative, with equally many rows per person.

    Attributes
    ----------
    values : Tensor, shape (n, r, k)
        Differences x_j - x_chosen of the other alternatives; alternatives of a situation are adjacent. Zero where
        closed.
    closed : Tensor or None, bool, shape (n, r)
        True where the alternative is unavailable or the situation is padding; None if there are no such rows.
    sections : tuple of Section
        Partition of the r rows of a person into choice situations.
    weights : Tensor, shape (n,)
        Weight of each decision maker in sums over people.
    n_situations : Tensor, shape (n,)
        Number of observed situations of each decision maker.
    appearance : Tensor or None, int64, shape (n,)
        Rank of each decision maker by first appearance in the source; None if people are in that order.
    clusters : Tensor or None, int64, shape (n,)
        Cluster 0, 1, ... of each decision maker, for standard errors.
    """

    values: Tensor
    closed: Tensor | None
    sections: tuple[Section, ...]
    weights: Tensor
    n_situations: Tensor
    appearance: Tensor | None = None
    clusters: Tensor | None = None

    @classmethod
    def regular(
        cls, values: Tensor, n_others: int, weights: Tensor | None = None, closed: Tensor | None = None
    ) -> PanelDifferences:
        """Build panels from values (n, r, k) whose situations all have ``n_others`` non-chosen alternatives."""
        n, situations = len(values), values.shape[1] // n_others
        counts = torch.full((n,), situations, device=values.device)
        weights = values.new_ones(n) if weights is None else weights
        return cls(values, closed, (Section(situations, n_others),), weights, counts)

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        return self.values[:0]

    @property
    def n_rows(self) -> int:
        """Number r of rows per person."""
        return self.values.shape[1]

    @property
    def n_rows_each(self) -> Tensor:
        """Number of rows of every person, padding included, (n,)."""
        return self.n_situations.new_full((len(self),), self.n_rows)

    @property
    def n_columns(self) -> int:
        """Number k of attributes."""
        return self.values.shape[2]

    def take(self, people: slice | Tensor) -> PanelDifferences:
        """Return the panels of a subset of people, given by a slice (a view) or an index tensor (a copy)."""
        return PanelDifferences(
            self.values[people],
            None if self.closed is None else self.closed[people],
            self.sections,
            self.weights[people],
            self.n_situations[people],
            None if self.appearance is None else self.appearance[people],
            None if self.clusters is None else self.clusters[people],
        )

    def to(self, dtype: torch.dtype) -> PanelDifferences:
        """Return the panels with attributes and weights in another floating point type."""
        return replace(self, values=self.values.to(dtype), weights=self.weights.to(dtype))

    def closed_rows(self) -> Tensor:
        """``closed`` as a tensor: all False if it is None."""
        return self.values.new_zeros(self.values.shape[:2], dtype=torch.bool) if self.closed is None else self.closed

    def open_rows(self) -> OpenRows:
        """Return the rows without padding."""
        opened = ~self.closed_rows()
        sizes = torch.cat([part.sum(-1) for part in self.by_section(opened)], 1)
        real = sizes > 0
        return OpenRows(self.values[opened], sizes[real], opened.sum(1), real.sum(1))

    def by_section(self, rows: Tensor) -> list[Tensor]:
        """Split rows (n, r, ...) into views (n, t, J - 1, ...), one per section."""
        if len(self.sections) == 1:
            return [rows.unflatten(1, self.sections[0])]
        sizes = [section.situations * section.others for section in self.sections]
        starts = itertools.accumulate(sizes, initial=0)
        # Slices instead of `split`, whose views must not be overwritten when gradients are needed.
        return [
            rows[:, start : start + size].unflatten(1, section)
            for start, size, section in zip(starts, sizes, self.sections, strict=False)
        ]

    def single_section(self, others: int = 0) -> PanelDifferences:
        """Return the panels with all situations padded to the same number of rows, at least ``others``."""
        most = max(others, *(section.others for section in self.sections))
        if len(self.sections) == 1 and self.sections[0].others == most:
            return self
        closed = torch.cat([_widened(x, most, closed=True) for x in self.by_section(self.closed_rows())], 1)
        values = torch.cat([_widened(x, most, closed=False) for x in self.by_section(self.values)], 1)
        sections = (Section(values.shape[1], most),)
        return replace(self, values=values.flatten(1, 2), closed=closed.flatten(1), sections=sections)

    def chunks(self, size: int) -> Iterator[tuple[slice, PanelDifferences]]:
        """Iterate over consecutive people, ``size`` at a time, without copying."""
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self.take(part)

    def pieces(self, rows: int, people: int) -> Iterator[tuple[slice | Tensor, PanelDifferences]]:
        """Iterate over slices of at most ``people`` consecutive people with about ``rows`` rows."""
        yield from self.chunks(max(1, min(people, rows // max(1, self.n_rows))))

    def dense(self) -> PanelDifferences:
        """Return the panels themselves."""
        return self


def _widened(part: Tensor, others: int, *, closed: bool) -> Tensor:
    """Pad a section (n, t, J - 1, ...) to ``others`` rows per situation, with True if ``closed``, else zeros."""
    shape = list(part.shape)
    shape[2] = others - shape[2]
    return torch.cat([part, part.new_full(shape, float(closed))], 2)


@dataclass(frozen=True, eq=False)
class RaggedPanels(_Ranked):
    """Panels stored without padding (a `PanelSource`).

    Attributes
    ----------
    values : Tensor, shape (r + 1, k)
        Differences to the chosen alternative, sorted by person and situation, possibly with rows of other people before
        and after; the last row is zero and is used for padding.
    others : Tensor, int64, shape (s,)
        Number of rows of every choice situation, possibly zero.
    n_situations : Tensor, int64, shape (n,)
        Number of situations of every person.
    weights : Tensor, shape (n,)
        Weight of each decision maker in sums over people.
    appearance, clusters : Tensor or None, shape (n,)
        Ranks and clusters as in `PanelDifferences`.
    classes : tuple of int
        Sizes to which situations are padded, increasing.
    first_row : int
        Index in ``values`` of the first row of these people.
    """

    values: Tensor
    others: Tensor
    n_situations: Tensor
    weights: Tensor
    appearance: Tensor | None
    clusters: Tensor | None
    classes: tuple[int, ...]
    first_row: int = 0
    _windows: dict[int, list[tuple[slice, RaggedPanels]]] = field(default_factory=dict, init=False, repr=False)
    _plans: dict[tuple[int, int], list[Layout]] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without caches."""
        kept = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**kept, "_windows": {}, "_plans": {}}

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        return self.values.new_zeros(0, 0, self.n_columns)

    @property
    def n_rows(self) -> int:
        """Mean number of rows of a person, rounded up."""
        return -(-int(self._first_rows[-1]) // max(1, len(self)))

    @property
    def n_rows_each(self) -> Tensor:
        """Number of rows of every person, (n,)."""
        return self._first_rows.diff()

    @cached_property
    def _first_situations(self) -> Tensor:
        """Index of the first situation of every person, followed by the number of situations, (n + 1,)."""
        return first_places(self.n_situations)

    @cached_property
    def _first_rows(self) -> Tensor:
        """Index of the first row of every person, counted from ``first_row``, then the number of rows, (n + 1,)."""
        return first_places(self.others)[self._first_situations]

    @property
    def n_columns(self) -> int:
        """Number k of attributes."""
        return self.values.shape[1]

    def to(self, dtype: torch.dtype) -> RaggedPanels:
        """Return the panels with attributes and weights in another floating point type."""
        return replace(self, values=self.values.to(dtype), weights=self.weights.to(dtype))

    def take(self, people: slice | Tensor) -> Panels:
        """Return the panels of a subset of people (attributes are not copied for a slice)."""
        lengths, first = self.n_situations[people], self._first_situations
        about = [None if x is None else x[people] for x in (self.weights, self.appearance, self.clusters)]
        if isinstance(people, slice):
            start, stop, _ = people.indices(len(self))
            return replace(
                self,
                others=self.others[int(first[start]) : int(first[max(start, stop)])],
                n_situations=lengths,
                weights=self.weights[people],
                appearance=about[1],
                clusters=about[2],
                first_row=self.first_row + int(self._first_rows[start]),
            )
        situations = places_of_runs(first[people], lengths)
        others = self.others[situations]
        rows = places_of_runs(self.first_row + first_places(self.others)[situations], others)
        values = self.values[torch.cat([rows, rows.new_tensor([len(self.values) - 1])])]
        return arrange_panels(values, others, lengths, self.weights[people], about[1], about[2])

    def chunks(self, size: int) -> Iterator[tuple[slice, RaggedPanels]]:
        """Iterate over consecutive people, ``size`` at a time, without copying."""
        if 0 < len(self) <= size:
            yield slice(0, len(self)), self
            return
        windows = self._windows.get(size)
        if windows is None:
            places = [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]
            windows = _remember(self._windows, size, [(place, self._part(place)) for place in places])
        yield from windows

    def open_rows(self) -> OpenRows:
        """Return the rows without padding."""
        n_rows, real = self._first_rows.diff(), first_places(self.others > 0)
        n_situations = real[self._first_situations].diff()
        values = self.values[self.first_row : self.first_row + int(n_rows.sum())]
        return OpenRows(values, self.others[self.others > 0], n_rows, n_situations)

    def _part(self, people: slice) -> RaggedPanels:
        part = self.take(people)
        assert isinstance(part, RaggedPanels)
        return part

    def pieces(self, rows: int, people: int) -> Iterator[tuple[slice | Tensor, PanelDifferences]]:
        """Iterate over groups of people with similar panels: at most ``people`` people and about ``rows`` rows.

        Yields
        ------
        tuple of (slice or Tensor, PanelDifferences)
            Indices of the people (a slice if they are consecutive), and their panels.
        """
        key = rows, people
        plan = self._plans.get(key)
        if plan is None:
            plan = _remember(self._plans, key, list(self._situations(self.classes).layouts(rows, people)))
        for layout in plan:
            yield layout.people, self._gather(layout)

    def dense(self) -> PanelDifferences:
        """Return all people in one piece, padded to the longest panel and the largest choice set."""
        largest = max(self.classes)
        return self._gather(self._situations((largest,)).layout(slice(0, len(self))))

    def _situations(self, classes: tuple[int, ...]) -> Situations:
        return Situations(self.others, self.n_situations, classes, self.first_row, len(self.values) - 1)

    def _gather(self, layout: Layout) -> PanelDifferences:
        people, index = layout.people, layout.index
        return PanelDifferences(
            self.values.index_select(0, index.flatten()).view(*index.shape, self.n_columns),
            layout.closed,
            tuple(Section(*section) for section in layout.sections),
            self.weights[people],
            self.n_situations[people],
            None if self.appearance is None else self.appearance[people],
            None if self.clusters is None else self.clusters[people],
        )


Panels = PanelDifferences | RaggedPanels


def _remember(found: dict[Any, Any], key: object, value: Any) -> Any:
    """Store a value in a cache of `_REMEMBERED` entries and return it; thread-safe."""
    with _MAKING:
        while len(found) >= _REMEMBERED:
            found.pop(next(iter(found)))
        found[key] = value
    return value


def arrange_panels(
    values: Tensor,
    others: Tensor,
    n_situations: Tensor,
    weights: Tensor,
    appearance: Tensor | None = None,
    clusters: Tensor | None = None,
) -> Panels:
    """Build panels from rows: dense if there is little padding, else ragged.

    The parameters are the attributes of `RaggedPanels`.
    """
    n, real = len(n_situations), len(values) - 1
    sizes, lengths = others.unique().tolist(), n_situations.unique().tolist()
    if len(sizes) == 1 and len(lengths) == 1 and real:
        dense = values[:-1].view(n, lengths[0] * sizes[0], values.shape[1])
        return PanelDifferences(
            dense, None, (Section(lengths[0], sizes[0]),), weights, n_situations, appearance, clusters
        )
    panels = RaggedPanels(values, others, n_situations, weights, appearance, clusters, size_classes(others))
    padded = n * max(lengths, default=1) * max(1, max(sizes, default=1))
    return panels.dense() if padded <= (1.0 + _MOST_PADDING) * max(real, n) else panels
