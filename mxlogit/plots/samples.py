"""Plots of samples and searches: marginals by engine, ranks of a calibration, convergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mxlogit.plots.figures import several_axes, single_axes

if TYPE_CHECKING:
    import pandas as pd

# Line styles that are told apart in greyscale.
_STYLES = ("-", "--", ":", "-.")


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
    axes = several_axes(axes, len(labels))
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
            ax.plot(grid, density, color="black", linewidth=1.2, linestyle=_STYLES[i % 4], label=name)
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
    axes = several_axes(axes, len(labels))
    lower, upper = binom.ppf([0.025, 0.975], total, 1.0 / len(counts))
    for ax, label in zip(axes, labels, strict=True):
        ax.axhspan(lower, upper, color="0.85", linewidth=0, label="95 % band")
        ax.axhline(total / len(counts), color="0.5", linewidth=0.8)
        ax.bar(np.arange(len(counts)) + 0.5, counts[label], width=1.0, color="white", edgecolor="black")
        ax.set_xlabel(f"rank of {label} (in {len(counts)} bins)")
        ax.set_ylabel("replications")
    axes[0].legend(frameon=False, fontsize=7)
    return axes


def plot_convergence(est: Any, axes: Any = None) -> Any:
    """Plot how the search of a fit converged; of chains, the states of their first parameter.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator.
    axes : matplotlib Axes, optional
        Axes; new ones by default.

    Returns
    -------
    matplotlib Axes
        Gain that a Newton step still promised, in nats on a logarithmic scale, against seconds, one line for each
        number of draws; of searches without Newton steps the objective.
    """
    ax, result = single_axes(axes), est.result_
    if result.chains is not None and len(result.history) == 0:
        for i, chain in enumerate(result.chains[..., 0].cpu().numpy()):
            ax.plot(chain, color=str(0.15 + 0.6 * i / len(result.chains)), linewidth=0.6)
        ax.set_xlabel("kept iteration")
        ax.set_ylabel(result.samples.labels[0])
        return ax
    rows = [row for row in result.history if row.accepted]
    has_steps = any(np.isfinite(row.decrement) and row.decrement > 0.0 for row in rows)
    for i, stage in enumerate(dict.fromkeys(row.stage for row in rows)):
        mine = [row for row in rows if row.stage == stage]
        values = [row.decrement if has_steps else row.objective for row in mine]
        style = {"linestyle": _STYLES[i % 4], "marker": "o", "markersize": 3, "linewidth": 1.0, "color": "black"}
        ax.plot([row.seconds for row in mine], values, label=stage, **style)
    if has_steps:
        ax.set_yscale("log")
    ax.set_xlabel("seconds")
    ax.set_ylabel("promised gain (nats)" if has_steps else "objective (nats)")
    if 1 < len(ax.get_lines()) <= 6:
        ax.legend(frameon=False, fontsize=7)
    return ax
