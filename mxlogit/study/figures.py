"""Plots of studies."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mxlogit.errors import SpecificationError
from mxlogit.plots.figures import pyplot
from mxlogit.study.published import published_results
from mxlogit.study.runner import summarise

# Markers of the methods, in order.
_OWN = ("o", "s", "^", "D", "v", "P")


def plot_seconds(table: pd.DataFrame, ax: Any = None, *, published: tuple[str, ...] = ()) -> Any:
    """Plot seconds per fit against the number of decision makers, both on logarithmic scales.

    Parameters
    ----------
    table : pandas.DataFrame
        Result of `run_study`.
    ax : matplotlib Axes, optional
        Axes; new ones by default.
    published : tuple of str
        Published methods to add (index of `published_results`), such as ``("MSLE", "Gibbs", "AVI v2-d")``.

    Returns
    -------
    matplotlib Axes
        Axes with medians and bars from the fastest to the slowest fit (black), and published means, from other
        machines (grey).

    Raises
    ------
    SpecificationError
        If the table has no fit with seconds, or a published method is unknown.
    """
    fits = table[table["seconds"].notna()]
    if fits.empty:
        raise SpecificationError("the table has no fit with seconds: nothing to plot.")
    known = published_results()
    unknown = [name for name in published if name not in known.index.get_level_values("method")]
    if unknown:
        names = sorted(set(known.index.get_level_values("method")) - {"attainable"})
        raise SpecificationError(f"published methods {unknown} are unknown; there are {names}.")
    if ax is None:
        _, ax = pyplot().subplots(figsize=(6.0, 4.0), layout="tight")
    for name in published:
        rows = known.xs(name, level="method")["seconds"].dropna().sort_index()
        ax.plot(rows.index, rows, color="0.6", linestyle="--", marker=".", linewidth=1.0)
        ax.annotate(
            f"{name} (published)",
            (rows.index[-1], rows.iloc[-1]),
            xytext=(0, 6),
            textcoords="offset points",
            color="0.4",
            fontsize=8,
            ha="right",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    medians = summarise(fits)["seconds"].unstack("method")
    for marker, (method, column) in zip(_OWN * len(medians.columns), medians.items(), strict=False):
        column = column.dropna().sort_index()
        spread = fits[fits["method"] == method].groupby("people")["seconds"].agg(["min", "max"]).loc[column.index]
        errors = [column - spread["min"], spread["max"] - column]
        ax.errorbar(column.index, column, yerr=errors, color="black", marker=marker, capsize=2.0, label=method)
    ax.set(xscale="log", yscale="log", xlabel="decision makers", ylabel="seconds per fit")
    ax.margins(x=0.1, y=0.1)
    ax.grid(color="0.9")
    # Placed above the axes, since inside it would cover data.
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, len(medians.columns)))
    return ax
