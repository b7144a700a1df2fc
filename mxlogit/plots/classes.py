"""Plots of classes of decision makers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mxlogit.errors import SpecificationError
from mxlogit.plots.figures import several_axes


def plot_classes(est: Any, coefficients: Sequence[str] | None = None, axes: Any = None) -> np.ndarray:
    """Plot the mean coefficients of the members of each class, with 95 % intervals.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator whose population consists of classes.
    coefficients : sequence of str, optional
        Random coefficients to plot; all by default.
    axes : sequence of matplotlib Axes, optional
        Axes, one per coefficient; new ones by default.

    Returns
    -------
    ndarray of matplotlib Axes
        One row per class, named with its share; the dotted line is zero.

    Raises
    ------
    SpecificationError
        If the model has no classes, or a coefficient is not random.
    """
    table, known = est.class_tastes(), list(est._state().model.space.random)
    names = known if coefficients is None else list(coefficients)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SpecificationError(f"{unknown} are no random coefficients of this model, which has {known}.")
    shares = table.xs("share", level="statistic")["estimate"].droplevel("coefficient")
    axes = several_axes(axes, len(names))
    places = -np.arange(len(shares))
    for ax, name in zip(axes, names, strict=True):
        means = table.xs(("mean", name), level=("statistic", "coefficient"))
        ax.hlines(places, means["lower"], means["upper"], color="0.5", linewidth=2.0)
        ax.plot(means["estimate"], places, "o", color="black", markersize=4.0)
        ax.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
        ax.set_yticks(places, [f"{label} ({share:.0%})" for label, share in shares.items()])
        ax.set_ylim(places[-1] - 0.5, 0.5)
        ax.set_xlabel(f"coefficient of {name} (mean of the class)")
    return axes


def draw_shares(ax: Any, est: Any, name: str) -> None:
    """Draw the coefficient of each class of a latent class model as a line as high as its share."""
    table = est.class_tastes()
    shares = table.xs("share", level="statistic")["estimate"].to_numpy()
    means = table.xs(("mean", name), level=("statistic", "coefficient"))
    ax.vlines(means["estimate"], 0.0, shares, color="black", linewidth=2.0, label="classes")
    ax.hlines(shares, means["lower"], means["upper"], color="0.6", linewidth=2.0, label="95 % interval")
    ax.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
    ax.set_ylim(0.0, 1.15 * shares.max())
