"""Choice probabilities, shares and utilities.

Equal situations have equal probabilities, whatever else is in the frame: tastes are integrated over draws that are
common to all choice situations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData, FrameChoices
from mxlogit.choices.chunks import PEOPLE_AT_ONCE
from mxlogit.execution.people import PanelSource, People
from mxlogit.fit import Fit
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.mixture_likelihood import likelihood_of_classes
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.results.choice_blocks import ChoiceBlock, choice_blocks
from mxlogit.results.coefficient_sources import CoefficientSource
from mxlogit.results.intervals import SampledValues

# Fewest tastes per choice situation and sample of a sum over many situations.
_FEWEST_NODES = 8

# Values (m, j, s) of the rows of a block by sample.
RowFunction = Callable[[ChoiceBlock], Tensor]


@dataclass(frozen=True)
class Coefficients:
    """The two sources of a quantity with an interval.

    Attributes
    ----------
    mean : CoefficientSource
        One sample with many nodes, the population parameters integrated out: for estimates.
    sampled : CoefficientSource
        Samples of the population parameters, or of people: for intervals.
    """

    mean: CoefficientSource
    sampled: CoefficientSource


def probabilities(block: ChoiceBlock) -> Tensor:
    """Choice probabilities (m, j, s), averaged over tastes."""
    return block.average(lambda mine, weights: (block.probabilities(mine) * weights[:, None]).sum(-1))


def utilities(block: ChoiceBlock) -> Tensor:
    """Systematic utilities (m, j, s) in utils, averaged over tastes."""
    mean = (block.coefficients * block.weights[..., None]).sum(-2)
    return (block.levels[:, :, None] * mean[:, None]).sum(-1)


def mean_of_rows(data: ChoiceData, columns: list[int], source: CoefficientSource, function: RowFunction) -> Tensor:
    """Values (r,), float64, of the available alternatives in the order of the data's rows, averaged over samples."""
    result = torch.zeros(len(data.choices.rows), dtype=torch.float64)
    for block in choice_blocks(data, columns, source):
        result[block.rows.cpu()] += function(block).mean(-1).cpu()
    return result


def intervals_of_rows(
    data: ChoiceData,
    columns: list[int],
    source: CoefficientSource,
    function: RowFunction,
    estimate: Tensor,
    interval: float,
) -> Tensor:
    """Estimates and interval limits (r, 3) of the data's rows, about given estimates (r,)."""
    result = torch.zeros(len(data.choices.rows), 3, dtype=torch.float64)
    for block in choice_blocks(data, columns, source):
        rows = block.rows.cpu()
        values = sampled_values(source, function(block).movedim(-1, 0))
        result[rows] = torch.from_numpy(values.summary(interval, estimate[rows]))
    return result


def sampled_values(source: CoefficientSource, values: Tensor) -> SampledValues:
    """Values (s, ...) of a source, its point estimate apart from the samples."""
    return SampledValues(values[1:], values[0]) if source.starts_at_center else SampledValues(values)


@dataclass(frozen=True)
class Cells:
    """Groups of rows over which probabilities are averaged.

    Attributes
    ----------
    labels : pandas.Index
        Labels of the cells: alternatives, or pairs (group of situations, alternative).
    of_row : Tensor, int64, shape (r,)
        Cell of every row of the data.
    weights : Tensor, float64, shape (r,)
        Weights of the rows, which sum to one over the cells of a group of situations.
    """

    labels: pd.Index
    of_row: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: FrameChoices, name: str, groups: pd.DataFrame | None = None) -> Cells:
        """Alternatives of a frame, within groups of its situations by columns with one value per row, if given."""
        people = rows.data.weights.cpu().double().numpy()
        listed = rows.place >= 0
        if groups is None:
            cell, labels = pd.factorize(rows.alternative_labels, sort=True)
            total = people @ rows.data.choices.panel_lengths.cpu().numpy()
            weights = people[rows.person] / total
            labels = pd.Index(labels, name=name)
        else:
            cell, labels = _grouped_cells(rows, name, groups)
            weights = people[rows.person] / _totals_of_groups(rows, people, groups)
        order = rows.place[listed]
        of_row, weight = torch.zeros(len(order), dtype=torch.int64), torch.zeros(len(order), dtype=torch.float64)
        of_row[order], weight[order] = torch.from_numpy(cell[listed]), torch.from_numpy(weights[listed])
        return cls(labels, of_row, weight)


