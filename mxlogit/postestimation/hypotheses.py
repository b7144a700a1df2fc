"""Functions of estimated parameters and tests of hypotheses about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import chi2, norm

from mxlogit.choices.chunks import PEOPLE_AT_ONCE
from mxlogit.diagnostics.thresholds import LARGEST_LIKELIHOOD_ERROR
from mxlogit.errors import NotFittedError, SpecificationError, check_option, check_probability, suggest
from mxlogit.estimator import MixedLogit
from mxlogit.execution.people import dense_pieces
from mxlogit.spec import Mixture

# Step of numerical derivatives, in standard errors.
_STEP = 1e-4
# Relative step that reveals the dependence of a function on a parameter without a standard error.
_PROBE = 1e-3
# Relative excess of the restricted over the full log likelihood that is attributed to rounding.
_ROUNDING = 1e-6

ParameterFunction = Callable[[pd.Series], Any]


@dataclass(frozen=True)
class HypothesisTest:
    """Result of a hypothesis test.

    Attributes
    ----------
    statistic : float
        Test statistic.
    degrees_of_freedom : int
        Degrees of freedom of its chi-squared distribution under the hypothesis.
    p_value : float
        Upper tail probability of the chi-squared distribution.
    sentence : str
        Description of the hypothesis and of limitations of the test.
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float
    sentence: str

    def __str__(self) -> str:
        return f"{self.sentence} chi2({self.degrees_of_freedom}) = {self.statistic:.3f}, p = {self.p_value:.4g}"


def parameter_function(
    est: MixedLogit, function: ParameterFunction, *, method: str = "auto", level: float = 0.95
) -> pd.DataFrame:
    """Estimate functions of the parameters, with standard errors and intervals.

    Parameters
    ----------
    est : MixedLogit
        Fitted estimator.
    function : callable
        Function of a Series of parameters by label (as ``coef_``) that returns a number, or a mapping or Series
        of named numbers. A willingness to pay is minus a ratio, ``-b["wk"] / b["pf"]``. The entry of a lognormal is
        the location of its logarithm (its median is ``exp(b["pf"])``).
    method : {"auto", "delta", "samples"}
        "delta": first-order standard errors from the covariance of the estimates; "auto" uses them after
        ``MSLE``. "samples": the function of every sample of ``posterior_samples()``; after ``MSLE`` these are
        draws from the asymptotic normal distribution (Krinsky and Robb 1986, Review of Economics and
        Statistics 68), otherwise the posterior.
    level : float
        Probability of the intervals, which are normal for "delta" and quantiles for "samples".

    Returns
    -------
    pandas.DataFrame
        Index: names of the functions. Columns: ``estimate std_error lower upper``.

    Raises
    ------
    SpecificationError
        If the method is unknown or the engine gives no covariance.

    Examples
    --------
    >>> from mxlogit import MSLE, MixedLogit, datasets, parameter_function
    >>> df = datasets.load_electricity()
    >>> est = MixedLogit(fixed=["pf", "cl"], situation="chid", alternative="alt", method=MSLE(), random_state=0).fit(df)
    >>> parameter_function(est, lambda b: {"wtp": -b["cl"] / b["pf"]}).round(2).loc["wtp", "estimate"]
    np.float64(1.08)
    """
    check_option("method", method, ["auto", "delta", "samples"])
    check_probability("level", level)
    coefficients, covariance = _fitted(est).coef_, est.result_.covariance
    if method == "delta" and covariance is None:
        raise SpecificationError("method='delta' needs an asymptotic covariance (MSLE); use method='samples'.")
    estimate = _evaluate(function, coefficients)
    if method == "samples" or covariance is None:
        samples = pd.DataFrame([_evaluate(function, row) for _, row in est.posterior_samples().iterrows()])
        for moved in _concerned(function, estimate, coefficients, _void_places(est)):
            samples.loc[:, moved] = np.nan
        tails = samples.quantile([0.5 * (1.0 - level), 0.5 * (1.0 + level)]).to_numpy()
        return _frame(estimate, samples.std().to_numpy(), tails[0], tails[1])
    matrix = _moved_covariance(function, estimate, coefficients, covariance.cpu().numpy())
    error = np.sqrt(np.diagonal(matrix))
    width = norm.ppf(0.5 * (1.0 + level)) * error
    return _frame(estimate, error, estimate - width, estimate + width)


