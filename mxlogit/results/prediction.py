"""Choice probabilities and shares.

Equal situations have equal probabilities, whatever else is in the frame: tastes are integrated over draws that are
common to all choice situations.
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
from mxlogit.execution.people import PanelSource, People, on_cpu
from mxlogit.fit import Fit
from mxlogit.integration.marginal import MarginalLikelihood
from mxlogit.integration.settings import IntegrationSettings
from mxlogit.model.likelihood import choice_probabilities
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.results.individual_coefficients import Group, weigh_coefficients

# Number of nodes over (posterior sample of the population, tastes), a power of two. The largest errors of probabilities
# are given in `MixedLogit.predict_proba`; with samples in random order they are twice as large.
_NODES = 4_096
# Rows x nodes in memory at a time (measured for 2,000 people, 10 situations of 3 alternatives, 4,096 nodes: .8 s at
# 100,000 to 400,000, 2.3 s at 2,000,000).
_CELLS = cells_at_once(0.1)
# Offset of the seed of the nodes from the seed of the fit.
_STREAM = 23


def population_nodes(model: MixedLogitModel, fit: Fit, seed: int) -> Tensor:
    """Draw coefficients (s, f + k), float64, from the posterior predictive distribution of a new decision maker.

    They form a scrambled Sobol net over (posterior sample of the population parameters, standard normal tastes).
    Without a posterior (maximum likelihood) the population parameters are the point estimate.
    """
    samples = fit.samples.unconstrained
    if fit.samples.kind != "posterior":
        samples = model.space.unconstrain(fit.center)[None]
    if model.space.n_random == 0:
        return model.space.constrain(samples[:_NODES]).fixed
    draws = PersonDraws("sobol", _NODES, 1 + model.space.n_random, seed + _STREAM)
    normal = draws.normals(0, 1)[0].T
    # Ranks of the first coordinate are a permutation, so every sample is used equally often.
    rank, order = normal[:, 0].argsort().argsort(), order_along_curve(samples)
    population = model.space.constrain(samples[order[rank * len(samples) // _NODES]])
    latent = population.location + (population.scale_tril @ normal[:, 1:, None])[..., 0]
    tastes = model.mixing.tastes(latent, population.location, population.scale)
    return model.mixing.coefficients(population.fixed, tastes)


def population_probabilities(data: ChoiceData, columns: list[int], nodes: Tensor) -> Tensor:
    """Choice probabilities of new decision makers.

    Parameters
    ----------
    data : ChoiceData
        Choice situations; their choices are not used.
    columns : list of int
        Positions of the attributes of the model, in its order.
    nodes : Tensor, shape (s, f + k)
        Draws of the coefficients (`population_nodes`).

    Returns
    -------
    Tensor, shape (r,), float64
        Probabilities of the available alternatives in the order of the data's rows, averaged over the nodes.
    """
    return _weigh_probabilities(data, columns, nodes.new_full((1, len(nodes)), 1.0 / len(nodes)), nodes)


def individual_probabilities(
    model: MixedLogitModel, fit: Fit, group: Group, data: ChoiceData, columns: list[int]
) -> Tensor:
    """Choice probabilities (r,) of decision makers of the fit, given their choices in the fit.

    Parameters
    ----------
    model : MixedLogitModel
        Mixed logit model.
    fit : Fit
        Result of its fit.
    group : Group
        People of ``data``, with their choices in the fit.
    data : ChoiceData
        Choice situations; their choices are not used.
    columns : list of int
        Positions of the attributes of the model, in its order.
    """
    result = torch.zeros(len(data.choices.rows), dtype=torch.float64)
    indices = torch.arange(data.n_decision_makers)
    for drawn in weigh_coefficients(model, fit, group):
        people = indices[on_cpu(drawn.part)].to(data.choices.rows.device)
        found = _weigh_probabilities(data.take(people), columns, drawn.weights, drawn.coefficients)
        result[data.rows_of_people(people).cpu()] += found
    return result


def _weigh_probabilities(data: ChoiceData, columns: list[int], weights: Tensor, coefficients: Tensor) -> Tensor:
    """Weighted sums over draws of choice probabilities (r,), float64.

    Attributes are differenced in double precision first, so a constant added to a column has no effect.

    Parameters
    ----------
    data : ChoiceData
        Choice situations.
    columns : list of int
        Positions of the attributes of the model, in its order.
    weights : Tensor, shape (n, s) or (1, s)
        Weights of the draws, per person or common to all.
    coefficients : Tensor, shape (n, s, k) or (s, k)
        Draws of the coefficients, per person or common to all.
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
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, seed, keys=keys)
    total = marginal.value_pass(
        fit.center, IntegrationSettings(draws=256, degrees_of_freedom=8, stream=31, newton_steps=30)
    ).log_likelihood
    weights = [(part.weights.double() @ part.n_situations.double()) for _, part in panel.chunks(PEOPLE_AT_ONCE)]
    return total / float(torch.stack(weights).sum())


def row_values(rows: FrameChoices, probability: Tensor) -> np.ndarray:
    """Probability of every row of a frame, given probabilities (r,) of the available alternatives."""
    return np.where(rows.place < 0, 0.0, probability.numpy()[rows.place])


def most_likely(rows: FrameChoices, probability: Tensor, names: tuple[str, str, str]) -> pd.Series:
    """Label of the most likely alternative by (decision maker, situation); ``names`` name the three columns."""
    values = pd.Series(row_values(rows, probability))
    cell = values.groupby([rows.person, rows.situation]).idxmax().to_numpy()
    keys = [rows.data.decision_makers[rows.person[cell]], rows.situation_labels[cell]]
    index = pd.MultiIndex.from_arrays(keys, names=names[:2])
    return pd.Series(rows.alternative_labels[cell], index=index, name=names[2])


def mean_shares(rows: FrameChoices, probability: Tensor, name: str) -> pd.Series:
    """Weighted mean probability of every alternative; ``name`` is the alternative column."""
    weighted = pd.Series(row_values(rows, probability) * rows.data.weights.cpu().numpy()[rows.person])
    total = weighted.groupby(rows.alternative_labels).sum()
    return (total / total.sum()).rename_axis(name).rename("share")
