"""Choice probabilities and shares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.choices import ChoiceData, FrameChoices
from mxlogit.density import PanelModel
from mxlogit.draws import make_generator
from mxlogit.fit import Fit
from mxlogit.marginal import MarginalLikelihood, Sweep
from mxlogit.people import PanelSource, People

# Draws of (population, tastes) per person, and cells (draws x rows) held at once.
_DRAWS = 1_000
_CELLS = 4_000_000
_PEOPLE_AT_ONCE = 4_096


def population_coefficients(model: PanelModel, fit: Fit, n_people: int, seed: int) -> Tensor:
    """Coefficients (draws, n, f + k) of new people: each draw has its own posterior population sample."""
    count = min(_DRAWS, len(fit.samples))
    generator = make_generator(seed, 23)
    population = model.space.constrain(fit.samples.unconstrained[:count])
    if fit.samples.kind != "posterior":
        population = model.space.constrain(model.space.unconstrain(fit.center).expand(count, -1))
    half = torch.randn((count + 1) // 2, n_people, model.space.n_random, generator=generator, dtype=torch.float64)
    # Samples come in antithetic pairs half a set apart; taste draws are mirrored within neighbours instead.
    xi = torch.stack([half, -half], 1).flatten(0, 1)[:count]
    latent = population.location[:, None] + xi @ population.scale_tril.mT
    shape = latent.shape
    location, scale = population.location[:, None].expand(shape), population.scale[:, None].expand(shape)
    tastes = model.mixing.tastes(latent, location, scale)
    return model.mixing.coefficients(population.fixed[:, None], tastes)


def mean_probabilities(data: ChoiceData, columns: list[int], coefficients: Tensor) -> Tensor:
    """Choice probabilities averaged over draws.

    Parameters
    ----------
    data : ChoiceData
    columns : list of int
        Attributes of the model, in its order.
    coefficients : Tensor, shape (s, n, k)

    Returns
    -------
    Tensor, shape (r,)
        Of the available alternatives, in the order of the data's rows.
    """
    c = data.choices
    person = torch.arange(data.n_decision_makers, device=c.rows.device).repeat_interleave(c.panel_lengths)
    result = torch.zeros(len(c.rows), dtype=torch.float64)
    for situations, sets in data.choice_sets(max(1, _CELLS // len(coefficients))):
        x = sets[..., columns] - sets[:, :1, columns]
        chosen = coefficients[:, person[situations]].to(x)
        prob = torch.einsum("mjk,smk->smj", x, chosen).softmax(-1).mean(0)
        result[data.rows_of(situations, sets.shape[1])] = prob.double().cpu()
    return result


def mean_log_likelihood(model: PanelModel, fit: Fit, panel: PanelSource, seed: int) -> float:
    """Weighted mean log likelihood per choice situation at the point estimate, by importance sampling."""
    marginal = MarginalLikelihood(People.gather(panel), model.space, model.mixing, seed)
    total = marginal.measure(fit.center, Sweep(draws=256, tail=8, key=31, polish=30)).log_likelihood
    weights = [(part.weights.double() @ part.n_situations.double()) for _, part in panel.chunks(_PEOPLE_AT_ONCE)]
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


def _chunks(n: int, cells_per_person: int) -> Iterator[slice]:
    size = max(1, _CELLS // cells_per_person)
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))