def wald_test(est: MixedLogit, hypothesis: Sequence[str] | Mapping[str, float] | ParameterFunction) -> HypothesisTest:
    """Wald test of restrictions on the parameters (Wald 1943, Transactions of the American Mathematical Society 54).

    Parameters
    ----------
    est : MixedLogit
        Estimator fitted by ``MSLE``.
    hypothesis : list of str, mapping or callable
        Labels of parameters that are jointly zero; a mapping of labels to hypothesised values; or a function of
        the parameters (see `parameter_function`) that is zero under the hypothesis.

    Returns
    -------
    HypothesisTest

    Raises
    ------
    SpecificationError
        If a label is unknown, restrictions are redundant, or the fit has no covariance.
    """
    covariance = _fitted(est).result_.covariance
    if covariance is None:
        raise SpecificationError("a Wald test needs an asymptotic covariance: fit with method='msle'.")
    function, words, labels = _as_restriction(hypothesis, est.coef_)
    value = _evaluate(function, est.coef_)
    matrix = _moved_covariance(function, value, est.coef_, covariance.cpu().numpy())
    unit = np.sqrt(np.clip(np.diagonal(matrix), 0.0, None))
    standard = matrix / np.outer(unit, unit) if (unit > 0).all() else np.zeros_like(matrix)
    if not np.isfinite(standard).all() or np.linalg.matrix_rank(standard, hermitian=True) < len(value):
        raise SpecificationError(f"the restrictions ({words}) are redundant or concern unidentified parameters.")
    scaled = value.to_numpy() / unit
    statistic = float(scaled @ np.linalg.solve(standard, scaled))
    sentence = f"Wald test of {words}.{_boundary_words(labels, est)}"
    return HypothesisTest(statistic, len(value), float(chi2.sf(statistic, len(value))), sentence)


def likelihood_ratio_test(restricted: MixedLogit, full: MixedLogit) -> HypothesisTest:
    """Likelihood ratio test of two nested fits by ``MSLE`` to the same data with the same draws.

    Parameters
    ----------
    restricted, full : MixedLogit
        Fitted estimators; every parameter of ``restricted`` is one of ``full``.

    Returns
    -------
    HypothesisTest
        Its sentence says if the noise of the draws exceeds one unit of log likelihood.

    Raises
    ------
    SpecificationError
        If the fits are not nested, differ in data or draws, or the full one has the lower log likelihood (its
        search missed the maximum).
    """
    for name, est in (("restricted", restricted), ("full", full)):
        if _fitted(est).result_.covariance is None:
            raise SpecificationError(f"the {name} model was not fitted by maximum simulated likelihood (MSLE).")
    extra = [label for label in full.coef_.index if label not in restricted.coef_.index]
    missing = [label for label in restricted.coef_.index if label not in full.coef_.index]
    if missing or not extra:
        raise SpecificationError(
            f"the models are not nested: the full one lacks {missing[:5]} and adds {extra[:5]}. Are they swapped?"
        )
    _check_same(restricted, full)
    values = [_number(est, "simulated_log_likelihood") for est in (restricted, full)]
    statistic = 2.0 * (values[1] - values[0])
    if statistic < -_ROUNDING * abs(values[0]):
        raise SpecificationError(
            f"the full model's log likelihood {values[1]:.3f} is below the restricted one's {values[0]:.3f}: its "
            "search missed the maximum (try MSLE(n_starts=...) or more draws)."
        )
    statistic = max(statistic, 0.0)
    held = dict(restricted._fitted.specification.held)
    words = ", ".join(f"{label} = {held.get(label, 0.0):g}" for label in extra)
    sentence = f"Likelihood ratio test of {words}.{_boundary_words(extra, full)}"
    sentence += _noise_words(restricted, full, values[1] - values[0])
    return HypothesisTest(statistic, len(extra), float(chi2.sf(statistic, len(extra))), sentence)


def _fitted(est: MixedLogit) -> MixedLogit:
    """Return the estimator, or raise NotFittedError if it is not fitted."""
    if not hasattr(est, "result_"):
        raise NotFittedError(f"this {type(est).__name__} is not fitted yet; call fit first.")
    return est


def _number(est: MixedLogit, name: str) -> float:
    value = est.diagnostics_[name]
    assert isinstance(value, float)
    return value


