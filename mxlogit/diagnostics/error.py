r"""Estimated distance of a fit from the exact posterior, in posterior standard deviations, and whether to trust it.

A fit errs by the noise of the draws that integrate over tastes, by the distance of its approximation from the
posterior, and by the noise of the samples that represent it. Each cause is estimated on its own, as expected squares of
the errors of every reported mean and standard deviation; independent causes add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from mxlogit.diagnostics.convergence import mcse_mean
from mxlogit.diagnostics.thresholds import LARGEST_ERROR


class Cause(Enum):
    """Cause of an error, in words, and its remedy."""

    DRAWS = "the noise of the draws of tastes", "more draws, VI(draws=), or method='mcmc'"
    SIMULATION = "the noise and bias of simulated probabilities", "a larger n_draws"
    APPROXIMATION = "the distance of the Gaussian from the posterior", "VI(correct=True) or method='mcmc'"
    TRAINING = "training ended at some distance from the posterior", "longer training, VI() or method='mcmc'"
    WEIGHTS = "too few weighted draws of the posterior count", "method='mcmc'"
    INTEGRATION = "the draws of tastes do not cover the posterior", "method='mcmc'"
    TAIL = (
        "hardly more than its prior bounds a standard deviation, so that its posterior has no reliable moments",
        "more data, a narrower prior, or medians and quantiles instead",
    )
    CHAINS = "the chains are short or have not mixed", "longer chains, by method='mcmc'"
    EMPTY = (
        "much of the posterior, where some classes have hardly any members, is not among the weighted draws",
        "fewer classes, which describe the data as well",
    )
    TIME = "time was over before they were checked", "a larger max_seconds"
    PEOPLE = "uneven weights of the draws of people's tastes", "method='mcmc'"

    @property
    def words(self) -> str:
        """The cause as a phrase."""
        return str(self.value[0])

    @property
    def remedy(self) -> str:
        """Remedy as a phrase."""
        return str(self.value[1])


@dataclass(frozen=True)
class SquaredErrors:
    """Expected squared errors from one cause, in posterior standard deviations.

    Attributes
    ----------
    cause : Cause
    mean : Tensor, shape (D,)
        Squared errors of the reported means.
    deviation : Tensor, shape (D,)
        Squared errors of the reported standard deviations, relative to these.
    """

    cause: Cause
    mean: Tensor
    deviation: Tensor


def no_errors(size: int) -> SquaredErrors:
    """Errors of ``size`` parameters whose likelihood needs no simulation."""
    zeros = torch.zeros(size, dtype=torch.float64)
    return SquaredErrors(Cause.SIMULATION, zeros, zeros)


def unknown_errors(cause: Cause, size: int) -> SquaredErrors:
    """Errors of ``size`` parameters that nothing tells, from a cause."""
    unknown = torch.full((size,), math.inf, dtype=torch.float64)
    return SquaredErrors(cause, unknown, unknown)


@dataclass(frozen=True)
class ErrorEstimate:
    """Estimated errors of a fit.

    Attributes
    ----------
    labels : tuple of str, length D
        Labels of the reported parameters.
    parts : tuple of SquaredErrors
        Independent causes.
    people : float or None
        Root mean square error of people's mean tastes, in posterior standard deviations of each.
    """

    labels: tuple[str, ...]
    parts: tuple[SquaredErrors, ...]
    people: float | None = None

    def with_part(self, part: SquaredErrors | None) -> ErrorEstimate:
        """Return these errors with those from one cause more."""
        return self if part is None else replace(self, parts=(*self.parts, part))

    @property
    def by_parameter(self) -> Tensor:
        """The larger of the errors of mean and standard deviation of each parameter, (D,)."""
        if not self.parts:
            return torch.full((len(self.labels),), math.nan, dtype=torch.float64)
        squares = torch.stack([torch.stack([part.mean, part.deviation]) for part in self.parts]).sum(0)
        return squares.nan_to_num(nan=math.inf, posinf=math.inf).amax(0).sqrt()

    def by_group(self) -> dict[str, float]:
        """The largest error in each group of parameters, and that of people's tastes."""
        errors, found = self.by_parameter.tolist(), dict[str, float]()
        for label, error in zip(self.labels, errors, strict=True):
            group = _group_of(label)
            found[group] = max(error, found.get(group, 0.0))
        return found if self.people is None else {**found, "people": self.people}

    @property
    def of_population(self) -> float:
        """The largest error of all parameters of the population."""
        return float(self.by_parameter.amax()) if self.labels else 0.0

    @property
    def is_small(self) -> bool:
        """Whether all groups are trusted."""
        return all(error <= LARGEST_ERROR for error in self.by_group().values())

    def sentence(self) -> str:
        """Say how far the fit may be off, in which groups, why, and what to do."""
        groups = self.by_group()
        large = {group: error for group, error in groups.items() if not error <= LARGEST_ERROR}
        if not large:
            worst = max(groups.values(), default=0.0)
            return (
                "Means and standard deviations are estimated to lie within "
                f"{worst:.2f} posterior standard deviations of the exact ones."
            )
        listed = ", ".join(f"{group} ({_words_of(error)})" for group, error in large.items())
        cause = Cause.PEOPLE if set(large) == {"people"} else self._main_cause()
        return (
            f"The estimated error, in posterior standard deviations, exceeds {LARGEST_ERROR} of {listed}: "
            f"{cause.words}. Remedy: {cause.remedy}."
        )

    def _main_cause(self) -> Cause:
        """The cause with the largest share of the worst parameter's error."""
        place = int(self.by_parameter.argmax())
        sizes = [float(torch.maximum(part.mean[place], part.deviation[place])) for part in self.parts]
        return self.parts[max(range(len(sizes)), key=lambda i: math.inf if math.isnan(sizes[i]) else sizes[i])].cause


