"""Layouts: groups of people with similar panels, whose rows form one dense array.

Choice situations are padded to one of few sizes; people with (nearly) equal numbers of situations of each size form a
group. Padding is bounded by a share of the real rows, whatever the longest panel and the largest choice set.

This module handles tensors only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.choices.runs import first_places

# Largest ratio of padded to real rows for situations of different sizes to share a size class.
_CLASS_PADDING = 1.5
# Largest padding of a group of people, as a share of its real rows.
_GROUP_PADDING = 0.25
# Padding, as a share of the rows of a piece, that is cheaper than one more piece (measured: the fixed cost of a piece
# is two milliseconds, as much as 10,000 rows of 250,000 with 16 draws).
_WORTH_A_PIECE = 0.04


def size_classes(others: Tensor) -> tuple[int, ...]:
    """Increasing sizes to which choice situations with ``others`` (s,) rows are padded."""
    sizes, counts = others[others > 0].unique(return_counts=True)
    classes: list[int] = []
    real = number = 0
    for size, count in zip(reversed(sizes.tolist()), reversed(counts.tolist()), strict=True):
        real, number = real + size * count, number + count
        if not classes or classes[-1] * number > _CLASS_PADDING * real:
            classes.append(size)
            real, number = size * count, count
    return tuple(reversed(classes)) or (1,)


@dataclass(frozen=True)
class Layout:
    """Group of people and the indices of the rows of their dense array.

    Attributes
    ----------
    people : slice or Tensor
        Consecutive people, or their increasing indices.
    index : Tensor of int, shape (m, r)
        Index of every row; the index of the row of zeros for padding.
    unavailable : Tensor or None, bool, shape (m, r)
        True for padding; None without padding.
    sections : tuple of (int, int)
        Number of situations and number of rows per situation, for each size that occurs.
    """

    people: slice | Tensor
    index: Tensor
    unavailable: Tensor | None
    sections: tuple[tuple[int, int], ...]


class Situations:
    """Choice situations of a group of people, to be arranged in dense arrays.

    Parameters
    ----------
    others : Tensor, shape (s,)
        Number of rows of every situation, person after person.
    n_situations : Tensor, shape (n,)
        Number of situations of every person.
    classes : tuple of int
        Sizes to which situations are padded, increasing.
    first_row, no_row : int
        Indices of the first row and of the row of zeros.
    """

    def __init__(
        self, others: Tensor, n_situations: Tensor, classes: tuple[int, ...], first_row: int, no_row: int
    ) -> None:
        self.others, self.classes, self.no_row = others, classes, no_row
        self._starts = first_row + first_places(others)[:-1]
        n, device = len(n_situations), others.device
        person = torch.arange(n, device=device).repeat_interleave(n_situations)
        kind = torch.bucketize(others, torch.tensor(classes, device=device))
        real = torch.nonzero(others > 0)[:, 0]
        # Cells are pairs (size, person), size after size.
        cell = kind[real] * n + person[real]
        counts = torch.bincount(cell, minlength=len(classes) * n)
        self.counts = counts.view(len(classes), n)
        self._in_order = real[cell.argsort(stable=True)]
        self._first_of_cell = first_places(counts)[:-1].view(len(classes), n)

    def layouts(self, rows: int, people: int) -> Iterator[Layout]:
        """Iterate over layouts of at most ``people`` people and about ``rows`` rows.

        Yields
        ------
        Layout
        """
        groups = self._group(max(1, int(_WORTH_A_PIECE * rows)))
        for group in groups:
            widest = self.counts[:, group].amax(1)
            size = int(widest @ torch.tensor(self.classes, device=widest.device))
            step = max(1, min(people, rows // max(1, size)))
            if len(groups) == 1:
                for start in range(0, len(group), step):
                    yield self.layout(slice(start, min(start + step, len(group))))
            else:
                for part in group.split(step):
                    yield self.layout(part)

    def _group(self, cheap: int) -> list[Tensor]:
        """Group people such that padding is a small share of their rows, or less than ``cheap`` rows."""
        shapes, shape_of, number = self.counts.flip(0).T.unique(dim=0, return_inverse=True, return_counts=True)
        sizes = list(reversed(self.classes))
        group_of: list[int] = []
        widest, members, real = [0] * len(sizes), 0, 0
        for shape, count in zip(shapes.tolist(), number.tolist(), strict=True):
            wider = [max(pair) for pair in zip(widest, shape, strict=True)]
            rows = real + count * _total(shape, sizes)
            padding = (members + count) * _total(wider, sizes) - rows
            if members == 0 or padding > max(_GROUP_PADDING * rows, cheap):
                group_of.append(group_of[-1] + 1 if group_of else 0)
                widest, members, real = shape, count, count * _total(shape, sizes)
            else:
                group_of.append(group_of[-1])
                widest, members, real = wider, members + count, rows
        place = torch.tensor(group_of, dtype=torch.int64, device=shape_of.device)[shape_of]
        return list(place.argsort(stable=True).split(place.bincount().tolist()))

    def layout(self, people: slice | Tensor) -> Layout:
        """Build the layout of ``people``."""
        counts, first = self.counts[:, people], self._first_of_cell[:, people]
        parts, sections = [], []
        for place, size in enumerate(self.classes):
            most = int(counts[place].amax()) if counts.shape[1] else 0
            if most:
                parts.append(self._rows(counts[place], first[place], most, size))
                sections.append((most, size))
        index = torch.cat(parts, 1) if parts else counts.new_full((counts.shape[1], 1), self.no_row)
        unavailable = index == self.no_row
        if self.no_row < torch.iinfo(torch.int32).max:
            index = index.to(torch.int32)
        return Layout(people, index, unavailable if bool(unavailable.any()) else None, tuple(sections) or ((1, 1),))

    def _rows(self, counts: Tensor, first: Tensor, most: int, size: int) -> Tensor:
        """Row indices (m, most x size) of the situations of one size, ``most`` per person."""
        rank = torch.arange(most, device=counts.device)
        there = rank < counts[:, None]
        situation = self._in_order[torch.where(there, first[:, None] + rank, 0)]
        row = torch.arange(size, device=counts.device)
        real = there[..., None] & (row < self.others[situation][..., None])
        return torch.where(real, self._starts[situation][..., None] + row, self.no_row).flatten(1)


def _total(shape: list[int], sizes: list[int]) -> int:
    """Number of rows of a person with ``shape`` situations of each of the ``sizes``."""
    return sum(count * size for count, size in zip(shape, sizes, strict=True))
