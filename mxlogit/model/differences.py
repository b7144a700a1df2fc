"""Attribute differences to the chosen alternative: conversion of choice data to panels.

Differences are taken before rounding. This module handles tensors only: no frames, no population, no draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mxlogit.choices.runs import first_places
from mxlogit.model.panels import Panels, arrange_panels

# Choice situations differenced at a time, which bounds memory.
_SITUATIONS_AT_ONCE = 16_384


class ChoiceSource(Protocol):
    """Interface of choice data to be differenced (see `mxlogit.choices.ChoiceData` for shapes)."""

    @property
    def choices(self) -> Any:
        """Rows of choice situations (`mxlogit.choices.rows.ChoiceRows`)."""
        ...

    @property
    def weights(self) -> Tensor:
        """Weights (n,) of the decision makers."""
        ...

    @property
    def appearance(self) -> Tensor | None:
        """Ranks (n,) of the decision makers by first appearance in the source."""
        ...

    @property
    def clusters(self) -> Tensor | None:
        """Clusters (n,) of the decision makers."""
        ...


def difference_panels(
    data: ChoiceSource,
    order: list[int] | None = None,
    dtype: torch.dtype | None = None,
    covariates: Sequence[int] = (),
) -> Panels:
    """Difference the attributes of every situation against its chosen alternative.

    Parameters
    ----------
    data : ChoiceData
        Choices.
    order : list of int, optional
        Columns to use, in order (fixed coefficients first); all by default.
    dtype : torch.dtype, optional
        Floating point type to which the differences are rounded; the type of the data by default.
    covariates : sequence of int
        Columns that hold covariates of the decision makers.

    Returns
    -------
    PanelDifferences or RaggedPanels
    """
    rows, sizes = data.choices.rows, data.choices.set_sizes
    kind = rows.dtype if dtype is None else dtype
    columns = None if order is None or order == list(range(rows.shape[1])) else order
    width = rows.shape[1] if columns is None else len(columns)
    values = torch.empty(len(rows) - len(sizes) + 1, width, dtype=kind, device=rows.device)
    values[-1] = 0.0
    first = first_places(sizes)
    for start in range(0, len(sizes), _SITUATIONS_AT_ONCE):
        part = slice(start, min(start + _SITUATIONS_AT_ONCE, len(sizes)))
        begin, end = int(first[part.start]), int(first[part.stop])
        found = _difference(rows[begin:end], sizes[part].long(), data.choices.chosen_ranks[part])
        target = values[begin - part.start : end - part.stop]
        target.copy_(found if columns is None else found[:, columns])
    others = sizes.long() - 1
    lengths = data.choices.panel_lengths
    about = data.weights.to(kind), data.appearance, data.clusters
    known = rows[first[first_places(lengths)[:-1]]][:, list(covariates)].double() if covariates else None
    return arrange_panels(values, others, lengths, *about, known)


def _difference(rows: Tensor, sizes: Tensor, ranks: Tensor) -> Tensor:
    """Rows (r, k) of the other alternatives minus the row of the chosen one."""
    chosen = first_places(sizes)[:-1] + ranks
    # Whole rows are copied, with one look-up for all attributes.
    other = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    other[chosen] = False
    differences = rows[other]
    differences -= rows[chosen.repeat_interleave(sizes - 1)]
    return differences