def _group_of(label: str) -> str:
    kinds = {"sd.": "standard deviations", "cor.": "correlations"}
    return next((group for prefix, group in kinds.items() if label.startswith(prefix)), "coefficients")


def _words_of(error: float) -> str:
    return f"{error:.2f}" if math.isfinite(error) else "unknown"


def error_of_chains(reported: Tensor) -> SquaredErrors:
    """Monte Carlo errors of chains (chains, kept, D), the spread between them included; unknown of one chain."""
    if len(reported) < 2:
        return unknown_errors(Cause.CHAINS, reported.shape[-1])
    flat = reported.reshape(-1, reported.shape[-1])
    unit = flat.std(0).clamp(min=1e-300)
    scores = (reported - flat.mean(0)) / unit
    return SquaredErrors(Cause.CHAINS, mcse_mean(scores).square(), 0.25 * mcse_mean(scores.square()).square())


def error_of_weighted(scores: Tensor, weights: Tensor) -> SquaredErrors:
    """Monte Carlo errors of means over weighted draws.

    Parameters
    ----------
    scores : Tensor, shape (n, D)
        Reported parameters less their weighted mean, in their weighted standard deviations.
    weights : Tensor, shape (n,)
        They sum to one.
    """
    squares = weights.square()
    return SquaredErrors(Cause.WEIGHTS, squares @ scores.square(), 0.25 * squares @ (scores.square() - 1.0).square())


def error_of_reweighting(
    cause: Cause, scores: Tensor, log_weights: Tensor, *, antithetic: bool = False
) -> SquaredErrors:
    """Errors that weights reveal: by how much they move means and standard deviations of a sample.

    Where few points carry all weight, the estimate and its noise are the same few numbers, and neither says anything:
    errors then are at least those of a mean over so few points.

    Parameters
    ----------
    cause : Cause
    scores : Tensor, shape (n, D)
        Reported parameters at points of the reported posterior, standardised by its means and standard deviations.
    log_weights : Tensor, shape (n,)
        Log ratio of a better density to the reported one, up to a constant.
    antithetic : bool
        Whether the second half of the points mirrors the first.
    """
    weights = log_weights.softmax(0)
    excess = weights * len(log_weights) - 1.0
    resolution = float(weights.square().sum()) - 1.0 / len(weights)
    least = resolution if not resolution <= LARGEST_ERROR**2 else 0.0
    shift = (excess[:, None] * scores).mean(0)
    first = excess[:, None] * scores
    # Around the moved mean.
    second = 0.5 * (excess[:, None] * (scores.square() - 1.0) - shift.square())
    squares = (_expected_squares(values, antithetic).clamp(min=least) for values in (first, second))
    return SquaredErrors(cause, *squares)


def _expected_squares(values: Tensor, antithetic: bool) -> Tensor:  # noqa: FBT001
    """Expected squares (D,) of the means of noisy values (n, D)."""
    if antithetic:
        half = len(values) // 2
        values = 0.5 * (values[:half] + values[half : 2 * half])
    return shrunk_squares(values.mean(0), values.var(0) / len(values))


def shrunk_squares(estimates: Tensor, noise: Tensor) -> Tensor:
    """Expected squares (D,) of quantities that are known as estimates (D,) with noise of known variance (D,).

    The quantities are taken as normal around zero, with a variance estimated from all of them (empirical Bayes; Efron
    and Morris 1973, Journal of the American Statistical Association 68): the largest of many noisy estimates is no
    finding.
    """
    spread = (estimates.square() - noise).mean().clamp(min=0.0)
    share = spread / (spread + noise).clamp(min=1e-300)
    return (share * estimates).square() + share * noise
