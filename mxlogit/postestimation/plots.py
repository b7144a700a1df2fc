"""Plots of a fit; matplotlib is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mxlogit.errors import MissingExtraError, SpecificationError

if TYPE_CHECKING:
    import pandas as pd

    from mxlogit.estimator import MixedLogit

# Largest number of posterior samples drawn in the band of a taste distribution.
_SAMPLES = 200
# Quantiles per sample from which a taste density is estimated.
_QUANTILES = 4_000


def pyplot() -> Any:
    """Import matplotlib's pyplot; the error names the extra to install."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise MissingExtraError("plots need matplotlib: pip install 'mxlogit[plots]'.") from None
    return plt


def _grid(count: int) -> Any:
    """Create axes in rows of three and hide unused ones."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = pyplot().subplots(rows, columns, figsize=(3.6 * columns, 2.7 * rows), squeeze=False)
    for spare in axes.ravel()[count:]:
        spare.set_visible(False)
    figure.set_layout_engine("tight")
    return axes


def plot_taste_distributions(est: MixedLogit, axes: Any = None) -> Any:
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
        means (bars).

    Raises
    ------
    SpecificationError
        If the model has no random coefficients.
    """
    names = list(est.taste_distribution().index)
    if not names:
        raise SpecificationError("the model has no random coefficients to plot.")
    axes = np.asarray(_grid(len(names)) if axes is None else axes).ravel()[: len(names)]
    people = est.individual_coefficients(statistic=["mean"])
    tastes = population_quantiles(est)
    for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
        _draw_density(ax, tastes[..., i], people[(name, "mean")].to_numpy())
        ax.set_xlabel(f"taste for {name} (utils per unit)")
        ax.set_ylabel("density")
    axes[0].legend(frameon=False, fontsize=7, loc="upper left")
    return axes


def population_quantiles(est: MixedLogit) -> np.ndarray:
    """Quantiles of the taste distributions (posterior samples, quantiles, random coefficients)."""
    model, samples = est._state().model, est.result_.samples.unconstrained[:_SAMPLES]
    population = model.space.constrain(samples)
    z = torch.special.ndtri((torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES)
    latent = population.location[:, None] + population.scale[:, None] * z[:, None]
    location = population.location[:, None].expand_as(latent)
    scale = population.scale[:, None].expand_as(latent)
    return model.mixing.tastes(latent, location, scale).numpy()


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


def plot_marginals(samples: dict[str, pd.DataFrame], axes: Any = None) -> Any:
    """Plot the marginal of every parameter, with one line per engine.

    Parameters
    ----------
    samples : dict of str to DataFrame
        Samples by engine, with equal columns. The last engine is plotted as a grey area, the others as lines of
        different styles.
    axes : array of matplotlib Axes, optional
        Axes, one per parameter; new ones by default.

    Returns
    -------
    ndarray of matplotlib Axes
    """
    labels = list(next(iter(samples.values())).columns)
    axes = np.asarray(_grid(len(labels)) if axes is None else axes).ravel()[: len(labels)]
    for ax, label in zip(axes, labels, strict=True):
        _draw_marginals(ax, {name: frame[label].to_numpy() for name, frame in samples.items()})
        ax.set_xlabel(label)
        ax.set_yticks([])
    axes[0].set_ylabel("density")
    axes[0].legend(frameon=False, fontsize=7)
    return axes


def _draw_marginals(ax: Any, samples: dict[str, np.ndarray]) -> None:
    from scipy.stats import gaussian_kde

    together = np.concatenate(list(samples.values()))
    low, high = np.quantile(together, [0.001, 0.999])
    grid = np.linspace(low, high, 200)
    names = list(samples)
    for i, name in enumerate(names):
        if np.ptp(samples[name]) == 0:
            continue
        density = gaussian_kde(samples[name])(grid)
        if i == len(names) - 1:
            ax.fill_between(grid, density, color="0.8", linewidth=0, label=name)
        else:
            ax.plot(grid, density, color="black", linewidth=1.2, linestyle=["-", "--", ":", "-."][i % 4], label=name)
    ax.set_ylim(bottom=0.0)


def plot_ranks(counts: pd.DataFrame, total: int, axes: Any = None) -> Any:
    """Plot rank histograms.

    Parameters
    ----------
    counts : DataFrame
        Counts of ranks by bin (rows) and parameter (columns).
    total : int
        Number of replications.
    axes : array of matplotlib Axes, optional
        Axes, one per parameter; new ones by default.

    Returns
    -------
    ndarray of matplotlib Axes
        Axes with the histograms and the band of 95 % of the counts of a calibrated posterior (grey).
    """
    from scipy.stats import binom

    labels = list(counts.columns)
    axes = np.asarray(_grid(len(labels)) if axes is None else axes).ravel()[: len(labels)]
    lower, upper = binom.ppf([0.025, 0.975], total, 1.0 / len(counts))
    for ax, label in zip(axes, labels, strict=True):
        ax.axhspan(lower, upper, color="0.85", linewidth=0, label="95 % band")
        ax.axhline(total / len(counts), color="0.5", linewidth=0.8)
        ax.bar(np.arange(len(counts)) + 0.5, counts[label], width=1.0, color="white", edgecolor="black")
        ax.set_xlabel(f"rank of {label} (in {len(counts)} bins)")
        ax.set_ylabel("replications")
    axes[0].legend(frameon=False, fontsize=7)
    return axes