def _noise_words(restricted: MixedLogit, full: MixedLogit, simulated: float) -> str:
    """Words where simulated log likelihoods do not differ as importance-sampled ones do, which tell their errors."""
    fits = (restricted, full)
    value, error = ([_number(est, name) for est in fits] for name in ("log_likelihood", "log_likelihood_error"))
    other, noise = value[1] - value[0], math.hypot(*error)
    if abs(other - simulated) <= LARGEST_LIKELIHOOD_ERROR and noise <= LARGEST_LIKELIHOOD_ERROR:
        return ""
    return (
        f" The draws count: the log likelihoods differ by {simulated:.2f} as simulated, by {other:.2f} +- {noise:.2f} "
        "(standard error) by importance sampling. Remedy: more draws."
    )


def _check_same(restricted: MixedLogit, full: MixedLogit) -> None:
    """Check that two fits have the same choices and the same kind and number of draws."""
    for what, one, other in (
        ("decision makers", restricted.n_decision_makers_, full.n_decision_makers_),
        ("choice situations", restricted.n_situations_, full.n_situations_),
        (
            "choice sets (null log likelihood)",
            round(_number(restricted, "null_log_likelihood"), 6),
            round(_number(full, "null_log_likelihood"), 6),
        ),
    ):
        if one != other:
            raise SpecificationError(f"the models were fitted to different data: {what} {one} against {other}.")
    _check_same_model(restricted, full)
    _check_same_choices(restricted, full)
    draws = [getattr(est.result_.tastes, "draws", None) for est in (restricted, full)]
    kinds = [
        (d.scheme, d.n_draws, d.antithetic, None if d.scheme == "halton" else d.seed)
        for d in draws
        if d is not None and d.dimensions
    ]
    if len(set(kinds)) > 1:
        raise SpecificationError(
            f"the models were fitted with different draws (scheme, number, antithetic, seed): {kinds}; the statistic "
            "would include simulation noise. Give both the same MSLE settings and random_state."
        )


def _check_same_classes(one: Mixture | None, other: Mixture | None) -> None:
    """Check that two models have the same classes, whose number no likelihood ratio tests: it is on a boundary."""
    kinds = [None if mixture is None else replace(mixture, membership=()) for mixture in (one, other)]
    if kinds[0] != kinds[1]:
        raise SpecificationError(
            "a likelihood ratio between other numbers or kinds of classes has no chi-square distribution: classes that "
            "are not there have no coefficients. compare_models has leave-one-person-out, BIC and log_evidence."
        )
    if one is not None and other is not None and set(one.membership) - set(other.membership):
        raise SpecificationError(
            "the models are not nested: membership depends on covariates that the larger one lacks."
        )


def _check_same_model(restricted: MixedLogit, full: MixedLogit) -> None:
    """Check that shared random coefficients have the same distributions and both models the same scale column."""
    one, other = (est._fitted.specification for est in (restricted, full))
    if one.scale != other.scale:
        raise SpecificationError(f"the models are not nested: scale={one.scale!r} against scale={other.scale!r}.")
    _check_same_classes(one.mixture, other.mixture)
    mine = dict(one.held)
    free = [name for name, value in other.held if mine.get(name) != value]
    if free:
        raise SpecificationError(
            f"the models are not nested: the larger one holds {free}, which the other does not hold at the same values."
        )
    mixing = dict(zip(other.random, other.mixing, strict=True))
    for name, family in zip(one.random, one.mixing, strict=True):
        if mixing.get(name, family) != family:
            raise SpecificationError(
                f"the models are not nested: {name!r} is {family} in one, {mixing[name]} in the other."
            )


def _check_same_choices(restricted: MixedLogit, full: MixedLogit) -> None:
    """Check that sums of shared attributes, as differences to the chosen alternatives, are equal."""
    specifications = [est._fitted.specification for est in (restricted, full)]
    made = [{label for _, label in specification.copies} for specification in specifications]
    totals = [_sums_of_columns(est) for est in (restricted, full)]
    for name in specifications[0].names:
        if name in made[0]:
            # Its column holds nodes, which depend on how many columns have some.
            continue
        sums = [
            total[:, specification.names.index(name)].tolist()
            for total, specification in zip(totals, specifications, strict=True)
        ]
        if not np.allclose(sums[0], sums[1], rtol=1e-6, atol=1e-6 * sums[0][1] ** 0.5):
            raise SpecificationError(
                f"the models were fitted to different data: attribute {name!r} or the choices differ."
            )


def _sums_of_columns(est: MixedLogit) -> torch.Tensor:
    """Sums and sums of squares (2, f + k) of the columns of the people of a fit, of one node of each situation."""
    total = torch.zeros(2, len(est._fitted.specification.names), dtype=torch.float64)
    for _, part in dense_pieces(est._fitted.panel, PEOPLE_AT_ONCE):
        values = (part if part.log_nodes is None else part.first_nodes()).values.double().flatten(0, 1)
        total += torch.stack([values.sum(0), values.square().sum(0)]).cpu()
    return total


