"""Runs of consecutive elements of different lengths in one long array.

This module knows tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def first_places(lengths: Tensor) -> Tensor:
    """Place of the first element of every run of given lengths (m,), and the number of all, (m + 1,), int64."""
    result = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=result[1:])
    return result


def places_of_runs(first: Tensor, lengths: Tensor) -> Tensor:
    """Places first, first + 1, ... of runs of given lengths, one run after the other, int64."""
    before = first_places(lengths)
    shift = first - before[:-1]
    return shift.repeat_interleave(lengths.long()) + torch.arange(int(before[-1]), device=first.device)
