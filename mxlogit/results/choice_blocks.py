"""Choice sets beside the coefficients of their decision makers, in blocks that fit in memory.

Quantities of single rows use all nodes of a source, so that equal situations have equal values whatever else is in the
frame. Quantities that are summed over situations may take windows of the nodes in turn: a window of a Sobol sequence is
a net itself, and the sum over many situations uses all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxlogit.choices import ChoiceData
from mxlogit.choices.chunks import cells_at_once
from mxlogit.choices.runs import places_of_runs
from mxlogit.model.likelihood import choice_probabilities
from mxlogit.results.coefficient_sources import CoefficientSource, Part

# Rows x samples x nodes in memory at a time (measured for 2,000 people, 10 situations of 3 alternatives, 4,096 nodes:
# .8 s at 100,000 to 400,000, 2.3 s at 2,000,000).
_CELLS = cells_at_once(0.1)
# Rows x samples x nodes of a sum over situations: a third of a second.
_BUDGET = 60_000_000
# Fewest blocks per window.
_BLOCKS_PER_WINDOW = 4

# A function of coefficients (s, r, k) or (m, s, r, k) and weights of nodes, broadcastable to (m, s, r), which returns
# weighted sums over nodes (m, ..., s).
NodeFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ChoiceBlock:
    """Choice situations with equally many available alternatives, and the coefficients of their decision makers.

    Attributes
    ----------
    situations : Tensor, int64, shape (m,)
        Indices of the situations in the data.
    rows : Tensor, int64, shape (m, j)
        Indices of their alternatives among the rows of the data.
    levels : Tensor, float64, shape (m, j, k)
        Attributes of the model.
    columns : Tensor, shape (m, j, K)
        All columns of the data.
    coefficients : Tensor, float64, shape (s, r, k) or (m, s, r, k)
        Coefficients by sample and node.
    weights : Tensor, float64, shape (1 or m, 1 or s, r)
        Weights of the nodes.
    classes : int
        Number of classes, of each of which draws have one node, in turn.
    """

    situations: Tensor
    rows: Tensor
    levels: Tensor
    columns: Tensor
    coefficients: Tensor
    weights: Tensor
    classes: int = 1

    @property
    def is_weighted(self) -> bool:
        """Whether nodes of people have weights of their own."""
        return self.classes == 1 and self.coefficients.dim() == 4 and len(self.weights) > 1

    def average(self, function: NodeFunction, width: int = 1) -> Tensor:
        """Average a function over the nodes.

        Parameters
        ----------
        function : callable
            Function of coefficients and weights, as in `NodeFunction`.
        width : int
            Cells in memory per alternative and node.

        Returns
        -------
        Tensor, shape (m, ..., s)
        """
        samples, nodes = self.coefficients.shape[-3:-1]
        step = max(1, _CELLS // max(1, self.levels[..., 0].numel() * samples * width))
        parts = torch.arange(nodes, device=self.levels.device).split(step)
        first, *others = (function(self.coefficients[..., p, :], self.weights[..., p]) for p in parts)
        return sum(others, first)

    def probabilities(self, coefficients: Tensor, levels: Tensor | None = None) -> Tensor:
        """Choice probabilities (m, j, s, r) at attributes (m, j, k), by default those of the block."""
        levels = self.levels if levels is None else levels
        found = choice_probabilities(levels - levels[:, :1], coefficients.flatten(-3, -2))
        return found.unflatten(-1, coefficients.shape[-3:-1])


def compute_utilities(levels: Tensor, coefficients: Tensor, base: Tensor | None = None) -> Tensor:
    """Systematic utilities (m, j, s, r) relative to that of attributes ``base`` (m, k), by default the first row.

    Attributes are differenced first, so a constant added to a column has no effect.
    """
    differences = levels - (levels[:, :1] if base is None else base[:, None])
    flat = coefficients.flatten(-3, -2)
    return (differences @ flat.mT).unflatten(-1, coefficients.shape[-3:-1])


def choice_blocks(
    data: ChoiceData, columns: list[int], source: CoefficientSource, *, fewest: int | None = None, width: int = 1
) -> Iterator[ChoiceBlock]:
    """Iterate over the choice situations of the data.

    Parameters
    ----------
    data : ChoiceData
        Choice situations; their choices are not used.
    columns : list of int
        Positions of the attributes of the model, in its order.
    source : CoefficientSource
        Coefficients of the people of the data.
    fewest : int, optional
        Fewest nodes of a window, for values that are summed over situations; all nodes by default.
    width : int
        Cells in memory per row and node.
    """
    for part in source.parts(data):
        if part.people is None:
            yield from _blocks_of_part(data, columns, part, fewest, width)
            continue
        people = part.people.to(data.choices.rows.device)
        places = _Places.of(data, people)
        for block in _blocks_of_part(data.take(people), columns, part, fewest, width):
            yield replace(block, situations=places.situations[block.situations], rows=places.rows[block.rows])


@dataclass(frozen=True)
class _Places:
    """Indices of some people's situations and rows in the whole data."""

    situations: Tensor
    rows: Tensor

    @classmethod
    def of(cls, data: ChoiceData, people: Tensor) -> _Places:
        first = data.first_situations
        return cls(places_of_runs(first[people], first.diff()[people]), data.rows_of_people(people))


