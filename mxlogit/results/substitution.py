r"""Responses of choice probabilities to attributes: elasticities, marginal effects and diversion.

With tastes integrated out, :math:`\partial P_i / \partial x_j = E[\beta P_i (\delta_{ij} - P_j)]`: substitution is that
of people, and alternatives that the same people like are closer substitutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData
from mxlogit.choices.chunks import ROWS_AT_ONCE
from mxlogit.results.choice_blocks import ChoiceBlock, choice_blocks, compute_utilities
from mxlogit.results.coefficient_sources import CoefficientSource

# Fewest tastes per choice situation and sample: of sums, and of ratios within situations.
_FEWEST_OF_SUMS, _FEWEST_OF_RATIOS = 8, 64


@dataclass(frozen=True)
class Response:
    """Probabilities of a block, and their response to a change of an attribute of each alternative.

    Attributes
    ----------
    before : Tensor, shape (m, i, s)
        Probabilities.
    change : Tensor, shape (m, i, j, s)
        Change of the probability of alternative i by that of the attribute of alternative j.
    """

    before: Tensor
    change: Tensor


# A change of an attribute: the response of a block.
Change = Callable[[ChoiceBlock], Response]


@dataclass(frozen=True)
class Attribute:
    """An attribute of the model, with its products with covariates.

    Attributes
    ----------
    place : int
        Its position among the coefficients.
    products : tuple of int
        Positions of its products.
    covariates : tuple of int
        Position, among all columns of the data, of the covariate of each product.
    """

    place: int
    products: tuple[int, ...] = ()
    covariates: tuple[int, ...] = ()

    def coefficient(self, block: ChoiceBlock, coefficients: Tensor) -> Tensor:
        """Derivative of utility by the attribute, (s, r) or (m, s, r), at coefficients of people."""
        total = coefficients[..., self.place]
        for product, value in zip(self.products, self.values(block), strict=True):
            total = total + coefficients[..., product] * value[:, None, None]
        return total

    def values(self, block: ChoiceBlock) -> list[Tensor]:
        """Covariate (m,) of each product in the situations of a block."""
        return [block.columns[:, 0, covariate].double() for covariate in self.covariates]

    def replaced(self, block: ChoiceBlock, j: int, new: Tensor) -> Tensor:
        """Attributes (m, i, k) of a block in which this attribute of alternative ``j`` is ``new`` (m,)."""
        levels = block.levels.clone()
        levels[:, j, self.place] = new
        for product, value in zip(self.products, self.values(block), strict=True):
            levels[:, j, product] = new * value
        return levels


def derivative(attribute: Attribute) -> Change:
    """Derivatives of probabilities by an attribute."""

    def respond(block: ChoiceBlock) -> Response:
        def sums(coefficients: Tensor, weights: Tensor) -> Tensor:
            probability = block.probabilities(coefficients)
            slope = probability * (attribute.coefficient(block, coefficients) * weights)[:, None]
            pairs = -torch.einsum("misr,mjsr->mijs", slope, probability)
            pairs.diagonal(dim1=1, dim2=2).add_(slope.sum(-1).movedim(1, -1))
            return torch.cat([(probability * weights[:, None]).sum(-1)[:, None], pairs], 1)

        found = block.average(sums, width=2)
        return Response(found[:, 0], found[:, 1:])

    return respond


def relative_derivative(attribute: Attribute) -> Change:
    """Derivatives by the logarithm of the attribute: per relative change."""

    def respond(block: ChoiceBlock) -> Response:
        found = derivative(attribute)(block)
        return Response(found.before, found.change * block.levels[:, None, :, None, attribute.place])

    return respond


def shifted(attribute: Attribute, share: float) -> Change:
    """Differences if the attribute of an alternative grows by a share of itself."""
    return _differences(lambda values: values * (1.0 + share), attribute)


def switched(attribute: Attribute) -> Change:
    """Differences between a dummy of one and of zero."""

    def respond(block: ChoiceBlock) -> Response:
        on = _differences(torch.ones_like, attribute)(block)
        off = _differences(torch.zeros_like, attribute)(block)
        return Response(on.before, on.change - off.change)

    return respond


def _differences(function: Callable[[Tensor], Tensor], attribute: Attribute) -> Change:
    def respond(block: ChoiceBlock) -> Response:
        new = function(block.levels[..., attribute.place])

        def sums(coefficients: Tensor, weights: Tensor) -> Tensor:
            parts = [block.probabilities(coefficients)]
            for j in range(block.levels.shape[1]):
                parts.append(block.probabilities(coefficients, attribute.replaced(block, j, new[:, j])))
            return torch.stack([(part * weights[:, None]).sum(-1) for part in parts], 2)

        found = block.average(sums, width=2)
        return Response(found[:, :, 0], found[:, :, 1:] - found[:, :, :1])

    return respond


def removal(block: ChoiceBlock) -> Response:
    """Probabilities by which those who would choose j choose i when j is removed; minus the probability of j itself.

    Situations with one alternative leave nothing else to choose and count for nothing.
    """

    def sums(coefficients: Tensor, weights: Tensor) -> Tensor:
        utility = compute_utilities(block.levels, coefficients)
        probability = utility.softmax(1)
        parts = [(probability * weights[:, None]).sum(-1)]
        for j in range(utility.shape[1]):
            rest = utility.clone()
            rest[:, j] = -torch.inf
            moved = rest.softmax(1) * (probability[:, j] * weights)[:, None]
            parts.append(moved.sum(-1))
        return torch.stack(parts, 2)

    found = block.average(sums, width=3)
    if found.shape[1] == 1:
        return Response(found[:, :, 0], torch.zeros_like(found[:, :, 1:]))
    change = found[:, :, 1:].clone()
    change.diagonal(dim1=1, dim2=2).sub_(found[:, :, 0].movedim(1, -1))
    return Response(found[:, :, 0], change)


@dataclass(frozen=True)
class Pairs:
    """Pairs (alternative whose attribute changes, alternative that responds) over which responses are summed.

    Attributes
    ----------
    alternatives : pandas.Index
        Labels of the alternatives.
    of_row : Tensor, int64, shape (r,)
        Alternative of every row of the data.
    weights : Tensor, float64, shape (number of situations,)
        Weights of choice situations.
    """

    alternatives: pd.Index
    of_row: Tensor
    weights: Tensor

    @property
    def count(self) -> int:
        """Number of pairs."""
        return len(self.alternatives) ** 2

    def cells(self, rows: Tensor) -> Tensor:
        """Pairs (m, changed, responding) of the alternatives in rows (m, j) of the data."""
        alternative = self.of_row[rows]
        return alternative[:, :, None] * len(self.alternatives) + alternative[:, None]

    def places(self, block: ChoiceBlock) -> np.ndarray:
        """Situation, changed and responding alternative of every pair of a block, (m * j * j, 3)."""
        alternative = self.of_row[block.rows.cpu()]
        m, j = alternative.shape
        whole = (block.situations.cpu()[:, None, None], alternative[:, :, None], alternative[:, None])
        return torch.stack([part.expand(m, j, j).flatten() for part in whole], 1).numpy()

    def index(self, name: str) -> pd.MultiIndex:
        """Labels of the pairs; ``name`` is the alternative column."""
        return pd.MultiIndex.from_product([self.alternatives, self.alternatives], names=["changed", name])


@dataclass(frozen=True)
class SummedResponses:
    """Weighted sums over choice situations in which both alternatives of a pair are available.

    Attributes
    ----------
    change, before : Tensor, shape (s, pairs)
        Sums of responses, and of the probabilities of the responding alternatives.
    count : Tensor, shape (pairs,)
        Sums of weights.
    """

    change: Tensor
    before: Tensor
    count: Tensor


def sum_responses(
    data: ChoiceData,
    columns: list[int],
    source: CoefficientSource,
    change: Change,
    pairs: Pairs,
    ratio: Callable[[Response], Tensor] | None = None,
) -> SummedResponses:
    """Sum responses over choice situations, or their ratio (m, i, j, s) to the probabilities of each situation."""
    total = torch.zeros(2, pairs.count, source.n_samples, dtype=torch.float64)
    fewest = _FEWEST_OF_SUMS if ratio is None else _FEWEST_OF_RATIOS
    for block in choice_blocks(data, columns, source, fewest=fewest, width=block_width(data)):
        found, weights = change(block), pairs.weights[block.situations.cpu(), None, None, None]
        before = found.before[:, :, None].expand_as(found.change)
        response = found.change if ratio is None else ratio(found)
        cell = pairs.cells(block.rows.cpu()).mT.flatten()
        for kind, values in enumerate((response, before)):
            total[kind].index_add_(0, cell, (values.cpu() * weights).flatten(0, 2))
    return SummedResponses(total[0].T, total[1].T, count_pairs(data, pairs))


def count_pairs(data: ChoiceData, pairs: Pairs) -> Tensor:
    """Sums of weights (pairs,) of the choice situations in which both alternatives of a pair are available."""
    count = torch.zeros(pairs.count, dtype=torch.float64)
    for situations, sets in data.choice_sets(ROWS_AT_ONCE):
        cell = pairs.cells(data.rows_of(situations, sets.shape[1]).cpu())
        weights = pairs.weights[situations if isinstance(situations, slice) else situations.cpu(), None, None]
        count.index_add_(0, cell.flatten(), weights.expand(cell.shape).flatten())
    return count


def block_width(data: ChoiceData) -> int:
    """Cells in memory per row and node of responses: one per changed alternative."""
    return int(data.choices.set_sizes.max())
