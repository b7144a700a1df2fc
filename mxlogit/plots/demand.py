"""Plots of willingness to pay, elasticities, and shares as a price changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mxlogit.errors import SpecificationError
from mxlogit.plots.figures import single_axes

# Line styles and grey levels that are told apart in greyscale.
_STYLES = ("-", "--", ":", "-.")
# Probabilities of the quantiles along a distribution.
_QUANTILES = tuple(float(p) for p in np.linspace(0.02, 0.98, 33))


def plot_willingness_to_pay(est: Any, attribute: str, cost: str, axes: Any = None, interval: float = 0.9) -> Any:
    """Plot the distribution of a willingness to pay in the population as a quantile curve with a band.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator.
    attribute, cost : str
        Coefficients, as in `mxlogit.MixedLogit.wtp`.
    axes : matplotlib Axes, optional
        Axes; new ones by default.
    interval : float
        Probability of the band.

    Returns
    -------
    matplotlib Axes
    """
    table = est.wtp(attribute, cost, quantiles=_QUANTILES, interval=interval)
    curve, ax = table.loc[[f"{100.0 * p:g} %" for p in _QUANTILES]], single_axes(axes)
    share = 100.0 * np.array(_QUANTILES)
    label = f"{100.0 * interval:g} % band"
    ax.fill_betweenx(share, curve["lower"], curve["upper"], color="0.8", linewidth=0, label=label)
    ax.plot(curve["estimate"], share, color="black", linewidth=1.4, label="estimate")
    if "mean" in table.index:
        ax.axvline(table.loc["mean", "estimate"], color="black", linewidth=0.8, linestyle="--", label="mean")
    ax.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
    ax.set_xlabel(f"willingness to pay for one unit of {attribute} (units of {cost})")
    ax.set_ylabel("per cent of people below")
    ax.set_ylim(0.0, 100.0)
    ax.legend(frameon=False, fontsize=7)
    return ax


def plot_elasticities(est: Any, X: Any, attribute: str, axes: Any = None, interval: float = 0.9) -> Any:
    """Plot own and cross elasticities of predicted shares, with intervals.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator.
    X : long frame
        Choice situations.
    attribute : str
        Column of a coefficient.
    axes : matplotlib Axes, optional
        Axes; new ones by default.
    interval : float
        Probability of the intervals.

    Returns
    -------
    matplotlib Axes
        A row for each pair: filled points for own, empty ones for cross elasticities.
    """
    table = est.elasticities(X, attribute, interval=interval)
    ax = single_axes(axes, 5.2, 0.28 * len(table) + 1.2)
    for place, (pair, row) in enumerate(table.iterrows()):
        own = pair[0] == pair[1]
        ax.plot([row["lower"], row["upper"]], [place, place], color="black" if own else "0.5", linewidth=1.2)
        ax.plot(row["estimate"], place, "o", color="black", markerfacecolor="black" if own else "white", markersize=4)
    ax.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(table)), [f"{changed} on {other}" for changed, other in table.index], fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel(f"elasticity to {attribute} (per cent per per cent), {100.0 * interval:g} % intervals")
    return ax


def plot_price_curve(
    est: Any,
    X: Any,
    attribute: str,
    alternative: Any,
    axes: Any = None,
    *,
    factors: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5),
    interval: float = 0.9,
) -> Any:
    """Plot shares as an attribute of one alternative is multiplied by factors.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator.
    X : pandas.DataFrame
        Choice situations.
    attribute : str
        Column of a coefficient.
    alternative : object
        Label of the alternative whose attribute changes.
    axes : matplotlib Axes, optional
        Axes; new ones by default.
    factors : sequence of float
        At least two factors; 1 is today.
    interval : float
        Probability of the bands.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    SpecificationError
        If X has no such alternative.
    """
    mine = np.asarray(X[est.alternative]) == alternative
    if not mine.any():
        known = sorted({str(label) for label in X[est.alternative]})
        raise SpecificationError(f"X has no alternative {alternative!r}; it has {known}.")
    scenarios = {f"{f:g}": X.assign(**{attribute: np.where(mine, f, 1.0) * X[attribute]}) for f in factors}
    found, ax = est.shares(scenarios, interval=interval), single_axes(axes)
    for i, label in enumerate(found.loc[f"{factors[0]:g}"].index):
        rows = found.loc[[(f"{f:g}", label) for f in factors]]
        ax.fill_between(factors, rows["lower"], rows["upper"], color="0.85", linewidth=0)
        grey = "black" if label == alternative else "0.35"
        ax.plot(factors, rows["estimate"], color=grey, linestyle=_STYLES[i % 4], linewidth=1.4, label=str(label))
    ax.set_xlabel(f"{attribute} of {alternative}, as a multiple of today's")
    ax.set_ylabel("predicted share")
    ax.set_ylim(bottom=0.0)
    ax.legend(frameon=False, fontsize=7)
    return ax
