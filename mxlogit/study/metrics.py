"""Evaluation of fits to simulated data, common to all engines."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from mxlogit.choices import ChoiceData
from mxlogit.estimator import MixedLogit
from mxlogit.results.prediction import mean_of_rows, probabilities
from mxlogit.study.designs import Sample

Result = TypeVar("Result")
# Probability of the intervals whose coverage is evaluated.
COVERAGE_LEVEL = 0.9


def evaluate(est: MixedLogit, sample: Sample) -> dict[str, float]:
    """Compute errors, coverage, out-of-sample log scores and cost of a fitted estimator.

    Parameters
    ----------
    est : MixedLogit
        Estimator fitted to ``sample.data``.
    sample : Sample
        Simulated data with their true parameters.

    Returns
    -------
    dict of str to float
        Root-mean-square errors ``rmse_alpha`` (fixed coefficients), ``rmse_zeta`` (locations), ``rmse_omega`` (all
        elements of the posterior mean of the covariance of latents), ``rmse_beta_n`` (posterior means of all people's
        tastes); ``covered_...``, shares of 90 % intervals that contain the truth; ``log_likelihood`` and its Monte
        Carlo error by importance sampling; ``log_score_same_people``, mean log probability of the choices in new
        situations of the same people; ``log_score_new_people``, mean log likelihood per choice of new people;
        ``seconds``, ``passes``, ``pareto_k``, ``converged``.
    """
    fixed, random = list(est._specify().fixed), list(sample.tastes.columns)
    errors = {
        "rmse_alpha": est.coef_[fixed] - sample.parameters[fixed],
        "rmse_zeta": est.coef_[random] - sample.parameters[random],
        "rmse_omega": covariance_of(est) - true_covariance(sample.parameters, random),
        "rmse_beta_n": _person_means(est, random) - sample.tastes.to_numpy(),
    }
    found = est.diagnostics_
    return {
        **{name: float(np.sqrt(np.mean(np.square(error)))) for name, error in errors.items() if np.size(error)},
        **_coverage(est, sample.parameters),
        "log_likelihood": _number(est.log_likelihood_),
        "log_likelihood_error": _number(est.log_likelihood_error_),
        "log_score_same_people": _mean_log_probability(est, sample.new_situations),
        "log_score_new_people": est.score(sample.new_people),
        "seconds": _number(found.get("seconds")),
        "passes": _number(found.get("passes")),
        "pareto_k": _number(found.get("pareto_k")),
        "converged": float(bool(found["converged"])),
    }


def covariance_of(est: MixedLogit) -> np.ndarray:
    """Posterior mean (k, k) of the covariance of latents; without a posterior, its value at the estimate."""
    fit, space = est.result_, est._state().model.space
    if fit.samples.kind != "posterior":
        root = fit.center.scale_tril
        return (root @ root.mT).numpy()
    roots = space.constrain(fit.samples.unconstrained).scale_tril
    return (roots @ roots.mT).mean(0).numpy()


def true_covariance(parameters: pd.Series, names: list[str]) -> np.ndarray:
    """Covariance (k, k) of latents from reported standard deviations and correlations; others are zero."""
    correlation = np.eye(len(names))
    for label, value in parameters.items():
        pair = re.fullmatch(r"cor\.(.+):(.+)", str(label))
        if pair:
            i, j = (names.index(name) for name in pair.groups())
            correlation[i, j] = correlation[j, i] = value
    sds = parameters[[f"sd.{name}" for name in names]].to_numpy()
    return correlation * np.outer(sds, sds)


def _person_means(est: MixedLogit, random: list[str]) -> np.ndarray:
    table = est.individual_coefficients(statistic=["mean"])
    return table[[(name, "mean") for name in random]].to_numpy()


def _coverage(est: MixedLogit, parameters: pd.Series) -> dict[str, float]:
    table = est.summary(level=COVERAGE_LEVEL)
    truth = parameters.reindex(table.index)
    covered = (table["lower"] <= truth) & (truth <= table["upper"])
    kinds = np.where(covered.index.str.startswith("sd."), "sd", "coefficient")
    kinds = np.where(covered.index.str.startswith("cor."), "cor", kinds)
    known = truth.notna()
    shares = covered[known].groupby(kinds[known]).mean()
    return {f"covered_{kind}": float(share) for kind, share in shares.items()}


def _mean_log_probability(est: MixedLogit, X: Any) -> float:
    """Mean log probability of the choices of people of the fit, by their individual posterior tastes."""
    if isinstance(X, ChoiceData):
        chosen = X.first_rows[:-1] + X.choices.chosen_ranks
        fitted = est._state()
        source = fitted.coefficients(est.result_, X, "individual").mean
        found = mean_of_rows(X, fitted.columns(X), source, probabilities)
        return float(found[chosen.cpu()].log().mean())
    probability = est.predict_proba(X, tastes="individual")
    return float(np.log(probability[X["choice"].astype(bool)]).mean())


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float | np.floating) else float("nan")


def with_peak_memory(function: Callable[[], Result]) -> tuple[Result, float]:
    """Result of a function, and the peak increase of resident memory in MB; nan if the system does not report it."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return function(), float("nan")
    reset.write_text("5")
    before = _status(status, "VmRSS")
    result = function()
    return result, _status(status, "VmHWM") - before


def _status(path: Path, name: str) -> float:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024.0


def machine() -> dict[str, Any]:
    """Properties of the machine that results depend on: versions, processor, threads."""
    return {
        "mxlogit": version("mxlogit"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
