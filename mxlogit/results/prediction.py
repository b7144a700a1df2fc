"""Choice probabilities and shares.

Equal rows have equal probabilities, whoever else is in the frame: the draws that tastes are integrated with are common
to everybody, and the choice situations of a frame meet nothing but these.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData, FrameChoices
from mxlogit.density import PanelModel
from mxlogit.fit import Fit
from mxlogit.likelihood import choice_probabilities
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.people import PanelSource, People
from mxlogit.results.people import Group, weigh_coefficients
from mxlogit.sequences import PersonDraws

# Nodes over (posterior sample of the population, tastes), a power of two: the largest error in probabilities was .002
# with one random coefficient, .004 with two, .006 with five (latent standard deviations up to 20 utils).
_NODES = 4_096
# Rows x nodes held at once, by measurement (2,000 x 10 situations of 3, 4,096 nodes: .8 s at 100,000 to 400,000,
# 2.3 s at 2,000,000).
_CELLS = 400_000
# Rows of data whose attributes are differenced at once.
_ROWS = 200_000
_PEOPLE_AT_ONCE = 4_096
# Seed of the nodes beside that of the fit.
_STREAM = 23


def population_nodes(model: PanelModel, fit: Fit, seed: int) -> Tensor:
    """Coefficients (s, f + k), float64, whose distribution is that of a new decision maker.

    A scrambled Sobol net over (posterior sample of the population parameters, standard normal tastes); the point
    estimate is the only population where samples are those of an estimator.
    """
    samples = fit.samples.unconstrained
    if fit.samples.kind != "posterior":
        samples = model.space.unconstrain(fit.center)[None]
    if model.space.n_random == 0:
        return model.space.constrain(samples[:_NODES]).fixed
    draws = PersonDraws("sobol", _NODES, 1 + model.space.n_random, seed + _STREAM)
    normal = draws.normals(0, 1)[0].T
    # Ranks of the first coordinate are a permutation: every sample is met equally often.
    rank = normal[:, 0].argsort().argsort()
    population = model.space.constrain(samples[rank * len(samples) // _NODES])
    latent = population.location + (population.scale_tril @ normal[:, 1:, None])[..., 0]
    tastes = model.mixing.tastes(latent, population.location, population.scale)
    return model.mixing.coefficients(population.fixed, tastes)


def population_probabilities(data: ChoiceData, columns: list[int], nodes: Tensor) -> Tensor:
    """Choice probabilities of decision makers of whom nothing is known.

    Parameters
    ----------
    data : ChoiceData
    columns : list of int
        Attributes of the model, in its order.
    nodes : Tensor, shape (s, f + k)

    Returns
    -------
    Tensor, shape (n, t, j)
        Means over the nodes; zero where an alternative is not available.
    """
    n, t, j = data.available.shape
    result = torch.zeros(n, t, j, dtype=torch.float64)
    for people in torch.arange(n, device=data.available.device).split(max(1, _ROWS // (t * j))):
        differences, available = situation_differences(data, people, columns)
        weights = differences.new_full((1, len(nodes)), 1.0 / len(nodes))
        found = _weigh_probabilities(differences.flatten(0, 1)[None], available.flatten(0, 1)[None], weights, nodes)
        result[people.cpu()] = found.view(-1, t, j).cpu()
    return result


def individual_probabilities(model: PanelModel, fit: Fit, group: Group, data: ChoiceData, columns: list[int]) -> Tensor:
    """Choice probabilities (n, t, j) of decision makers of the fit, given their choices there.

    Parameters
    ----------
    model, fit : the fitted model
    group : Group
        The people of ``data``, with their choices in the fit.
    data : ChoiceData
    columns : list of int
        Attributes of the model, in its order.
    """
    n, t, j = data.available.shape
    result = torch.zeros(n, t, j, dtype=torch.float64)
    places = torch.arange(n, device=data.available.device)
    for drawn in weigh_coefficients(model, fit, group):
        part = places[drawn.part]
        for some in torch.arange(len(part), device=part.device).split(max(1, _ROWS // (t * j))):
            differences, available = situation_differences(data, part[some], columns)
            found = _weigh_probabilities(differences, available, drawn.weights[some], drawn.coefficients[some])
            result[part[some].cpu()] += found.cpu()
    return result


def situation_differences(data: ChoiceData, people: Tensor, columns: list[int]) -> tuple[Tensor, Tensor]:
    """Attributes of some people's situations, less those of the first available alternative.

    Differences are taken before anything is rounded to single precision: a constant added to a column changes nothing.

    Parameters
    ----------
    data : ChoiceData
    people : Tensor, int64, shape (n,)
    columns : list of int

    Returns
    -------
    tuple of Tensor
        Differences (n, t, j, k), float64, and which alternatives are available (n, t, j).
    """
    some = data.take(people)
    attributes = some.attributes[..., columns].double()
    first = some.available.to(torch.uint8).argmax(-1)[..., None, None]
    return attributes - attributes.take_along_dim(first, 2), some.available


def _weigh_probabilities(differences: Tensor, available: Tensor, weights: Tensor, coefficients: Tensor) -> Tensor:
    """Weighted sums over draws of choice probabilities.

    Parameters
    ----------
    differences : Tensor, shape (n, t, j, k)
    available : Tensor, bool, shape (n, t, j)
    weights : Tensor, shape (n, s)
    coefficients : Tensor, shape (n, s, k) or (s, k)

    Returns
    -------
    Tensor, shape (n, t, j), float64
    """
    n, t, j, _ = differences.shape
    result = differences.new_zeros(n, t, j)
    wide = coefficients.to(differences).expand(n, -1, -1)
    for people, situations in _blocks(n, t, j * weights.shape[1]):
        open_here = available[people, situations]
        probability = choice_probabilities(wide[people], differences[people, situations], open_here)
        result[people, situations] = torch.einsum("ntjs,ns->ntj", probability, weights[people].to(probability))
    return result


def _blocks(n: int, t: int, cells: int) -> Iterator[tuple[slice, slice]]:
    """People and situations that are held at once, given the cells of a situation."""
    size = max(1, _CELLS // cells)
    people = max(1, size // t)
    for first in range(0, n, people):
        for start in range(0, t, size):
            yield slice(first, first + people), slice(start, start + size)


def mean_log_likelihood(model: PanelModel, fit: Fit, panel: PanelSource, keys: Tensor, seed: int) -> float:
    """Weighted mean log likelihood per choice situation at the point estimate, by importance sampling.

    Parameters
    ----------
    model, fit : the fitted model
    panel : PanelSource
    keys : Tensor, int64, shape (n,)
        Numbers that the draws of each person are made from.
    seed : int
    """
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, seed, keys=keys)
    total = marginal.measure(fit.center, Sweep(draws=256, tail=8, key=31, polish=30)).log_likelihood
    weights = [(part.weights.double() @ part.n_situations.double()) for _, part in panel.chunks(_PEOPLE_AT_ONCE)]
    return total / float(torch.stack(weights).sum())


def row_values(rows: FrameChoices, probability: Tensor) -> np.ndarray:
    """Probability of every row of a frame, from probabilities (n, t, j)."""
    values: np.ndarray = probability.numpy()[rows.person, rows.situation, rows.alternative]
    return values


def most_likely(rows: FrameChoices, probability: Tensor, names: tuple[str, str, str]) -> pd.Series:
    """Label of the most likely alternative by (decision maker, situation); ``names`` of the three columns."""
    values = pd.Series(row_values(rows, probability))
    cell = values.groupby([rows.person, rows.situation]).idxmax().to_numpy()
    keys = [rows.data.decision_makers[rows.person[cell]], rows.situation_labels[cell]]
    index = pd.MultiIndex.from_arrays(keys, names=names[:2])
    return pd.Series(rows.alternative_labels[cell], index=index, name=names[2])


def mean_shares(rows: FrameChoices, probability: Tensor, name: str) -> pd.Series:
    """Weighted mean probability of every alternative's label; ``name`` of the alternative column."""
    weighted = pd.Series(row_values(rows, probability) * rows.data.weights.cpu().numpy()[rows.person])
    total = weighted.groupby(rows.alternative_labels).sum()
    return (total / total.sum()).rename_axis(name).rename("share")
