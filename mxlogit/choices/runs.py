"""Indices of consecutive runs of different lengths in one array.

This module handles tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def first_places(lengths: Tensor) -> Tensor:
    """Index of the first element of every run of given lengths (m,), followed by the total length, (m + 1,), int64."""
    result = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=result[1:])
    return result


def places_of_runs(first: Tensor, lengths: Tensor) -> Tensor:
    """Concatenated indices first, first + 1, ... of runs of given first indices and lengths, int64."""
    before = first_places(lengths)
    shift = first - before[:-1]
    return shift.repeat_interleave(lengths.long()) + torch.arange(int(before[-1]), device=first.device)
