"""Panels of packed choices, read shard by shard; the next shard is prepared while the current one is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from mxlogit.choices.data import ChoiceData, join_choices
from mxlogit.choices.packed import PackedChoices
from mxlogit.model.differences import difference_panels
from mxlogit.model.panels import Panels


class StreamedPanels:
    """People of a pack as a `PanelSource`, with two shards in memory at a time.

    Parameters
    ----------
    packed : PackedChoices
        Choices on disk.
    names : sequence of str
        Attributes to use, fixed coefficients first.
    device : torch.device
        Device of the panels.
    dtype : torch.dtype
        Floating point type of the panels.
    """

    def __init__(self, packed: PackedChoices, names: Sequence[str], device: torch.device, dtype: torch.dtype) -> None:
        self.packed, self.names, self.order = packed, tuple(names), packed.columns(names)
        self.like = torch.zeros(0, 0, len(names), device=device, dtype=dtype)
        self.weights = packed.weights.to(device, dtype)

    @property
    def n_rows(self) -> int:
        """Mean number of rows per person, rounded up."""
        rows = sum(shard.rows - shard.situations for shard in self.packed.shards)
        return -(-rows // max(1, len(self)))

    @property
    def n_columns(self) -> int:
        """Number k of attributes."""
        return len(self.order)

    def __len__(self) -> int:
        return self.packed.n_decision_makers

    def chunks(self, size: int) -> Iterator[tuple[slice, Panels]]:
        """Iterate over consecutive people within shards, at most ``size`` at a time."""
        places = self.packed.first_places
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, 0) if self.packed.shards else None
            for shard, first in enumerate(places[:-1]):
                assert ahead is not None
                panel = ahead.result()
                ahead = reader.submit(self._read, shard + 1) if shard + 2 < len(places) else None
                for part, chunk in panel.chunks(size):
                    yield slice(first + part.start, first + part.stop), chunk

    def take(self, people: Tensor) -> Panels:
        """Return the panels of a subset of people, given by increasing indices, in memory."""
        places = torch.tensor(self.packed.first_places)
        wanted, parts = people.cpu(), []
        for shard in range(len(self.packed.shards)):
            inside = wanted[(wanted >= places[shard]) & (wanted < places[shard + 1])] - places[shard]
            if len(inside):
                parts.append(self.packed.read(shard).take(inside))
        return self._difference(join_choices(parts) if parts else self.packed.empty())

    def _read(self, shard: int) -> Panels:
        return self._difference(self.packed.read(shard))

    def _difference(self, data: ChoiceData) -> Panels:
        panels = difference_panels(data.to(device=self.like.device), self.order, self.like.dtype)
        return replace(panels, appearance=None)
