"""Comparison of inference engines on the same data and priors: differences of estimates, and computing time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance
from sklearn.base import clone

from mxlogit.choices import ChoiceData, PackedChoices
from mxlogit.choices.chunks import PEOPLE_AT_ONCE
from mxlogit.errors import ChoiceDataError, SpecificationError
from mxlogit.estimator import MixedLogit
from mxlogit.execution.identity import describe_differences, digest_people, identify_model
from mxlogit.execution.processes import Communicator
from mxlogit.inference.mcmc.engine import MCMC
from mxlogit.inference.method import Method
from mxlogit.request import resolve_method

# Largest difference of posterior means, in posterior sds, up to which two engines agree.
_SAME_MEAN = 0.25
# Largest ratio of posterior sds (the larger over the smaller one) up to which two engines agree.
_SAME_SPREAD = 1.2


@dataclass(frozen=True)
class Comparison:
    """Comparison of several engines on the same choices; the last one is the reference.

    Attributes
    ----------
    fits : dict of str to MixedLogit
        Fitted estimators by engine.
    reference : str
        Engine with which the others are compared.
    table : pandas.DataFrame
        Index: parameters. Columns (engine, measure): ``estimate`` and ``sd`` (standard errors for MSLE) of every
        engine; for all but the reference also ``difference`` (of estimates, in sds of the reference), ``sd_ratio``
        and ``wasserstein`` (1-Wasserstein distance of the marginals, in sds of the reference).
    people : pandas.DataFrame
        Index: (engine, taste). Comparison of decision makers' posterior means with those of the reference: ``rmse``,
        ``correlation``, and the mean ratio of posterior sds, ``sd_ratio``.
    engines : pandas.DataFrame
        Index: engine. Columns: ``log_likelihood`` at the estimates (marginal, with the same method and draws for all),
        ``predictive_distance`` (mean over choice situations of the total variation distance from the reference's
        choice probabilities; nan for data that are not a frame), ``seconds``, ``ess`` (smallest effective sample size;
        samples of VI and MSLE are independent), ``ess_per_second``, ``converged``.
    """

    fits: dict[str, MixedLogit]
    reference: str
    table: pd.DataFrame
    people: pd.DataFrame
    engines: pd.DataFrame

    @property
    def verdict(self) -> str:
        """Sentences, one per engine, that state whether it agrees with the reference."""
        found = self.fits[self.reference].diagnostics_
        trust = "" if found["converged"] else f" Status of the reference, {self.reference}: {found['status']}"
        return " ".join(self._sentence(name) for name in self.fits if name != self.reference) + trust

    def _sentence(self, name: str) -> str:
        table, seconds = self.table[name], self.engines["seconds"]
        difference = table["difference"].abs()
        ratio = table["sd_ratio"]
        stretch = np.maximum(ratio, 1.0 / ratio)
        agrees = difference.max() <= _SAME_MEAN and stretch.max() <= _SAME_SPREAD
        speed = seconds[self.reference] / seconds[name]
        pace = f"{speed:.1f} times faster" if speed >= 1.0 else f"{1.0 / speed:.1f} times slower"
        return (
            f"{name} {'agrees' if agrees else 'does not agree'} with {self.reference}: estimates differ by at most "
            f"{difference.max():.2f} posterior sds ({difference.idxmax()}), ratios of sds are between "
            f"{ratio.min():.2f} and {ratio.max():.2f}; it was {pace}."
        )

    def plot(self, parameters: Sequence[str] | None = None, axes: Any = None) -> Any:
        """Plot the marginal of every parameter, with one line per engine.

        Parameters
        ----------
        parameters : sequence of str, optional
            Labels of parameters; all by default.
        axes : array of matplotlib Axes, optional
            Axes, one per parameter; new ones by default.

        Returns
        -------
        ndarray of matplotlib Axes
        """
        from mxlogit.plots import plot_marginals

        labels = list(self.table.index) if parameters is None else list(parameters)
        unknown = [label for label in labels if label not in self.table.index]
        if unknown:
            raise SpecificationError(f"unknown parameters {unknown}; there are {list(self.table.index)}.")
        return plot_marginals({name: est.posterior_samples()[labels] for name, est in self.fits.items()}, axes)

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.round(3).to_string()}\n\n{self.engines.round(2).to_string()}"


def compare_with_mcmc(est: MixedLogit, X: Any, mcmc: MCMC | None = None) -> Comparison:
    """Compare a fit with one by `MCMC` to the same choices.

    Parameters
    ----------
    est : MixedLogit
        Estimator fitted on X; if it is not fitted, a copy of it is.
    X : long frame or ChoiceData
        Choices.
    mcmc : MCMC, optional
        Settings of the sampler; ``MCMC()`` by default.

    Returns
    -------
    Comparison

    Raises
    ------
    ChoiceDataError
        If ``est`` was fitted on other choices.
    SpecificationError
        If ``mcmc`` is not `MCMC` settings, or the arguments of ``est`` have changed since it was fitted.
    """
    settings = MCMC() if mcmc is None else mcmc
    if not isinstance(settings, MCMC):
        raise SpecificationError(f"mcmc must be None or MCMC(...); got {mcmc!r}.")
    if hasattr(est, "result_"):
        _check_same_choices(est, X)
    else:
        est = clone(est).fit(X)
    sampled = clone(est).set_params(method=settings).fit(X)
    name = _name(resolve_method(est.method))
    return _compare({name if name != "mcmc" else "mcmc (est)": est, "mcmc": sampled}, X)


def compare_methods(est: MixedLogit, X: Any, methods: Sequence[str | Method] = ("vi", "msle", "mcmc")) -> Comparison:
    """Fit several engines to the same choices and compare them with the last one.

    Parameters
    ----------
    est : MixedLogit
        Estimator with the model and the priors; its method is not used, and it is not changed.
    X : long frame or ChoiceData
        Choices.
    methods : sequence of str or settings objects
        At least two engines; the last one is the reference.

    Returns
    -------
    Comparison

    Raises
    ------
    SpecificationError
        If fewer than two engines are named, or one is unknown.
    """
    if isinstance(methods, str) or len(methods) < 2:
        raise SpecificationError(f"methods must name at least two engines, such as ('vi', 'mcmc'); got {methods!r}.")
    fits: dict[str, MixedLogit] = {}
    for method in methods:
        settings = resolve_method(method)
        name = _name(settings)
        count = sum(known.split(" ")[0] == name for known in fits)
        fits[f"{name} {count + 1}" if count else name] = clone(est).set_params(method=settings).fit(X)
    return _compare(fits, X)


def _name(method: Method) -> str:
    return type(method).__name__.lower()


def _check_same_choices(est: MixedLogit, X: Any) -> None:
    """Check, before sampling, that ``est`` was fitted on the same choices and with its present model."""
    mine, others = est._state(), clone(est)._prepare(X, Communicator())[0]
    models = describe_differences(identify_model(mine.model), identify_model(others.model))
    labels = np.array_equal(mine.decision_makers, others.decision_makers)
    if not labels or digest_people(mine.panel) != digest_people(others.panel):
        raise ChoiceDataError("est was fitted on other choices than X; fit it on X first.")
    if models:
        raise SpecificationError(f"the arguments of est have changed since it was fitted: {models}. Fit it again.")


def _compare(fits: dict[str, MixedLogit], X: Any) -> Comparison:
    reference = list(fits)[-1]
    parts = {name: _parameters(est, fits[reference], is_reference=name == reference) for name, est in fits.items()}
    table = pd.concat(parts, axis=1, names=["engine", "measure"])
    table.index.name = "parameter"
    return Comparison(fits, reference, table, _people(fits, reference), _engines(fits, reference, X))


def _parameters(est: MixedLogit, reference: MixedLogit, *, is_reference: bool) -> pd.DataFrame:
    """Estimates of one engine, and their differences from the reference."""
    mine, theirs = (fit.summary().loc[list(fit.coef_.index)] for fit in (est, reference))
    frame = pd.DataFrame({"estimate": mine["estimate"], "sd": mine["std_error"]})
    if is_reference:
        return frame
    unit = theirs["std_error"]
    frame["difference"] = (mine["estimate"] - theirs["estimate"]) / unit
    frame["sd_ratio"] = mine["std_error"] / unit
    here, there = est.posterior_samples(), reference.posterior_samples()
    frame["wasserstein"] = [wasserstein_distance(here[x], there[x]) / unit[x] for x in frame.index]
    return frame


def _people(fits: dict[str, MixedLogit], reference: str) -> pd.DataFrame:
    """Comparison of decision makers' posterior means and sds with those of the reference."""
    expected = fits[reference].individual_coefficients()
    rows = {}
    for name, est in fits.items():
        if name == reference:
            continue
        found = est.individual_coefficients()
        for taste in found.columns.unique("taste"):
            here, there = found[taste], expected[taste]
            rows[name, taste] = {
                "rmse": float(np.sqrt((here["mean"] - there["mean"]).pow(2).mean())),
                "correlation": float(here["mean"].corr(there["mean"])),
                "sd_ratio": float((here["sd"] / there["sd"]).mean()),
            }
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["rmse", "correlation", "sd_ratio"])
    if rows:
        frame.index = pd.MultiIndex.from_tuples(list(rows), names=["engine", "taste"])
    return frame