def _blocks_of_part(
    data: ChoiceData, columns: list[int], part: Part, fewest: int | None, width: int
) -> Iterator[ChoiceBlock]:
    """Blocks of the people of one part of a source, with indices among their own situations and rows."""
    device, lengths = data.choices.rows.device, data.choices.panel_lengths
    coefficients = part.coefficients.to(device, torch.float64)
    samples, nodes = coefficients.shape[-3:-1]
    weights = None if part.weights is None else part.weights.to(coefficients)
    common, classes = coefficients.dim() == 3, part.membership.n_classes if part.membership else 1
    window = nodes
    if fewest is None:
        nodes = window = min(nodes, part.nodes_of_rows or nodes)
    elif common:
        cells = len(data.choices.rows) * samples * width * classes
        if part.latents is not None:
            # Coefficients are computed for every choice situation.
            cells *= coefficients.shape[-1]
        window = classes * _window(cells, nodes // classes, -(-fewest // classes))
    at_once = _CELLS // (samples * window * width)
    if part.latents is not None:
        # Coefficients of every choice situation are in memory, besides the utilities of its alternatives.
        at_once //= coefficients.shape[-1]
    if window < nodes:
        at_once = min(at_once, len(data.choices.rows) * window // (nodes * _BLOCKS_PER_WINDOW))
    equal = coefficients.new_full((1, 1, window), 1.0 / window)
    person = torch.zeros(0, dtype=torch.int64)
    if not common or weights is not None:
        person = torch.arange(data.n_decision_makers, device=device).repeat_interleave(lengths)
    for number, (found, sets) in enumerate(data.choice_sets(max(1, at_once))):
        situations = torch.arange(found.start, found.stop, device=device) if isinstance(found, slice) else found
        start = number * window % (nodes // window * window)
        if part.membership is not None:
            known = sets[:, 0, data.columns(part.membership.names)].double()
            mine = part.membership.weights(known, slice(start // classes, (start + window) // classes))
        else:
            mine = equal if weights is None else weights[person[situations]][:, None]
        if part.latents is not None:
            known = sets[:, 0, data.columns(part.latents.model.shifters.names)].double()
            of_sets = part.latents.window(slice(start, start + window)).coefficients(known)
        else:
            of_sets = coefficients[:, start : start + window] if common else coefficients[person[situations]]
        yield ChoiceBlock(
            situations,
            data.rows_of(situations, sets.shape[1]),
            sets[..., columns].double(),
            sets,
            of_sets,
            mine,
            classes,
        )


def _window(cells: int, nodes: int, fewest: int) -> int:
    """Number of nodes of a window, a power of two of at least ``fewest``, or all."""
    window = nodes
    while window > fewest and cells * window > _BUDGET:
        window = 1 << ((window - 1).bit_length() - 1)
    return window
