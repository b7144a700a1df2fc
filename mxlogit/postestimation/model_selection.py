"""Comparison of models of the same choices, and of the same model in groups of people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from mxlogit.choices.frames import as_narwhals
from mxlogit.errors import ChoiceDataError, NotFittedError, SpecificationError, suggest
from mxlogit.estimator import MixedLogit
from mxlogit.postestimation.hypotheses import likelihood_ratio_test
from mxlogit.results.predictive import PredictiveDensity


def compare_models(models: Mapping[str, MixedLogit] | Sequence[MixedLogit]) -> pd.DataFrame:
    """Compare models of the same choices by likelihood, information criteria and leave-one-person-out.

    Parameters
    ----------
    models : mapping of name to MixedLogit, or sequence
        Estimators fitted to the same people and choices; a sequence is named "model 1", "model 2", ...

    Returns
    -------
    pandas.DataFrame
        Index: models, the best first (by leave-one-person-out, else by BIC). Columns:

        ``parameters``
            Number of estimated parameters.
        ``log_likelihood``, ``log_likelihood_error``
            Marginal log likelihood at ``coef_``, and its Monte Carlo standard error.
        ``aic``, ``bic``
            -2 log likelihood + 2 parameters, and + parameters times the logarithm of the number of people; smaller is
            better. At a posterior mean the log likelihood is a little below its maximum.
        ``elpd``, ``elpd_error``
            Expected log predictive density of new people (`MixedLogit.loo`), larger is better, and its standard error;
            NaN after maximum likelihood.
        ``elpd_difference``, ``difference_error``
            Difference to the best model, and its standard error over people, paired by person.
        ``people_above_k``
            Share of people whose estimate is unreliable.
        ``p_nested``
            p value of the likelihood ratio test against the largest model before it, among those given, in which it is
            nested; NaN except after maximum likelihood.
        ``log_evidence``
            Log marginal likelihood of models of classes, by which their number may be chosen, and of fixed
            coefficients, which are those of one class; NaN of other models.
        ``seconds``, ``trusted``
            Duration of the fit, and whether its estimated error is small.

    Raises
    ------
    SpecificationError
        If there are fewer than two models, or they are of different people or choices.
    NotFittedError
        If a model is not fitted.

    References
    ----------
    Vehtari, Gelman and Gabry (2017), Statistics and Computing 27, for leave-one-out.
    """
    named = _named(models)
    _check_same_choices(named)
    rows = {name: _row(est) for name, est in named.items()}
    densities = {name: _density(est) for name, est in named.items()}
    judged = {name: density for name, density in densities.items() if density is not None}
    best = max(judged, key=lambda name: judged[name].elpd, default=None)
    for name, density in judged.items():
        assert best is not None
        gap, error = (0.0, 0.0) if name == best else density.minus(judged[best])
        rows[name] |= {
            "elpd": density.elpd,
            "elpd_error": density.elpd_error,
            "elpd_difference": gap,
            "difference_error": error,
            "people_above_k": density.people_above_k,
        }
    for name, p in _nested_tests(named).items():
        rows[name]["p_nested"] = p
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    order = table["elpd"].fillna(-math.inf).rank(method="first", ascending=False) if judged else table["bic"].rank()
    return table.loc[order.sort_values(kind="stable").index]


def _named(models: Mapping[str, MixedLogit] | Sequence[MixedLogit]) -> dict[str, MixedLogit]:
    if not isinstance(models, Mapping):
        models = {f"model {i}": est for i, est in enumerate(models, start=1)}
    if len(models) < 2:
        raise SpecificationError(f"compare_models needs at least two models; got {len(models)}.")
    for name, est in models.items():
        if not hasattr(est, "result_"):
            raise NotFittedError(f"{name} is not fitted yet; call fit first.")
    return {str(name): est for name, est in models.items()}


def _check_same_choices(models: Mapping[str, MixedLogit]) -> None:
    """Check numbers of people, situations and alternatives, and people's labels."""
    first, *others = models
    for name in others:
        for what, one, other in zip(
            ("decision makers", "choice situations", "alternatives", "labels of decision makers"),
            _facts(models[first]),
            _facts(models[name]),
            strict=True,
        ):
            if one != other:
                shown = f": {one} against {other}" if isinstance(one, int) else ""
                raise SpecificationError(f"{first} and {name} were fitted to different choices ({what}{shown}).")


