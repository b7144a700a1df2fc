"""Tastes of single decision makers, averaged over the posterior of the population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mxlogit.density import PanelModel
from mxlogit.errors import SpecificationError
from mxlogit.fit import Fit
from mxlogit.parameters import Population
from mxlogit.people import PanelSource

# Population samples over which people's posteriors are averaged: at most so many and, since what the population's
# uncertainty adds to a person's shrinks with the number of people, so many people times samples; for quantiles, so many
# at least.
_MOST_POPULATIONS, _PEOPLE_TIMES_POPULATIONS, _FEWEST_POPULATIONS = 128, 32_000, 16
# Taste samples per person, and per population sample at least.
_SAMPLES, _SAMPLES_EACH = 512, 16
_PEOPLE_AT_ONCE = 5_000


@dataclass(frozen=True)
class Moments:
    """Posterior mean and standard deviation of people's tastes, (n, k) each."""

    mean: Tensor
    deviation: Tensor


def sampled_populations(model: PanelModel, fit: Fit, n: int) -> list[Population]:
    """N posterior samples of the population parameters: n / 2 and their mirror images, half a set apart.

    The point estimate alone where samples are those of an estimator: tastes are then conditional on it.
    """
    if fit.samples.kind != "posterior":
        return [fit.center]
    half = len(fit.samples) // 2
    first = list(range(min(n // 2, half)))
    picks = first + [i + half for i in first]
    return [model.space.constrain(vector) for vector in fit.samples.unconstrained[picks]]


def _count_populations(n_people: int) -> int:
    return min(_MOST_POPULATIONS, 2 * (_PEOPLE_TIMES_POPULATIONS // (2 * max(1, n_people))))


def taste_moments(model: PanelModel, fit: Fit, panel: PanelSource) -> Moments:
    """Posterior moments of tastes by the law of total variance over population samples."""
    count = _count_populations(len(panel))
    populations = sampled_populations(model, fit, count) if count > 1 else [fit.center]
    if len(populations) == 1:
        return Moments(*fit.tastes.moments(panel, populations[0]))
    means, variances = [], []
    for population in populations:
        mean, deviation = fit.tastes.moments(panel, population)
        means.append(mean)
        variances.append(deviation.square())
    mean = torch.stack(means)
    variance = torch.stack(variances).mean(0) + (mean - mean.mean(0)).square().mean(0)
    return Moments(mean.mean(0), variance.sqrt())


def coefficient_samples(model: PanelModel, fit: Fit, panel: PanelSource, n: int = _SAMPLES) -> Tensor:
    """Posterior samples of people's coefficients (n_samples, n, f + k), n at least, spread over population samples."""
    populations = sampled_populations(model, fit, max(_FEWEST_POPULATIONS, _count_populations(len(panel))))
    each = max(_SAMPLES_EACH, -(-n // len(populations)))
    parts = []
    for i, population in enumerate(populations):
        tastes = fit.tastes.sample(panel, population, each, i).double()
        parts.append(model.mixing.coefficients(population.fixed, tastes))
    return torch.cat(parts)


def individual_frame(
    model: PanelModel,
    fit: Fit,
    panel: PanelSource,
    labels: np.ndarray,
    statistic: Sequence[str | float],
) -> pd.DataFrame:
    """Table of people's posterior tastes.

    Parameters
    ----------
    model, fit : the fitted model
    panel : PanelSource
        Of the people wanted.
    labels : ndarray
        Their names.
    statistic : sequence
        "mean", "sd", or probabilities between 0 and 1 for quantiles.

    Returns
    -------
    pandas.DataFrame
        Index: decision maker. Columns: (taste, statistic).

    Raises
    ------
    SpecificationError
        If a statistic is unknown.
    """
    wrong = [s for s in statistic if s not in ("mean", "sd") and not (isinstance(s, float) and 0 < s < 1)]
    if wrong or isinstance(statistic, str):
        raise SpecificationError(
            f"statistic must be a list of 'mean', 'sd' and probabilities between 0 and 1; got {statistic!r}."
        )
    columns: dict[str | float, np.ndarray] = {}
    if "mean" in statistic or "sd" in statistic:
        moments = taste_moments(model, fit, panel)
        columns["mean"], columns["sd"] = moments.mean.cpu().numpy(), moments.deviation.cpu().numpy()
    probabilities = [s for s in statistic if isinstance(s, float)]
    if probabilities and model.space.n_random:
        columns.update(_quantiles(model, fit, panel, probabilities))
    data = {(name, s): columns[s][:, i] for i, name in enumerate(model.space.random) for s in statistic}
    frame = pd.DataFrame(data, index=pd.Index(labels, name="decision_maker"))
    frame.columns = pd.MultiIndex.from_tuples(list(data), names=["taste", "statistic"])
    return frame


def _quantiles(
    model: PanelModel, fit: Fit, panel: PanelSource, probabilities: list[float]
) -> dict[str | float, np.ndarray]:
    at = torch.tensor(probabilities)
    # Chains hold states of everybody at once, and know people by their panel.
    whole = fit.chains is not None or len(panel) <= _PEOPLE_AT_ONCE
    parts = []
    for part in [panel] if whole else (part for _, part in panel.chunks(_PEOPLE_AT_ONCE)):
        samples = coefficient_samples(model, fit, part)[..., model.space.n_fixed :]
        parts.append(torch.quantile(samples, at.to(samples), dim=0))
    values = torch.cat(parts, 1).cpu().numpy()
    return {p: values[i] for i, p in enumerate(probabilities)}