def _weighted_situations(est: MixedLogit) -> float:
    """Sum over decision makers of weight times choice situations, the denominator of `MixedLogit.score`."""
    parts = (part for _, part in est._state().panel.chunks(PEOPLE_AT_ONCE))
    return sum(float(part.weights.double() @ part.n_situations.double()) for part in parts)


def _engines(fits: dict[str, MixedLogit], reference: str, X: Any) -> pd.DataFrame:
    """Log likelihood, predictive distance and computing time of every engine."""
    is_frame = not isinstance(X, (ChoiceData, PackedChoices))
    predicted = {name: est.predict_proba(X) for name, est in fits.items()} if is_frame else {}
    rows = {}
    for name, est in fits.items():
        seconds = est.result_.diagnostics.seconds or float("nan")
        size = float(est.summary()["ess"].min()) if "ess" in est.summary() else float(len(est.result_.samples))
        distance = float("nan")
        if predicted:
            gap = (predicted[name] - predicted[reference]).abs().sum()
            distance = 0.5 * float(gap) / est.n_situations_
        rows[name] = {
            "log_likelihood": est.score(X) * _weighted_situations(est),
            "predictive_distance": distance,
            "seconds": seconds,
            "ess": size,
            "ess_per_second": size / seconds,
            "converged": est.result_.status.converged,
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "engine"
    return frame
