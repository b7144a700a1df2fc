"""Plots of a fit, readable in greyscale; matplotlib is imported on first use."""

from mxlogit.plots.checks import plot_predictive_check
from mxlogit.plots.classes import plot_classes
from mxlogit.plots.demand import plot_elasticities, plot_price_curve, plot_willingness_to_pay
from mxlogit.plots.samples import plot_convergence, plot_marginals, plot_ranks
from mxlogit.plots.tastes import (
    plot_correlations,
    plot_individual_tastes,
    plot_shrinkage,
    plot_taste_distributions,
)

__all__ = [
    "plot_classes",
    "plot_convergence",
    "plot_correlations",
    "plot_elasticities",
    "plot_individual_tastes",
    "plot_marginals",
    "plot_predictive_check",
    "plot_price_curve",
    "plot_ranks",
    "plot_shrinkage",
    "plot_taste_distributions",
    "plot_willingness_to_pay",
]
