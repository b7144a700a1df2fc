"""Panels of choices without padding, and the choice between these and dense ones (`mxlogit.model.dense_panels`).

`RaggedPanels` yield dense pieces of people with similar panels, so that time and memory are proportional to the rows of
the data, whatever the longest panel and the largest choice set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mxlogit.choices.runs import first_places, places_of_runs
from mxlogit.model.dense_panels import AvailableRows, PanelDifferences, Ranked, Section
from mxlogit.model.layouts import Layout, Situations, size_classes

# Largest padding of a dense array, as a share of the real rows; with more, rows are stored without padding.
_MOST_PADDING = 0.25
# Number of divisions into chunks, and into pieces, that ragged panels cache: passes alternate between few of them.
_REMEMBERED = 2
# Lock of the caches.
_MAKING = threading.Lock()


@dataclass(frozen=True, eq=False)
class RaggedPanels(Ranked):
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
    appearance, clusters, covariates, log_nodes : Tensor or None, shape (n,), (n, z) or (q,)
        Ranks, clusters, covariates and nodes as in `PanelDifferences`; ``others`` has every node of a situation.
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
    covariates: Tensor | None = None
    log_nodes: Tensor | None = None
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
        return first_places(self._n_places)

    @property
    def _n_places(self) -> Tensor:
        """Number of nodes of all situations of every person, (n,)."""
        return self.n_situations if self.log_nodes is None else self.n_situations * len(self.log_nodes)

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
        about = tuple(None if x is None else x[people] for x in (self.appearance, self.clusters, self.covariates))
        if isinstance(people, slice):
            start, stop, _ = people.indices(len(self))
            return replace(
                self,
                others=self.others[int(first[start]) : int(first[max(start, stop)])],
                n_situations=lengths,
                weights=self.weights[people],
                appearance=about[0],
                clusters=about[1],
                covariates=about[2],
                first_row=self.first_row + int(self._first_rows[start]),
            )
        situations = places_of_runs(first[people], self._n_places[people])
        others = self.others[situations]
        rows = places_of_runs(self.first_row + first_places(self.others)[situations], others)
        values = self.values[torch.cat([rows, rows.new_tensor([len(self.values) - 1])])]
        appearance, clusters, covariates = about
        return arrange_panels(
            values, others, lengths, self.weights[people], appearance, clusters, covariates, self.log_nodes
        )

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

    def available_rows(self) -> AvailableRows:
        """Return the rows without padding."""
        if self.log_nodes is not None:
            return self._first_nodes(len(self.log_nodes)).available_rows()
        n_rows, real = self._first_rows.diff(), first_places(self.others > 0)
        n_situations = real[self._first_situations].diff()
        values = self.values[self.first_row : self.first_row + int(n_rows.sum())]
        return AvailableRows(values, self.others[self.others > 0], n_rows, n_situations)

    def _first_nodes(self, count: int) -> RaggedPanels:
        """The panels with one node of every situation, of which each has ``count``."""
        first, others = first_places(self.others)[:-1][::count], self.others[::count]
        values = torch.cat([self.values[places_of_runs(self.first_row + first, others)], self.values[-1:]])
        return replace(self, values=values, others=others, log_nodes=None, first_row=0)

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
        return Situations(self.others, self._n_places, classes, self.first_row, len(self.values) - 1)

    def _gather(self, layout: Layout) -> PanelDifferences:
        people, index = layout.people, layout.index
        return PanelDifferences(
            self.values.index_select(0, index.flatten()).view(*index.shape, self.n_columns),
            layout.unavailable,
            tuple(Section(*section) for section in layout.sections),
            self.weights[people],
            self.n_situations[people],
            None if self.appearance is None else self.appearance[people],
            None if self.clusters is None else self.clusters[people],
            None if self.covariates is None else self.covariates[people],
            self.log_nodes,
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
    covariates: Tensor | None = None,
    log_nodes: Tensor | None = None,
) -> Panels:
    """Build panels from rows: dense if there is little padding, else ragged.

    The parameters are the attributes of `RaggedPanels`.
    """
    n, real = len(n_situations), len(values) - 1
    nodes = 1 if log_nodes is None else len(log_nodes)
    sizes, lengths = others.unique().tolist(), (n_situations * nodes).unique().tolist()
    about = weights, n_situations, appearance, clusters
    if len(sizes) == 1 and len(lengths) == 1 and real:
        dense = values[:-1].view(n, lengths[0] * sizes[0], values.shape[1])
        return PanelDifferences(dense, None, (Section(lengths[0], sizes[0]),), *about, covariates, log_nodes)
    classes = size_classes(others)
    panels = RaggedPanels(
        *(values, others, n_situations, weights, appearance, clusters, classes),
        covariates=covariates,
        log_nodes=log_nodes,
    )
    padded = n * max(lengths, default=1) * max(1, max(sizes, default=1))
    return panels.dense() if padded <= (1.0 + _MOST_PADDING) * max(real, n) else panels
