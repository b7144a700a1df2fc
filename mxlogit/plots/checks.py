"""Plot of observed statistics of choices beside simulated ones."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mxlogit.errors import SpecificationError
from mxlogit.plots.figures import single_axes

# Names of statistics in pictures.
_NAMES = {"switching": "switch alternative", "entropy": "entropy (nats)", "loyal": "always the same"}


def plot_predictive_check(table: pd.DataFrame, axes: Any = None) -> Any:
    """Plot a table of `mxlogit.MixedLogit.predictive_check`: intervals of simulated values, and observed ones.

    Parameters
    ----------
    table : pandas.DataFrame
        Result of ``est.predictive_check(X)``.
    axes : matplotlib Axes, optional
        Axes; new ones by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    SpecificationError
        If it is no such table.
    """
    if not isinstance(table, pd.DataFrame) or not {"observed", "mean", "lower", "upper"} <= set(table.columns):
        raise SpecificationError("plot_predictive_check needs the table of est.predictive_check(X).")
    shown = table.dropna(subset=["observed", "mean"])
    labels = [f"share of {key[1]}" if key[0] == "share" else _NAMES[key[0]] for key in shown.index]
    ax = single_axes(axes, 4.8, 1.0 + 0.32 * len(shown))
    places = range(len(shown))[::-1]
    ax.hlines(places, shown["lower"], shown["upper"], color="0.7", linewidth=6.0, label="simulated, interval")
    ax.plot(shown["mean"], places, "|", color="black", markersize=9, label="simulated, mean")
    ax.plot(shown["observed"], places, "x", color="black", markersize=6, label="observed")
    ax.set_yticks(list(places), labels)
    ax.set_ylim(-0.7, len(shown) - 0.3)
    ax.set_xlabel("value of the statistic")
    ax.legend(frameon=False, fontsize=7, loc="best")
    return ax
