"""Dense panels of choices, stored as attribute differences to the chosen alternative: the input of the kernel.

Every person has the same number of rows, with padding marked in ``unavailable``. This module handles tensors only: no
frames, no population, no draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class AvailableRows(NamedTuple):
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
class Ranked:
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
class PanelDifferences(Ranked):
    """Dense panels: attribute differences to the chosen alternative, with equally many rows per person.

    Attributes
    ----------
    values : Tensor, shape (n, r, k)
        Differences x_j - x_chosen of the other alternatives; alternatives of a situation are adjacent. Zero where
        unavailable.
    unavailable : Tensor or None, bool, shape (n, r)
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
    covariates : Tensor or None, float64, shape (n, z)
        Covariates of each decision maker on which latent normals or the probabilities of classes depend.
    log_nodes : Tensor or None, float64, shape (q,)
        Log weights of the nodes of tastes over which the probability of every situation is averaged: the rows of a
        situation then come once for each of them (`mxlogit.model.situation_nodes`).
    """

    values: Tensor
    unavailable: Tensor | None
    sections: tuple[Section, ...]
    weights: Tensor
    n_situations: Tensor
    appearance: Tensor | None = None
    clusters: Tensor | None = None
    covariates: Tensor | None = None
    log_nodes: Tensor | None = None

    @classmethod
    def regular(
        cls, values: Tensor, n_others: int, weights: Tensor | None = None, unavailable: Tensor | None = None
    ) -> PanelDifferences:
        """Build panels from values (n, r, k) whose situations all have ``n_others`` non-chosen alternatives."""
        n, situations = len(values), values.shape[1] // n_others
        counts = torch.full((n,), situations, device=values.device)
        weights = values.new_ones(n) if weights is None else weights
        return cls(values, unavailable, (Section(situations, n_others),), weights, counts)

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
            None if self.unavailable is None else self.unavailable[people],
            self.sections,
            self.weights[people],
            self.n_situations[people],
            None if self.appearance is None else self.appearance[people],
            None if self.clusters is None else self.clusters[people],
            None if self.covariates is None else self.covariates[people],
            self.log_nodes,
        )

    @property
    def n_nodes(self) -> int:
        """Number of nodes of every situation."""
        return 1 if self.log_nodes is None else len(self.log_nodes)

    def to(self, dtype: torch.dtype) -> PanelDifferences:
        """Return the panels with attributes and weights in another floating point type."""
        return replace(self, values=self.values.to(dtype), weights=self.weights.to(dtype))

    def unavailable_rows(self) -> Tensor:
        """``unavailable`` as a tensor: all False if it is None."""
        return (
            self.values.new_zeros(self.values.shape[:2], dtype=torch.bool)
            if self.unavailable is None
            else self.unavailable
        )

    def available_rows(self) -> AvailableRows:
        """Return the rows without padding."""
        if self.log_nodes is not None:
            return self.first_nodes().available_rows()
        available = ~self.unavailable_rows()
        sizes = torch.cat([part.sum(-1) for part in self.by_section(available)], 1)
        real = sizes > 0
        return AvailableRows(self.values[available], sizes[real], available.sum(1), real.sum(1))

    def first_nodes(self) -> PanelDifferences:
        """The panels with one node of every situation."""
        first = [part[:, :: self.n_nodes].flatten(1, 2) for part in self.by_section(self.values)]
        unavailable = [part[:, :: self.n_nodes].flatten(1, 2) for part in self.by_section(self.unavailable_rows())]
        sections = tuple(Section(section.situations // self.n_nodes, section.others) for section in self.sections)
        return replace(
            self,
            values=torch.cat(first, 1),
            unavailable=torch.cat(unavailable, 1),
            sections=sections,
            log_nodes=None,
        )

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
        unavailable = torch.cat(
            [_widened(x, most, unavailable=True) for x in self.by_section(self.unavailable_rows())], 1
        )
        values = torch.cat([_widened(x, most, unavailable=False) for x in self.by_section(self.values)], 1)
        sections = (Section(values.shape[1], most),)
        return replace(self, values=values.flatten(1, 2), unavailable=unavailable.flatten(1), sections=sections)

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


def _widened(part: Tensor, others: int, *, unavailable: bool) -> Tensor:
    """Pad a section (n, t, J - 1, ...) to ``others`` rows per situation, with True if ``unavailable``, else zeros."""
    shape = list(part.shape)
    shape[2] = others - shape[2]
    return torch.cat([part, part.new_full(shape, float(unavailable))], 2)
