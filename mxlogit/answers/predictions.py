"""Predictions: probabilities, utilities, shares, scenarios, and how well choices are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mxlogit.answers.state import FittedModel
from mxlogit.reading import read_like_fit
from mxlogit.request import label_keys
from mxlogit.results import prediction
from mxlogit.results.intervals import interval_frame
from mxlogit.results.scenarios import name_scenarios, share_tables


class Predictions(FittedModel):
    """Predictions of a fitted model."""

    def predict_proba(
        self, X: Any, tastes: str = "population", *, interval: float | None = None, history: Any = None
    ) -> pd.Series | pd.DataFrame:
        """Choice probabilities.

        Parameters
        ----------
        X : long frame
            Choice situations; the choice column is not needed. Alternatives may be new ones, if the model has no
            constants, and sets may differ from those of the fit.
        tastes : {"population", "individual"} or "class1" and so on
            Tastes of new people from the population, posterior tastes of decision makers of the fit, or those of the
            members of a class.
        interval : float, optional
            Probability of the intervals. Those of the population are of the probability that is averaged over tastes;
            those of people of the probability at their own tastes, which are not known (after maximum likelihood given
            the estimate).
        history : long frame or ChoiceData, optional
            Choices of the people of X, in the fit or not, on which their tastes are conditional.

        Returns
        -------
        pandas.Series or pandas.DataFrame
            Probabilities with the index of X, summing to one within each choice situation; averaged over the posterior
            (at ``coef_`` after maximum likelihood). With ``interval``, columns ``estimate``, ``lower``, ``upper``;
            ``attrs["interval"]`` says of which distribution.

        Raises
        ------
        ChoiceDataError
            If X has decision makers that are not in the fit, with ``tastes="individual"``, or not in the history.

        Notes
        -----
        The probabilities of a situation depend neither on the other situations in X nor on their order. Tastes of the
        population are integrated over 4,096 quasi-random points common to all situations. Compared with grids over
        tastes, the error of a probability was at most .002 with one or two random coefficients, even at posterior
        standard deviations of .5 (fewer than some twenty people); with five coefficients .007 at .15 and .016 at one;
        and at most .005 with ``tastes="individual"``, from 2,000 or more weighted draws per person (states of chains
        after MCMC; the draws of the fit after `MSLE`). Intervals are those of 256 samples with 128 tastes each,
        about the more accurate estimate; those of shares take 512 tastes in turn.
        """
        return self._row_values(X, prediction.probabilities, "probability", tastes, interval, history)

    def utilities(
        self, X: Any, tastes: str = "population", *, interval: float | None = None, history: Any = None
    ) -> pd.Series | pd.DataFrame:
        """Systematic utilities in utils: coefficients times attributes, averaged over tastes.

        Parameters and result are those of `predict_proba`. Only differences within a choice situation have a meaning.
        """
        return self._row_values(X, prediction.utilities, "utility", tastes, interval, history)

    def _row_values(
        self, X: Any, function: prediction.RowFunction, name: str, tastes: str, interval: float | None, history: Any
    ) -> pd.Series | pd.DataFrame:
        rows = self._rows(X)
        used, columns = self._coefficients(rows, tastes, history), self._state().columns(rows.data)
        estimate = prediction.mean_of_rows(rows.data, columns, used.mean, function)
        if interval is None:
            return pd.Series(prediction.row_values(rows, estimate), index=rows.index, name=name)
        limits = prediction.intervals_of_rows(rows.data, columns, used.sampled, function, estimate, interval)
        if function is prediction.probabilities:
            limits = limits.clamp(0.0, 1.0)
        return interval_frame(prediction.row_values(rows, limits), rows.index, used.sampled.kind, interval)

    def predict(self, X: Any, tastes: str = "population", *, history: Any = None) -> pd.Series:
        """Most likely alternative of every choice situation.

        Returns
        -------
        pandas.Series
            Labels of the alternatives; index: (decision maker, situation).
        """
        rows = self._rows(X)
        used, columns = self._coefficients(rows, tastes, history), self._state().columns(rows.data)
        found = prediction.mean_of_rows(rows.data, columns, used.mean, prediction.probabilities)
        return prediction.most_likely(rows, found, self._names)

    def shares(
        self,
        X: Any,
        tastes: str = "population",
        *,
        interval: float | None = None,
        by: str | Sequence[str] | None = None,
        history: Any = None,
    ) -> pd.Series | pd.DataFrame:
        """Predicted share of every alternative: mean probability over choice situations.

        It is weighted if X has the weights column of the fit.

        Parameters
        ----------
        X : long frame, or list or mapping of them
            Choice situations. Several frames are scenarios, which are compared with the first one at the same tastes
            and samples, so that the intervals of differences are those of the change alone. Without names they are
            called "base" and "scenario", or "scenario 1", "scenario 2", ...
        tastes, history
            Parameters of `predict_proba`.
        interval : float, optional
            Probability of the intervals.
        by : str or sequence of str, optional
            Columns of X that divide choice situations into groups; constant within a situation.

        Returns
        -------
        pandas.Series or pandas.DataFrame
            Shares by alternative, within groups if asked for, and within scenarios, followed by the differences to the
            first scenario, such as "scenario - base". With ``interval``, columns ``estimate``, ``lower``, ``upper``.

        Raises
        ------
        ChoiceDataError
            If X has problems, or a column of ``by`` is missing or varies within a choice situation.
        """
        scenarios, fitted = name_scenarios(X), self._state()
        read = {name: self._rows(frame, weigh=True) for name, frame in scenarios.items()}
        groups = None if by is None else [by] if isinstance(by, str) else list(by)
        used = {name: self._coefficients(rows, tastes, history) for name, rows in read.items()}
        return share_tables(scenarios, read, used, fitted.columns, groups, self.alternative, interval)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log likelihood per choice situation, marginal over tastes, at ``coef_``.

        Tastes are constant over the choices of a person; people are weighted as in the fit.
        """
        fitted = self._state()
        data = read_like_fit(X, self._columns(), fitted, y=y, weights=sample_weight)
        panel, keys = fitted.difference(data), label_keys(data.decision_makers)
        return prediction.mean_log_likelihood(fitted.model, self.result_, panel, keys, fitted.seed)
