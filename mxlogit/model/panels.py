"""Panels of choices: attributes as differences to the chosen alternative, ready for the kernel.

`PanelDifferences` are dense: the same choice situations for every person, what is padding being closed.
`RaggedPanels` hold rows as long as they are and hand out dense pieces of people with like panels, so that time and
memory follow the rows of the data, whatever the longest panel and the largest choice set.

This module knows tensors only: no frames, no population, no draws.
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

# Share of a dense array that may be padding before rows are held as long as they are.
_MOST_PADDING = 0.25
# Windows and plans of pieces that ragged panels remember: passes alternate between few of them.
_REMEMBERED = 2
_MAKING = threading.Lock()


class OpenRows(NamedTuple):
    """Rows of people without padding, person by person and section by section.

    Attributes
    ----------
    values : Tensor, shape (r, k)
    sizes : Tensor, shape (s,)
        Rows of every choice situation that has some.
    n_rows, n_situations : Tensor, shape (n,)
        Rows, and situations that have some, of every person.
    """

    values: Tensor
    sizes: Tensor
    n_rows: Tensor
    n_situations: Tensor


class Section(NamedTuple):
    """Consecutive rows of a person: choice situations with equally many alternatives beside the chosen one."""

    situations: int
    others: int


@dataclass(frozen=True)
class _Ranked:
    """Panels that may know the order in which people first appeared in the source."""

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
        """Return the panels with ranks by first appearance, which then travel with every part of them."""
        if self.appearance is not None:  # type: ignore[attr-defined]
            return self
        weights: Tensor = self.weights  # type: ignore[attr-defined]
        return replace(self, appearance=torch.arange(len(weights), device=weights.device))  # type: ignore[call-arg]


@dataclass(frozen=True)
class PanelDifferences(_Ranked):
    """Attributes differenced against the chosen alternative, of people with equally many rows.

    Attributes
    ----------
    values : Tensor, shape (n, r, k)
        x_j - x_chosen for the other alternatives of each situation, the alternatives of a situation being adjacent.
        Zero where closed.
    closed : Tensor or None, bool, shape (n, r)
        True where the alternative is unavailable or the situation is padding; None when nowhere.
    sections : tuple of Section
        What the r rows of a person are.
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
    sections: tuple[Section, ...]
    weights: Tensor
    n_situations: Tensor
    appearance: Tensor | None = None
    clusters: Tensor | None = None

    @classmethod
    def regular(
        cls, values: Tensor, n_others: int, weights: Tensor | None = None, closed: Tensor | None = None
    ) -> PanelDifferences:
        """Panels (n, r, k) whose situations all have ``n_others`` alternatives beside the chosen one."""
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
        """Number r of rows of a person."""
        return self.values.shape[1]

    @property
    def n_rows_each(self) -> Tensor:
        """The same of every person, (n,)."""
        return self.n_situations.new_full((len(self),), self.n_rows)

    @property
    def n_columns(self) -> int:
        """Number k of attributes."""
        return self.values.shape[2]

    def take(self, people: slice | Tensor) -> PanelDifferences:
        """Return the panels of some people (a view for a slice, a copy for an index)."""
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
        """``closed``, False everywhere where that is None."""
        return self.values.new_zeros(self.values.shape[:2], dtype=torch.bool) if self.closed is None else self.closed

    def open_rows(self) -> OpenRows:
        """Return the rows without padding."""
        opened = ~self.closed_rows()
        sizes = torch.cat([part.sum(-1) for part in self.by_section(opened)], 1)
        real = sizes > 0
        return OpenRows(self.values[opened], sizes[real], opened.sum(1), real.sum(1))

    def by_section(self, rows: Tensor) -> list[Tensor]:
        """Views (n, t, J - 1, ...) of rows (n, r, ...), section by section."""
        if len(self.sections) == 1:
            return [rows.unflatten(1, self.sections[0])]
        sizes = [section.situations * section.others for section in self.sections]
        starts = itertools.accumulate(sizes, initial=0)
        # Slices, since views that are made together may not be overwritten where gradients are wanted.
        return [
            rows[:, start : start + size].unflatten(1, section)
            for start, size, section in zip(starts, sizes, self.sections, strict=False)
        ]

    def single_section(self, others: int = 0) -> PanelDifferences:
        """Return the panels with all situations padded to equally many alternatives, ``others`` at least."""
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
        """Iterate over groups of at most ``people`` people and about ``rows`` rows; places are slices here."""
        yield from self.chunks(max(1, min(people, rows // max(1, self.n_rows))))

    def dense(self) -> PanelDifferences:
        """Return itself: all people in one piece."""
        return self


def _widened(part: Tensor, others: int, *, closed: bool) -> Tensor:
    """Pad (n, t, J - 1, ...) to more alternatives: closed ones, or zeros."""
    shape = list(part.shape)
    shape[2] = others - shape[2]
    return torch.cat([part, part.new_full(shape, float(closed))], 2)


@dataclass(frozen=True, eq=False)
class RaggedPanels(_Ranked):
    """Panels of people, as long as they are (a `PanelSource`).

    Attributes
    ----------
    values : Tensor, shape (r + 1, k)
        Differences to the chosen alternative, person after person, situation after situation, of these people and
        perhaps of others before and after them; the last row is zero and stands for padding.
    others : Tensor, int64, shape (s,)
        Number of rows of every choice situation, which may be none.
    n_situations : Tensor, int64, shape (n,)
        Number of situations of every person.
    weights : Tensor, shape (n,)
    appearance, clusters : Tensor or None, shape (n,)
        As of `PanelDifferences`.
    classes : tuple of int
        Sizes to which situations are padded, increasing.
    first_row : int
        Place of the first row of these people.
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
        """Return what a pickle keeps: not what is remembered to save time."""
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
        """Place of the first situation of every person, and the number of all, (n + 1,)."""
        return first_places(self.n_situations)

    @cached_property
    def _first_rows(self) -> Tensor:
        """Place of the first row of every person among these people's, and the number of all, (n + 1,)."""
        return first_places(self.others)[self._first_situations]

    @property
    def n_columns(self) -> int:
        """Number k of attributes."""
        return self.values.shape[1]

    def to(self, dtype: torch.dtype) -> RaggedPanels:
        """Return the panels with attributes and weights in another floating point type."""
        return replace(self, values=self.values.to(dtype), weights=self.weights.to(dtype))

    def take(self, people: slice | Tensor) -> Panels:
        """Return the panels of some people (without copying attributes for a slice)."""
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
        """Iterate over groups of people with like panels: at most ``people`` people and about ``rows`` rows.

        Yields
        ------
        tuple of (place, PanelDifferences)
            Who they are: consecutive people as a slice, others as an index tensor.
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
    """Keep the last few of what was made, and return it; several threads may read and make at once."""
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
    """Panels of rows: a dense array where little of it is padding, else as long as they are.

    Parameters are those of `RaggedPanels`.
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
