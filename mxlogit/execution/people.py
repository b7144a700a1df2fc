"""Everybody in a fit, wherever their choices are: in memory, in shards on disk, or with other processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.errors import SpecificationError
from mxlogit.execution.processes import Team
from mxlogit.model.panels import PanelDifferences, Panels, RaggedPanels

# Rows of a person of the published simulation study: work limits count people like these.
_ROWS_OF_A_PERSON = 40


class PanelSource(Protocol):
    """The people of this process, to be met in order, a chunk at a time (`PanelDifferences`, `StreamedPanels`)."""

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        ...

    @property
    def n_rows(self) -> int:
        """Mean number of rows of a person, rounded up: what people cost."""
        ...

    @property
    def n_columns(self) -> int:
        """Number of attributes."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights (n,)."""
        ...

    def __len__(self) -> int: ...

    def chunks(self, size: int) -> Iterator[tuple[slice, Panels]]:
        """Iterate over consecutive people, at most ``size`` at a time."""
        ...

    def take(self, people: Tensor) -> Panels:
        """Return some people, by an index tensor, in memory."""
        ...


def dense_pieces(panels: PanelSource, people: int) -> Iterator[tuple[slice | Tensor, PanelDifferences]]:
    """Iterate over dense arrays of about ``people`` people's rows each.

    Yields
    ------
    tuple of (place, PanelDifferences)
        Who they are: consecutive people as a slice, others as an index tensor.
    """
    for window, part in panels.chunks(people):
        for group, piece in part.pieces(people * max(1, panels.n_rows), people):
            yield places_inside(window.start, group), piece


def places_inside(start: int, group: slice | Tensor) -> slice | Tensor:
    """Places of a group whose own places are counted from ``start``."""
    return slice(start + group.start, start + group.stop) if isinstance(group, slice) else start + group


def on_processor(place: slice | Tensor) -> slice | Tensor:
    """Places as they are, but an index tensor in the processor's memory."""
    return place if isinstance(place, slice) else place.cpu()


@dataclass(frozen=True)
class People:
    """Everybody, of whom this process holds a share.

    Attributes
    ----------
    panels : PanelSource
        The share of this process.
    first : int
        Place of its first person among everybody.
    count : int
        Number of people of all processes.
    weight : float
        Sum of the weights of all.
    team : Team
    rows : int
        About how many rows all of them have.
    """

    panels: PanelSource
    first: int
    count: int
    weight: float
    team: Team
    rows: int

    @classmethod
    def gather(cls, panels: PanelSource, team: Team | None = None) -> People:
        """Count the people of all processes; those of this process alone without a team."""
        team = Team() if team is None else team
        shares = team.gather((len(panels), float(panels.weights.double().sum()), len(panels) * panels.n_rows))
        counts, weights, rows = zip(*shares, strict=True)
        return cls(panels, sum(counts[: team.rank]), sum(counts), sum(weights), team, sum(rows))

    def __len__(self) -> int:
        return self.count

    @property
    def load(self) -> int:
        """What a pass over these people costs, in people with ten choices of five; no less than their number."""
        return max(self.count, self.rows // _ROWS_OF_A_PERSON)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        return self.panels.like

    @cached_property
    def counts(self) -> Tensor:
        """Numbers of rows and of choice situations of each person of this process, (2, n), float64; read once."""
        whole = max(1, len(self.panels))
        parts = [torch.stack([panel.n_rows_each, panel.n_situations]) for _, panel in self.panels.chunks(whole)]
        return torch.cat(parts, 1).double().cpu() if parts else torch.zeros(2, 0, dtype=torch.float64)

    def total(self, numbers: Tensor) -> float:
        """Sum over everybody of numbers (n,) of each person of this process."""
        (total,) = self.team.total(numbers.sum())
        return float(total)

    def here(self, people: Tensor) -> Tensor:
        """Those of ``people`` (increasing places among everybody) who are of this process, as places in its share."""
        places = people - self.first
        return places[(places >= 0) & (places < len(self.panels))]

    def draw(self, size: int, key: tuple[int, ...]) -> Tensor:
        """Places of ``size`` people at random, increasing; the same for all processes."""
        return torch.randperm(self.count, generator=make_generator(*key))[:size].sort().values

    def own(self) -> Panels:
        """The people of this process, in memory, for engines that draw mini-batches of them.

        Raises
        ------
        SpecificationError
            If this process has none.
        """
        if len(self.panels) == 0:
            raise SpecificationError(f"process {self.team.rank} has no decision makers to draw mini-batches from.")
        if isinstance(self.panels, (PanelDifferences, RaggedPanels)):
            return self.panels
        return self.panels.take(torch.arange(len(self.panels)))

    def alone(self) -> Panels:
        """Everybody, in memory, for engines that need that.

        Raises
        ------
        SpecificationError
            If other processes hold some of them.
        """
        if self.team.size > 1:
            raise SpecificationError("several processes can fit with method='vi' only; run other methods in one.")
        return self.own()

    def take(self, people: Tensor) -> People:
        """Return some people by increasing places among everybody, in memory, spread over processes as they are."""
        mine = self.here(people)
        panels = self.panels.take(mine.to(self.like.device))
        sums = torch.stack([panels.weights.double().sum().cpu(), torch.tensor(1.0 * len(panels) * panels.n_rows)])
        weight, rows = self.team.total(sums)[0].tolist()
        return People(panels, int((people < self.first).sum()), len(people), weight, self.team, int(rows))