def _as_restriction(
    hypothesis: Sequence[str] | Mapping[str, float] | ParameterFunction, coefficients: pd.Series
) -> tuple[ParameterFunction, str, list[str]]:
    """Convert a hypothesis to a function that is zero under it, a description, and the labels tested against zero."""
    if callable(hypothesis):
        return hypothesis, "a function of the parameters = 0", []
    if isinstance(hypothesis, str):
        hypothesis = [hypothesis]
    values = dict(hypothesis) if isinstance(hypothesis, Mapping) else dict.fromkeys(hypothesis, 0.0)
    unknown = [label for label in values if label not in coefficients.index]
    if not values:
        raise SpecificationError("the hypothesis names no parameter; list labels of coef_.")
    if unknown:
        hint = suggest(str(unknown[0]), list(coefficients.index))
        raise SpecificationError(f"no such parameters: {unknown}. There are: {list(coefficients.index)}.{hint}")
    labels, targets = list(values), pd.Series(values, dtype=float)
    words = ", ".join(f"{label} = {value:g}" for label, value in values.items())
    return (lambda parameters: parameters[labels] - targets), words, [k for k, v in values.items() if v == 0.0]


def _boundary_words(labels: Sequence[str], est: MixedLogit) -> str:
    specification = est._fitted.specification
    deviations = {*(f"sd.{name}" for name in specification.random), *(label for _, label in specification.copies)}
    # Labels of classes begin with the class: class1.sd.x.
    if not any(label in deviations or label.partition(".")[2] in deviations for label in labels):
        return ""
    return (
        " A standard deviation of zero is on the boundary: the true p value is smaller, by half for a single one "
        "(Self and Liang 1987, Journal of the American Statistical Association 82)."
    )


def _evaluate(function: ParameterFunction, parameters: pd.Series) -> pd.Series:
    value = function(parameters)
    if isinstance(value, pd.Series):
        return value.astype(float)
    if isinstance(value, Mapping):
        return pd.Series(dict(value), dtype=float)
    return pd.Series(np.atleast_1d(np.asarray(value, dtype=float)))


def _moved_covariance(
    function: ParameterFunction, value: pd.Series, coefficients: pd.Series, covariance: np.ndarray
) -> np.ndarray:
    """First-order covariance of functions of the parameters, by central differences."""
    error = np.sqrt(np.clip(np.diagonal(covariance), 0.0, None))
    jacobian = np.zeros((len(value), len(coefficients)))
    for i in np.flatnonzero(np.isfinite(error) & (error > 0)):
        step = _STEP * error[i]
        up, down = coefficients.copy(), coefficients.copy()
        up.iloc[i] += step
        down.iloc[i] -= step
        jacobian[:, i] = (_evaluate(function, up) - _evaluate(function, down)).to_numpy() / (2.0 * step)
    matrix: np.ndarray = jacobian @ np.where(np.isfinite(covariance), covariance, 0.0) @ jacobian.T
    for moved in _concerned(function, value, coefficients, np.flatnonzero(~np.isfinite(error))):
        matrix[moved] = matrix[:, moved] = np.nan
    return matrix


def _void_places(est: MixedLogit) -> np.ndarray:
    """Indices of the parameters without a standard error: at a boundary, or diverging."""
    error = est.summary()["std_error"].to_numpy()
    found: np.ndarray = np.flatnonzero(~np.isfinite(error))
    return found


def _concerned(
    function: ParameterFunction, value: pd.Series, coefficients: pd.Series, void: np.ndarray
) -> list[np.ndarray]:
    """Masks (m,) of the functions that depend on each parameter without a standard error."""
    return [_depends(function, coefficients, value, int(i)) for i in void]


def _depends(function: ParameterFunction, coefficients: pd.Series, value: pd.Series, i: int) -> np.ndarray:
    """Mask (m,) of the functions that change with parameter i."""
    moved = coefficients.copy()
    moved.iloc[i] += _PROBE * (1.0 + abs(moved.iloc[i]))
    changed: np.ndarray = (_evaluate(function, moved) != value).to_numpy()
    return changed


def _frame(estimate: pd.Series, error: np.ndarray, lower: Any, upper: Any) -> pd.DataFrame:
    table = {"estimate": estimate, "std_error": error, "lower": np.asarray(lower), "upper": np.asarray(upper)}
    return pd.DataFrame(table, index=estimate.index)
