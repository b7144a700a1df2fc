"""Limits of diagnostics, each once and with its source."""

from __future__ import annotations

import math

# Largest Pareto k of importance weights whose estimates are reliable, from 2,200 draws on (Vehtari, Simpson, Gelman,
# Yao and Gabry 2024, Journal of Machine Learning Research 25). The same of a few dozen draws, whose k is noise and
# counts only together with an effective share below EVEN_ENOUGH.
LARGEST_PARETO_K = 0.7
# Effective share of the draws above which weights are even, whatever the shape of their tail; chosen by hand.
EVEN_ENOUGH = 0.7
# Mean effective share of people's draws above which their weights are even; chosen by hand.
EVEN_WEIGHTS = 0.75
# Share of people with uneven weights above which results are approximate; chosen by hand.
MANY_PEOPLE = 0.05
# Largest estimated error, in posterior standard deviations, of a fit that is trusted: errors above .3 are then rare (at
# most 2 % of parameters; measured, docs/benchmarks).
LARGEST_ERROR = 0.2
# Error of a difference of log likelihoods, in nats, above which a comparison of models says so: a test statistic errs
# by twice as much, and one more parameter is worth one by AIC.
LARGEST_LIKELIHOOD_ERROR = 1.0
# Largest R-hat of chains that have mixed (Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, Bayesian Analysis 16).
LARGEST_RHAT = 1.01


def largest_pareto_k(draws: int) -> float:
    """Return the largest Pareto k at which a mean over importance draws is reliable: min(1 - 1 / log10(S), 0.7).

    Parameters
    ----------
    draws : int
        Number S of draws, more than ten.

    References
    ----------
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Journal of Machine Learning Research 25, section 3.
    """
    return min(1.0 - 1.0 / math.log10(max(draws, 11)), LARGEST_PARETO_K)