def _facts(est: MixedLogit) -> tuple[int, int, int, tuple[object, ...]]:
    fitted = est._state()
    return est.n_decision_makers_, est.n_situations_, fitted.rows, tuple(fitted.decision_makers.tolist())


def _row(est: MixedLogit) -> dict[str, Any]:
    count = len(est.coef_) - len(est.result_.void)
    value = est.log_likelihood_
    return {
        "parameters": count,
        "log_likelihood": value,
        "log_likelihood_error": est.log_likelihood_error_,
        "aic": -2.0 * value + 2.0 * count,
        "bic": -2.0 * value + count * math.log(est.n_decision_makers_),
        **dict.fromkeys(("elpd", "elpd_error", "elpd_difference", "difference_error"), float("nan")),
        **dict.fromkeys(("people_above_k", "p_nested"), float("nan")),
        "log_evidence": est.diagnostics_.get("log_evidence", float("nan")),
        "seconds": est.diagnostics_.get("seconds", float("nan")),
        "trusted": bool(est.diagnostics_.get("trusted", False)),
    }


def _density(est: MixedLogit) -> PredictiveDensity | None:
    return est.loo() if est.result_.samples.kind == "posterior" else None


def _nested_tests(models: Mapping[str, MixedLogit]) -> dict[str, float]:
    """P values of models against the largest smaller one that is nested in them."""
    simulated = [name for name, est in models.items() if est.result_.samples.kind != "posterior"]
    ordered = sorted(simulated, key=lambda name: len(models[name].coef_))
    found = {}
    for place, name in enumerate(ordered):
        for smaller in reversed(ordered[:place]):
            try:
                found[name] = float(likelihood_ratio_test(models[smaller], models[name]).p_value)
                break
            except SpecificationError:
                # Not nested, or with other draws: no test.
                continue
    return found


def fits_by(est: MixedLogit, X: Any, group: str, *, level: float = 0.95) -> pd.DataFrame:
    """Fit a model to each group of people, beside the fit to all of them.

    Parameters
    ----------
    est : MixedLogit
        Estimator with the model and engine; it is cloned, not changed.
    X : long frame
        Choices.
    group : str
        Column of X that is constant within decision makers.
    level : float
        Probability of the intervals.

    Returns
    -------
    pandas.DataFrame
        Index: (group, parameter), with "all" for all people. Columns as those of `MixedLogit.summary`.
        ``attrs["log_likelihood"]``: a Series by group; that of the groups together exceeds that of "all" by what they
        differ.

    Raises
    ------
    ChoiceDataError
        If the column is missing or varies within a decision maker.
    """
    values = _group_of_rows(X, est.decision_maker, group)
    tables, likelihoods = {}, {}
    native = as_narwhals(X)
    for name in ["all", *sorted(set(values.tolist()), key=str)]:
        keep = np.ones(len(values), dtype=bool) if name == "all" else (values == name).to_numpy()
        fitted = clone(est).fit(native.filter(keep.tolist()).to_native())
        tables[name], likelihoods[name] = fitted.summary(level), fitted.log_likelihood_
    whole = pd.concat(tables, names=[group, "parameter"])
    whole.attrs["log_likelihood"] = pd.Series(likelihoods, name="log_likelihood").rename_axis(group)
    return whole


def _group_of_rows(X: Any, decision_maker: str, group: str) -> pd.Series:
    """Group of every row of a frame."""
    frame = as_narwhals(X)
    for name in (decision_maker, group):
        if name not in frame.columns:
            raise ChoiceDataError(f"the frame has no column {name!r}.{suggest(name, frame.columns)}")
    values = pd.Series(frame.get_column(group).to_numpy())
    person = frame.get_column(decision_maker).to_numpy()
    if values.isna().any():
        raise ChoiceDataError(f"column {group!r} has {int(values.isna().sum())} missing values.")
    varies = values.groupby(person).nunique() > 1
    if varies.any():
        places = varies.index[varies][:5].tolist()
        raise ChoiceDataError(
            f"column {group!r} varies within {int(varies.sum())} decision makers (first: {places}); groups "
            "are of people."
        )
    return values
