"""Plots of tastes: of the population, of people, and their correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mxlogit.draws.generators import make_generator
from mxlogit.errors import SpecificationError
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.plots.classes import draw_shares
from mxlogit.plots.figures import several_axes, single_axes
from mxlogit.results.classes import mean_shares
from mxlogit.results.population_nodes import LatentNodes

# Largest number of posterior samples drawn in the band of a taste distribution.
_SAMPLES = 200
# Quantiles per sample from which a taste density is estimated.
_QUANTILES = 4_000
# Random stream of the order of people beside them.
_ORDER_STREAM = 43


def plot_taste_distributions(est: Any, axes: Any = None) -> Any:
    """Plot the population distribution of every taste and the decision makers' posterior means.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator with random coefficients.
    axes : array of matplotlib Axes, optional
        Axes, one per random coefficient; new ones by default.

    Returns
    -------
    ndarray of matplotlib Axes
        Axes with the posterior mean of the density (black line), its 90 % posterior band (grey) and the people's
        means (bars). Of a latent class model: lines as high as the share of each class.

    Raises
    ------
    SpecificationError
        If the model has no random coefficients.
    """
    names = list(est._state().model.space.random)
    if not names:
        raise SpecificationError("the model has no random coefficients to plot.")
    axes = several_axes(axes, len(names))
    if est._state().model.has_classes and not est._state().model.space.is_spread:
        for ax, name in zip(axes, names, strict=True):
            draw_shares(ax, est, name)
            ax.set_xlabel(f"taste for {name} (utils per unit)")
            ax.set_ylabel("share of people")
        axes[0].legend(frameon=False, fontsize=7, loc="best")
        return axes
    people = est.individual_coefficients(statistic=["mean"])
    tastes = population_quantiles(est)
    for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
        _draw_density(ax, tastes[..., i], people[(name, "mean")].to_numpy())
        ax.set_xlabel(f"taste for {name} (utils per unit)")
        ax.set_ylabel("density")
    axes[0].legend(frameon=False, fontsize=7, loc="upper left")
    return axes


def population_quantiles(est: Any) -> np.ndarray:
    """Quantiles of the taste distributions (posterior samples, quantiles, random coefficients)."""
    model, samples = est._state().model, est.result_.samples.unconstrained[:_SAMPLES]
    population = model.space.constrain(samples)
    if isinstance(population, ClassPopulation):
        return _class_quantiles(model, population, est._state().everybody)
    z = torch.special.ndtri((torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES)
    latent = population.location[:, None] + population.scale[:, None] * z[:, None]
    location = population.location[:, None].expand_as(latent)
    scale = population.scale[:, None].expand_as(latent)
    tastes = model.mixing.tastes(latent, location, scale)
    people = est._state().people_with_covariates()
    if people is None:
        return tastes.numpy()
    # Quantiles are in order, so that people beside them must not be.
    covariates = people.nodes(people.values[:, 0], _QUANTILES)
    covariates = covariates[torch.randperm(_QUANTILES, generator=make_generator(est._state().seed, _ORDER_STREAM))]
    parameters = LatentNodes(model, population.map(lambda x: x[:, None]), latent).parameters(covariates)
    return model.shifters.shift(parameters, covariates)[..., model.space.n_fixed :].numpy()


def _class_quantiles(model: MixedLogitModel, population: ClassPopulation, people: Covariates | None) -> np.ndarray:
    """Evenly spaced members of all classes, as many of each as their shares say: their tastes, in no order."""
    shares = mean_shares(population, people)
    heights = ((torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES).expand(len(shares), -1).contiguous()
    above = shares.cumsum(-1)
    member = torch.searchsorted(above, heights).clamp_(max=shares.shape[-1] - 1)
    inside = 1.0 - (above.gather(1, member) - heights) / shares.gather(1, member)
    normal = torch.special.ndtri(inside.clamp(1e-6, 1.0 - 1e-6))[..., None]
    index = member[..., None].expand(-1, -1, model.space.n_random)
    location, scale = (part.gather(1, index) for part in (population.location, population.scale))
    tastes = model.mixing.tastes(location + scale * normal, location, scale)
    return (tastes * population.attended[:, model.space.n_fixed :][member]).numpy()


def _draw_density(ax: Any, tastes: np.ndarray, means: np.ndarray) -> None:
    low, high = np.quantile(tastes, [0.002, 0.998])
    edges = np.linspace(low, high, 61)
    centre = 0.5 * (edges[1:] + edges[:-1])
    density = np.stack([np.histogram(row, bins=edges, density=True)[0] for row in tastes])
    lower, middle, upper = np.quantile(density, 0.05, 0), density.mean(0), np.quantile(density, 0.95, 0)
    ax.hist(means, bins=edges[::2], density=True, color="white", edgecolor="0.65", label="people's means")
    ax.fill_between(centre, lower, upper, color="0.75", alpha=0.8, linewidth=0, label="90 % band")
    ax.plot(centre, middle, color="black", linewidth=1.4, label="population")
    ax.axvline(0.0, color="black", linewidth=0.8, linestyle=":")


def plot_correlations(est: Any, axes: Any = None) -> Any:
    """Plot the posterior means of the correlations of the latent tastes, as a matrix with numbers.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator with correlated random coefficients.
    axes : matplotlib Axes, optional
        Axes; new ones by default.

    Returns
    -------
    matplotlib Axes
        Correlations; those whose 95 % interval contains zero are in brackets.

    Raises
    ------
    SpecificationError
        If the model has no correlations.
    """
    if est._state().model.has_classes:
        raise SpecificationError("correlations are those within each class; read them in summary().")
    space, table = est._state().model.space, est.summary()
    if not space.pairs:
        raise SpecificationError("the model has no correlations to plot; fit it with correlated=True.")
    names, size = list(space.random), space.n_random
    matrix = np.full((size, size), np.nan)
    ax = single_axes(axes, 0.8 * size + 1.6, 0.7 * size + 1.2)
    for a, b in space.pairs:
        row = table.loc[f"cor.{names[a]}:{names[b]}"]
        matrix[b, a] = row["estimate"]
        unsure = row["lower"] < 0.0 < row["upper"]
        words = f"({row['estimate']:.2f})" if unsure else f"{row['estimate']:.2f}"
        ax.text(
            a, b, words, ha="center", va="center", fontsize=8, color="white" if abs(matrix[b, a]) > 0.6 else "black"
        )
    image = ax.imshow(np.abs(matrix), cmap="Greys", vmin=0.0, vmax=1.0)
    ax.figure.colorbar(image, ax=ax, label="absolute correlation")
    ax.set_xticks(range(size), names, rotation=45, ha="right")
    ax.set_yticks(range(size), names)
    ax.set_title("correlations; in brackets: the 95 % interval contains zero", fontsize=8)
    return ax


def plot_individual_tastes(est: Any, name: str, axes: Any = None, most: int = 60) -> Any:
    """Plot people's posterior tastes in order, with 90 % intervals, beside the population's.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator.
    name : str
        Random coefficient.
    axes : matplotlib Axes, optional
        Axes; new ones by default.
    most : int
        Largest number of people, evenly spaced in the order of their means.

    Returns
    -------
    matplotlib Axes
        Means and intervals of people (shrunk towards the mean of the population, the more so the less their choices
        tell), and the 5, 50 and 95 % quantiles of the population as lines.

    Raises
    ------
    SpecificationError
        If the coefficient is not random.
    """
    names = list(est._state().model.space.random)
    if name not in names:
        raise SpecificationError(f"{name!r} is no random coefficient of this model, which has {names}.")
    people = est.individual_coefficients(statistic=["mean", 0.05, 0.95])[name].sort_values("mean")
    people = people.iloc[np.linspace(0, len(people) - 1, min(most, len(people))).astype(int)]
    ax, place = single_axes(axes, 6.0), np.arange(len(people))
    ax.vlines(place, people[0.05], people[0.95], color="0.6", linewidth=1.0, label="people, 90 % interval")
    ax.plot(place, people["mean"], "o", color="black", markersize=2.5, label="people, mean")
    low, middle, high = np.quantile(population_quantiles(est)[..., names.index(name)], [0.05, 0.5, 0.95])
    ax.axhline(middle, color="black", linewidth=1.0, label="population, median")
    for value in (low, high):
        ax.axhline(value, color="black", linewidth=0.8, linestyle="--")
    ax.plot([], [], "--", color="black", linewidth=0.8, label="population, 5 and 95 %")
    ax.set_xlabel("decision makers, by their mean")
    ax.set_ylabel(f"taste for {name} (utils per unit)")
    ax.legend(frameon=False, fontsize=7)
    return ax


def plot_shrinkage(est: Any, name: str, axes: Any = None) -> Any:
    """Plot people's posterior standard deviations of a taste against their means.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator.
    name : str
        Random coefficient.
    axes : matplotlib Axes, optional
        Axes; new ones by default.

    Returns
    -------
    matplotlib Axes
        A point per person; the line is the standard deviation in the population, that of people of whom nothing is
        known.

    Raises
    ------
    SpecificationError
        If the coefficient is not random.
    """
    names = list(est._state().model.space.random)
    if name not in names:
        raise SpecificationError(f"{name!r} is no random coefficient of this model, which has {names}.")
    people, ax = est.individual_coefficients()[name], single_axes(axes)
    spread = float(np.median(population_quantiles(est)[..., names.index(name)].std(1)))
    ax.plot(people["mean"], people["sd"], "o", color="0.4", markersize=2.5, alpha=0.7, label="people")
    ax.axhline(spread, color="black", linewidth=1.0, label="population")
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel(f"posterior mean of the taste for {name} (utils per unit)")
    ax.set_ylabel("posterior standard deviation")
    ax.legend(frameon=False, fontsize=7)
    return ax
