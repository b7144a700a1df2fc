"""Plot of observed statistics of choices beside simulated ones."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mxlogit.errors import SpecificationError
from mxlogit.plots.figures import single_axes

# Names of statistics in pictures.
_NAMES = {"switching": "switch alternative", "entropy": "entropy (nats)", "loyal": "always the same"}


def plot_predictive_check(table: pd.DataFrame, axes: Any = None) -> Any:
    """Plot a table of `mxlogit.MixedLogit.predictive_check`: how far observed values are from simulated ones.

    Differences are relative to half the width of the interval of simulated values, since statistics have several units.

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
    half = (0.5 * (shown["upper"] - shown["lower"])).where(lambda width: width > 0.0, 1.0)
    lower, upper, observed = ((shown[name] - shown["mean"]) / half for name in ("lower", "upper", "observed"))
    ax = single_axes(axes, 5.6, 1.2 + 0.32 * len(shown))
    places = list(range(len(shown)))[::-1]
    ax.hlines(places, lower, upper, color="0.75", linewidth=6.0, label="interval of simulated values")
    ax.plot(observed, places, "x", color="black", markersize=6, label="observed")
    ax.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
    for place, value in zip(places, shown["observed"], strict=True):
        ax.annotate(f"{value:.3g}", (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=7)
    ax.set_yticks(places, labels)
    ax.set_ylim(-0.7, len(shown) - 0.3)
    ax.set_xlabel("observed less simulated mean (half widths of the interval)")
    ax.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax
