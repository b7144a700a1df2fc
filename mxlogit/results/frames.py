"""Tables of a fit: coefficients, summaries, samples and taste distributions."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from mxlogit.diagnostics.convergence import ess_bulk, rhat
from mxlogit.diagnostics.psis import pareto_smoothed
from mxlogit.diagnostics.thresholds import LARGEST_PARETO_K
from mxlogit.errors import ConvergenceWarning, SpecificationError
from mxlogit.fit import Fit
from mxlogit.model.classes import ClassPopulation
from mxlogit.model.mean_shifters import Covariates
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.parameters import PopulationParameters
from mxlogit.results.classes import class_moments, mean_shares, share_rows

# Number of people who stand for all where moments of tastes are averaged over covariates.
_PEOPLE = 64
# Probabilities of the median and of the points one standard deviation from it in a normal distribution.
_CENTRAL = (0.1587, 0.5, 0.8413)


def coefficient_series(model: MixedLogitModel, fit: Fit) -> pd.Series:
    """Point estimates by label."""
    values = model.space.report(fit.center).cpu().numpy()
    return pd.Series(values, index=list(model.space.labels), name="estimate")


def summary_frame(model: MixedLogitModel, fit: Fit, level: float, people: Covariates | None = None) -> pd.DataFrame:
    """Estimates, standard errors (posterior sds) and interval limits by label, and of the shares of classes.

    ``people`` have covariates of membership, over whom shares are averaged.
    """
    estimate = coefficient_series(model, fit)
    if fit.covariance is not None:
        frame = _asymptotic_frame(estimate, fit.covariance, level)
    else:
        frame = _posterior_frame(estimate, fit, level)
    frame.loc[list(fit.void), frame.columns != "estimate"] = float("nan")
    if model.has_classes:
        frame = pd.concat([frame, share_rows(model, fit, people, level)])
    return frame


def _posterior_frame(estimate: pd.Series, fit: Fit, level: float) -> pd.DataFrame:
    """Posterior sds and quantiles, with R-hat and effective sample sizes of chains."""
    lower, upper = fit.samples.quantiles([0.5 * (1.0 - level), 0.5 * (1.0 + level)]).cpu().numpy()
    frame = pd.DataFrame(
        {
            "estimate": estimate,
            "std_error": fit.samples.deviation.cpu().numpy(),
            "lower": lower,
            "upper": upper,
        }
    )
    if fit.chains is not None and len(fit.chains) > 1:
        frame["rhat"] = rhat(fit.chains).cpu().numpy()
        frame["ess"] = ess_bulk(fit.chains).cpu().numpy()
    return frame


def _asymptotic_frame(estimate: pd.Series, covariance: torch.Tensor, level: float) -> pd.DataFrame:
    """Normal intervals, z statistics and two-sided p values."""
    error = pd.Series(covariance.diagonal().clamp(min=0.0).sqrt().cpu().numpy(), index=estimate.index)
    width = norm.ppf(0.5 * (1.0 + level)) * error
    z = estimate / error.where(error > 0)
    return pd.DataFrame(
        {
            "estimate": estimate,
            "std_error": error,
            "lower": estimate - width,
            "upper": estimate + width,
            "z": z,
            "p": 2.0 * norm.sf(z.abs()),
        }
    )


def samples_frame(fit: Fit, n: int | None) -> pd.DataFrame:
    """Samples of the reported parameters: the first n rows, all by default.

    Raises
    ------
    SpecificationError
        If there are not as many.
    """
    if n is not None and not (isinstance(n, (int, np.integer)) and 0 < n <= len(fit.samples)):
        most = len(fit.samples)
        raise SpecificationError(f"n must be between 1 and {most} (VI(n_samples=...) keeps more); got {n!r}.")
    values = fit.samples.reported if n is None else fit.samples.reported[:n]
    return pd.DataFrame(values.cpu().numpy(), columns=list(fit.samples.labels))


def taste_frame(model: MixedLogitModel, fit: Fit, people: Covariates | None = None) -> pd.DataFrame:
    """Mean and standard deviation of the (transformed) tastes in the population.

    Parameters
    ----------
    model : MixedLogitModel
    fit : Fit
    people : Covariates, optional
        Covariates of people, if some shift the means of tastes: both moments then include these shifts.

    Returns
    -------
    pandas.DataFrame
        Index: coefficients that are random or shifted by covariates. Columns: ``distribution``, posterior mean and sd
        of the taste's population mean (``mean``, ``mean_error``) and of its population sd (``sd``, ``sd_error``); after
        maximum likelihood, values at the estimate and standard errors. If the posterior of a moment has no finite mean
        (a lognormal with an imprecise latent standard deviation), its median and half the width of the central 68 %
        interval, with a warning.
    """
    posterior = fit.samples.kind == "posterior"
    population = model.space.constrain(fit.samples.unconstrained)
    sampled = _moments(model, population, people)
    at_center = _moments(model, fit.center, people)
    names, f = [*model.space.fixed, *model.space.random], model.space.n_fixed
    frame = pd.DataFrame(index=[names[place] for place in model.varying])
    families = [family.name for family in model.mixing.families]
    frame["distribution"] = ["fixed" if place < f else families[place - f] for place in model.varying]
    void = [name in fit.void for name in frame.index]
    endless = set[str]()
    for name, value, center in zip(("mean", "sd"), sampled, at_center, strict=True):
        frame[name] = (value.mean(0) if posterior else center).cpu().numpy()
        # Where this overflows the column is one of those without a mean.
        with np.errstate(over="ignore", invalid="ignore"):
            frame[f"{name}_error"] = value.cpu().numpy().std(0, ddof=1)
        for i in _without_mean(value) if posterior else []:
            # Moments of the widest populations may be larger than any number: nothing is interpolated between these.
            low, middle, high = np.quantile(value[:, i].cpu().numpy(), _CENTRAL, method="nearest").tolist()
            frame.iloc[i, -2:] = middle, 0.5 * (high - low)
            endless.add(frame.index[i])
        frame.loc[void, f"{name}_error"] = float("nan")
    if endless:
        warnings.warn(
            f"The population moments of {sorted(endless)} have posteriors without a finite mean: the table gives "
            "medians, and half the width of the central 68 % interval. Quantiles of tastes are not affected.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return frame


def _moments(
    model: MixedLogitModel, population: PopulationParameters, people: Covariates | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations of the coefficients that vary over people, with their covariates."""
    if isinstance(population, ClassPopulation):
        return _moments_of_classes(model, population, people)
    mean, deviation = model.mixing.moments(population.location, population.scale)
    if people is None or not model.shifters:
        return mean, deviation
    if model.shifters.of_latents:
        mean, deviation = _moments_of_shifted_latents(model, population, people)
    added, variance = model.shifters.moments(torch.cat([population.fixed, torch.zeros_like(mean)], -1), people)
    mean = torch.cat([population.fixed, mean], -1) + added
    deviation = torch.cat([torch.zeros_like(population.fixed), deviation], -1)
    # Infinite moments stay what they are.
    both = torch.where(variance > 0.0, (deviation.square() + variance).sqrt(), deviation)
    return mean[..., model.varying], both[..., model.varying]


def _moments_of_shifted_latents(
    model: MixedLogitModel, population: PopulationParameters, people: Covariates
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations (*s, k) of tastes whose latent normals covariates shift, over all people.

    Of many people some stand for all, in an order along the effects on each taste at the average population.
    """
    single, f = population.location.dim() == 1, model.space.n_fixed
    if single:
        population = population.map(lambda x: x[None])
    centre = population.fixed.mean(0)
    parts = []
    for i in range(model.space.n_random):
        mine = model.shifters.of_latents.of(f + i)
        values = (
            people.values if len(people.values) <= _PEOPLE else people.nodes(mine.index(centre, people.values), _PEOPLE)
        )
        weights = people.weights if len(values) == len(people.values) else torch.ones(len(values)).double()
        shift = mine.shift_of_latents(population.fixed[:, None], values, model.space.n_random)
        location, scale = population.location[:, None, i] + shift[..., i], population.scale[:, None, i]
        mean, deviation = model.mixing.families[i].moments(location, scale.expand_as(location))
        share = (weights / weights.sum()).to(mean)
        total = mean @ share
        variance = deviation.square() @ share + (mean - total[:, None]).square() @ share
        parts.append(torch.stack([total, variance.sqrt()]))
    mean, deviation = torch.stack(parts, -1)
    return (mean[0], deviation[0]) if single else (mean, deviation)


def _moments_of_classes(
    model: MixedLogitModel, population: ClassPopulation, people: Covariates | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and standard deviations over the members of all classes."""
    mean, deviation = class_moments(model, population)
    shares = mean_shares(population, people)[..., None]
    total = (shares * mean).sum(-2)
    variance = (shares * (deviation.square() + (mean - total[..., None, :]).square())).sum(-2)
    return total, variance.sqrt()


def _without_mean(samples: torch.Tensor) -> list[int]:
    """Columns of samples (s, k) whose tails are too heavy for a finite mean, or that are not all finite themselves."""
    _, shape = pareto_smoothed(samples.abs().clamp(1e-300, torch.finfo(samples.dtype).max).log().T)
    return [int(i) for i in torch.nonzero((shape > LARGEST_PARETO_K) | ~torch.isfinite(samples).all(0))[:, 0]]
