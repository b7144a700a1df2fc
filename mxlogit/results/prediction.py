"""Choice probabilities and shares.

Equal rows have equal probabilities, whoever else is in the frame: the draws that tastes are integrated with are common
to everybody, and the choice situations of a frame meet nothing but these.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData, FrameChoices
from mxlogit.choices.chunks import PEOPLE_AT_ONCE, cells_at_once
from mxlogit.draws.curve import order_along_curve
from mxlogit.draws.simulation import PersonDraws
from mxlogit.execution.people import PanelSource, People, on_processor
from mxlogit.fit import Fit
from mxlogit.integration.marginal import MarginalLikelihood, Sweep
from mxlogit.model.likelihood import choice_probabilities
from mxlogit.model.mixed_logit import PanelModel
from mxlogit.results.people import Group, weigh_coefficients

# Nodes over (posterior sample of the population, tastes), a power of two. Largest errors of probabilities are in
# `MixedLogit.predict_proba`; with samples in random order, twice as large.
_NODES = 4_096
# Rows x nodes held at once, by measurement (2,000 x 10 situations of 3, 4,096 nodes: .8 s at 100,000 to 400,000,
# 2.3 s at 2,000,000).
_CELLS = cells_at_once(0.1)
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
    rank, order = normal[:, 0].argsort().argsort(), order_along_curve(samples)
    population = model.space.constrain(samples[order[rank * len(samples) // _NODES]])
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
    Tensor, shape (r,), float64
        Means over the nodes, of the available alternatives in the order of the data's rows.
    """
    return _weigh_probabilities(data, columns, nodes.new_full((1, len(nodes)), 1.0 / len(nodes)), nodes)


def individual_probabilities(model: PanelModel, fit: Fit, group: Group, data: ChoiceData, columns: list[int]) -> Tensor:
    """Choice probabilities (r,) of decision makers of the fit, given their choices there.

    Parameters
    ----------
    model, fit : the fitted model
    group : Group
        The people of ``data``, with their choices in the fit.
    data : ChoiceData
    columns : list of int
        Attributes of the model, in its order.
    """
    result = torch.zeros(len(data.choices.rows), dtype=torch.float64)
    everybody = torch.arange(data.n_decision_makers)
    for drawn in weigh_coefficients(model, fit, group):
        people = everybody[on_processor(drawn.part)].to(data.choices.rows.device)
        found = _weigh_probabilities(data.take(people), columns, drawn.weights, drawn.coefficients)
        result[data.rows_of_people(people).cpu()] += found
    return result


def _weigh_probabilities(data: ChoiceData, columns: list[int], weights: Tensor, coefficients: Tensor) -> Tensor:
    """Weighted sums over draws of choice probabilities (r,), float64.

    Attributes are differenced in double precision before anything else: a constant added to a column changes nothing.

    Parameters
    ----------
    data : ChoiceData
    columns : list of int
    weights : Tensor, shape (n, s) or (1, s)
    coefficients : Tensor, shape (n, s, k) or (s, k)
    """
    c, count = data.choices, weights.shape[1]
    person = torch.arange(data.n_decision_makers, device=c.rows.device).repeat_interleave(c.panel_lengths)
    weights, coefficients = weights.to(c.rows.device), coefficients.to(c.rows.device)
    result = torch.zeros(len(c.rows), dtype=torch.float64)
    for situations, sets in data.choice_sets(max(1, _CELLS // count)):
        levels = sets[..., columns].double()
        differences, who = levels - levels[:, :1], person[situations]
        total = differences.new_zeros(differences.shape[:2])
        for draws in torch.arange(count, device=levels.device).split(max(1, _CELLS // differences[..., 0].numel())):
            mine = coefficients[draws] if coefficients.dim() == 2 else coefficients[who[:, None], draws]
            share = weights[:, draws] if len(weights) == 1 else weights[who[:, None], draws]
            probability = choice_probabilities(differences, mine.to(levels))
            total += (probability * share[:, None].to(levels)).sum(-1)
        result[data.rows_of(situations, sets.shape[1]).cpu()] = total.cpu()
    return result


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
    weights = [(part.weights.double() @ part.n_situations.double()) for _, part in panel.chunks(PEOPLE_AT_ONCE)]
    return total / float(torch.stack(weights).sum())


def row_values(rows: FrameChoices, probability: Tensor) -> np.ndarray:
    """Probability of every row of a frame, from probabilities (r,) of available alternatives."""
    return np.where(rows.place < 0, 0.0, probability.numpy()[rows.place])


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
