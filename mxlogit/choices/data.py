"""`ChoiceData`: the choices of a panel, the only form of data that the numerical code uses.

Choices are stored as rows, the available alternatives of one choice situation after the other, so that memory and time
are proportional to their number. Padded arrays, with axes n (decision maker), t (choice situation of that person),
j (alternative) and k (attribute), are built on request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mxlogit.choices.arrays import as_attributes, as_codes, as_labels, as_mask, as_names, as_numbers, as_positions
from mxlogit.choices.checks import GivenArrays, check_arrays
from mxlogit.choices.rows import ChoiceRows, PaddedArrays, pad_rows, rows_of_arrays
from mxlogit.choices.runs import first_places, places_of_runs
from mxlogit.errors import ChoiceDataError


@dataclass(frozen=True, eq=False, repr=False)
class ChoiceData:
    """Choices of a panel of decision makers.

    Attributes
    ----------
    choices : ChoiceRows
        Attributes of the r available alternatives of all s observed choice situations, and the chosen ones.
    weights : Tensor, shape (n,)
        Weight of each decision maker in sums over people.
    names : tuple of str
        Names of the k attributes.
    decision_makers : ndarray, shape (n,)
        Labels of the decision makers, in the order of the rows.
    n_alternatives : int
        Length j of the alternative axis of padded arrays.
    alternatives : ndarray or None, shape (j,)
        Labels of the alternatives; None if positions carry no label.
    appearance : Tensor or None, int64, shape (n,)
        Rank of each decision maker by first appearance in the frame; None if the data are in that order.
    clusters : Tensor or None, int64, shape (n,)
        Cluster of each decision maker, 0, 1, ...: the unit of clustered standard errors.
    """

    choices: ChoiceRows
    weights: Tensor
    names: tuple[str, ...]
    decision_makers: np.ndarray
    n_alternatives: int
    alternatives: np.ndarray | None = None
    appearance: Tensor | None = None
    clusters: Tensor | None = None

    @classmethod
    def from_arrays(
        cls,
        attributes: Tensor | np.ndarray,
        chosen: Tensor | np.ndarray,
        *,
        names: Sequence[str],
        available: Tensor | np.ndarray | None = None,
        observed: Tensor | np.ndarray | None = None,
        weights: Tensor | np.ndarray | None = None,
        decision_makers: Sequence[object] | np.ndarray | None = None,
        alternatives: Sequence[object] | np.ndarray | None = None,
        clusters: Sequence[object] | np.ndarray | None = None,
    ) -> ChoiceData:
        """Build choice data from arrays; the attributes are not copied where torch can use their memory.

        Parameters
        ----------
        attributes : array, shape (n, t, j, k)
            Attributes; float32 and float64 are kept, other numbers become float64. Memory is shared, except with
            reversed, big-endian, read-only and object arrays.
        chosen : array of int, shape (n, t)
            Position of the chosen alternative, 0 to j - 1; ignored, and possibly missing, where not observed.
        names : sequence of str, length k
            Names of the attributes.
        available : array of bool, shape (n, t, j), optional
            Availability of the alternatives; all True by default.
        observed : array of bool, shape (n, t), optional
            True for choice situations, False for padding; all True by default.
        weights : array, shape (n,), optional
            Positive frequency weights, the number of decision makers each one represents (see `mxlogit.MixedLogit`);
            one by default.
        decision_makers : sequence, length n, optional
            Unique labels; 0 to n - 1 by default.
        alternatives : sequence, length j, optional
            Unique labels; none by default.
        clusters : sequence, length n, optional
            Label of each decision maker's cluster, for clustered standard errors.

        Returns
        -------
        ChoiceData

        Raises
        ------
        ChoiceDataError
            If shapes are wrong, values are missing, positions are out of range, or a chosen alternative is
            unavailable; the message lists all problems.
        """
        x = as_attributes(attributes)
        n, t, j, _ = x.shape
        weight = torch.ones(n) if weights is None else as_numbers("weights", weights)
        given = GivenArrays(
            attributes=x,
            available=as_mask("available", available, (n, t, j), x.device),
            observed=as_mask("observed", observed, (n, t), x.device),
            chosen=as_positions("chosen", chosen, x.device),
            weights=weight.to(x),
            names=as_names(names),
            decision_makers=np.arange(n) if decision_makers is None else as_labels("decision_makers", decision_makers),
            alternatives=None if alternatives is None else as_labels("alternatives", alternatives),
        )
        check_arrays(given)
        return cls(
            choices=rows_of_arrays(x, given.available, given.observed, given.chosen),
            weights=given.weights,
            names=given.names,
            decision_makers=given.decision_makers,
            n_alternatives=j,
            alternatives=given.alternatives,
            clusters=None if clusters is None else as_codes("clusters", clusters, n).to(x.device),
        )

    def __repr__(self) -> str:
        return (
            f"<ChoiceData: {self.n_decision_makers:,} decision makers, {self.n_situations:,} choice situations, "
            f"{self.n_alternatives} alternatives; {' '.join(self.names)}>"
        )

    @property
    def n_decision_makers(self) -> int:
        """Number of decision makers."""
        return len(self.decision_makers)

    @property
    def n_situations(self) -> int:
        """Number of observed choice situations, summed over decision makers."""
        return len(self.choices.set_sizes)

    def padded(self) -> PaddedArrays:
        """Return the choices as arrays padded to the longest panel and to all alternatives."""
        return pad_rows(self.choices, self.n_alternatives)

    @property
    def attributes(self) -> Tensor:
        """Attributes (n, t, j, k), all finite, zero in padding."""
        return self.padded().attributes

    @property
    def available(self) -> Tensor:
        """Availability (n, t, j); every situation, padding included, has at least one available alternative."""
        return self.padded().available

    @property
    def observed(self) -> Tensor:
        """Mask (n, t) of observed situations; padding follows the observed situations of each person."""
        return self.padded().observed

    @property
    def chosen(self) -> Tensor:
        """Position (n, t) of the chosen alternative, 0 in padding."""
        return self.padded().chosen

    @cached_property
    def first_rows(self) -> Tensor:
        """Index of the first row of every situation, followed by the number of rows, (s + 1,)."""
        return first_places(self.choices.set_sizes)

    @cached_property
    def first_situations(self) -> Tensor:
        """Index of the first situation of every person, followed by the number of situations, (n + 1,)."""
        return first_places(self.choices.panel_lengths)

    def choice_sets(self, rows_at_once: int) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Iterate over batches of choice situations with equally many available alternatives.

        Parameters
        ----------
        rows_at_once : int
            Approximate number of rows of a batch.

        Yields
        ------
        tuple of (slice or Tensor of shape (m,), Tensor of shape (m, size, k))
            Indices of the situations, and the attributes of their available alternatives.
        """
        sizes, rows = self.choices.set_sizes, self.choices.rows
        if len(sizes) and bool((sizes == sizes[0]).all()):
            size = int(sizes[0])
            step = max(1, rows_at_once // size)
            for start in range(0, len(sizes), step):
                part = slice(start, min(start + step, len(sizes)))
                block = rows[part.start * size : part.stop * size]
                yield part, block.view(part.stop - part.start, size, rows.shape[1])
            return
        order = sizes.argsort(stable=True)
        counts = sizes[order].unique_consecutive(return_counts=True)
        for size, group in zip(counts[0].tolist(), order.split(counts[1].tolist()), strict=True):
            for part in group.split(max(1, rows_at_once // size)):
                yield part, rows[self.rows_of(part, size)]

    def rows_of(self, situations: slice | Tensor, size: int) -> Tensor:
        """Indices (m, size) of the rows of situations that all have ``size`` available alternatives."""
        return self.first_rows[:-1][situations, None] + torch.arange(size, device=self.choices.rows.device)

    def rows_of_people(self, people: Tensor) -> Tensor:
        """Indices of the rows of decision makers, one person after the other."""
        first = self.first_rows[self.first_situations]
        return places_of_runs(first[people], first.diff()[people])

    def to(self, *, device: torch.device | str, dtype: torch.dtype | None = None) -> ChoiceData:
        """Return the data on a device, with attributes and weights in ``dtype`` (unchanged by default)."""
        kind = self.choices.rows.dtype if dtype is None else dtype
        return replace(
            self,
            choices=self.choices.to(device, kind),
            weights=self.weights.to(device, kind),
            appearance=None if self.appearance is None else self.appearance.to(device),
            clusters=None if self.clusters is None else self.clusters.to(device),
        )

    def columns(self, names: Sequence[str]) -> list[int]:
        """Positions of attributes by name.

        Raises
        ------
        ChoiceDataError
            If a name is not an attribute.
        """
        return find_columns(self.names, names)

    def take(self, people: Tensor | slice) -> ChoiceData:
        """Return the panels of a subset of people, given by an index tensor (copied) or a slice (a view)."""
        index = people if isinstance(people, slice) else people.cpu().numpy()
        return replace(
            self,
            choices=self._take_rows(people),
            weights=self.weights[people],
            decision_makers=self.decision_makers[index],
            appearance=None if self.appearance is None else self.appearance[people],
            clusters=None if self.clusters is None else self.clusters[people],
        )

    def _take_rows(self, people: Tensor | slice) -> ChoiceRows:
        c = self.choices
        lengths, first = c.panel_lengths[people], self.first_situations
        situations: slice | Tensor
        rows: slice | Tensor
        if isinstance(people, slice):
            start, stop, _ = people.indices(self.n_decision_makers)
            begin, end = int(first[start]), int(first[max(start, stop)])
            situations, rows = slice(begin, end), slice(int(self.first_rows[begin]), int(self.first_rows[end]))
        else:
            situations = places_of_runs(first[people], lengths)
            rows = places_of_runs(self.first_rows[situations], c.set_sizes[situations])
        positions = None if c.positions is None else c.positions[rows]
        return ChoiceRows(c.rows[rows], c.set_sizes[situations], c.chosen_ranks[situations], lengths, positions)


def join_choices(parts: Sequence[ChoiceData]) -> ChoiceData:
    """Concatenate the choices of several groups of people with the same attributes and alternatives."""
    first, rows = parts[0], [part.choices for part in parts]
    positions = None
    if any(part.positions is not None for part in rows):
        positions = torch.cat([part.listed_positions() for part in rows])
    joined = ChoiceRows(
        torch.cat([part.rows for part in rows]),
        torch.cat([part.set_sizes for part in rows]),
        torch.cat([part.chosen_ranks for part in rows]),
        torch.cat([part.panel_lengths for part in rows]),
        positions,
    )
    weights = torch.cat([part.weights for part in parts])
    labels = np.concatenate([part.decision_makers for part in parts])
    return replace(first, choices=joined, weights=weights, decision_makers=labels, appearance=None, clusters=None)


def find_columns(known: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Positions of the attributes ``wanted`` in ``known``.

    Raises
    ------
    ChoiceDataError
        If a name is not an attribute.
    """
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ChoiceDataError(f"the choice data have no attribute {missing}; they have {list(known)}.")
    return [known.index(name) for name in wanted]
