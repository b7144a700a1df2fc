"""Decision makers of a fit, with choices in memory, in shards on disk, or in other processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mxlogit.draws.generators import make_generator
from mxlogit.errors import SpecificationError
from mxlogit.execution.processes import Communicator
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.panels import Panels, RaggedPanels

# Rows per person of the published simulation study (ten choices of five), the unit in which work limits count people.
_ROWS_OF_A_PERSON = 40


class PanelSource(Protocol):
    """Interface of the people of this process, read chunk by chunk (`PanelDifferences`, `StreamedPanels`)."""

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        ...

    @property
    def n_rows(self) -> int:
        """Mean number of rows per person, rounded up: a measure of computing time."""
        ...

    @property
    def n_columns(self) -> int:
        """Number of attributes."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights (n,) of the decision makers."""
        ...

    def __len__(self) -> int: ...

    def chunks(self, size: int) -> Iterator[tuple[slice, Panels]]:
        """Iterate over consecutive people, at most ``size`` at a time."""
        ...

    def take(self, people: Tensor) -> Panels:
        """Return the panels of a subset of people, given by an index tensor, in memory."""
        ...


def dense_pieces(panels: PanelSource, people: int) -> Iterator[tuple[slice | Tensor, PanelDifferences]]:
    """Iterate over dense pieces, with about the rows of ``people`` people of average length each.

    Yields
    ------
    tuple of (slice or Tensor, PanelDifferences)
        Indices of the people (a slice if they are consecutive), and their panels.
    """
    for window, part in panels.chunks(people):
        for group, piece in part.pieces(people * max(1, panels.n_rows), people):
            yield places_inside(window.start, group), piece


def places_inside(start: int, group: slice | Tensor) -> slice | Tensor:
    """Convert indices of a group relative to ``start`` to absolute ones."""
    return slice(start + group.start, start + group.stop) if isinstance(group, slice) else start + group


def on_cpu(place: slice | Tensor) -> slice | Tensor:
    """Return indices on the CPU; slices are unchanged."""
    return place if isinstance(place, slice) else place.cpu()


@dataclass(frozen=True)
class People:
    """Decision makers of all processes, of whom this process holds a share.

    Attributes
    ----------
    panels : PanelSource
        Panels of the people of this process.
    first : int
        Global index (over all processes) of the first person of this process.
    count : int
        Number of people of all processes.
    weight : float
        Sum of the weights of all people.
    team : Communicator
        Processes of the fit.
    rows : int
        Approximate number of rows of all people.
    """

    panels: PanelSource
    first: int
    count: int
    weight: float
    team: Communicator
    rows: int

    @classmethod
    def gather(cls, panels: PanelSource, team: Communicator | None = None) -> People:
        """Combine the people of all processes of a team; without a team, of this process only."""
        team = Communicator() if team is None else team
        shares = team.gather((len(panels), float(panels.weights.double().sum()), len(panels) * panels.n_rows))
        counts, weights, rows = zip(*shares, strict=True)
        return cls(panels, sum(counts[: team.rank]), sum(counts), sum(weights), team, sum(rows))

    def __len__(self) -> int:
        return self.count

    @property
    def load(self) -> int:
        """Cost of a pass, in people with ten choices among five alternatives; at least the number of people."""
        return max(self.count, self.rows // _ROWS_OF_A_PERSON)

    @property
    def like(self) -> Tensor:
        """An empty tensor of the attributes' dtype and device."""
        return self.panels.like

    @cached_property
    def counts(self) -> Tensor:
        """Numbers of rows and of choice situations of each person of this process, (2, n), float64; cached."""
        whole = max(1, len(self.panels))
        parts = [torch.stack([panel.n_rows_each, panel.n_situations]) for _, panel in self.panels.chunks(whole)]
        return torch.cat(parts, 1).double().cpu() if parts else torch.zeros(2, 0, dtype=torch.float64)

    def total(self, numbers: Tensor) -> float:
        """Sum numbers (n,) of the people of this process over all people of all processes."""
        (total,) = self.team.all_reduce_sum(numbers.sum())
        return float(total)

    def local_indices(self, people: Tensor) -> Tensor:
        """Local indices of the decision makers in ``people`` (increasing global indices) that this process holds."""
        places = people - self.first
        return places[(places >= 0) & (places < len(self.panels))]

    def draw(self, size: int, key: tuple[int, ...]) -> Tensor:
        """Draw increasing global indices of ``size`` people at random; all processes draw the same."""
        return torch.randperm(self.count, generator=make_generator(*key))[:size].sort().values

    def local_panels(self) -> Panels:
        """Return the panels of this process in memory, for engines that draw mini-batches.

        Raises
        ------
        SpecificationError
            If this process has no people.
        """
        if len(self.panels) == 0:
            raise SpecificationError(f"process {self.team.rank} has no decision makers to draw mini-batches from.")
        if isinstance(self.panels, (PanelDifferences, RaggedPanels)):
            return self.panels
        return self.panels.take(torch.arange(len(self.panels)))

    def require_single_process(self) -> Panels:
        """Return the panels of all people in memory, for engines that run in a single process.

        Raises
        ------
        SpecificationError
            If there are several processes.
        """
        if self.team.size > 1:
            raise SpecificationError("several processes can fit with method='vi' only; run other methods in one.")
        return self.local_panels()

    def take(self, people: Tensor) -> People:
        """Return a subset of people, given by increasing global indices, in memory; they stay in their processes."""
        mine = self.local_indices(people)
        panels = self.panels.take(mine.to(self.like.device))
        sums = torch.stack([panels.weights.double().sum().cpu(), torch.tensor(1.0 * len(panels) * panels.n_rows)])
        weight, rows = self.team.all_reduce_sum(sums)[0].tolist()
        return People(panels, int((people < self.first).sum()), len(people), weight, self.team, int(rows))
