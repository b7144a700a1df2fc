"""Choice situations stored as rows of available alternatives, without padding, and as padded arrays.

This module handles tensors only: no frames, no labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxlogit.choices.runs import first_places


@dataclass(frozen=True)
class ChoiceRows:
    """Available alternatives of observed situations.

    Attributes
    ----------
    rows : Tensor, shape (r, k)
        Attributes of the alternatives, sorted by person and situation.
    set_sizes : Tensor, int32, shape (s,)
        Number of available alternatives of every situation.
    chosen_ranks : Tensor, int64, shape (s,)
        Index, from 0, of the chosen alternative among the rows of its situation.
    panel_lengths : Tensor, int64, shape (n,)
        Number of situations of every person.
    positions : Tensor or None, int32, shape (r,)
        Position of each row on the alternative axis; None if the rows of every situation have positions 0, 1, ... in
        order.
    """

    rows: Tensor
    set_sizes: Tensor
    chosen_ranks: Tensor
    panel_lengths: Tensor
    positions: Tensor | None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ChoiceRows:
        """Return the rows on a device, with attributes in ``dtype``."""
        return ChoiceRows(
            self.rows.to(device, dtype),
            self.set_sizes.to(device),
            self.chosen_ranks.to(device),
            self.panel_lengths.to(device),
            None if self.positions is None else self.positions.to(device),
        )

    def listed_positions(self) -> Tensor:
        """Positions (r,), int32, of the rows on the alternative axis."""
        if self.positions is not None:
            return self.positions
        first = first_places(self.set_sizes)[:-1].repeat_interleave(self.set_sizes.long())
        return (torch.arange(len(self.rows), device=self.rows.device) - first).to(torch.int32)


def rows_of_arrays(attributes: Tensor, available: Tensor, observed: Tensor, chosen: Tensor) -> ChoiceRows:
    """Extract the available alternatives of observed situations from padded arrays; no copy if there is no padding.

    Parameters
    ----------
    attributes : Tensor, shape (n, t, j, k)
        Attributes.
    available : Tensor, bool, shape (n, t, j)
        Availability of the alternatives.
    observed : Tensor, bool, shape (n, t)
        True for choice situations, False for padding.
    chosen : Tensor, int64, shape (n, t)
        Positions of the chosen alternatives; ignored where not observed.

    Returns
    -------
    ChoiceRows
    """
    n, t, j, k = attributes.shape
    lengths = observed.sum(1)
    if bool(observed.all()) and bool(available.all()):
        sizes = torch.full((n * t,), j, dtype=torch.int32, device=attributes.device)
        return ChoiceRows(attributes.reshape(n * t * j, k), sizes, chosen.reshape(-1), lengths, None)
    usable = available[observed]
    ranks = usable.long().cumsum(1).sub_(1).gather(1, chosen[observed][:, None])[:, 0]
    positions = None
    if not bool(usable.all()):
        positions = torch.nonzero(usable)[:, 1].to(torch.int32)
    real = available & observed[..., None]
    return ChoiceRows(attributes[real], usable.sum(1, dtype=torch.int32), ranks, lengths, positions)


@dataclass(frozen=True)
class PaddedArrays:
    """Choices padded to the longest panel (t) and to all alternatives (j).

    Attributes
    ----------
    attributes : Tensor, shape (n, t, j, k)
        Attributes, zero in padding and for unavailable alternatives.
    available : Tensor, bool, shape (n, t, j)
        Availability; every situation, padding included, has at least one available alternative.
    observed : Tensor, bool, shape (n, t)
        True for choice situations, False for padding.
    chosen : Tensor, int64, shape (n, t)
        Positions of the chosen alternatives, 0 in padding.
    """

    attributes: Tensor
    available: Tensor
    observed: Tensor
    chosen: Tensor


def pad_rows(choices: ChoiceRows, width: int) -> PaddedArrays:
    """Build padded arrays with ``width`` alternatives; attributes are not copied if there is no padding."""
    rows, sizes, lengths = choices.rows, choices.set_sizes, choices.panel_lengths
    n, t = len(lengths), max(1, int(lengths.max())) if len(lengths) else 1
    observed = torch.arange(t, device=rows.device) < lengths[:, None]
    chosen = torch.zeros(n, t, dtype=torch.int64, device=rows.device)
    k = rows.shape[1]
    if choices.positions is None and bool(observed.all()) and len(rows) == n * t * width:
        everything = torch.ones(n, t, width, dtype=torch.bool, device=rows.device)
        return PaddedArrays(rows.view(n, t, width, k), everything, observed, choices.chosen_ranks.view(n, t))
    positions = choices.listed_positions()
    situations = torch.nonzero(observed.flatten())[:, 0]
    cells = situations.repeat_interleave(sizes.long()) * width + positions
    attributes = rows.new_zeros(n * t * width, k)
    attributes[cells] = rows
    available = torch.zeros(n * t * width, dtype=torch.bool, device=rows.device)
    available[cells] = True
    available = available.view(n, t, width)
    available[..., 0] |= ~observed
    chosen[observed] = positions[first_places(sizes)[:-1] + choices.chosen_ranks].long()
    return PaddedArrays(attributes.view(n, t, width, k), available, observed, chosen)