def _grouped_cells(rows: FrameChoices, name: str, groups: pd.DataFrame) -> tuple[np.ndarray, pd.Index]:
    """Cell of every row of a frame, and labels of the cells: group and alternative."""
    keys = groups.assign(**{name: rows.alternative_labels})
    grouped = keys.groupby(list(keys.columns), sort=True, dropna=False)
    return grouped.ngroup().to_numpy(), grouped.size().index


def _totals_of_groups(rows: FrameChoices, people: np.ndarray, groups: pd.DataFrame) -> np.ndarray:
    """Sum of the weights of the situations in the group of every row of a frame."""
    group = groups.groupby(list(groups.columns), dropna=False).ngroup().to_numpy()
    repeated = pd.Series(rows.situation).duplicated().to_numpy()
    total: np.ndarray = np.bincount(group, np.where(repeated, 0.0, people[rows.person]))[group]
    return total


def sums_of_rows(
    data: ChoiceData, columns: list[int], source: CoefficientSource, function: RowFunction, cells: Cells
) -> Tensor:
    """Weighted sums (s, number of cells) over the rows of every cell."""
    result = torch.zeros(len(cells.labels), source.n_samples, dtype=torch.float64)
    for block in choice_blocks(data, columns, source, fewest=_FEWEST_NODES):
        rows = block.rows.cpu().flatten()
        values = function(block).flatten(0, 1).cpu()
        result.index_add_(0, cells.of_row[rows], values * cells.weights[rows, None])
    return result.T


def mean_log_likelihood(model: MixedLogitModel, fit: Fit, panel: PanelSource, keys: Tensor, seed: int) -> float:
    """Weighted mean log likelihood per choice situation at the point estimate, by importance sampling.

    Parameters
    ----------
    model : MixedLogitModel
        Mixed logit model.
    fit : Fit
        Result of its fit.
    panel : PanelSource
        Choices of n people.
    keys : Tensor, int64, shape (n,)
        Keys of the draws of each person.
    seed : int
        Seed of the draws.
    """
    if isinstance(fit.center, ClassPopulation):
        found = likelihood_of_classes(model, People.gather(panel).local_panels(), seed, 256, 31)
        total = found.value_with_error(fit.center)[0]
    else:
        marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, seed, keys=keys)
        integration = IntegrationSettings(draws=256, degrees_of_freedom=8, stream=31, newton_steps=30)
        total = marginal.value_pass(fit.center, integration).log_likelihood
    weights = [(part.weights.double() @ part.n_situations.double()) for _, part in panel.chunks(PEOPLE_AT_ONCE)]
    return total / float(torch.stack(weights).sum())


def row_values(rows: FrameChoices, values: Tensor) -> np.ndarray:
    """Value of every row of a frame, given values (r, ...) of the available alternatives; 0 for the others."""
    found = values.numpy()[np.maximum(rows.place, 0)]
    found[rows.place < 0] = 0.0
    return found


def most_likely(rows: FrameChoices, probability: Tensor, names: tuple[str, str, str]) -> pd.Series:
    """Label of the most likely alternative by (decision maker, situation); ``names`` name the three columns."""
    values = pd.Series(row_values(rows, probability))
    cell = values.groupby([rows.person, rows.situation]).idxmax().to_numpy()
    keys = [rows.data.decision_makers[rows.person[cell]], rows.situation_labels[cell]]
    index = pd.MultiIndex.from_arrays(keys, names=names[:2])
    return pd.Series(rows.alternative_labels[cell], index=index, name=names[2])
