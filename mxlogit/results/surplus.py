r"""Consumer surplus of a change: the difference of log-sums over minus the cost coefficient, in units of the cost.

.. math:: \Delta S = \frac{1}{-\beta_c}\left(\ln\sum_j e^{V_j^1} - \ln\sum_j e^{V_j^0}\right)

for a person with given tastes (Small and Rosen 1981, Econometrica 49; Train 2009, section 3.5). Utility is linear in
the cost, so that it is the compensating variation as well. Over people with a random cost coefficient its mean exists
under the conditions of `mxlogit.results.cost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData, FrameChoices
from mxlogit.errors import ChoiceDataError, check_probabilities, check_probability
from mxlogit.results.choice_blocks import ChoiceBlock, choice_blocks, compute_utilities
from mxlogit.results.coefficient_sources import CoefficientSource
from mxlogit.results.intervals import interval_frame
from mxlogit.results.prediction import Coefficients, sampled_values
from mxlogit.results.substitution import Attribute

# Fewest tastes per choice situation and sample of a mean over many situations.
_FEWEST_NODES = 8
# Cells in memory per row and node: before and after the change.
_ARRAYS = 2
# Values per sample of which quantiles are taken, forty megabytes with 256 samples: probabilities err by less than .003.
_VALUES = 20_000
# Golden ratio, whose multiples fill the unit interval evenly.
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Change:
    """Choice situations before and after a change.

    Attributes
    ----------
    before, after : ChoiceData
        Choice situations; those of ``after`` in any order.
    columns : list of int
        Positions of the attributes of the model, in its order; the same in both.
    cost : Attribute
        The cost.
    place : Tensor, int64, shape (number of situations,)
        Situation of ``after`` of every situation of ``before``.
    kept : tuple of int
        Columns of further covariates that must not differ.
    """

    before: ChoiceData
    after: ChoiceData
    columns: list[int]
    cost: Attribute
    place: Tensor
    kept: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        before: FrameChoices,
        after: FrameChoices,
        columns: list[int],
        cost: Attribute,
        kept: tuple[int, ...] = (),
    ) -> Change:
        """Match the situations of two frames by decision maker and situation.

        Raises
        ------
        ChoiceDataError
            If a situation is in one frame only.
        """
        keys = [_situation_keys(rows) for rows in (before, after)]
        place = keys[1].get_indexer(keys[0])
        single = keys[0].symmetric_difference(keys[1])
        if len(single):
            raise ChoiceDataError(
                f"{len(single)} choice situations are in one of the two frames only (first: {single[:5].tolist()}). "
                "Both need the same pairs of decision maker and situation."
            )
        change = cls(before.data, after.data, columns, cost, torch.from_numpy(place), kept)
        change.check_covariates(keys[0])
        return change

    def check_covariates(self, keys: pd.MultiIndex) -> None:
        """Refuse covariates of the cost, for which money has one worth, and others to be kept, that differ."""
        mine = [*self.cost.covariates, *self.kept]
        here, there = (data.choices.rows[data.first_rows[:-1]][:, mine].cpu() for data in (self.before, self.after))
        differs = (here != there[self.place]).any(1)
        if bool(differs.any()):
            raise ChoiceDataError(
                "covariates that shift the coefficient of the cost, or a latent normal, differ between the frames in "
                f"{int(differs.sum())} choice situations (first: {keys[differs.numpy()][:5].tolist()}). People keep "
                "their covariates: compare frames of the same people."
            )

    def levels_after(self, block: ChoiceBlock) -> tuple[Tensor, Tensor]:
        """Attributes (m, j, k) of the alternatives after the change, and which of them are there (m, j)."""
        situations = self.place.to(block.situations.device)[block.situations]
        sizes = self.after.choices.set_sizes[situations].long()
        steps = torch.arange(int(sizes.max()), device=sizes.device)
        there = steps < sizes[:, None]
        rows = torch.where(there, self.after.first_rows[:-1][situations, None] + steps, 0)
        return self.after.choices.rows[rows][..., self.columns].double(), there

    def mean_surplus(self, block: ChoiceBlock) -> Tensor:
        """Surplus (m, s) averaged over tastes."""
        return block.average(lambda mine, weights: (self.surplus(block, mine) * weights).sum(-1), _ARRAYS)

    def surplus(self, block: ChoiceBlock, coefficients: Tensor) -> Tensor:
        """Surplus (m, s, r), in units of the cost."""
        levels, there = self.levels_after(block)
        base = block.levels[:, 0]
        before = compute_utilities(block.levels, coefficients, base).logsumexp(1)
        utility = compute_utilities(levels, coefficients, base)
        after = utility.masked_fill(~there[..., None, None], -torch.inf).logsumexp(1)
        return (after - before) / -self.cost.coefficient(block, coefficients)


def _situation_keys(rows: FrameChoices) -> pd.MultiIndex:
    """Decision maker and situation of every choice situation, in the order of the data."""
    _, first = np.unique(rows.situation, return_index=True)
    return pd.MultiIndex.from_arrays([rows.data.decision_makers[rows.person[first]], rows.situation_labels[first]])


def situation_table(
    change: Change, rows: FrameChoices, used: Coefficients, interval: float, names: tuple[str, str]
) -> pd.DataFrame:
    """Mean surplus of every choice situation over tastes, with intervals."""
    check_probability("interval", interval)
    blocks = partial(choice_blocks, change.before, change.columns, width=_ARRAYS)
    estimate = torch.zeros(change.before.n_situations, dtype=torch.float64)
    for block in blocks(used.mean):
        estimate[block.situations.cpu()] += change.mean_surplus(block)[:, 0].cpu()
    result = np.zeros((change.before.n_situations, 3))
    for block in blocks(used.sampled):
        values, places = change.mean_surplus(block).T.cpu(), block.situations.cpu()
        result[places] = sampled_values(used.sampled, values).summary(interval, estimate[places])
    return interval_frame(result, _situation_keys(rows).set_names(list(names)), used.sampled.kind, interval)


def population_table(change: Change, used: Coefficients, interval: float, quantiles: Sequence[float]) -> pd.DataFrame:
    """Distribution of the surplus over choice situations and tastes, with intervals."""
    check_probabilities("quantiles", quantiles)
    data, source = change.before, used.sampled
    weights = data.weights.cpu().double().repeat_interleave(data.choices.panel_lengths.cpu())
    values, shares = _kept_values(change, source, weights)
    rows = [_weighted_quantiles(values, shares, quantiles)]
    for sign in (1.0, -1.0):
        rows.append(((sign * values > 0.0).double() * shares).sum(1, keepdim=True) / shares.sum(1, keepdim=True))
    mean = sampled_values(source, _means(change, source, weights)[:, None])
    summary = [mean.summary(interval, _means(change, used.mean, weights))]
    summary.append(sampled_values(source, torch.cat(rows, 1)).summary(interval))
    names = ["mean", *(f"{100.0 * p:g} %" for p in quantiles), "share of winners", "share of losers"]
    return interval_frame(np.concatenate(summary), pd.Index(names, name="statistic"), source.kind, interval)


def _means(change: Change, source: CoefficientSource, weights: Tensor) -> Tensor:
    """Weighted mean surplus (s,) over choice situations and tastes."""
    total = torch.zeros(source.n_samples, dtype=torch.float64)
    for block in choice_blocks(change.before, change.columns, source, fewest=_FEWEST_NODES, width=_ARRAYS):
        mean = change.mean_surplus(block)
        total += weights[block.situations.cpu()] @ mean.cpu()
    return total / weights.sum()


def _kept_values(change: Change, source: CoefficientSource, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Values (s, n) of some tastes of all or evenly spaced situations, with their weights (1 or s, n)."""
    n = change.before.n_situations
    step, values, shares = max(1, n // _VALUES), list[Tensor](), list[Tensor]()
    for number, block in enumerate(choice_blocks(change.before, change.columns, source, fewest=1, width=_ARRAYS)):
        if block.is_weighted:
            block = _resampled(block, max(1, _VALUES // n))
        nodes = block.coefficients.shape[-2]
        count = block.classes * max(1, min(nodes, _VALUES // n) // block.classes)
        start = number * count % (nodes // count * count)
        found = change.surplus(block, block.coefficients[..., start : start + count, :])
        keep = (block.situations.cpu() % step == 0).nonzero()[:, 0]
        kept = found.cpu()[keep].permute(1, 0, 2)
        values.append(kept.flatten(1))
        mine = weights[block.situations.cpu()[keep], None, None].expand(-1, 1, count)
        if block.classes > 1:
            of_nodes = block.weights.cpu().expand(len(found), -1, -1)[keep]
            mine = mine * of_nodes[..., start : start + count] * (nodes / count)
        shares.append(mine.permute(1, 0, 2).flatten(1))
    return torch.cat(values, 1), torch.cat(shares, 1)


def _resampled(block: ChoiceBlock, count: int) -> ChoiceBlock:
    """A block with ``count`` equal nodes of each situation, drawn by their weights: systematic resampling."""
    coefficients = block.coefficients
    cumulative = block.weights.expand(*coefficients.shape[:-1]).cumsum(-1)
    # Each situation has its own offset, of a sequence that fills the interval evenly.
    offset = (block.situations.to(cumulative) * _GOLDEN).remainder(1.0)[:, None, None]
    points = (torch.arange(count).to(cumulative) + offset) / count
    index = torch.searchsorted(cumulative, (points * cumulative[..., -1:]).contiguous())
    index = index.clamp(max=cumulative.shape[-1] - 1)[..., None].expand(-1, -1, -1, coefficients.shape[-1])
    equal = block.weights.new_full((1, 1, count), 1.0 / count)
    return replace(block, coefficients=coefficients.gather(2, index), weights=equal)


def _weighted_quantiles(values: Tensor, weights: Tensor, probabilities: Sequence[float]) -> Tensor:
    """Quantiles (s, p) of values (s, n) with weights (1 or s, n)."""
    ordered, order = values.sort(1)
    below = weights.expand_as(values).gather(1, order).cumsum(1)
    wanted = torch.tensor(list(probabilities), dtype=torch.float64) * below[:, -1:]
    place = torch.searchsorted(below, wanted).clamp(max=values.shape[1] - 1)
    return ordered.gather(1, place)
